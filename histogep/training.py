"""Training of CMU-Net on grids of tile features (torch).

All sections stay on the device for the whole training. `honest`: only in-tissue spots count,
targets are scaled by the training sections, and the epoch is chosen on validation patients.
`hist`, the paper's protocol: the whole grid counts, empty background included, and the number of
epochs is fixed; the paper picks the best epoch on the section it tests, which is not repeated.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from histogep.checkpoints import (
    TERMINATED,
    Checkpoint,
    named,
    restore_state,
    state_arrays,
    until_sigterm,
)
from histogep.datasets import Grid, grid_of
from histogep.jobs import InputError
from histogep.lattice import Lattice
from histogep.losses import Loss
from histogep.networks import GRID_MULTIPLE, CMUNet
from histogep.precision import autocast, determinism, memory_format_of
from histogep.selection import area_under_roc, mean_over_groups, section_score

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingSettings:
    """How a CMU-Net is trained; the defaults are the paper's where it has one.

    Attributes
    ----------
    channels, blocks, kernel
        Architecture (`histogep.networks.CMUNet`).
    epochs, batch, lr, weight_decay, min_lr
        Passes over the sections, sections a step, and the cosine schedule of Adam.
    correlation
        Weight of 1 - mean in-section correlation beside the masked squared error (0: none).
    feature_dropout
        Share of the input channels hidden at each step.
    symmetries
        Whether sections are shown turned and flipped as the lattice allows.
    precision
        "auto" (bfloat16 where the device multiplies in it), "bfloat16" or "float32".
    """

    channels: tuple[int, ...] = (64, 128, 256, 512, 1024)
    blocks: int = 7
    kernel: int = 7
    epochs: int = 200
    batch: int = 5
    lr: float = 1e-3
    weight_decay: float = 1e-4
    min_lr: float = 1e-5
    correlation: float = 0.0
    feature_dropout: float = 0.1
    symmetries: bool = True
    precision: str = "auto"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if not 0 <= self.feature_dropout < 1:
            raise InputError(f"feature_dropout is {self.feature_dropout}: it must be in [0, 1)")
        if self.precision not in ("auto", "bfloat16", "float32"):
            raise InputError(f"precision is {self.precision!r}: give auto, bfloat16 or float32")


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
        Features of a cell without tile, (c,) (zeros, or those of a white tile).
    """

    patient: str
    row: np.ndarray
    col: np.ndarray
    features: np.ndarray
    targets: np.ndarray
    background: np.ndarray


@dataclass
class Trained:
    """A trained network with its record.

    Attributes
    ----------
    network
        In evaluation mode, on the CPU, with the weights of `best_epoch`.
    target_mean, target_sd
        (t,) float32: what maps the network's output to the units of the targets.
    history
        epoch, lr, train_loss, validation_loss, validation_score; no times, so that two runs give
        the same table.
    best_epoch
        Epoch whose weights these are, from 1.
    score
        Validation score of that epoch; NaN without validation sections.
    scores
        That score by task; of both tasks, mean in-section r and AUROC apart.
    """

    network: CMUNet
    target_mean: np.ndarray
    target_sd: np.ndarray
    history: pd.DataFrame
    best_epoch: int
    score: float
    scores: dict[str, float] = field(default_factory=dict)


