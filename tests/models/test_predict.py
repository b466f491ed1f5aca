from __future__ import annotations

import numpy as np
import pytest
import torch

from histogep.errors import InputError
from histogep.files import write_json
from histogep.lattice import Lattice
from histogep.models.network.network import CMUNet, local_context, reach
from histogep.models.network.predict import (
    CONTEXT_CELLS,
    OVERLAP_CELLS,
    NetworkModel,
    _ramp,
    _spans,
    network_features,
    run_on_grid,
)
from histogep.models.predict import add_predictions, build_model, read_model
from histogep.models.preparation import Preparation, Tiles
from histogep.models.sections import grid_of
from histogep.models.tile_source import TileSource

torch.set_num_threads(1)
LATTICE = Lattice("st")
BLOCKS = [("descriptors", 4)]


def make_network(n_inputs=3, n_outputs=2, blocks=0, kernel=1, seed=0):
    torch.manual_seed(seed)
    network = CMUNet(n_inputs, n_outputs, channels=[4] * 5, blocks=blocks, kernel=kernel)
    network.head.weight.data *= 30  # outputs that vary by about 1
    for module in network.modules():  # running statistics that are not the initial 0 and 1
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


def make_tiles(shape, n_features=4, share=0.8, seed=0):
    rng = np.random.default_rng(seed)
    row, col = (axis.ravel() for axis in np.indices(shape))
    kept = rng.permutation(len(row))[: int(share * len(row))]
    values = rng.normal(size=(len(kept), n_features)).astype(np.float32)
    return Tiles(values, row[kept], col[kept])


@pytest.fixture(scope="module")
def model():
    slides = [make_tiles((20, 20), seed=i) for i in range(2)]
    preparation = Preparation.fit(slides, blocks=BLOCKS, lattice=LATTICE)
    network = make_network(n_inputs=2 * preparation.width())
    return NetworkModel(
        network, preparation, np.array([1.0, 2.0], np.float32), np.ones(2, np.float32), "expression"
    )


def test_one_window_is_the_network_itself():
    tiles, network = make_tiles((20, 37), 3), make_network()
    grid = grid_of(tiles.row, tiles.col, LATTICE)
    background = np.array([0.5, 0.0, -1.0], np.float32)
    cells = torch.as_tensor(grid.lay(tiles.values, background)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        expected = network(cells)[0].permute(1, 2, 0).numpy()[tiles.row, tiles.col]
    got = run_on_grid(network, tiles.values, grid, background)
    assert np.allclose(got, expected, atol=1e-5)


@pytest.fixture(scope="module")
def long_slide():
    """A slide of 900 columns, a network whose bottleneck sees farther than a window, one pass."""
    network = make_network(blocks=3, kernel=7)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):  # what is far away must not fade layer by layer
            torch.nn.init.kaiming_normal_(module.weight)
    tiles = make_tiles((20, 900), 3, share=0.5)
    grid = grid_of(tiles.row, tiles.col, LATTICE)
    background = np.array([0.5, 0.0, -1.0], np.float32)
    whole = run_on_grid(network, tiles.values, grid, background, window=1024)
    return network, tiles.values, grid, background, whole


@pytest.mark.parametrize("window", [272, 400])
def test_windows_of_any_size_agree_with_one_pass_over_the_slide(long_slide, window):
    """With the default overlap, also right beside the cuts, though the bottleneck sees farther."""
    network, features, grid, background, whole = long_slide
    assert reach(network) > 272
    assert local_context() <= CONTEXT_CELLS < OVERLAP_CELLS / 2
    assert len(list(_spans(900, window, OVERLAP_CELLS))) > 3
    parts = run_on_grid(network, features, grid, background, window=window)
    assert np.abs(parts - whole).max() < 1e-4 * max(1, np.abs(whole).max())
    assert np.abs(whole).std() > 0.1


def test_with_too_little_overlap_windows_do_differ(long_slide):
    network, features, grid, background, whole = long_slide
    short = run_on_grid(network, features, grid, background, window=96, overlap=32)
    assert np.abs(short - whole).max() > 1e-2


def test_the_local_context_is_the_farthest_tile_that_changes_an_answer():
    """By gradients, with the bottleneck's answer held fixed."""
    network = CMUNet(2, 1, channels=[4] * 5, blocks=0, kernel=1).eval()
    torch.manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.uniform_(parameter, 0.1, 1.0)  # nothing cancels
    grid = torch.rand(1, 2, 16, 400, requires_grad=True)
    skips, deep = network.encode(grid)
    farthest = 0
    for col in (192, 199, 207):
        output = network.decode(skips, deep.detach())[0, 0, 8, col]
        (gradient,) = torch.autograd.grad(output, grid, retain_graph=True)
        cols = torch.nonzero(gradient.abs().sum((0, 1, 2)))[:, 0]
        farthest = max(farthest, int((cols - col).abs().max()))
    assert 60 < farthest <= local_context()


