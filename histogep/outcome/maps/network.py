"""A small network that reads a slide's maps as one number: risk, or the logit of a response (torch).

Blocks as in ConvNeXt V2 (doi 10.1109/CVPR52729.2023.01548): a large depthwise convolution, layer
normalisation, a pointwise expansion with GELU and global response normalisation, and a pointwise
projection beside the identity. Positions without tissue stay 0 and are in no mean. Nothing depends
on the other slides of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from histogep.stats.cox import RiskSets


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each position of a (b, c, rows, cols) map."""

    def forward(self, grid: Tensor) -> Tensor:
        """Return a map of the same shape."""
        return super().forward(grid.movedim(1, -1)).movedim(-1, 1)


class GlobalResponseNorm(nn.Module):
    """Scale each channel by its share of the map's response: channels compete within a slide."""

    def __init__(self, channels: int):
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.shift = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, grid: Tensor, mask: Tensor) -> Tensor:
        """Return a map of the same shape; `mask` is (b, 1, rows, cols), 1 on tissue."""
        cells = mask.sum(dim=(2, 3), keepdim=True).clamp(min=1)
        # A mean of squares, so that a large slide responds no more than a small one.
        response = ((grid * mask).square().sum(dim=(2, 3), keepdim=True) / cells + 1e-6).sqrt()
        share = response / (response.mean(dim=1, keepdim=True) + 1e-6)
        return self.gain * (grid * share) + self.shift + grid


class MapBlock(nn.Module):
    """One ConvNeXt V2 block."""

    def __init__(self, channels: int, *, kernel: int):
        super().__init__()
        self.space = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.norm = ChannelNorm(channels)
        self.widen = nn.Conv2d(channels, 4 * channels, 1)
        self.respond = GlobalResponseNorm(4 * channels)
        self.narrow = nn.Conv2d(4 * channels, channels, 1)

    def forward(self, grid: Tensor, mask: Tensor) -> Tensor:
        """Return a map of the same shape, 0 off the tissue."""
        inner = functional.gelu(self.widen(self.norm(self.space(grid))))
        return (grid + self.narrow(self.respond(inner, mask))) * mask


class MapNet(nn.Module):
    """Maps of a slide to one number.

    Parameters
    ----------
    n_inputs
        Channels of the maps.
    channels
        Width of each stage; between two stages the maps are halved.
    blocks
        Blocks of each stage.
    kernel
        Odd side of the depthwise convolutions, positions.
    n_covariates
        Covariates of the patient beside the maps (the paper's protocol only).
    """

    def __init__(
        self,
        n_inputs: int,
        *,
        channels: Sequence[int],
        blocks: int,
        kernel: int,
        n_covariates: int = 0,
    ):
        super().__init__()
        self.stem = nn.Conv2d(n_inputs, channels[0], 1)
        self.stages = nn.ModuleList(
            nn.ModuleList(MapBlock(width, kernel=kernel) for _ in range(blocks))
            for width in channels
        )
        self.halve = nn.ModuleList(
            nn.Sequential(ChannelNorm(before), nn.Conv2d(before, after, 2, stride=2))
            for before, after in zip(channels[:-1], channels[1:], strict=True)
        )
        self.norm = nn.LayerNorm(channels[-1])
        self.head = nn.Linear(channels[-1] + n_covariates, 1)
        # Before the first step every slide has the same risk, so that "no epoch" can be chosen too.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, grid: Tensor, mask: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Return (b,) for maps (b, inputs, rows, cols) and masks (b, 1, rows, cols)."""
        grid = self.stem(grid) * mask
        for number, stage in enumerate(self.stages):
            for block in stage:
                grid = block(grid, mask)
            if number < len(self.halve):
                odd = (0, grid.shape[3] % 2, 0, grid.shape[2] % 2)
                grid, mask = functional.pad(grid, odd), functional.pad(mask, odd)
                mask = functional.max_pool2d(mask, 2)
                grid = self.halve[number](grid) * mask
        mean = (grid * mask).sum(dim=(2, 3)) / mask.sum(dim=(2, 3)).clamp(min=1)
        pooled = self.norm(mean)
        if covariates is not None:
            pooled = torch.cat([pooled, covariates], dim=1)
        return self.head(pooled)[:, 0]


class EfronLoss:
    """Negative partial log likelihood of a Cox model over time-ordered risk sets, Efron ties.

    Parameters
    ----------
    time, event
        Outcome of the patients, (n,).
    device
        Where the risks will be.
    """

    def __init__(self, time: np.ndarray, event: np.ndarray, *, device: str = "cpu"):
        sets = RiskSets(time, event)

        def index(values: np.ndarray) -> Tensor:
            return torch.as_tensor(values, device=device)

        self.order, self.rows = index(sets.order), index(sets.rows)
        self.ends, self.group = index(sets.ends - 1), index(sets.group)
        self.fraction = index(sets.fraction)
        self.n_groups = len(sets.ends)

    def __call__(self, risk: Tensor) -> Tensor:
        """Return the loss of log hazards (n,), summed over the events."""
        eta = risk[self.order]
        shift = eta.detach().max()
        weight = torch.exp(eta - shift)
        at_risk = torch.cumsum(weight, dim=0)[self.ends][self.group]
        tied = weight.new_zeros(self.n_groups).index_add(0, self.group, weight[self.rows])
        s0 = at_risk - self.fraction.to(weight.dtype) * tied[self.group]
        return -(eta[self.rows].sum() - (torch.log(s0) + shift).sum())


class LogisticLoss:
    """Negative log likelihood of a response, summed over the patients."""

    def __init__(self, response: np.ndarray, *, device: str = "cpu"):
        self.response = torch.as_tensor(response, dtype=torch.float32, device=device)

    def __call__(self, risk: Tensor) -> Tensor:
        """Return the loss of logits (n,)."""
        return functional.binary_cross_entropy_with_logits(
            risk, self.response.to(risk.dtype), reduction="sum"
        )


class FileOrderLoss:
    """The Cox loss of the paper's release: the risk set is the order in the file, never time.

    Censored patients come first and events last, an event's risk set is what stands above it, and
    the risks are divided by their Euclidean norm. Kept for the `published` card only.
    """

    def __init__(self, event: np.ndarray, *, device: str = "cpu"):
        event = np.asarray(event).astype(bool)
        self.order = torch.as_tensor(np.argsort(event, kind="stable"), device=device)
        self.events = int(event.sum())

    def __call__(self, risk: Tensor) -> Tensor:
        """Return the loss of risks (n,), summed over the events."""
        risk = functional.normalize(risk, dim=0)[self.order]
        above = torch.logcumsumexp(risk, dim=0)
        return -(risk - above)[len(risk) - self.events :].sum()
