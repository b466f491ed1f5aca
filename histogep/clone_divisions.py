"""The spots of a tumour divided into one, two, three clones: by Gaussian mixtures or by Leiden.

Either method is tried on all spots and on the profiles of two halves of the genes, and judged by
the same two numbers; `histogep.clones` chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from histogep.mixtures import adjusted_rand, fit_mixture, mixture_bic

#: Neighbours of a spot in the graph that Leiden divides.
_N_NEIGHBOURS = 30
#: Resolutions of Leiden that are tried, from one part to more than any tumour's clones.
_RESOLUTIONS = np.geomspace(0.02, 2, 21)


@dataclass(frozen=True)
class Division:
    """Spots in a number of parts.

    Attributes
    ----------
    partition
        Part of each spot, from 0.
    bic
        Bayesian information criterion of Gaussians of one shape on these parts; lower is better.
    stability
        Adjusted Rand index between the parts found on two halves of the genes, mean of several
        splits; 1 for one part.
    resolution
        Resolution of Leiden; NaN of a mixture.
    """

    partition: np.ndarray
    bic: float
    stability: float
    resolution: float = np.nan


def divide_by_mixtures(
    points: np.ndarray,
    halves: Sequence[Sequence[np.ndarray]],
    *,
    most: int,
    seed: int,
) -> dict[int, Division]:
    """Return the spots in 1 to `most` parts by Gaussian mixtures of one shape.

    Parameters
    ----------
    points
        Components of the profiles (spots by components).
    halves
        The same of each of two halves of the genes, for several splits.
    most
        Most parts.
    seed
        Seed of the mixtures' starts.
    """

    def fit(values: np.ndarray, k: int) -> tuple[np.ndarray, float]:
        found = fit_mixture(values, k, seed=seed, ridge=_ridge(values))
        return found.partition, found.bic

    divisions = {}
    for k in range(1, most + 1):
        partition, bic = fit(points, k)
        pairs = [[fit(half, k)[0] for half in pair] for pair in halves] if k > 1 else []
        divisions[k] = Division(partition, bic, _stability(pairs))
    return divisions


def divide_by_leiden(
    points: np.ndarray,
    halves: Sequence[Sequence[np.ndarray]],
    *,
    most: int,
    seed: int,
) -> dict[int, Division]:
    """Return the spots in the numbers of parts, 1 to `most`, that Leiden finds at some resolution.

    The graph (`neighbour_graph`) joins spots that share neighbours on the components; its
    communities are igraph's (`graph_communities`). Resolutions rise by a quarter from .02 to 2; of
    those that give one number of parts the middle one stands for it. The halves of the genes are
    divided at that resolution.

    Parameters
    ----------
    points, halves, most
        As `divide_by_mixtures` takes them.
    seed
        Seed of Leiden.
    """
    graph = neighbour_graph(points)
    found: dict[int, list[tuple[float, np.ndarray]]] = {1: [(0.0, np.zeros(len(points), int))]}
    for resolution in _RESOLUTIONS:
        partition = graph_communities(graph, resolution=resolution, seed=seed)
        found.setdefault(int(partition.max()) + 1, []).append((float(resolution), partition))
    graphs = [[neighbour_graph(half) for half in pair] for pair in halves]
    divisions = {}
    for k in sorted(k for k in found if k <= most):
        resolution, partition = found[k][len(found[k]) // 2]
        pairs = [
            [graph_communities(half, resolution=resolution, seed=seed) for half in pair]
            for pair in (graphs if k > 1 else [])
        ]
        bic = mixture_bic(points, partition, ridge=_ridge(points))
        divisions[k] = Division(partition, bic, _stability(pairs), resolution)
    return divisions


#: What `cnv.clone_method` names.
METHODS = {"mixture": divide_by_mixtures, "leiden": divide_by_leiden}


def neighbour_graph(points: np.ndarray, *, n_neighbours: int = _N_NEIGHBOURS) -> sparse.csr_matrix:
    """Return how many of their nearest points two points share (points by points, symmetric).

    Jaccard index of the two sets, a point itself in its own: the graph of PhenoGraph (Levine et
    al., Cell 2015). Components are few here, often one; on them the distances to 15 neighbours, by
    which scanpy weighs its graph, make a chain that falls apart anywhere, and shared neighbours
    do not.

    Parameters
    ----------
    points
        Points by dimensions.
    n_neighbours
        Size of a set; no more than a quarter of the points.
    """
    from scipy.spatial import cKDTree

    n = len(points)
    size = max(2, min(n_neighbours, n // 4))
    _, index = cKDTree(points).query(points, size)
    rows = np.repeat(np.arange(n), size)
    member = sparse.csr_matrix((np.ones(n * size), (rows, index.ravel())), shape=(n, n))
    shared = (member @ member.T).tocoo()
    apart = shared.row != shared.col
    row, col, both = shared.row[apart], shared.col[apart], shared.data[apart]
    return sparse.csr_matrix((both / (2 * size - both), (row, col)), shape=(n, n))


def graph_communities(graph: sparse.spmatrix, *, resolution: float, seed: int) -> np.ndarray:
    """Return the communities of a graph by Leiden (Traag, Waltman and van Eck, 2019).

    igraph's, of weighted modularity, two iterations: what scanpy's `flavor="igraph"` calls.

    Parameters
    ----------
    graph
        Symmetric weights.
    resolution
        The higher, the more communities.
    seed
        Seed of the order of the nodes.
    """
    import random

    import igraph

    edges = sparse.triu(graph, 1).tocoo()
    network = igraph.Graph(n=graph.shape[0], edges=np.column_stack([edges.row, edges.col]))
    igraph.set_random_number_generator(random.Random(seed))
    try:
        found = network.community_leiden(
            objective_function="modularity",
            weights=edges.data.tolist(),
            resolution=resolution,
            n_iterations=2,
        )
    finally:
        igraph.set_random_number_generator(random)
    return np.asarray(found.membership)


def _ridge(points: np.ndarray) -> float:
    return 1e-6 * float(points.var())


def _stability(pairs: Sequence[Sequence[np.ndarray]]) -> float:
    return float(np.mean([adjusted_rand(*pair) for pair in pairs])) if pairs else 1.0
