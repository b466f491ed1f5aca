"""Assign sections to training, validation and test: by patient, by section, and for deployment.

`patient_cv` folds hold out whole patients and keep some training patients aside to choose the epoch.
`published` folds hold out sections, as the paper does: neighbouring sections of the same patient train,
and there is no validation. `all` trains on every section, for the model that is deployed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from histogep.errors import InputError

# Each parsing of the workflow asks for the names of the folds, which need no arrays and no tables.
if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("protocol", "fold", "slide", "patient", "role")
ROLES = ("train", "validation", "test")
#: With fewer training patients than this, none is taken away from training to validate.
MIN_TRAINING_PATIENTS = 3


def fold_names(*, n_patients: int, n_sections: int, settings: Mapping[str, Any]) -> list[str]:
    """Return the ids of the folds that `split_folds` makes, without making them.

    Parameters
    ----------
    n_patients, n_sections
        Patients and sections of the study that have spots.
    settings
        `patient_cv`: "patient" or a number of folds; `published`: "section" or a number of folds.

    Returns
    -------
    list of str
        patient_cv-1.., published-1.., all; empty when the study has no section at all.

    Raises
    ------
    InputError
        Only one patient, so that none can be held out; a number of folds below 2.
    """
    if n_sections == 0:
        return []
    if n_patients < 2:
        raise InputError(
            f"the sections come from {n_patients} patient: patient_cv folds hold out whole patients "
            "and need at least 2 (slides.tsv, column patient), or name a trained model (`model:`)"
        )
    patient_cv = _number(settings, "patient_cv", "patient", n_patients)
    published = _number(settings, "published", "section", n_sections)
    return [
        *(f"patient_cv-{i + 1}" for i in range(patient_cv)),
        *(f"published-{i + 1}" for i in range(published)),
        "all",
    ]


def split_folds(
    sections: Sequence[str],
    patients: Sequence[str],
    *,
    settings: Mapping[str, Any],
    seed: int,
) -> pd.DataFrame:
    """Return the role of every section in every fold.

    Groups are dealt out largest first to the fold with the fewest sections, in an order drawn from
    the seed, so folds are as even as they can be. Each patient validates about equally often: the
    validation patients of a fold are those of the next folds in the same order.

    Parameters
    ----------
    sections, patients
        Ids of the sections that have spots and of their patients, in the same order.
    settings
        `patient_cv` and `published` as for `fold_names`; `validation`: patients kept in each patient_cv fold to
        choose the epoch (none where fewer than 3 patients train).
    seed
        Seed of the order.

    Returns
    -------
    pandas.DataFrame
        protocol, fold, slide, patient, role (train, validation or test); each fold lists every
        section once.
    """
    import pandas as pd

    sections, patients = [str(s) for s in sections], [str(p) for p in patients]
    if len(sections) != len(patients):
        raise ValueError("sections and patients differ in length")
    repeated = sorted({s for s in sections if sections.count(s) > 1})
    if repeated:
        raise InputError(f"slides.tsv lists these sections more than once: {', '.join(repeated)}")
    nameless = [s for s, p in zip(sections, patients, strict=True) if not p.strip()]
    if nameless:
        raise InputError(f"slides.tsv gives no patient for the sections {', '.join(nameless)}")
    of = dict(zip(sections, patients, strict=True))
    distinct = sorted(set(patients))
    names = fold_names(n_patients=len(distinct), n_sections=len(sections), settings=settings)
    rows: list[tuple[str, str, str, str, str]] = []

    patient_cv = [name for name in names if name.startswith("patient_cv-")]
    sizes = {patient: patients.count(patient) for patient in distinct}
    dealt = _deal(sizes, len(patient_cv), in_order=settings["patient_cv"] == "patient", seed=seed)
    ring = [patient for held_out in dealt for patient in held_out]
    for fold, held_out in zip(patient_cv, dealt, strict=True):
        training = len(distinct) - len(held_out)
        n_validation = _validation(settings, training)
        start = ring.index(held_out[-1]) + 1
        order = [p for p in ring[start:] + ring[:start] if p not in held_out]
        validating = set(order[:n_validation])
        for section in sections:
            patient = of[section]
            role = "test" if patient in held_out else "train"
            rows.append(
                (
                    "patient_cv",
                    fold,
                    section,
                    patient,
                    "validation" if patient in validating else role,
                )
            )

    published = [name for name in names if name.startswith("published-")]
    dealt = _deal(
        dict.fromkeys(sections, 1),
        len(published),
        in_order=settings["published"] == "section",
        seed=seed,
    )
    for fold, held_out in zip(published, dealt, strict=True):
        rows += [
            ("published", fold, section, of[section], "test" if section in held_out else "train")
            for section in sections
        ]
    rows += [("all", "all", section, of[section], "train") for section in sections]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def fold_roles(folds: pd.DataFrame, fold: str) -> dict[str, dict[str, str]]:
    """Return role -> {slide: patient} of one fold, slides in the table's order."""
    table = folds[folds["fold"] == fold]
    if table.empty:
        known = ", ".join(folds["fold"].unique())
        raise InputError(f"the folds table has no fold {fold!r}, only {known}: run split_folds")
    roles: dict[str, dict[str, str]] = {role: {} for role in ROLES}
    for slide, patient, role in table[["slide", "patient", "role"]].itertuples(index=False):
        roles[role][str(slide)] = str(patient)
    return roles


def _number(settings: Mapping[str, Any], key: str, word: str, n_groups: int) -> int:
    """Return the number of folds a setting asks for, at most one per group."""
    value = settings[key]
    if value == word:
        value = n_groups
    if isinstance(value, bool) or not isinstance(value, int) or value < 2:
        raise InputError(f"folds.{key} is {value!r}: give {word!r} or a number of folds from 2 on")
    if n_groups < 2:
        raise InputError(f"folds.{key}: one {word} cannot be held out of one; add sections")
    return min(value, n_groups)


def _validation(settings: Mapping[str, Any], n_training: int) -> int:
    """Return the number of training patients that validate, leaving enough to train."""
    wanted = int(settings.get("validation", 1))
    if n_training < MIN_TRAINING_PATIENTS:
        return 0
    return min(wanted, n_training - (MIN_TRAINING_PATIENTS - 1))


def _deal(sizes: Mapping[str, int], k: int, *, in_order: bool, seed: int) -> list[list[str]]:
    """Deal groups of given sizes into k folds with about equal numbers of sections."""
    names = list(sizes)
    if in_order:
        return [[name] for name in names]
    import numpy as np

    shuffled = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    hands: list[list[str]] = [[] for _ in range(k)]
    for name in sorted(shuffled, key=lambda name: -sizes[name]):
        load = [(sum(sizes[member] for member in hand), len(hand)) for hand in hands]
        hands[load.index(min(load))].append(name)
    return hands
