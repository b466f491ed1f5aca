"""The scores by which penalties, epochs and models are chosen inside the training patients."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

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


def inner_scores(
    candidates: Sequence[str], patient_cv: Sequence[Mapping[str, Any]], task: str
) -> dict[str, float]:
    """Return the mean over the patient_cv folds of each candidate's score inside its patients.

    Parameters
    ----------
    candidates
        Names of models.
    patient_cv
        Settings of the models of the patient_cv folds.
    task
        "expression" or "tumour".
    """
    scores = {}
    for name in candidates:
        mine = [record.get("scores", {}) for record in patient_cv if record["model"] == name]
        found = [own[task] for own in mine if own.get(task) is not None]
        if found:
            scores[name] = float(np.mean(found))
    return scores


def deployed_expression(wanted: str, records: Sequence[Mapping[str, Any]]) -> str:
    """Return the expression model that will be deployed, before it is trained on all sections.

    Parameters
    ----------
    wanted
        The setting `deploy.expression`: a name, or "auto".
    records
        Settings of models that were trained with sections held out.
    """
    if wanted != "auto":
        return wanted
    patient_cv = [record for record in records if record["protocol"] == "patient_cv"]
    candidates = [
        record["model"]
        for record in patient_cv
        if record["panel"] == "main" and record["task"] != "tumour" and not record.get("absent")
    ]
    candidates = list(dict.fromkeys(candidates))
    scores = inner_scores(candidates, patient_cv, "expression")
    return max(candidates, key=lambda name: scores.get(name, -np.inf), default="")
