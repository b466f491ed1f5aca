"""Scores of predictions against measurements, for all genes at once, and their intervals.

Every function takes a matrix of cells by genes (one vector counts as one gene) and gives one
number per gene.
"""

from __future__ import annotations

import numpy as np
from scipy import stats
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

#: A column whose standard deviation is below this share of its largest value is constant: what is
#: left is rounding, and a correlation with it would be a correlation with rounding errors.
_CONSTANT = 1e-7


def unit_columns(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre each column and scale it to length one.

    Parameters
    ----------
    values
        Cells by genes, finite.

    Returns
    -------
    tuple of numpy.ndarray
        The scaled columns in float64 (zeros where a column is constant), and which are constant.
    """
    values = _matrix(values)
    centred = values - values.mean(0)
    length = np.sqrt(np.einsum("ng,ng->g", centred, centred))
    constant = length <= _CONSTANT * np.sqrt(len(values)) * np.abs(values).max(0, initial=0)
    centred /= np.where(constant, 1.0, length)
    centred[:, constant] = 0.0
    return centred, constant


def pearson(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation of each gene over the cells.

    A prediction that is constant scores 0: its covariance with anything is 0, and it explains
    nothing. A measurement that is constant gives NaN: nothing could be scored.

    Parameters
    ----------
    predicted, measured
        Cells by genes, finite.

    Returns
    -------
    numpy.ndarray
        One correlation per gene.
    """
    predicted, measured = _pair(predicted, measured)
    if len(measured) < 3:
        return np.full(measured.shape[1], np.nan)
    ours, _ = unit_columns(predicted)
    theirs, unscorable = unit_columns(measured)
    score = np.einsum("ng,ng->g", ours, theirs).clip(-1, 1)
    return np.where(unscorable, np.nan, score)


def spearman(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation of each gene: Pearson's of the ranks, ties at their mean."""
    predicted, measured = _pair(predicted, measured)
    # Rounding noise of a constant prediction would be ranked like a signal.
    flat = unit_columns(predicted)[1] if len(predicted) else np.zeros(predicted.shape[1], bool)
    ranks = stats.rankdata(np.where(flat, 0.0, predicted), axis=0)
    return pearson(ranks, stats.rankdata(measured, axis=0))


def rmse(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Return the root of the mean squared error of each gene."""
    predicted, measured = _pair(predicted, measured)
    if len(measured) == 0:
        return np.full(measured.shape[1], np.nan)
    return np.sqrt(np.mean((predicted - measured) ** 2, axis=0))


def padded_pearson(first: np.ndarray, second: np.ndarray, *, n_positions: int) -> np.ndarray:
    """Return the correlation per gene over a grid whose cells outside the tissue are zero in both.

    Equal to `pearson` on the matrices filled up with zeros to `n_positions` rows, without filling.

    Parameters
    ----------
    first, second
        Values of the in-tissue cells, cells by genes.
    n_positions
        Cells of the whole grid, background included.
    """
    first, second = _pair(first, second)
    if n_positions < len(first):
        raise ValueError(f"a grid of {n_positions} cells cannot hold {len(first)} in-tissue cells")
    mean_1, mean_2 = first.sum(0) / n_positions, second.sum(0) / n_positions
    square_1 = np.einsum("ng,ng->g", first, first) / n_positions - mean_1**2
    square_2 = np.einsum("ng,ng->g", second, second) / n_positions - mean_2**2
    product = np.einsum("ng,ng->g", first, second) / n_positions - mean_1 * mean_2
    flat_1 = square_1 <= (_CONSTANT * np.abs(first).max(0, initial=0)) ** 2
    flat_2 = square_2 <= (_CONSTANT * np.abs(second).max(0, initial=0)) ** 2
    flat = flat_1 | flat_2
    score = product / np.sqrt(np.where(flat, 1.0, square_1 * square_2))
    return np.where(flat_2, np.nan, np.where(flat_1, 0.0, score.clip(-1, 1)))


def auroc(score: np.ndarray, truth: np.ndarray) -> float:
    """Return scikit-learn's area under the ROC curve of the cells whose truth is known.

    Parameters
    ----------
    score
        Score of each cell.
    truth
        1 for a positive cell, 0 for a negative one, NaN for one that is left out.

    Returns
    -------
    float
        NaN when only one class is present.
    """
    truth = np.asarray(truth, float)
    known = np.isfinite(truth)
    positive = truth[known] > 0.5
    if positive.all() or not positive.any():
        return float("nan")
    return float(roc_auc_score(positive, np.asarray(score, float)[known]))


def average_precision(score: np.ndarray, label: np.ndarray) -> float:
    """Return scikit-learn's average precision; NaN when no cell is positive."""
    label = np.asarray(label, bool)
    return float(average_precision_score(label, score)) if label.any() else float("nan")


def dice(called: np.ndarray, label: np.ndarray) -> float:
    """Return Dice's overlap 2|A and B| / (|A| + |B|), which is F1; NaN when both are empty."""
    called, label = np.asarray(called, bool), np.asarray(label, bool)
    if not (called.any() or label.any()):
        return float("nan")
    return float(f1_score(label, called))


def bootstrap_patients(
    values: np.ndarray, patients: np.ndarray, *, bootstraps: int, seed: int
) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean over sections, by resampling patients.

    Patients are drawn with replacement and bring all their sections. The interval covers the
    sampling of patients from the population these came from, with the models as trained; not the
    spread between training runs, and not other hospitals or scanners. With K patients there are
    few distinct samples (10 for K = 3, 462 for K = 6) and the percentile interval is too narrow,
    by about sqrt((K - 1) / K) and by using normal rather than t quantiles: with 3 patients it holds
    the true mean in roughly 75 % of studies, with 6 in roughly 85 %. Read it as a lower bound of
    the uncertainty.

    Parameters
    ----------
    values
        One score per section; NaN is left out.
    patients
        Patient of each section.
    bootstraps
        Number of samples.
    seed
        Seed of the sampling.

    Returns
    -------
    tuple of float
        Lower and upper end; NaN with fewer than two patients.
    """
    values, patients = np.asarray(values, float), np.asarray(patients)
    known = np.isfinite(values)
    names, owner = np.unique(patients[known], return_inverse=True)
    if len(names) < 2:
        return float("nan"), float("nan")
    total = np.bincount(owner, values[known])
    count = np.bincount(owner)
    drawn = np.random.default_rng(seed).integers(0, len(names), (bootstraps, len(names)))
    means = total[drawn].sum(1) / count[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def false_discovery_rate(p: np.ndarray) -> np.ndarray:
    """Return Benjamini and Hochberg's (1995) adjusted p; NaN stays NaN and is not counted."""
    p = np.asarray(p, float)
    adjusted = np.full(p.shape, np.nan)
    known = np.isfinite(p)
    if known.any():
        adjusted[known] = stats.false_discovery_control(p[known])
    return adjusted


def _matrix(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    return values[:, None] if values.ndim == 1 else values


def _pair(predicted: np.ndarray, measured: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    predicted, measured = _matrix(predicted), _matrix(measured)
    if predicted.shape != measured.shape:
        raise ValueError(f"shapes differ: {predicted.shape} and {measured.shape}")
    return predicted, measured
