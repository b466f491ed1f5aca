"""The scores by which penalties, epochs and models are chosen inside the training patients."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from sklearn.metrics import precision_recall_curve

from histogep.stats.scores import pearson

LOG = logging.getLogger(__name__)
#: The metric by which models of a task are chosen.
METRICS = {"expression": "in-section Pearson", "tumour": "in-section AUROC"}


def section_score(predicted: np.ndarray, measured: np.ndarray) -> float:
    """Return the mean correlation over the genes measured on a section, in-tissue spots only.

    A gene that varies on the section but not in the prediction counts as 0, so that constant
    predictions are not rewarded; a gene that does not vary on the section is left out.
    """
    scores = pearson(predicted, measured)
    return float(np.nanmean(scores)) if np.isfinite(scores).any() else 0.0


def tumour_threshold(probability: np.ndarray, label: np.ndarray) -> float | None:
    """Return the probability of the best Dice over spots that a model did not see.

    The lowest of equally good ones; None, with a warning, where the spots are of one class.
    """
    if label.all() or not label.any():
        LOG.warning("the spots to choose the tumour threshold on have one class: there is none")
        return None
    precision, recall, thresholds = precision_recall_curve(label, probability)
    overlap = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    # The point behind the last threshold calls nothing; sums of shares differ by rounding.
    best = np.flatnonzero(overlap[:-1] >= overlap[:-1].max() - 1e-12)[0]
    threshold = float(thresholds[best])
    LOG.info("tumour threshold %.3f, from %d spots", threshold, len(label))
    return threshold


def mean_over_groups(scores: Sequence[float] | np.ndarray, groups: Sequence[str]) -> float:
    """Return the mean over groups (patients) of the mean over their sections; NaN are left out."""
    scores = np.asarray(scores, float)
    means = [
        scores[[g == group and np.isfinite(s) for g, s in zip(groups, scores, strict=True)]]
        for group in dict.fromkeys(groups)
    ]
    means = [float(part.mean()) for part in means if len(part)]
    return float(np.mean(means)) if means else float("nan")


def inner_folds(groups: Sequence[str], *, most: int = 10) -> list[list[str]]:
    """Return groups (patients) to leave out together: one at a time, or in `most` even parts."""
    names = list(dict.fromkeys(groups))
    size = {name: list(groups).count(name) for name in names}
    hands: list[list[str]] = [[] for _ in range(min(most, len(names)))]
    for name in sorted(names, key=lambda name: -size[name]):
        load = [(sum(size[member] for member in hand), len(hand)) for hand in hands]
        hands[load.index(min(load))].append(name)
    return hands