def test_the_shares_of_the_windows_add_up():
    size, window, overlap = 203, 64, 32
    total = np.zeros(size)
    for start, end in _spans(size, window, overlap):
        total[start:end] += _ramp(start, end, size, overlap)
    assert total == pytest.approx(1.0)
    assert _ramp(32, 96, size, overlap)[:8] == pytest.approx(0.0)
    size, window = 900, 400
    total = np.zeros(size)
    for start, end in _spans(size, window, OVERLAP_CELLS):
        ramp = _ramp(start, end, size, OVERLAP_CELLS)
        total[start:end] += ramp
        if start:
            assert (ramp[:CONTEXT_CELLS] == 0).all()
    assert total == pytest.approx(1.0)


def test_windows_without_tissue_are_skipped(model):
    tiles = make_tiles((10, 10), 3)
    far = Tiles(
        np.vstack([tiles.values, tiles.values]),
        np.concatenate([tiles.row, tiles.row + 3000]),
        np.concatenate([tiles.col, tiles.col + 3000]),
    )
    calls = []
    network = make_network()
    for part in (network.encoder[0], network.head):
        part.register_forward_hook(lambda *_: calls.append(1))
    grid = grid_of(far.row, far.col, LATTICE)
    got = run_on_grid(network, far.values, grid, np.zeros(3, np.float32), window=64, overlap=32)
    assert len(calls) < 30
    assert np.isfinite(got).all()


def test_a_model_is_the_same_from_its_arrays_and_ignores_the_order_of_tiles(model, tmp_path):
    settings = {
        "kind": "cmunet",
        "task": "expression",
        "protocol": "patient_cv",
        "blocks": BLOCKS,
        "lattice": LATTICE.to_settings(),
        "architecture": model.network.architecture,
    }
    tiles = make_tiles((18, 25), seed=5)
    expected, level = model.predict(tiles)
    assert level is None
    again = build_model(model.to_arrays(), settings)
    assert np.array_equal(again.predict(tiles)[0], expected)
    order = np.random.default_rng(0).permutation(len(tiles.row))
    shuffled = Tiles(tiles.values[order], tiles.row[order], tiles.col[order])
    assert np.allclose(again.predict(shuffled)[0], expected[order], atol=1e-5)
    arrays = model.to_arrays()
    del arrays["network.head.weight"]
    with pytest.raises(InputError, match="do not fit their settings"):
        build_model(arrays, settings)
    with pytest.raises(InputError, match="unknown kind 'forest'"):
        build_model(arrays, settings | {"kind": "forest"})


def test_models_are_read_from_their_files(model, tmp_path):
    from safetensors.numpy import save_file

    settings = {
        "kind": "cmunet", "task": "tumour", "protocol": "published", "blocks": BLOCKS,
        "lattice": LATTICE.to_settings(), "architecture": model.network.architecture,
    }  # fmt: skip
    save_file(model.to_arrays(), tmp_path / "weights.safetensors")
    write_json(settings, tmp_path / "settings.json")
    read, record = read_model(tmp_path / "weights.safetensors", tmp_path / "settings.json")
    assert record["task"] == "tumour"
    assert read.raw
    with pytest.raises(InputError, match="white tile"):
        read.predict(make_tiles((5, 5)))


def test_both_views_reach_the_network_at_unit_scale(model):
    slides = [make_tiles((20, 20), seed=i) for i in range(2)]
    features = np.vstack([network_features(model.preparation, part) for part in slides])
    assert features.shape[1] == 16
    assert features.std(0) == pytest.approx(1.0, abs=0.05)
    moved = Tiles(slides[0].values + 3.0, slides[0].row, slides[0].col)
    before, after = (network_features(model.preparation, part) for part in (slides[0], moved))
    assert np.allclose(before[:, :8], after[:, :8], atol=1e-4)
    assert not np.allclose(before[:, 8:], after[:, 8:], atol=0.5)


def test_probabilities_are_probabilities(model):
    model = NetworkModel(
        model.network, model.preparation, np.zeros(2, np.float32), np.ones(2, np.float32), "tumour"
    )
    values, _ = model.predict(make_tiles((12, 12)))
    assert values.min() > 0
    assert values.max() < 1


def test_an_overlap_as_large_as_the_window_is_refused():
    tiles = make_tiles((5, 5), 3)
    grid = grid_of(tiles.row, tiles.col, LATTICE)
    with pytest.raises(InputError, match="overlap of 64"):
        run_on_grid(
            make_network(), tiles.values, grid, np.zeros(3, np.float32), window=64, overlap=64
        )


def test_a_model_that_could_not_be_trained_says_nothing_of_any_tile_piece_by_piece_too():
    model = build_model({}, {"absent": "no label", "genes": ["A", "B"]})
    tiles = make_tiles((3, 4))
    said = np.zeros((len(tiles.row), 2), np.float32)

    def add(index, values):
        said[index] += values

    add_predictions(model, TileSource(tiles.values, tiles.row, tiles.col), add)
    np.testing.assert_array_equal(said, model.predict(tiles)[0])
    assert np.isnan(said).all()