def train_network(
    train: Sequence[NetworkSection],
    validation: Sequence[NetworkSection],
    *,
    task: str,
    lattice: Lattice,
    settings: TrainingSettings,
    seed: int,
    whole_grid: Sequence[int] | None = None,
    stop_after: int | None = None,
    checkpoint: Checkpoint | None = None,
    device: str = "cpu",
) -> Trained:
    """Train a CMU-Net and return it with the weights of its best epoch.

    Parameters
    ----------
    train, validation
        Sections that give the gradient, and sections that choose the epoch (may be empty: then
        the last epoch is taken).
    task
        "expression" (squared error), "tumour" (binary cross-entropy on logits), or "both" (their
        sum; the tumour is the last target).
    lattice
        Lattice of the sections.
    settings
        Architecture and schedule.
    seed
        Seed of the initial weights, of the order of the sections and of the augmentation.
    whole_grid
        (rows, cols): the paper's protocol, loss over every cell of a grid of this size and targets
        in their own units. None: in-tissue cells and scaled targets.
    stop_after
        Stop after this epoch of the schedule of `settings.epochs`.
    checkpoint
        Where the state is kept. A training that finds one goes on from there; told to stop by
        SIGTERM it saves its state after the step it is in and raises SystemExit.
    device
        "cpu" or "cuda".
    """
    started = time.monotonic()
    with determinism(seed, device):
        target_mean, target_sd = _target_scale(train, task, scaled=whole_grid is None)
        shown = settings.symmetries and whole_grid is None
        grids = _grids(train, lattice, whole_grid, symmetries=shown)
        held = _grids(validation, lattice, whole_grid, symmetries=False)
        scale = (target_mean, target_sd)
        data = [_Resident(s, g, scale, device) for s, g in zip(train, grids, strict=True)]
        judges = [_Resident(s, g, scale, device) for s, g in zip(validation, held, strict=True)]
        layout = memory_format_of(settings.precision, device)
        network = CMUNet(
            train[0].features.shape[1],
            len(target_mean),
            channels=settings.channels,
            blocks=settings.blocks,
            kernel=settings.kernel,
        ).to(device, memory_format=layout)
        optimiser = torch.optim.Adam(
            network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True
        )
        shape = _common_shape(grids)
        whole = whole_grid is not None
        loss = Loss(task, whole=whole, correlation=0.0 if whole else settings.correlation)
        dropout = 0.0 if whole else settings.feature_dropout
        progress = _Progress(rng=np.random.default_rng(seed))
        found = checkpoint.load() if checkpoint else None
        if found:
            progress = _Progress.from_record(found[1])
            if progress.finished:
                progress.best_weights = named(found[0], "best")
            else:
                progress.best_weights = restore_state(found[0], network, optimiser)
            LOG.info("resumed in epoch %d, step %d", progress.epoch, progress.step + 1)
        epochs = min(settings.epochs, stop_after or settings.epochs)
        n_before = len(progress.rows)

        def keep() -> None:
            if progress.finished:
                best = {f"best.{k}": v for k, v in progress.best_weights.items()}
                checkpoint.save(best, progress.to_record())
            else:
                arrays = state_arrays(network, optimiser, progress.best_weights)
                checkpoint.save(arrays, progress.to_record())

        with until_sigterm() if checkpoint else contextlib.nullcontext(lambda: False) as stopped:
            while not progress.finished:
                begun, lr = time.monotonic(), _cosine(progress.epoch - 1, settings)
                for group in optimiser.param_groups:
                    group["lr"] = lr
                if not progress.order:
                    progress.order = progress.rng.permutation(len(data)).tolist()
                batches = np.array_split(progress.order, math.ceil(len(data) / settings.batch))
                network.train()
                for batch in batches[progress.step :]:
                    items = [data[i] for i in batch]
                    grid, index = _assemble(items, shape, progress.rng, dropout)
                    with autocast(settings.precision, device):
                        output = network(grid.contiguous(memory_format=layout))
                    value = loss(output.float(), items, index)
                    optimiser.zero_grad(set_to_none=True)
                    value.backward()
                    optimiser.step()
                    progress.total += float(value.detach()) * len(batch)
                    progress.step += 1
                    if stopped() and progress.step < len(batches):
                        break  # what is kept goes on within the epoch
                else:
                    row = {"epoch": progress.epoch, "lr": lr}
                    row |= {"train_loss": progress.total / len(data)}
                    row |= _validate(network, judges, loss, task, settings.precision, device, scale)
                    LOG.info(
                        "epoch %d: lr %.3g, loss %.4f, validation %.4f, score %.4f, %.2f s",
                        *(progress.epoch, lr, row["train_loss"], row["validation_loss"]),
                        *(row["validation_score"], time.monotonic() - begun),
                    )
                    if not math.isfinite(row["train_loss"]):
                        raise InputError(
                            f"training diverged in epoch {progress.epoch}: lower lr "
                            f"({settings.lr:g})"
                        )
                    progress.end_epoch(row, network, last=epochs)
                told = stopped()
                if checkpoint and (told or progress.finished or checkpoint.due):
                    keep()
                if told:
                    LOG.info("SIGTERM: the state is in %s", checkpoint.path)
                    raise SystemExit(TERMINATED)
        network.load_state_dict(progress.best_weights)
    best_epoch, best_score, rows = progress.best_epoch, progress.best_score, progress.rows
    seconds = time.monotonic() - started
    LOG.info(
        "%d epochs in %.1f s (%.3f s each) on %s; epoch %d, validation score %.4f",
        *(epochs - n_before, seconds, seconds / max(epochs - n_before, 1), device),
        *(best_epoch, best_score),
    )
    return Trained(
        network=network.cpu().eval(),
        target_mean=target_mean,
        target_sd=target_sd,
        history=pd.DataFrame(rows),
        best_epoch=best_epoch,
        score=best_score,
        scores=_scores_by_task(rows, best_epoch, task),
    )


def _scores_by_task(rows: Sequence[dict[str, float]], epoch: int, task: str) -> dict[str, float]:
    """Return the validation scores of an epoch that are known, by task."""
    row = next(row for row in rows if row["epoch"] == epoch)
    columns = {task: "validation_score"}
    if task == "both":
        columns = {name: f"validation_{name}" for name in ("expression", "tumour")}
    known = {name: row[key] for name, key in columns.items() if math.isfinite(row[key])}
    # Where no AUROC was to be had, the epoch was chosen by the loss: a negative number, no score.
    return {name: score for name, score in known.items() if name != "tumour" or score >= 0}


