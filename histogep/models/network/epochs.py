"""The epochs of a training run: progress, scores, and which one is kept (torch)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from histogep.encoders.precision import autocast
from histogep.models.network.data import Resident
from histogep.models.network.losses import Loss
from histogep.models.network.network import CMUNet
from histogep.models.sections import Grid
from histogep.models.selection import mean_over_groups, section_score
from histogep.stats.scores import auroc


@dataclass
class Progress:
    """Progress of a training run, with everything but the weights that the rest depends on."""

    rng: np.random.Generator
    epoch: int = 1
    step: int = 0  # steps of this epoch that are done
    order: list[int] = field(default_factory=list)  # of the sections in this epoch
    total: float = 0.0  # loss of this epoch so far
    spent: float = 0.0  # seconds of this epoch so far, also before a stop
    rows: list[dict[str, float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of each row
    best_epoch: int = 0
    best_score: float = -math.inf
    best_weights: dict[str, Tensor] | None = None
    finished: bool = False

    def end_epoch(self, row: dict[str, float], network: CMUNet, *, last: int) -> None:
        """Record an epoch, keep its weights if they are the best, and go to the next."""
        self.rows.append(row)
        self.seconds.append(self.spent)
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
        self.epoch, self.step, self.order = self.epoch + 1, 0, []
        self.total = self.spent = 0.0

    def to_record(self) -> dict[str, Any]:
        """Return all but the weights as plain numbers and text."""
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "best_weights"}
        return kept | {"rng": self.rng.bit_generator.state}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Progress:
        """Rebuild what `to_record` gave."""
        rng = np.random.default_rng()
        rng.bit_generator.state = record["rng"]
        return cls(**record | {"rng": rng})


@torch.inference_mode()
def validate(
    network: CMUNet,
    judges: Sequence[Resident],
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
            of_tumour.append(auroc(predicted[:, -1], item.measured[:, -1]))
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


def scores_by_task(rows: Sequence[dict[str, float]], epoch: int, task: str) -> dict[str, float]:
    """Return the validation scores of an epoch that are known, by task."""
    row = next(row for row in rows if row["epoch"] == epoch)
    columns = {task: "validation_score"}
    if task == "both":
        columns = {name: f"validation_{name}" for name in ("expression", "tumour")}
    known = {name: row[key] for name, key in columns.items() if math.isfinite(row[key])}
    # Without an AUROC, the epoch was chosen by the loss: a negative number, not a score.
    return {name: score for name, score in known.items() if name != "tumour" or score >= 0}
