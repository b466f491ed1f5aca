"""A progress bar for long work, silent when nobody watches."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(items: Iterable[T], *, total: int | None = None, unit: str, what: str) -> Iterable[T]:
    """Return `items` under a progress bar, silent when standard error is no terminal."""
    return tqdm(items, total=total, unit=unit, desc=what, disable=not sys.stderr.isatty())
