from __future__ import annotations

import tracemalloc

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from histogep.deployment import streaming
from histogep.deployment.model import DeployedModel
from histogep.deployment.out_of_distribution import FeatureDistance
from histogep.deployment.streaming import predict_into
from histogep.encoders.feature_file import read_features, write_features
from histogep.errors import InputError
from histogep.lattice import Lattice
from histogep.models import tile_source
from histogep.models.lattice import (
    LatticeModel,
    input_scale,
    lattice_inputs,
    network_shapes,
)
from histogep.models.neighbours import fit_neighbours
from histogep.models.network.network import CMUNet
from histogep.models.network.predict import NetworkModel
from histogep.models.predict import EnsembleModel
from histogep.models.preparation import Preparation, Tiles
from histogep.models.ridge import fit_ridge
from histogep.models.tile_source import TileSource, runs
from histogep.models.tumour_head import fit_tumour
from tests.model_study import BLOCKS, ENCODERS, LATTICE, make_features

torch.set_num_threads(1)
GENES = [f"G{i}" for i in range(10)]
WHITE = np.full((60, 60, 3), 255, np.uint8)


def make_slide(slide, shape, *, share=0.8, seed=0):
    """Features of a slide with holes, its tiles in no order."""
    rng = np.random.default_rng(seed)
    features, _ = make_features(slide, rng)
    row, col = (axis.ravel().astype(np.int32) for axis in np.indices(shape))
    kept = rng.permutation(len(row))[: int(share * len(row))]
    features.row, features.col = row[kept], col[kept]
    features.values = rng.normal(size=(len(kept), 108)).astype(np.float32) + 0.3
    features.coords = np.column_stack([200 * col[kept], 173 * row[kept]]).astype(np.int64)
    features.barcode = np.full(len(kept), "", object)
    return features


@pytest.fixture(scope="module")
def models():
    """One fitted model of each kind, on the same four small sections."""
    slides = [make_slide(f"S{i}", (14, 14), seed=i) for i in range(4)]
    tiles = [Tiles(s.values, s.row, s.col) for s in slides]
    rng = np.random.default_rng(1)
    mixing = rng.normal(size=(108, len(GENES))) / 10
    targets = [2 + t.values @ mixing + rng.normal(size=(len(t.row), len(GENES))) for t in tiles]
    options = {"blocks": BLOCKS, "lattice": Lattice.from_settings(LATTICE), "components": 8}
    ridge = fit_ridge(tiles, targets, list("ABCD"), **options)
    near = fit_neighbours(tiles, targets, list("ABCD"), ranks=[2], **options)
    labels = [(t.values[:, :1] > 0.3).astype(float) for t in tiles]
    tumour, _ = fit_tumour(tiles, labels, list("ABCD"), **options)
    preparation = Preparation.fit(tiles, **options)
    torch.manual_seed(0)
    network = CMUNet(2 * preparation.width(), len(GENES) + 1, channels=[4] * 5, blocks=1, kernel=3)
    network = NetworkModel(
        network.eval(),
        preparation,
        np.append(np.full(len(GENES), 0.2), 0).astype(np.float32),
        np.ones(len(GENES) + 1, np.float32),
        "both",
    )
    expression = NetworkModel(
        CMUNet(2 * preparation.width(), len(GENES), channels=[4] * 5, blocks=1, kernel=3).eval(),
        preparation, np.full(len(GENES), 0.2, np.float32), np.ones(len(GENES), np.float32),
        "expression",
    )  # fmt: skip
    ensemble = EnsembleModel([(near, 0.6), (expression, 0.4)])
    inputs = [lattice_inputs(preparation, part) for part in tiles]
    made = {"n_networks": 3, "n_inputs": inputs[0].shape[1], "n_outputs": 4}
    weights = {
        name: rng.normal(scale=0.3, size=shape).astype(np.float32)
        for name, shape in network_shapes(made).items()
    }
    blend = LatticeModel(
        preparation, input_scale(preparation, inputs), weights,
        rng.normal(size=(3, 4, len(GENES))).astype(np.float32) / 20, near.deviation / 2, near.rings,
        near.level, near.level_mean, near.target_mean, near.shrinkage,
    )  # fmt: skip
    return {
        "blend": blend,
        "ridge": ridge, "neighbours": near, "tumour": tumour, "both": network,
        "ensemble": ensemble,
        "distances": FeatureDistance.fit(
            [s.values for s in slides], patients=[s.slide for s in slides], blocks=BLOCKS,
            components=4,
        ),
    }  # fmt: skip


def deployed(models, name):
    """A loaded folder whose expression is predicted by one of the models."""
    both = name == "both"
    expression = {"model": name, "task": "both" if both else "expression", "genes": GENES}
    settings = {
        "study": "test", "digest": "d" * 64, "lattice": LATTICE, "encoders": ENCODERS,
        "blocks": [list(block) for block in BLOCKS],
        "models": {
            "expression": expression,
            "tumour": expression if both else {"model": "tumour", "task": "tumour"},
        },
    }  # fmt: skip
    genes = pd.DataFrame(
        {"predictable": True, "half_width": 0.5, "score": 0.4}, index=pd.Index(GENES, name="gene")
    )
    roles = {"expression": models[name], "tumour": models[name if both else "tumour"]}
    return DeployedModel(settings, roles, genes, models["distances"])


