"""Gaussian mixtures of one shape, and how two partitions agree, without scikit-learn's import.

Copy number and labels are short jobs, of which there is one for each slide; scikit-learn with
`scipy.stats` would be a fifth of their time. The tests hold both functions to scikit-learn's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular
from scipy.special import logsumexp

_LLOYD_ROUNDS = 20


@dataclass(frozen=True)
class Mixture:
    """A mixture of k Gaussians that share one covariance.

    Attributes
    ----------
    means
        k by dimensions, in the order of the first dimension.
    probability
        Posterior of each part (points by k).
    bic
        Bayesian information criterion; lower is better.
    """

    means: np.ndarray
    probability: np.ndarray
    bic: float

    @property
    def partition(self) -> np.ndarray:
        """Most probable part of each point."""
        return self.probability.argmax(axis=1)


def fit_mixture(
    points: np.ndarray,
    k: int,
    *,
    seed: int,
    n_starts: int = 3,
    ridge: float = 1e-6,
    rounds: int = 100,
    tolerance: float = 1e-3,
) -> Mixture:
    """Return the likeliest of several mixtures fitted by expectation and maximisation.

    Parameters
    ----------
    points
        Points by dimensions.
    k
        Number of parts.
    seed
        Seed of the starts: k-means from centres drawn far apart (k-means++).
    n_starts
        Number of starts.
    ridge
        Added to the diagonal of the covariance.
    rounds, tolerance
        Most rounds, and the gain in mean log likelihood below which they end.
    """
    points = np.asarray(points, np.float64)
    rng = np.random.default_rng(seed)
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    for _ in range(n_starts if k > 1 else 1):
        posterior, before = np.eye(k)[_nearest_centres(points, k, rng)], -np.inf
        for _ in range(rounds):
            parts = _maximise(points, posterior, ridge)
            joint = _log_joint(points, *parts)
            total = logsumexp(joint, axis=1)
            posterior, now = np.exp(joint - total[:, np.newaxis]), float(total.mean())
            if now - before < tolerance:
                break
            before = now
        if best is None or now > best[0]:
            best = (now, parts[1], posterior)
    likelihood, means, posterior = best
    order = np.argsort(means[:, 0], kind="stable")
    return Mixture(
        means=means[order],
        probability=posterior[:, order],
        bic=_bic(points, k, likelihood),
    )


def mixture_bic(points: np.ndarray, partition: np.ndarray, *, ridge: float = 1e-6) -> float:
    """Return the BIC of the mixture whose parts have the sizes and means of a given partition.

    So a partition that was found otherwise is weighed on the scale of `fit_mixture`.

    Parameters
    ----------
    points
        Points by dimensions.
    partition
        Part of each point, from 0.
    ridge
        Added to the diagonal of the covariance.
    """
    points = np.asarray(points, np.float64)
    k = int(partition.max()) + 1
    joint = _log_joint(points, *_maximise(points, np.eye(k)[partition], ridge))
    return _bic(points, k, float(logsumexp(joint, axis=1).mean()))


def adjusted_rand(first: np.ndarray, second: np.ndarray) -> float:
    """Return the adjusted Rand index of two partitions (Hubert and Arabie, 1985)."""
    rows, cols = (np.unique(part, return_inverse=True)[1] for part in (first, second))
    table = np.zeros((rows.max() + 1, cols.max() + 1))
    np.add.at(table, (rows, cols), 1)

    def pairs(counts: np.ndarray) -> float:
        return float((counts * (counts - 1) / 2).sum())

    both, one, other = pairs(table), pairs(table.sum(axis=1)), pairs(table.sum(axis=0))
    expected = one * other / max(pairs(np.array([len(rows)])), 1.0)
    most = (one + other) / 2
    return 1.0 if most == expected else (both - expected) / (most - expected)


def _bic(points: np.ndarray, k: int, likelihood: float) -> float:
    """Return the criterion of k parts of one shape, from the mean log likelihood of a point."""
    n, d = points.shape
    free = d * (d + 1) / 2 + k * d + k - 1
    return float(-2 * likelihood * n + free * np.log(n))


def _maximise(
    points: np.ndarray, posterior: np.ndarray, ridge: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return weights, means and the shared covariance."""
    size = posterior.sum(axis=0) + 10 * np.finfo(float).eps
    means = posterior.T @ points / size[:, np.newaxis]
    covariance = (points.T @ points - (means.T * size) @ means) / len(points)
    covariance.flat[:: len(covariance) + 1] += ridge
    return size / size.sum(), means, covariance


def _log_joint(
    points: np.ndarray, weights: np.ndarray, means: np.ndarray, covariance: np.ndarray
) -> np.ndarray:
    """Return log of weight times density (points by parts)."""
    root = np.linalg.cholesky(covariance)
    white, centres = (solve_triangular(root, v.T, lower=True).T for v in (points, means))
    squares = ((white[:, np.newaxis] - centres[np.newaxis]) ** 2).sum(axis=2)
    constant = points.shape[1] * np.log(2 * np.pi) / 2 + np.log(np.diag(root)).sum()
    return np.log(weights) - squares / 2 - constant


def _nearest_centres(points: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Return the partition of k-means, started from points drawn by their squared distance."""
    centres = points[[rng.integers(len(points))]]
    while len(centres) < k:
        away = _squares(points, centres).min(axis=1)
        share = away / away.sum() if away.sum() > 0 else None
        centres = np.vstack([centres, points[rng.choice(len(points), p=share)]])
    for _ in range(_LLOYD_ROUNDS):
        member = _squares(points, centres).argmin(axis=1)
        moved = np.array(
            [
                points[member == i].mean(axis=0) if (member == i).any() else centres[i]
                for i in range(k)
            ]
        )
        if np.array_equal(moved, centres):
            break
        centres = moved
    return _squares(points, centres).argmin(axis=1)


def _squares(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return ((points[:, np.newaxis] - centres[np.newaxis]) ** 2).sum(axis=2)
