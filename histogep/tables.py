"""Tables of others: TSV, CSV (plain, gz, zip) or xlsx, told apart by their first lines."""

from __future__ import annotations

import csv
import gzip
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from histogep.jobs import InputError

_EXCEL = (".xlsx", ".xlsm")


@dataclass(frozen=True)
class Layout:
    """How a table is laid out.

    Attributes
    ----------
    columns
        Names of the columns, as written.
    separator
        Tab or comma; "" for a workbook.
    skipped
        Lines of comments (`#`) above the header.
    """

    columns: tuple[str, ...]
    separator: str
    skipped: int = 0


def read_layout(path: str | Path) -> Layout:
    """Return columns and separator of a table without reading the rest of a text file.

    Raises
    ------
    InputError
        The file is no table, or has no header.
    """
    path = Path(path)
    try:
        if path.suffix.lower() in _EXCEL:
            return Layout(tuple(map(str, pd.read_excel(path, nrows=0).columns)), "")
        skipped = 0
        with _text(path) as lines:
            for line in lines:
                if line.startswith("#") or not line.strip():
                    skipped += 1
                    continue
                separator = "\t" if "\t" in line else ","
                names = next(csv.reader([line.rstrip("\r\n")], delimiter=separator))
                return Layout(tuple(name.strip() for name in names), separator, skipped)
    except (OSError, ValueError, zipfile.BadZipFile, csv.Error) as error:
        raise InputError(f"{path} is no table (xlsx, TSV or CSV; gz or zip): {error}") from None
    raise InputError(f"{path} is empty; a table starts with the names of its columns")


def read_table(path: str | Path, layout: Layout, **options: Any) -> pd.DataFrame:
    """Return the table; `options` are those of `pandas.read_csv` and `pandas.read_excel`.

    Raises
    ------
    InputError
        The file cannot be read as it is laid out.
    """
    try:
        if not layout.separator:
            return pd.read_excel(path, **options)
        return pd.read_csv(
            path,
            sep=layout.separator,
            skiprows=layout.skipped,
            skip_blank_lines=True,
            low_memory=False,
            **options,
        )
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read as a table: {error}") from None


def _text(path: Path) -> io.TextIOBase:
    """Open a text file, gz or zip (its only member) for reading."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    if path.suffix == ".zip":
        archive = zipfile.ZipFile(path)
        members = [name for name in archive.namelist() if not name.startswith("__MACOSX")]
        if len(members) != 1:
            raise ValueError(f"{len(members)} files in the archive, one is read")
        return io.TextIOWrapper(archive.open(members[0]), encoding="utf-8-sig", newline="")
    return open(path, encoding="utf-8-sig", newline="")
