"""Groups of the clones of a cohort, and how many there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.cluster import hierarchy
from scipy.spatial.distance import pdist, squareform

#: Without enough clones there is nothing to divide.
_FEWEST_CLONES = 4


@dataclass(frozen=True)
class Groups:
    """Subtypes of clones.

    Attributes
    ----------
    names
        "S1", "S2", ... of each clone, by size.
    order
        Clones in the order of the dendrogram.
    checks
        One tuple for each check of their number: what, value, mean and 95 % quantile of its null, p,
        whether it was passed, note.
    """

    names: np.ndarray
    order: np.ndarray
    checks: list[tuple[Any, ...]]


def scale_profiles(values: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Return measured and predicted profiles, each kind over its own root mean square.

    A prediction is a shrunken profile: unscaled, the two kinds would be the groups.

    Parameters
    ----------
    values
        Profiles of clones (rows).
    measured
        Whether each was measured.
    """
    values = values.astype(np.float64).copy()
    for kind in (True, False):
        rows = measured == kind
        if rows.any():
            values[rows] /= max(float(np.sqrt(np.mean(values[rows] ** 2))), 1e-12)
    return values


def group_clones(
    values: np.ndarray,
    *,
    max_subtypes: int,
    min_silhouette: float,
    min_stability: float,
    permutations: int,
    seed: int,
) -> Groups:
    """Return the subtypes of clones by Ward's method, their number found from the data.

    Of the numbers whose silhouette is at least `min_silhouette` and above 95 % of the best ones of
    profiles whose arms were shuffled among the clones, that is taken whose groups are found again
    best when arms are drawn anew (mean adjusted Rand index, at least `min_stability`).

    Parameters
    ----------
    values
        Profiles of the clones (clone by arm), as `scale_profiles` gives them.
    max_subtypes
        Most subtypes tried.
    min_silhouette, min_stability
        Least silhouette, and least adjusted Rand index, of more than one subtype.
    permutations
        Number of shuffles, and of draws of the arms.
    seed
        Seed of both.
    """
    n = len(values)
    if n < 2:
        return Groups(np.array(["S1"] * n, dtype=object), np.arange(n), [])
    tree = hierarchy.linkage(values, method="ward")
    order = hierarchy.leaves_list(tree)
    most = min(max_subtypes, n // 2)
    if n < _FEWEST_CLONES or most < 2:
        return Groups(np.array(["S1"] * n, dtype=object), order, [])
    silhouette = _silhouettes(values, tree, most)
    rng = np.random.default_rng(seed)
    shuffles = (rng.permuted(values, axis=0) for _ in range(permutations))
    null = np.array([max(_silhouettes(s, None, most).values()) for s in shuffles])
    stability = _stabilities(values, tree, list(silhouette), permutations, rng)
    p = {k: float((1 + (null >= s).sum()) / (1 + len(null))) for k, s in silhouette.items()}
    fit = [k for k, s in silhouette.items() if s >= min_silhouette and p[k] <= 0.05]
    best = max(fit or silhouette, key=lambda k: (stability[k], k))
    accepted = bool(fit) and stability[best] >= min_stability
    partition = hierarchy.fcluster(tree, best, criterion="maxclust")
    tried = ", ".join(f"{k}: {value:.2f}" for k, value in stability.items())
    note = f"stability by number of subtypes: {tried}; {best if accepted else 'one subtype'} kept"
    bounds = (null.mean(), np.quantile(null, 0.95), p[best])
    rows = [
        ("subtypes, silhouette", silhouette[best], *bounds, best in fit, note),
        ("subtypes, stability", stability[best], *[np.nan] * 3, accepted, note),
    ]
    if not accepted:
        partition = np.ones(n, int)
    sizes = np.bincount(partition)
    rank = {part: i for i, part in enumerate(np.argsort(-sizes, kind="stable"))}
    names = np.array([f"S{rank[part] + 1}" for part in partition], dtype=object)
    return Groups(names, order, rows)


def _silhouettes(values: np.ndarray, tree: np.ndarray | None, most: int) -> dict[int, float]:
    """Return the silhouette of each number of groups from 2 to `most`; -1 for what is no division."""
    from sklearn.metrics import silhouette_score

    tree = hierarchy.linkage(values, method="ward") if tree is None else tree
    distances = squareform(pdist(values))
    found = {}
    for k in range(2, most + 1):
        partition = hierarchy.fcluster(tree, k, criterion="maxclust")
        divided = 1 < len(set(partition)) < len(values)
        found[k] = (
            float(silhouette_score(distances, partition, metric="precomputed")) if divided else -1.0
        )
    return found


def _stabilities(
    values: np.ndarray, tree: np.ndarray, numbers: list[int], times: int, rng: np.random.Generator
) -> dict[int, float]:
    """Return how well the groups of each number are found again (mean adjusted Rand index).

    They are sought again on arms drawn anew, with replacement.
    """
    from sklearn.metrics import adjusted_rand_score

    first = {k: hierarchy.fcluster(tree, k, criterion="maxclust") for k in numbers}
    scores = {k: [] for k in numbers}
    for _ in range(min(times, 100)):
        drawn = values[:, rng.integers(values.shape[1], size=values.shape[1])]
        again = hierarchy.linkage(drawn, "ward")
        for k in numbers:
            partition = hierarchy.fcluster(again, k, criterion="maxclust")
            scores[k].append(adjusted_rand_score(first[k], partition))
    return {k: float(np.mean(values)) for k, values in scores.items()}
