"""The spots of a tumour divided into one, two, three clones by Leiden, at rising resolutions.

`histogep.cnv.clones` chooses among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import anndata
import numpy as np
import scanpy as sc
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture

#: Most neighbours of a spot in the graph that is divided. Components are few, often one: with 15 or 30
#: neighbours on a line the graph is a chain that falls apart anywhere, and halves of the genes at
#: other places.
_MOST_NEIGHBOURS = 100
#: Share of the points that are neighbours where there are few: enough that parts are recognised by the gap
#: between them, and a part of a fifth of the points keeps a gap.
_NEAR = 0.4
#: Points that the halves of the genes are compared on: what two halves agree about does not need more, and
#: their graphs are most of the cost of a large slide.
_MOST_HALVED = 1000
#: Resolutions that are tried, from one part to more than any tumour's clones.
_RESOLUTIONS = np.geomspace(0.02, 2, 21)


@dataclass(frozen=True)
class Division:
    """Spots in a number of parts.

    Attributes
    ----------
    partition
        Part of each spot, from 0.
    bic
        Bayesian information criterion of as many Gaussians of one shape, fitted from these parts;
        lower is better.
    stability
        Adjusted Rand index between the parts found on two halves of the genes, mean of several
        splits; 1 for one part.
    resolution
        Resolution of Leiden; NaN for one part.
    """

    partition: np.ndarray
    bic: float
    stability: float
    resolution: float = np.nan


def divide_spots(
    points: np.ndarray,
    halves: Sequence[Sequence[np.ndarray]],
    *,
    most: int,
    seed: int,
) -> dict[int, Division]:
    """Return the spots in the numbers of parts, 1 to `most`, that Leiden finds at some resolution.

    Resolutions rise by a quarter from .02 to 2; of those that give one number of parts the middle
    one stands for it. The halves of the genes are divided at that resolution; above 1,000 spots they are
    divided on 1,000 that are drawn, where as large a share of them are neighbours.

    Parameters
    ----------
    points
        Components of the profiles (spots by components).
    halves
        The same of each of two halves of the genes, for several splits.
    most
        Most parts.
    seed
        Seed of Leiden, and of the draw of spots.
    """
    near = count_neighbours(len(points))
    graph = join_neighbours(points, near)
    found: dict[int, list[tuple[float, np.ndarray]]] = {1: [(np.nan, np.zeros(len(points), int))]}
    for resolution in _RESOLUTIONS:
        partition = find_communities(graph, resolution=resolution, seed=seed)
        number = int(partition.max()) + 1
        if number > most:
            break
        if number > 1:
            found.setdefault(number, []).append((float(resolution), partition))
    drawn = np.arange(len(points))
    if len(points) > _MOST_HALVED:
        rng = np.random.default_rng(seed)
        drawn = np.sort(rng.choice(len(points), _MOST_HALVED, replace=False))
        near = round(near * _MOST_HALVED / len(points))
    graphs = [
        [join_neighbours(half[drawn], near) for half in pair] for pair in halves if len(found) > 1
    ]
    divisions = {}
    for number, candidates in sorted(found.items()):
        resolution, partition = candidates[len(candidates) // 2]
        stability = 1.0
        if number > 1:
            pairs = [
                [find_communities(half, resolution=resolution, seed=seed) for half in pair]
                for pair in graphs
            ]
            stability = float(np.mean([adjusted_rand_score(*pair) for pair in pairs]))
        bic = _weigh(points, partition, seed=seed)
        divisions[number] = Division(partition, bic, stability, resolution)
    return divisions


def count_neighbours(n_points: int) -> int:
    """Return how many points are neighbours of one: two fifths of them, 100 at most."""
    return max(2, min(_MOST_NEIGHBOURS, int(_NEAR * n_points)))


def join_neighbours(points: np.ndarray, near: int) -> anndata.AnnData:
    """Return the graph of each point and those nearest to it.

    Edges of `scanpy.pp.neighbors`, weighed by a Gaussian of each point's own width.

    Parameters
    ----------
    points
        Points by dimensions.
    near
        How many points are joined to one (`count_neighbours`).
    """
    graph = anndata.AnnData(X=np.asarray(points, np.float32))
    sc.pp.neighbors(
        graph,
        n_neighbors=max(2, near),
        use_rep="X",
        method="gauss",
        transformer="sklearn",  # exact, whatever the number of spots
    )
    return graph


def find_communities(graph: anndata.AnnData, *, resolution: float, seed: int) -> np.ndarray:
    """Return the communities of a graph by Leiden (Traag, Waltman and van Eck, 2019), from 0.

    Parameters
    ----------
    graph
        From `join_neighbours`.
    resolution
        The higher, the more communities.
    seed
        Seed of the order of the nodes.
    """
    sc.tl.leiden(
        graph,
        resolution=resolution,
        flavor="igraph",
        n_iterations=2,
        directed=False,
        random_state=seed,
    )
    return graph.obs["leiden"].cat.codes.to_numpy()


def _weigh(points: np.ndarray, partition: np.ndarray, *, seed: int) -> float:
    """Return the BIC of Gaussians that share one covariance, fitted from the parts' means."""
    means = np.array(
        [points[partition == part].mean(axis=0) for part in range(partition.max() + 1)]
    )
    mixture = GaussianMixture(
        len(means),
        covariance_type="tied",
        means_init=means,
        reg_covar=1e-6 * float(points.var()),
        random_state=seed,
    )
    return float(mixture.fit(points).bic(points))
