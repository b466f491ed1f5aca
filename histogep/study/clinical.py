"""Read clinical tables in their published formats, and the study's own patient sheet.

A table is known by its column names, whatever its format (text or workbook). It comes back as one
row per patient: time in months, event, age in years, sex, stage, response. Published are TCGA-CDR
(Liu et al., Cell 2018), cBioPortal, the GDC's clinical.tsv and the TCGA's own, UCSC Xena, PORPOISE
and PredictioR.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from histogep.errors import InputError, suggestion
from histogep.inputs.barcodes import patient_of
from histogep.inputs.delimited import Delimited, decimal_numbers
from histogep.inputs.sheet_ids import bad_ids, repeated_ids
from histogep.inputs.units import DAYS_PER_MONTH, DAYS_PER_YEAR, age_problem, time_problem
from histogep.inputs.workbooks import open_table
from histogep.problems import refuse_file
from histogep.study.covariates import (
    age_number,
    event_number,
    known,
    read_words,
    response_number,
    sex_number,
    stage_number,
)

log = logging.getLogger(__name__)

ENDPOINTS = ("OS", "PFI", "DSS", "DFI")
#: Columns of the own sheet, and of it in other units.
PATIENT_COLUMNS = ("patient", "time", "event", "age", "sex", "stage", "response")
_OTHER_UNITS = ("time_months", "time_days", "time_years", "age_days")
#: Names of the patient column, the most specific first; case does not count.
PATIENT_NAMES = (
    *("bcr_patient_barcode", "PATIENT_ID", "Patient ID", "case_submitter_id", "cases.submitter_id"),
    *("_PATIENT", "X_PATIENT", "case_id", "patientid", "patient", "submitter_id", "sampleID"),
    "sample",
)
#: What cBioPortal calls the endpoints of the TCGA clinical data resource, and PredictioR.
_CBIOPORTAL = {"OS": "OS", "PFI": "PFS", "DSS": "DSS", "DFI": "DFS"}
_CBIOPORTAL_TITLES = {
    "OS": ("Overall Survival (Months)", "Overall Survival Status"),
    "PFI": ("Progress Free Survival (Months)", "Progression Free Status"),
    "DSS": ("Months of disease-specific survival", "Disease-specific Survival status"),
    "DFI": ("Disease Free (Months)", "Disease Free Status"),
}
_AGE = (
    *("age", "age_at_initial_pathologic_diagnosis", "Diagnosis Age", "age_at_index"),
    *("age_at_diagnosis", "age_days", "alter"),
)
#: Ages in days in some tables and in years in others; the values decide.
_AGE_OF_EITHER = ("age_at_diagnosis",)
_SEX = ("sex", "gender", "sexe", "geschlecht")
_STAGE = (
    "stage",
    "ajcc_pathologic_tumor_stage",
    "ajcc_pathologic_stage",
    "pathologic_stage",
    "tumor_stage",
    "Neoplasm Disease Stage American Joint Committee on Cancer Code",
    "clinical_stage",
    "ajcc_clinical_stage",
    "figo_stage",
    "stadium",
    "stade",
)
_RESPONSE = ("response", "ansprechen", "reponse", "réponse")
_DEATH = ("days_to_death", "death_days_to")
_FOLLOW_UP = (
    *("days_to_last_follow_up", "days_to_last_followup", "last_contact_days_to"),
    "days_to_last_known_alive",
)
#: Tables of the GDC in front of a column's name, the Xena hub of the GDC behind it.
_GDC_PARTS = ("cases", "demographic", "diagnoses", "follow_ups", "treatments", "exposures")
_DATE = re.compile(r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}.*|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}")
_COMMA = re.compile(r"[+-]?\d*,[\d,]*(?:[eE][+-]?\d+)?")
_POINTS = re.compile(r"[1-9]\d{0,2}(?:\.\d{3})+")
#: Columns up to which misspelt names are looked for.
_MANY_COLUMNS = 2000
_NOT_NUMBERS = {"inf", "+inf", "-inf", "infinity", "+infinity", "-infinity"}


def read_clinical(
    path: str | Path, *, endpoint: str = "OS", columns: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Return the patients of any known clinical table.

    Parameters
    ----------
    path
        xlsx, TSV or CSV, plain or packed: the own sheet (a column `patient`; time or time_months,
        time_days, time_years; event, age or age_days, sex, stage, response); TCGA-CDR
        (`bcr_patient_barcode`, `OS`, `OS.time` in days); cBioPortal (`PATIENT_ID`, `OS_STATUS`,
        `OS_MONTHS`, or the titles of its download); the GDC (`case_submitter_id`, `vital_status`,
        `days_to_death`, `days_to_last_follow_up`; several rows per case); UCSC Xena (`_PATIENT`,
        `OS`, `OS.time`); PORPOISE (`case_id`, `survival_months`, `censorship`); PredictioR
        (`patientid`, `survival_time_os`, `event_occurred_os`, `response`).
    endpoint
        OS, PFI, DSS or DFI (cBioPortal: OS, PFS, DSS, DFS). An own sheet has just one outcome.
    columns
        The setting `columns`: a column of the own sheet -> its name in the table.

    Returns
    -------
    DataFrame
        One row per patient (of a TCGA barcode the first 12 characters), indexed and sorted by
        patient: numbers as floats with NaN for unknown, `sex` as written and `stage` as I to IV,
        "" for unknown; columns that the table lacks are absent; `attrs["columns"]` has the names in
        the file. Covariates that cannot be read are
        missing, and counted in the log; so are patients that TCGA-CDR marks as redacted, who are
        left out.

    Raises
    ------
    InputError
        No patient column, no column of the endpoint though others are there; outcomes that cannot
        be read, negative or infinite times; values that are not in the unit of their column;
        repeated patients with different outcomes. Of the own sheet also repeated ids.
    """
    if endpoint not in ENDPOINTS:
        raise InputError(f"endpoint {endpoint!r} is none of {', '.join(ENDPOINTS)}")
    raw = _open(path, columns)
    name = raw.first(PATIENT_NAMES)
    if name is None:
        raise InputError(
            f"{path} has no column of patients; known names: {', '.join(PATIENT_NAMES)}. Name it in "
            "the configuration: columns: {patient: …}"
        )
    own = raw.is_own(name)
    sheet = _own(raw, name) if own else _published(raw, name, endpoint)
    raw.report_unused()
    sheet = sheet.set_index("patient", drop=False).sort_index()
    sheet.attrs["columns"] = list(raw.table.names)
    return sheet


