"""Whether a model needs torch, and on which device it then runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: What a GPU's driver puts there: NVIDIA's, that of Windows' subsystem for Linux, and AMD's.
_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")

#: Kinds of models that are trained in torch; only the first is applied in it too.
_TRAINED = ("cmunet", "lattice", "blend")


def needs_torch(settings: Mapping[str, Any]) -> bool:
    """Return whether a trained model is applied in torch: a CMU-Net, or a mean with one."""
    if settings.get("absent"):
        return False
    members = settings.get("members") or {}
    nested = members.values() if isinstance(members, Mapping) else ()
    return settings["kind"] == "cmunet" or any(needs_torch(member) for member in nested)


def trains_in_torch(settings: Mapping[str, Any]) -> bool:
    """Return whether a model of these settings is trained in torch."""
    return settings["kind"] in _TRAINED


def choose_device(wanted: bool, *, gpu: int | None, threads: int) -> str:
    """Return "cuda" where one is granted and visible, else "cpu" with so many threads.

    Parameters
    ----------
    wanted
        Whether the model is a network; linear ones do not use torch.
    gpu
        GPUs that the job was granted.
    threads
        CPU threads that the job may use.
    """
    if not wanted:
        return "cpu"
    import torch

    torch.set_num_threads(threads)
    return "cuda" if gpu and torch.cuda.is_available() else "cpu"


def sees_gpu(gpu: int | None) -> bool:
    """Return whether a GPU is granted and torch sees it; without a driver torch is not asked."""
    if not gpu or not any(Path(driver).exists() for driver in _DRIVERS):
        return False
    import torch

    return torch.cuda.is_available()
