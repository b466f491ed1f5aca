"""Find one section under two names: copies stop the study, look-alikes are reported.

Folds hold out patients, so a section listed under two patients is both trained on and tested on. An
exact copy is found by its SHA-256 (`histogep.evaluation.leakage`, `histogep.slides.same_file`); this module finds
altered copies, by image and by counts, before anything is trained.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import anndata
import pandas as pd

from histogep.errors import InputError
from histogep.evaluation.count_copies import read_profiles, similar_counts
from histogep.inputs.barcodes import patient_of
from histogep.slides.same_tissue import COLUMNS, Keypoints, similar_images

_SHOWN = 6


def compare_sections(
    keypoints: Mapping[str, Keypoints],
    patients: Mapping[str, str],
    *,
    spots: Mapping[str, anndata.AnnData] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Return which slides of different patients are alike, and by what.

    Parameters
    ----------
    keypoints
        Keypoints of each slide (`histogep.slides.same_tissue`).
    patients
        Patient of each slide.
    spots
        Counts of the sections among them.
    seed
        Of the spots that are compared.

    Returns
    -------
    DataFrame
        slide, patient, other, other_patient, what (image, counts, patient id), score, verdict
        (`copy`: one section under two patients; `alike`: look at it), detail.
    """
    parts = [similar_images(keypoints, patients)]
    if spots:
        parts.append(similar_counts(read_profiles(spots), patients, seed=seed))
    parts.append(similar_ids(patients))
    return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)


def require_no_copies(pairs: pd.DataFrame) -> None:
    """Raise an InputError that names the slides of different patients that are one section."""
    copies = pairs[pairs["verdict"] == "copy"]
    if copies.empty:
        return
    shown = [
        f"  {row.slide} of patient {row.patient} and {row.other} of patient {row.other_patient} "
        f"({row.what}): {row.detail}"
        for row in copies.head(_SHOWN).itertuples()
    ]
    more = f"\n  and {len(copies) - _SHOWN} more" if len(copies) > _SHOWN else ""
    raise InputError(
        "slides of different patients are one section, though their files differ: what is learnt "
        "from one would be tested on the other:\n"
        + "\n".join(shown)
        + more
        + "\nCorrect the patients in the slides sheet, or leave one of the two out"
    )


def notices(pairs: pd.DataFrame) -> list[dict[str, str]]:
    """Return pairs that may be innocent but must be reported: one row (what, detail) per pair."""
    return [
        {
            "what": row.what,
            "detail": f"patients {row.patient} and {row.other_patient}: {row.detail}"
            if row.what == "patient id"
            else f"{row.slide} of patient {row.patient} and {row.other} of patient "
            f"{row.other_patient}: {row.detail}; serial sections of one block?",
        }
        for row in pairs[pairs["verdict"] == "alike"].itertuples()
    ]


def similar_ids(patients: Mapping[str, str]) -> pd.DataFrame:
    """Return the pairs of patients whose ids differ in separators, case or leading zeros only."""
    first = {patient: slide for slide, patient in reversed(list(patients.items()))}
    groups: dict[Sequence[str], list[str]] = {}
    for patient in sorted(first):
        groups.setdefault(id_parts(patient), []).append(patient)
    rows = [
        (first[one], one, first[two], two, "patient id", float("nan"), "alike", _SAME_ID)
        for group in groups.values()
        for one, two in _pairs(group)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


_SAME_ID = "the ids differ in separators, case or leading zeros only: one patient?"


def id_parts(patient: str) -> tuple[str, ...]:
    """Return the runs of letters and of digits of an id: P01, p-1 and P_001 are ("p", "1").

    A TCGA barcode stands for its patient.
    """
    runs = re.findall(r"[^\W\d_]+|\d+", patient_of(patient.strip()).casefold())
    return tuple(run.lstrip("0") or "0" if run.isdigit() else run for run in runs)


def _pairs(group: Sequence[str]) -> Iterable[tuple[str, str]]:
    return ((one, two) for i, one in enumerate(group) for two in group[i + 1 :])
