"""Read the sheets of a study, slides and patients, and check them before any work starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from histogep.errors import InputError, suggestion
from histogep.inputs.barcodes import patient_key, patient_of
from histogep.inputs.delimited import lay_out, read_bytes
from histogep.inputs.sheet_ids import (
    ID_PATTERN,
    bad_ids,
    clashing_names,
    refused_path,
    refused_paths,
    repeated_ids,
)
from histogep.problems import refuse_file
from histogep.study.clinical import PATIENT_COLUMNS, read_own_patients

__all__ = [
    "ID_PATTERN",
    "PATIENT_COLUMNS",
    "SLIDE_COLUMNS",
    "check_given_features",
    "locate",
    "no_slides",
    "read_patients",
    "read_slides",
]

SLIDE_COLUMNS = (
    *("slide", "patient", "cohort", "image", "mpp"),
    *("counts", "positions", "labels", "features", "regions", "max_mm"),
)
_FILE_COLUMNS = ("image", "counts", "positions", "labels", "features", "regions")
#: Formats that carry no pixel size at all, so that the sheet must.
_NO_PIXEL_SIZE = {".jpg", ".jpeg", ".png", ".bmp"}
#: Bytes of a sheet.
MAX_SHEET = 256 << 20
_MPP_RANGE = (0.05, 5.0)


def read_slides(
    path: str | Path,
    *,
    data_root: str | None = None,
    made: Callable[[str], bool] = lambda file: False,
    columns: Mapping[str, str] | None = None,
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
        Returns whether the workflow makes a file, which may then be absent.
    columns
        The setting `columns`: name of a column here -> its name in the sheet.

    Returns
    -------
    DataFrame
        One row per slide; text columns with "" for none; `mpp` in um per px and `max_mm` in mm,
        with NaN for none; `attrs["columns"]` has the names in the file.

    Raises
    ------
    InputError
        Every problem of the sheet, one line each with its line number in the file.
    """
    sheet = _read_sheet(path, columns or {})
    problems: list[str] = []
    for column in ("slide", "patient", "cohort"):
        problems += bad_ids(sheet, column)
    problems += repeated_ids(sheet, "slide")
    problems += _patients_by_case(sheet)
    problems += clashing_names(sheet)
    shared = {name.lower() for name in sheet["cohort"]} & {name.lower() for name in sheet["slide"]}
    problems += [f"{name!r} names both a slide and a cohort; rename one" for name in sorted(shared)]

    if refused := refused_paths(sheet, _FILE_COLUMNS, data_root=data_root):
        refuse_file(path, problems + refused)
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
            elif why := refused_path(file):
                problems.append(f"line {line}: {column} {why}")
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
                f"line {line}: mpp {text!r} is not a pixel size in um between "
                f"{_MPP_RANGE[0]} and {_MPP_RANGE[1]}"
            )
        elif not text and Path(image).suffix.lower() in _NO_PIXEL_SIZE:
            problems.append(
                f"line {line}: {image} carries no pixel size; give it in um in the column mpp"
            )
    given = sheet["max_mm"]
    sheet["max_mm"] = pd.to_numeric(given, errors="coerce")
    problems += [
        f"line {line}: max_mm {text!r} is not a largest side of a slide in mm, between 1 and 1000"
        for line, text, most in zip(sheet["line"], given, sheet["max_mm"], strict=True)
        if text and not 1 <= most <= 1000
    ]
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
        f"line {line}: regions apply to slides without spots: a section's tiles are its spots"
        for line, counts, regions in zip(
            sheet["line"], sheet["counts"], sheet["regions"], strict=True
        )
        if counts and regions
    ]
    refuse_file(path, problems)
    slides = sheet.drop(columns="line").set_index("slide", drop=False).sort_index()
    slides.attrs["columns"] = sheet.attrs["columns"]
    return slides


def no_slides() -> pd.DataFrame:
    """Return the slide sheet of a study without slides, in the form of `read_slides`."""
    sheet = pd.DataFrame({name: pd.Series(dtype=str) for name in SLIDE_COLUMNS})
    return sheet.set_index("slide", drop=False)


