"""Tables as web pages: self-contained files that open anywhere, in the report too."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from histogep.files import complete

#: How a number is written by default.
DEFAULT_FORMAT = "{:.3g}"
#: Characters; a longer text is broken into lines, so that it does not push the numbers out of sight.
_SENTENCE = 40
_STYLE = """
:root { color-scheme: light; }
body { font: 13px/1.45 "Helvetica Neue", Arial, sans-serif; color: #1c1c1c; background: #fff;
  margin: 1.5em auto; max-width: 78em; padding: 0 1em; }
h1 { font-size: 1.45em; margin: 0 0 .4em; } h2 { font-size: 1.1em; margin: 1.6em 0 .3em; }
p { margin: .35em 0; max-width: 62em; } p.empty { color: #666; font-style: italic; }
div.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .6em 0; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; border-bottom: 2px solid #444; padding: .3em .45em;
  position: sticky; top: 0; background: #fff; vertical-align: bottom; }
td { padding: .22em .45em; border-bottom: 1px solid #e4e4e4; white-space: nowrap; }
td.sentence { white-space: normal; overflow-wrap: anywhere; min-width: 24em; }
td.number, th.number { text-align: right; }
td.none { color: #aaa; } tr:hover td { background-color: #f3f6f9; }
code { font-size: .95em; background: #f1f1f1; padding: 0 .2em; }
tr.group td { border-top: 2px solid #888; }
div.warning { border-left: 4px solid #c0392b; background: #fdf1ef; padding: .3em .8em; margin: .8em 0; }
"""


@dataclass(frozen=True)
class Table:
    """One table of a page.

    Attributes
    ----------
    frame
        Rows that are shown, in their order; the index is not.
    heading
        Its title; empty for none.
    notes
        Sentences above it. Plain text, everything is escaped; `names` in backticks are set as code.
    formats
        Column -> format string ("{:.2f}", "{:.0%}") or function of a value; other numbers are
        written with three significant digits, whole numbers in full.
    bars
        Column -> (lowest, highest): a bar behind the number shows its place in that range.
    bar_colours
        Column -> colour of its bars.
    headers
        Column -> text of its header, if not its name.
    group_by
        Column; a line is drawn where its value changes.
    """

    frame: pd.DataFrame
    heading: str = ""
    notes: Sequence[str] = ()
    formats: Mapping[str, str | Callable[[object], str]] = field(default_factory=dict)
    bars: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    bar_colours: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    group_by: str | None = None


def render_page(
    title: str,
    tables: Sequence[Table],
    *,
    notes: Sequence[str] = (),
    warnings: Sequence[str] = (),
) -> str:
    """Return a page of tables as HTML that needs no other file.

    Parameters
    ----------
    title
        Title of the page.
    tables
        What is shown, in order.
    notes
        Sentences under the title, one paragraph each.
    warnings
        Warnings of jobs that decide what the page shows, set apart above all else.
    """
    body = [f"<h1>{html.escape(title)}</h1>"]
    if warnings:
        told = "".join(map(_paragraph, warnings))
        body.append(f'<div class="warning"><p>Read this first:</p>{told}</div>')
    body += [_paragraph(note) for note in notes]
    for table in tables:
        body.append(_render_table(table))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def write_page(
    path: str | Path,
    *,
    title: str,
    tables: Sequence[Table],
    notes: Sequence[str] = (),
    warnings: Sequence[str] = (),
) -> None:
    """Write a page of tables (see `render_page`)."""
    text = render_page(title, tables, notes=notes, warnings=warnings)
    with complete(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _render_table(table: Table) -> str:
    frame = table.frame
    unknown = sorted(
        {*table.formats, *table.bars, *table.bar_colours, *table.headers} - set(frame.columns)
    )
    if unknown:
        raise ValueError(f"the table has no columns {', '.join(unknown)}")
    parts = [f"<h2>{html.escape(table.heading)}</h2>"] if table.heading else []
    parts += [_paragraph(note) for note in table.notes]
    if frame.empty:
        return "\n".join([*parts, '<p class="empty">Nothing to show.</p>'])
    numeric = {
        column: pd.api.types.is_numeric_dtype(frame[column])
        and not pd.api.types.is_bool_dtype(frame[column])
        for column in frame
    }
    head = "".join(
        f"<th{_class('number' if numeric[column] else '')}>"
        f"{html.escape(str(table.headers.get(column, column)))}</th>"
        for column in frame
    )
    lines: list[str] = []
    group = None
    for record in frame.to_dict("records"):
        cells = "".join(_cell(table, column, record[column], numeric[column]) for column in frame)
        new = table.group_by is not None and record[table.group_by] != group
        lines.append(f"<tr{_class('group' if new and lines else '')}>{cells}</tr>")
        if table.group_by is not None:
            group = record[table.group_by]
    parts.append(
        f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(lines)
        + "\n</tbody>\n</table></div>"
    )
    return "\n".join(parts)


def _paragraph(note: str) -> str:
    """Return a note as HTML: escaped, names in backticks as code."""
    return "<p>" + re.sub("`([^`]+)`", r"<code>\1</code>", html.escape(note)) + "</p>"


def _cell(table: Table, column: str, value: Any, numeric: bool) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return f'<td class="{"number " if numeric else ""}none">–</td>'
    text = html.escape(format_value(value, table.formats.get(column)))
    style = ""
    if column in table.bars and numeric and np.isfinite(value):
        low, high = table.bars[column]
        share = 100 * min(max((float(value) - low) / (high - low), 0.0), 1.0)
        colour = html.escape(table.bar_colours.get(column, "#b9d4ea"))
        style = (
            f' style="background-image:linear-gradient(to right,{colour} {share:.1f}%,'
            f'transparent {share:.1f}%)"'
        )
    kind = "number" if numeric else "sentence" if len(text) > _SENTENCE else ""
    return f"<td{_class(kind)}{style}>{text}</td>"


def format_value(value: Any, form: str | Callable[[object], str] | None = None) -> str:
    """Return a value as a page shows it: by its format, else with three significant digits."""
    if callable(form):
        return form(value)
    if form is not None and not isinstance(value, str):
        text = form.format(value)
        # A number that rounds to zero has no sign.
        return text[1:] if re.fullmatch(r"-0(\.0*)?%?", text) else text
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    if isinstance(value, float | np.floating):
        if float(value).is_integer() and abs(float(value)) < 1e6:
            return f"{int(value):,}"
        if 1000 <= abs(float(value)) < 1e6:
            return f"{value:,.0f}"
        return DEFAULT_FORMAT.format(value)
    return str(value)


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""
