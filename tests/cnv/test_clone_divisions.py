import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture

from histogep.cnv import clone_divisions
from histogep.cnv.clone_divisions import (
    count_neighbours,
    divide_spots,
    find_communities,
    join_neighbours,
)

SIZES = (40, 60, 30)


def _parts(*, apart, dimensions=2, seed=0, times=1):
    """Return points in three parts on a line or a plane, the part of each, and two noisy halves."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(len(SIZES)), np.array(SIZES) * times)
    centres = apart * np.array([[0, 0], [1, 0], [2, 1.5]])[:, :dimensions]
    points, *halves = (centres[truth] + rng.normal(size=(len(truth), dimensions)) for _ in range(3))
    return points, truth, [halves]


@pytest.mark.parametrize(("dimensions", "times"), [(1, 1), (2, 1), (1, 8)])
def test_planted_parts_are_found_and_their_number_by_bic(dimensions, times):
    points, truth, halves = _parts(apart=7, dimensions=dimensions, times=times)
    found = divide_spots(points, halves, most=5, seed=0)
    best = min(found, key=lambda k: found[k].bic)
    assert best == 3
    assert adjusted_rand_score(truth, found[3].partition) > 0.95
    assert found[3].stability > 0.95
    assert 0.02 <= found[3].resolution <= 2
    assert found[1].stability == 1
    assert not found[1].partition.any()
    assert max(found) <= 5


def test_parts_of_one_cloud_have_a_worse_bic_or_no_stability():
    """Communities are cut from any graph: that they are there says nothing."""
    points, _, halves = _parts(apart=0)
    found = divide_spots(points, halves, most=4, seed=0)
    assert any(k > 1 for k in found)
    for k, division in found.items():
        assert k == 1 or division.bic > found[1].bic or division.stability < 0.5


def test_the_bic_is_that_of_a_mixture_of_one_shape():
    points, _, halves = _parts(apart=7)
    found = divide_spots(points, halves, most=3, seed=0)
    for k in (1, 3):
        mixture = GaussianMixture(k, covariance_type="tied", n_init=5, random_state=1).fit(points)
        assert found[k].bic == pytest.approx(mixture.bic(points), abs=0.5)


def test_the_seed_decides_and_no_state_is_left_behind():
    points, _, _ = _parts(apart=2)
    near = count_neighbours(len(points))
    graph = join_neighbours(points, near)
    first = find_communities(graph, resolution=1, seed=1)
    np.random.seed(5)
    again = find_communities(join_neighbours(points, near), resolution=1, seed=1)
    np.testing.assert_array_equal(first, again)
    assert first.max() >= 1


@pytest.mark.parametrize(("times", "halved"), [(7, 910), (12, 1000)])
def test_the_halves_of_a_large_slide_are_compared_on_a_thousand_spots(monkeypatch, times, halved):
    joined = []

    def join(points, near):
        joined.append((len(points), near))
        return join_neighbours(points, near)

    monkeypatch.setattr(clone_divisions, "join_neighbours", join)
    points, truth, halves = _parts(apart=7, times=times)
    found = divide_spots(points, halves, most=4, seed=3)
    assert joined == [(len(points), 100), *[(halved, round(100 * halved / len(points)))] * 2]
    assert adjusted_rand_score(truth, found[3].partition) > 0.95
    assert found[3].stability > 0.95
