from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from histogep.errors import InputError
from histogep.lattice import Lattice
from histogep.models.lattice import LatticeModel, input_scale, lattice_inputs, network_shapes
from histogep.models.preparation import Preparation, Tiles
from histogep.models.tile_source import TileSource

LATTICE = Lattice("visium")
BLOCKS = [("descriptors", 4), ("lite0", 20)]
N_GENES, N_PROGRAMMES = 5, 3


def make_tiles(shape, share=0.8, seed=0):
    rng = np.random.default_rng(seed)
    row, col = (axis.ravel() for axis in np.indices(shape))
    kept = rng.permutation(len(row))[: int(share * len(row))]
    return Tiles(rng.normal(size=(len(kept), 24)).astype(np.float32), row[kept], col[kept])


@pytest.fixture(scope="module", params=["lattice", "blend"])
def model(request):
    rng = np.random.default_rng(3)
    slides = [make_tiles((16, 16), seed=i) for i in range(2)]
    preparation = Preparation.fit(slides, blocks=BLOCKS, lattice=LATTICE, components=8)
    inputs = [lattice_inputs(preparation, part) for part in slides]
    made = {"n_networks": 4, "n_inputs": inputs[0].shape[1], "n_outputs": N_PROGRAMMES}
    networks = {
        name: rng.normal(scale=0.3, size=shape).astype(np.float32)
        for name, shape in network_shapes(made).items()
    }
    own = 12  # columns of a tile itself
    width = preparation.width()
    blend = request.param == "blend"
    return LatticeModel(
        preparation=preparation,
        scale=input_scale(preparation, inputs),
        networks=networks,
        decoder=rng.normal(size=(4, N_PROGRAMMES, N_GENES)).astype(np.float32),
        deviation=rng.normal(size=(3 * own, N_GENES)).astype(np.float32) if blend else None,
        rings=2 if blend else 0,
        level=rng.normal(size=(width, N_GENES)).astype(np.float32),
        level_mean=np.zeros(width),
        target_mean=np.arange(N_GENES, dtype=float),
        shrinkage=0.5,
    )


def test_inputs_are_own_columns_at_a_root_mean_square_of_one(model):
    inputs = lattice_inputs(model.preparation, make_tiles((16, 16), seed=0))
    assert inputs.shape[1] == 2 * (4 + 8)
    both = [lattice_inputs(model.preparation, make_tiles((16, 16), seed=i)) for i in range(2)]
    scaled = np.vstack(both) * input_scale(model.preparation, both)
    for start, stop in ((0, 4), (4, 12), (12, 16), (16, 24)):
        assert np.sqrt((scaled[:, start:stop] ** 2).mean()) == pytest.approx(1.0)
    # Not whitened: the leading component varies more than the last.
    assert scaled[:, 4].std() > 1.1 * scaled[:, 11].std()


@pytest.mark.parametrize("most", [40, 150])
def test_bands_with_their_halo_agree_with_one_pass_over_the_slide(model, most, monkeypatch):
    tiles = make_tiles((60, 12))
    whole, level = model.predict(tiles)
    parts = np.full_like(whole, np.nan)
    bands = []

    def put(index, values):
        assert np.isnan(parts[index]).all()
        bands.append(len(index))
        parts[index] = values

    monkeypatch.setitem(TileSource.bands.__kwdefaults__, "most", most)
    again = model.add_to(TileSource(tiles.values, tiles.row, tiles.col), put)
    assert len(bands) > 3
    assert np.abs(parts - whole).max() < 1e-4 * np.abs(whole - level).max()
    assert again == pytest.approx(level, abs=1e-5)
    assert whole.mean(0) == pytest.approx(level, abs=1e-4)


def test_a_halo_of_fewer_rows_would_not_do(model, monkeypatch):
    """What is tested above would be noticed."""
    tiles = make_tiles((60, 12))
    whole, level = model.predict(tiles)
    monkeypatch.setattr(type(model), "halo", property(lambda self: 0))
    parts = np.empty_like(whole)

    def put(index, values):
        parts[index] = values

    monkeypatch.setitem(TileSource.bands.__kwdefaults__, "most", 40)
    model.add_to(TileSource(tiles.values, tiles.row, tiles.col), put)
    assert np.abs(parts - whole).max() > 1e-2 * np.abs(whole - level).max()


def test_farther_tiles_than_the_halo_change_nothing_but_the_means(model):
    """Beside the shift that centring gives all, what moves lies within the halo of a change."""
    tiles = make_tiles((30, 30), share=1.0)
    values = tiles.values.copy()
    middle = np.flatnonzero((tiles.row == 15) & (tiles.col == 15))[0]
    other = np.flatnonzero((tiles.row == 2) & (tiles.col == 2))[0]
    # Two tiles trade places, so that all that is of the whole slide stays.
    values[[middle, other]] = values[[other, middle]]
    before = model.predict(tiles)[0]
    shift = model.predict(Tiles(values, tiles.row, tiles.col))[0] - before
    moved = np.abs(shift - np.median(shift, axis=0)).max(1) > 1e-3
    reach = model.halo
    for row, col in zip(tiles.row[moved], tiles.col[moved], strict=True):
        assert min(max(abs(row - at), abs(col - at)) for at in (15, 2)) <= reach + 1
    assert 10 < moved.sum() < 60


def test_a_model_survives_its_file(model):
    kind = "lattice" if model.deviation is None else "blend"
    settings = {
        "kind": kind,
        "blocks": BLOCKS,
        "lattice": LATTICE.to_settings(),
        "architecture": {"n_networks": 4, "n_inputs": 24, "n_outputs": N_PROGRAMMES},
        "choice": {"rings": model.rings, "level_shrinkage": model.shrinkage},
    }
    again = LatticeModel.from_arrays(model.to_arrays(), settings)
    tiles = make_tiles((20, 20), seed=7)
    for ours, theirs in zip(again.predict(tiles), model.predict(tiles), strict=True):
        assert (ours == theirs).all()
    settings["architecture"]["n_networks"] = 3
    with pytest.raises(InputError, match="do not have the declared shapes"):
        LatticeModel.from_arrays(model.to_arrays(), settings)


def test_it_is_applied_without_torch():
    code = "import sys, histogep.models.lattice, histogep.models.predict; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