def read_own_patients(path: str | Path) -> pd.DataFrame:
    """Return the own patient sheet; see `read_clinical`."""
    raw = _open(path, None)
    if (name := raw.first(("patient",))) is None:
        raise InputError(
            f"{path} has 1 problem:\n  no column 'patient' (it has: {', '.join(raw.names[:10])})"
        )
    sheet = _own(raw, name)
    raw.report_unused()
    return sheet.set_index("patient", drop=False).sort_index()


def fold_stage(text: str) -> str:
    """Return I, II, III or IV for any stage text, "" where it names none or two of them.

    Sub-stages fold to their stage (IIIC1 counts as III); stage 0, IS, X and `I/II NOS` have none.
    """
    try:
        number = stage_number(text)
    except InputError:
        return ""
    return "" if number != number else ("I", "II", "III", "IV")[int(number) - 1]


@dataclass
class _Raw:
    """A clinical table whose columns are looked up by name, whatever its case."""

    path: Path
    table: Delimited
    names: list[str]
    used: set[int] = field(default_factory=set)
    rows: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.exact: dict[str, list[int]] = {}
        self.folded: dict[str, list[int]] = {}
        for at, name in enumerate(self.names):
            self.exact.setdefault(name, []).append(at)
            self.folded.setdefault(name.casefold(), []).append(at)

    def place(self, name: str) -> int | None:
        """Return which column has a name; None if none, an InputError if two do."""
        found = self.exact.get(name) or self.folded.get(name.casefold(), [])
        if len(found) > 1:
            raise InputError(
                f"{self.path}, line {self.table.header_line}: column {name!r} appears twice"
            )
        return found[0] if found else None

    def first(self, names: Sequence[str]) -> str | None:
        """Return the first of some names that the table has."""
        return next((name for name in names if self.place(name) is not None), None)

    def is_own(self, name: str) -> bool:
        """Return whether it is the own sheet, by its column of patients and those of outcomes."""
        published = [f"{e}.time" for e in ENDPOINTS] + [f"{e}_MONTHS" for e in _CBIOPORTAL.values()]
        published += [time for time, _ in _CBIOPORTAL_TITLES.values()] + list(_DEATH)
        published += ["survival_months", "survival_time_os", "survival_time_pfs"]
        own = self.first(("time", "event", *_OTHER_UNITS)) is not None
        return name == "patient" and (own or self.first(published) is None)

    def cells(self, name: str) -> pd.Series:
        """Return a column as text without blanks around it."""
        at = self.place(name)
        if at is None:
            raise KeyError(name)
        self.used.add(at)
        cells = self.table.text([self.table.columns[at]]).iloc[:, 0].rename(name)
        return cells if self.rows is None else cells[self.rows]

    def numbers(self, name: str) -> pd.Series:
        """Return a column as numbers; NaN for whatever means that nothing is known."""
        cells = self.cells(name).map(known)
        numbers = pd.to_numeric(cells.mask(cells == ""), errors="coerce").astype(float)
        odd = (numbers.isna() & (cells != "")) | np.isinf(numbers)
        if self.table.separator == ";":
            pointed = cells[cells.str.contains(".", regex=False)]
            if len(pointed) and pointed.map(lambda cell: bool(_POINTS.fullmatch(cell))).all():
                raise InputError(
                    f"{self.path}, line {pointed.index[0]}, column {name!r}: {pointed.iloc[0]!r} has a "
                    "point that may be a decimal or a thousands separator: write no thousands"
                )
        if not odd.any():
            return numbers
        texts = sorted(set(cells[odd]), key=lambda text: (bool(_COMMA.fullmatch(text)), text))
        lines = ", ".join(map(str, cells.index[odd][:5]))
        if all(map(_COMMA.fullmatch, texts)):
            try:
                return decimal_numbers(
                    cells.to_frame(), missing=("",), comma_likely=self.table.separator == ";"
                )[name]
            except ValueError as error:
                raise InputError(f"{self.path}: {error}") from None
        why = "are not numbers: write them as 1234.5, without thousands or units"
        if all(map(_DATE.fullmatch, texts)):
            why = "are dates, not times: give the time from diagnosis to the event or last contact"
        elif {text.lower() for text in texts} <= _NOT_NUMBERS:
            why = "are infinite"
        raise InputError(f"{self.path}, column {name!r}: {texts[:5]} {why} (line {lines})")

    def report_unused(self) -> None:
        """Log the columns from which nothing is read."""
        unused = [
            name for at, name in enumerate(self.names) if at not in self.used and name.strip()
        ]
        if unused:
            told = ", ".join(unused[:12])
            more = f" and {len(unused) - 12} more" if len(unused) > 12 else ""
            log.warning("%s: columns that are not used: %s%s", self.path, told, more)


