"""The sheets of a study: slides and patients, checked before any work starts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from histogep.barcodes import patient_key, patient_of
from histogep.covariates import unreadable_covariates
from histogep.jobs import InputError, suggestion

SLIDE_COLUMNS = (
    *("slide", "patient", "cohort", "image", "mpp"),
    *("counts", "positions", "labels", "features", "regions"),
)
PATIENT_COLUMNS = ("patient", "time", "event", "age", "sex", "stage", "response")
_FILE_COLUMNS = ("image", "counts", "positions", "labels", "features", "regions")
#: Formats that carry no pixel size at all, so that the sheet must.
_NO_PIXEL_SIZE = {".jpg", ".jpeg", ".png", ".bmp"}
#: What an id may look like: no slash, no space, nothing that a shell or a file system reads.
ID_PATTERN = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_ID = re.compile(f"^{ID_PATTERN}$")
#: Ids that other readers of the results would take for a missing value.
_MISSING = {"na", "nan", "null", "none"}
_MPP_RANGE = (0.05, 5.0)


def read_slides(
    path: str | Path,
    *,
    data_root: str | None = None,
    made: Callable[[str], bool] = lambda file: False,
) -> pd.DataFrame:
    """Return the slide sheet, indexed and sorted by slide.

    Parameters
    ----------
    path
        Tab-separated table with the columns of `config/README.md`; lines that start with `#` are
        comments. Its files are looked for in the working directory, then in the sheet's folder.
    data_root
        Replaces `{data_root}` in the file columns.
    made
        Tells of a file whether the workflow makes it, so that it may be absent.

    Returns
    -------
    DataFrame
        One row per slide; text columns with "" for none, `mpp` in um per px with NaN for none.

    Raises
    ------
    InputError
        Every problem of the sheet, one line each with its line number in the file.
    """
    sheet = _read_sheet(path, SLIDE_COLUMNS, needed=("slide", "patient", "cohort", "image"))
    problems: list[str] = []
    for column in ("slide", "patient", "cohort"):
        problems += _bad_ids(sheet, column)
    problems += _repeated(sheet, "slide")
    problems += _patients_by_case(sheet)
    shared = {name.lower() for name in sheet["cohort"]} & {name.lower() for name in sheet["slide"]}
    problems += [f"{name!r} names both a slide and a cohort; rename one" for name in sorted(shared)]

    for column in _FILE_COLUMNS:
        if data_root is not None:
            sheet[column] = sheet[column].str.replace("{data_root}", data_root, regex=False)
        sheet[column] = [
            file if not file or made(file) else _beside(path, file) for file in sheet[column]
        ]
        for line, file in zip(sheet["line"], sheet[column], strict=True):
            if "{data_root}" in file:
                problems.append(
                    f"line {line}: {column} needs data_root: call with --config data_root=FOLDER"
                )
            elif file and not made(file) and not Path(file).exists():
                problems.append(
                    f"line {line}: {column} {file} does not exist (looked in {Path.cwd()} and beside "
                    "the sheet)"
                )
            elif not file and column == "image":
                problems.append(f"line {line}: no image")

    for column in ("image", "counts"):
        problems += _shared_by_patients(sheet, column)

    given = sheet["mpp"]
    sheet["mpp"] = pd.to_numeric(given, errors="coerce")
    for line, text, mpp, image in zip(
        sheet["line"], given, sheet["mpp"], sheet["image"], strict=True
    ):
        if text and not _MPP_RANGE[0] < mpp < _MPP_RANGE[1]:
            problems.append(
                f"line {line}: mpp {text!r} is no pixel size in um between "
                f"{_MPP_RANGE[0]} and {_MPP_RANGE[1]}"
            )
        elif not text and Path(image).suffix.lower() in _NO_PIXEL_SIZE:
            problems.append(
                f"line {line}: {image} carries no pixel size; give it in um in the column mpp"
            )
    for line, counts, positions in zip(
        sheet["line"], sheet["counts"], sheet["positions"], strict=True
    ):
        is_table = counts.removesuffix(".gz").endswith((".tsv", ".txt", ".csv"))
        if is_table and not positions:
            problems.append(
                f"line {line}: {counts} is a table of counts; give the spots' pixels in positions"
            )
        if positions and not counts:
            problems.append(f"line {line}: positions without counts")
    problems += [
        f"line {line}: regions are of slides without spots: a section's tiles are its spots"
        for line, counts, regions in zip(
            sheet["line"], sheet["counts"], sheet["regions"], strict=True
        )
        if counts and regions
    ]
    _raise(path, problems)
    return sheet.drop(columns="line").set_index("slide", drop=False).sort_index()


def no_slides() -> pd.DataFrame:
    """Return the slide sheet of a study without slides, as `read_slides` returns one."""
    sheet = pd.DataFrame({name: pd.Series(dtype=str) for name in SLIDE_COLUMNS})
    return sheet.set_index("slide", drop=False)


def check_given_features(slides: pd.DataFrame, encoders: Sequence[Mapping[str, Any]]) -> None:
    """Raise an InputError unless slides have `features` where an encoder is precomputed, only then.

    Parameters
    ----------
    slides
        What `read_slides` returned.
    encoders
        The setting `encoders`.
    """
    given = [encoder["name"] for encoder in encoders if encoder.get("precomputed")]
    filled = slides.index[slides["features"] != ""]
    empty = slides.index.difference(filled)
    if len(given) > 1:
        raise InputError(
            f"encoders: {', '.join(given)} are precomputed, but a slide has one file of features"
        )
    if given and len(empty):
        raise InputError(
            f"encoders: {given[0]} is precomputed, but the slides sheet has no `features` of "
            f"{', '.join(empty[:5])}{' ...' if len(empty) > 5 else ''}"
        )
    if len(filled) and not given:
        raise InputError(
            f"the slides sheet has `features` of {len(filled)} slides, but no encoder is "
            "`precomputed: true`: name the encoder that made them so"
        )


def read_patients(path: str | Path) -> pd.DataFrame:
    """Return the patient sheet, indexed and sorted by patient.

    Parameters
    ----------
    path
        Tab-separated table: patient, and any of time (months), event (0/1), age (years), sex,
        stage, response (0/1). Empty cells are unknown.

    Returns
    -------
    DataFrame
        Numbers as floats with NaN for unknown, `sex` and `stage` as text with "" for unknown;
        columns that the file lacks are absent.

    Raises
    ------
    InputError
        Every problem of the sheet, one line each with its line number in the file.
    """
    sheet = _read_sheet(path, PATIENT_COLUMNS, needed=("patient",), fill=False)
    problems = _bad_ids(sheet, "patient") + _repeated(sheet, "patient")
    allowed: dict[str, Callable[[float], bool]] = {
        "time": lambda value: value >= 0,
        "event": lambda value: value in (0, 1),
        "age": lambda value: 0 <= value < 130,
        "response": lambda value: value in (0, 1),
    }
    meaning = {
        "time": "a time in months that is not negative",
        "event": "0 (censored) or 1 (event)",
        "age": "an age in years",
        "response": "0 (no response) or 1 (response)",
    }
    empty = sheet == ""
    for column, test in allowed.items():
        if column not in sheet:
            continue
        given = sheet[column]
        sheet[column] = pd.to_numeric(given, errors="coerce")
        problems += [
            f"line {line}: {column} {text!r} is not {meaning[column]}"
            for line, text, value in zip(sheet["line"], given, sheet[column], strict=True)
            if text and not test(value)
        ]
    problems += unreadable_covariates(sheet, [f"line {line}" for line in sheet["line"]])
    if ("time" in sheet) != ("event" in sheet):
        problems.append("time and event belong together: give both columns or neither")
    elif "time" in sheet:
        problems += [
            f"line {line}: time and event belong together: one of them is empty"
            for line, time, event in zip(sheet["line"], empty["time"], empty["event"], strict=True)
            if time != event
        ]
    _raise(path, problems)
    return sheet.drop(columns="line").set_index("patient", drop=False).sort_index()


def locate(path: str, *, folders: tuple[str | Path, ...], key: str = "the configuration") -> str:
    """Return `path` below the first of `folders` that holds it (an absolute path as it is).

    A study's own files are looked for in the working directory first, then beside its
    configuration, then beside the workflow, so that studies and examples run from any directory.
    `key` is the setting that names it.
    """
    if "{data_root}" in path:
        raise InputError(f"{key}: {path} needs data_root: call with --config data_root=FOLDER")
    for folder in folders:
        candidate = Path(folder) / path
        if candidate.exists():
            return str(path) if Path(folder) == Path(".") else str(candidate)
    looked = ", ".join(str(Path(folder).resolve()) for folder in folders)
    raise InputError(f"{key}: {path} does not exist (looked in {looked})")


def _beside(sheet: str | Path, file: str) -> str:
    """Return `file` as it is if the working directory holds it, else beside the sheet if there."""
    beside = Path(sheet).parent / file
    return str(beside) if not Path(file).exists() and beside.exists() else file


def _read_sheet(
    path: str | Path, columns: tuple[str, ...], *, needed: tuple[str, ...], fill: bool = True
) -> pd.DataFrame:
    """Return a sheet as text, with the line number of each row in the column `line`."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path} is no UTF-8 text; save it as tab-separated text") from None
    lines = [
        (number, line.split("\t"))
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip() and not line.startswith("#")
    ]
    if not lines:
        raise InputError(f"{path} is empty; its first line names the columns: {' '.join(columns)}")
    header = [name.strip() for name in lines[0][1]]
    if len(header) == 1 and len(columns) > 1 and header[0] not in columns:
        raise InputError(
            f"{path} line {lines[0][0]}: the columns are separated by tabs, not by commas or spaces; "
            "save it as tab-separated text"
        )
    problems = [f"no column {name!r}" for name in needed if name not in header]
    problems += [
        f"unknown column {name!r}{suggestion(name, columns)}"
        for name in header
        if name not in columns
    ]
    if any(name[:1] == name[-1:] == '"' for name in header):
        problems.append("cells stand in quotes: save the sheet as plain text without them")
    problems += [f"column {name!r} stands twice" for name in set(header) if header.count(name) > 1]
    for number, cells in lines[1:]:
        if len(cells) > len(header):
            problems.append(f"line {number}: {len(cells)} cells under {len(header)} columns")
    _raise(path, problems)
    rows = [
        {
            "line": number,
            **dict.fromkeys(header, ""),
            **dict(zip(header, (cell.strip() for cell in cells), strict=False)),
        }
        for number, cells in lines[1:]
    ]
    if not rows:
        raise InputError(f"{path} has no row below its header")
    sheet = pd.DataFrame(rows)
    if fill:
        for name in columns:
            if name not in sheet:
                sheet[name] = ""
    return sheet


