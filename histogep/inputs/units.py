"""Check the declared unit of times, ages and expression against their values."""

from __future__ import annotations

import numpy as np
import pandas as pd

#: A month as TCGA's own tables count it.
DAYS_PER_MONTH = 30.44
DAYS_PER_YEAR = 365.25
#: Longest possible follow-up in months: of a column whose name says months, of one that does not.
_LONGEST = 720.0
_LONGEST_UNNAMED = 480.0
#: Longest possible median follow-up.
_MEDIAN = 240.0
#: Fewest patients for judging a cohort as a whole.
_COHORT = 20
_OLDEST = 120.0


def time_problem(values: pd.Series, *, unit: str, column: str, plain: bool = False) -> str:
    """Return the contradiction between a column of survival times and its unit, "" for none.

    Parameters
    ----------
    values
        Times in the declared unit; NaN for unknown.
    unit
        months, days or years.
    column
        The name of the column, for the message.
    plain
        Its name does not give the unit, which is then less certain: the bounds are narrower.

    Notes
    -----
    Bounds: no follow-up of 60 years, of half a cohort 20; and 20 patients or more of whom the last
    is followed for less than 30 months and half for less than 6 are followed in years. A cohort
    with such short follow-up needs its column named `time_months`.
    """
    known = values.dropna()
    if known.empty:
        return ""
    longest, middle = float(known.max()), float(known.median())
    years = {"days": DAYS_PER_YEAR, "years": 1.0}.get(unit, 12.0)
    bounded = _LONGEST_UNNAMED if plain else _LONGEST

    def remedy(other: str) -> str:
        if plain:
            return (
                f"if these are {other}, name the column time_{other}; if they are {unit}, name it "
                f"time_{unit}"
            )
        return (
            f"if these are {other}, say so in the configuration: "
            f"columns: {{time_{other}: {column}, event: EVENT}}"
        )

    told = f"column {column!r} counts {unit}, but the longest time is {longest:g}"
    if longest / years > bounded / 12 or (len(known) >= _COHORT and middle / years > _MEDIAN / 12):
        other = {"months": "days", "years": "months"}.get(unit, "")
        says = f"{told} ({longest / years:.0f} years) and the median {middle:g}"
        return f"{says}: {remedy(other)}" if other else f"{says}: no follow-up is as long"
    if len(known) < _COHORT:
        return ""
    if unit == "months" and plain and longest < 30 and middle < 6:
        return f"{told} and the median {middle:.3g}: {remedy('years')}"
    if unit == "days":
        whole = np.isclose(known, known.round(), atol=1e-6).mean()
        if whole < 0.5 and longest <= bounded:  # as months they would not be too long
            return f"{told} and most are not whole numbers: {remedy('months')}"
        if longest < 250:
            return f"{told}: {remedy('months')}"
    return ""


def age_problem(ages: pd.Series, *, unit: str, column: str) -> list[str]:
    """Return the contradiction between a column of ages and its unit; the index is the line number.

    Parameters
    ----------
    ages
        Ages in the declared unit; NaN for unknown.
    unit
        years or days.
    column
        The name of the column, for the message.
    """
    known = ages.dropna()
    if known.empty:
        return []
    years = known / DAYS_PER_YEAR if unit == "days" else known
    middle = float(years.median())
    if middle < 0:
        return [
            f"column {column!r} has negative ages, as days from diagnosis back to birth are written: give "
            "the days without the minus, in a column age_days"
        ]
    if unit == "years" and middle > 130:
        if middle > 1500:
            return [
                f"column {column!r} counts years, but half of the ages are above {middle:g}: these are "
                "days (or years of birth): name the column age_days, or give years"
            ]
        return [
            f"column {column!r} counts years, but half of the ages are above {middle:g}: these are "
            "months: divide them by 12"
        ]
    if unit == "days" and len(known) >= _COHORT and middle < 1:
        return [
            f"column {column!r} counts days, but half of the ages are below {known.median():g}: these "
            "are years: name the column age"
        ]
    odd = years[(years < 0) | (years > _OLDEST)]
    return [
        f"line {line}: {column} {ages[line]:g} is not an age in {unit}; leave the cell empty where the "
        "age is not known"
        for line in odd.index
    ]


def _are_zscores(x: np.ndarray) -> bool:
    """Return whether nearly all genes have mean 0 and variance 1, as only standardisation gives."""
    spread = x.std(axis=0)
    varying = spread > 0
    even = (np.abs(x.mean(axis=0)) < 0.3) & (np.abs(spread - 1) < 0.3)
    return bool(varying.sum() >= 10 and even[varying].mean() > 0.9)


def scale_problem(values: pd.DataFrame, *, scale: str, scales: list[str]) -> str:
    """Return the contradiction between the values of a table and its declared scale, "" for none.

    Parameters
    ----------
    values
        Samples x genes, as they stand in the file.
    scale
        log2_tpm, log2, log1p, linear, counts or zscore.
    scales
        The known ones, for the message.

    Notes
    -----
    Bounds: no log2 value is above 32 nor natural log above 22 (4 billion); log2(TPM + 0.001) is
    above -9.97, and hardly ever 0 without being below it elsewhere; z-scores are on both sides of 0.
    Linear values of 500 cells and more reach beyond 25. Whole numbers whose sums differ by patient
    are raw counts.
    """
    x = values.to_numpy(float)
    low, high = float(x.min()), float(x.max())
    whole = bool(np.isclose(x, np.round(x), atol=1e-9).mean() > 0.999)
    told = f"has values from {low:.4g} to {high:.4g}"
    known = f"(known: {', '.join(scales)})"
    if scale in ("log1p", "linear", "log2", "counts") and low < 0:
        return (
            f"has values below 0, which {scale} values cannot have; set its scale to one of "
            f"{', '.join(scales)}"
        )
    if scale in ("log2", "log2_tpm", "log1p") and high > (22 if scale == "log1p" else 32):
        right = "counts" if whole else "linear"
        return f"{told}, which are not {scale} values: set scale: {right} {known}"
    if scale == "log2_tpm" and low < -10.1:
        return f"{told}, but log2(TPM + 0.001) is never below -9.97: set scale: zscore {known}"
    if scale == "log2_tpm" and low == 0 and (x == 0).mean() > 0.005:
        return f"{told}, zeros among them, as log2(x + 1) has: set scale: log2 {known}"
    if scale == "log2_tpm" and len(x) >= _COHORT and _are_zscores(x):
        return f"{told}, every gene with mean 0 and variance 1: set scale: zscore {known}"
    if scale == "zscore" and -9.97 < low < -9.96 and (x < -9.96).mean() > 0.005:
        return f"{told}, the lowest as log2(0 + 0.001) is: set scale: log2_tpm {known}"
    if scale == "zscore" and low >= 0:
        right = "linear" if high > 32 else "log2"
        return f"{told}, but z-scores lie on both sides of 0: set scale: {right} {known}"
    if x.size < 500:
        return ""
    if scale == "linear" and high < 25 and not whole:
        return f"{told}, which are logarithms rather than linear values: set scale: log2 {known}"
    if scale == "counts" and not whole:
        return f"{told}, most of them not whole, so they are not counts: set scale: linear {known}"
    if scale == "linear" and whole and high > 100:
        sums = x.sum(axis=1)
        if sums.max() > 1.2 * max(sums.min(), 1.0):
            return (
                f"{told}, all whole, and their sum differs between samples ({sums.min():.4g} to "
                f"{sums.max():.4g}): raw counts, dominated by sequencing depth: set scale: "
                f"counts {known}"
            )
    return ""