def _open(path: str | Path, columns: Mapping[str, str] | None) -> _Raw:
    table = open_table(path, what="a clinical table", repeated=True, most=256 << 20)
    if not len(table):
        raise InputError(f"{path} has no row below its header")
    theirs = {their: our for our, their in (columns or {}).items()}
    names = [theirs.get(name, _plain_gdc(name)) for name in table.names]
    if len(names) == 1 and not table.separator and re.search(r"\s", names[0]):
        raise InputError(
            f"{path} line {table.header_line}: the columns are separated by blanks; save it as tab- or "
            "comma-separated text"
        )
    return _Raw(Path(path), table, names)


def _plain_gdc(name: str) -> str:
    """Return a GDC column without its table: `demographic.gender`, `gender.demographic`."""
    if name == "cases.submitter_id":
        return name
    front, _, rest = name.partition(".")
    if rest and front in _GDC_PARTS and not rest.endswith(("_id", "submitter_id")):
        return rest
    start, _, end = name.rpartition(".")
    return start if start and end in _GDC_PARTS else name


def _own(raw: _Raw, name: str) -> pd.DataFrame:
    """Return the own sheet, strictly: every problem with its line."""
    units = ("time", "time_months", "time_days", "time_years")
    named = (*PATIENT_COLUMNS, *_OTHER_UNITS)
    present = [column for column in named if raw.place(column) is not None]
    problems = []
    for column in raw.names if len(raw.names) <= _MANY_COLUMNS else ():
        meant = suggestion(column, named)
        close = re.search("did you mean '(.*)'", meant)
        if column.casefold() in named or not close or close[1] in present:
            continue
        if _alike(column, close[1]) and column not in (*_SEX, *_STAGE, *_AGE, *_RESPONSE):
            problems.append(f"unknown column {column!r}{meant}")
    patients = raw.cells(name)
    sheet = pd.DataFrame({"line": patients.index, "patient": patients.to_numpy()})
    problems += bad_ids(sheet, "patient")
    sheet["patient"] = sheet["patient"].map(patient_of)
    problems += repeated_ids(sheet, "patient")

    def place(column: str, odd: Collection[bool], why: str) -> list[str]:
        cells = raw.cells(column)
        return [
            f"line {line}: {column} {text!r} is not {why}"
            for line, text in cells[np.asarray(odd, bool)].items()
        ]

    given = [column for column in units if column in present]
    if len(given) > 1:
        problems.append(f"columns {' and '.join(given)} both give the time: keep one")
    elif ("event" in present) != bool(given):
        problems.append("time and event belong together: give both columns or neither")
    for column, convert, meaning in (
        ("event", event_number, "0 (censored) or 1 (event)"),
        ("response", response_number, "0 (no response) or 1 (response)"),
    ):
        found = (
            column if column in present else raw.first(_RESPONSE if column == "response" else ())
        )
        if found is None:
            continue
        values, odd = read_words(raw.cells(found), convert)
        sheet[column] = values.to_numpy()
        hint = " (R's 1 and 2 are 0 and 1 here)" if set(raw.cells(found)[odd]) == {"2"} else ""
        problems += place(found, odd, meaning + hint)
    if len(given) == 1:
        unit = {"time_days": "days", "time_years": "years"}.get(given[0], "months")
        try:
            values = raw.numbers(given[0])
            problems += place(given[0], values < 0, f"a time in {unit} that is not negative")
            sheet["time"], said = _months(values, unit, given[0], plain=given[0] == "time")
            problems += [said] if said else []
        except InputError as error:
            problems.append(str(error).removeprefix(f"{raw.path}, ").removeprefix(f"{raw.path}: "))
        if "time" in sheet and "event" in sheet:
            bare = raw.cells(given[0]).map(known) == "", raw.cells("event").map(known) == ""
            problems += [
                f"line {line}: time and event belong together: one of them is empty"
                for line in sheet["line"][bare[0].to_numpy() != bare[1].to_numpy()]
            ]
    problems += _covariates(raw, sheet)
    refuse_file(raw.path, problems)
    order = [column for column in PATIENT_COLUMNS if column in sheet]
    return sheet[order].copy()


