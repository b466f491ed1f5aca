"""CPU time of one training step of CMU-Net against a plain float32 implementation, step by step.

Both train the same weights on the same batch (5 grids of 80 x 64 cells, 768 features -> 346 genes,
the paper's whole-grid loss); plain and ours take turns, so that whatever else the machine does
falls on both. The plain one is written out here: functional convolutions in float32, channels
first, Adam as it comes. Ours is `histogep.models.network.train.train_network` itself.

    python benchmarks_suite/training_step.py [--steps 6] [--threads 1]

Prints seconds of CPU a step (median of the rounds, the first left out), their ratio, also round by
round, and both loss curves.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from histogep.encoders.precision import determinism
from histogep.lattice import Lattice
from histogep.models.network import train as training
from histogep.models.network.data import NetworkSection
from histogep.models.network.network import CMUNet
from histogep.models.network.train import TrainingSettings, train_network

N_GRIDS, ROWS, COLS, N_FEATURES, N_GENES = 5, 80, 64, 768, 346
SEED = 1


def make_sections() -> list[NetworkSection]:
    """Return sections whose tissue fills most of the grid, with genes that follow the features."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(N_FEATURES, N_GENES)).astype(np.float32) / np.sqrt(N_FEATURES)
    row, col = (axis.ravel() for axis in np.indices((ROWS, COLS)))
    sections = []
    for number in range(N_GRIDS):
        kept = np.sort(rng.permutation(len(row))[: int(0.8 * len(row))])
        features = rng.normal(size=(len(kept), N_FEATURES)).astype(np.float32)
        targets = np.maximum(1 + features @ mixing, 0)
        background = np.zeros(N_FEATURES, np.float32)
        sections.append(
            NetworkSection(str(number), row[kept], col[kept], features, targets, background)
        )
    return sections


class Plain:
    """The same network, loss and optimiser in the plainest torch."""

    def __init__(self, sections: list[NetworkSection], settings: TrainingSettings):
        with determinism(SEED, "cpu"):
            network = CMUNet(N_FEATURES, N_GENES)
        self.weights = {name: p.detach().clone() for name, p in network.state_dict().items()}
        trained = [name for name, _ in network.named_parameters()]
        for name in trained:
            self.weights[name].requires_grad_()
        self.optimiser = torch.optim.Adam(
            [self.weights[name] for name in trained],
            lr=settings.lr,
            weight_decay=settings.weight_decay,
        )
        grids = np.zeros((N_GRIDS, ROWS, COLS, N_FEATURES), np.float32)
        truth = np.zeros((N_GRIDS, ROWS, COLS, N_GENES), np.float32)
        for place, section in enumerate(sections):
            grids[place, section.row, section.col] = section.features
            truth[place, section.row, section.col] = section.targets
        self.grids = torch.from_numpy(grids).permute(0, 3, 1, 2).contiguous()
        self.truth = torch.from_numpy(truth).permute(0, 3, 1, 2).contiguous()
        self.settings, self.losses = settings, []

    def convolve(self, x, name, **options):
        """Return a convolution with the weights of that name."""
        return functional.conv2d(
            x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], **options
        )

    def normalise(self, x, name):
        """Return a batch normalisation by the batch's own statistics."""
        w = self.weights
        return functional.batch_norm(
            x, w[f"{name}.running_mean"], w[f"{name}.running_var"], w[f"{name}.weight"],
            w[f"{name}.bias"], training=True,
        )  # fmt: skip

    def double(self, x, name):
        """Return two convolutions, each normalised and cut at 0."""
        for first in (0, 3):
            x = self.convolve(x, f"{name}.{first}", padding=1)
            x = functional.relu(self.normalise(x, f"{name}.{first + 1}"))
        return x

    def forward(self, x):
        """Return the network's answer to a batch of grids."""
        skips = []
        for stage in range(4):
            x = self.double(x, f"encoder.{stage}")
            skips.append(x)
            x = functional.max_pool2d(x, 2)
        x = self.double(x, "encoder.4")
        for block in range(7):
            name = f"bottleneck.{block}"
            space = self.convolve(x, f"{name}.space.0", padding=3, groups=x.shape[1])
            x = x + self.normalise(functional.gelu(space), f"{name}.space.2")
            x = self.normalise(functional.gelu(self.convolve(x, f"{name}.mix.0")), f"{name}.mix.2")
        for stage in range(4):
            up = functional.interpolate(x, scale_factor=2, mode="nearest")
            up = self.convolve(up, f"upward.{stage}.1", padding=1)
            up = functional.relu(self.normalise(up, f"upward.{stage}.2"))
            skip, name = skips.pop(), f"gates.{stage}"
            views = [
                self.normalise(
                    self.convolve(skip, f"{name}.views.{view}.0", padding=pad, dilation=dilation),
                    f"{name}.views.{view}.1",
                )
                for view, (pad, dilation) in enumerate(((0, 1), (1, 1), (2, 2)))
            ]
            vote = self.convolve(functional.relu(torch.cat(views, 1)), f"{name}.vote.0")
            vote = torch.sigmoid(self.normalise(vote, f"{name}.vote.1"))
            x = self.double(torch.cat([skip + skip * vote, up], 1), f"decoder.{stage}")
        return self.convolve(x, "head")

    def step(self):
        """Make one step; its loss goes to `losses`."""
        s, n = self.settings, len(self.losses)
        share = (1 + np.cos(np.pi * n / s.epochs)) / 2
        self.optimiser.param_groups[0]["lr"] = s.min_lr + (s.lr - s.min_lr) * share
        value = functional.mse_loss(self.forward(self.grids), self.truth)
        self.optimiser.zero_grad()
        value.backward()
        self.optimiser.step()
        self.losses.append(float(value.detach()))


