"""Weights of encoders: every tensor of the network comes from the file, or the file is refused."""

from __future__ import annotations

import json
import pickle
import zipfile
from functools import partial

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from histogep.encoders.load import load_encoder
from histogep.encoders.weights import load_strictly, read_weights
from histogep.errors import InputError


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(3)
    return timm.create_model("resnet18", num_classes=1000).eval()


@pytest.fixture
def folder(network, tmp_path):
    """A snapshot of a classifier with 1,000 classes, as timm itself writes it."""
    folder = tmp_path / "snapshot"
    timm.models.save_for_hf(network, folder, safe_serialization=True)
    assert json.loads((folder / "config.json").read_text())["num_classes"] == 1000
    return folder


def _load(folder):
    return load_encoder({"name": f"local-dir:{folder}", "precision": "float32"})


def _change(folder, change):
    file = folder / "model.safetensors"
    state = load_file(file)
    save_file(change(state) or state, file)


def test_a_classifier_is_left_out_and_all_else_loaded(folder, network):
    loaded = _load(folder)
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network.forward_head(network.forward_features(x), pre_logits=True)
        torch.testing.assert_close(loaded.network.network(x), expected)


@pytest.mark.parametrize("prefix", ["backbone.", "module.", "model.", "module.backbone."])
def test_a_wrappers_prefix_is_taken_off(folder, network, prefix):
    _change(folder, lambda state: {prefix + key: value for key, value in state.items()})
    loaded = _load(folder).network.network.state_dict()
    for key, value in loaded.items():
        torch.testing.assert_close(value, network.state_dict()[key])


def test_a_prefix_may_stand_before_the_backbone_only(folder, network):
    def change(state):
        return {k if k.startswith("fc.") else f"backbone.{k}": v for k, v in state.items()}

    _change(folder, change)
    loaded = _load(folder).network.network.state_dict()
    torch.testing.assert_close(loaded["conv1.weight"], network.state_dict()["conv1.weight"])


def _without(key):
    return lambda state: {name: value for name, value in state.items() if name != key}


def _with(key, value):
    return lambda state: state | {key: value}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("layer3.0.conv2.weight"), "no layer3.0.conv2.weight"),
        (_without("bn1.running_var"), "no bn1.running_var"),
        (lambda s: {f"student.{k}": v for k, v in s.items()}, "no bn1.bias"),
        (
            lambda s: {f"{w}.{k}": v.clone() for w in ("model", "encoder") for k, v in s.items()},
            "no bn1.bias",
        ),
        (_with("layer5.0.conv1.weight", torch.zeros(2)), "layer5.0.conv1.weight belong to another"),
        (_with("conv1.weight", torch.zeros(64, 3, 3, 3)), "conv1.weight has shape (64, 3, 3, 3)"),
        (_with("bn1.weight", torch.zeros(1)), "bn1.weight has shape (1,)"),
        (
            _with("bn1.weight", torch.full((64,), torch.nan)),
            "bn1.weight holds numbers that are not",
        ),
        (_with("bn1.bias", torch.full((64,), -torch.inf)), "bn1.bias holds numbers that are not"),
        (
            _with("bn1.bias", torch.full((64,), 1e300, dtype=torch.float64)),
            "bn1.bias holds numbers that are not",
        ),
        (_with("bn1.bias", torch.zeros(64, dtype=torch.int8)), "bn1.bias holds torch.int8"),
        (lambda _: {}, "should hold the tensors of a network"),
    ],
)
def test_weights_that_do_not_fit_to_the_last_tensor_are_refused(folder, change, message):
    _change(folder, change)
    if change(load_file(folder / "model.safetensors")) == {}:
        save_file({}, folder / "model.safetensors")
    with pytest.raises(InputError) as caught:
        _load(folder)
    assert message in str(caught.value)
    assert str(folder / "model.safetensors") in str(caught.value)


def test_half_precision_is_read(folder, network):
    _change(folder, lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()})
    loaded = _load(folder).network.network.state_dict()
    assert loaded["conv1.weight"].dtype == torch.float32
    expected = network.state_dict()["conv1.weight"].half().float()
    torch.testing.assert_close(loaded["conv1.weight"], expected)


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 100, b"version https://git-lfs", b"PK\3\4" + b"x" * 99]
)
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_what_is_no_file_of_weights_is_refused_by_name(tmp_path, content, name):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        read_weights(path)


