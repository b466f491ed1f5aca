"""Shared parts of linear models: cross products of sections, their fit, weights of candidates."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import linalg

from histogep.errors import InputError
from histogep.models.selection import inner_folds

LOG = logging.getLogger(__name__)
#: Noise of one patient's mean in-section correlation, by which candidates are weighted.
SCORE_NOISE = 0.03


@dataclass
class Sums:
    """Cross products of one group's sections, centred: enough to fit a ridge without its spots."""

    features: np.ndarray  # (p, p)
    targets: np.ndarray  # (p, g)
    n: int

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.features + other.features, self.targets + other.targets, self.n + other.n)


def weigh_candidates(
    scores: np.ndarray,
    *,
    n_patients: int,
    noise: float = SCORE_NOISE,
    prior: np.ndarray | float = 1.0,
) -> np.ndarray:
    """Return the weight of each candidate, (encoder set, alpha) and so on; the weights add up to 1.

    With few patients the inner scores are noisy, and the best of many candidates is best by luck.
    So all are averaged, weighted by exp(score / temperature): ridge is linear, hence the mean of
    the models is one model. The temperature, the noise of a mean score, falls with the patients.

    Parameters
    ----------
    scores
        Mean score of each candidate.
    n_patients
        Patients that the scores are means over.
    noise
        Deviation of one patient's score.
    prior
        Weights before any score is known.
    """
    weights = np.exp((scores - scores.max()) * np.sqrt(n_patients) / noise)
    weights[weights < 1e-3] = 0.0
    weights = weights * prior
    return weights / weights.sum()


def sum_sections(
    features: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    *,
    centres: tuple[np.ndarray, np.ndarray] | None = None,
) -> Sums:
    """Return the cross products of sections, about their own means or about given `centres`."""
    total: Sums | None = None
    for x, y in zip(features, targets, strict=True):
        x_mean, y_mean = centres if centres is not None else (x.mean(0), y.mean(0))
        x, y = x - x_mean, y - y_mean
        part = Sums(x.T @ x, x.T @ y, len(x))
        total = part if total is None else total + part
    if total is None:
        raise ValueError("there is no section to sum over")
    return total


def solve(sums: Sums, alpha: float) -> np.ndarray:
    """Return the coefficients (p, g) that minimise squares + alpha * n * coefficients squared."""
    penalised = sums.features + alpha * sums.n * np.eye(len(sums.features))
    return linalg.solve(penalised, sums.targets, assume_a="pos")


def candidate_sets(names: list[str], given: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return the encoder sets to choose from: those given, or each encoder alone and all."""
    sets = [list(names)] if len(names) == 1 else [*([name] for name in names), list(names)]
    if given:
        sets = [list(dict.fromkeys(part)) for part in given]
    for part in sets:
        unknown = [name for name in part if name not in names]
        if unknown or not part:
            raise InputError(
                f"encoder_sets names {unknown or 'no encoder'}; the features have {names}"
            )
    return sets


def held_out_sections(groups: Sequence[str]) -> list[list[int]]:
    """Return the sections left out together; of a single patient each by itself, with a warning."""
    hands = inner_folds(groups)
    if len(hands) < 2:
        LOG.warning("one training patient: penalties are chosen between its own sections")
        hands = [[i] for i in range(len(groups))] if len(groups) > 1 else []
        return hands
    return [[i for i, group in enumerate(groups) if group in hand] for hand in hands]
