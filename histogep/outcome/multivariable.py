"""Multivariable Cox model of a cohort: whether the image's risk is independent of the clinic.

The table that every clinical paper has. Each patient's image risk is out of fold, so that no
patient's own outcome is in it; the clinical covariates are as given. The outcomes of the other
patients are in it, though, so that Wald's p of the image does not hold exactly: beside it stands
its p among images shuffled over the patients, each through the whole procedure of the folds.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from lifelines import CoxPHFitter
from lifelines.exceptions import ConvergenceError
from lifelines.statistics import proportional_hazard_test
from scipy import stats

from histogep.stats.cox import fit_cox
from histogep.stats.discrimination import permutation_p
from histogep.study.covariates import STAGES
from histogep.warned import decides

log = logging.getLogger(__name__)

COLUMNS = [
    *("variable", "level", "reference", "n", "events", "missing"),
    *("hr", "ci_low", "ci_high", "p"),
    *("hr_univariable", "ci_low_univariable", "ci_high_univariable", "p_univariable"),
    *("vif", "ph_p", "lr_chi2", "lr_df", "lr_p", "hr_null", "p_shuffles", "note"),
]
#: Fewer events for each coefficient than this are no model; fewer than that are a warning.
LEAST_EVENTS, GOOD_EVENTS = 2, 10
#: A level of the stage with fewer patients joins its neighbour.
_LEVEL_PATIENTS = 10
#: Variance inflation from which a coefficient is hard to tell from the others'.
HIGH_VIF = 5.0
#: Beyond this log hazard per standard deviation a fit has run off to infinity.
_DIVERGED = 12.0
_LEVELS = {"sex": {0.0: "female", 1.0: "male"}, "stage": {n: s for s, n in STAGES.items()}}


@dataclass(frozen=True)
class Multivariable:
    """What `fit_multivariable` finds.

    Attributes
    ----------
    table
        `COLUMNS`, one row per level of each variable, the reference's with hr 1: level and
        reference; n and events (patients of the level, or of the whole model, and their events);
        missing (patients of the cohort without a value of the variable); hr, ci_low, ci_high, p
        (Wald, 95 %) in the model of all variables; the same in a model of the variable alone, of
        the same patients; vif (variance inflation; of a variable with several coefficients the
        generalised one of Fox and Monette 1992, per coefficient); ph_p (proportional hazards,
        Schoenfeld residuals against Kaplan-Meier time); lr_chi2, lr_df, lr_p (likelihood ratio of
        the model with and without the variable); hr_null and p_shuffles of the image (median
        hazard ratio of shuffled images in the same model; share of them whose z is as high, the
        image's own counted in); note.
    lacks
        For each patient the variables without a value, separated by commas.
    n, events
        Patients with every value, and their events.
    notes
        What a reader has to know: patients left out, few events, collinearity, hazards that are
        not proportional, or why there is no model.
    """

    table: pd.DataFrame
    lacks: list[str]
    n: int
    events: int
    notes: list[str]


@dataclass(frozen=True)
class _Variable:
    """A variable as columns of the design, and how its rows are called."""

    name: str
    columns: pd.DataFrame
    levels: list[str]
    reference: str
    #: Level -> which patients; empty for a variable without levels.
    members: Mapping[str, np.ndarray] = field(default_factory=dict)


def fit_multivariable(
    clinical: pd.DataFrame,
    image_risk: np.ndarray | None,
    time: np.ndarray,
    event: np.ndarray,
    *,
    shuffled: np.ndarray | None = None,
    source: str = "image",
) -> Multivariable:
    """Fit one Cox model of the covariates and the out-of-fold image risk (lifelines, Efron's ties).

    Patients with every value are used. Age counts by 10 years, sex against female, the stage by
    its levels against the lowest; a level with fewer than 10 patients, or without an event, joins
    its neighbour. With fewer than 10 events for each coefficient the stage counts as one step per
    stage. The image risk counts by standard deviations over these patients. There is no penalty,
    and no variable is chosen by its p.

    Parameters
    ----------
    clinical
        age (years), sex (0 female, 1 male), stage (1 to 4), those that are known; NaN for missing.
    image_risk
        Out-of-fold risk, (n,); None without an image.
    time, event
        Outcome, (n,).
    shuffled
        The risk by shuffled images, (shuffles, n).
    source
        What the image is called: image, or expression where it was measured.
    """
    values = clinical.copy().reset_index(drop=True)
    if image_risk is not None:
        values[f"{source} risk"] = np.asarray(image_risk, float)
    known = np.isfinite(values.to_numpy(float))
    lacks = [",".join(values.columns[~row]) for row in known]
    complete = known.all(axis=1)
    missing = dict(zip(values.columns, (~known).sum(axis=0), strict=True))
    time, event = np.asarray(time, float)[complete], np.asarray(event).astype(int)[complete]
    used = values[complete].reset_index(drop=True)
    notes = []
    if not complete.all():
        by_variable = ", ".join(
            f"{count} without {name}" for name, count in missing.items() if count
        )
        notes.append(f"{(~complete).sum()} of {len(values)} patients left out: {by_variable}")
    variables, left_out = _variables(used, event)
    notes += [f"{name} is not in the model: {reason}" for name, reason in left_out.items()]
    rows = [row for variable in variables for row in _rows(variable, event, missing)]
    for name, reason in left_out.items():
        rows.append({"variable": name, "missing": int(missing[name]), "note": reason})
    table = pd.DataFrame(rows, columns=COLUMNS)
    table["note"] = table["note"].fillna("")
    for variable in variables:
        try:
            _write(table, variable, _fit(variable.columns, time, event), suffix="_univariable")
        except _NoFitError as error:
            table.loc[table["variable"] == variable.name, "note"] = f"alone: {error}"
    try:
        fitted = _fit_together(table, variables, time, event)
    except _NoFitError as error:
        notes.append(f"no multivariable model: {error}")
    else:
        notes += _cautions(table, fitted, int(event.sum()))
        has_image = image_risk is not None and variables[-1].name == values.columns[-1]
        if has_image and shuffled is not None and len(shuffled):
            _against_shuffles(table, variables, fitted, time, event, shuffled[:, complete])
    for note in notes:
        log.warning("multivariable Cox model: %s", note, **decides("survival"))
    return Multivariable(table, lacks, len(used), int(event.sum()), notes)


class _NoFitError(Exception):
    """The data do not hold the model."""


def _variables(used: pd.DataFrame, event: np.ndarray) -> tuple[list[_Variable], dict[str, str]]:
    """Return the variables of the model, and why others are not in it."""
    left_out = {
        name: "the same for all patients of the model" for name in used if np.ptp(used[name]) < 1e-9
    }
    used = used.drop(columns=list(left_out))
    groups = {name: _groups(used[name].to_numpy(), event, name) for name in used if name in _LEVELS}
    coefficients = sum(max(len(groups.get(name, "ab")) - 1, 1) for name in used)
    variables = []
    for name in used:
        values = used[name].to_numpy(float)
        if name == "age":
            variables.append(_continuous(name, values / 10, "per 10 years"))
        elif name == "stage" and event.sum() < GOOD_EVENTS * coefficients:
            variables.append(_continuous(name, values, "per stage"))
        elif name in groups:
            silent = [g for g in groups[name] if not event[np.isin(values, g)].any()]
            if silent:
                reason = (
                    f"no event among {_called(name, silent[0])}, so that it has no hazard ratio"
                )
                left_out[name] = reason
            elif len(groups[name]) < 2:
                left_out[name] = (
                    f"all but a few patients are of stage {_called(name, groups[name][0])}"
                )
            else:
                variables.append(_levels(name, values, groups[name]))
        else:
            variables.append(_continuous(name, values / values.std(ddof=1), "per SD"))
    return variables, left_out


def _continuous(name: str, values: np.ndarray, unit: str) -> _Variable:
    return _Variable(name, pd.DataFrame({f"{name} {unit}": values}), [unit], "")


def _groups(values: np.ndarray, event: np.ndarray, name: str) -> list[list[float]]:
    """Return the levels from the lowest; of the stage, small ones and those without an event joined."""
    groups = [[value] for value in np.unique(values)]

    def patients(group: list[float]) -> int:
        return int(np.isin(values, group).sum())

    while name == "stage" and len(groups) > 1:
        small = [
            number
            for number, group in enumerate(groups)
            if patients(group) < _LEVEL_PATIENTS or not event[np.isin(values, group)].any()
        ]
        if not small:
            break
        at = min(small, key=lambda number: patients(groups[number]))
        beside = [number for number in (at - 1, at + 1) if 0 <= number < len(groups)]
        first, second = sorted((at, min(beside, key=lambda number: patients(groups[number]))))
        groups[first : second + 1] = [groups[first] + groups[second]]
    return groups


def _called(name: str, group: list[float]) -> str:
    words = [_LEVELS[name].get(value, f"{value:g}") for value in (group[0], group[-1])]
    return words[0] if len(group) == 1 else f"{words[0]} to {words[1]}"


def _levels(name: str, values: np.ndarray, groups: list[list[float]]) -> _Variable:
    members = {_called(name, group): np.isin(values, group) for group in groups}
    reference, *levels = members
    columns = pd.DataFrame({f"{name} {level}": members[level].astype(float) for level in levels})
    return _Variable(name, columns, levels, reference, members)


def _rows(variable: _Variable, event: np.ndarray, missing: dict[str, int]) -> list[dict]:
    """Return the rows of a variable without what a model says."""
    shared = {
        "variable": variable.name,
        "reference": variable.reference,
        "missing": int(missing[variable.name]),
    }
    rows = []
    for level in [variable.reference] * bool(variable.reference) + variable.levels:
        own = variable.members.get(level, np.ones(len(event), bool))
        row = {**shared, "level": level, "n": int(own.sum()), "events": int(event[own].sum())}
        if level == variable.reference:
            row |= {"hr": 1.0, "hr_univariable": 1.0}
        rows.append(row)
    return rows


def _fit(design: pd.DataFrame, time: np.ndarray, event: np.ndarray) -> CoxPHFitter:
    """Return lifelines' Cox model, or say in plain words why there is none."""
    table = design.assign(time=time, event=event)
    try:
        fitted = CoxPHFitter().fit(table, "time", "event")
    except (ConvergenceError, np.linalg.LinAlgError, ValueError) as error:
        raise _NoFitError(
            f"the fit of {', '.join(design)} does not converge ({str(error).split('.')[0]})"
        ) from error
    spread = design.std().to_numpy()
    size = np.abs(fitted.params_.to_numpy()) * spread
    error = fitted.standard_errors_.to_numpy() * spread
    wrong = ~(np.isfinite(size) & np.isfinite(error)) | (np.maximum(size, error) > _DIVERGED)
    if wrong.any():
        raise _NoFitError(
            f"{', '.join(design.columns[wrong])} separates patients with an event from those without"
        )
    return fitted


def _fit_together(
    table: pd.DataFrame, variables: list[_Variable], time: np.ndarray, event: np.ndarray
) -> CoxPHFitter:
    """Fit the model of all variables, and write what it says into the rows."""
    if not variables:
        raise _NoFitError("no variable tells the patients apart")
    design = pd.concat([variable.columns for variable in variables], axis=1)
    events, coefficients = int(event.sum()), design.shape[1]
    if events < LEAST_EVENTS * coefficients:
        raise _NoFitError(
            f"{events} events are too few for {coefficients} coefficients (at least "
            f"{LEAST_EVENTS * coefficients})"
        )
    scaled = ((design - design.mean()) / design.std()).to_numpy(float)
    if np.linalg.matrix_rank(scaled, tol=1e-6 * np.sqrt(len(scaled))) < coefficients:
        correlation = design.corr().abs().to_numpy() - np.eye(coefficients)
        first, second = np.unravel_index(np.argmax(correlation), correlation.shape)
        raise _NoFitError(
            "one variable follows exactly from the others; the closest are "
            f"{design.columns[first]} and {design.columns[second]}"
        )
    fitted = _fit(design, time, event)
    outcome = design.assign(time=time, event=event)
    ph = proportional_hazard_test(fitted, outcome, time_transform="km").summary["p"]
    inflation = _inflation(design, variables)
    for variable in variables:
        rows = _write(table, variable, fitted)
        table.loc[rows, "ph_p"] = ph.reindex(variable.columns.columns).to_numpy(float)
        table.loc[rows, "vif"] = inflation[variable.name]
        rest, df = design.drop(columns=variable.columns.columns), variable.columns.shape[1]
        without = _fit(rest, time, event).log_likelihood_ if rest.shape[1] else _null_of(fitted)
        chi2 = max(2 * (fitted.log_likelihood_ - without), 0.0)
        table.loc[rows, ["lr_chi2", "lr_df", "lr_p"]] = chi2, df, stats.chi2.sf(chi2, df)
    return fitted


def _cautions(table: pd.DataFrame, fitted: CoxPHFitter, events: int) -> list[str]:
    """Return what a reader of the model has to keep in mind."""
    notes, coefficients = [], len(fitted.params_)
    if events < GOOD_EVENTS * coefficients:
        notes.append(
            f"{events} events for {coefficients} coefficients, fewer than {GOOD_EVENTS} for each: "
            "hazard ratios tend to lie too far from 1"
        )
    high = table.loc[table["vif"] > HIGH_VIF, "variable"].unique()
    if len(high):
        notes.append(
            f"collinear (variance inflation above {HIGH_VIF:g}): {', '.join(high)}; what each adds "
            "can hardly be separated"
        )
    changing = table.loc[table["ph_p"] < 0.05, "variable"].unique()
    if len(changing):
        notes.append(
            f"hazards are not proportional (p < .05): {', '.join(changing)}; such a hazard ratio is "
            "a mean over time"
        )
    return notes


def _null_of(fitted: CoxPHFitter) -> float:
    """Return the log likelihood without covariates."""
    return fitted.log_likelihood_ - fitted.log_likelihood_ratio_test().test_statistic / 2


def _write(
    table: pd.DataFrame, variable: _Variable, fitted: CoxPHFitter, *, suffix: str = ""
) -> np.ndarray:
    """Write hazard ratios of a variable's levels, and return their rows."""
    of_levels = (table["variable"] == variable.name) & table["level"].isin(variable.levels)
    rows = np.flatnonzero(of_levels)
    found = fitted.summary.loc[variable.columns.columns]
    names = ["exp(coef)", "exp(coef) lower 95%", "exp(coef) upper 95%", "p"]
    columns = [f"{name}{suffix}" for name in ("hr", "ci_low", "ci_high", "p")]
    table.loc[rows, columns] = found[names].to_numpy(float)
    return rows


def _inflation(design: pd.DataFrame, variables: list[_Variable]) -> dict[str, float]:
    """Return the generalised variance inflation of each variable, per coefficient.

    Fox and Monette, J Am Stat Assoc 1992: det R_own det R_rest / det R, for one coefficient the
    ordinary factor 1 / (1 - R^2).
    """
    correlation = design.corr()
    whole = np.linalg.det(correlation)
    result = {}
    for variable in variables:
        own = list(variable.columns)
        rest = [name for name in design if name not in own]
        parts = [
            np.linalg.det(correlation.loc[some, some]) if some else 1.0 for some in (own, rest)
        ]
        result[variable.name] = float((parts[0] * parts[1] / whole) ** (1 / len(own)))
    return result


def _against_shuffles(
    table: pd.DataFrame,
    variables: list[_Variable],
    fitted: CoxPHFitter,
    time: np.ndarray,
    event: np.ndarray,
    shuffled: np.ndarray,
) -> None:
    """Write the image's hazard ratio and p among shuffled images in the same model.

    One model per shuffle: in a batch (`histogep.stats.cox`, which is lifelines' likelihood).
    """
    design = pd.concat([variable.columns for variable in variables], axis=1).to_numpy(float)
    spread = shuffled.std(axis=1, ddof=1, keepdims=True)
    varying = spread[:, 0] > 1e-9
    risk = shuffled[varying] / spread[varying]
    x = np.broadcast_to(design, (len(risk), *design.shape)).copy()
    x[:, :, -1] = risk
    x -= x.mean(axis=1, keepdims=True)
    fits = fit_cox(x, time, event)
    coef = np.where(fits.converged, fits.coef[:, -1], np.nan)
    null_z = coef / fits.standard_error[:, -1]
    row = table["variable"].eq(variables[-1].name)
    table.loc[row, "hr_null"] = float(np.exp(np.nanmedian(coef))) if len(coef) else np.nan
    table.loc[row, "p_shuffles"] = permutation_p(float(fitted.summary["z"].iloc[-1]), null_z)
