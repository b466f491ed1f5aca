import anndata
import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, pairwise_distances

from histogep.clone_divisions import (
    METHODS,
    divide_by_leiden,
    graph_communities,
    neighbour_graph,
)

SIZES = (40, 60, 30)


def _parts(*, apart, dimensions=2, seed=0):
    """Return points in three parts on a line or a plane, the part of each, and two noisy halves."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(len(SIZES)), SIZES)
    centres = apart * np.array([[0, 0], [1, 0], [2, 1.5]])[:, :dimensions]
    points, *halves = (centres[truth] + rng.normal(size=(len(truth), dimensions)) for _ in range(3))
    return points, truth, [halves]


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("dimensions", [1, 2])
def test_planted_parts_are_found_and_their_number_by_bic(method, dimensions):
    points, truth, halves = _parts(apart=7, dimensions=dimensions)
    found = METHODS[method](points, halves, most=5, seed=0)
    best = min(found, key=lambda k: found[k].bic)
    assert best == 3
    assert adjusted_rand_score(truth, found[3].partition) > 0.95
    assert found[3].stability > 0.95
    assert found[1].stability == 1
    assert not found[1].partition.any()
    assert max(found) <= 5


@pytest.mark.parametrize("method", sorted(METHODS))
def test_parts_of_one_cloud_have_a_worse_bic_or_no_stability(method):
    """Communities are cut from any graph: that they are there says nothing."""
    points, _, halves = _parts(apart=0)
    found = METHODS[method](points, halves, most=4, seed=0)
    assert any(k > 1 for k in found)
    for k, division in found.items():
        assert k == 1 or division.bic > found[1].bic or division.stability < 0.5


def test_the_bic_of_a_partition_is_on_the_scale_of_mixtures():
    points, truth, halves = _parts(apart=7)
    mixture, leiden = (
        METHODS[name](points, halves, most=3, seed=0) for name in sorted(METHODS)[::-1]
    )
    assert leiden[1].bic == pytest.approx(mixture[1].bic, abs=1e-6)
    assert leiden[3].bic == pytest.approx(mixture[3].bic, abs=1)
    assert np.isfinite(leiden[3].resolution)
    assert np.isnan(mixture[3].resolution)


def test_neighbours_are_shared_as_sets_say():
    points, _, _ = _parts(apart=3)
    graph = neighbour_graph(points, n_neighbours=12).toarray()
    nearest = [set(row[:12]) for row in np.argsort(pairwise_distances(points), axis=1)]
    for i, j in [(0, 1), (0, 100), (5, 39), (64, 65), (120, 129)]:
        jaccard = len(nearest[i] & nearest[j]) / len(nearest[i] | nearest[j])
        assert graph[i, j] == pytest.approx(jaccard)
        assert graph[j, i] == pytest.approx(jaccard)
    assert not graph.diagonal().any()


def test_communities_are_those_of_scanpy():
    scanpy = pytest.importorskip("scanpy")
    points, _, _ = _parts(apart=4)
    graph = neighbour_graph(points)
    for resolution in (0.1, 0.5, 1.0):
        cells = anndata.AnnData(np.zeros((len(points), 1), np.float32))
        scanpy.tl.leiden(
            cells,
            adjacency=graph,
            resolution=resolution,
            flavor="igraph",
            n_iterations=2,
            directed=False,
        )
        own = graph_communities(graph, resolution=resolution, seed=0)
        assert adjusted_rand_score(cells.obs["leiden"], own) > 0.9, resolution


def test_the_same_seed_gives_the_same_communities():
    points, _, halves = _parts(apart=2)
    first, second = (divide_by_leiden(points, halves, most=6, seed=3) for _ in range(2))
    assert list(first) == list(second)
    for k, division in first.items():
        np.testing.assert_array_equal(division.partition, second[k].partition)
        assert division.stability == second[k].stability
