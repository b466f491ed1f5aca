"""Conformal intervals per gene whose exchangeable unit is the patient, and their coverage.

Spots of one patient are not exchangeable with those of another, so an interval calibrated on
pooled spots is too narrow for a new patient. Here the absolute residuals of held-out predictions
are weighted so that every patient counts as one, and the half-width is their weighted quantile at
the coverage wanted (the pooled-CDF method of Dunn, Wasserman and Ramdas, JASA 2023, section 3; the
hierarchical conformal prediction of Lee, Barber and Willett, 2023, without its point mass at
infinity). With that mass, 1/(K + 1) for K patients, coverage would be guaranteed for any K, but
with K < 1/(1 - coverage) - 1 (9 patients for 90 %) the intervals would be infinite. So no
guarantee is claimed: coverage is measured instead, on each patient with the half-width of the
others.

The residuals come from models trained without the patient (cross-conformal, Vovk 2015); the model
that is deployed was trained on all of them, hence is expected to do no worse.
"""

from __future__ import annotations

import numpy as np

from histogep.errors import InputError


def half_widths(residuals: np.ndarray, patients: np.ndarray, *, coverage: float) -> np.ndarray:
    """Return the half-width of each gene's interval around a prediction.

    Parameters
    ----------
    residuals
        Measured minus predicted, spots by genes, of held-out patients.
    patients
        Patient of each spot; each patient weighs the same in all.
    coverage
        Share of a new patient's spots that the interval should hold.

    Returns
    -------
    numpy.ndarray
        The smallest w with sum over patients of the share of |residual| <= w, divided by the number
        of patients, at least `coverage`.
    """
    if not 0 < coverage < 1:
        raise InputError(f"evaluation.coverage is {coverage}: it must lie between 0 and 1")
    sizes = np.abs(np.asarray(residuals, np.float64))
    if len(sizes) == 0:
        return np.full(sizes.shape[1], np.nan)
    _, owner, count = np.unique(np.asarray(patients), return_inverse=True, return_counts=True)
    weights = 1.0 / (len(count) * count[owner])
    order = np.argsort(sizes, axis=0, kind="stable")
    reached = np.cumsum(weights[order], axis=0)
    # The last sums may fall short of 1 by rounding.
    first = np.argmax(reached >= coverage - 1e-12, axis=0)
    columns = np.arange(sizes.shape[1])
    return sizes[order[first, columns], columns]


def held_out_coverage(
    residuals: np.ndarray, patients: np.ndarray, *, coverage: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return, per patient, the share of spots inside intervals calibrated on the other patients.

    Parameters
    ----------
    residuals, patients, coverage
        As for `half_widths`.

    Returns
    -------
    tuple of numpy.ndarray
        Names of the patients, and their coverage, patients by genes; NaN with a single patient.
    """
    residuals, patients = np.asarray(residuals, np.float64), np.asarray(patients)
    names = np.unique(patients)
    covered = np.full((len(names), residuals.shape[1]), np.nan)
    if len(names) < 2:
        return names, covered
    for place, name in enumerate(names):
        own = patients == name
        width = half_widths(residuals[~own], patients[~own], coverage=coverage)
        covered[place] = (np.abs(residuals[own]) <= width).mean(0)
    return names, covered
