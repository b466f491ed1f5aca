"""Cox regression with Efron ties, many models at once.

One Newton iteration serves a whole batch of models that share the patients' times and events:
every gene of a panel, every penalty of a grid, every permutation of a null. The likelihood,
estimates, standard errors and penalty are those of `lifelines.CoxPHFitter`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from histogep.stats.scores import false_discovery_rate

_MAX_ITERATIONS = 60
_TOLERANCE = 1e-9
#: Beyond this log hazard per standard deviation an unpenalised fit has run off to infinity.
_DIVERGED = 12.0
#: Patients x genes of one batch of a scan: its arrays stay small, whatever the number of genes.
_SCAN_FLOATS = 64_000


@dataclass(frozen=True)
class CoxFits:
    """A batch of B models with p covariates.

    Attributes
    ----------
    coef
        Log hazard ratios, (B, p).
    variance
        Inverse of the (penalised) information, (B, p, p).
    log_likelihood
        Partial log likelihood without penalty, (B,).
    converged
        Whether Newton's method reached an optimum, (B,).
    """

    coef: np.ndarray
    variance: np.ndarray
    log_likelihood: np.ndarray
    converged: np.ndarray

    @property
    def standard_error(self) -> np.ndarray:
        """Standard errors, (B, p)."""
        return np.sqrt(np.diagonal(self.variance, axis1=1, axis2=2))


class RiskSets:
    """The time-ordered risk sets of a cohort.

    Parameters
    ----------
    time
        Follow-up, (n,).
    event
        1 for an event, 0 for censored, (n,).
    """

    def __init__(self, time: np.ndarray, event: np.ndarray):
        time = np.asarray(time, float)
        event = np.asarray(event).astype(bool)
        # Latest first; of tied rows the events first. A risk set is then a leading slice.
        self.order = np.lexsort((~event, -time))
        self.n = len(time)
        ordered, happened = time[self.order], event[self.order]
        self.rows = np.flatnonzero(happened)  # the events, latest first
        times = ordered[self.rows]
        _, self.starts, counts = np.unique(-times, return_index=True, return_counts=True)
        self.times = times[self.starts]
        self.group = np.repeat(np.arange(len(counts)), counts)
        self.fraction = (np.arange(len(times)) - self.starts[self.group]) / counts[self.group]
        # First row behind each group's risk set, and the latest group whose set holds each row.
        self.ends = np.searchsorted(-ordered, -self.times, side="right")
        self.first_group = np.searchsorted(self.ends, np.arange(self.n), side="right")

    def log_likelihood(self, x: np.ndarray, coef: np.ndarray) -> np.ndarray:
        """Return the partial log likelihoods of models (B, p) for covariates (B, n, p)."""
        eta = np.einsum("bnp,bp->bn", x[:, self.order], coef)
        weight, shift = _exponential(eta)
        s0 = self._at_events(weight)
        return eta[:, self.rows].sum(axis=1) - (np.log(s0) + shift).sum(axis=1)

    def _at_events(self, values: np.ndarray) -> np.ndarray:
        """Sum values (B, n, ...) over each event's risk set, tied events weighted by Efron."""
        cumulative = np.cumsum(values, axis=1)[:, self.ends - 1]
        tied = np.add.reduceat(values[:, self.rows], self.starts, axis=1)
        share = self.fraction.reshape(-1, *([1] * (values.ndim - 2)))
        return cumulative[:, self.group] - share * tied[:, self.group]

    def _derivatives(self, x: np.ndarray, coef: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return log likelihood (B,), gradient (B, p) and information (B, p, p); x is ordered."""
        eta = np.einsum("bnp,bp->bn", x, coef)
        weight, shift = _exponential(eta)
        s0 = self._at_events(weight)
        means = self._at_events(weight[..., None] * x) / s0[..., None]
        # exposure_i: the sum of 1 / s0 over the events whose risk set holds row i; a tied event
        # leaves its own risk sets step by step.
        inverse = 1 / s0
        groups = np.add.reduceat(inverse, self.starts, axis=1)
        later = np.cumsum(groups[:, ::-1], axis=1)[:, ::-1]
        later = np.concatenate([later, np.zeros((len(x), 1))], axis=1)
        exposure = later[:, self.first_group]
        leaving = np.add.reduceat(inverse * self.fraction, self.starts, axis=1)
        exposure[:, self.rows] -= leaving[:, self.group]
        exposure *= weight
        value = eta[:, self.rows].sum(axis=1) - (np.log(s0) + shift).sum(axis=1)
        gradient = x[:, self.rows].sum(axis=1) - np.einsum("bnp,bn->bp", x, exposure)
        information = np.swapaxes(x, 1, 2) @ (x * exposure[..., None])
        information -= np.swapaxes(means, 1, 2) @ means
        return value, gradient, information

    def residuals(self, x: np.ndarray, coef: np.ndarray) -> np.ndarray:
        """Return the Schoenfeld residuals (B, events, p), latest event first.

        Tied events share the mean of their Efron-weighted risk-set means, as lifelines does.
        """
        x = x[:, self.order]
        weight, _ = _exponential(np.einsum("bnp,bp->bn", x, coef))
        means = self._at_events(weight[..., None] * x) / self._at_events(weight)[..., None]
        tied = np.add.reduceat(means, self.starts, axis=1)
        tied /= np.bincount(self.group)[:, None]
        return x[:, self.rows] - tied[:, self.group]

    def kaplan_meier(self, n_events_at: np.ndarray) -> np.ndarray:
        """Return the Kaplan-Meier survival just after each event time, latest time first."""
        factors = 1 - n_events_at / self.ends
        return np.cumprod(factors[::-1])[::-1]


def fit_cox(
    x: np.ndarray,
    time: np.ndarray,
    event: np.ndarray,
    *,
    penalty: np.ndarray | float = 0.0,
    risk_sets: RiskSets | None = None,
    tolerance: float = _TOLERANCE,
) -> CoxFits:
    """Fit a batch of Cox models by Newton's method with step halving.

    Maximises `log likelihood / n - sum(penalty * coef ** 2) / 2`, which is lifelines' objective
    for standardised covariates (`CoxPHFitter(penalizer=penalty, l1_ratio=0)`).

    Parameters
    ----------
    x
        Covariates, (B, n, p); (n, p) is a batch of one.
    time, event
        Shared by the batch, (n,).
    penalty
        Ridge penalty, broadcast to (B, p); a column of its own for each covariate is allowed.
    risk_sets
        Of `time` and `event`, when already known.
    tolerance
        Relative step at which Newton's method stops; its error is of the order of the square.
    """
    x = np.asarray(x, float)
    x = x[None] if x.ndim == 2 else x
    sets = RiskSets(time, event) if risk_sets is None else risk_sets
    batch, n, p = x.shape
    if not len(sets.rows):
        raise ValueError("a Cox model needs an event")
    ordered = np.ascontiguousarray(x[:, sets.order])
    ridge = n * np.broadcast_to(np.asarray(penalty, float), (batch, p))
    diagonal = np.arange(p)
    coef = np.zeros((batch, p))

    def evaluate(rows: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, ...]:
        # A model that runs off to infinity overflows; `converged` says so.
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            value, gradient, information = sets._derivatives(ordered[rows], at)
            penalised = value - (ridge[rows] * at**2).sum(axis=1) / 2
        information[:, diagonal, diagonal] += ridge[rows]
        return penalised, gradient - ridge[rows] * at, information

    active = np.arange(batch)
    converged = np.zeros(batch, bool)
    value, gradient, information = evaluate(active, coef)
    all_information = information.copy()
    all_value = value.copy()
    for _ in range(_MAX_ITERATIONS):
        step = _solve(information, gradient)
        trial = coef[active] + step
        new_value, new_gradient, new_information = evaluate(active, trial)
        for _ in range(12):
            worse = ~(new_value >= value - 1e-9 * (1 + np.abs(value)))
            if not worse.any():
                break
            step[worse] /= 2
            trial[worse] = coef[active[worse]] + step[worse]
            part = evaluate(active[worse], trial[worse])
            new_value[worse], new_gradient[worse], new_information[worse] = part
        coef[active] = trial
        all_value[active], all_information[active] = new_value, new_information
        done = np.abs(step).max(axis=1) <= tolerance * (1 + np.abs(trial).max(axis=1))
        lost = np.abs(trial).max(axis=1) > 1e3
        converged[active] = done
        keep = ~(done | lost)
        active = active[keep]
        if not len(active):
            break
        value, gradient, information = new_value[keep], new_gradient[keep], new_information[keep]
    with np.errstate(over="ignore", invalid="ignore"):
        all_value += (ridge * coef**2).sum(axis=1) / 2
    return CoxFits(
        coef=coef,
        variance=_solve(all_information, np.broadcast_to(np.eye(p), (batch, p, p))),
        log_likelihood=all_value,
        converged=converged,
    )


def scan_genes(
    values: np.ndarray,
    time: np.ndarray,
    event: np.ndarray,
    *,
    genes: list[str],
    scale: str = "as_given",
    level: float = 0.95,
) -> pd.DataFrame:
    """Fit one univariate Cox model per gene.

    Parameters
    ----------
    values
        Patients x genes.
    time, event
        Outcome, (n,).
    genes
        Names of the columns.
    scale
        `as_given`, or `normal_scores`: each gene's ranks on the normal scale. A gene that hardly
        any patient expresses has a few values far out, and a Wald test on them finds associations
        with a permuted outcome too; normal scores keep the test's level.
    level
        Of the confidence intervals.

    Returns
    -------
    DataFrame
        gene, sd (of the gene over the patients, as given), coef and hr per standard deviation with ci_low
        and ci_high of hr, se, z, p (Wald), fdr (Benjamini-Hochberg over the genes with a p), ph_p
        (proportional hazards: Schoenfeld residuals against 1 - Kaplan-Meier), n, events. Sorted as
        given. A constant gene, and one that separates the events perfectly, has NaN.
    """
    values = np.asarray(values, float)
    n, n_genes = values.shape
    sd = values.std(axis=0, ddof=1) if n > 1 else np.zeros(n_genes)
    usable = np.flatnonzero(sd > 1e-9 * (1 + np.abs(values).max(axis=0, initial=0)))
    table = pd.DataFrame({"gene": list(genes), "sd": sd})
    columns = ["coef", "hr", "ci_low", "ci_high", "se", "z", "p", "fdr", "ph_p"]
    table[columns] = np.nan
    if scale == "normal_scores":
        values = normal_scores(values)
        unit = values.std(axis=0, ddof=1)
    else:
        unit = sd
    sets = RiskSets(time, event)
    chunk = max(1, _SCAN_FLOATS // max(1, n))
    for start in range(0, len(usable), chunk):
        tested = usable[start : start + chunk]
        x = ((values[:, tested] - values[:, tested].mean(axis=0)) / unit[tested]).T[..., None]
        fits = fit_cox(x, time, event, risk_sets=sets)
        coef, se = fits.coef[:, 0], fits.standard_error[:, 0]
        good = fits.converged & np.isfinite(se) & (np.abs(coef) < _DIVERGED)
        rows, x, fitted = tested[good], x[good], fits.coef[good]
        table.loc[rows, "coef"], table.loc[rows, "se"] = coef[good], se[good]
        table.loc[rows, "ph_p"] = _proportional_hazards(sets, x, fitted, se[good])
    half = stats.norm.ppf(0.5 + level / 2) * table["se"]
    with np.errstate(over="ignore"):  # of a gene that hardly varies, the interval has no end
        table["hr"] = np.exp(table["coef"])
        table["ci_low"], table["ci_high"] = (
            np.exp(table["coef"] - half),
            np.exp(table["coef"] + half),
        )
    table["z"] = table["coef"] / table["se"]
    table["p"] = 2 * stats.norm.sf(np.abs(table["z"]))
    table["fdr"] = false_discovery_rate(table["p"])
    table["n"] = n
    table["events"] = int(np.sum(np.asarray(event) != 0))
    return table


def permuted_score_z(
    values: np.ndarray,
    time: np.ndarray,
    event: np.ndarray,
    *,
    outcome_of: np.ndarray,
    scale: str = "as_given",
) -> np.ndarray:
    """Return each gene's score statistic under outcomes that were dealt out again, (D, genes).

    z of the score test of a Cox model with one gene (Efron ties): the gradient at 0 over the root
    of the information there. It needs no iteration, and near 0 it is Wald's z of `scan_genes`.

    Parameters
    ----------
    values
        Patients x genes.
    time, event
        Outcome, (n,).
    outcome_of
        Whose outcome each patient gets, (D, n): `arange(n)` leaves it as it is.
    scale
        As for `scan_genes`.
    """
    values = normal_scores(values) if scale == "normal_scores" else np.asarray(values, float)
    n, n_genes = values.shape
    values = values - values.mean(axis=0)
    sets = RiskSets(time, event)
    ones = np.ones((1, n))
    s0 = sets._at_events(ones)[0]
    counted = sets._at_events(np.eye(n)[None])[0] / s0[:, None]  # events x ordered patients
    exposure, residual = counted.sum(axis=0), -counted.sum(axis=0)
    residual[sets.rows] += 1
    result = np.full((len(outcome_of), n_genes), np.nan)
    chunk = max(1, _SCAN_FLOATS * 8 // max(1, n * n_genes))
    for start in range(0, len(outcome_of), chunk):
        # Row of the patient who holds each place of the ordered outcome.
        holder = np.argsort(outcome_of[start : start + chunk], axis=1)[:, sets.order]
        x = values[holder]
        gradient = np.einsum("bng,n->bg", x, residual)
        squares = np.einsum("bng,n->bg", x**2, exposure)
        means = sets._at_events(x) / s0[None, :, None]
        information = squares - (means**2).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            result[start : start + chunk] = gradient / np.sqrt(information)
    return result


def normal_scores(values: np.ndarray) -> np.ndarray:
    """Return van der Waerden's normal scores of each column: ranks, ties averaged, as quantiles."""
    return stats.norm.ppf(stats.rankdata(values, axis=0) / (len(values) + 1))


def _proportional_hazards(
    sets: RiskSets, x: np.ndarray, coef: np.ndarray, se: np.ndarray
) -> np.ndarray:
    """Return the p of lifelines' `proportional_hazard_test(time_transform="km")`, one covariate."""
    counts = np.bincount(sets.group)
    transformed = (1 - sets.kaplan_meier(counts))[sets.group]
    centred = transformed - transformed.mean()
    spread = (centred**2).sum()
    if spread == 0:
        return np.full(len(x), np.nan)
    scaled = len(sets.rows) * sets.residuals(x, coef)[..., 0] * (se**2)[:, None]
    statistic = (scaled @ centred) ** 2 / (len(sets.rows) * se**2 * spread)
    return stats.chi2.sf(statistic, 1)


def _exponential(eta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return exp(eta - shift) and the shift of each model, so that nothing overflows."""
    shift = eta.max(axis=1, keepdims=True)
    return np.exp(eta - shift), shift


def _solve(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve a batch of symmetric systems; a singular one gets a least-squares answer."""
    vector = right.ndim == 2
    right = right[..., None] if vector else right
    if matrix.shape[1] == 1:
        floor = np.finfo(float).tiny
        answer = right / np.maximum(matrix, floor)
    else:
        try:
            answer = np.linalg.solve(matrix, right)
        except np.linalg.LinAlgError:
            answer = np.linalg.pinv(matrix, hermitian=True) @ right
    return answer[..., 0] if vector else answer
