"""Log-rank test of two groups of patients, many groupings at once, and its null by shuffles.

The groups are patients above and below the median of an out-of-fold risk. The chi-square law of the
test takes the groups as independent of the outcomes, which out-of-fold groups are not: the outcomes
of the other folds made them. So the statistic stands beside its own under shuffled images (or
covariates), each through the whole procedure.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from histogep.discrimination import permutation_p
from histogep.nested import NestedScores

COLUMNS = [
    "model", "high", "low", "events_high", "events_low", "median_high", "median_low", "chi2",
    "p_independent", "z", "null_z", "p",
]  # fmt: skip


def log_rank_z(time: np.ndarray, event: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return the signed root of the log-rank chi-square of several groupings, (G,).

    Positive where the high group has more events than expected of one common hazard (Mantel 1966,
    hypergeometric variance at tied times). NaN for a group without patients.

    Parameters
    ----------
    time, event
        Outcome, (n,).
    high
        Groupings x patients.
    """
    time, event = np.asarray(time, float), np.asarray(event).astype(bool)
    high = np.asarray(high, float)
    moments = np.unique(time[event])
    at_risk = (time[:, None] >= moments).astype(float)
    died = ((time[:, None] == moments) & event[:, None]).astype(float)
    n, d = at_risk.sum(axis=0), died.sum(axis=0)
    n_high, d_high = high @ at_risk, high @ died
    share = n_high / n
    spread = d * share * (1 - share) * (n - d) / np.maximum(n - 1, 1)
    variance = spread.sum(axis=1)
    excess = (d_high - d * share).sum(axis=1)
    return np.where(variance > 0, excess / np.sqrt(np.where(variance > 0, variance, 1)), np.nan)


def median_survival(time: np.ndarray, event: np.ndarray) -> float:
    """Return the first time by which the Kaplan-Meier estimate is .5 or less; NaN if there is none."""
    time, event = np.asarray(time, float), np.asarray(event).astype(bool)
    moments = np.unique(time[event])
    at_risk = (time[:, None] >= moments).sum(axis=0)
    died = ((time[:, None] == moments) & event[:, None]).sum(axis=0)
    half = np.flatnonzero(np.cumprod(1 - died / at_risk) <= 0.5 + 1e-12)
    return float(moments[half[0]]) if len(half) else float("nan")


def above_median(risk: np.ndarray) -> np.ndarray:
    """Return who is above the median of each row of risks."""
    return risk > np.median(risk, axis=-1, keepdims=True)


def compare_halves(
    repeats: Sequence[NestedScores], time: np.ndarray, event: np.ndarray
) -> pd.DataFrame:
    """Compare patients of high and of low out-of-fold risk, by every model.

    Parameters
    ----------
    repeats
        Nested scores of a `CoxLearner`, one per repeat; the risk is their mean.
    time, event
        Outcome, (n,).

    Returns
    -------
    DataFrame
        model; patients, events and median survival (months; NaN: not reached) of both halves; chi2
        and p_independent of the log-rank test, whose law does not hold here; z (its signed root:
        positive when those of high risk die earlier), null_z (mean over the shuffles) and p
        (one-sided, over the shuffles; NaN without).
    """
    time, event = np.asarray(time, float), np.asarray(event).astype(int)
    rows = []
    for model in repeats[0].scores:
        high = above_median(np.mean([r.scores[model] for r in repeats], axis=0))
        shuffled = np.mean([r.shuffled[model] for r in repeats], axis=0)
        z = float(log_rank_z(time, event, high[None])[0])
        null = log_rank_z(time, event, above_median(shuffled)) if len(shuffled) else np.zeros(0)
        rows.append(
            {
                "model": model,
                "high": int(high.sum()),
                "low": int((~high).sum()),
                "events_high": int(event[high].sum()),
                "events_low": int(event[~high].sum()),
                "median_high": median_survival(time[high], event[high]),
                "median_low": median_survival(time[~high], event[~high]),
                "chi2": z**2,
                "p_independent": float(stats.chi2.sf(z**2, 1)),
                "z": z,
                "null_z": float(np.nanmean(null)) if np.isfinite(null).any() else np.nan,
                "p": permutation_p(z, null),
            }
        )
    return pd.DataFrame(rows, columns=COLUMNS)