def _alike(given: str, name: str) -> bool:
    """Return whether a name differs from another by a letter or two."""
    short, long = sorted((given.strip('"').casefold().replace(" ", "_"), name), key=len)
    if len(long) - len(short) > 2:
        return False
    return sum(a != b for a, b in zip(short, long, strict=False)) <= 2 or short in long


def _months(
    values: pd.Series, unit: str, column: str, *, plain: bool = False
) -> tuple[np.ndarray, str]:
    """Return times in months, and what contradicts their unit ("" for nothing)."""
    divisor = {"days": DAYS_PER_MONTH, "years": 1 / 12}.get(unit, 1)
    said = time_problem(values, unit=unit, column=column, plain=plain)
    return (values / divisor).to_numpy(), said


def _published(raw: _Raw, name: str, endpoint: str) -> pd.DataFrame:
    """Return a table published by others."""
    patients = raw.cells(name)
    keep = (patients.map(known) != "").to_numpy()
    # The TCGA's own files repeat their header, and name its elements, below it.
    keep &= ~(patients.str.startswith("CDE_ID") | (patients == raw.names[raw.place(name) or 0]))
    if (redacted := raw.first(("Redaction",))) is not None:
        marked = raw.cells(redacted).map(known).str.casefold().str.startswith("redact")
        marked |= raw.cells(redacted).str.casefold().str.startswith("redact")
        if (marked & keep).any():
            log.warning(
                "%s: %d patients marked as redacted are left out", raw.path, (marked & keep).sum()
            )
        keep &= ~marked.to_numpy()
    raw.rows = np.asarray(keep, bool)
    patients = patients[raw.rows]
    if patients.empty:
        raise InputError(f"{raw.path} names no patient in its column {name!r}")
    sheet = pd.DataFrame({"patient": patients.map(patient_of)})
    outcome = _outcome(raw, endpoint, sheet["patient"])
    if outcome is not None:
        sheet["time"], sheet["event"] = outcome
        _refuse_negative(sheet, raw.path)
        half = sheet["time"].isna() != sheet["event"].isna()
        sheet.loc[half, ["time", "event"]] = np.nan
        if half.any():
            log.warning(
                "%s: %d patients have only a time or only an event: unknown", raw.path, half.sum()
            )
    if problems := _covariates(raw, sheet):
        refuse_file(raw.path, problems)
    if (response := raw.first(_RESPONSE)) is not None:
        cells = raw.cells(response)
        sheet["response"], odd = read_words(cells, response_number)
        if odd.any():
            raise InputError(
                f"{raw.path}: responses that are neither R nor NR, 1 nor 0: "
                + ", ".join(
                    f"line {at}: {sheet['patient'][at]} {cells[at]!r}"
                    for at in cells.index[odd][:5]
                )
            )
    return _one_row_each(sheet, raw.path)


