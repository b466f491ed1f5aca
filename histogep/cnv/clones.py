"""Clones of a tumour from its copy-number profiles, and the arms that each gained or lost."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from histogep.cnv.arms import PIECE_GENES, score_arms, shuffle_runs
from histogep.cnv.clone_borders import settle_borders
from histogep.cnv.clone_divisions import divide_spots
from histogep.cnv.profiles import LogRatios, group_weights

log = logging.getLogger(__name__)

REFERENCE = "reference"
UNASSIGNED = "unassigned"

#: Most components of the profiles that clones are told apart by.
_MAX_COMPONENTS = 8


@dataclass(frozen=True)
class Clones:
    """Which clone each spot belongs to.

    Attributes
    ----------
    labels
        Per spot "0", "1", ... (by size), "reference", or "unassigned" for spots that are neither
        malignant nor reference.
    table
        n_clones, bic, stability (adjusted Rand index between the clones called from two halves of
        the genes), smallest (spots), resolution (of Leiden), chosen; one row per number that was
        tried.
    n_components
        Components of the profiles that stand above the shuffled runs of genes.
    probability
        Per spot the posterior of its clone; 1 where there is but one, NaN without a clone.
    """

    labels: np.ndarray
    table: pd.DataFrame
    n_components: int
    probability: np.ndarray

    @property
    def names(self) -> list[str]:
        """Names of the clones."""
        kept = set(self.labels) - {REFERENCE, UNASSIGNED}
        return sorted(kept, key=int)


def call_clones(
    profiles: LogRatios,
    malignant: np.ndarray,
    *,
    neighbours: sparse.spmatrix | None = None,
    smoothing: float = 0.5,
    max_clones: int = 5,
    min_clone_spots: int = 10,
    min_stability: float = 0.5,
    n_shuffles: int = 20,
    n_halves: int = 5,
    seed: int = 0,
) -> Clones:
    """Return the clones of the malignant spots, their number found from the data; it may be 1.

    Profiles (means of neighbouring genes, in standard deviations of the reference spots) are
    smoothed over the lattice; what only follows the share of tumour in a spot, that is their
    projection on the mean malignant profile, is taken away. Of the principal components those
    are kept whose variance is above the largest of the same profiles made with short runs of
    genes in shuffled order: an expression programme is as strong there, whether its genes lie
    scattered or in clusters.
    On them the spots are divided by Leiden at rising resolutions (`histogep.cnv.clone_divisions`). Of the
    numbers of parts, 1 to `max_clones`, whose clones are found again when they are called twice,
    from two halves of the genes, that with the lowest BIC stands. On c components no more than
    c + 1 clones are sought: one more would lie between the others, as spots do that hold cells of
    two clones. Which spots belong to each is then settled on the profiles that were not smoothed
    (`histogep.cnv.clone_borders`).

    Parameters
    ----------
    profiles
        Profiles of the spots of one slide.
    malignant
        Mask of the spots to cluster.
    neighbours
        Adjacency of the spots on their lattice; no smoothing without it.
    smoothing
        Weight of the neighbours' mean, 0 to 1.
    max_clones, min_clone_spots
        Most clones tried, and fewest spots of a clone.
    min_stability
        Least adjusted Rand index between the two halves.
    n_shuffles, n_halves
        Number of shuffled gene orders and of splits of the genes.
    seed
        Seed of the shuffles, splits and divisions.
    """
    malignant = np.asarray(malignant, bool) & ~profiles.reference
    labels = np.where(profiles.reference, REFERENCE, UNASSIGNED).astype(object)
    n = int(malignant.sum())
    single = pd.DataFrame(
        {"n_clones": [1], "bic": [np.nan], "stability": [1.0], "smallest": [n], "chosen": [True]}
    )
    probability = np.where(malignant, 1.0, np.nan)
    if n == 0:
        return Clones(labels, single.iloc[:0], n_components=0, probability=probability)
    labels[malignant] = "0"
    if n < 2 * min_clone_spots or max_clones < 2:
        return Clones(labels, single, n_components=0, probability=probability)

    rng = np.random.default_rng(seed)
    smoother = _smoother(neighbours, malignant, smoothing)
    member = _bin_of_gene(profiles)

    def contrast(groups: np.ndarray) -> np.ndarray:
        return _contrast(profiles, groups, malignant, smoother)

    left, strength, _ = np.linalg.svd(contrast(member), full_matrices=False)
    # A run must be shorter than a bin, or bins would only change places.
    length = max(1, min(PIECE_GENES, round(len(member) / (member.max() + 1) / 4)))
    dealt = [member[shuffle_runs(len(member), rng, length=length)] for _ in range(n_shuffles)]
    null = [np.linalg.svd(contrast(groups), compute_uv=False)[0] for groups in dealt]
    n_components = int((strength[:_MAX_COMPONENTS] > max(null)).sum())
    log.info(
        "%d components stand above the shuffled runs of genes (%.3g); the strongest are %s",
        *(n_components, max(null), ", ".join(f"{value:.3g}" for value in strength[:4])),
    )
    if n_components == 0:
        return Clones(labels, single, n_components=0, probability=probability)

    halves = [_halves(member, rng) for _ in range(n_halves)]
    scores = [[_scores(contrast(half), n_components) for half in pair] for pair in halves]
    points = left[:, :n_components] * strength[:n_components]
    most = min(max_clones, n // min_clone_spots, n_components + 1)
    divisions = divide_spots(points, scores, most=most, seed=seed)
    rows = [
        (k, division.bic, division.stability, np.bincount(division.partition, minlength=k).min())
        for k, division in divisions.items()
    ]
    table = pd.DataFrame(rows, columns=["n_clones", "bic", "stability", "smallest"])
    table["resolution"] = [division.resolution for division in divisions.values()]
    fit = (table["stability"] >= min_stability) & (table["smallest"] >= min_clone_spots)
    fit |= table["n_clones"] == 1
    chosen = int(table.loc[table["bic"].where(fit).idxmin(), "n_clones"])
    table["chosen"] = table["n_clones"] == chosen
    borders = settle_borders(
        _standardised(profiles, member)[malignant],
        divisions[chosen].partition,
        neighbours=None if neighbours is None else neighbours.tocsr()[malignant][:, malignant],
        min_spots=min_clone_spots,
    )
    labels[malignant] = _by_size(borders.partition)
    probability[malignant] = borders.probability
    return Clones(labels, table, n_components=n_components, probability=probability)


def call_arms(
    profiles: LogRatios,
    labels: Sequence[str] | np.ndarray,
    *,
    min_z: float = 3.5,
    min_arm_genes: int = 15,
    n_blocks: int = 200,
    neighbours: sparse.spmatrix | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the mean log ratio of each arm in each clone, and whether it is gained or lost.

    An arm is called when its value is beyond `min_z` standard deviations of two distributions:
    `z`, the same arm's mean in groups of reference spots (patches of neighbours as large as the
    clone, or as a quarter of the reference, where the lattice is known); and `z_order`, its score
    without its strongest genes where runs of neighbouring genes are dealt over the genome
    (`histogep.cnv.arms.score_arms`). The first knows how an arm varies in normal tissue, the
    second how far a tumour's expression programme carries a set of genes anywhere.

    Parameters
    ----------
    profiles
        Profiles of the spots.
    labels
        Clone of each spot, as `Clones.labels`.
    min_z
        Least absolute z of a call, in both senses.
    min_arm_genes
        Arms with fewer genes are left out.
    n_blocks
        Number of groups of reference spots, and of dealings of the genome.
    neighbours
        Adjacency of the spots on their lattice.
    seed
        Seed of the groups.

    Returns
    -------
    pandas.DataFrame
        clone, arm, value, n_genes, n_spots, call ("gain", "loss", "neutral"), z, z_order.
    """
    labels = np.asarray(labels, dtype=object)
    columns = ["clone", "arm", "value", "n_genes", "n_spots", "call", "z", "z_order"]
    arms = profiles.arm_table
    kept = np.flatnonzero(arms["n_genes"] >= min_arm_genes)
    normal = profiles.arms[profiles.reference].mean(axis=0)
    genes_normal = profiles.gene_means(profiles.reference)
    tables = []
    for clone in sorted(set(labels) - {REFERENCE, UNASSIGNED}, key=int):
        spots = np.flatnonzero(labels == clone)
        value = (profiles.arms[spots].mean(axis=0) - normal)[kept]
        groups = _reference_groups(profiles.reference, len(spots), neighbours, n_blocks, seed)
        spread = np.std([profiles.arms[g].mean(axis=0) - normal for g in groups], axis=0)[kept]
        # An arm's own spread is known badly from few spots: half of it is the genome's.
        spread = np.sqrt((spread**2 + np.median(spread) ** 2) / 2)
        scores = score_arms(
            profiles.gene_means(spots) - genes_normal,
            profiles.genes["level"].to_numpy(),
            profiles.genes["arm"],
            min_arm_genes=min_arm_genes,
            permutations=n_blocks,
            seed=seed,
        ).table.set_index("arm")
        table = pd.DataFrame(
            {
                "clone": clone,
                "arm": arms["arm"].to_numpy()[kept],
                "value": value,
                "n_genes": arms["n_genes"].to_numpy()[kept],
                "n_spots": len(spots),
                "z": value / np.maximum(spread, 1e-9),
                "z_order": scores["z"].reindex(arms["arm"].to_numpy()[kept]).to_numpy(),
            }
        )
        both = np.minimum(table["z"].abs(), table["z_order"].abs()) >= min_z
        # The mean of an arm may be carried one way by few genes and the rest of it the other way.
        both &= np.sign(table["z"]) == np.sign(table["z_order"])
        sign = np.where(table["value"] > 0, "gain", "loss")
        table["call"] = np.where(both, sign, "neutral")
        tables.append(table)
    if not tables:
        return pd.DataFrame(columns=columns)
    return pd.concat(tables, ignore_index=True)[columns]


