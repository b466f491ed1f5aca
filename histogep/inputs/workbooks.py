"""Read tables from others: delimited text, plain or packed, or a workbook's first visible sheet."""

from __future__ import annotations

import datetime
import logging
import re
import zipfile
from pathlib import Path
from typing import Any

from histogep.errors import InputError
from histogep.files import given_file
from histogep.inputs.delimited import Delimited, lay_out, open_delimited, refuse_special_files

log = logging.getLogger(__name__)

_EXCEL = (".xlsx", ".xlsm")
#: Bytes of the XML in a workbook, and of its cells as text.
_MAX_WORKBOOK = 256 << 20
#: Rows that Excel can have; a file may claim more.
_MAX_ROWS = 1 << 20
_UNIT = "\x1f"
_LINE_ENDS = re.compile(r"[\r\n\x1f]+")
#: A formula whose value was never computed, as programs other than spreadsheets write it.
_MERGED = re.compile(rb"<(?:\w+:)?mergeCell ")
_NO_VALUE = re.compile(rb"(?:</f>|<f[^>]*/>)\s*(?:<v\s*/>|<v>\s*</v>)?\s*</c>")


def open_table(path: str | Path, **options: Any) -> Delimited:
    """Return a table of text or of a workbook; `options` are those of `open_delimited`.

    Raises
    ------
    InputError
        The file cannot be read as a table.
    """
    path = Path(path)
    error = options.get("error", InputError)
    if not is_workbook(path):
        return open_delimited(path, **options)
    refuse_special_files(path, error=error)
    if not zipfile.is_zipfile(path):
        raise error(
            f"{path} is not an Excel workbook though its name says so: if it is text, rename it to .csv or "
            ".tsv; if it is locked with a password, save it without"
        )
    with given_file(path, "an Excel workbook", error=error):
        data = _workbook_text(path, error)
    for name in ("n_lines", "most", "separators"):
        options.pop(name, None)
    return lay_out(path, data, unit=_UNIT, **options)


def is_workbook(path: str | Path) -> bool:
    """Return whether a file is a workbook by its name."""
    return Path(path).suffix.lower() in _EXCEL


def _workbook_text(path: Path, error: type[InputError]) -> bytes:
    """Return the first visible sheet as lines, one a row up to the last, cells separated by `_UNIT`."""
    from openpyxl import load_workbook

    with zipfile.ZipFile(path) as archive:
        sheets = [item for item in archive.infolist() if item.filename.endswith(".xml")]
        if sum(item.file_size for item in sheets) > _MAX_WORKBOOK:
            raise error(
                f"{path} unpacks to more than {_MAX_WORKBOOK / 1e6:.0f} MB: it is not a table"
            )
        pages = [
            archive.read(item) for item in sheets if item.filename.startswith("xl/worksheets/")
        ]
    uncomputed, merged = (any(map(found.search, pages)) for found in (_NO_VALUE, _MERGED))
    del pages
    if merged:
        _refuse_merged(path, error)
    book = load_workbook(path, read_only=True, data_only=True)
    try:
        sheet = _in_sight(book)
        others = [other.title for other in book.worksheets if other is not sheet]
        if others:
            log.info("%s: its sheet %r is read, not %s", path, sheet.title, ", ".join(others))
        sheet.reset_dimensions()  # what a file declares need not be true
        lines, held = [], 0
        for number, row in enumerate(sheet.iter_rows(values_only=True), start=1):
            if number > _MAX_ROWS:
                raise error(f"{path} claims more rows than a workbook can have")
            cells = [_cell(value) for value in row]
            while cells and not cells[-1]:
                cells.pop()
            lines.append(_UNIT.join(cells))
            held += len(lines[-1])
            if held > _MAX_WORKBOOK:
                raise error(
                    f"{path} holds more than {_MAX_WORKBOOK / 1e6:.0f} MB: it is not a table"
                )
    finally:
        book.close()
    if uncomputed:
        _refuse_formulas(path, lines, error)
    # Rows end where their last cell does.
    widths = [line.count(_UNIT) for line in lines]
    width = max(widths, default=0)
    if width * len(lines) > _MAX_WORKBOOK:
        raise error(
            f"{path}, line {widths.index(width) + 1}: a cell in column {width + 1} of a table of "
            f"{len(lines)} rows: delete the cells beside the table"
        )
    filled = [line and line + _UNIT * (width - line.count(_UNIT)) for line in lines]
    return "\n".join(filled).encode("utf-8", "replace")


def _in_sight(book: Any) -> Any:
    """Return the first sheet that is not hidden: the one seen on opening the workbook."""
    sheets = book.worksheets
    return next((sheet for sheet in sheets if sheet.sheet_state == "visible"), sheets[0])


def _refuse_merged(path: Path, error: type[InputError]) -> None:
    """Raise an InputError for merged cells: all but the first of them are empty in the file."""
    from openpyxl import load_workbook

    found = sorted(_in_sight(load_workbook(path)).merged_cells.ranges, key=lambda r: r.min_row)
    if found:
        told = ", ".join(merged.coord for merged in found[:5])
        raise error(
            f"{path}, line {found[0].min_row}: cells are merged ({told}), and only the first of them "
            "has the value: unmerge them and write the value into each"
        )


def _refuse_formulas(path: Path, lines: list[str], error: type[InputError]) -> None:
    """Raise an InputError for formulas of the first sheet without their values."""
    from openpyxl import load_workbook

    book = load_workbook(path, read_only=True)
    try:
        sheet = _in_sight(book)
        sheet.reset_dimensions()
        for number, row in enumerate(sheet.iter_rows(values_only=True), start=1):
            values = lines[number - 1].split(_UNIT)
            for column, value in enumerate(row):
                if str(value).startswith("=") and not "".join(values[column : column + 1]):
                    raise error(
                        f"{path}, line {number}: column {column + 1} holds a formula without its "
                        "value, and formulas are not computed: open it in Excel and save it, or put "
                        "the value there"
                    )
    finally:
        book.close()


def _cell(value: Any) -> str:
    """Return a cell as it would stand in a text, 5.0 as 5 and a day as 2020-05-17."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    return _LINE_ENDS.sub(" ", str(value))
