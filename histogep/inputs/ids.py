"""Ids of slides, patients and cohorts: which are valid, and which are the same."""

from __future__ import annotations

import re

import pandas as pd

#: A valid id: no slash, no space, nothing that a shell or a file system interprets.
ID_PATTERN = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_ID = re.compile(f"^{ID_PATTERN}$")
#: Ids that other readers of the results would take for a missing value.
_MISSING = {"na", "nan", "null", "none"}


def bad_ids(sheet: pd.DataFrame, column: str) -> list[str]:
    """Return one line for each invalid id of a column; `sheet` has the column `line`."""
    rule = "letters, digits, '.', '_' and '-', at most 64, the first a letter or digit"
    problems = []
    for line, name in zip(sheet["line"], sheet[column], strict=True):
        if not name:
            problems.append(f"line {line}: no {column}")
        elif not _ID.match(name) or ".." in name or name.endswith("\n"):
            problems.append(f"line {line}: {column} {name!r} is not an id ({rule}, without '..')")
        elif name.lower() in _MISSING:
            problems.append(
                f"line {line}: {column} {name!r} would be read as a missing value; rename it"
            )
    return problems


def repeated_ids(sheet: pd.DataFrame, column: str) -> list[str]:
    """Return one line for each id that appears twice, whatever its case.

    File systems may not tell them apart.
    """
    lowered = sheet[column].str.lower()
    return [
        f"{column} {' and '.join(map(repr, rows[column].unique()))} appears on lines "
        f"{', '.join(map(str, rows['line']))}"
        + (", differing in case only" if rows[column].nunique() > 1 else "")
        for name, rows in sheet.groupby(lowered, sort=True)
        if name and len(rows) > 1
    ]
