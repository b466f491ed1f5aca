"""Risk at fixed times: time-dependent AUC and calibration of out-of-fold predictions.

The AUC is the cumulative / dynamic one (Heagerty et al., Biometrics 2000) with inverse probability
of censoring weights (Uno et al., J Am Stat Assoc 2007): patients with the event by the time against
those without it, each of the first weighted by the chance of not having been censored before.
Calibration sets the mean predicted probability beside the Kaplan-Meier estimate in groups of risk.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd
from lifelines import KaplanMeierFitter
from sklearn.metrics import roc_auc_score

from histogep.outcome.nested_cv import NestedScores
from histogep.stats.cox import RiskSets
from histogep.stats.discrimination import bootstrap_weights, refit_interval, weighted_auroc

log = logging.getLogger(__name__)

#: Patients of a calibration group, and most groups.
_GROUP, _MAX_GROUPS = 20, 5
#: Without so many cases and so many controls an AUC at a time says nothing.
MIN_CASES = 3


def uncensored_probability(time: np.ndarray, event: np.ndarray) -> np.ndarray:
    """Return each patient's chance of not being censored before their own time, (n,).

    lifelines' Kaplan-Meier estimate of the censoring, just before the time: of tied rows the
    events come first, so that censorings are put behind them.
    """
    time, event = np.asarray(time, float), np.asarray(event).astype(bool)
    late = np.where(event, time, np.nextafter(time, np.inf))
    fitted = KaplanMeierFitter().fit(late, ~event)
    return fitted.survival_function_at_times(time).to_numpy()


def horizon_weights(
    time: np.ndarray, event: np.ndarray, months: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights of patients with the event by `months`, and of those without it until then."""
    time, event = np.asarray(time, float), np.asarray(event).astype(bool)
    case, control = event & (time <= months), time > months
    weight = np.where(case, 1 / np.where(case, uncensored_probability(time, event), 1), 0.0)
    return weight, control.astype(float)


def event_probability(
    eta: np.ndarray,
    time: np.ndarray,
    event: np.ndarray,
    train: np.ndarray,
    months: np.ndarray | float,
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
    time: np.ndarray, event: np.ndarray, months: float
) -> tuple[float, float, float]:
    """Return lifelines' chance of an event by a time, with its 95 % interval (log-log Greenwood).

    NaN bounds without an event, or when everybody had one.
    """
    fitted = KaplanMeierFitter().fit(time, event)
    survival = float(fitted.predict(months))
    if not 0 < survival < 1:
        return 1 - survival, float("nan"), float("nan")
    low, high = fitted.confidence_interval_survival_function_.loc[:months].iloc[-1]
    return 1 - survival, float(1 - high), float(1 - low)


def score_horizons(
    repeats: list[NestedScores],
    refits: list[tuple[np.ndarray, NestedScores]],
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
    refits
        From `histogep.outcome.nested_cv.refit_bootstrap`, for intervals that count the training.
    time, event
        Outcome, (n,).
    months
        The times.
    draws, seed
        Of the bootstrap over patients with the models held fixed, the least that an interval is;
        censoring weights are those of all patients.

    Returns
    -------
    horizons
        model (and `<fullest> - clinical`, the paired difference), months, auc, ci_low, ci_high,
        null, null_upper (mean and 95 % quantile over the shuffles of the images, for the clinical
        model of the covariates), cases, controls, expected (mean predicted chance of an event by then), observed
        (Kaplan-Meier). A time that nobody is followed beyond is left out and reported.
    calibration
        model, months, group (1: lowest predicted chance), n, predicted, observed, ci_low, ci_high.
    """
    models = list(repeats[0].scores)
    weights = bootstrap_weights(len(time), draws=draws, seed=seed)
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
        here = horizon_weights(time, event, month)
        auc = np.stack([_auc([r.scores[m] for m in models], here) for r in repeats]).mean(0)
        fixed = np.mean(
            [[_drawn_auc(r.scores[m], here, weights) for m in models] for r in repeats], axis=0
        )
        once = np.ones((1, len(time)))
        shuffled = np.mean(
            [
                [[_drawn_auc(score, here, once)[0] for score in r.shuffled[m]] for m in models]
                for r in repeats
            ],
            axis=0,
        )
        again = [
            _auc([r.scores[m] for m in models], horizon_weights(time[rows], event[rows], month))
            for rows, r in refits
        ]
        again = np.reshape(again, (-1, len(models))).T
        observed = kaplan_meier_at(time, event, month)[0]
        for index, model in enumerate(models):
            chance = _out_of_fold(repeats, model, time, event, month)
            rows.append(
                (
                    *(model, month, auc[index]),
                    *refit_interval(auc[index], again[index], fixed[index], bounds=(0.0, 1.0)),
                    *_null(shuffled[index]),
                    *(cases, controls, chance.mean(), observed),
                )
            )
            groups += _calibration(model, month, chance, time, event)
        if len(models) == 3:
            base = models.index("clinical")
            gain = auc[2] - auc[base]
            spread = again[2] - again[base], fixed[2] - fixed[base]
            rows.append(
                (
                    *(f"{models[2]} - clinical", month, gain),
                    *refit_interval(gain, *spread, bounds=(-1.0, 1.0)),
                    *_null(shuffled[2] - auc[base]),
                    *(cases, controls, np.nan, np.nan),
                )
            )
    columns = [
        "model", "months", "auc", "ci_low", "ci_high", "null", "null_upper", "cases", "controls",
        "expected", "observed",
    ]  # fmt: skip
    group_columns = ["model", "months", "group", "n", "predicted", "observed", "ci_low", "ci_high"]
    return pd.DataFrame(rows, columns=columns), pd.DataFrame(groups, columns=group_columns)


def _auc(scores: Sequence[np.ndarray], weights: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Return scikit-learn's AUC of each score with the weights of cases and controls at a time.

    NaN without a case or without a control.
    """
    case, control = weights
    counted = case + control
    if not case.any() or not control.any():
        return np.full(len(scores), np.nan)
    return np.array([roc_auc_score(case > 0, score, sample_weight=counted) for score in scores])


def _drawn_auc(
    score: np.ndarray, weights: tuple[np.ndarray, np.ndarray], draws: np.ndarray
) -> np.ndarray:
    """Return the same AUC under bootstrap draws."""
    case, control = weights
    return weighted_auroc(score, draws * case, draws * (case + control))


def _null(values: np.ndarray) -> tuple[float, float]:
    if not len(values):
        return float("nan"), float("nan")
    return float(values.mean()), float(np.quantile(values, 0.95))


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
