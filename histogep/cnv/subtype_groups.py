"""Groups of the clones of a cohort, and how many there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.cluster import hierarchy
from scipy.spatial.distance import pdist, squareform

#: Without enough clones there is nothing to divide.
_FEWEST_CLONES = 4
#: Largest p of the silhouette of more than one subtype.
_LEVEL = 0.05


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


def weigh_profiles(values: np.ndarray, n_genes: np.ndarray) -> np.ndarray:
    """Return profiles that are proportional to the share of tumour, arms weighted by their genes.

    A share p of cells whose expression is f times that of the others gives a ratio of 1 + p (f - 1):
    so ratio minus 1, and not the log ratio, is proportional to p.

    Parameters
    ----------
    values
        Mean log ratio of arms in each clone (clones by arms).
    n_genes
        Genes of each arm: means of few genes are less certain.
    """
    return np.expm1(values.astype(np.float64)) * np.sqrt(n_genes / np.sum(n_genes))


def shape_profiles(profiles: np.ndarray) -> np.ndarray:
    """Return profiles divided by their lengths: what is left when the share of tumour is taken away.

    Squared distances of shapes are 2 - 2 times the cosine between profiles.

    Parameters
    ----------
    profiles
        Profiles in rows.
    """
    length = np.linalg.norm(profiles, axis=1, keepdims=True)
    return profiles / np.maximum(length, 1e-12)


def group_clones(
    profiles: np.ndarray,
    *,
    max_subtypes: int,
    min_silhouette: float,
    min_stability: float,
    permutations: int,
    seed: int,
) -> Groups:
    """Return the subtypes of clones by Ward's method, their number found from the data.

    Of the numbers whose silhouette is at least `min_silhouette` and above 95 % of the best ones of a
    cohort of one profile, that is taken whose groups are found again best when arms are drawn again
    (mean adjusted Rand index, at least `min_stability`). The cohort of one profile: each clone has
    its own amount of the mean profile (least squares), and what that leaves is shuffled, arm by
    arm, among the clones. So the shapes of clones of low purity, of which noise is
    a larger part, lie as far apart in the null as they do here.

    Parameters
    ----------
    profiles
        Ratio minus 1 of arms in each clone (clone by arm), as `weigh_profiles` gives them.
    max_subtypes
        Most subtypes tried.
    min_silhouette, min_stability
        Least silhouette, and least adjusted Rand index, of more than one subtype.
    permutations
        Number of shuffled cohorts, and of draws of the arms.
    seed
        Seed of both.
    """
    n, values = len(profiles), shape_profiles(profiles)
    if n < 2:
        return Groups(np.array(["S1"] * n, dtype=object), np.arange(n), [])
    tree = hierarchy.linkage(values, method="ward")
    order = hierarchy.leaves_list(tree)
    most = min(max_subtypes, n // 2)
    if n < _FEWEST_CLONES or most < 2:
        return Groups(np.array(["S1"] * n, dtype=object), order, [])
    silhouette = _silhouettes(values, tree, most)
    rng = np.random.default_rng(seed)
    mean = shape_profiles(profiles.mean(axis=0, keepdims=True))
    # A share of tumour is not negative.
    shared = np.maximum(profiles @ mean.T, 0.0) * mean
    rest = profiles - shared
    alike = (shape_profiles(shared + rng.permuted(rest, axis=0)) for _ in range(permutations))
    null = np.array([max(_silhouettes(shapes, None, most).values()) for shapes in alike])
    stability = _stabilities(values, tree, list(silhouette), permutations, rng)
    p = {k: float((1 + (null >= s).sum()) / (1 + len(null))) for k, s in silhouette.items()}
    fit = [k for k, s in silhouette.items() if s >= min_silhouette and p[k] <= _LEVEL]
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

    They are sought again on arms drawn again, with replacement.
    """
    from sklearn.metrics import adjusted_rand_score

    first = {k: hierarchy.fcluster(tree, k, criterion="maxclust") for k in numbers}
    scores: dict[int, list[float]] = {k: [] for k in numbers}
    for _ in range(min(times, 100)):
        drawn = values[:, rng.integers(values.shape[1], size=values.shape[1])]
        again = hierarchy.linkage(drawn, "ward")
        for k in numbers:
            partition = hierarchy.fcluster(again, k, criterion="maxclust")
            scores[k].append(adjusted_rand_score(first[k], partition))
    return {k: float(np.mean(values)) for k, values in scores.items()}
