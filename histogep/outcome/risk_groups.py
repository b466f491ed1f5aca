"""Patients of high and of low out-of-fold risk: Kaplan-Meier, log-rank, and how long they are followed.

The chi-square law of the log-rank test takes the groups as independent of the outcomes, which
out-of-fold groups are not: the outcomes of the other folds made them. So the statistic stands
beside its own under shuffled images (or covariates), each through the whole procedure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from lifelines import KaplanMeierFitter
from lifelines.statistics import logrank_test
from lifelines.utils import concordance_index, qth_survival_time, qth_survival_times

from histogep.outcome.nested_cv import NestedScores
from histogep.stats.cox import permuted_score_z
from histogep.stats.discrimination import permutation_p

COLUMNS = [
    *("model", "high", "low", "events_high", "events_low"),
    *("median_high", "median_high_ci_low", "median_high_ci_high"),
    *("median_low", "median_low_ci_low", "median_low_ci_high"),
    *("chi2", "p_independent", "z", "null_z", "p"),
]
FOLLOW_UP_COLUMNS = [
    *("group", "patients", "events", "median_survival", "survival_ci_low", "survival_ci_high"),
    *("median_follow_up", "follow_up_ci_low", "follow_up_ci_high"),
]


def concordance(time: np.ndarray, event: np.ndarray, risk: np.ndarray) -> float:
    """Return lifelines' concordance index of a risk; NaN where no two patients can be compared."""
    try:
        return float(concordance_index(time, -np.asarray(risk, float), event))
    except ZeroDivisionError:
        return float("nan")


def above_median(risk: np.ndarray) -> np.ndarray:
    """Return who is above the median of each row of risks."""
    return risk > np.median(risk, axis=-1, keepdims=True)


def median_time(time: np.ndarray, event: np.ndarray) -> tuple[float, float, float]:
    """Return lifelines' median survival with its 95 % interval; NaN where it is not reached.

    With `event` turned round (1 for censored) it is the median follow-up by the reverse
    Kaplan-Meier estimate (Schemper and Smith, Control Clin Trials 1996).
    """
    if not len(time):
        return (float("nan"),) * 3
    fitted = KaplanMeierFitter().fit(time, event)
    # A curve that is a half exactly is so up to rounding.
    half = 0.5 + 1e-9
    bounds = qth_survival_times(half, fitted.confidence_interval_survival_function_)
    values = (qth_survival_time(half, fitted.survival_function_), *bounds.to_numpy()[0])
    median, low, high = (float(value) if np.isfinite(value) else float("nan") for value in values)
    return median, low, high


def follow_up(
    time: np.ndarray, event: np.ndarray, groups: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """Return median survival and median follow-up (reverse Kaplan-Meier) of groups of patients.

    Parameters
    ----------
    time, event
        Outcome, (n,).
    groups
        Name -> which patients, (n,) bool.

    Returns
    -------
    DataFrame
        `FOLLOW_UP_COLUMNS`; months, NaN for a median or a bound that is not reached.
    """
    time, event = np.asarray(time, float), np.asarray(event).astype(bool)
    rows = [
        (
            *(name, int(own.sum()), int(event[own].sum())),
            *median_time(time[own], event[own]),
            *median_time(time[own], ~event[own]),
        )
        for name, own in groups.items()
    ]
    return pd.DataFrame(rows, columns=FOLLOW_UP_COLUMNS)


def group_z(time: np.ndarray, event: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return the score z of Cox's model with one group, for several groupings, (G,).

    Positive where the high group has more events than expected of one common hazard. Without tied
    events its square is the chi-square of the log-rank test, whose hypergeometric variance differs
    from Efron's at ties. NaN for a group without patients.

    Parameters
    ----------
    time, event
        Outcome, (n,).
    high
        Groupings x patients.
    """
    high = np.asarray(high, float)
    z = permuted_score_z(high.T, time, event, outcome_of=np.arange(len(time))[None])[0]
    one_group = np.ptp(high, axis=1) == 0
    return np.where(one_group, np.nan, z)


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
        model; patients, events and median survival with its interval (months; NaN: not reached) of
        both halves; chi2 and p_independent of lifelines' log-rank test, whose law does not hold
        here; z (`group_z`: positive when those of high risk die earlier), null_z (mean over the
        shuffles) and p (one-sided, of z among the shuffles; NaN without).
    """
    time, event = np.asarray(time, float), np.asarray(event).astype(int)
    rows: list[dict[str, Any]] = []
    for model in repeats[0].scores:
        high = above_median(np.mean([r.scores[model] for r in repeats], axis=0))
        shuffled = np.mean([r.shuffled[model] for r in repeats], axis=0)
        row: dict[str, Any] = {"model": model}
        for name, own in (("high", high), ("low", ~high)):
            middle, *bounds = median_time(time[own], event[own])
            row |= {name: int(own.sum()), f"events_{name}": int(event[own].sum())}
            row |= {f"median_{name}": middle}
            row |= dict(
                zip((f"median_{name}_ci_low", f"median_{name}_ci_high"), bounds, strict=True)
            )
        z, null = float(group_z(time, event, high[None])[0]), np.zeros(0)
        row |= {"chi2": np.nan, "p_independent": np.nan}
        if high.any():
            test = logrank_test(time[high], time[~high], event[high], event[~high])
            row |= {"chi2": test.test_statistic, "p_independent": test.p_value}
        if len(shuffled):
            null = group_z(time, event, above_median(shuffled))
        row |= {
            "z": z,
            "null_z": float(np.nanmean(null)) if np.isfinite(null).any() else np.nan,
            "p": permutation_p(z, null),
        }
        rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)
