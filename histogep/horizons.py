"""Risk at fixed times: time-dependent AUC and calibration of out-of-fold predictions.

The AUC is the cumulative / dynamic one (Heagerty et al., Biometrics 2000) with inverse probability
of censoring weights (Uno et al., J Am Stat Assoc 2007): patients with the event by the time against
those without it, each of the first weighted by the chance of not having been censored before.
Calibration sets the mean predicted probability beside the Kaplan-Meier estimate in groups of risk.
"""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
from scipy import stats

from histogep.cox import RiskSets
from histogep.discrimination import bootstrap_concordance, bootstrap_weights, interval
from histogep.nested import NestedScores

log = logging.getLogger(__name__)

#: Patients of a calibration group, and most groups.
_GROUP, _MAX_GROUPS = 20, 5
#: Without so many cases and so many controls an AUC at a time says nothing.
MIN_CASES = 3


def uncensored_probability(time: np.ndarray, event: np.ndarray) -> np.ndarray:
    """Return each patient's chance of not being censored before their own time, (n,).

    The Kaplan-Meier estimate of the censoring, just before the time; of tied rows events come
    first.
    """
    time, censored = np.asarray(time, float), ~np.asarray(event).astype(bool)
    moments = np.unique(time[censored])
    at_risk = (time[None, :] >= moments[:, None]).sum(axis=1)
    # A patient whose event ties with a censoring has left before it.
    leaving = ((time[None, :] == moments[:, None]) & ~censored[None, :]).sum(axis=1)
    lost = ((time[None, :] == moments[:, None]) & censored[None, :]).sum(axis=1)
    steps = np.concatenate([[1.0], np.cumprod(1 - lost / (at_risk - leaving))])
    return steps[np.searchsorted(moments, time, side="left")]


def horizon_pairs(time: np.ndarray, event: np.ndarray, months: float) -> np.ndarray:
    """Return the weighted pairs (i, j): i had the event by `months`, j had none until then."""
    time, event = np.asarray(time, float), np.asarray(event).astype(bool)
    case, control = event & (time <= months), time > months
    weight = np.where(case, 1 / np.where(case, uncensored_probability(time, event), 1), 0.0)
    return weight[:, None] * control[None, :]


def event_probability(
    eta: np.ndarray, time: np.ndarray, event: np.ndarray, train: np.ndarray, months: np.ndarray
) -> np.ndarray:
    """Return the chance of an event by each time, with Breslow's baseline of the training rows.

    Parameters
    ----------
    eta
        Log partial hazard of all patients, (n,).
    time, event
        Outcome, (n,); only that of the training rows is used.
    train
        Training rows.
    months
        Times, (H,).

    Returns
    -------
    ndarray
        (n, H).
    """
    sets = RiskSets(time[train], event[train])
    shift = eta[train].max()
    at_risk = np.cumsum(np.exp(eta[train] - shift)[sets.order])[sets.ends - 1]
    steps = np.bincount(sets.group) / at_risk
    hazard = np.array([steps[sets.times <= month].sum() for month in np.atleast_1d(months)])
    return 1 - np.exp(-np.exp(eta - shift)[:, None] * hazard)


def kaplan_meier_at(
    time: np.ndarray, event: np.ndarray, months: float, *, level: float = 0.95
) -> tuple[float, float, float]:
    """Return the chance of an event by a time with its interval (log-log Greenwood, as lifelines).

    NaN bounds without an event, or when everybody had one.
    """
    time, event = np.asarray(time, float), np.asarray(event).astype(bool)
    moments = np.unique(time[event & (time <= months)])
    at_risk = (time[None, :] >= moments[:, None]).sum(axis=1)
    died = ((time[None, :] == moments[:, None]) & event[None, :]).sum(axis=1)
    survival = float(np.prod(1 - died / at_risk))
    if not 0 < survival < 1:
        return 1 - survival, float("nan"), float("nan")
    spread = np.sqrt((died / (at_risk * (at_risk - died))).sum()) / np.log(survival)
    half = stats.norm.ppf(0.5 + level / 2) * spread
    bounds = np.sort(np.exp(-np.exp(np.log(-np.log(survival)) + np.array([-half, half]))))
    return 1 - survival, float(1 - bounds[1]), float(1 - bounds[0])


