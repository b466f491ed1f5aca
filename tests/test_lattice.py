from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree

from histogep.errors import InputError
from histogep.lattice import Lattice

HEX = Lattice("visium", 100, 112)
SQUARE = Lattice("st", 200, 112)


def _scattered(lattice, seed=0, share=0.7):
    row, col = lattice.cover(2000, 1800)
    rng = np.random.default_rng(seed)
    kept = rng.permutation(np.flatnonzero(rng.random(len(row)) < share))
    return row[kept], col[kept]


@pytest.mark.parametrize(("lattice", "reach"), [(HEX, 1.01), (SQUARE, 1.42)])
def test_neighbours_are_the_cells_within_reach(lattice, reach):
    row, col = _scattered(lattice)
    points = np.column_stack(lattice.centres_um(row, col))
    pairs = cKDTree(points).query_pairs(lattice.pitch_um * reach, output_type="ndarray")
    expected = np.zeros((len(row), len(row)), bool)
    expected[pairs[:, 0], pairs[:, 1]] = expected[pairs[:, 1], pairs[:, 0]] = True
    found = lattice.neighbours(row, col)
    assert found.dtype == bool
    np.testing.assert_array_equal(found.toarray(), expected)


def test_an_inner_cell_has_six_or_eight_neighbours():
    for lattice, n in ((HEX, 6), (SQUARE, 8)):
        row, col = lattice.cover(3000, 3000)
        assert lattice.neighbours(row, col).sum(1).max() == n


def test_neighbours_of_no_cells_and_of_repeated_cells():
    assert HEX.neighbours([], []).shape == (0, 0)
    with pytest.raises(ValueError, match="twice"):
        HEX.neighbours([1, 1], [2, 2])


def test_visium_geometry_is_that_of_space_ranger():
    # array_row, array_col of Space Ranger: x = array_col * 50 um, y = array_row * 86.6 um.
    array_row = np.repeat(np.arange(78), 64)
    array_col = np.tile(np.arange(64), 78) * 2 + array_row % 2
    x_um, y_um = HEX.centres_um(array_row, array_col // 2)
    np.testing.assert_allclose(x_um - x_um[0], array_col * 50.0)
    np.testing.assert_allclose(y_um - y_um[0], array_row * 86.60254, rtol=1e-6)


@pytest.mark.parametrize("lattice", [HEX, SQUARE])
@pytest.mark.parametrize("size", [(0, 0), (40, 900), (51, 51), (1000, 1000), (733.3, 1210.7)])
def test_cover_has_all_centres_inside_and_no_other(lattice, size):
    row, col = np.indices((60, 60)).reshape(2, -1)
    x_um, y_um = lattice.centres_um(row, col)
    inside = (x_um < size[0]) & (y_um < size[1])
    found = lattice.cover(*size)
    assert found[0].dtype == found[1].dtype == np.int32
    np.testing.assert_array_equal(found, [row[inside], col[inside]])


@pytest.mark.parametrize(("lattice", "n"), [(HEX, 12), (SQUARE, 8)])
def test_symmetries_keep_all_distances(lattice, n):
    row, col = _scattered(lattice, share=0.2)
    points = np.column_stack(lattice.centres_um(row, col))
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    seen = set()
    for symmetry in lattice.symmetries():
        new_row, new_col = lattice.transform(row, col, symmetry)
        assert new_row.min() >= 0
        assert new_col.min() == 0
        moved = np.column_stack(lattice.centres_um(new_row, new_col))
        found = np.linalg.norm(moved[:, None] - moved[None], axis=2)
        np.testing.assert_allclose(found, distances, atol=1e-8)
        seen.add((new_row.tobytes(), new_col.tobytes()))
    assert len(seen) == len(lattice.symmetries()) == n


def test_settings_go_round_and_mistakes_are_named():
    assert Lattice.from_settings(HEX.to_settings()) == HEX
    with pytest.raises(InputError, match="kind"):
        Lattice("hex", 100, 112)
    with pytest.raises(InputError, match="pitch_um"):
        Lattice("st", 0, 112)
    with pytest.raises(InputError, match="pitch_mm"):
        Lattice.from_settings({"kind": "st", "pitch_mm": 1})
