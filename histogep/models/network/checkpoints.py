"""Checkpoints of a training run: written when the job must stop, read when it is run again.

A cluster that takes a node back sends SIGTERM and kills the job soon after. A checkpoint holds all
that the rest of the training depends on, so that a resumed training ends with the weights of one
that was never stopped. Its file is named by the digest of settings, data and code: another training
never finds it. One safetensors file with the rest as JSON in its header; no pickle.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from histogep.files import complete

LOG = logging.getLogger(__name__)
#: Without a signal (a node that dies) at most this much of the training is lost.
SAVE_SECONDS = 300.0
#: Exit status that a shell reports for a process ended by SIGTERM.
TERMINATED = 128 + signal.SIGTERM
_RECORD = "record"


class Checkpoint:
    """The state of one training, in a folder that outlives the job.

    Parameters
    ----------
    folder
        Folder of the checkpoints, created with the first one.
    identity
        Digest of all that the training depends on (`digest`).
    """

    def __init__(self, folder: str | Path, *, identity: str):
        self.path = Path(folder) / f"{identity}.safetensors"
        self._saved = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the last checkpoint is old enough for another."""
        return time.monotonic() - self._saved >= SAVE_SECONDS

    def save(self, arrays: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Write the state, completely or not at all."""
        with complete(self.path) as temporary:
            save_file(
                {name: tensor.detach().cpu().contiguous() for name, tensor in arrays.items()},
                temporary,
                metadata={_RECORD: json.dumps(record)},
            )
        self._saved = time.monotonic()

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the arrays (on the CPU) and the record of this training; None without a state.

        A file that cannot be read is ignored with a warning.
        """
        if not self.path.is_file():
            if self.path.parent.is_dir() and any(self.path.parent.glob("*.safetensors")):
                LOG.info(
                    "%s holds no checkpoint of these settings, data and code: training starts from the beginning",
                    self.path.parent,
                )
            return None
        try:
            with safe_open(self.path, framework="pt", device="cpu") as file:
                record = json.loads(file.metadata()[_RECORD])
                return {name: file.get_tensor(name) for name in file.keys()}, record  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            LOG.warning(
                "%s cannot be read (%s): training starts from the beginning", self.path, error
            )
            return None


def digest(*parts: Any) -> str:
    """Return a SHA-256 over arrays (values, type and shape) and whatever JSON can write."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray) and part.dtype != object:
            total.update(f"{part.dtype.str}{part.shape}".encode())
            total.update(np.ascontiguousarray(part).data)
        else:
            plain = part.tolist() if isinstance(part, np.ndarray) else part
            total.update(json.dumps(plain, sort_keys=True).encode())
        total.update(b"\0")
    return total.hexdigest()


@contextlib.contextmanager
def until_sigterm() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether SIGTERM has arrived; the signal has no other effect.

    Outside the main thread, where Python sets no handlers, the signal keeps its effect.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    received = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: received.set())
    try:
        yield received.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


def state_arrays(
    network: torch.nn.Module, optimiser: torch.optim.Optimizer, best: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    """Return the tensors of a network, of its optimiser and of the best weights so far, by name."""
    arrays = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    for index, state in optimiser.state_dict()["state"].items():
        arrays |= {f"optimiser.{index}.{name}": tensor for name, tensor in state.items()}
    return arrays | {f"best.{name}": tensor for name, tensor in (best or {}).items()}


def restore_state(
    arrays: Mapping[str, Tensor], network: torch.nn.Module, optimiser: torch.optim.Optimizer
) -> dict[str, Tensor] | None:
    """Set a network and its optimiser to a saved state; return the best weights so far, if any.

    An optimiser's moments take the memory layout of their parameters, as they had before: fused
    kernels read both in the order in which they lie.
    """
    network.load_state_dict(named(arrays, "network"))
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in named(arrays, "optimiser").items():
        index, what = name.split(".")
        like = parameters[int(index)]
        if tensor.shape == like.shape and tensor.dim():
            tensor = torch.empty_like(like, requires_grad=False).copy_(tensor)
        states.setdefault(int(index), {})[what] = tensor
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": states, "param_groups": groups})
    return named(arrays, "best") or None


def named(arrays: Mapping[str, Tensor], stem: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `stem.`, without it."""
    prefix = f"{stem}."
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in arrays.items()
        if name.startswith(prefix)
    }
