"""Losses of CMU-Net: squared error, correlation and cross-entropy, over the scored positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from histogep.errors import InputError
from histogep.models.sections import TASKS


class Loss:
    """Loss of a batch, over in-tissue positions or the whole grid; unknown targets are left out."""

    def __init__(self, task: str, *, whole: bool, correlation: float):
        if task not in TASKS:
            raise InputError(f"task is {task!r}: it must be one of {', '.join(TASKS)}")
        self.task, self.whole = task, whole
        self.correlation = 0.0 if task == "tumour" else correlation

    def __call__(self, output: Tensor, items: Sequence[Any], index: Tensor) -> Tensor:
        """Return the loss of a batch.

        Parameters
        ----------
        output
            Of the network, (b, t, rows, cols).
        items
            The b sections: `targets` (n + 1, t), the last row the background's, and `n`.
        index
            The tile at each position, (b, rows, cols); n where there is none.
        """
        predicted, measured, similarity = [], [], []
        for grid, item, cells in zip(output.permute(0, 2, 3, 1), items, index, strict=True):
            use = torch.ones_like(cells, dtype=torch.bool) if self.whole else cells < item.n
            part, truth = grid[use], item.targets[cells[use]]
            predicted.append(part)
            measured.append(truth)
            if self.correlation:
                genes = slice(None, -1 if self.task == "both" else None)
                similarity.append(correlation_of(part[:, genes], truth[:, genes]))
        part, truth = torch.cat(predicted), torch.cat(measured)
        if self.task == "tumour":
            return _cross_entropy(part, truth)
        of_tumour = 0.0
        if self.task == "both":
            of_tumour = _cross_entropy(part[:, -1], truth[:, -1])
            part, truth = part[:, :-1], truth[:, :-1]
        value = functional.mse_loss(part, truth) + of_tumour
        if self.correlation:
            value = value + self.correlation * (1 - torch.stack(similarity).mean())
        return value


def _cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Return the mean cross-entropy where the label is known; 0 where none is."""
    known = torch.isfinite(label)
    total = functional.binary_cross_entropy_with_logits(
        logits[known], label[known], reduction="sum"
    )
    return total / known.sum().clamp_min(1)


def correlation_of(predicted: Tensor, measured: Tensor) -> Tensor:
    """Return the mean over genes of the correlation over the positions of one section."""
    a, b = predicted - predicted.mean(0), measured - measured.mean(0)
    norm = a.square().sum(0).clamp_min(1e-8).sqrt() * b.square().sum(0).clamp_min(1e-8).sqrt()
    return ((a * b).sum(0) / norm).mean()
