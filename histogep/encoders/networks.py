"""Encoders that torch runs: on a GPU, and in bfloat16 anywhere (torch).

Batch norms are folded and tensors are channels-last. On a GPU, copies and networks are queued, so
that the next batch can be queued behind them.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from histogep.encoders.load import Encoder, LoadedEncoder
from histogep.encoders.precision import fast_bfloat16

log = logging.getLogger(__name__)

#: Largest difference that folding batch norms may make, as a share of the features' spread.
_FOLD_TOLERANCE = 1e-3


@dataclass(frozen=True)
class NetworkEncoder:
    """An encoder on a device, in its precision."""

    name: str
    dim: int
    sha256: str
    input_px: int
    precision: str
    network: Encoder
    device: torch.device

    def prepare(self, tiles: np.ndarray) -> torch.Tensor:
        """Return tiles as a tensor, pinned for a GPU."""
        pixels = torch.from_numpy(tiles)
        return pixels.pin_memory() if self.device.type == "cuda" else pixels

    def start(self, pixels: torch.Tensor) -> Callable[[], np.ndarray]:
        """Start the network; the returned function waits for it and gives the features (n, dim)."""
        done = None
        with torch.inference_mode():
            if self.device.type == "cpu":
                torch.set_num_threads(1)  # of the thread that calls: each has batches of its own
            values = self.network(pixels.to(self.device, non_blocking=True)).float()
            if self.device.type == "cuda":
                values = values.to("cpu", non_blocking=True)
                done = torch.cuda.Event()
                done.record()

        def finish() -> np.ndarray:
            if done is not None:
                done.synchronize()
            return values.numpy()

        return finish


def place_encoder(encoder: LoadedEncoder, device: torch.device) -> NetworkEncoder:
    """Return an encoder on a device: batch norms folded, channels last, in its precision.

    "auto" is bfloat16 on a GPU that multiplies in it, and float32 elsewhere. The precision that is
    in use is recorded in the result.
    """
    network = fold_batch_norms(encoder.network)
    precision = encoder.precision
    if precision == "auto":
        fast = device.type == "cuda" and fast_bfloat16(device.type)
        precision = "bfloat16" if fast else "float32"
    torch.backends.cudnn.deterministic = True
    if device.type == "cuda" and precision == "float32":
        torch.backends.cudnn.allow_tf32 = False  # its products have ten bits, bfloat16's have seven
    network = network.to(device, memory_format=torch.channels_last)
    if precision == "bfloat16":
        network = network.to(torch.bfloat16)
    return NetworkEncoder(
        encoder.name, encoder.dim, encoder.sha256, encoder.input_px, precision, network, device
    )


def fold_batch_norms(encoder: Encoder) -> Encoder:
    """Fold each batch norm into the convolution registered before it, then check the result.

    If the features of noise change by more than rounding, the encoder is returned as it was.
    """
    folded = copy.deepcopy(encoder)
    changed = [_fold_children(module) for module in list(folded.network.modules())]
    if not any(changed):
        return encoder
    generator = torch.Generator().manual_seed(0)
    side = encoder.input_px
    noise = torch.randint(0, 256, (1, side, side, 3), generator=generator, dtype=torch.uint8)
    with torch.inference_mode():
        before, after = encoder(noise), folded(noise)
    if (before - after).abs().max() > _FOLD_TOLERANCE * before.std():
        log.warning("batch norms of the encoder could not be folded")
        return encoder
    return folded


def _fold_children(module: nn.Module) -> bool:
    """Fold the batch norms among a module's children; return whether there were any."""
    changed = False
    previous: nn.Module | None = None
    for name, child in list(module.named_children()):
        if (
            isinstance(child, nn.BatchNorm2d)
            and isinstance(previous, nn.Conv2d)
            and previous.out_channels == child.num_features
        ):
            fused = nn.utils.fusion.fuse_conv_bn_weights(
                previous.weight,
                previous.bias,
                child.running_mean,
                child.running_var,
                child.eps,
                child.weight,
                child.bias,
            )
            previous.weight, previous.bias = fused
            # timm's batch norms hold the activation that follows them.
            rest = [getattr(child, part) for part in ("drop", "act") if hasattr(child, part)]
            setattr(module, name, nn.Sequential(*rest))
            changed = True
        previous = child
    return changed
