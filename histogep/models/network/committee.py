"""Training form of the lattice network: many networks as one batched network (torch).

Each network reads a tile and the tiles that touch it: linear -> one residual block (layer
normalisation, the mean over ring 1 beside the own vector, two linear layers) -> layer normalisation
-> linear. There is no grid and no padding to one, so that any tissue outline costs its tiles alone.
All networks of a committee have one shape and are independent: their weights lie along the first axis
of each tensor, and a sum of their losses gives each the gradient that it would have alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from histogep.lattice import Lattice
from histogep.models.lattice import EPSILON, network_shapes

#: Shares of the inputs, and of the hidden vector, that are dropped in training.
INPUT_DROPOUT = 0.1
HIDDEN_DROPOUT = 0.2


def ring_table(lattice: Lattice, row: np.ndarray, col: np.ndarray) -> np.ndarray:
    """Return which of the n positions of ONE slide touch each, (n, 6 or 8) int64; n where none does.

    A position without neighbours has itself, as in `histogep.models.preparation.neighbour_mean`.
    """
    touching = lattice.neighbours(row, col)
    n = touching.shape[0]
    degree = np.diff(touching.indptr)
    table = np.full((n, 6 if lattice.hexagonal else 8), n, np.int64)
    place = np.arange(touching.nnz) - np.repeat(touching.indptr[:-1], degree)
    table[np.repeat(np.arange(n), degree), place] = touching.indices
    alone = degree == 0
    table[alone, 0] = np.flatnonzero(alone)
    return table


class _RingMean(torch.autograd.Function):
    """Mean over the ring of each position; touching is mutual, so its gradient is a sum over rings.

    Neither way adds in an order that varies, so that two runs give the same bits.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, table: Tensor, share: Tensor) -> Tensor:
        ctx.save_for_backward(table, share)
        return _ring_sum(values, table) * share

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        table, share = ctx.saved_tensors
        return _ring_sum(gradient * share, table), None, None


def _ring_sum(values: Tensor, table: Tensor) -> Tensor:
    """Return the sum (n, w) of the values (n, w) of the positions in each row of a table (n, k)."""
    with_none = torch.cat([values, values.new_zeros(1, values.shape[1])])
    return functional.embedding_bag(table, with_none, mode="sum")


class Committee(nn.Module):
    """Networks of one shape that are trained and applied together.

    Parameters
    ----------
    n_networks
        How many there are.
    n_inputs, n_outputs
        Columns that each reads and gives.
    """

    def __init__(self, n_networks: int, n_inputs: int, n_outputs: int):
        super().__init__()
        self.architecture = {
            "n_networks": int(n_networks),
            "n_inputs": int(n_inputs),
            "n_outputs": int(n_outputs),
        }
        for name, shape in network_shapes(self.architecture).items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))

    def initialise(self, generators: Sequence[torch.Generator]) -> None:
        """Draw the weights of each network from its own generator; the last layer begins at 0."""
        with torch.no_grad():
            for name in ("first", "mix", "back"):
                weight, bias = (
                    self.get_parameter(f"{name}_weight"),
                    self.get_parameter(f"{name}_bias"),
                )
                limit = 1 / math.sqrt(weight.shape[1])
                for k, generator in enumerate(generators):
                    for tensor in (weight, bias):
                        drawn = torch.empty(tensor.shape[1:]).uniform_(
                            -limit, limit, generator=generator
                        )
                        tensor[k] = drawn.to(tensor.device)
            self.inner_scale.fill_(1.0)
            self.outer_scale.fill_(1.0)

    def forward(
        self, features: Tensor, table: Tensor, dropped: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Return the outputs of each network, (networks, n, outputs).

        Parameters
        ----------
        features
            What each network reads, (networks, n, inputs).
        table
            Which positions touch each, (networks * n, k), counted over all networks;
            networks * n where none does.
        dropped
            In training: factors of the inputs and of the hidden vector.
        """
        if dropped is not None:
            features = features * dropped[0]
        hidden = torch.baddbmm(self.first_bias, features, self.first_weight)
        own = _normalise(hidden, self.inner_scale, self.inner_shift)
        flat = own.reshape(-1, own.shape[-1])
        degree = (table < len(flat)).sum(1, keepdim=True)
        share = torch.where(degree > 0, 1.0 / degree.clamp_min(1), 0.0).to(flat.dtype)
        around = _RingMean.apply(flat, table, share).reshape(own.shape)
        mixed = torch.baddbmm(self.mix_bias, torch.cat([own, around], -1), self.mix_weight)
        mixed = functional.gelu(mixed)
        if dropped is not None:
            mixed = mixed * dropped[1]
        hidden = hidden + torch.baddbmm(self.back_bias, mixed, self.back_weight)
        # What is the same in all positions is lost when a slide is centred: there is no shift here,
        # whose gradient would be rounding alone.
        return torch.bmm(_normalise(hidden, self.outer_scale), self.last_weight)


def _normalise(values: Tensor, scale: Tensor, shift: Tensor | float = 0.0) -> Tensor:
    """Return values with mean 0 and deviation 1 over the last axis, then scaled and shifted."""
    return functional.layer_norm(values, values.shape[-1:], eps=EPSILON) * scale + shift
