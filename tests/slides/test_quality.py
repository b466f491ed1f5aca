from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import pyvips
from skimage.color import hed2rgb, rgb2hed

from histogep.lattice import Lattice
from histogep.report.figures.slides import draw_tiles
from histogep.slides.quality import mean_stains, measure_quality, summarise_quality
from histogep.slides.reader import Slide
from histogep.slides.tiles import lattice_tiles
from histogep.slides.tissue import TissueMask

LATTICE = Lattice("visium", 100, 112)


def test_sharpness_tells_focus_from_blur(made):
    slide, _ = made
    tiles = pd.DataFrame({"x_px": [300.0, 1700.0], "y_px": [300.0, 1100.0]})
    sharp, blurred = measure_quality(slide, tiles, tile_um=112)["blur"]
    assert sharp > 100 * blurred
    assert blurred < 20


def test_a_fold_is_tissue_that_light_goes_through_twice(tmp_path):
    """At 1 um per px: tissue, a fold of it 60 um wide, nuclei as dark as the fold, and glass."""
    rng = np.random.default_rng(0)
    passed = np.array([0.75, 0.5, 0.68]) * np.ones((600, 900, 1)) + rng.normal(
        0, 0.02, (600, 900, 1)
    )
    passed[:, 300:360] **= 2
    nuclei = rng.integers(5, 580, (60, 2))
    for y, x in nuclei:
        passed[y : y + 5, x // 3 : x // 3 + 5] = 0.2
    passed[:, 700:] = 0.95
    path = tmp_path / "slide.tiff"
    pixels = (passed * 255).clip(0, 255).astype(np.uint8)
    pyvips.Image.new_from_array(pixels).tiffsave(str(path), tile=True, compression="deflate")
    slide = Slide(slide="S1", image=path, mpp=1.0, width_px=900, height_px=600)
    tiles = pd.DataFrame(
        {"x_px": [100.0, 330, 360, 600, 800], "y_px": [300.0] * 5}, index=[3, 1, 4, 0, 2]
    )
    quality = measure_quality(slide, tiles, tile_um=112)
    assert list(quality.index) == list(tiles.index)
    plain, folded, half, clean, glass = quality["tissue_fold"]
    assert folded == pytest.approx(60 / 112, abs=0.12)
    assert half == pytest.approx(56 / 112, abs=0.08)
    assert max(plain, clean, glass) < 0.03


def test_the_stains_of_the_tissue_are_those_that_it_was_made_of():
    """With the forward model of scikit-image, and no stain of the glass around it."""
    stains = np.zeros((60, 80, 3))
    stains[10:50, 10:40, :2] = (0.12, 0.03)
    stains[10:50, 40:70, :2] = (0.04, 0.05)
    rgb = np.round(hed2rgb(stains) * 255).astype(np.uint8)
    tissue = stains.any(axis=2)
    mask = TissueMask(tissue, np.zeros_like(tissue), rgb, 8.0, (4.0, 4.0), 1)
    haematoxylin, eosin = mean_stains(mask)
    hed = rgb2hed(rgb)[tissue].mean(axis=0) * -np.log10(1e-6)
    assert haematoxylin == pytest.approx(hed[0], rel=0.03)
    assert eosin == pytest.approx(hed[1], rel=0.05)
    none = TissueMask(np.zeros_like(tissue), mask.pen, rgb, 8.0, (4.0, 4.0), 0)
    assert np.isnan(mean_stains(none)).all()


def test_quality_and_overview(made):
    slide, mask = made
    tiles = lattice_tiles(*made, lattice=LATTICE, settings={})
    tiles["blur"] = np.where(np.arange(len(tiles)) % 4 == 0, 5.0, 500.0).astype(np.float32)
    tiles["tissue_fold"] = np.where(np.arange(len(tiles)) % 2 == 0, 0.5, 0.1).astype(np.float32)
    quality = summarise_quality(slide, mask, tiles, lattice=LATTICE)
    values = dict(zip(quality["metric"], quality["value"], strict=True))
    assert values["n_tiles"] == len(tiles)
    assert values["n_positions"] == len(LATTICE.cover(4000, 3000)[0])
    assert values["n_fragments"] == 2
    assert values["tissue_mm2"] == pytest.approx((100 * 100 + 150 * 150) * 64e-6)
    assert values["share_pen"] == pytest.approx(5000 / 37500)
    assert values["share_blurred"] == pytest.approx(0.25, abs=0.02)
    assert values["share_folded"] == pytest.approx(0.5, abs=0.02)
    axes = draw_tiles(mask, tiles, slide="S1").axes[0]
    blurred = f"{values['share_blurred']:.1%} of tiles blurred"
    title = f"S1: 2.1 mm² tissue, 2 pieces\n{blurred}, {values['share_folded']:.1%} folded, 13.3% under pen"
    assert axes.get_title(loc="left") == title
    sharp, blurred = (c.get_offsets() for c in axes.collections[-2:])
    assert len(sharp) + len(blurred) == len(tiles)
    # In mm: x_px / 4 px per mask px * 8 um.
    expected = tiles[["x_px", "y_px"]].to_numpy()[tiles["blur"] < 20] * 2 / 1000
    np.testing.assert_allclose(blurred, expected)
