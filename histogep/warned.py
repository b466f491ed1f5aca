"""Warnings of the library: which of them decide a result, which slide they are of, and who hears them.

A warning is a line of the standard `logging`, as anywhere. Two marks may be added to it:

    log.warning("the spots do not fall into two groups: …", **decides("tumour"))
    log.warning("section %s has spots of one class only", slide, **of_slide(slide))

A *deciding* warning is one without which a reader would take a number or a map for what it is not, or
look for one that is not there. It is repeated where that result stands.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

#: What a warning can decide, in the order of the analysis.
SUBJECTS = (
    *("slide", "expression", "tumour", "copy number", "neighbourhoods"),
    *("survival", "response", "enrichment"),
)


@dataclass(frozen=True)
class Warned:
    """One warning of a job, however often it was given.

    Attributes
    ----------
    text
        The message.
    decides
        The results that it decides, of `SUBJECTS`; empty for most warnings.
    slide
        The slide that it is of, where the call says so; "" otherwise.
    n
        How often it was given.
    """

    text: str
    decides: tuple[str, ...] = ()
    slide: str = ""
    n: int = 1


def decides(*subjects: str, slide: str = "") -> dict[str, Any]:
    """Return the keywords of a logging call whose message decides a result.

    Parameters
    ----------
    subjects
        What it decides, of `SUBJECTS`.
    slide
        The slide it is of, where the job is not of that slide alone.

    Raises
    ------
    ValueError
        A subject is none of `SUBJECTS`.
    """
    unknown = [subject for subject in subjects if subject not in SUBJECTS]
    if unknown or not subjects:
        raise ValueError(f"a warning decides one of {', '.join(SUBJECTS)}, not {unknown}")
    return {"extra": {"decides": subjects, "of_slide": str(slide)}}


def of_slide(slide: str) -> dict[str, Any]:
    """Return the keywords of a logging call of one slide, in a job of several."""
    return {"extra": {"of_slide": str(slide)}}


class Heard(logging.Handler):
    """Keeps the warnings of the library that are given while it listens, each once with its number."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._counts: dict[tuple[str, tuple[str, ...], str], int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning."""
        key = (
            record.getMessage(),
            tuple(getattr(record, "decides", ())),
            str(getattr(record, "of_slide", "")),
        )
        self._counts[key] = self._counts.get(key, 0) + 1

    @property
    def warned(self) -> list[Warned]:
        """What was heard so far, in the order in which it was first given."""
        return [Warned(*key, n) for key, n in self._counts.items()]


@contextlib.contextmanager
def heard() -> Iterator[Heard]:
    """Listen to the warnings of the library in a block; those of other packages stay in the log."""
    logger, handler = logging.getLogger("histogep"), Heard()
    logger.addHandler(handler)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