@pytest.mark.parametrize("name", ["ridge", "neighbours", "blend", "both", "ensemble"])
def test_the_file_holds_what_the_model_says_in_memory(models, name, tmp_path, monkeypatch):
    """Bands of few tiles and windows smaller than the slide: every seam is crossed."""
    monkeypatch.setattr(
        tile_source.TileSource.bands, "__kwdefaults__", {"among": None, "most": 300}
    )
    monkeypatch.setitem(NetworkModel.add_to.__kwdefaults__, "window", 256)
    monkeypatch.setattr(streaming, "ROWS", 500)
    features = make_slide("NEW", (24, 300), seed=9)
    write_features(features, tmp_path / "NEW.h5")
    model = deployed(models, name)
    expected = model.predict(read_features(tmp_path / "NEW.h5"))
    with predict_into(
        tmp_path / "NEW.h5ad", tmp_path / "NEW.h5", model, thumbnail=WHITE
    ) as prediction:
        assert prediction.of_gene("G3") == pytest.approx(expected.expression[:, 3], abs=2e-5)
        assert not (tmp_path / "NEW.h5ad").exists()
    table, wanted = anndata.read_h5ad(tmp_path / "NEW.h5ad"), expected.to_anndata()
    assert table.X.dtype == np.float32
    assert np.abs(table.X - wanted.X).max() < 2e-5
    assert wanted.X.std() > 0.01
    assert (wanted.X == 0).any() == (table.X == 0).any()
    assert np.allclose(table.obs["tumour"], wanted.obs["tumour"], atol=1e-5)
    assert 0 < wanted.obs["tumour"].std() < 1
    assert list(table.obs) == list(wanted.obs)
    for column in ("row", "col", "ood_score", "out_of_distribution"):
        assert np.allclose(table.obs[column], wanted.obs[column], atol=1e-6)
    assert table.obs_names.equals(wanted.obs_names)
    pd.testing.assert_frame_equal(table.var, wanted.var, check_names=False)
    assert np.array_equal(table.obsm["spatial"], wanted.obsm["spatial"])
    assert dict(table.uns["lattice"]) == wanted.uns["lattice"]
    assert table.uns["model_digest"] == wanted.uns["model_digest"]
    entry = table.uns["spatial"]["NEW"]
    assert (entry["images"]["hires"] == WHITE).all()
    # 60 px for 9,000; spots of 55 um of 0.5 um per px.
    assert entry["scalefactors"] == {
        "tissue_hires_scalef": pytest.approx(60 / 9000),
        "spot_diameter_fullres": pytest.approx(110),
    }


@pytest.mark.parametrize("name", ["neighbours", "blend", "both"])
def test_memory_does_not_follow_the_number_of_tiles(models, name, tmp_path, monkeypatch):
    """Twice the tiles: features and answers double, the memory grows by places and names only."""
    monkeypatch.setattr(
        tile_source.TileSource.bands, "__kwdefaults__", {"among": None, "most": 500}
    )
    monkeypatch.setattr(tile_source.TileSource.chunks, "__kwdefaults__", {"most": 500})
    monkeypatch.setattr(streaming, "ROWS", 500)
    monkeypatch.setitem(NetworkModel.add_to.__kwdefaults__, "window", 256)
    model, peaks, tiles = deployed(models, name), [], []
    for rows in (136, 272):
        features = make_slide("NEW", (rows, 20), seed=9)
        write_features(features, tmp_path / "NEW.h5")
        tiles.append(len(features.row))
        size = features.values.nbytes
        del features
        tracemalloc.start()
        with predict_into(tmp_path / "out.h5ad", tmp_path / "NEW.h5", model, thumbnail=WHITE):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    per_tile = (peaks[1] - peaks[0]) / (tiles[1] - tiles[0])
    # Of each tile stay its place, names, tumour and distance. A prediction in memory holds 432 bytes
    # of features, 40 of expression, and some 800 of prepared features beside them.
    assert size / tiles[1] == 432
    assert per_tile < 400, peaks


def test_bands_give_every_tile_once_with_all_rows_beside_it():
    features = make_slide("S", (40, 11), seed=3)
    source = TileSource(features.values, features.row, features.col)
    given = []
    for kept, part in source.bands(halo=2, most=30):
        assert len(kept.tiles) <= 30 or len(set(features.row[kept.tiles])) == 1
        assert np.array_equal(part.values[kept.rows], features.values[kept.tiles])
        rows = features.row[kept.tiles]
        beside = (features.row >= rows.min() - 2) & (features.row <= rows.max() + 2)
        assert len(part.row) == beside.sum()
        given.append(kept.tiles)
    assert np.array_equal(np.sort(np.concatenate(given)), np.arange(len(features.row)))
    some = np.array([5, 9, 17])
    ((kept, part),) = source.bands(halo=5, among=some)
    assert sorted(kept.tiles) == [5, 9, 17]
    assert len(part.row) == 3


def test_runs_are_consecutive_rows():
    found = list(runs(np.array([2, 3, 4, 9, 11, 12])))
    assert [rows for _, rows in found] == [slice(2, 5), slice(9, 10), slice(11, 13)]
    assert [place for place, _ in found] == [slice(0, 3), slice(3, 4), slice(4, 6)]
    assert list(runs(np.array([], int))) == []


def test_a_file_is_read_in_any_order(tmp_path):
    values = np.arange(60, dtype=np.float32).reshape(20, 3)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        source = TileSource(file.create_dataset("x", data=values), np.zeros(20), np.arange(20))
        index = np.array([7, 3, 4, 19, 0])
        assert np.array_equal(source.read(index), values[index])


def test_a_slide_encoded_otherwise_leaves_no_file(models, tmp_path):
    features = make_slide("NEW", (6, 6))
    features.encoders = [{"name": "uni", "sha256": "u"}]
    write_features(features, tmp_path / "NEW.h5")
    with (
        pytest.raises(InputError, match="encoded with uni"),
        predict_into(
            *(tmp_path / "NEW.h5ad", tmp_path / "NEW.h5", deployed(models, "ridge")),
            thumbnail=WHITE,
        ),
    ):
        pass
    assert not (tmp_path / "NEW.h5ad").exists()
