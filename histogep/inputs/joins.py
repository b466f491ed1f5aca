"""Joins of two files by name or position: the share that matched, and what explains the rest.

A join with few matches is the commonest cause of silent wrong answers: barcodes with another
suffix, coordinates of a smaller image, ids of another section. So the share is always logged; below
a half a warning is logged, and a share near zero is refused.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from histogep.errors import InputError

log = logging.getLogger(__name__)

#: Share below which a warning is logged, and share below which the join is refused.
HALF, NEAR_NOTHING = 0.5, 0.1
_ST_NAME = re.compile(r"(\d+(?:\.\d+)?)x(\d+(?:\.\d+)?)")
_SEQUENCE = re.compile(r"[ACGTN]{10,}")


def judge_join(
    what: str,
    found: int,
    total: int,
    *,
    explain: Callable[[], str] = lambda: "",
    error: type[InputError] = InputError,
) -> str:
    """Log the share of a join; warn below a half, refuse near zero.

    Parameters
    ----------
    what
        The join as a clause: "spots of a.csv that are among those of b.h5".
    found, total
        Number that matched, and number in all.
    explain
        Returns an explanation of a low share, "" if there is none; called for low shares only.
    error
        Exception that is raised.

    Returns
    -------
    str
        The sentence that was logged.
    """
    share = found / total if total else 0.0
    said = f"{found} of {total} {what} ({share:.0%})"
    if share >= HALF:
        log.info("%s", said)
        return said
    reason = explain()
    said += f"; {reason}" if reason else ""
    if share < NEAR_NOTHING:
        raise error(f"only {said}")
    log.warning("only %s", said)
    return said


def explain_names(given: Iterable[str], known: Iterable[str]) -> str:
    """Return how names of one file could match those of another, with examples of both.

    Parameters
    ----------
    given, known
        Names of spots (barcodes, or XxY of legacy ST).
    """
    given, known = [str(name) for name in given], [str(name) for name in known]
    there = set(known)
    best, reason = sum(name in there for name in given), ""
    for how, change, change_known in _CHANGES:
        targets = {change_known(name) for name in known} if change_known else there
        n = len({change(name) for name in given} & (targets - {""}))
        if n > max(2 * best, best + 2, len(given) // 4):
            best, reason = n, how
    odd = [name for name in given if name not in there]
    examples = f"one names {', '.join(odd[:3])}, the other {', '.join(known[:3])}"
    if reason:
        return f"{examples}; {reason} {best} would match: change the names in one of the files"
    return f"{examples}; both files must be of the same section"


def round_st_names(names: Sequence[str] | np.ndarray) -> np.ndarray | None:
    """Return names such as 9.98x13.02 as 10x13; None if they are not all of that kind.

    Places of legacy ST arrays are refined on the image; their names then are not whole.

    Raises
    ------
    InputError
        Two spots would have one name.
    """
    found = [match for name in names if (match := _ST_NAME.fullmatch(str(name)))]
    if not found or len(found) < len(names):
        return None
    rounded = np.array(
        [f"{round(float(match[1]))}x{round(float(match[2]))}" for match in found], dtype=object
    )
    if len(set(rounded)) < len(rounded):
        seen: dict[str, str] = {}
        for match, name in zip(found, rounded, strict=True):
            if name in seen:
                raise InputError(
                    f"spots {seen[name]} and {match[0]} both lie nearest to {name} of the array: their "
                    "places are not array coordinates"
                )
            seen[name] = match[0]
    return rounded


def _sequence(name: str) -> str:
    match = _SEQUENCE.search(name.upper())
    return match[0] if match else ""


def _swapped(name: str) -> str:
    match = _ST_NAME.fullmatch(name)
    return f"{match[2]}x{match[1]}" if match else ""


def _rounded(name: str) -> str:
    match = _ST_NAME.fullmatch(name.removeprefix("X"))
    return f"{round(float(match[1]))}x{round(float(match[2]))}" if match else ""


def _st_style(name: str) -> str:
    match = re.fullmatch(r"X?(\d+)[x_,:.\- ](\d+)", name)
    return f"{match[1]}x{match[2]}" if match else ""


def _bare(name: str) -> str:
    return re.sub(r"-\d+$", "", name)


#: What is done to the names of one file, and to those of the other (None: nothing).
_CHANGES: tuple[tuple[str, Callable[[str], str], Callable[[str], str] | None], ...] = (
    ("without the suffix -1 that only one of them has", _bare, _bare),
    ("with - in place of .", lambda name: name.replace(".", "-"), lambda n: n.replace(".", "-")),
    ("in upper case", str.upper, str.upper),
    ("with x and y swapped", _swapped, None),
    ("with the coordinates rounded", _rounded, _rounded),
    ("written as XxY", _st_style, _st_style),
    (
        "by the letters of the barcode alone (without what stands before and after)",
        *2 * (_sequence,),
    ),
)
