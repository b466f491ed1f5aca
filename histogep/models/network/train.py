"""Training of CMU-Net on grids of tile features: the schedule and its steps (torch).

`histogep.models.network.data` makes the batches, `histogep.models.network.losses` their loss, `histogep.models.network.epochs` scores
the epochs and keeps the best, `histogep.models.network.checkpoints` keeps the state of training that is stopped.

All sections stay on the device for the whole training. `patient_cv`: only in-tissue spots count,
targets are scaled by the training sections, and the epoch is chosen on validation patients.
`published`, the paper's protocol: the whole grid counts, empty background included, and the number of
epochs is fixed; the paper picks the best epoch on the section it tests, which is not repeated.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch

from histogep.encoders.precision import autocast, determinism, memory_format_of
from histogep.errors import InputError
from histogep.lattice import Lattice
from histogep.models.network.checkpoints import (
    TERMINATED,
    Checkpoint,
    named,
    restore_state,
    state_arrays,
    until_sigterm,
)
from histogep.models.network.data import (
    NetworkSection,
    Resident,
    assemble,
    common_shape,
    grids_of,
    target_scale,
)
from histogep.models.network.epochs import Progress, scores_by_task, validate
from histogep.models.network.losses import Loss
from histogep.models.network.network import CMUNet

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingSettings:
    """How a CMU-Net is trained; the defaults are the paper's where it has one.

    Attributes
    ----------
    channels, blocks, kernel
        Architecture (`histogep.models.network.network.CMUNet`).
    epochs, batch, lr, weight_decay, min_lr
        Passes over the sections, sections a step, and the cosine schedule of Adam.
    min_steps
        Least steps: of few sections there are more passes than `epochs` (`passes`).
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
    min_steps: int = 800
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
        if self.min_steps < 0:
            raise InputError(f"min_steps is {self.min_steps}: it must be at least 0")
        if not 0 <= self.feature_dropout < 1:
            raise InputError(f"feature_dropout is {self.feature_dropout}: it must be in [0, 1)")
        if self.precision not in ("auto", "bfloat16", "float32"):
            raise InputError(f"precision is {self.precision!r}: give auto, bfloat16 or float32")

    def passes(self, n_sections: int) -> int:
        """Return the passes over so many training sections: `epochs`, or what `min_steps` needs."""
        return max(self.epochs, math.ceil(self.min_steps / math.ceil(n_sections / self.batch)))


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
    passes
        Epochs of the whole schedule.
    seconds
        Of each row of `history`.
    score
        Validation score of that epoch; NaN without validation sections.
    scores
        That score by task; of both tasks, mean in-section r and AUROC apart.
    """

    network: CMUNet
    target_mean: np.ndarray
    target_sd: np.ndarray
    history: pd.DataFrame
    seconds: list[float]
    best_epoch: int
    passes: int
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
    stop_after: float | None = None,
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
        (rows, cols): the paper's protocol, loss over every position of such a grid and targets
        in their own units. None: in-tissue positions and scaled targets.
    stop_after
        Stop after this share of the schedule, above 0 and at most 1: schedules of other numbers of
        sections differ in their epochs.
    checkpoint
        Where the state is kept. Training that finds one continues from it; stopped by
        SIGTERM it saves its state after the current step and raises SystemExit.
    device
        "cpu" or "cuda".
    """
    started = time.monotonic()
    with determinism(seed, device):
        target_mean, target_sd = target_scale(train, task, scaled=whole_grid is None)
        shown = settings.symmetries and whole_grid is None
        grids = grids_of(train, lattice, whole_grid, symmetries=shown)
        held = grids_of(validation, lattice, whole_grid, symmetries=False)
        scale = (target_mean, target_sd)
        data = [Resident(s, g, scale, device) for s, g in zip(train, grids, strict=True)]
        judges = [Resident(s, g, scale, device) for s, g in zip(validation, held, strict=True)]
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
        shape = common_shape(grids)
        whole = whole_grid is not None
        loss = Loss(task, whole=whole, correlation=0.0 if whole else settings.correlation)
        dropout = 0.0 if whole else settings.feature_dropout
        progress = Progress(rng=np.random.default_rng(seed))
        found = checkpoint.load() if checkpoint else None
        if found:
            progress = Progress.from_record(found[1])
            if progress.finished:
                progress.best_weights = named(found[0], "best")
            else:
                progress.best_weights = restore_state(found[0], network, optimiser)
            LOG.info("resumed in epoch %d, step %d", progress.epoch, progress.step + 1)
        whole_schedule = settings.passes(len(data))
        epochs = max(1, round(whole_schedule * (stop_after or 1.0)))
        n_before = len(progress.rows)

        def keep(checkpoint: Checkpoint) -> None:
            if progress.finished and progress.best_weights is not None:
                best = {f"best.{k}": v for k, v in progress.best_weights.items()}
                checkpoint.save(best, progress.to_record())
            else:
                arrays = state_arrays(network, optimiser, progress.best_weights)
                checkpoint.save(arrays, progress.to_record())

        with until_sigterm() if checkpoint else contextlib.nullcontext(lambda: False) as stopped:
            while not progress.finished:
                begun, lr = time.monotonic(), _cosine(progress.epoch - 1, whole_schedule, settings)
                for group in optimiser.param_groups:
                    group["lr"] = lr
                if not progress.order:
                    progress.order = progress.rng.permutation(len(data)).tolist()
                batches = np.array_split(progress.order, math.ceil(len(data) / settings.batch))
                network.train()
                for batch in batches[progress.step :]:
                    items = [data[i] for i in batch]
                    grid, index = assemble(items, shape, progress.rng, dropout)
                    with autocast(settings.precision, device):
                        output = network(grid.contiguous(memory_format=layout))
                    value = loss(output.float(), items, index)
                    optimiser.zero_grad(set_to_none=True)
                    value.backward()
                    optimiser.step()
                    progress.total += float(value.detach()) * len(batch)
                    progress.step += 1
                    if stopped() and progress.step < len(batches):
                        progress.spent += time.monotonic() - begun
                        break  # what is kept goes on within the epoch
                else:
                    row = {"epoch": progress.epoch, "lr": lr}
                    row |= {"train_loss": progress.total / len(data)}
                    row |= validate(network, judges, loss, task, settings.precision, device, scale)
                    progress.spent += time.monotonic() - begun
                    LOG.info(
                        "epoch %d: lr %.3g, loss %.4f, validation %.4f, score %.4f, %.2f s",
                        *(progress.epoch, lr, row["train_loss"], row["validation_loss"]),
                        *(row["validation_score"], progress.spent),
                    )
                    if not math.isfinite(row["train_loss"]):
                        raise InputError(
                            f"training diverged in epoch {progress.epoch}: lower lr "
                            f"({settings.lr:g})"
                        )
                    progress.end_epoch(row, network, last=epochs)
                told = stopped()
                if checkpoint and (told or progress.finished or checkpoint.due):
                    keep(checkpoint)
                if told and checkpoint:
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
        seconds=progress.seconds,
        best_epoch=best_epoch,
        passes=whole_schedule,
        score=best_score,
        scores=scores_by_task(rows, best_epoch, task),
    )


def _cosine(epoch: int, passes: int, settings: TrainingSettings) -> float:
    """Return the learning rate of an epoch (from 0) of a schedule of so many."""
    share = (1 + math.cos(math.pi * epoch / passes)) / 2
    return settings.min_lr + (settings.lr - settings.min_lr) * share
