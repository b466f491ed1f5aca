"""Clinical covariates and outcomes as numbers: stages, sexes, and the rows of a patient sheet."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from histogep.jobs import InputError

_STAGE_TEXT = re.compile(r"^(?:stage\s*)?(IV|III|II|I|[1-4])\s*[ABCD]?[0-9]?$", re.IGNORECASE)
#: Stages as numbers.
STAGES = {"I": 1.0, "II": 2.0, "III": 3.0, "IV": 4.0}
_SEX = {"f": 0.0, "female": 0.0, "w": 0.0, "woman": 0.0, "m": 1.0, "male": 1.0, "man": 1.0}
_UNKNOWN = {"", "na", "n/a", "nan", "none", "unknown", "x", "stage x", "[not available]"}


def stage_number(text: str) -> float:
    """Return 1 to 4 for a stage such as `II`, `Stage IIIA` or `3`; NaN for an unknown one.

    Raises
    ------
    InputError
        The text is neither a stage I to IV nor one of the usual words for unknown.
    """
    cleaned = str(text).strip()
    if cleaned.lower() in _UNKNOWN:
        return float("nan")
    match = _STAGE_TEXT.match(cleaned)
    if match is None:
        raise InputError(f"stage {cleaned!r} is none of I, II, III, IV (with A, B or C); or empty")
    return STAGES.get(match[1].upper()) or float(match[1])


def sex_number(text: str) -> float:
    """Return 0 for female, 1 for male, NaN for unknown.

    Raises
    ------
    InputError
        The text is neither a sex nor one of the usual words for unknown.
    """
    cleaned = str(text).strip().lower()
    if cleaned in _UNKNOWN:
        return float("nan")
    if cleaned not in _SEX:
        raise InputError(f"sex {text!r} is neither female (f) nor male (m); or leave it empty")
    return _SEX[cleaned]


def unreadable_covariates(sheet: pd.DataFrame, places: Sequence[str]) -> list[str]:
    """Return one line for each sex and stage that is no known text, led by its row's place."""
    problems = []
    for column, convert in (("sex", sex_number), ("stage", stage_number)):
        if column not in sheet:
            continue
        for place, text in zip(places, sheet[column], strict=True):
            try:
                convert(text)
            except InputError as error:
                problems.append(f"{place}: {error}")
    return problems


def clinical_numbers(patients: pd.DataFrame) -> pd.DataFrame:
    """Return outcome and covariates as numbers, by patient; absent columns stay absent."""
    table = pd.DataFrame(index=pd.Index(patients["patient"].astype(str), name=None))
    problems: list[str] = []
    for column in ("time", "event", "age", "response"):
        if column in patients:
            table[column] = pd.to_numeric(patients[column]).to_numpy(float)
    for column, convert in (("sex", sex_number), ("stage", stage_number)):
        if column not in patients:
            continue
        values = []
        for patient, text in zip(table.index, patients[column], strict=True):
            try:
                values.append(convert("" if text is None or text != text else text))
            except InputError as error:
                problems.append(f"  patient {patient}: {error}")
                values.append(np.nan)
        table[column] = values
    if problems:
        raise InputError("the patient sheet has mistakes:\n" + "\n".join(problems))
    return table


def has_outcome(clinical: pd.DataFrame) -> np.ndarray:
    """Return who has a survival time with its event, or a response, from `clinical_numbers`."""
    known = clinical.notna()
    result = np.zeros(len(clinical), bool)
    if {"time", "event"} <= set(clinical):
        result |= (known["time"] & known["event"]).to_numpy()
    if "response" in clinical:
        result |= known["response"].to_numpy()
    return result
