"""C-index, AUROC and average precision under thousands of weightings of the patients.

lifelines and scikit-learn score what is reported; here are their scores for bootstrap draws and
permutations, which only weigh or label the patients differently. Tied scores count a half.
"""

from __future__ import annotations

import numpy as np
from scipy import stats


def survival_pairs(time: np.ndarray, event: np.ndarray) -> np.ndarray:
    """Return which pairs (i, j) are comparable: i is known to have had the event before j.

    Of two tied times only an event against a censoring is comparable, as in lifelines.
    """
    time, event = np.asarray(time, float), np.asarray(event).astype(bool)
    earlier = time[:, None] < time[None, :]
    tied = (time[:, None] == time[None, :]) & ~event[None, :]
    return event[:, None] & (earlier | tied)


def bootstrap_concordance(scores: np.ndarray, pairs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the concordance of several scores under several weightings of the patients.

    Parameters
    ----------
    scores
        Models x patients; a higher score means an earlier event.
    pairs
        From `survival_pairs`.
    weights
        Draws x patients: how often each draw holds each patient.

    Returns
    -------
    ndarray
        Models x draws; NaN for a draw without a comparable pair.
    """
    total = ((weights @ pairs) * weights).sum(axis=1)
    result = np.empty((len(scores), len(weights)))
    for model, score in enumerate(np.asarray(scores, float)):
        right = pairs * ((score[:, None] > score) + 0.5 * (score[:, None] == score))
        with np.errstate(invalid="ignore", divide="ignore"):
            result[model] = ((weights @ right) * weights).sum(axis=1) / total
    return result


def weighted_auroc(
    scores: np.ndarray, positive_weight: np.ndarray, weight: np.ndarray
) -> np.ndarray:
    """Return scikit-learn's area under the ROC curve under several weightings.

    Parameters
    ----------
    scores
        One per patient, (n,).
    positive_weight
        Draws x patients: weight of the patient as a positive (0 for negatives).
    weight
        Draws x patients: weight of the patient.

    Returns
    -------
    ndarray
        One per draw; NaN for a draw without a positive or without a negative.
    """
    hits, called = _by_threshold(scores, positive_weight, weight)
    missed = called - hits
    gained = np.diff(missed, axis=1, prepend=0)
    half = np.diff(hits, axis=1, prepend=0) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return (gained * (hits - half)).sum(axis=1) / (hits[:, -1] * missed[:, -1])


def weighted_precision(
    scores: np.ndarray, positive_weight: np.ndarray, weight: np.ndarray
) -> np.ndarray:
    """Return scikit-learn's average precision; parameters are those of `weighted_auroc`."""
    hits, called = _by_threshold(scores, positive_weight, weight)
    gained = np.diff(hits, axis=1, prepend=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(called > 0, hits / called, 0.0)
        return (gained * precision).sum(axis=1) / hits[:, -1]


def _by_threshold(
    scores: np.ndarray, positive_weight: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the weight of positives, and of all, at or above each distinct score, highest first."""
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    positive, all_ = (
        np.cumsum(np.asarray(part, float)[:, order], axis=1)[:, last]
        for part in (positive_weight, weight)
    )
    return positive, all_


def bootstrap_weights(
    n: int, *, draws: int, seed: int, strata: np.ndarray | None = None
) -> np.ndarray:
    """Return how often each of `draws` bootstrap samples holds each of `n` patients.

    With `strata`, patients are drawn within each stratum, so that no draw loses a class.
    """
    rng = np.random.default_rng([seed, n])
    strata = np.zeros(n, int) if strata is None else np.asarray(strata).astype(int)
    weights = np.zeros((draws, n))
    for stratum in np.unique(strata):
        rows = np.flatnonzero(strata == stratum)
        weights[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=draws)
    return weights


def interval(draws: np.ndarray, *, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of bootstrap draws, NaN when there is none."""
    draws = draws[np.isfinite(draws)]
    if not len(draws):
        return float("nan"), float("nan")
    low, high = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def refit_interval(
    value: float,
    refits: np.ndarray,
    fixed: np.ndarray,
    *,
    bounds: tuple[float, float],
    level: float = 0.95,
) -> tuple[float, float]:
    """Return an interval that counts the training: value +- t x deviation, within some bounds.

    The deviation is that of refits on bootstrap samples, or that with the models held fixed where
    it is larger. A sample holds 63 % of the patients, so that what the training adds is rather too
    large than too small.

    Parameters
    ----------
    value
        Statistic of the cohort.
    refits
        The statistic on samples of it, all models fitted to the sample
        (`histogep.outcome.nested_cv.refit_bootstrap`).
    fixed
        The statistic on samples, the models being those of the cohort.
    bounds
        What the statistic cannot leave.
    level
        Of the interval.
    """
    refits, fixed = refits[np.isfinite(refits)], fixed[np.isfinite(fixed)]
    if len(refits) < 2 or not np.isfinite(value):
        return float("nan"), float("nan")
    deviation = np.std(refits, ddof=1)
    if len(fixed) > 1:
        deviation = max(deviation, np.std(fixed, ddof=1))
    half = stats.t.ppf(0.5 + level / 2, len(refits) - 1) * deviation
    return float(max(value - half, bounds[0])), float(min(value + half, bounds[1]))


def permutation_p(observed: float, null: np.ndarray) -> float:
    """Return the one-sided permutation p: how often the null is at least as high."""
    null = null[np.isfinite(null)]
    if not len(null) or not np.isfinite(observed):
        return float("nan")
    return float((1 + (null >= observed - 1e-12).sum()) / (1 + len(null)))
