from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import label
from skimage.morphology import remove_small_holes, remove_small_objects

from histogep import bitmask
from histogep.bitmask import BitMask, Pieces, Window, windows


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(bitmask, "WINDOW_PX", 32)


def _blobs(seed, shape=(131, 203), sigma=2.0):
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    return field > 0.1 * field.std()


def _whole(mask):
    return mask.read(Window(0, mask.shape[0], 0, mask.shape[1]))


def test_bits_are_the_array_they_were_made_of():
    array = _blobs(0)
    mask = BitMask.of(array)
    np.testing.assert_array_equal(_whole(mask), array)
    np.testing.assert_array_equal(mask.read(Window(3, 77, 13, 201)), array[3:77, 13:201])
    assert mask.count() == array.sum()
    rows, cols = np.random.default_rng(1).integers(0, (131, 203), (500, 2)).T
    np.testing.assert_array_equal(mask.at(rows, cols), array[rows, cols])
    for step in (1, 2, 7):
        np.testing.assert_array_equal(mask.every(step), array[::step, ::step])
    again = BitMask(array.shape)
    for window in windows(array.shape):
        again.write(window, array[window.top : window.bottom, window.left : window.right])
    np.testing.assert_array_equal(_whole(again), array)
    with pytest.raises(ValueError, match="whole bytes"):
        again.write(Window(0, 8, 4, 12), np.ones((8, 8), bool))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sigma", [0.7, 2.0])
@pytest.mark.parametrize("diagonal", [False, True])
def test_pieces_cross_windows_as_scikit_image_labels_the_whole(seed, sigma, diagonal):
    array = _blobs(seed, sigma=sigma)
    mask = BitMask.of(array)
    expected = label(array, connectivity=2 if diagonal else 1)
    pieces = Pieces(mask, diagonal=diagonal)
    assert len(pieces) == expected.max()
    assert sorted(pieces.area) == [0, *sorted(np.bincount(expected.ravel())[1:])]
    values = np.random.default_rng(seed).random(array.shape)

    def part(window):
        return values[window.top : window.bottom, window.left : window.right]

    means = ndimage.mean(values, expected, np.arange(1, expected.max() + 1))
    found = pieces.mean(part)
    np.testing.assert_allclose(np.sort(found[pieces.area > 0]), np.sort(means))
    pieces.keep(pieces.area > 60)
    np.testing.assert_array_equal(
        _whole(mask), remove_small_objects(array, max_size=60, connectivity=2 if diagonal else 1)
    )


@pytest.mark.parametrize("seed", range(3))
def test_small_holes_are_filled_as_scikit_image_does(seed):
    array = ~_blobs(seed, sigma=1.0)
    mask = BitMask.of(array)
    holes = Pieces(mask, holes=True)
    holes.keep(holes.area > 25)
    np.testing.assert_array_equal(_whole(mask), remove_small_holes(array, max_size=25))


def test_masks_without_pieces():
    for array in (np.zeros((70, 70), bool), np.ones((70, 70), bool)):
        mask = BitMask.of(array)
        for holes in (False, True):
            pieces = Pieces(mask, holes=holes)
            assert len(pieces) == int(array.any() != holes)
            pieces.keep(pieces.area > 1)
            np.testing.assert_array_equal(_whole(mask), array)