def measure_distances(profiles: LogRatios, labels: Sequence[str] | np.ndarray) -> pd.DataFrame:
    """Return how far the clones of a slide, and the reference, lie from each other.

    Root mean square difference of their mean bins, each weighted by its genes.

    Parameters
    ----------
    profiles
        Profiles of the spots.
    labels
        Clone of each spot, as `Clones.labels`.

    Returns
    -------
    pandas.DataFrame
        Symmetric, rows and columns "reference", "0", "1", ...
    """
    labels = np.asarray(labels, dtype=object)
    names = [REFERENCE, *sorted(set(labels) - {REFERENCE, UNASSIGNED}, key=int)]
    means = np.array([profiles.bins[labels == name].mean(axis=0) for name in names], np.float64)
    share = profiles.bin_table["n_genes"].to_numpy() / profiles.bin_table["n_genes"].sum()
    squares = ((means[:, np.newaxis] - means[np.newaxis]) ** 2 * share).sum(axis=2)
    return pd.DataFrame(np.sqrt(squares), index=names, columns=names)


def join_clones(distances: pd.DataFrame) -> str:
    """Return the tree of clones by average linkage (UPGMA) as Newick text.

    It says which clones are alike, not which came first: expression knows no order of events.

    Parameters
    ----------
    distances
        As `measure_distances` gives them.
    """
    names = list(distances.index)
    if len(names) < 2:
        return f"{''.join(names)};"
    linkage = hierarchy.linkage(squareform(distances.to_numpy(), checks=False), method="average")
    # Height of each node; a branch is as long as the step from its node to the next one above.
    nodes = [(name, 0.0) for name in names]
    for first, second, height, _ in linkage:
        (left, low), (right, other) = nodes[int(first)], nodes[int(second)]
        text = f"({left}:{(height - low) / 2:.6g},{right}:{(height - other) / 2:.6g})"
        nodes.append((text, height))
    return f"{nodes[-1][0]};"


