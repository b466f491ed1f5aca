"""Report all that is wrong with a user's input in one message."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from histogep.errors import InputError

T = TypeVar("T")


class Problems:
    """Errors of several readers and checks, so that a user sees all at once and not one by one."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def run(self, check: Callable[..., T], *args: Any, default: T, **options: Any) -> T:
        """Return what a reader or check returns; `default` if it raises, and keep the message."""
        try:
            return check(*args, **options)
        except InputError as error:
            if str(error) not in self.messages:
                self.messages.append(str(error))
            return default

    def refuse(self) -> None:
        """Raise an InputError with every message, unless there is none."""
        if self.messages:
            raise InputError("\n".join(self.messages))


def refuse_file(path: str | Path, problems: Sequence[str]) -> None:
    """Raise an InputError with all problems of one file, in the order of its lines, unless none.

    Problems that concern no single line come first.
    """
    if problems:
        ordered = sorted(problems, key=_line_of)
        count = "1 problem" if len(ordered) == 1 else f"{len(ordered)} problems"
        told = "\n".join(f"  {line}" for line in ordered[:50])
        more = f"\n  and {len(ordered) - 50} more" if len(ordered) > 50 else ""
        raise InputError(f"{path} has {count}:\n{told}{more}")


def _line_of(problem: str) -> int:
    found = re.match(r"lines? (\d+)", problem)
    return int(found[1]) if found else 0
