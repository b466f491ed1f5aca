"""TCGA barcodes: patient, sample type and slide type; other ids are returned unchanged.

`TCGA-3C-AALI-01Z-00-DX1.F6E9...` is patient `TCGA-3C-AALI`, sample type `01` (primary solid
tumour), slide `DX1` (formalin-fixed, diagnostic; `TS`, `MS` and `BS` are frozen top, middle and
bottom). The parts are those of the GDC's encyclopaedia ("TCGA Barcode").
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_BARCODE = re.compile(
    r"^(TCGA([-.])[A-Z0-9]{2}\2[A-Z0-9]{4})(?:\2(\d{2})[A-Z]?)?(?=\2|$)", re.IGNORECASE
)
_SLIDE = re.compile(r"-(DX|TS|MS|BS)[A-Z0-9]?(?=[.\-_]|$)", re.IGNORECASE)
#: Usual tumour samples: the default of a cohort's statistics.
PRIMARY = ("01",)


def patient_of(barcode: str) -> str:
    """Return the patient (12 characters) of a TCGA barcode, any other id as it is.

    R writes the points of `TCGA.3C.AALI.01A` for the hyphens where barcodes become column names.
    """
    match = _BARCODE.match(barcode)
    return match[1].upper().replace(".", "-") if match else barcode


def patient_key(barcode: str) -> str:
    """Return what two spellings of one patient's id have in common: no case, no space around it."""
    return patient_of(barcode.strip()).casefold()


def sample_type_of(barcode: str) -> str:
    """Return the two digits of the sample type; "" for an id without one."""
    match = _BARCODE.match(barcode)
    return (match[3] or "") if match else ""


def slide_kind_of(barcode: str) -> str:
    """Return `DX`, `TS`, `MS` or `BS` for a TCGA slide; "" for an id without one."""
    match = _SLIDE.search(barcode) if _BARCODE.match(barcode) else None
    return match[1].upper() if match else ""


def leave_out(
    barcodes: Sequence[str], patients: Sequence[str], *, sample_types: Sequence[str] = PRIMARY
) -> dict[str, str]:
    """Return the samples or slides that do not represent their patient, with the reason.

    Parameters
    ----------
    barcodes, patients
        Samples or slides, and their patients. Ids that are not TCGA barcodes always stay.
    sample_types
        Types of sample that count (01: primary tumour, 06: metastasis, 11: normal tissue).

    Returns
    -------
    dict
        Barcode -> reason: another type of sample, or a frozen slide of a patient who has a
        diagnostic one.
    """
    reasons = {}
    for barcode in barcodes:
        kind = sample_type_of(barcode)
        if kind and kind not in sample_types:
            reasons[barcode] = f"sample type {kind} (counted: {', '.join(sample_types)})"
    diagnostic = {
        patient
        for barcode, patient in zip(barcodes, patients, strict=True)
        if slide_kind_of(barcode) == "DX" and barcode not in reasons
    }
    for barcode, patient in zip(barcodes, patients, strict=True):
        if patient in diagnostic and slide_kind_of(barcode) in ("TS", "MS", "BS"):
            reasons.setdefault(barcode, "frozen section of a patient with a diagnostic slide")
    return reasons
