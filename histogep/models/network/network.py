"""CMU-Net: a U-Net with a ConvMixer bottleneck and multi-scale attention gates (torch).

The structure is that of HiST (doi 10.1002/advs.202514351) and of CMU-Net (doi
10.1109/ISBI53787.2023.10230609): every stage is two 3 x 3 convolutions with batch normalisation
and ReLU; the bottleneck mixes space with large depthwise kernels and channels with pointwise
ones; every skip connection is gated by attention at three scales. Any lattice size is accepted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from histogep.errors import InputError

#: Four poolings by two: grids are padded to a multiple of this many positions.
GRID_MULTIPLE = 16
N_STAGES = 5


class CMUNet(nn.Module):
    """Map a grid of tile features to a grid of gene expression or tumour logits.

    Parameters
    ----------
    n_inputs, n_outputs
        Channels of the feature grid and of the output (genes, or 1 for the tumour mask).
    channels
        Widths of the five stages, from the finest to the bottleneck.
    blocks, kernel
        ConvMixer blocks in the bottleneck and the (odd) side of their depthwise kernels, positions.
    """

    def __init__(
        self,
        n_inputs: int,
        n_outputs: int,
        *,
        channels: Sequence[int] = (64, 128, 256, 512, 1024),
        blocks: int = 7,
        kernel: int = 7,
    ):
        super().__init__()
        channels = [int(width) for width in channels]
        if len(channels) != N_STAGES or min(channels) < 1:
            raise InputError(
                f"channels: CMU-Net has {N_STAGES} stages, so give {N_STAGES} positive widths, "
                f"not {channels}"
            )
        if kernel < 1 or kernel % 2 == 0 or blocks < 0:
            raise InputError(
                f"kernel must be odd and blocks at least 0, not kernel {kernel} and blocks {blocks}"
            )
        self.architecture: dict[str, Any] = {
            "n_inputs": int(n_inputs),
            "n_outputs": int(n_outputs),
            "channels": channels,
            "blocks": int(blocks),
            "kernel": int(kernel),
        }
        widths = [n_inputs, *channels]
        self.encoder = nn.ModuleList(
            DoubleConvolution(before, after)
            for before, after in zip(widths[:-1], widths[1:], strict=True)
        )
        self.bottleneck = nn.Sequential(
            *(ConvMixerBlock(channels[-1], kernel=kernel) for _ in range(blocks))
        )
        finer = channels[-2::-1]
        coarser = channels[:0:-1]
        self.upward = nn.ModuleList(
            UpConvolution(coarse, fine) for coarse, fine in zip(coarser, finer, strict=True)
        )
        self.gates = nn.ModuleList(AttentionGate(fine) for fine in finer)
        self.decoder = nn.ModuleList(DoubleConvolution(2 * fine, fine) for fine in finer)
        self.head = nn.Conv2d(channels[0], n_outputs, kernel_size=1)

    def forward(self, grid: Tensor) -> Tensor:
        """Return (batch, outputs, rows, cols) for a (batch, inputs, rows, cols) grid of any size."""
        rows, cols = grid.shape[-2:]
        skips, deep = self.encode(grid)
        return self.decode(skips, self.bottleneck(deep))[..., :rows, :cols]

    def encode(self, grid: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the four skips, from the finest, and what the bottleneck reads.

        The grid is padded at its end to a multiple of 16 positions. A position of the deepest grid
        depends on no tile farther than `encoder_context` from the 16 x 16 tiles that it stands for.
        """
        rows, cols = grid.shape[-2:]
        grid = functional.pad(grid, (0, -cols % GRID_MULTIPLE, 0, -rows % GRID_MULTIPLE))
        skips = []
        for stage in self.encoder[:-1]:
            grid = stage(grid)
            skips.append(grid)
            grid = functional.max_pool2d(grid, 2)
        return skips, self.encoder[-1](grid)

    def decode(self, skips: Sequence[Tensor], deep: Tensor) -> Tensor:
        """Return the output at every position of the padded grid, from the skips and bottleneck."""
        for up, gate, stage, skip in zip(
            self.upward, self.gates, self.decoder, skips[::-1], strict=True
        ):
            deep = stage(torch.cat([gate(skip), up(deep)], dim=1))
        return self.head(deep)


