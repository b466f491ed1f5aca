"""Number format, memory layout and algorithms with which a network runs (torch)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def determinism(seed: int, device: str) -> Iterator[None]:
    """Fix the seed and the algorithms for a block; CUDA only warns where it has no fixed one."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.get_deterministic_debug_mode()
    torch.manual_seed(seed)
    torch.set_deterministic_debug_mode("error" if device == "cpu" else "warn")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)


def precision_on(precision: str, device: str) -> str:
    """Return what a precision means on a device: "auto" is bfloat16 where that is fast."""
    if precision == "auto":
        return "bfloat16" if fast_bfloat16(device) else "float32"
    return precision


def autocast(precision: str, device: str) -> Any:
    """Return the context in which a network runs: bfloat16 where asked for, or where it is fast."""
    if precision_on(precision, device) == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device, dtype=torch.bfloat16)


def memory_format_of(precision: str, device: str) -> torch.memory_format:
    """Return the memory layout of convolution weights: channels last, but not in float32 on a CPU.

    There the gradients of channels-last convolutions cost twice as much (oneDNN with AVX2).
    """
    in_float32 = precision_on(precision, device) == "float32"
    return torch.contiguous_format if in_float32 and device == "cpu" else torch.channels_last


def fast_bfloat16(device: str) -> bool:
    """Return whether the device multiplies in bfloat16 (CUDA since Ampere; CPUs with AMX)."""
    if device != "cpu":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has: dict[str, bool] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # older versions of torch: none known
    return bool(has.get("amx_tile") or has.get("avx512_bf16"))
