"""Slides that a model was trained on under another name: found by what their image files hold.

A model folder keeps the SHA-256 of the image of each training section. What a model says of such an
image is not out of sample, whatever slide and patient it is filed under in another study.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py

from histogep.barcodes import patient_key
from histogep.files import readable
from histogep.jobs import InputError

LOG = logging.getLogger(__name__)
#: In the settings of a model folder: training section -> SHA-256 of its image.
IMAGES = "training_images"
#: In `uns` of a predicted slide: the training section whose image it is, or "".
SECTION = "training_section"


def training_section(settings: Mapping[str, Any], sha256: str) -> str:
    """Return the training section of a model folder that is an image, by its SHA-256; "" for none.

    Of a folder without digests (packed before they were kept) none is known; the log says so.
    """
    if IMAGES not in settings:
        LOG.warning(
            "the model folder has no digests of its training images: slides are told from its "
            "training sections by patient id only; pack it again to have them compared"
        )
        return ""
    for section, known in settings[IMAGES].items():
        if known == sha256:
            LOG.warning("the image is that of the training section %s: not out of sample", section)
            return section
    return ""


def section_of(path: str | Path) -> str:
    """Return the training section whose image a slide of predicted or measured expression is, or ""."""
    with readable(path), h5py.File(path, "r") as file:
        stored = file.get(f"uns/{SECTION}")
        return "" if stored is None else stored.asstr()[()]


def out_of_sample(
    expression: Sequence[str | Path],
    *,
    slide_patients: Sequence[str],
    training_patients: str = "exclude",
) -> list[bool]:
    """Return of each file of expression whether its patient has no image that the model was trained on.

    Parameters
    ----------
    expression
        `results/expression/*.h5ad` (or `results/spots/*.h5ad`: measured, so always True).
    slide_patients
        Their patients, in the same order: all slides of a patient go with one.
    training_patients
        The setting `summary.training_patients`; `keep` keeps all.

    Raises
    ------
    InputError
        No slide is left.
    """
    if training_patients == "keep":
        return [True] * len(expression)
    patients = [patient_key(patient) for patient in slide_patients]
    seen = set()
    for path, patient in zip(expression, patients, strict=True):
        if section := section_of(path):
            seen.add(patient)
            LOG.warning(
                "%s is the image of the training section %s: its patient is left out", path, section
            )
    kept = [patient not in seen for patient in patients]
    if expression and not any(kept):
        raise InputError(
            "every slide of the cohort is of a patient whose image the model was trained on: give it "
            "other slides, or set summary.training_patients to keep"
        )
    return kept
