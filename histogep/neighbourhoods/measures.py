"""What the neighbourhoods of slides say of their patients: one table of slides, one of patients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from histogep.errors import InputError
from histogep.files import read_tsv
from histogep.inputs.barcodes import PRIMARY, leave_out, patient_of

#: Columns of results/neighbourhoods/{slide}.tsv.
COLUMNS = (
    *("slide", "partition", "statistic", "of", "beside", "distance_um", "value"),
    *("null", "null_mean", "null_low", "null_high", "p", "n_of", "n_beside", "note"),
)
#: What a slide says of its patient; formulas in docs/methods.
MEASURES = ("immune_infiltration", "immune_mixing", "immune_border", "stroma_border")
#: What stands beside a measure, and the column of the slide's table that it comes from.
_PARTS = {"": "value", "_null": "null_mean", "_low": "null_low", "_high": "null_high"}


def summarise_slides(
    tables: Sequence[str | Path],
    *,
    slides: Sequence[str],
    slide_patients: Sequence[str],
    sample_types: Sequence[str] = PRIMARY,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return what the slides of a cohort say of their patients.

    Parameters
    ----------
    tables
        `results/neighbourhoods/{slide}.tsv` of each slide.
    slides, slide_patients
        Their ids and patients, in the same order.
    sample_types
        TCGA sample types that describe their patient: other slides, and frozen sections of a patient
        who has a diagnostic slide, are listed but are not in the patient's mean.

    Returns
    -------
    slides
        slide, patient, n_places, n_isolated, n_undetermined, share_CLASS of each class, and of each
        of `MEASURES` its value, MEASURE_null, MEASURE_low and MEASURE_high (mean and 95 % range
        over the moved maps), and note.
    patients
        As `average_slides` gives them.

    Raises
    ------
    InputError
        A table is of another slide.
    """
    rows = []
    for path, slide, patient in zip(tables, slides, slide_patients, strict=True):
        table = read_tsv(path, dtype={"slide": str}, keep_default_na=True)
        if list(table.columns) != list(COLUMNS) or not (table["slide"] == slide).all():
            raise InputError(f"{path} is not the table of slide {slide}: describe it again")
        plain = table[table["partition"].isna()].set_index("statistic")
        counts = plain["value"]
        row = {"slide": slide, "patient": patient_of(patient), "n_places": int(counts["places"])}
        row |= {f"n_{name}": int(counts[name]) for name in ("isolated", "undetermined")}
        classes = table[(table["statistic"] == "places") & (table["partition"] == "tissue")]
        total = max(classes["value"].sum(), 1)
        row |= {
            f"share_{c}": v / total for c, v in zip(classes["of"], classes["value"], strict=True)
        }
        measures = table[table["partition"] == "patient"].set_index("statistic")
        for name in MEASURES:
            found = measures.loc[name] if name in measures.index else None
            for part, column in _PARTS.items():
                row[name + part] = np.nan if found is None else found[column]
        row["note"] = (
            "" if "not described" not in plain.index else plain.loc["not described", "note"]
        )
        rows.append(row)
    of_slides = pd.DataFrame(rows)
    left_out = leave_out(
        list(slides), [patient_of(patient) for patient in slide_patients], sample_types=sample_types
    )
    return of_slides, average_slides(of_slides[~of_slides["slide"].isin(list(left_out))])


def average_slides(slides: pd.DataFrame) -> pd.DataFrame:
    """Return what slides say of their patients.

    Parameters
    ----------
    slides
        From `summarise_slides`, or some of its rows.

    Returns
    -------
    DataFrame
        patient, n_slides, n_places, and of each measure and its null the mean over the slides that
        have one, weighted by their places (NaN where none has); sorted by patient.
    """
    columns = [measure + part for measure in MEASURES for part in ("", "_null")]
    rows = []
    for patient, members in slides.groupby("patient", sort=True):
        row = {"patient": patient, "n_slides": len(members), "n_places": members["n_places"].sum()}
        for name in columns:
            read = members[members[name].notna()]
            row[name] = np.average(read[name], weights=read["n_places"]) if len(read) else np.nan
        rows.append(row)
    return pd.DataFrame(rows, columns=["patient", "n_slides", "n_places", *columns])
