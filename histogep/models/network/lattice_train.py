"""Train a committee: every member on the sections it may see, all in one batched network (torch).

A member's weights, dropout and order of sections come from generators of its own, so that it ends
as it would if it were trained alone, apart from rounding. What is kept is a running average of the
weights, at a few steps of the schedule.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import linalg
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from histogep.encoders.precision import determinism
from histogep.errors import InputError
from histogep.models.lattice import HIDDEN
from histogep.models.network.committee import HIDDEN_DROPOUT, INPUT_DROPOUT, Committee

LOG = logging.getLogger(__name__)
N_PROGRAMMES = 16
STEPS = 240
#: Steps after which the averaged weights are kept.
SNAPSHOTS = (80, 120, 180, 240)
SECTIONS_A_STEP = 2
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.01
WARM_UP = 20
#: Share of the learning rate that is left at the end.
LAST_RATE = 0.05
AVERAGING = 0.97


@dataclass(frozen=True)
class LatticeSection:
    """One section as the network reads it.

    Attributes
    ----------
    features
        Scaled inputs, (n, c) float32.
    table
        Which positions touch each (`histogep.models.network.committee.ring_table`), (n, k).
    targets
        log1p CP10k, (n, g).
    """

    features: np.ndarray
    table: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True)
class Programmes:
    """The gene programmes of some sections.

    Attributes
    ----------
    axes
        Orthonormal directions (g, k) in z-scored genes, the leading one first.
    scale
        Deviation of the leading programme, which all are divided by.
    unit
        Mean deviation of each gene within a section, (g,).
    """

    axes: np.ndarray
    scale: float
    unit: np.ndarray

    @property
    def decoder(self) -> np.ndarray:
        """What maps programmes (n, k) to deviations of log1p CP10k (n, g), (k, g) float32."""
        return (self.scale * self.axes.T * self.unit).astype(np.float32)

    def scores(self, targets: np.ndarray) -> np.ndarray:
        """Return the programmes (n, k) float32 of a section."""
        return (z_scores(targets) @ self.axes / self.scale).astype(np.float32)


def z_scores(targets: np.ndarray) -> np.ndarray:
    """Return genes in deviations within their section, (n, g); one that does not vary is 0."""
    centred = np.asarray(targets, float) - np.mean(targets, axis=0, dtype=float)
    deviation = np.sqrt((centred**2).mean(0))
    return centred / np.where(deviation > 1e-6, deviation, np.inf)


def find_programmes(targets: Sequence[np.ndarray], *, most: int = N_PROGRAMMES) -> Programmes:
    """Return the leading programmes of sections, from the covariance of their z-scored genes."""
    covariance: Any = 0.0
    n = 0
    for part in targets:
        scores = z_scores(part)
        covariance, n = covariance + scores.T @ scores, n + len(scores)
    size = len(covariance)
    kept = min(most, size)
    values, axes = linalg.eigh(covariance / n, subset_by_index=[size - kept, size - 1])
    values, axes = values[::-1], axes[:, ::-1]
    largest = axes[np.abs(axes).argmax(0), np.arange(kept)]
    axes = axes * np.where(largest < 0, -1.0, 1.0)
    unit = np.mean([np.std(part, axis=0, dtype=float) for part in targets], axis=0)
    return Programmes(axes, float(np.sqrt(max(values[0], 1e-12))), unit)


@dataclass(frozen=True)
class TrainedCommittee:
    """What training gives.

    Attributes
    ----------
    snapshots
        Name -> averaged weights, the first axis the members, at each step of `SNAPSHOTS`.
    programmes
        Of each member, from the sections that it saw.
    steps
        Those steps.
    """

    snapshots: list[dict[str, np.ndarray]]
    programmes: list[Programmes]
    steps: list[int]


def train_committee(
    sections: Sequence[LatticeSection],
    sees: Sequence[Sequence[int]],
    *,
    seeds: Sequence[int],
    steps: int = STEPS,
    snapshots: Sequence[int] = SNAPSHOTS,
    device: str = "cpu",
) -> TrainedCommittee:
    """Train one member for each entry of `sees`.

    Parameters
    ----------
    sections
        All sections; a member reads its own alone.
    sees
        Which sections each member is trained on.
    seeds
        One for each member: all that is random about it.
    steps, snapshots
        Length of the schedule, and the steps after which weights are kept.
    device
        "cpu" or "cuda".
    """
    started = time.monotonic()
    programmes = [find_programmes([sections[i].targets for i in own]) for own in sees]
    n_outputs = programmes[0].axes.shape[1]
    with determinism(int(seeds[0]) % 2**31, device):
        # The weights are drawn on the CPU, so that they are the same on every device.
        committee = Committee(len(sees), sections[0].features.shape[1], n_outputs)
        committee.initialise([torch.Generator().manual_seed(int(seed)) for seed in seeds])
        committee.to(device)
        draws = [torch.Generator(device).manual_seed(int(seed) + 1) for seed in seeds]
        orders = [_order(own, seed) for own, seed in zip(sees, seeds, strict=True)]
        inputs = [torch.as_tensor(s.features, dtype=torch.float32, device=device) for s in sections]
        tables = [torch.as_tensor(s.table, device=device) for s in sections]
        truth = [
            {i: torch.as_tensor(found.scores(sections[i].targets), device=device) for i in own}
            for own, found in zip(sees, programmes, strict=True)
        ]
        parameters = list(committee.parameters())
        optimiser = torch.optim.AdamW(
            parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
        )
        averaged = [parameter.detach().clone() for parameter in parameters]
        kept: list[dict[str, np.ndarray]] = []
        total = torch.zeros(len(sees), device=device)
        average = get_ema_multi_avg_fn(AVERAGING)
        for step in range(1, steps + 1):
            for group in optimiser.param_groups:
                group["lr"] = LEARNING_RATE * rate_at(step, steps)
            shown = [[next(order) for _ in range(SECTIONS_A_STEP)] for order in orders]
            batch = _Batch.of(shown, inputs, tables)
            output = committee(batch.features, batch.table, batch.dropout(draws, HIDDEN))
            loss = batch.losses(output, truth)
            optimiser.zero_grad(set_to_none=True)
            loss.sum().backward()
            optimiser.step()
            average(averaged, [p.detach() for p in parameters], step)
            total += loss.detach()
            if step in snapshots:
                names = [name for name, _ in committee.named_parameters()]
                kept.append(
                    {n: a.cpu().numpy().copy() for n, a in zip(names, averaged, strict=True)}
                )
    mean = float(total.mean()) / steps
    if not math.isfinite(mean):
        raise InputError("training diverged: look for features or counts that are far off")
    LOG.info(
        "%d members, %d steps in %.1f s on %s; mean loss %.4f",
        *(len(sees), steps, time.monotonic() - started, device, mean),
    )
    return TrainedCommittee(kept, programmes, [step for step in snapshots if step <= steps])


def rate_at(step: int, steps: int) -> float:
    """Return the share of the learning rate at a step from 1: a warm-up, then a cosine."""
    if step <= WARM_UP:
        return step / WARM_UP
    gone = (step - WARM_UP) / max(steps - WARM_UP, 1)
    return LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * gone)) / 2


def _order(own: Sequence[int], seed: int) -> Iterator[int]:
    """Yield a member's sections, again and again, each time in another order."""
    rng = np.random.default_rng(seed)
    while True:
        yield from rng.permutation(np.asarray(own)).tolist()


