"""The first pages of a report: what may be relied on, what was warned of, which slides there are."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from histogep.evaluation.summary import Summary
from histogep.evaluation.verdicts import CARE, DO_NOT, RELY, Verdict
from histogep.files import complete
from histogep.report.pages import Table, write_page

_COLOURS = {RELY: "#1e8449", CARE: "#b9770e", DO_NOT: "#b03a2e"}
#: The report shows the text beside the graph of the rules, in half of the width: here the answer takes
#: the whole width, and the graph stands below it.
_FIRST_PAGE = """<style>
.h-screen:has(.answer) { align-items: flex-start !important; }
.flex:has(> div > .prose .answer) { flex-direction: column; }
.prose:has(.answer) { max-width: 62rem !important; }
</style>"""
_STYLE = """<style>
.answer { font-size: 14px; line-height: 1.45; }
.answer table { border-collapse: collapse; width: 100%; margin: .5em 0; }
.answer td { vertical-align: top; padding: .45em .6em; border-top: 1px solid #ddd; white-space: normal; }
.answer td.grade { white-space: nowrap; font-weight: 700; color: #fff; text-align: center; }
.answer .because { color: #555; font-style: italic; }
.answer ul { margin: .2em 0 .6em; padding-left: 1.3em; } .answer h2 { margin: .9em 0 .2em; }
</style>"""
#: Warnings that the first page repeats; all are on the page of warnings.
_MOST_WARNINGS = 6


def write_summary_page(summary: Summary, warned: pd.DataFrame, path: str | Path) -> None:
    """Write results/summary.html: what was asked, what may be relied on, and what was left out.

    Parameters
    ----------
    summary
        Of `histogep.evaluation.summary.summarise_study`.
    warned
        The table of `histogep.workflow.warnings_of_jobs.list_warnings`.
    path
        Where to write.
    """
    title = html.escape(f"Study {summary.study}")
    left_out = _list("Left out, and why", summary.left_out)
    text = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{title}</title>\n{_STYLE}\n<style>body {{ font-family: Arial, sans-serif; "
        "max-width: 70em; margin: 1.5em auto; padding: 0 1em; }</style>\n</head>\n<body>\n"
        f"<h1>{title}</h1>\n{_answer(summary, warned, left_out)}\n</body>\n</html>\n"
    )
    with complete(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_summary_text(summary: Summary, warned: pd.DataFrame, path: str | Path) -> None:
    """Write results/summary.rst, with which the report begins (see `write_summary_page`)."""
    body = f"{_FIRST_PAGE}\n{_STYLE}\n{_answer(summary, warned)}"
    # Read into the text of the report whatever the locale is: ASCII, the rest as entities.
    lines = body.encode("ascii", "xmlcharrefreplace").decode().splitlines()
    with complete(path) as temporary:
        text = ".. raw:: html\n\n" + "".join(f"   {line}\n" for line in lines)
        temporary.write_text(text, encoding="utf-8")


def _answer(summary: Summary, warned: pd.DataFrame, more: str = "") -> str:
    rows = "\n".join(map(_row, summary.verdicts))
    deciding = warned[warned["decides"] != ""]
    total, n = int(warned["n"].sum()), int(deciding["n"].sum())
    said = f"Warnings: {total}, of which {n} decide a result" if total else "No warnings"
    texts = [
        f"{row.decides.replace(',', ', ')}: {row.warning}"
        for row in deciding.drop_duplicates(["decides", "warning"]).itertuples()
    ]
    if len(texts) > _MOST_WARNINGS:
        texts = [*texts[:_MOST_WARNINGS], f"and {len(texts) - _MOST_WARNINGS} more"]
    return (
        '<div class="answer">\n'
        + _list("What was asked", summary.asked)
        + f"<h2>What may be relied on</h2>\n<table>\n{rows}\n</table>\n"
        + _list("Which models made the predictions", summary.deployed)
        + f"<h2>{said}</h2>\n"
        + _list("", texts)
        + more
        + "</div>"
    )


def _row(verdict: Verdict) -> str:
    cohort = f" ({verdict.cohort})" if verdict.cohort else ""
    because = (
        f'<div class="because">{html.escape(verdict.because)}</div>' if verdict.because else ""
    )
    return (
        f'<tr><td class="grade" style="background:{_COLOURS[verdict.grade]}">{verdict.grade}</td>'
        f"<td><b>{html.escape(verdict.question + cohort)}</b><br>{html.escape(verdict.finding)}"
        f"{because}</td></tr>"
    )


def _list(heading: str, sentences: Sequence[str]) -> str:
    if not sentences:
        return ""
    items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences)
    return (f"<h2>{html.escape(heading)}</h2>\n" if heading else "") + f"<ul>{items}</ul>\n"


def write_warnings_page(warned: pd.DataFrame, path: str | Path) -> None:
    """Write results/warnings.html.

    Parameters
    ----------
    warned
        The table of `histogep.workflow.warnings_of_jobs.list_warnings`.
    path
        Where to write.
    """
    deciding = warned["decides"] != ""
    tables = []
    if deciding.any():
        shown = warned.loc[deciding, ["decides", "rule", "slide", "job", "warning", "n"]]
        tables.append(Table(shown, heading="What decides a result", headers={"n": "times"}))
    if not deciding.all():
        shown = warned.loc[~deciding, ["rule", "slide", "job", "warning", "n"]]
        tables.append(Table(shown, heading="All others", headers={"n": "times"}))
    total = int(warned["n"].sum())
    write_page(
        path,
        title=f"Warnings: {total}, of which {int(warned.loc[deciding, 'n'].sum())} decide a result",
        tables=tables,
        notes=[
            "A warning decides a result where a reader would otherwise take a number or a map for what "
            "it is not, or look for one that is not there. `results/warnings.tsv` has the same table."
            if total
            else "No job warned of anything."
        ],
    )


def write_slides_page(listed: pd.DataFrame, path: str | Path) -> None:
    """Write results/slides.html.

    Parameters
    ----------
    listed
        The table of `histogep.slides.inventory.list_slides`.
    path
        Where to write.
    """
    shares = ("share_pen", "share_blurred", "share_folded")
    n_used = int((listed["status"] == "used").sum())
    shown = listed if n_used < len(listed) else listed.drop(columns="reason")
    if not (listed["deciding"] != "").any():
        shown = shown.drop(columns="deciding")
    write_page(
        path,
        title=f"Slides: {n_used} of {len(listed)} are used",
        tables=[
            Table(
                shown,
                formats=dict.fromkeys(shares, "{:.1%}") | {"tissue_mm2": "{:.1f}"},
                bars=dict.fromkeys(shares, (0.0, 1.0)),
                bar_colours=dict.fromkeys(shares, "#f3c9a5"),
                headers={name: name.split("_")[-1] for name in shown}
                | {"mpp": "um/px", "tissue_mm2": "tissue, mm²"},
            )
        ],
        notes=[
            "A section has spots and trains the model, a slide is predicted. `warnings` are those of "
            "reading, tiling and labelling a slide, `deciding` the texts of those that decide a "
            "result; `results/warnings.tsv` has the warnings of all jobs. The share of pen is of "
            "pen and tissue together, those of blurred and folded tiles are of the tiles. Sharpness "
            "is the variance of the Laplacian of the median tile: compare it between slides of one "
            "scanner. `results/slides.tsv` has the same table."
        ],
    )
