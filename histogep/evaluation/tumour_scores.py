"""Scores of held-out tumour maps beside their nulls."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import sparse, stats

from histogep.evaluation.held_out import HeldOut
from histogep.evaluation.measured import Measured
from histogep.evaluation.section_scores import SPATIAL_DRAWS, section_seed
from histogep.stats.nulls import map_motions, moved_null, spatial_basis, spectral_null
from histogep.stats.scores import auroc, average_precision, dice
from histogep.warned import decides

LOG = logging.getLogger(__name__)
#: Threshold where none was chosen inside the fold.
DEFAULT_THRESHOLD = 0.5
COLUMNS = (
    "protocol",
    "model",
    "fold",
    "slide",
    "patient",
    "n",
    "n_malignant",
    "auroc",
    "auroc_null",
    "auroc_upper",
    "auprc",
    "auprc_null",
    "dice",
    "dice_null",
    "threshold",
    "threshold_from",
    "absent",
)


def tumour_table(
    sections: Sequence[HeldOut], measured: Mapping[str, Measured], *, permutations: int, seed: int
) -> pd.DataFrame:
    """Return one row per section of every tumour model.

    patient_cv maps are scored over the in-tissue spots whose label is known; published maps over the whole
    grid, where the background counts as not malignant (undetermined spots are left out). The nulls
    are the scores of a map that calls all tissue tumour, by the same metric: over the tissue 0.5,
    the prevalence p, and Dice 2p / (1 + p); over the whole grid the outline's, far higher.
    `auroc_upper` is the 95 % bound for maps unrelated to the labels (patient_cv only;
    see `auroc_upper`). Sections with one
    class have no AUROC. `threshold_from` gives whether the threshold was chosen inside the fold or
    is 0.5 in its absence. A fold whose map could not be learned has no scores, but its reason
    under `absent`.

    Parameters
    ----------
    sections
        Held-out predictions; those of expression are ignored.
    measured
        Counts of all sections, for their lattices.
    permutations, seed
        As for the expression scores.
    """
    rows = []
    for section in sections:
        if section.task != "tumour":
            continue
        scored, truth = known_cells(section)
        label = truth > 0.5
        who = (section.protocol, section.model, section.fold, section.slide, section.patient)
        if section.absent:
            LOG.warning(
                "section %s has no tumour map: %s",
                section.slide,
                section.absent,
                **decides("tumour", slide=section.slide),
            )
            blank = [np.nan] * (len(COLUMNS) - len(who) - 4)
            rows.append((*who, len(label), int(label.sum()), *blank, "", section.absent))
            continue
        probability, mask = scored.predicted[:, 0], scored.in_tissue.astype(float)
        chosen = section.threshold
        threshold = DEFAULT_THRESHOLD if chosen is None else chosen
        upper = float("nan")
        if section.protocol == "patient_cv" and 0 < label.sum() < len(label):
            lattice = measured[section.slide].lattice
            upper = auroc_upper(
                probability,
                label,
                *lattice.centres_um(scored.row, scored.col),
                lattice.neighbours(scored.row, scored.col),
                draws=permutations * SPATIAL_DRAWS,
                seed=section_seed(seed, section.slide, section.model, "tumour"),
            )
        rows.append(
            (
                *who,
                len(label),
                int(label.sum()),
                auroc(probability, label),
                auroc(mask, label),
                upper,
                average_precision(probability, label),
                average_precision(mask, label),
                dice(probability >= threshold, label),
                dice(mask >= 0.5, label),
                threshold,
                "default" if chosen is None else "fold",
                "",
            )
        )
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    if (table["threshold_from"] == "default").any():
        LOG.warning("no fold chose a tumour threshold for some models: Dice is taken at 0.5")
    unscored = table["auroc"].isna() & (table["absent"] == "")
    for slide in table.loc[unscored, "slide"].unique():
        LOG.warning(
            "section %s has spots of one class only: no AUROC",
            slide,
            **decides("tumour", slide=slide),
        )
    return table


def known_cells(section: HeldOut) -> tuple[HeldOut, np.ndarray]:
    """Return the positions of a tumour map with a known label (if patient_cv, in tissue), and these."""
    keep = np.isfinite(section.truth[:, 0])
    if section.protocol == "patient_cv":
        keep &= section.in_tissue
    known = section.cells(keep)
    return known, known.truth[:, 0]


def auroc_upper(
    probability: np.ndarray,
    label: np.ndarray,
    x_um: np.ndarray,
    y_um: np.ndarray,
    adjacency: sparse.spmatrix,
    *,
    draws: int,
    seed: int,
) -> float:
    """Return the 95 % bound of the AUROC of maps unrelated to the labels.

    AUROC = 1/2 + sum (rank - mean)(label - mean) / (positives x negatives), a correlation up to its
    scale; so the nulls of the correlation of ranks with labels (`histogep.stats.nulls`) give those of the
    AUROC, of which the largest bound is used.
    """
    ranks, label = stats.rankdata(probability), np.asarray(label, float)
    options = {"draws": draws, "seed": seed}
    nulls = [moved_null(ranks, label, motions, **options) for motions in map_motions(x_um, y_um)]
    nulls.append(spectral_null(ranks, label, spatial_basis(x_um, y_um, adjacency), **options))
    n_positive, n_negative = label.sum(), len(label) - label.sum()
    scale = np.sqrt(len(label)) * np.std(ranks) * np.sqrt(n_positive * n_negative / len(label))
    bound = max(float(np.quantile(null[:, 0], 0.95)) for null in nulls)
    return float(0.5 + bound * scale / (n_positive * n_negative))
