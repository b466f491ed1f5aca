"""Clinical tables as they are published: TCGA-CDR, cBioPortal and a few others, or the own sheet.

A table is known by its column names. Whatever it is, it comes back as the patient sheet does
(`histogep.sheets.read_patients`): time in months, event, age, sex, stage, response.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from histogep.barcodes import patient_of
from histogep.covariates import unreadable_covariates
from histogep.jobs import InputError
from histogep.sheets import read_patients
from histogep.tables import read_layout, read_table

log = logging.getLogger(__name__)

ENDPOINTS = ("OS", "PFI", "DSS", "DFI")
#: A month as TCGA's own tables count it.
DAYS_PER_MONTH = 30.44
#: Names of the patient column, the most telling first.
PATIENT_NAMES = (
    "bcr_patient_barcode",
    "PATIENT_ID",
    "Patient ID",
    "case_submitter_id",
    "case_id",
    "patientid",
    "patient",
)
#: What cBioPortal calls the endpoints of the TCGA clinical data resource, and PredictioR.
_CBIOPORTAL = {"OS": "OS", "PFI": "PFS", "DSS": "DSS", "DFI": "DFS"}
_CBIOPORTAL_TITLES = {
    "OS": ("Overall Survival (Months)", "Overall Survival Status"),
    "PFI": ("Progress Free Survival (Months)", "Progression Free Status"),
    "DSS": ("Months of disease-specific survival", "Disease-specific Survival status"),
    "DFI": ("Disease Free (Months)", "Disease Free Status"),
}
_AGE = ("age", "AGE", "age_at_initial_pathologic_diagnosis", "Diagnosis Age")
_SEX = ("sex", "SEX", "Sex", "gender", "GENDER")
_STAGE = (
    "stage",
    "ajcc_pathologic_tumor_stage",
    "AJCC_PATHOLOGIC_TUMOR_STAGE",
    "Neoplasm Disease Stage American Joint Committee on Cancer Code",
    "clinical_stage",
)
_RESPONSE = ("response", "RESPONSE", "Response")
_UNKNOWN = {"", "na", "n/a", "nan", "none", "unknown", "#n/a"}
_RESPONDED = {"1", "r", "yes", "responder", "cr", "pr", "cr/pr"}
_NOT_RESPONDED = {"0", "nr", "no", "non-responder", "nonresponder", "sd", "pd", "sd/pd"}
_ROMAN = ("IV", "III", "II", "I")


def read_clinical(path: str | Path, *, endpoint: str = "OS") -> pd.DataFrame:
    """Return the patients of any known clinical table as a patient sheet.

    Parameters
    ----------
    path
        The own sheet (tab-separated, with a column `patient`; strict, see `read_patients`), or
        as xlsx, TSV or CSV: TCGA-CDR (`bcr_patient_barcode`, `OS`, `OS.time` in days), cBioPortal
        (`PATIENT_ID`, `OS_STATUS`, `OS_MONTHS`, or the titles of its download), PORPOISE
        (`case_id`, `survival_months`, `censorship`), PredictioR (`patientid`,
        `survival_time_os`, `event_occurred_os`, `response`).
    endpoint
        OS, PFI, DSS or DFI (cBioPortal: OS, PFS, DSS, DFS). An own sheet has just one outcome.

    Returns
    -------
    DataFrame
        As `histogep.sheets.read_patients`, one row per patient: of a TCGA barcode the first 12
        characters, of repeated rows (several slides or samples) the first.

    Raises
    ------
    InputError
        No patient column, no column of the endpoint though others are there, negative times, an
        unreadable sex or response, repeated patients with different outcomes.
    """
    if endpoint not in ENDPOINTS:
        raise InputError(f"endpoint {endpoint!r} is none of {', '.join(ENDPOINTS)}")
    layout = read_layout(path)
    if layout.separator == "\t" and "patient" in layout.columns:
        return read_patients(path)
    raw = read_table(path, layout, dtype=str, keep_default_na=False).fillna("")
    raw.columns = list(layout.columns)
    name = next((column for column in PATIENT_NAMES if column in raw), None)
    if name is None:
        raise InputError(
            f"{path} has no column of patients; known names: {', '.join(PATIENT_NAMES)}"
        )
    raw = raw[raw[name].str.strip() != ""].reset_index(drop=True)
    sheet = pd.DataFrame({"patient": raw[name].str.strip().map(patient_of)})
    outcome = _outcome(raw, endpoint, path)
    if outcome is not None:
        sheet["time"], sheet["event"] = outcome
        _refuse_negative(sheet, path)
        half = sheet["time"].isna() != sheet["event"].isna()
        sheet.loc[half, ["time", "event"]] = np.nan
        if half.any():
            log.warning("%s: %d patients have a time or an event only: unknown", path, half.sum())
    if (age := _first(raw, _AGE)) is not None:
        sheet["age"] = _numbers(raw[age], path)
    if (sex := _first(raw, _SEX)) is not None:
        sheet["sex"] = raw[sex].map(_known)
    elif "is_female" in raw:
        sheet["sex"] = _numbers(raw["is_female"], path).map({1.0: "female", 0.0: "male"}).fillna("")
    stages = [column for column in _STAGE if column in raw]
    if stages:
        sheet["stage"] = _stages(raw[stages], path)
    problems = unreadable_covariates(sheet, [f"patient {name}" for name in sheet["patient"]])
    if problems:
        raise InputError(f"{path} has mistakes:\n" + "\n".join(f"  {line}" for line in problems))
    if (response := _first(raw, _RESPONSE)) is not None:
        sheet["response"] = _responses(raw[response], sheet["patient"], path)
    return _one_row_each(sheet, path).set_index("patient", drop=False).sort_index()


def fold_stage(text: str) -> str:
    """Return I, II, III or IV for any stage text, "" where it names none or two of them.

    Sub-stages fold to their stage (IIIC1 counts as III); stage 0, IS, X and `I/II NOS` have none.
    """
    cleaned = text.strip().upper().removeprefix("STAGE").strip()
    for stage in _ROMAN:
        rest = cleaned.removeprefix(stage)
        if rest != cleaned and (rest == "" or (rest[0] in "ABC" and len(rest) <= 3)):
            return stage
    return ""


def _outcome(
    raw: pd.DataFrame, endpoint: str, path: str | Path
) -> tuple[pd.Series, pd.Series] | None:
    """Return months and events of the endpoint; None where the table has no outcome at all."""
    short = _CBIOPORTAL[endpoint]
    title = _CBIOPORTAL_TITLES[endpoint]
    known: list[tuple[str, str, float, Callable[[pd.Series], pd.Series]]] = [
        (f"{endpoint}.time", endpoint, DAYS_PER_MONTH, lambda s: _numbers(s, path)),
        (f"{short}_MONTHS", f"{short}_STATUS", 1, lambda s: _status(s, path)),
        (*title, 1, lambda s: _status(s, path)),
    ]
    if theirs := {"OS": "os", "PFI": "pfs"}.get(endpoint):
        names = f"survival_time_{theirs}", f"event_occurred_{theirs}"
        known.append((*names, 1, lambda s: _numbers(s, path)))
    if endpoint == "OS":
        known.append(("survival_months", "censorship", 1, lambda s: 1 - _numbers(s, path)))
        known.append(("time", "event", 1, lambda s: _numbers(s, path)))
    for time, event, divisor, read in known:
        if time in raw and event in raw:
            return _numbers(raw[time], path) / divisor, read(raw[event])
    others = [
        name
        for name in ENDPOINTS
        if name != endpoint
        and {f"{name}.time", f"{_CBIOPORTAL[name]}_MONTHS", _CBIOPORTAL_TITLES[name][0]} & set(raw)
    ]
    if others:
        raise InputError(
            f"{path} has no columns of endpoint {endpoint}, but those of {', '.join(others)}: "
            "choose one in summary.endpoint"
        )
    return None


def _status(values: pd.Series, path: str | Path) -> pd.Series:
    """Return the event of cBioPortal's status, such as `1:DECEASED` and `0:LIVING`."""
    return _numbers(values.map(lambda text: text.split(":")[0]), path)


