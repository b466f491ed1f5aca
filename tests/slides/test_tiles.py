from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import pyvips
from scipy import ndimage

from histogep.errors import InputError
from histogep.lattice import Lattice
from histogep.report.figures.slides import draw_tiles
from histogep.slides.reader import Slide
from histogep.slides.tiles import (
    lattice_tiles,
    measure_quality,
    spot_tiles,
    summarise_quality,
)
from histogep.slides.tissue import TissueMask

LATTICE = Lattice("visium", 100, 112)


@pytest.fixture
def made(tmp_path):
    """A slide of 4 x 3 mm at 2 um per px, tissue on two rectangles, the second sharp by half."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (1500, 2000, 3), dtype=np.uint8)
    blurred = ndimage.gaussian_filter(noise.astype(float), (6, 6, 0)).astype(np.uint8)
    noise[:, 1000:] = blurred[:, 1000:]
    path = tmp_path / "slide.tiff"
    pyvips.Image.new_from_array(noise).tiffsave(str(path), tile=True, compression="deflate")
    slide = Slide(slide="S1", image=path, mpp=2.0, width_px=2000, height_px=1500)
    tissue = np.zeros((375, 500), bool)
    tissue[50:150, 50:200] = tissue[200:350, 300:450] = True
    pen = np.zeros_like(tissue)
    pen[50:150, 50:100] = True
    rgb = np.full((375, 500, 3), 230, np.uint8)
    masks = tissue & ~pen, pen
    # The overview of 375 x 500 mask pixels is every second of them (histogep.slides.tissue).
    return slide, TissueMask(*masks, rgb[::2, ::2].copy(), 8.0, (4.0, 4.0), 2)


def _tiles(made, **settings):
    return lattice_tiles(*made, lattice=LATTICE, settings=settings)


def _write_spots(path, *, lattice=LATTICE, in_tissue=None):
    row, col = np.array([4, 9, 20]), np.array([7, 6, 1])
    obs = pd.DataFrame({"row": row, "col": col}, index=["b3", "b1", "b2"])
    obs["in_tissue"] = [True] * 3 if in_tissue is None else in_tissue
    spots = anndata.AnnData(np.zeros((3, 2), np.float32), obs=obs)
    spots.obsm["spatial"] = np.array([[300.0, 400.5], [900, 700], [1990, 10]])
    spots.uns["lattice"] = lattice.to_settings()
    spots.write_h5ad(path)
    return path


def test_cells_lie_on_all_fragments_by_share_of_tissue(made):
    slide, mask = made
    tiles = _tiles(made, min_tissue=0.4, max_pen=1)
    row, col = LATTICE.cover(4000, 3000)
    x_um, y_um = LATTICE.centres_um(row, col)
    expected = set()
    for place in range(len(row)):
        # The share of tissue on a grid of 1 um, by brute force.
        x = np.arange(x_um[place] - 55.5, x_um[place] + 56)
        y = np.arange(y_um[place] - 55.5, y_um[place] + 56)
        ix, iy = (x // 8).astype(int), (y // 8).astype(int)
        inside = ((iy >= 0) & (iy < 375))[:, None] & ((ix >= 0) & (ix < 500))[None]
        share = (mask.mask[iy.clip(0, 374)][:, ix.clip(0, 499)] & inside).mean()
        if share >= 0.4:
            expected.add((row[place], col[place]))
    assert set(zip(tiles["row"], tiles["col"], strict=True)) == expected
    assert tiles["x_px"].max() > 1500
    assert tiles["x_px"].min() < 700
    np.testing.assert_allclose(tiles["x_px"] * 2, LATTICE.centres_um(tiles["row"], tiles["col"])[0])
    assert (tiles["barcode"] == "").all()
    assert tiles.dtypes["row"] == np.int32
    assert tiles.dtypes["tissue"] == np.float32


def test_tiles_under_pen_are_left_out(made):
    strict, lax = (
        _tiles(made, min_tissue=0.01, max_pen=0.2),
        _tiles(made, min_tissue=0.01, max_pen=1),
    )
    assert len(strict) < len(lax)
    assert strict["pen"].max() <= 0.2
    left_out = lax.merge(strict, on=["row", "col"], how="left", indicator=True)
    assert (left_out.loc[left_out["_merge"] == "left_only", "pen_x"] > 0.2).all()


def test_nothing_left_is_an_input_error(made):
    slide, mask = made
    empty = TissueMask(np.zeros_like(mask.mask), mask.pen, mask.overview, 8.0, (4.0, 4.0), 0)
    with pytest.raises(InputError, match="S1.*min_tissue"):
        lattice_tiles(slide, empty, lattice=LATTICE, settings={})


def test_spots_are_the_tiles_of_a_section_in_their_order(made, tmp_path):
    path = _write_spots(tmp_path / "S1.h5ad")
    tiles = spot_tiles(*made, lattice=LATTICE, spots=path)
    assert tiles["barcode"].tolist() == ["b3", "b1", "b2"]
    assert tiles["row"].tolist() == [4, 9, 20]
    np.testing.assert_array_equal(tiles["y_px"], [400.5, 700, 10])
    assert tiles["tissue"].iloc[2] == 0  # kept, whatever its share
    assert list(tiles) == list(_tiles(made))
    path = _write_spots(tmp_path / "S1.h5ad", in_tissue=[True, False, True])
    tiles = spot_tiles(*made, lattice=LATTICE, spots=path)
    assert tiles["barcode"].tolist() == ["b3", "b2"]


def test_spots_of_another_lattice_are_refused(made, tmp_path):
    path = _write_spots(tmp_path / "S1.h5ad", lattice=Lattice("st", 200, 112))
    with pytest.raises(InputError, match="st lattice of 200 um"):
        spot_tiles(*made, lattice=LATTICE, spots=path)
    (tmp_path / "cut.h5ad").write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(InputError, match="align_spots"):
        spot_tiles(*made, lattice=LATTICE, spots=tmp_path / "cut.h5ad")


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


def test_quality_and_overview(made):
    slide, mask = made
    tiles = _tiles(made)
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
    axes = draw_tiles(mask, tiles, title="S1").axes[0]
    blurred = f"{values['share_blurred']:.1%} of tiles blurred"
    title = f"S1\n{blurred}, {values['share_folded']:.1%} folded, 13.3% under pen"
    assert axes.get_title(loc="left") == title
    sharp, blurred = (c.get_offsets() for c in axes.collections[-2:])
    assert len(sharp) + len(blurred) == len(tiles)
    # In mm: x_px / 4 px per mask px * 8 um.
    expected = tiles[["x_px", "y_px"]].to_numpy()[tiles["blur"] < 20] * 2 / 1000
    np.testing.assert_allclose(blurred, expected)