def _bad_ids(sheet: pd.DataFrame, column: str) -> list[str]:
    rule = "letters, digits, '.', '_' and '-', at most 64, the first a letter or digit"
    problems = []
    for line, name in zip(sheet["line"], sheet[column], strict=True):
        if not name:
            problems.append(f"line {line}: no {column}")
        elif not _ID.match(name) or ".." in name:
            problems.append(f"line {line}: {column} {name!r} is not an id ({rule}, without '..')")
        elif name.lower() in _MISSING:
            problems.append(
                f"line {line}: {column} {name!r} would be read as a missing value; rename it"
            )
    return problems


def _repeated(sheet: pd.DataFrame, column: str) -> list[str]:
    """Ids that stand twice, whatever their case: file systems may not tell them apart."""
    lowered = sheet[column].str.lower()
    return [
        f"{column} {' and '.join(map(repr, rows[column].unique()))} stands on lines "
        f"{', '.join(map(str, rows['line']))}"
        + (", told apart by case only" if rows[column].nunique() > 1 else "")
        for name, rows in sheet.groupby(lowered, sort=True)
        if name and len(rows) > 1
    ]


def _patients_by_case(sheet: pd.DataFrame) -> list[str]:
    """One person under two ids would train and test: ids in two cases, sections by two barcodes."""
    problems = []
    for _, rows in sheet.groupby(sheet["patient"].map(patient_key), sort=True):
        ids = set(rows["patient"]) - {""}
        if len(ids) > len({name.lower() for name in ids}):
            why = "differ in case only"
        elif rows.loc[rows["counts"] != "", "patient"].nunique() > 1:
            why = "are one by their barcodes"
        else:
            continue
        problems.append(
            f"lines {', '.join(map(str, rows['line']))}: patients "
            f"{', '.join(map(repr, sorted(ids)))} {why}; give them one id"
        )
    return problems


def _shared_by_patients(sheet: pd.DataFrame, column: str) -> list[str]:
    """Files that stand under two patients: what is held out would be trained on."""
    given = sheet[sheet[column] != ""]
    if given.empty:
        return []
    real = given[column].map(lambda file: str(Path(file).resolve()))
    return [
        f"lines {', '.join(map(str, rows['line']))}: {column} {rows[column].iloc[0]} is given to "
        f"patients {', '.join(sorted(set(rows['patient'])))}; it can be of one only"
        for _, rows in given.groupby(real, sort=True)
        if rows["patient"].map(patient_of).nunique() > 1
    ]


def _raise(path: str | Path, problems: list[str]) -> None:
    if problems:
        # In the order of the lines; what concerns no single line comes first.
        problems = sorted(problems, key=_line_of)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise InputError(f"{path} has {count}:\n" + "\n".join(f"  {line}" for line in problems))


def _line_of(problem: str) -> int:
    found = re.match(r"lines? (\d+)", problem)
    return int(found[1]) if found else 0
