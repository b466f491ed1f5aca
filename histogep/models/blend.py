"""How much of the lattice network a blend takes: weighed on left-out patients (numpy; no torch).

A candidate is a share of the network, a snapshot of its training, and how many of its gene programmes
it uses; a share of 0, the light head alone, is always among them. Each is scored on patients that
neither the member of the committee nor the light head it is mixed with has seen. The candidates are
averaged, not chosen: with few patients the best one is best by luck.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from histogep.models.linear import weigh_candidates
from histogep.models.selection import section_score

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
#: Numbers of programmes to weigh.
RANKS = (5, 10, 16)
#: What the noise of one patient's paired gain is taken to be at least, and at most.
NOISE_LIMITS = (0.003, 0.03)


@dataclass(frozen=True)
class LeftOut:
    """One section that its models have not seen, in deviations from its means.

    Attributes
    ----------
    patient
        Id.
    truth, light
        Measured, and predicted by the light head, (n, g).
    programmes
        Predicted by the network at each snapshot, (snapshots, n, k).
    decoder
        Genes of each programme, (k, g).
    """

    patient: str
    truth: np.ndarray
    light: np.ndarray
    programmes: np.ndarray
    decoder: np.ndarray


@dataclass(frozen=True)
class Candidate:
    """A share of the network, the snapshot and the number of programmes it is made of."""

    share: float
    snapshot: int
    rank: int


@dataclass(frozen=True)
class Mixture:
    """What the weighed candidates add up to.

    Attributes
    ----------
    light
        Share of the light head.
    factors
        What each programme of each snapshot is multiplied by, (snapshots, k).
    """

    light: float
    factors: np.ndarray

    def of(self, section: LeftOut) -> np.ndarray:
        """Return the prediction (n, g) of a section, in deviations from its means."""
        network = np.einsum("snk,sk->nk", section.programmes, self.factors) @ section.decoder
        return self.light * section.light + network


def candidates(
    n_snapshots: int, n_programmes: int, *, shares: Sequence[float] = SHARES
) -> list[Candidate]:
    """Return the candidates; a share of 0 is one, whatever the snapshot and the rank, and the first."""
    ranks = sorted({min(rank, n_programmes) for rank in RANKS})
    some = [share for share in shares if share > 0]
    others = itertools.product(some, range(n_snapshots), ranks)
    none = [Candidate(0.0, 0, 0)] if 0 in shares else []
    return none + [Candidate(*other) for other in others]


def score_candidates(section: LeftOut, found: Sequence[Candidate]) -> np.ndarray:
    """Return the mean correlation over the genes of a section of each candidate.

    A gene that does not vary on the section is left out; one that is predicted constant counts as 0.
    All correlations follow from the cross products of truth, light head and programmes.
    """
    truth, light, decoder = section.truth, section.light, section.decoder
    norm = np.sqrt((truth**2).sum(0))
    varies = norm > 1e-9
    if not varies.any():
        return np.zeros(len(found))
    light_truth, light_light = (light * truth).sum(0), (light**2).sum(0)
    with_truth = [part.T @ truth for part in section.programmes]
    with_light = [part.T @ light for part in section.programmes]
    with_self = [part.T @ part for part in section.programmes]
    scores = np.empty(len(found))
    for c, one in enumerate(found):
        product, square = (1 - one.share) * light_truth, (1 - one.share) ** 2 * light_light
        if one.share:
            used = decoder[: one.rank]
            square = square + one.share**2 * (
                used * (with_self[one.snapshot][: one.rank, : one.rank] @ used)
            ).sum(0)
            both = (used * with_light[one.snapshot][: one.rank]).sum(0)
            square = square + 2 * one.share * (1 - one.share) * both
            network = (used * with_truth[one.snapshot][: one.rank]).sum(0)
            product = product + one.share * network
        own = np.sqrt(np.maximum(square, 0.0))
        defined = varies & (own > 1e-12 * max(float(own.max()), 1e-300))
        correlation = np.where(defined, product / np.where(defined, own * norm, 1.0), 0.0)
        scores[c] = correlation[varies].mean()
    return scores


def weigh(
    scores: np.ndarray, groups: Sequence[str], found: Sequence[Candidate]
) -> tuple[np.ndarray, float]:
    """Return the weight of each candidate, and the noise they were weighed by.

    All shares begin with the same weight. The noise is the deviation over patients of the gain over
    the first candidate, in a blend the light head, pooled over the others and held in
    `NOISE_LIMITS`: paired gains vary far less than scores do. With a single patient it cannot be
    known, and is the upper limit.

    Parameters
    ----------
    scores
        (candidates, sections), of left-out sections.
    groups
        The patient of each section.
    found
        The candidates.
    """
    patients = list(dict.fromkeys(groups))
    prior = np.array([1.0 / sum(o.share == one.share for o in found) for one in found])
    prior /= prior.sum()
    if not patients:
        return prior, NOISE_LIMITS[1]
    gains = scores - scores[0]
    of_patient = [[i for i, group in enumerate(groups) if group == name] for name in patients]
    by_patient = np.stack([gains[:, own].mean(1) for own in of_patient], axis=1)
    noise = NOISE_LIMITS[1]
    if len(patients) > 1:
        pooled = float(np.sqrt(by_patient[1:].var(axis=1, ddof=1).mean()))
        noise = float(np.clip(pooled, *NOISE_LIMITS))
    weights = weigh_candidates(
        by_patient.mean(1), n_patients=len(patients), noise=noise, prior=prior
    )
    return weights, noise


def mix(weights: np.ndarray, found: Sequence[Candidate], shape: tuple[int, int]) -> Mixture:
    """Return what weighed candidates add up to; `shape` is (snapshots, programmes)."""
    factors = np.zeros(shape)
    light = 0.0
    for weight, one in zip(weights, found, strict=True):
        light += weight * (1 - one.share)
        factors[one.snapshot, : one.rank] += weight * one.share
    return Mixture(float(light), factors)


def cross_fitted_score(
    sections: Sequence[LeftOut], scores: np.ndarray, found: Sequence[Candidate]
) -> float | None:
    """Return the mean score of the mixture on patients left out of the weighing.

    The weights with which a patient is predicted come from the other patients, so that weighing does
    not flatter the mixture. None with fewer than two patients.

    Parameters
    ----------
    sections
        Left-out sections.
    scores, found
        As for `weigh`.
    """
    groups = [section.patient for section in sections]
    patients = list(dict.fromkeys(groups))
    if len(patients) < 2:
        return None
    means = []
    for patient in patients:
        others = [i for i, group in enumerate(groups) if group != patient]
        weights, _ = weigh(scores[:, others], [groups[i] for i in others], found)
        own = [i for i, group in enumerate(groups) if group == patient]
        parts = []
        for i in own:
            mixture = mix(weights, found, sections[i].programmes.shape[::2])
            parts.append(section_score(mixture.of(sections[i]), sections[i].truth))
        means.append(np.mean(parts))
    return float(np.mean(means))
