"""Sections as training batches of a network: on grids, on the device (torch)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from histogep.errors import InputError
from histogep.lattice import Lattice
from histogep.models.network.network import GRID_MULTIPLE
from histogep.models.sections import Grid, grid_of


@dataclass
class NetworkSection:
    """One section as the network reads it.

    Attributes
    ----------
    patient
        Id; validation scores are averaged over patients.
    row, col
        Grid indices, (n,).
    features
        Prepared features, (n, c) float32.
    targets
        (n, t) float32; NaN where the label is unknown.
    background
        Features at a position without tile, (c,) (zeros, or those of a white tile).
    """

    patient: str
    row: np.ndarray
    col: np.ndarray
    features: np.ndarray
    targets: np.ndarray
    background: np.ndarray


class Resident:
    """One section on the device: features and targets with a last row for the background."""

    def __init__(
        self,
        section: NetworkSection,
        grids: list[Grid],
        scale: tuple[np.ndarray, np.ndarray],
        device: str,
    ):
        self.patient = section.patient
        self.measured = section.targets
        targets = (section.targets - scale[0]) / scale[1]
        blank = np.zeros((1, targets.shape[1]), np.float32)
        features = np.concatenate([section.features, section.background[None]])
        self.features = torch.as_tensor(features, dtype=torch.float32, device=device)
        self.targets = torch.as_tensor(
            np.concatenate([targets, blank]), dtype=torch.float32, device=device
        )
        self.grids = [torch.as_tensor(grid.index, device=device) for grid in grids]
        self.n = len(section.features)


def target_scale(
    sections: Sequence[NetworkSection], task: str, *, scaled: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and deviation of each target over the spots of the training sections."""
    targets = np.concatenate([section.targets for section in sections]).astype(float)
    if task == "tumour":
        classes = set(np.unique(targets[np.isfinite(targets)]))
        if classes != {0.0, 1.0}:
            raise InputError(
                "the training sections have no spots labelled both malignant and non-malignant: "
                "give labels (slides.tsv, column labels) or leave the tumour model out"
            )
    mean, deviation = np.zeros(targets.shape[1]), np.ones(targets.shape[1])
    if scaled and task != "tumour":
        genes = slice(None, -1 if task == "both" else None)
        mean[genes], deviation[genes] = targets[:, genes].mean(0), targets[:, genes].std(0)
        deviation[deviation < 1e-6] = 1.0
    return mean.astype(np.float32), deviation.astype(np.float32)


def grids_of(
    sections: Sequence[NetworkSection],
    lattice: Lattice,
    shape: Sequence[int] | None,
    *,
    symmetries: bool,
) -> list[list[Grid]]:
    """Return each section's grid, and its rotations and reflections that need no larger grid."""
    plain = [[grid_of(s.row, s.col, lattice, shape=shape)] for s in sections]
    if not symmetries:
        return plain
    rows, cols = common_shape(plain)
    turned = []
    for section, grids in zip(sections, plain, strict=True):
        others = [
            grid_of(section.row, section.col, lattice, symmetry=symmetry)
            for symmetry in lattice.symmetries()[1:]
        ]
        fits = [g for g in others if g.index.shape[0] <= rows and g.index.shape[1] <= cols]
        turned.append(grids + fits)
    return turned


def common_shape(grids: Sequence[Sequence[Grid]]) -> tuple[int, int]:
    """Return the grid size, a multiple of 16 positions, that holds the first grid of each section.

    At least 2 x 2 positions reach the bottleneck, whose normalisation needs more than one.
    """
    shapes = np.array([group[0].index.shape for group in grids])
    rows, cols = np.maximum(-(-shapes.max(0) // GRID_MULTIPLE), 2) * GRID_MULTIPLE
    return int(rows), int(cols)


def assemble(
    items: Sequence[Resident], shape: tuple[int, int], rng: np.random.Generator, dropout: float
) -> tuple[Tensor, Tensor]:
    """Return a batch (b, c, rows, cols) and the tile at each position, (b, rows, cols)."""
    grids, places = [], []
    for item in items:
        cells = item.grids[rng.integers(len(item.grids))]
        pad = (0, shape[1] - cells.shape[1], 0, shape[0] - cells.shape[0])
        cells = functional.pad(cells, pad, value=item.n)
        grid = item.features[cells]
        if dropout:
            keep = rng.random(grid.shape[-1]) >= dropout
            grid = grid * torch.as_tensor(
                keep / (1 - dropout), dtype=grid.dtype, device=grid.device
            )
        grids.append(grid)
        places.append(cells)
    return torch.stack(grids).permute(0, 3, 1, 2), torch.stack(places)
