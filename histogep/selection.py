"""The scores by which penalties, epochs and models are chosen inside the training patients."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

LOG = logging.getLogger(__name__)
#: By what models of a task are chosen.
METRICS = {"expression": "in-section Pearson", "tumour": "in-section AUROC"}


def gene_correlations(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Return the Pearson correlation over the spots of one section, gene by gene.

    Parameters
    ----------
    predicted, measured
        (n spots, g genes).

    Returns
    -------
    numpy.ndarray
        (g,) float64; NaN where either is constant, so no correlation is defined.
    """
    a = np.asarray(predicted, float)
    b = np.asarray(measured, float)
    a, b = a - a.mean(0), b - b.mean(0)
    norm = np.sqrt((a * a).sum(0) * (b * b).sum(0))
    scale = np.abs(predicted).max(initial=0) * np.abs(measured).max(initial=0) * len(a)
    defined = norm > 1e-12 * scale
    return np.where(defined, (a * b).sum(0) / np.where(defined, norm, 1.0), np.nan)


def section_score(predicted: np.ndarray, measured: np.ndarray) -> float:
    """Return the mean correlation over the genes measured on a section, in-tissue spots only.

    A gene that varies on the section but not in the prediction counts as 0, so that a model does
    not gain by saying nothing; a gene that does not vary on the section is left out.
    """
    varies = np.ptp(measured, axis=0) > 0
    if not varies.any():
        return 0.0
    return float(np.nan_to_num(gene_correlations(predicted[:, varies], measured[:, varies])).mean())


def area_under_roc(score: np.ndarray, truth: np.ndarray) -> float:
    """Return the area under the ROC curve; NaN truths are left out, NaN with a single class."""
    known = np.isfinite(truth)
    score, positive = np.asarray(score, float)[known], np.asarray(truth)[known] > 0.5
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return float("nan")
    _, owner, count = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[owner]  # ties share their mean rank
    return float(
        (ranks[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)
    )


def tumour_threshold(probability: np.ndarray, label: np.ndarray) -> float | None:
    """Return the probability of the best Dice over spots that a model did not see.

    None, with a warning, where they are of one class.
    """
    from histogep.metrics import best_dice_threshold  # with scipy.stats, half a second

    if label.all() or not label.any():
        LOG.warning("the spots to choose the tumour threshold on have one class: there is none")
        return None
    threshold = best_dice_threshold(probability, label)
    LOG.info("tumour threshold %.3f, from %d spots", threshold, len(label))
    return threshold


def mean_over_groups(scores: Sequence[float], groups: Sequence[str]) -> float:
    """Return the mean over groups (patients) of the mean over their sections; NaN are left out."""
    scores = np.asarray(scores, float)
    means = [
        scores[[g == group and np.isfinite(s) for g, s in zip(groups, scores, strict=True)]]
        for group in dict.fromkeys(groups)
    ]
    means = [float(part.mean()) for part in means if len(part)]
    return float(np.mean(means)) if means else float("nan")


def inner_folds(groups: Sequence[str], *, most: int = 10) -> list[list[str]]:
    """Return groups (patients) to leave out together: one at a time, or in `most` even hands."""
    names = list(dict.fromkeys(groups))
    size = {name: list(groups).count(name) for name in names}
    hands: list[list[str]] = [[] for _ in range(min(most, len(names)))]
    for name in sorted(names, key=lambda name: -size[name]):
        load = [(sum(size[member] for member in hand), len(hand)) for hand in hands]
        hands[load.index(min(load))].append(name)
    return hands