class _Mischief:
    def __reduce__(self):
        return (exec, ("raise SystemExit('ran')",))


@pytest.mark.parametrize(
    "content", [_Mischief(), [1, 2], {"a": 1}, {"state_dict": {"a": "b"}}, torch.zeros(3), {}]
)
def test_anything_but_tensors_by_name_is_refused(tmp_path, content):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(InputError, match=r"weights\.pth"):
        read_weights(path)
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match=r"weights\.pth"):
        read_weights(path)


def test_tensors_that_claim_more_than_the_file_holds_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(1).expand(10**11)}, path)
    with pytest.raises(InputError, match="a declares more bytes than the file has"):
        read_weights(path)
    small = tmp_path / "small.pth"
    torch.save({"a": torch.zeros(10**6)}, small)
    with (
        zipfile.ZipFile(small) as given,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in given.namelist():
            packed.writestr(name, given.read(name))
    with pytest.raises(InputError, match="is compressed"):
        read_weights(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("architecture", "resnet19", "resnet19"),
        ("architecture", "hf-hub:timm/resnet18", "hf-hub"),
        ("architecture", "vit_tiny_patch16_224", "does not hold its weights"),
        ("model_args", {"block_args": 3}, "not readable as the description of a timm network"),
        ("model_args", {"in_chans": 4}, "square RGB tiles"),
        ("model_args", {"stem_width": 10**6, "stem_type": "deep"}, "does not hold its weights"),
        ("mean", [0.5, 0.5], "normalise"),
        ("mean", [0.5, float("nan"), 0.5], "normalise"),
        ("std", [0.5, 0.0, 0.5], "normalise"),
        ("input_size", [3, 10**6, 10**6], "square RGB tiles"),
        ("input_size", [3, 224, 256], "square RGB tiles"),
    ],
)
def test_a_description_that_cannot_be_right_is_refused(folder, key, value, message):
    config = json.loads((folder / "config.json").read_text())
    (config if key in ("architecture", "model_args") else config["pretrained_cfg"])[key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError) as caught:
        _load(folder)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"architecture": 3}', "\0", "[" * 10**5])
def test_a_description_that_is_none_is_refused(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json"):
        _load(folder)


def test_a_network_of_another_patch_size_is_not_interpolated(tmp_path):
    """timm resamples patch embeddings and positions to the network that is asked for."""
    path = tmp_path / "weights.safetensors"
    given = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    save_file(given.state_dict(), path)
    create = partial(timm.create_model, "vit_tiny_patch16_224", num_classes=0)
    options = {"encoder": "vit", "source": "nowhere"}
    load_strictly(create, read_weights(path), path, **options)
    with pytest.raises(InputError, match="has shape"):
        load_strictly(partial(create, patch_size=32), read_weights(path), path, **options)
    with pytest.raises(InputError, match="pos_embed has shape"):
        load_strictly(partial(create, img_size=256), read_weights(path), path, **options)


def test_weights_of_lite0_may_be_those_that_timm_saved_and_no_others(tmp_path):
    path = tmp_path / "lite0.safetensors"
    own = load_encoder({"name": "lite0", "precision": "float32"}).network.network.state_dict()
    save_file(own, path)
    again = load_encoder({"name": "lite0", "weights": str(path), "precision": "float32"})
    for key, value in again.network.network.state_dict().items():
        torch.testing.assert_close(value, own[key])
    other = timm.create_model("tf_efficientnet_b0", num_classes=0).state_dict()
    save_file(other, path)
    with pytest.raises(InputError, match="belong to another network"):
        load_encoder({"name": "lite0", "weights": str(path)})
    # In another order, equal shapes stand for other tensors.
    unordered = {
        f"x{n}.{key.rpartition('.')[2]}": value for n, (key, value) in enumerate(own.items())
    }
    keys = list(unordered)
    keys[1], keys[2] = keys[2], keys[1]
    torch.save({key: unordered[key] for key in keys}, tmp_path / "lite0.pth")
    with pytest.raises(InputError, match="do not follow those of EfficientNet-Lite0"):
        load_encoder({"name": "lite0", "weights": str(tmp_path / "lite0.pth")})


def test_counters_that_only_training_reads_may_be_absent(folder, network):
    # As in files of PyTorch before 0.4.1.
    _change(
        folder,
        lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
    )
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network.forward_head(network.forward_features(x), pre_logits=True)
        torch.testing.assert_close(_load(folder).network.network(x), expected)