def _bin_of_gene(profiles: LogRatios) -> np.ndarray:
    """Return the bin of each gene: genes lie in the order of the bins within their arms."""
    genes, table = profiles.genes, profiles.bin_table
    member = np.empty(len(genes), int)
    arm = genes["arm"].to_numpy()
    for name, bins in table.groupby("arm", sort=False):
        member[arm == name] = np.repeat(bins.index.to_numpy(), bins["n_genes"].to_numpy())
    return member


def _smoother(
    neighbours: sparse.spmatrix | None, malignant: np.ndarray, weight: float
) -> sparse.csr_matrix | None:
    """Return the matrix that blends each malignant spot with its malignant neighbours."""
    if neighbours is None or weight <= 0:
        return None
    near = neighbours.tocsr()[malignant][:, malignant].astype(np.float32)
    degree = np.asarray(near.sum(axis=1)).ravel()
    share = np.where(degree > 0, weight, 0.0)
    blend = sparse.diags(share / np.maximum(degree, 1)) @ near
    return (blend + sparse.diags(1 - share)).tocsr().astype(np.float32)


def _standardised(profiles: LogRatios, groups: np.ndarray) -> np.ndarray:
    """Return means over groups of genes, in standard deviations from the reference's mean."""
    means = profiles.average(group_weights(groups, len(profiles.bin_table)))
    means -= np.median(means, axis=1, keepdims=True)
    normal = means[profiles.reference]
    spread = normal.std(axis=0)
    # A bin's own spread is known badly from few spots: half of it is the genome's.
    spread = np.sqrt((spread**2 + np.median(spread) ** 2) / 2)
    return (means - normal.mean(axis=0)) / np.maximum(spread, 1e-9)


