"""Penalised linear models of an outcome, fitted in batches: ridge Cox and ridge logistic regression.

A learner knows the outcome; it receives designs, and the rows it may learn from. `histogep.outcome.nested_cv`
chooses their penalties and scores them out of fold.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from histogep.stats.cox import RiskSets, fit_cox


class Learner(Protocol):
    """A penalised linear model for an outcome known to it.

    Attributes
    ----------
    learns
        Classes of patients without which nothing is learnt: events; responders and others.
    """

    learns: tuple[int, ...]

    def fit(
        self, x: np.ndarray, rows: np.ndarray, penalty: np.ndarray, *, tolerance: float = 1e-9
    ) -> np.ndarray:
        """Return the coefficients (B, p) for designs (B, n, p) and penalties (B, p)."""

    def gain(
        self, x: np.ndarray, coef: np.ndarray, train: np.ndarray, held_out: np.ndarray
    ) -> np.ndarray:
        """Return the log likelihood that the held-out rows give the coefficients, (B,)."""


class CoxLearner:
    """Ridge Cox regression; the held-out likelihood is that of Verweij and van Houwelingen."""

    learns: tuple[int, ...] = (1,)

    def __init__(self, time: np.ndarray, event: np.ndarray):
        self.time, self.event = np.asarray(time, float), np.asarray(event).astype(int)
        self._sets: dict[bytes, RiskSets] = {}

    def _risk_sets(self, rows: np.ndarray) -> RiskSets:
        key = rows.tobytes()
        if key not in self._sets:
            self._sets[key] = RiskSets(self.time[rows], self.event[rows])
        return self._sets[key]

    def fit(
        self, x: np.ndarray, rows: np.ndarray, penalty: np.ndarray, *, tolerance: float = 1e-9
    ) -> np.ndarray:
        """Return the coefficients (B, p) for designs (B, n, p) and penalties (B, p)."""
        sets = self._risk_sets(rows)
        if not len(sets.rows):
            return np.zeros((len(x), x.shape[2]))
        return fit_cox(
            x[:, rows],
            self.time[rows],
            self.event[rows],
            penalty=penalty,
            risk_sets=sets,
            tolerance=tolerance,
        ).coef

    def gain(
        self, x: np.ndarray, coef: np.ndarray, train: np.ndarray, held_out: np.ndarray
    ) -> np.ndarray:
        """Return log likelihood of all rows less that of the training rows, (B,)."""
        everyone = np.sort(np.concatenate([train, held_out]))
        with_all = self._risk_sets(everyone).log_likelihood(x[:, everyone], coef)
        sets = self._risk_sets(train)
        return with_all - (sets.log_likelihood(x[:, train], coef) if len(sets.rows) else 0.0)


class LogisticLearner:
    """Ridge logistic regression with a free intercept: scikit-learn's, with C = 1 / (n penalty)."""

    learns: tuple[int, ...] = (0, 1)

    def __init__(self, response: np.ndarray):
        self.response = np.asarray(response, float)

    def fit(
        self, x: np.ndarray, rows: np.ndarray, penalty: np.ndarray, *, tolerance: float = 1e-9
    ) -> np.ndarray:
        """Return the coefficients (B, p) for designs (B, n, p) and penalties (B, p)."""
        coef, intercept = fit_logistic(
            x[:, rows], self.response[rows], penalty=penalty, tolerance=tolerance
        )
        self._last = intercept
        return coef

    def gain(
        self, x: np.ndarray, coef: np.ndarray, train: np.ndarray, held_out: np.ndarray
    ) -> np.ndarray:
        """Return the held-out log likelihood of the last fit, (B,)."""
        eta = np.einsum("bnp,bp->bn", x[:, held_out], coef) + self._last[:, None]
        return (self.response[held_out] * eta - np.logaddexp(0, eta)).sum(axis=1)


def fit_logistic(
    x: np.ndarray,
    response: np.ndarray,
    *,
    penalty: np.ndarray | float,
    tolerance: float = 1e-9,
) -> tuple[np.ndarray, np.ndarray]:
    """Fit a batch of ridge logistic regressions by Newton's method.

    Maximises `log likelihood / n - sum(penalty * coef ** 2) / 2` with a free intercept.

    Parameters
    ----------
    x
        Covariates, (B, n, p).
    response
        0 or 1, (n,), shared by the batch.
    penalty
        Broadcast to (B, p).
    tolerance
        Relative step at which Newton's method stops.

    Returns
    -------
    coef, intercept
        (B, p) and (B,).
    """
    batch, n, p = x.shape
    design = np.concatenate([x, np.ones((batch, n, 1))], axis=2)
    ridge = np.zeros((batch, p + 1))
    ridge[:, :p] = n * np.broadcast_to(np.asarray(penalty, float), (batch, p))
    share = np.clip(response.mean(), 1e-3, 1 - 1e-3)
    coef = np.zeros((batch, p + 1))
    coef[:, p] = np.log(share / (1 - share))
    diagonal = np.arange(p + 1)

    def objective(at: np.ndarray) -> np.ndarray:
        eta = np.einsum("bnp,bp->bn", design, at)
        return (response * eta - np.logaddexp(0, eta)).sum(axis=1) - (ridge * at**2).sum(axis=1) / 2

    value = objective(coef)
    for _ in range(60):
        eta = np.einsum("bnp,bp->bn", design, coef)
        probability = 1 / (1 + np.exp(-np.clip(eta, -500, 500)))
        gradient = np.einsum("bnp,bn->bp", design, response - probability) - ridge * coef
        spread = np.clip(probability * (1 - probability), 1e-10, None)
        information = np.swapaxes(design, 1, 2) @ (design * spread[..., None])
        information[:, diagonal, diagonal] += ridge
        step = np.linalg.solve(information, gradient[..., None])[..., 0]
        new_value = objective(coef + step)
        for _ in range(20):
            worse = new_value < value - 1e-9 * (1 + np.abs(value))
            if not worse.any():
                break
            step[worse] /= 2
            new_value = objective(coef + step)
        coef, value = coef + step, new_value
        if np.abs(step).max() <= tolerance * (1 + np.abs(coef).max()):
            break
    return coef[:, :p], coef[:, p]
