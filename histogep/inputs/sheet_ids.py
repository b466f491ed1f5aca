"""Ids of slides, patients and cohorts: which are valid, the same, or cannot be told apart.

An id becomes part of file names: `results/slides/ID.json` beside the folder `results/slides/ID`.
Ids from which no unique file name can be made are refused here, before any work starts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from histogep.errors import InputError

# The parsing of the workflow needs the pattern alone.
if TYPE_CHECKING:
    import pandas as pd

#: A valid id: no slash, no space, nothing that a shell or a file system interprets.
ID_PATTERN = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_ID = re.compile(f"^{ID_PATTERN}$")
#: Ids that other readers of the results would take for a missing value.
_MISSING = {"na", "nan", "null", "none"}
#: What follows an id and a point in the names of results; a test holds it against the rules.
SUFFIXES = frozenset(
    {
        *("arms", "counts", "dropped", "geojson", "h5", "h5ad", "published", "html", "json", "log"),
        *("markers", "parquet", "png", "pt", "quality", "svg", "tar", "thumbnail", "tiff", "truth"),
        *("tsv", "zarr"),
    }
)
#: Bytes of a name, and of a whole path, that file systems take.
_LONGEST_NAME, _LONGEST_PATH = 255, 4095
#: Snakemake takes a value that ends in this many repeats of anything for a rule that feeds itself.
_REPEATS = re.compile(r"(.+?)\1{19,}$", re.DOTALL)
_SHOWN = 80
#: What a formula begins with in Excel and similar programs, at once or after white space.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


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


def refused_name(name: str) -> str:
    """Return why an otherwise valid id cannot be part of the names of results; "" for any other."""
    if len(name) <= _SHOWN and (found := _REPEATS.search(name)):
        return (
            f"ends in {found[1]!r} repeated {len(found[0]) // len(found[1])} times, which Snakemake "
            "refuses (from 20): give a shorter id"
        )
    return ""


def clashing_names(sheet: pd.DataFrame) -> list[str]:
    """Return the problems of the ids of a slide sheet with each other, with their lines.

    Parameters
    ----------
    sheet
        Text columns slide and cohort, and line.
    """
    problems = []
    lines: dict[str, dict[str, list[int]]] = {"slide": {}, "cohort": {}}
    for column, found in lines.items():
        for line, name in zip(sheet["line"], sheet[column], strict=True):
            if name:
                found.setdefault(name, []).append(line)
        problems += [
            f"line {at[0]}: {column} {name!r} {why}"
            for name, at in found.items()
            if (why := refused_name(name))
        ]
    problems += [
        f"lines {lines['cohort'][one][0]}, {lines['cohort'][other][0]}: cohorts {one!r} and "
        f"{other!r} differ in case only, which some file systems do not tell apart: write one of them"
        for one, other in same_but_for_case(lines["cohort"])
    ]
    kind_of = {name: (kind, at) for kind, found in lines.items() for name, at in found.items()}
    lowered = {name.lower(): name for name in kind_of}
    for name, (kind, at) in kind_of.items():
        stem, *rest = name.split(".")
        for number in range(len(rest)):
            other = lowered.get(stem.lower())
            if other is not None and rest[number].lower() in SUFFIXES:
                problems.append(
                    f"lines {kind_of[other][1][0]}, {at[0]}: {kind_of[other][0]} {other!r} and "
                    f"{kind} {name!r} would share files, as {name!r} is {other!r} and a suffix of "
                    "results: rename one"
                )
            stem = f"{stem}.{rest[number]}"
    return problems


def same_but_for_case(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return the pairs of different names that are equal but for case."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        groups.setdefault(name.casefold(), []).append(name)
    return [pair for group in groups.values() for pair in combinations(group, 2)]


def refused_path(path: str) -> str:
    """Return why no file can be at a path, or Snakemake would misread it; "" for any other."""
    shown = repr(path if len(path) <= _SHOWN else f"{path[:_SHOWN]}...")
    if found := re.search(r"[\x00-\x1f\x7f]", path):
        return f"{shown} holds the control character {found[0]!r}: rename the file"
    if found := re.search(r"[<>{}]", path):
        return (
            f"{shown} holds {found[0]!r}, which Snakemake reads as the beginning or end of a name of "
            "its own: rename it, or give a link with another name"
        )
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError:
        return f"{shown} holds letters that no file name of this system can have: rename the file"
    longest = max(map(len, encoded.split(b"/")))
    if longest > _LONGEST_NAME or len(encoded) > _LONGEST_PATH:
        return (
            f"{shown} is longer than a path can be ({_LONGEST_NAME} bytes a name, {_LONGEST_PATH} in "
            "all): is a quote or a tab missing?"
        )
    return ""


def refused_paths(
    sheet: pd.DataFrame, columns: Sequence[str], *, data_root: str | None
) -> list[str]:
    """Return the problems of the paths of a sheet, with their lines.

    Parameters
    ----------
    sheet
        Text columns, and line.
    columns
        Those that hold paths.
    data_root
        What `{data_root}` stands for.
    """
    return [
        f"line {line}: {column} {why}"
        for column in columns
        for line, path in zip(sheet["line"], sheet[column], strict=True)
        if (why := refused_path(path.replace("{data_root}", data_root or "")))
    ]


def clashing_keys(settings: Mapping[str, Mapping[str, object]]) -> list[str]:
    """Return the problems of names in a configuration: each a key of one of its sections.

    Parameters
    ----------
    settings
        Section -> its names.
    """
    problems = [
        f"{section}.{name} {why}"
        for section, names in settings.items()
        for name in names
        if (why := refused_name(name))
    ]
    return problems + [
        f"{section}: {one!r} and {other!r} differ in case only, which some file systems do not tell "
        "apart: rename one"
        for section, names in settings.items()
        for one, other in same_but_for_case(names)
    ]


def refuse_formulas(names: Iterable[str], source: object) -> None:
    """Raise InputError for a name of a gene or a set that a spreadsheet would compute.

    Results name genes and sets as they were given, in TSV files that people open in Excel, and
    there `=`, `+`, `-` and `@` begin a formula. No gene or set of any collection begins so.

    Parameters
    ----------
    names
        As the file has them.
    source
        The file, for the message.
    """
    for name in names:
        if name[:1] in _FORMULA and name[:1]:
            shown = repr(name if len(name) <= _SHOWN else f"{name[:_SHOWN]}...")
            raise InputError(
                f"{source} holds the name {shown}: a spreadsheet takes what begins with {name[0]!r} for a "
                "formula, and results name genes and sets as they are given; rename it"
            )