def _covariates(raw: _Raw, sheet: pd.DataFrame) -> list[str]:
    """Add age, sex and stage; return the problems of units.

    What cannot be read is missing for that patient, counted and reported: an optional covariate
    never blocks a cohort.
    """
    problems = []
    if (age := raw.first(_AGE)) is not None:
        cells = raw.cells(age)
        ages, odd = read_words(cells, age_number)
        unit = "days" if age == "age_days" else "years"
        if age in _AGE_OF_EITHER and ages.median() > 130:
            unit = "days"
        problems += age_problem(ages, unit=unit, column=age)
        sheet["age"] = (ages / DAYS_PER_YEAR if unit == "days" else ages).to_numpy()
        _report_unread(raw.path, age, cells[odd], len(cells))
    if (sex := raw.first(_SEX)) is not None:
        cells = raw.cells(sex)
        values, odd = read_words(cells, sex_number)
        sheet["sex"] = cells.where(values.notna(), "").to_numpy()
        _report_unread(raw.path, sex, cells[odd], len(cells))
    elif raw.place("is_female") is not None:
        is_female = raw.numbers("is_female").map({1.0: "female", 0.0: "male"}).fillna("")
        sheet["sex"] = is_female.to_numpy()
    stages = [column for column in _STAGE if raw.place(column) is not None]
    if stages:
        sheet["stage"] = _stages(pd.DataFrame({s: raw.cells(s) for s in stages}), raw.path)
    return problems


def _report_unread(path: Path, column: str, cells: pd.Series, n: int) -> None:
    if len(cells):
        counts = cells.value_counts()
        told = ", ".join(f"{text!r} ({count})" for text, count in sorted(counts.items())[:8])
        log.warning(
            "%s: column %r: %d of %d cells cannot be read and count as missing: %s",
            path,
            column,
            len(cells),
            n,
            told,
        )