def _numbers(values: pd.Series, path: str | Path) -> pd.Series:
    known = values.map(_known)
    numbers = pd.to_numeric(known.mask(known == ""), errors="coerce").astype(float)
    odd = numbers.isna() & (known != "")
    if odd.any():
        raise InputError(
            f"{path}, column {values.name!r}: {sorted(set(known[odd]))[:5]} are no numbers"
        )
    return numbers


def _known(text: str) -> str:
    """Return a cell without blanks; "" for every way of writing that nothing is known."""
    text = text.strip()
    bracketed = text.startswith("[") and text.endswith("]")
    return "" if bracketed or text.lower() in _UNKNOWN else text


def _first(raw: pd.DataFrame, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in raw), None)


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


def _stages(columns: pd.DataFrame, path: str | Path) -> pd.Series:
    """Return the folded stage of the first column that names one, and log what was folded away."""
    folded = columns.map(_known).map(fold_stage)
    stage = folded.iloc[:, 0]
    for name in folded.columns[1:]:
        stage = stage.mask(stage == "", folded[name])
    lost = columns.iloc[:, 0].map(_known)[stage == ""]
    lost = lost[lost != ""].value_counts()
    if len(lost):
        told = ", ".join(f"{text} ({count})" for text, count in sorted(lost.items()))
        log.warning("%s: stages that are none of I to IV count as missing: %s", path, told)
    return stage


def _responses(values: pd.Series, patients: pd.Series, path: str | Path) -> pd.Series:
    known = values.map(_known).str.lower()
    result = known.map(
        {**dict.fromkeys(_RESPONDED, 1.0), **dict.fromkeys(_NOT_RESPONDED, 0.0)}
    ).astype(float)
    odd = result.isna() & (known != "")
    if odd.any():
        raise InputError(
            f"{path}: responses that are neither R nor NR, 1 nor 0: "
            + ", ".join(f"{patients[i]} {values[i]!r}" for i in np.flatnonzero(odd)[:5])
        )
    return result


def _one_row_each(sheet: pd.DataFrame, path: str | Path) -> pd.DataFrame:
    repeated = sheet["patient"].duplicated(keep=False)
    if repeated.any():
        columns = [name for name in ("time", "event", "response") if name in sheet]
        distinct = sheet[repeated].groupby("patient")[columns].nunique(dropna=False)
        differ = distinct.index[(distinct > 1).any(axis=1)]
        if len(differ):
            raise InputError(
                f"{path}: several rows with different outcomes: {', '.join(differ[:10])}"
            )
    return sheet.drop_duplicates("patient")
