"""Encoders in OpenVINO's format give torch's features, on any thread and beside any other tile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from skimage import data
from timm.layers import SwiGLUPacked
from torch import nn

from histogep.encoders import load as encoders
from histogep.encoders.descriptors import DescriptorEncoder
from histogep.encoders.encode import encode_batch, open_encoders
from histogep.encoders.exported import export_encoder, read_exported
from histogep.encoders.load import load_encoder
from histogep.encoders.registry import ENCODERS, ConvStem, EncoderSpec
from histogep.errors import InputError
from histogep.study.encoder_choices import exported_encoders

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def lite0(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoders") / "lite0.json"
    export_encoder({"name": "lite0", "precision": "auto"}, path)
    return path


def _tiles(n):
    stained = data.immunohistochemistry()
    corners = np.random.default_rng(0).integers(0, 512 - 224, (n, 2))
    return np.stack([stained[y : y + 224, x : x + 224] for y, x in corners])


def test_the_default_encoder_gives_torchs_features(lite0):
    tiles = _tiles(6)
    found = encode_batch(tiles, [read_exported(lite0, threads=1)])
    with torch.inference_mode():
        expected = load_encoder({"name": "lite0"}).network(torch.from_numpy(tiles)).numpy()
    assert found.dtype == np.float32
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)
    assert exported_encoders([{"name": "lite0"}, {"name": "descriptors"}]) == {
        "lite0": {"name": "lite0"}
    }


def test_features_depend_neither_on_threads_nor_on_neighbours_nor_on_the_batch(lite0):
    tiles = _tiles(11)
    one = encode_batch(tiles, [read_exported(lite0, threads=1)])
    several = read_exported(lite0, threads=3)
    np.testing.assert_array_equal(encode_batch(tiles, [several]), one)
    with ThreadPoolExecutor(3) as pool:
        singly = pool.map(lambda i: encode_batch(tiles[i : i + 1], [several]), range(11))
        np.testing.assert_array_equal(np.concatenate(list(singly)), one)
    turned = encode_batch(tiles[::-1], [several])[::-1]
    np.testing.assert_array_equal(turned, one)


def test_an_export_is_the_same_each_time_and_says_what_it_is(lite0, tmp_path):
    export_encoder({"name": "lite0", "precision": "auto"}, tmp_path / "lite0.json")
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".bin", ".json", ".xml"]
    assert (tmp_path / "lite0.bin").read_bytes() == lite0.with_suffix(".bin").read_bytes()
    content, again = (json.loads(p.read_text()) for p in (lite0, tmp_path / "lite0.json"))
    # Nodes that have no name are numbered on in a process, so a second export names them otherwise.
    assert {k: v for k, v in content.items() if k != "sha256_xml"}.items() <= again.items()
    both = [
        encode_batch(_tiles(4), [read_exported(p, threads=1)])
        for p in (lite0, tmp_path / "lite0.json")
    ]
    np.testing.assert_array_equal(*both)
    assert content["sha256"] == load_encoder({"name": "lite0"}).sha256
    assert content["largest_difference"] < 1e-4


@pytest.mark.parametrize("suffix", [".xml", ".bin"])
def test_a_file_of_another_export_is_refused(lite0, tmp_path, suffix):
    for each in (".json", ".xml", ".bin"):
        (tmp_path / f"lite0{each}").write_bytes(lite0.with_suffix(each).read_bytes())
    file = tmp_path / f"lite0{suffix}"
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(InputError, match=rf"lite0\{suffix} is not the one that it describes"):
        read_exported(tmp_path / "lite0.json", threads=1)


_SMALL = {"embed_dim": 96, "depth": 2, "num_heads": 3}


def _small(spec):
    """Return the options of a spec for a network of two blocks; its kinds of layers stay."""
    return {k: v for k, v in spec.options.items() if k not in _SMALL} | _SMALL


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((n, _small(ENCODERS[n])) for n in ("uni", "uni2-h", "virchow", "virchow2")),
        *((n, _small(ENCODERS[n])) for n in ("phikon", "phikon-v2", "h-optimus-0")),
        ("ctranspath", {"embed_layer": ConvStem, "strict_img_size": True, "depths": (2, 2, 2, 2)}),
        ("resnet50", {}),
    ],
)
def test_the_architectures_of_all_encoders_convert(name, options, tmp_path, monkeypatch):
    """Narrow and shallow ones with random weights: what has to convert are the kinds of layers."""
    spec = ENCODERS[name]
    if options.get("mlp_layer") == "SwiGLUPacked":
        options = options | {"mlp_layer": SwiGLUPacked}
    torch.manual_seed(1)
    create = partial(timm.create_model, spec.arch, num_classes=0, **options)
    network = create()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    weights = tmp_path / "weights.safetensors"
    save_file(network.state_dict(), weights)
    dim = network.num_features * (2 if spec.prefix_tokens else 1)
    small = EncoderSpec(
        name=name,
        arch=spec.arch,
        dim=dim,
        licence="",
        source="",
        options=options,
        mean=spec.mean,
        std=spec.std,
        prefix_tokens=spec.prefix_tokens,
    )
    monkeypatch.setitem(encoders.ENCODERS, name, small)
    settings = {"name": name, "weights": str(weights)}
    export_encoder(settings, tmp_path / f"{name}.json")
    found = encode_batch(_tiles(3), [read_exported(tmp_path / f"{name}.json", threads=1)])
    with torch.inference_mode():
        expected = load_encoder(settings).network(torch.from_numpy(_tiles(3))).numpy()
    assert found.shape == (3, dim)
    assert np.abs(found - expected).max() < 1e-4 * expected.std()


def test_a_network_of_another_input_size_is_given_resampled_tiles(tmp_path):
    torch.manual_seed(0)
    network = timm.create_model("resnet18", num_classes=0).eval()
    network.pretrained_cfg["input_size"] = (3, 160, 160)
    timm.models.save_for_hf(network, tmp_path / "mine", safe_serialization=True)
    settings = {"name": f"local-dir:{tmp_path / 'mine'}"}
    export_encoder(settings, tmp_path / "mine.json")
    encoder = read_exported(tmp_path / "mine.json", threads=1)
    assert encoder.input_px == 160
    with torch.inference_mode():
        pixels = torch.from_numpy(_tiles(2)).permute(0, 3, 1, 2).float()
        small = nn.functional.interpolate(pixels, size=160, mode="bilinear", antialias=True) / 255
        mean, std = (
            torch.tensor(network.pretrained_cfg[part]).view(1, 3, 1, 1) for part in ("mean", "std")
        )
        expected = network((small - mean) / std).numpy()
    np.testing.assert_allclose(encode_batch(_tiles(2), [encoder]), expected, atol=1e-4, rtol=1e-4)


def test_weights_that_give_no_finite_features_are_refused(tmp_path):
    network = timm.create_model("resnet18", num_classes=0)
    network.bn1.running_var.fill_(-1.0)
    timm.models.save_for_hf(network, tmp_path / "mine", safe_serialization=True)
    with pytest.raises(InputError, match="encoder mine: 4 tiles of noise give features"):
        export_encoder({"name": f"local-dir:{tmp_path / 'mine'}"}, tmp_path / "mine.json")
    assert not (tmp_path / "mine.json").exists()


class _Unknown(nn.Module):
    """A layer that OpenVINO does not know."""

    num_features = 8

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return torch.linalg.svdvals(x[:, 0, :8, :8] * self.weight)


def test_a_network_that_cannot_be_converted_is_named_with_the_way_out(tmp_path, monkeypatch):
    spec = EncoderSpec(name="odd", arch="", dim=8, licence="", source="")
    odd = encoders.LoadedEncoder("odd", 8, encoders.Encoder(_Unknown(), spec), "0")
    monkeypatch.setattr(encoders, "load_encoder", lambda settings: odd)
    message = "encoder odd: OpenVINO cannot run this network .* `precision: bfloat16`"
    with pytest.raises(InputError, match=message):
        export_encoder({"name": "odd"}, tmp_path / "odd.json")
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_does_not_pool_is_refused(tmp_path):
    options = {"global_pool": "", "embed_dim": 48, "depth": 1, "num_heads": 3}
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, **options)
    folder = tmp_path / "mine"
    timm.models.save_for_hf(network, folder, model_args=options, safe_serialization=True)
    with pytest.raises(InputError, match=r"features of shape \(4, 197, 48\)"):
        export_encoder({"name": f"local-dir:{folder}"}, tmp_path / "mine.json")


def test_blocks_lie_in_the_order_of_the_encoders(lite0):
    tiles = _tiles(2)
    names = [{"name": "lite0"}, {"name": "descriptors"}]
    options = {"exported": {"lite0": lite0}, "threads": 1, "cuda": False}
    both = encode_batch(tiles, open_encoders(names, **options))
    assert both.shape == (2, 1315)
    assert both.dtype == np.float32
    turned = encode_batch(tiles, open_encoders(names[::-1], **options))
    np.testing.assert_array_equal(both, np.roll(turned, -35, axis=1))
    assert isinstance(open_encoders(names[1:], **options)[0], DescriptorEncoder)


def test_bfloat16_runs_in_torch_on_a_cpu_too():
    settings = [{"name": "lite0", "precision": "bfloat16"}]
    assert exported_encoders(settings) == {}
    (half,) = open_encoders(settings, exported={}, threads=1, cuda=False)
    assert half.precision == "bfloat16"
    assert encode_batch(_tiles(1), [half]).shape == (1, 1280)


def test_a_job_on_a_cpu_imports_no_torch_and_sends_no_report(lite0, tmp_path):
    """OpenVINO reports each import and conversion to its makers, and keeps an id in the home."""
    code = f"""