@dataclass
class _Progress:
    """How far a training is, and all that the rest of it depends on beside the weights."""

    rng: np.random.Generator
    epoch: int = 1
    step: int = 0  # steps of this epoch that are done
    order: list[int] = field(default_factory=list)  # of the sections in this epoch
    total: float = 0.0  # loss of this epoch so far
    rows: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_score: float = -math.inf
    best_weights: dict[str, Tensor] | None = None
    finished: bool = False

    def end_epoch(self, row: dict[str, float], network: CMUNet, *, last: int) -> None:
        """Take down an epoch, keep its weights if they are the best, and go to the next."""
        self.rows.append(row)
        score = row["validation_score"]
        better = math.isfinite(score) and score > self.best_score
        self.finished = self.epoch == last
        if better:
            self.best_score, self.best_epoch = score, self.epoch
        elif self.finished and self.best_weights is None:
            self.best_score, self.best_epoch = math.nan, self.epoch
        if better or self.best_epoch == self.epoch:
            weights = network.state_dict().items()
            self.best_weights = {k: v.detach().cpu().clone() for k, v in weights}
        self.epoch, self.step, self.order, self.total = self.epoch + 1, 0, [], 0.0

    def to_record(self) -> dict[str, Any]:
        """Return all but the weights as plain numbers and text."""
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "best_weights"}
        return kept | {"rng": self.rng.bit_generator.state}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> _Progress:
        """Rebuild what `to_record` gave."""
        rng = np.random.default_rng()
        rng.bit_generator.state = record["rng"]
        return cls(**record | {"rng": rng})


class _Resident:
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


def _target_scale(
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


def _grids(
    sections: Sequence[NetworkSection],
    lattice: Lattice,
    shape: Sequence[int] | None,
    *,
    symmetries: bool,
) -> list[list[Grid]]:
    """Return each section's grid, and its turned and flipped ones that need no larger grid."""
    plain = [[grid_of(s.row, s.col, lattice, shape=shape)] for s in sections]
    if not symmetries:
        return plain
    rows, cols = _common_shape(plain)
    turned = []
    for section, grids in zip(sections, plain, strict=True):
        others = [
            grid_of(section.row, section.col, lattice, symmetry=symmetry)
            for symmetry in lattice.symmetries()[1:]
        ]
        fits = [g for g in others if g.index.shape[0] <= rows and g.index.shape[1] <= cols]
        turned.append(grids + fits)
    return turned


def _common_shape(grids: Sequence[Sequence[Grid]]) -> tuple[int, int]:
    """Return the grid size, a multiple of 16 cells, that holds the first grid of each section.

    At least 2 x 2 cells reach the bottleneck, whose normalisation needs more than one.
    """
    shapes = np.array([group[0].index.shape for group in grids])
    rows, cols = np.maximum(-(-shapes.max(0) // GRID_MULTIPLE), 2) * GRID_MULTIPLE
    return int(rows), int(cols)


def _assemble(
    items: Sequence[_Resident], shape: tuple[int, int], rng: np.random.Generator, dropout: float
) -> tuple[Tensor, Tensor]:
    """Return a batch (b, c, rows, cols) and the tile each cell holds, (b, rows, cols)."""
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


def _cosine(epoch: int, settings: TrainingSettings) -> float:
    """Return the learning rate of an epoch (from 0)."""
    share = (1 + math.cos(math.pi * epoch / settings.epochs)) / 2
    return settings.min_lr + (settings.lr - settings.min_lr) * share


@torch.inference_mode()
def _validate(
    network: CMUNet,
    judges: Sequence[_Resident],
    loss: Loss,
    task: str,
    precision: str,
    device: str,
    scale: tuple[np.ndarray, np.ndarray],
) -> dict[str, float]:
    """Return the loss and the score on the validation sections, averaged over patients."""
    if not judges:
        names = ("loss", "expression", "tumour", "score") if task == "both" else ("loss", "score")
        return {f"validation_{name}": math.nan for name in names}
    network.eval()
    losses, of_genes, of_tumour = [], [], []
    genes = slice(None, -1 if task == "both" else None)
    for item in judges:
        cells = item.grids[0]
        with autocast(precision, device):
            output = network(item.features[cells].permute(2, 0, 1)[None]).float()
        losses.append(float(loss(output, [item], cells[None])))
        grid = Grid(cells.cpu().numpy(), item.n)
        predicted = grid.take(output[0].permute(1, 2, 0).cpu().numpy()) * scale[1] + scale[0]
        if task != "tumour":
            of_genes.append(section_score(predicted[:, genes], item.measured[:, genes]))
        if task != "expression":
            of_tumour.append(area_under_roc(predicted[:, -1], item.measured[:, -1]))
    patients = [item.patient for item in judges]
    score = mean_over_groups(of_genes or of_tumour, patients)
    row = {"validation_loss": mean_over_groups(losses, patients)}
    if task == "both":
        area = mean_over_groups(of_tumour, patients)
        row |= {"validation_expression": score, "validation_tumour": area}
        # Somers' D, 2 AUROC - 1, has the scale of a correlation: 0 by chance, 1 at best.
        score = score if math.isnan(area) else (score + 2 * area - 1) / 2
    if math.isnan(score):  # no validation section has both classes: the loss must do
        score = -row["validation_loss"]
    return row | {"validation_score": score}
