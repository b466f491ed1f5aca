"""Predicted against measured copy number, arm by arm, in patients that the model has not seen."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from histogep.clones import REFERENCE, UNASSIGNED
from histogep.cnv import CnvProfiles, infer_profiles
from histogep.cnv_controls import FAIL, NOT_APPLICABLE, PASS, compare_arms
from histogep.cnv_reference import join_labels
from histogep.cnv_slides import PROFILE_SETTINGS
from histogep.datasets import read_section
from histogep.files import read_json
from histogep.folds import fold_roles
from histogep.jobs import InputError
from histogep.matrices import read_h5ad
from histogep.model_folder import check_features
from histogep.ridge import RidgeModel
from histogep.weights import read_arrays

log = logging.getLogger(__name__)

COLUMNS = [
    *("slide", "patient", "fold", "contrast", "n_spots", "n_genes", "n_arms", "r"),
    *("null_arms_mean", "null_arms_q95", "p_arms", "null_genes_mean", "null_genes_q95", "p_genes"),
    *("verdict", "note"),
]
ARM_COLUMNS = ["slide", "contrast", "arm", "n_genes", "measured", "predicted"]
#: The contrast of all malignant spots with the reference; the others are of one clone.
TUMOUR = "tumour"


@dataclass(frozen=True)
class HeldOut:
    """One section as measured and as predicted by a model that has not seen its patient.

    Attributes
    ----------
    slide, patient, fold
        Ids.
    measured, predicted
        log1p CP10k, spots by `genes`.
    genes
        The wide panel of the fold.
    clone
        Clone of each spot as called from the measured counts, "reference" or "unassigned".
    reference, malignant
        Masks of the spots, as the measured copy number has them.
    refused
        Why there is no measured copy number to compare with, or "".
    """

    slide: str
    patient: str
    fold: str
    measured: np.ndarray
    predicted: np.ndarray
    genes: list[str]
    clone: np.ndarray
    reference: np.ndarray
    malignant: np.ndarray
    refused: str


def read_held_out(
    weights: str | Path,
    settings: str | Path,
    folds: pd.DataFrame,
    *,
    features: Sequence[str | Path],
    spots: Sequence[str | Path],
    labels: Sequence[str | Path],
    cnv: Sequence[str | Path],
) -> list[HeldOut]:
    """Return the test sections of one fold, measured and predicted by the fold's wide model.

    Parameters
    ----------
    weights, settings
        The wide ridge of an honest fold (results/models/{study}/{fold}/{model}/).
    folds
        The folds table.
    features, spots, labels, cnv
        Files over all sections, named {slide}.h5, .h5ad, .tsv, .h5ad; only those of the test
        sections are opened.

    Raises
    ------
    InputError
        The model is no ridge, or was trained on a test section or on another section of a test
        patient.
    """
    record = read_json(settings)
    if record["kind"] != "ridge":
        raise InputError(f"{settings} is of a {record['kind']}: the wide panel needs a ridge")
    test = fold_roles(folds, record["fold"])["test"]
    for what, names in (("slides", test.keys()), ("patients", test.values())):
        seen = {name for role in ("train", "validation") for name in record[f"{role}_{what}"]}
        if seen & set(names):
            raise InputError(
                f"{settings}: the {what} {', '.join(sorted(seen & set(names)))} trained the model "
                "that is to be compared on them: the folds changed, train it again"
            )
    model = RidgeModel.from_arrays(read_arrays(weights), record)
    paths = [{Path(path).stem: path for path in files} for files in (features, spots, labels, cnv)]
    found = []
    for slide, patient in test.items():
        section = read_section(
            *(files[slide] for files in paths[:3]),
            slide=slide,
            patient=patient,
            task="expression",
            genes=record["genes"],
        )
        check_features(section, record)
        profile = read_h5ad(paths[3][slide])
        clone = join_labels(
            pd.Index(section.barcode),
            profile.obs["clone"].astype(str).rename_axis("barcode").reset_index(),
            str(paths[3][slide]),
            column="clone",
            missing=UNASSIGNED,
        )
        obs = profile.obs.reindex(section.barcode)
        found.append(
            HeldOut(
                slide=slide,
                patient=patient,
                fold=record["fold"],
                measured=section.targets,
                predicted=np.maximum(model.predict(section.tiles)[0], 0.0),
                genes=list(record["genes"]),
                clone=clone,
                reference=obs["reference"].to_numpy(bool),
                malignant=obs["malignant"].to_numpy(bool),
                refused=str(profile.uns["refused"]),
            )
        )
    return found


def compare_section(
    section: HeldOut,
    positions: pd.DataFrame,
    settings: Mapping[str, Any],
    *,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return how the predicted copy number of a section agrees with the measured one.

    Both are made from the same spots and the same genes against the same reference; what differs is
    that one was measured. Compared are the means over arms of malignant minus reference spots, and
    of each clone minus the other malignant spots.

    Parameters
    ----------
    section
        Measured and predicted expression.
    positions
        Table of `histogep.positions.read_gene_positions`.
    settings
        Section `cnv` of the configuration.
    seed
        Seed of the shuffles.

    Returns
    -------
    tuple
        Agreement (`COLUMNS`; one row per contrast, or one that says why there is none) and the arms
        (`ARM_COLUMNS`).
    """
    no_arms = pd.DataFrame(columns=ARM_COLUMNS)
    same = {"slide": section.slide, "patient": section.patient, "fold": section.fold}
    if section.refused:
        return _nothing(same, section.refused), no_arms
    if not section.malignant.any():
        return _nothing(same, "no malignant spot"), no_arms
    chosen = {name: settings[name] for name in PROFILE_SETTINGS if name in settings}
    try:
        profiles = [
            infer_profiles(
                values,
                positions,
                section.reference,
                genes=section.genes,
                engine="weights",
                **chosen,
            )
            for values in (section.measured, section.predicted)
        ]
    except InputError as error:
        log.warning("slide %s: no agreement: %s", section.slide, error)
        return _nothing(same, str(error)), no_arms
    genes = profiles[0].genes.merge(profiles[1].genes[["gene"]], on="gene")
    rows, arms = [], []
    for contrast, (first, second) in _contrasts(section).items():
        measured, predicted = (_difference(p, genes["gene"], first, second) for p in profiles)
        found, table = compare_arms(
            measured,
            predicted,
            genes["arm"].to_numpy(),
            min_arm_genes=settings.get("min_arm_genes", 15),
            permutations=settings.get("permutations", 499),
            seed=seed,
        )
        worst = max(found["p_arms"], found["p_genes"])
        verdict = NOT_APPLICABLE if np.isnan(found["r"]) else PASS if worst <= 0.05 else FAIL
        row = {"contrast": contrast, "n_spots": int(first.sum()), "verdict": verdict, "note": ""}
        rows.append(same | row | found)
        arms.append(table.assign(slide=section.slide, contrast=contrast))
        log.info(
            "slide %s, %s: r %.3f over %d arms, p %.3g (arms), %.3g (genes)",
            *(section.slide, contrast, found["r"], found["n_arms"]),
            *(found["p_arms"], found["p_genes"]),
        )
    return pd.DataFrame(rows)[COLUMNS], pd.concat(arms, ignore_index=True)[ARM_COLUMNS]


def _contrasts(section: HeldOut) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the two groups of spots of each contrast."""
    found = {TUMOUR: (section.malignant, section.reference)}
    clones = sorted(set(section.clone) - {REFERENCE, UNASSIGNED}, key=int)
    if len(clones) > 1:
        called = np.isin(section.clone, clones)
        # Of two clones the second would only repeat the first with its sign turned.
        for name in clones if len(clones) > 2 else clones[:1]:
            own = section.clone == name
            found[f"clone {name}"] = (own, called & ~own)
    return found


def _difference(
    profiles: CnvProfiles, genes: pd.Series, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    """Return the mean log ratio of genes in the first spots minus that in the second."""
    values = profiles.ratio.gene_means(first) - profiles.ratio.gene_means(second)
    return pd.Series(values, index=profiles.genes["gene"]).reindex(genes).to_numpy(np.float64)


def _nothing(same: Mapping[str, str], reason: str) -> pd.DataFrame:
    row = same | {"contrast": TUMOUR, "verdict": NOT_APPLICABLE, "note": reason}
    return pd.DataFrame([row]).reindex(columns=COLUMNS)