def _outcome(raw: _Raw, endpoint: str, patients: pd.Series) -> tuple[np.ndarray, np.ndarray] | None:
    """Return months and events of the endpoint; None where the table has no outcome at all."""

    def events(name: str) -> pd.Series:
        values, odd = read_words(raw.cells(name), event_number)
        if odd.any():
            cells = raw.cells(name)
            told = ", ".join(f"{patients[at]} {cells[at]!r}" for at in cells.index[odd][:10])
            hint = ""
            if set(cells[odd]) == {"2"}:
                hint = "; 1 and 2, as R's survival counts them, are 0 and 1 here"
            raise InputError(f"{raw.path}: events other than 0 and 1: {told}{hint}")
        return values

    def not_censored(name: str) -> pd.Series:
        return 1 - raw.numbers(name)

    short = _CBIOPORTAL[endpoint]
    title = _CBIOPORTAL_TITLES[endpoint]
    table: list[tuple[str, str, str, Callable[[str], pd.Series]]] = [
        ("time_days", "event", "days", events),
        ("time_years", "event", "years", events),
        ("time_months", "event", "months", events),
        (f"{endpoint}.time", endpoint, "days", events),
        (f"{short}_MONTHS", f"{short}_STATUS", "months", events),
        (*title, "months", events),
    ]
    if theirs := {"OS": "os", "PFI": "pfs"}.get(endpoint):
        unit = "months"
        if raw.place("survival_unit") is not None:
            units = set(raw.cells("survival_unit").map(known)) - {""}
            if len(units) > 1 or not units <= {"month", "months", "day", "days", "year", "years"}:
                raise InputError(f"{raw.path}: survival_unit is {', '.join(sorted(units)[:5])}")
            unit = next(iter(units), "months").removesuffix("s") + "s"
        names = f"survival_time_{theirs}", f"event_occurred_{theirs}"
        table.append((*names, unit, events))
    if endpoint == "OS":
        table.append(("survival_months", "censorship", "months", not_censored))
        table.append(("time", "event", "months", events))
    for time, event, unit, read in table:
        if raw.place(time) is not None and raw.place(event) is not None:
            months, said = _months(raw.numbers(time), unit, time, plain=time == "time")
            if said:
                event_name = raw.names[raw.place(event) or 0]
                raise InputError(f"{raw.path}: {said}".replace("EVENT", event_name))
            return months, read(event).to_numpy()
    if raw.first(("vital_status",)) and raw.first((*_DEATH, *_FOLLOW_UP)):
        if endpoint != "OS":
            raise InputError(
                f"{raw.path} has no columns of endpoint {endpoint}, but those of OS: choose one in "
                "summary.endpoint"
            )
        return _vital(raw, patients)
    others = [
        name
        for name in ENDPOINTS
        if name != endpoint
        and raw.first((f"{name}.time", f"{_CBIOPORTAL[name]}_MONTHS", _CBIOPORTAL_TITLES[name][0]))
    ]
    if others:
        raise InputError(
            f"{raw.path} has no columns of endpoint {endpoint}, but those of {', '.join(others)}: "
            "choose one in summary.endpoint"
        )
    return None