@dataclass
class _Batch:
    """The sections of a step: those of each member behind each other, filled up to one length."""

    features: Tensor  # (members, n, c)
    table: Tensor  # (members * n, k)
    lengths: list[list[int]]  # spots of each section of each member
    shown: list[list[int]]

    @classmethod
    def of(
        cls, shown: list[list[int]], inputs: Sequence[Tensor], tables: Sequence[Tensor]
    ) -> _Batch:
        lengths = [[len(inputs[i]) for i in own] for own in shown]
        n = max(map(sum, lengths))
        whole = len(shown) * n
        features = inputs[0].new_zeros((len(shown), n, inputs[0].shape[1]))
        table = tables[0].new_full((whole, tables[0].shape[1]), whole)
        for k, own in enumerate(shown):
            start = 0
            for i in own:
                stop = start + len(inputs[i])
                features[k, start:stop] = inputs[i]
                touching = tables[i]
                first = k * n + start
                table[first : k * n + stop] = torch.where(
                    touching < len(touching), touching + first, whole
                )
                start = stop
        return cls(features, table, lengths, shown)

    def dropout(self, draws: Sequence[torch.Generator], hidden: int) -> tuple[Tensor, Tensor]:
        """Return the factors of inputs and hidden vector; what a member draws is its own."""
        members, n, width = self.features.shape
        factors = []
        for columns, share in ((width, INPUT_DROPOUT), (hidden, HIDDEN_DROPOUT)):
            factor = self.features.new_zeros((members, n, columns))
            for k, draw in enumerate(draws):
                own = factor[k, : sum(self.lengths[k])]
                own.bernoulli_(1 - share, generator=draw).div_(1 - share)
            factors.append(factor)
        return factors[0], factors[1]

    def losses(self, output: Tensor, truth: Sequence[dict[int, Tensor]]) -> Tensor:
        """Return the mean squared error of each member, over spots and programmes."""
        found = []
        for k, (own, lengths) in enumerate(zip(self.shown, self.lengths, strict=True)):
            start, parts = 0, []
            for i, length in zip(own, lengths, strict=True):
                said = output[k, start : start + length]
                parts.append((said - said.mean(0) - truth[k][i]).square().sum(1).mean())
                start += length
            found.append(torch.stack(parts).mean())
        return torch.stack(found)
