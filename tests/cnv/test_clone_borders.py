import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from histogep.cnv.clone_borders import settle_borders
from histogep.lattice import Lattice

N_ROWS, N_COLS, N_BINS = 16, 12, 80


def _section(*, noise, seed=0):
    """Return profiles of spots whose two clones meet in the middle, their clone and neighbours.

    Every spot holds tumour and lymphocytes; those of the two columns at the border hold both
    clones.
    """
    rng = np.random.default_rng(seed)
    row, col = np.divmod(np.arange(N_ROWS * N_COLS), N_COLS)
    shared, first, second = rng.normal(size=(3, N_BINS)) * (rng.random((3, N_BINS)) < 0.3)
    border = N_COLS / 3
    part = np.clip((col + 0.5 - border) / 2 + 0.5 + rng.uniform(-0.1, 0.1, len(row)), 0, 1)
    tumour = rng.uniform(0.4, 1.0, len(row))[:, np.newaxis]
    mixed = (1 - part)[:, np.newaxis] * (shared + first) + part[:, np.newaxis] * (shared + second)
    values = 2 * tumour * mixed + rng.normal(0, noise, (len(row), N_BINS))
    neighbours = Lattice("visium").neighbours(row, col)
    return values, (part > 0.5).astype(int), neighbours, col


@pytest.fixture(scope="module")
def section():
    return _section(noise=1.0)


def _blurred(truth, neighbours, *, least=0.1):
    """Return a start with a border one spot off, as smoothing gives where clones are unequal."""
    near = np.asarray(neighbours @ truth) / np.asarray(neighbours.sum(axis=1)).ravel()
    return ((truth + near) > least).astype(int)


def test_a_blurred_border_is_found_again(section):
    values, truth, neighbours, _ = section
    start = _blurred(truth, neighbours)
    assert adjusted_rand_score(truth, start) < 0.8
    found = settle_borders(values, start, neighbours=neighbours)
    assert adjusted_rand_score(truth, found.partition) > 0.95
    assert found.coupling > 0.3
    wrong = found.partition != truth
    assert found.probability[~wrong].mean() > 0.95
    if wrong.any():
        assert found.probability[wrong].mean() < found.probability[~wrong].mean()


def test_neighbours_help_where_spots_are_shallow():
    values, truth, neighbours, _ = _section(noise=3.0, seed=3)
    start = _blurred(truth, neighbours, least=0.25)
    alone = settle_borders(values, start)
    together = settle_borders(values, start, neighbours=neighbours)
    assert alone.coupling == 0
    scores = [adjusted_rand_score(truth, found.partition) for found in (alone, together)]
    assert scores[1] > scores[0] + 0.2
    assert scores[1] > 0.7


def test_shuffled_neighbours_are_given_no_weight(section):
    values, truth, neighbours, _ = section
    shuffled = np.random.default_rng(1).permutation(len(truth))
    found = settle_borders(values, truth, neighbours=neighbours[shuffled][:, shuffled])
    assert found.coupling < 0.3
    assert adjusted_rand_score(truth, found.partition) > 0.9


def test_a_clone_that_would_vanish_keeps_its_spots(section):
    values, truth, neighbours, _ = section
    start = np.zeros_like(truth)
    start[:3] = 1
    found = settle_borders(values[truth == 0][:40], start[:40], min_spots=20)
    np.testing.assert_array_equal(found.partition, start[:40])
    single = settle_borders(values, np.zeros_like(truth), neighbours=neighbours)
    assert not single.partition.any()
    assert (single.probability == 1).all()