class DoubleConvolution(nn.Sequential):
    """Two 3 x 3 convolutions, each with batch normalisation and ReLU."""

    def __init__(self, n_inputs: int, n_outputs: int):
        super().__init__(
            nn.Conv2d(n_inputs, n_outputs, 3, padding=1),
            nn.BatchNorm2d(n_outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(n_outputs, n_outputs, 3, padding=1),
            nn.BatchNorm2d(n_outputs),
            nn.ReLU(inplace=True),
        )


class UpConvolution(nn.Sequential):
    """Each position becomes 2 x 2 positions, then a 3 x 3 convolution smooths them."""

    def __init__(self, n_inputs: int, n_outputs: int):
        super().__init__(
            nn.Upsample(scale_factor=2, mode="nearest"),
            nn.Conv2d(n_inputs, n_outputs, 3, padding=1),
            nn.BatchNorm2d(n_outputs),
            nn.ReLU(inplace=True),
        )


class ConvMixerBlock(nn.Module):
    """A depthwise convolution beside an identity, then a pointwise one, each GELU and BN."""

    def __init__(self, channels: int, *, kernel: int):
        super().__init__()
        self.space = nn.Sequential(
            nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels),
            nn.GELU(),
            nn.BatchNorm2d(channels),
        )
        self.mix = nn.Sequential(
            nn.Conv2d(channels, channels, 1), nn.GELU(), nn.BatchNorm2d(channels)
        )

    def forward(self, grid: Tensor) -> Tensor:
        """Return a grid of the same shape."""
        return self.mix(grid + self.space(grid))


class AttentionGate(nn.Module):
    """Multi-scale attention: three views of a position vote on how much of it passes the skip."""

    def __init__(self, channels: int):
        super().__init__()
        self.views = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(
                    channels, channels, size, padding=dilation * (size // 2), dilation=dilation
                ),
                nn.BatchNorm2d(channels),
            )
            for size, dilation in ((1, 1), (3, 1), (3, 2))
        )
        self.vote = nn.Sequential(nn.Conv2d(3 * channels, channels, 1), nn.BatchNorm2d(channels))

    def forward(self, grid: Tensor) -> Tensor:
        """Return the grid plus the grid weighted by its vote (0 to 1)."""
        views = torch.cat([self._view(view, grid) for view in self.views], dim=1)
        return grid + grid * torch.sigmoid(self.vote(functional.relu(views)))

    @staticmethod
    def _view(view: nn.Sequential, grid: Tensor) -> Tensor:
        """Return one view; a dilated one of odd width in float32 on the CPU.

        There the weight gradient of oneDNN 3.13's bfloat16 kernel is NaN when the channels fill no
        whole vector of 16 (seen with AVX512-BF16, channels-last, dilation 2, 32 x 32 cells).
        """
        convolution = view[0]
        faulty = convolution.dilation[0] > 1 and convolution.out_channels % 16
        if faulty and grid.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return view(grid.float())
        return view(grid)


def count_parameters(network: nn.Module) -> dict[str, int]:
    """Return the number of trainable parameters of each part of a network, and their `total`."""
    counts = {
        name: sum(parameter.numel() for parameter in part.parameters())
        for name, part in network.named_children()
    }
    return counts | {"total": sum(counts.values())}


def reach(network: CMUNet) -> int:
    """Return how many positions away an input can still change an output (upper bound)."""
    kernel, blocks = network.architecture["kernel"], network.architecture["blocks"]
    cells = 0
    for stage in range(N_STAGES):
        cells += 2**stage * (2 + 1)  # the two convolutions, and the pooling that follows
    cells += 2 ** (N_STAGES - 1) * blocks * (kernel // 2)
    for stage in range(N_STAGES - 1):
        cells += 2**stage * (2 + 2 + 1 + 1)  # gate (dilated), two convolutions, up-convolution
    return cells


def encoder_context(stage: int = N_STAGES - 1, *, around: int = 0) -> int:
    """Return how many tiles away a position of an encoder stage still reads, beside its own tiles.

    Parameters
    ----------
    stage
        0 (finest) to 4 (what the bottleneck reads).
    around
        This many positions of that stage around it count as well.
    """
    cells = around
    for level in range(stage, -1, -1):
        cells += 2  # two 3 x 3 convolutions
        if level:
            cells = 2 * cells + 1  # a pooled position covers two
    return cells


def local_context() -> int:
    """Return how many tiles away an output reads when the bottleneck's output is given.

    The bottleneck itself sees much farther (`reach`), but its grid is 256 times smaller, so it
    can be computed for a whole slide, and all else in windows with this much context.
    """
    farthest, around = 0, 0
    for stage in range(N_STAGES - 1):
        gate, convolutions, up = 2, 2, 1
        farthest = max(farthest, encoder_context(stage, around=around + convolutions + gate))
        around = (around + convolutions + up + 1) // 2  # positions of the next coarser stage
    return farthest


def network_shapes(architecture: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of every tensor of a `CMUNet`, without the memory for any."""
    with torch.device("meta"):
        network = CMUNet(**architecture)
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
