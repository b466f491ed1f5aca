"""Find slides that are one image under two names, by the content of their files or their picture.

A model folder keeps the SHA-256 of the image of each training section. A prediction for such an
image is not out of sample, whatever slide and patient it is filed under in another study. A predicted
slide keeps that of its own: one image under two patients of a cohort would be trained and tested on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py

from histogep.errors import InputError
from histogep.files import readable
from histogep.inputs.barcodes import patient_key
from histogep.warned import decides, of_slide

LOG = logging.getLogger(__name__)
#: In the settings of a model folder: training section -> SHA-256 of its image.
IMAGES = "training_images"
#: In `uns` of a predicted slide: the training section whose image it is, or "".
SECTION = "training_section"
#: In `uns` of a predicted slide: the SHA-256 of its image, or "" where that is not known.
IMAGE = "image_sha256"


def training_section(settings: Mapping[str, Any], sha256: str) -> str:
    """Return the training section of a model folder that is an image, by its SHA-256; "" for none.

    Of a folder without digests (packed before they were kept) none is known; the log says so.
    """
    if IMAGES not in settings:
        LOG.warning(
            "the model folder has no digests of its training images: slides are compared with its "
            "training sections by patient id only; pack it again to have them compared by image too"
        )
        return ""
    for section, known in settings[IMAGES].items():
        if known == sha256:
            LOG.warning(
                "the image is that of the training section %s: not out of sample",
                section,
                **decides("expression", "tumour"),
            )
            return section
    return ""


def section_of(path: str | Path) -> str:
    """Return the training section whose image a predicted or measured slide is, or ""."""
    return _stored(path, SECTION)


def image_of(path: str | Path) -> str:
    """Return the SHA-256 of the image of a slide of predicted expression, "" where it is not known."""
    return _stored(path, IMAGE)


def find_copies(
    images: Sequence[str], *, slides: Sequence[str], slide_patients: Sequence[str]
) -> dict[str, str]:
    """Return slide -> the slide of the same patient that it is a copy of.

    Parameters
    ----------
    images
        SHA-256 of the image of each slide, "" where it is not known.
    slides, slide_patients
        Their ids, in the same order.

    Raises
    ------
    InputError
        Slides of two patients are one image: it is unknown whose it is.
    """
    first: dict[str, tuple[str, str]] = {}
    copies, problems = {}, []
    for image, slide, patient in zip(images, slides, slide_patients, strict=True):
        if not image:
            continue
        known, owner = first.setdefault(image, (slide, patient))
        if patient_key(owner) != patient_key(patient):
            problems.append(f"  {known} of patient {owner} and {slide} of patient {patient}")
        elif slide != known:
            copies[slide] = known
    if problems:
        raise InputError(
            "slides of two patients are the same image (SHA-256): it is unknown whose it is, and "
            "what is learnt from one would be tested on the other; correct the patient or leave a "
            "slide out of the slide sheet:\n" + "\n".join(problems)
        )
    for slide, known in copies.items():
        LOG.warning(
            "slide %s is the same image as %s of its patient: left out",
            *(slide, known),
            **of_slide(slide),
        )
    return copies


def out_of_sample(
    expression: Sequence[str | Path],
    *,
    slides: Sequence[str],
    slide_patients: Sequence[str],
    training_patients: str = "exclude",
) -> list[bool]:
    """Return for each file of expression whether it counts: new to the model, not a second copy.

    New is a patient who has no image that the model was trained on.

    Parameters
    ----------
    expression
        `results/expression/*.h5ad` (or `results/spots/*.h5ad`: measured, so always True).
    slides, slide_patients
        Their ids, in the same order: all slides of a patient go with one of a training section.
    training_patients
        The setting `summary.training_patients`; `keep` keeps all.

    Raises
    ------
    InputError
        No slide is left, or slides of two patients are one image.
    """
    copies = find_copies(
        list(map(image_of, expression)), slides=slides, slide_patients=slide_patients
    )
    single = [slide not in copies for slide in slides]
    if training_patients == "keep":
        return single
    patients = [patient_key(patient) for patient in slide_patients]
    seen = set()
    for path, patient in zip(expression, patients, strict=True):
        if section := section_of(path):
            seen.add(patient)
            LOG.warning(
                "%s is the image of the training section %s: its patient is left out", path, section
            )
    kept = [alone and owner not in seen for alone, owner in zip(single, patients, strict=True)]
    if expression and not any(kept):
        raise InputError(
            "every slide of the cohort is of a patient whose image the model was trained on: give it "
            "other slides, or set summary.training_patients to keep"
        )
    return kept


def _stored(path: str | Path, key: str) -> str:
    with readable(path), h5py.File(path, "r") as file:
        stored = file.get(f"uns/{key}")
        return "" if stored is None else stored.asstr()[()]