def _vital(raw: _Raw, patients: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return months and events of tables of the GDC and the TCGA, where rows are not patients.

    A case has a row for each diagnosis and treatment: it counts as dead if any row says so, and its
    follow-up ends with the last one given.
    """
    event, odd = read_words(raw.cells("vital_status"), event_number)
    if odd.any():
        told = sorted(set(raw.cells("vital_status")[odd]))[:5]
        raise InputError(
            f"{raw.path}: vital_status is {', '.join(map(repr, told))}: neither alive nor dead"
        )
    said = event.groupby(patients).nunique()
    if (said > 1).any():
        raise InputError(
            f"{raw.path}: both alive and dead in several rows: "
            + ", ".join(said.index[said > 1][:10])
        )
    event = event.groupby(patients).transform("max")
    death, follow = (
        pd.DataFrame({n: raw.numbers(n) for n in names if raw.place(n) is not None}).reindex(
            patients.index
        )
        for names in (_DEATH, _FOLLOW_UP)
    )
    # Last contact may be later than a death; who is alive has no day of death.
    both = (event == 0) & death.notna().any(axis=1)
    if both.any():
        raise InputError(
            f"{raw.path}: alive by vital_status, but with a day of death: "
            + ", ".join(dict.fromkeys(patients[both]))[:150]
        )
    died = death.max(axis=1).groupby(patients)
    if (died.nunique() > 1).any():
        raise InputError(
            f"{raw.path}: several rows with different outcomes: "
            + ", ".join(died.nunique().index[died.nunique() > 1][:10])
        )
    last = follow.max(axis=1).groupby(patients).transform("max")
    days = died.transform("max").where(event == 1, last)
    negative = days < 0
    if negative.any():
        # The GDC's own tables have a few: contacts dated before the diagnosis.
        log.warning(
            "%s: %d patients with a negative time: unknown",
            raw.path,
            patients[negative].nunique(),
        )
        days = days.mask(negative)
    dead_without = (event == 1) & days.isna()
    if dead_without.any():
        log.warning(
            "%s: %d patients are dead without a known time: unknown",
            raw.path,
            patients[dead_without].nunique(),
        )
    months, said_unit = _months(days, "days", raw.first((*_DEATH, *_FOLLOW_UP)) or "")
    if said_unit:
        raise InputError(f"{raw.path}: {said_unit}".replace("EVENT", "vital_status"))
    return months, event.to_numpy()


def _refuse_negative(sheet: pd.DataFrame, path: str | Path) -> None:
    negative = sheet["time"] < 0
    if negative.any():
        raise InputError(
            f"{path}: negative times: {', '.join(sheet.loc[negative, 'patient'][:10])}; "
            "time counts the months from diagnosis"
        )
    odd = sheet["event"].notna() & ~sheet["event"].isin((0, 1))
    if odd.any():
        raise InputError(
            f"{path}: events other than 0 and 1: {', '.join(sheet.loc[odd, 'patient'][:10])}"
        )


def _stages(columns: pd.DataFrame, path: str | Path) -> np.ndarray:
    """Return the folded stage of the first column that names one, and log what was folded away."""
    words = {cell: fold_stage(cell) for name in columns for cell in columns[name].unique()}
    folded = columns.apply(lambda column: column.map(words))
    stage = folded.iloc[:, 0]
    for name in folded.columns[1:]:
        stage = stage.mask(stage == "", folded[name])
    lost = columns.iloc[:, 0].map(known)[stage == ""]
    lost = lost[lost != ""].value_counts()
    if len(lost):
        told = ", ".join(f"{text} ({count})" for text, count in sorted(lost.items()))
        log.warning("%s: stages other than I to IV count as missing: %s", path, told)
    return stage.to_numpy()


def _one_row_each(sheet: pd.DataFrame, path: str | Path) -> pd.DataFrame:
    """Return one row per patient, whatever the order of the rows.

    Outcomes that differ are refused. The lowest age counts, and a sex or stage that differs between
    rows (several diagnoses or tumours) is missing.
    """
    repeated = sheet["patient"].duplicated(keep=False)
    if not repeated.any():
        return sheet
    columns = [name for name in ("time", "event", "response") if name in sheet]
    distinct = sheet[repeated].groupby("patient")[columns].nunique()
    differ = distinct.index[(distinct > 1).any(axis=1)]
    if len(differ):
        raise InputError(f"{path}: several rows with different outcomes: {', '.join(differ[:10])}")
    blank = sheet.mask(sheet == "")
    by_patient = blank.groupby("patient", sort=False)
    first = by_patient.first().reset_index()
    if "age" in first:  # at the first of several diagnoses
        first["age"] = by_patient["age"].min().to_numpy()
    for name in ("sex", "stage"):
        if name not in first:
            continue
        meant = blank[name].map(sex_number, na_action="ignore") if name == "sex" else blank[name]
        several = (meant.groupby(blank["patient"], sort=False).nunique() > 1).to_numpy()
        if several.any():
            log.warning(
                "%s: %d patients have rows of different %s, which counts as missing: %s",
                *(path, several.sum(), name, ", ".join(first["patient"][several][:10])),
            )
        first[name] = first[name].mask(several).fillna("")
    return first[list(sheet)]