def _contrast(
    profiles: LogRatios,
    groups: np.ndarray,
    malignant: np.ndarray,
    smoother: sparse.csr_matrix | None,
) -> np.ndarray:
    """Return what tells malignant spots apart in the means over groups of genes."""
    values = _standardised(profiles, groups)[malignant]
    if smoother is not None:
        values = smoother @ values
    shared = values.mean(axis=0)
    purity = values @ shared / max(float(shared @ shared), 1e-12)
    values = values - np.outer(purity, shared)
    return values - values.mean(axis=0)


def _scores(values: np.ndarray, n_components: int) -> np.ndarray:
    left, strength, _ = np.linalg.svd(values, full_matrices=False)
    return left[:, :n_components] * strength[:n_components]


def _halves(member: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return two groupings: each bin's genes dealt at random to one half or the other."""
    order = np.lexsort((rng.random(len(member)), member))
    first = np.zeros(len(member), bool)
    bounds = np.searchsorted(member[order], np.arange(member.max() + 2))
    for start, stop in pairwise(bounds):
        first[order[start:stop:2]] = True
    return np.where(first, member, -1), np.where(first, -1, member)


def _by_size(partition: np.ndarray) -> np.ndarray:
    """Return the parts named "0", "1", ... from the largest to the smallest."""
    order = np.argsort(-np.bincount(partition), kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return rank[partition].astype(str).astype(object)


def _reference_groups(
    reference: np.ndarray,
    size: int,
    neighbours: sparse.spmatrix | None,
    n_groups: int,
    seed: int,
) -> list[np.ndarray]:
    """Return groups of reference spots: patches grown on the lattice, or random without one."""
    spots = np.flatnonzero(reference)
    size = max(1, min(size, len(spots) // 4))
    rng = np.random.default_rng(seed)
    if neighbours is None:
        return [rng.choice(spots, size, replace=False) for _ in range(n_groups)]
    near = neighbours.tocsr()[spots][:, spots]
    groups = []
    for _ in range(n_groups):
        patch = [int(rng.integers(len(spots)))]
        seen, at = set(patch), 0
        while len(patch) < size:
            if at == len(patch):  # the piece of tissue is used up: go on in another
                rest = [i for i in range(len(spots)) if i not in seen]
                found = [rest[int(rng.integers(len(rest)))]]
            else:
                found = near.indices[near.indptr[patch[at]] : near.indptr[patch[at] + 1]]
                at += 1
            for spot in found:
                if int(spot) not in seen and len(patch) < size:
                    seen.add(int(spot))
                    patch.append(int(spot))
        groups.append(spots[patch])
    return groups
