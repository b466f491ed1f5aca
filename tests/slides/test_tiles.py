from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest

from histogep.errors import InputError
from histogep.lattice import Lattice
from histogep.slides.tiles import lattice_tiles, spot_tiles
from histogep.slides.tissue import TissueMask

LATTICE = Lattice("visium", 100, 112)


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