def check_given_features(slides: pd.DataFrame, encoders: Sequence[Mapping[str, Any]]) -> None:
    """Raise an InputError unless slides have `features` exactly where an encoder is precomputed.

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
    """Return the own patient sheet, indexed and sorted by patient; see `histogep.study.clinical`.

    Parameters
    ----------
    path
        Table with a column `patient`, and any of time (months; time_days and time_years are turned
        into months), event, age (years), sex, stage, response. Empty cells are unknown.

    Returns
    -------
    DataFrame
        Numbers as floats with NaN for unknown, `sex` (female, male) and `stage` (I to IV) as text
        with "" for unknown; columns that the file lacks are absent.

    Raises
    ------
    InputError
        Every problem of the sheet, one line each with its line number in the file.
    """
    return read_own_patients(path)


def locate(path: str, *, folders: tuple[str | Path, ...], key: str = "the configuration") -> str:
    """Return `path` below the first of `folders` that holds it (an absolute path as it is).

    A study's own files are looked for in the working directory first, then beside its
    configuration, then beside the workflow, so that studies and examples run from any directory.
    `key` is the setting that names it.
    """
    if "{data_root}" in path:
        raise InputError(f"{key}: {path} needs data_root: call with --config data_root=FOLDER")
    if why := refused_path(path):
        raise InputError(f"{key}: {why}")
    for folder in folders:
        candidate = Path(folder) / path
        if candidate.exists():
            found = str(path) if Path(folder) == Path(".") else str(candidate)
            if why := refused_path(found):
                raise InputError(f"{key}: {why}")
            return found
    looked = ", ".join(dict.fromkeys(str(Path(folder).resolve()) for folder in folders))
    raise InputError(f"{key}: {path} does not exist (looked in {looked})")


def _beside(sheet: str | Path, file: str) -> str:
    """Return `file` as it is if the working directory holds it, else beside the sheet if there."""
    beside = Path(sheet).parent / file
    return str(beside) if not Path(file).exists() and beside.exists() else file


def _read_sheet(path: str | Path, renamed: Mapping[str, str]) -> pd.DataFrame:
    """Return the slide sheet as text, with the line number of each row in the column `line`."""
    what = f"a slide sheet: its first line names the columns {' '.join(SLIDE_COLUMNS)}"
    data = read_bytes(path, what=what, most=MAX_SHEET)
    number, header = next(
        (
            (at, line)
            for at, line in enumerate(data.split(b"\n"), start=1)
            if line.strip() and not line.startswith(b"#")
        ),
        (0, b""),
    )
    if number and b"\t" not in header and header.strip().decode("utf-8") not in SLIDE_COLUMNS:
        raise InputError(
            f"{path} line {number}: the columns are separated by tabs, not by commas or spaces; save "
            "it as tab-separated text"
        )
    table = lay_out(
        Path(path),
        data,
        what=what,
        separators=("\t",),
        comments="all",
        short_rows=True,
        repeated=True,
    )
    names = list(table.names)
    theirs = {their: our for our, their in renamed.items() if our in SLIDE_COLUMNS}
    names = [theirs.get(name, name) for name in names]
    problems = [
        f"no column {name!r}"
        for name in ("slide", "patient", "cohort", "image")
        if name not in names
    ]
    problems += [
        f"unknown column {name!r}{suggestion(name, SLIDE_COLUMNS)}"
        for name in names
        if name not in SLIDE_COLUMNS
    ]
    if b'"' in header:
        problems.append("cells are in quotes: save the sheet as plain text without them")
    problems += [f"column {name!r} appears twice" for name in set(names) if names.count(name) > 1]
    refuse_file(path, problems)
    sheet = table.text()
    if sheet.empty:
        raise InputError(f"{path} has no row below its header")
    sheet.columns = names
    sheet = sheet.rename_axis("line").reset_index()
    sheet.attrs["columns"] = list(table.names)
    for name in SLIDE_COLUMNS:
        if name not in sheet:
            sheet[name] = ""
    return sheet


def _patients_by_case(sheet: pd.DataFrame) -> list[str]:
    """Find one person under two ids, who would train and test: by case or by barcode."""
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
    """Find files that are listed under two patients: what is held out would be trained on."""
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
