from __future__ import annotations

import numpy as np
import pytest
from skimage.color import rgb2hed
from skimage.draw import disk
from skimage.feature import graycomatrix, graycoprops

from histogep.encoders.descriptors import (
    DESCRIPTOR_NAMES,
    GLCM_LEVELS,
    GLCM_STEP_PX,
    describe_tiles,
)

EOSIN, NUCLEUS = (235, 170, 200), (70, 50, 120)


def _tiles(n=3, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(60, 255, (n, 56, 56, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    return coarse


def _named(tiles):
    return dict(zip(DESCRIPTOR_NAMES, describe_tiles(tiles).T, strict=True))


def _tile_with_nuclei(n, radius=7):
    tile = np.full((224, 224, 3), EOSIN, np.uint8)
    for place in range(n):
        row, col = divmod(place, 7)
        tile[disk((20 + 30 * row, 20 + 30 * col), radius)] = NUCLEUS
    return tile


def test_there_are_35_with_names_of_their_own():
    assert len(DESCRIPTOR_NAMES) == len(set(DESCRIPTOR_NAMES)) == 35
    assert describe_tiles(_tiles()).shape == (3, 35)
    assert describe_tiles(_tiles()[:0]).shape == (0, 35)


def test_a_tile_has_the_same_values_in_any_batch():
    tiles = np.concatenate([_tiles(), [_tile_with_nuclei(9)]])
    together = describe_tiles(tiles)
    alone = np.concatenate([describe_tiles(tile[None]) for tile in tiles])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-5)
    assert together.dtype == np.float32


def test_stains_are_those_of_skimage():
    tiles = _tiles()
    found = _named(tiles)
    # Blocks of 4 px are unchanged by the halving to 1 um per px.
    halved = tiles[:, ::2, ::2]
    for place, tile in enumerate(halved):
        # skimage takes log(rgb) / log(1e-6); ours is the natural logarithm. It also cuts at 0.
        stains = rgb2hed(tile) * -np.log(1e-6)
        for channel, stain in enumerate(("haematoxylin", "eosin", "residual")):
            expected = np.percentile(stains[..., channel], 90)
            assert found[f"{stain}_p90"][place] == pytest.approx(expected, abs=0.02)


def test_cooccurrence_is_that_of_skimage():
    tiles = _tiles()
    found = _named(tiles)
    grey = tiles[:, ::2, ::2] @ np.array([0.299, 0.587, 0.114], np.float32)
    for place, image in enumerate(grey):
        levels = (image * (GLCM_LEVELS / 256)).astype(np.uint8)
        # Counts of both directions are pooled before they are normalised.
        matrix = graycomatrix(
            levels, [GLCM_STEP_PX], [0, np.pi / 2], levels=GLCM_LEVELS, symmetric=True
        ).sum(axis=3, keepdims=True)
        for name in ("contrast", "homogeneity", "energy", "correlation"):
            expected = graycoprops(matrix / matrix.sum(), name)[0, 0]
            assert found[f"glcm_{name}"][place] == pytest.approx(expected, rel=1e-4), name


@pytest.mark.parametrize("n", [1, 12, 40])
def test_nuclei_are_counted_and_measured(n):
    found = _named(np.stack([_tile_with_nuclei(n), _tile_with_nuclei(0)]))
    np.testing.assert_array_equal(found["nuclei_count"], [n, 0])
    # A radius of 3.5 um: 38.5 um2; smoothing adds a rim of at most 1 um.
    assert 38.5 <= found["nuclei_area"][0] <= np.pi * 4.5**2
    assert found["nuclei_share"][0] == pytest.approx(n * found["nuclei_area"][0] / 112**2, rel=0.01)
    assert found["nuclei_density"][0] > found["haematoxylin_mean"][0]


def test_nuclei_at_the_rims_of_two_tiles_are_two():
    tiles = np.full((2, 224, 224, 3), EOSIN, np.uint8)
    tiles[0, -12:, 100:112] = NUCLEUS
    tiles[1, :12, 100:112] = NUCLEUS
    np.testing.assert_array_equal(_named(tiles)["nuclei_count"], [1, 1])


def test_white_and_uniform_tiles_are_finite():
    tiles = np.stack([np.full((224, 224, 3), level, np.uint8) for level in (255, 0, 128)])
    values = describe_tiles(tiles)
    assert np.isfinite(values).all()
    found = _named(tiles)
    np.testing.assert_array_equal(found["white_share"], [1, 0, 0])
    np.testing.assert_allclose(found["haematoxylin_mean"][0], 0, atol=1e-6)
    np.testing.assert_allclose(found["laplacian_1"], 0, atol=1e-4)


def test_blur_lowers_the_finest_energy_most():
    sharp = _tiles(1, seed=3)
    blurred = np.roll(sharp, 1, 1) // 2 + sharp // 2
    both = _named(np.concatenate([sharp, blurred]))
    loss = {scale: np.diff(both[f"laplacian_{scale}"])[0] for scale in (1, 4)}
    assert loss[1] < loss[4] < 0.05


def test_wrong_tiles_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        describe_tiles(np.zeros((1, 224, 224, 3), np.float32))
    with pytest.raises(ValueError, match="sides"):
        describe_tiles(np.zeros((1, 225, 225, 3), np.uint8))