import socket, sys
def refused(*_):
    sys.exit("a connection was tried")
socket.socket.connect = refused
sys.path.insert(0, {str(ROOT)!r})
import numpy as np
from histogep.models.devices import sees_gpu
from histogep.encoders.encode import encode_batch, open_encoders
import histogep.encoders.given_features, histogep.slides.rejected, histogep.slides.reader
settings = [dict(name="descriptors"), dict(name="lite0")]
opened = open_encoders(settings, exported={{"lite0": {str(lite0)!r}}}, threads=1, cuda=sees_gpu(0))
encode_batch(np.zeros((1, 224, 224, 3), np.uint8), opened)
foreign = [name for name in ("torch", "timm", "torchvision") if name in sys.modules]
foreign += [n for n in sys.modules if n.startswith("openvino_telemetry") and sys.modules[n]]
sys.exit(", ".join(foreign) or 0)
"""
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"HOME": str(home)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert list(home.iterdir()) == []


def test_an_export_sends_no_report(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    code = (
        "import socket, sys\n"
        "socket.socket.connect = lambda *_: sys.exit('a connection was tried')\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from histogep.encoders.exported import export_encoder\n"
        f"export_encoder({{'name': 'lite0'}}, {str(tmp_path / 'lite0.json')!r})\n"
    )
    environment = os.environ | {"HOME": str(home)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert list(home.rglob("*intel*")) == []
    assert (tmp_path / "lite0.bin").stat().st_size > 10**7
