"""Match two lists of ids, and explain it where few match."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from histogep.inputs.barcodes import patient_of

log = logging.getLogger(__name__)

#: Share of both lists below which ids are refused, if so many could match; and below which warned of.
NEAR_NOTHING, FEW = 0.1, 0.5
_ENOUGH = 10
_SUFFIX = re.compile(r"[._ -](?:dx|ts|bs|he|h&e|t|n|s|tumou?r|normal|slide)?\d{0,3}[a-z]?$")


def _padded(name: str) -> str:
    """Return a name without case, marks between its parts and leading zeros of its numbers."""
    parts = re.findall(r"[a-z]+|\d+", name.casefold())
    return "".join(part.lstrip("0") or "0" if part.isdigit() else part for part in parts)


#: Parts that ids may lack, and how each is described.
_WAYS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("blanks", lambda name: name.strip()),
    ("case", lambda name: name.strip().casefold()),
    ("leading zeros of numbers, or marks such as - and _", _padded),
    ("an ending such as .svs", lambda name: re.sub(r"\.[a-z0-9.]{2,9}$", "", name.casefold())),
    ("a decimal .0", lambda name: re.sub(r"\.0+$", "", name)),
    ("a suffix such as -01A or _T", lambda name: _SUFFIX.sub("", name.casefold())),
    ("what follows the patient in a barcode", lambda name: patient_of(name).casefold()[:12]),
    ("letters in front of a number", lambda name: re.sub(r"^\D*0*", "", name)),
)


@dataclass(frozen=True)
class Join:
    """How two lists of ids match.

    Attributes
    ----------
    n, n_others
        Different ids on either side.
    n_matched
        Ids that are on both.
    hint
        Explanation why so few match, with an example; "" if there is none.
    """

    n: int
    n_others: int
    n_matched: int
    hint: str

    @property
    def share(self) -> float:
        """The share of the ids that are among the others."""
        return self.n_matched / self.n if self.n else 0.0

    @property
    def near_nothing(self) -> bool:
        """Whether so few match that the lists cannot belong together."""
        smaller = min(self.n, self.n_others)
        if not smaller:
            return False
        return self.n_matched == 0 or (
            smaller >= _ENOUGH and self.n_matched / smaller < NEAR_NOTHING
        )

    @property
    def few(self) -> bool:
        """Whether less than half of the ids have a match."""
        return self.share < FEW


def join_ids(ids: Collection[str], others: Collection[str]) -> Join:
    """Return how ids match others; both as they are compared, barcodes cut to patients."""
    ours, theirs = set(ids), set(others)
    matched = ours & theirs
    # A number alone is not enough: P1 and H1 are two patients.
    ways = _WAYS if not matched else _WAYS[:-1]
    hint = _explain(ours - matched, theirs - matched, ways)
    return Join(len(ours), len(theirs), len(matched), hint)


def report_join(ids: Collection[str], others: Collection[str], what: str) -> None:
    """Log the share of patients that are in the clinical table; below a half as a warning."""
    met = join_ids(ids, others)
    log.log(
        logging.WARNING if met.few else logging.INFO,
        "%d of %d patients %s (%.0f %%) are in the clinical table%s",
        met.n_matched,
        met.n,
        what,
        100 * met.share,
        f"; {met.hint}" if met.hint else "",
    )


def _explain(
    ours: set[str], theirs: set[str], ways: Sequence[tuple[str, Callable[[str], str]]]
) -> str:
    """Return the least that ids must drop for half of the shorter list to match, and an example."""
    for told, strip in ways:
        others: dict[str, list[str]] = {}
        for name in sorted(theirs):
            others.setdefault(strip(name), []).append(name)
        met = [(name, others[strip(name)][0]) for name in sorted(ours) if strip(name) in others]
        met = [(name, other) for name, other in met if strip(name)]
        if len(met) >= max(1, FEW * min(len(ours), len(others))):
            example = f"{met[0][0]!r} and {met[0][1]!r}"
            return f"{len(met)} more would match without {told}: {example}"
    return ""