def main() -> None:
    """Train both, in turns, and print what a step costs and what it learns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="auto")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = TrainingSettings(
        epochs=arguments.steps, min_steps=0, batch=N_GRIDS, symmetries=False, feature_dropout=0.0,
        precision=arguments.precision,
    )  # fmt: skip
    sections = make_sections()
    plain = Plain(sections, settings)
    ours, theirs, assemble, started = [], [], training.assemble, []

    def in_turns(*given):
        """Before each step of ours: end the clock of the last one, and make a plain step."""
        if started:
            ours.append(time.process_time() - started.pop())
        begun = time.process_time()
        plain.step()
        theirs.append(time.process_time() - begun)
        print(f"step {len(theirs)}: plain {theirs[-1]:.2f} s of CPU", flush=True)
        started.append(time.process_time())
        return assemble(*given)

    training.assemble = in_turns
    trained = train_network(
        sections, [], task="expression", lattice=Lattice("visium"), settings=settings, seed=SEED,
        whole_grid=(ROWS, COLS),
    )  # fmt: skip
    ours.append(time.process_time() - started.pop())
    losses = trained.history["train_loss"].to_numpy()
    off = np.abs(losses / plain.losses - 1)
    cost = [statistics.median(seconds[1:]) for seconds in (theirs, ours)]
    print(
        f"{N_GRIDS} grids of {ROWS} x {COLS} x {N_FEATURES} -> {N_GENES}, {arguments.threads} threads"
    )
    print(
        f"CPU s a step: plain float32 {cost[0]:.2f}, histogep {cost[1]:.2f}, ratio {cost[0] / cost[1]:.2f}"
    )
    rounds = [a / b for a, b in zip(theirs[1:], ours[1:], strict=True)]
    print(f"ratio round by round: {' '.join(f'{ratio:.2f}' for ratio in rounds)}")
    print("loss, plain:   ", " ".join(f"{loss:.4f}" for loss in plain.losses))
    print("loss, histogep:", " ".join(f"{loss:.4f}" for loss in losses))
    print(f"largest relative difference of the losses: {off.max():.4f}")


if __name__ == "__main__":
    main()