def score_horizons(
    repeats: list[NestedScores],
    time: np.ndarray,
    event: np.ndarray,
    *,
    months: list[float],
    draws: int,
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Score the out-of-fold risks of every model at fixed times.

    Parameters
    ----------
    repeats
        Nested scores of a `CoxLearner`, one per repeat.
    time, event
        Outcome, (n,).
    months
        The times.
    draws, seed
        Of the bootstrap over patients; censoring weights are those of all patients.

    Returns
    -------
    horizons
        model (and `<fullest> - clinical`, the paired difference), months, auc, ci_low, ci_high,
        cases, controls, expected (mean predicted chance of an event by then), observed
        (Kaplan-Meier). A time that nobody is followed beyond is left out and told.
    calibration
        model, months, group (1: lowest predicted chance), n, predicted, observed, ci_low, ci_high.
    """
    n, models = len(time), list(repeats[0].scores)
    weights = np.vstack([np.ones(n), bootstrap_weights(n, draws=draws, seed=seed)])
    rows, groups = [], []
    for month in months:
        cases, controls = (
            int((event.astype(bool) & (time <= month)).sum()),
            int((time > month).sum()),
        )
        if min(cases, controls) < MIN_CASES:
            log.warning(
                "%g months: %d patients with an event by then and %d followed beyond, fewer than %d; left out",
                month,
                cases,
                controls,
                MIN_CASES,
            )  # fmt: skip
            continue
        pairs = horizon_pairs(time, event, month)
        auc = np.mean(
            [
                bootstrap_concordance(np.stack([r.scores[m] for m in models]), pairs, weights)
                for r in repeats
            ],
            axis=0,
        )
        observed = kaplan_meier_at(time, event, month)[0]
        for model, values in zip(models, auc, strict=True):
            chance = _out_of_fold(repeats, model, time, event, month)
            low, high = interval(values[1:])
            rows.append(
                (model, month, values[0], low, high, cases, controls, chance.mean(), observed)
            )
            groups += _calibration(model, month, chance, time, event)
        if len(models) == 3:
            gain = auc[2] - auc[models.index("clinical")]
            low, high = interval(gain[1:])
            name = f"{models[2]} - clinical"
            rows.append((name, month, gain[0], low, high, cases, controls, np.nan, np.nan))
    columns = [
        "model", "months", "auc", "ci_low", "ci_high", "cases", "controls", "expected", "observed",
    ]  # fmt: skip
    group_columns = ["model", "months", "group", "n", "predicted", "observed", "ci_low", "ci_high"]
    return pd.DataFrame(rows, columns=columns), pd.DataFrame(groups, columns=group_columns)


def _out_of_fold(
    repeats: list[NestedScores], model: str, time: np.ndarray, event: np.ndarray, month: float
) -> np.ndarray:
    """Return each patient's predicted chance from models that never saw them, mean over repeats."""
    chances = np.zeros((len(repeats), len(time)))
    for number, repeat in enumerate(repeats):
        for fold, eta in enumerate(repeat.predictors[model], start=1):
            held_out = repeat.fold == fold
            chance = event_probability(eta, time, event, np.flatnonzero(~held_out), month)[:, 0]
            chances[number, held_out] = chance[held_out]
    return chances.mean(axis=0)


def _calibration(
    model: str, month: float, chance: np.ndarray, time: np.ndarray, event: np.ndarray
) -> list[tuple]:
    count = int(np.clip(len(chance) // _GROUP, 2, _MAX_GROUPS))
    order = np.argsort(chance, kind="stable")
    rows = []
    for group, members in enumerate(np.array_split(order, count), start=1):
        observed = kaplan_meier_at(time[members], event[members], month)
        rows.append((model, month, group, len(members), chance[members].mean(), *observed))
    return rows
