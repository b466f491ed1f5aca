import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture

from histogep.mixtures import adjusted_rand, fit_mixture


def _points(n_dimensions, seed, *, distance=4.0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(3, n_dimensions)) * distance
    member = rng.choice(3, 240, p=[0.5, 0.3, 0.2])
    shape = rng.normal(size=(n_dimensions, n_dimensions)) / 2 + np.eye(n_dimensions)
    return centres[member] + rng.normal(size=(240, n_dimensions)) @ shape, member


@pytest.mark.parametrize("n_dimensions", [1, 2, 5])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_mixture_is_that_of_scikit_learn(n_dimensions, k):
    points, _ = _points(n_dimensions, seed=n_dimensions)
    theirs = GaussianMixture(
        k, covariance_type="tied", n_init=10, random_state=0, tol=1e-6, max_iter=1000
    ).fit(points)
    ours = fit_mixture(points, k, seed=0, n_starts=10, tolerance=1e-6, rounds=1000)
    assert ours.bic == pytest.approx(theirs.bic(points), rel=1e-4)
    order = np.argsort(theirs.means_[:, 0])
    np.testing.assert_allclose(ours.means, theirs.means_[order], atol=0.05)
    np.testing.assert_allclose(ours.probability, theirs.predict_proba(points)[:, order], atol=0.05)


def test_planted_parts_are_found_and_the_seed_decides():
    points, member = _points(3, seed=7)
    found = fit_mixture(points, 3, seed=1)
    assert adjusted_rand_score(member, found.partition) > 0.95
    assert found.bic < fit_mixture(points, 2, seed=1).bic < fit_mixture(points, 1, seed=1).bic
    again = fit_mixture(points, 3, seed=1)
    np.testing.assert_array_equal(found.probability, again.probability)
    assert (np.diff(found.means[:, 0]) > 0).all()


def test_points_all_alike_are_no_error():
    found = fit_mixture(np.zeros((20, 2)), 2, seed=0)
    assert np.isfinite(found.probability).all()


def test_the_rand_index_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    for n_parts in (1, 2, 5):
        first = rng.integers(n_parts, size=60)
        second = np.where(rng.random(60) < 0.7, first, rng.integers(3, size=60)).astype(str)
        expected = adjusted_rand_score(first, second)
        assert adjusted_rand(first, second) == pytest.approx(expected)
    assert adjusted_rand(np.zeros(5), np.zeros(5)) == 1.0
