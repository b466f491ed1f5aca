"""Survival and response of a cohort as pages, each row in words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from histogep.outcome.multivariable import Multivariable
from histogep.outcome.response import ResponseResult
from histogep.outcome.survival import SurvivalResult
from histogep.report.pages import Table, write_page

#: What the model of a row of concordance.tsv or performance.tsv is.
MODELS = {
    "clinical": "the clinical covariates",
    "image": "the image alone",
    "expression": "measured expression alone",
    "clinical+image": "covariates and image together",
    "clinical+expression": "covariates and measured expression together",
    "clinical+image - clinical": "what the image adds to the covariates",
    "clinical+expression - clinical": "what measured expression adds to the covariates",
    "shuffled": "null of the image: images of other patients",
    "clinical+shuffled": "null of both: covariates with the images of other patients",
    "stage": "the stage alone, as it stands",
    "maps": "a network on the predicted maps",
    "clinical+maps - clinical": "what that network adds to the covariates",
}


def _with_intervals(table: pd.DataFrame, *, end: str = "", digits: int = 3) -> pd.DataFrame:
    """Return a table with an interval as one column of text, where its lower bound stood."""
    bounds = table[[f"ci_low{end}", f"ci_high{end}"]].to_numpy(float)
    at = table.columns.get_loc(f"ci_low{end}")
    shown = table.drop(columns=[f"ci_low{end}", f"ci_high{end}"])
    said = [
        f"{low:.{digits}f} to {high:.{digits}f}" if low == low and high == high else None
        for low, high in bounds
    ]
    shown.insert(at, f"95 % interval{end}", said)
    return shown


def _three_digits(*columns: str) -> dict[str, str]:
    return dict.fromkeys(columns, "{:.3f}")


def write_survival_page(
    result: SurvivalResult, path: str | Path, *, cohort: str, warnings: Sequence[str] = ()
) -> None:
    """Write results/survival/{cohort}/survival.html.

    Parameters
    ----------
    result
        What `histogep.outcome.survival.fit_survival` found.
    path
        Where to write.
    cohort
        Its name, for the title.
    warnings
        Warnings of jobs that decide survival.
    """
    concordance = result.concordance.copy()
    concordance.insert(1, "what", concordance["model"].map(MODELS).fillna(""))
    model = str(result.risk["model"].iloc[0])
    risk = result.risk.sort_values(f"risk_{model}", ascending=False)
    first = [name for name in ("patient", "group", "group_clinical") if name in risk]
    others = [n for n in risk if n.startswith(("group_", "risk_")) and n not in first]
    risk = risk[[*first, *others, "time", "event"]].dropna(axis=1, how="all")
    risk = risk.loc[:, (risk != "").any()]
    write_page(
        path,
        title=f"Survival of cohort {cohort}",
        warnings=warnings,
        tables=[
            Table(
                _with_intervals(concordance)[
                    ["model", "what", "c_index", "95 % interval", "null", "p", "n", "events"]
                ],
                heading="Image beside the clinic: C-index",
                notes=[
                    "Out of fold; chance is .5, the most is 1. `null`: mean over images (covariates, "
                    "for `clinical`; stages, for `stage`) dealt to other patients, `p`: how often "
                    "they score as high. `concordance.tsv` has the same."
                ],
                formats=_three_digits("c_index", "null"),
                bars={"c_index": (0.0, 1.0)},
                headers={"c_index": "C-index"},
            ),
            _hazards(result.multivariable),
            Table(
                result.follow_up.rename(columns=lambda name: name.replace("_", " ")),
                heading="Follow-up and median survival, months",
                notes=[
                    f"High and low risk are those of `{model}`. Median follow-up: reverse "
                    "Kaplan-Meier. Empty where a median is not reached. `follow_up.tsv`."
                ],
            ),
            Table(
                risk,
                heading=f"Patients by risk (model {model})",
                notes=[
                    f"`group`: above (high) or below (low) the median out-of-fold risk of `{model}`; "
                    "`group_MODEL`: the same by that model alone. Risks are in standard deviations of "
                    "the risk of the training patients. The median divides this cohort: it is no "
                    "threshold for a patient elsewhere. `risk.tsv`."
                ],
                formats={name: "{:+.2f}" for name in risk if name.startswith("risk_")},
            ),
        ],
    )


def _hazards(adjusted: Multivariable) -> Table:
    rows = adjusted.table[adjusted.table["level"].notna()].copy()
    for end in ("", "_univariable"):
        rows = _with_intervals(rows, end=end, digits=2)
    names = [
        *("variable", "level", "reference", "n", "events", "hr", "95 % interval", "p"),
        *("hr_univariable", "95 % interval_univariable", "p_univariable", "p_shuffles"),
    ]
    return Table(
        rows[names],
        heading=f"Hazard ratios, each adjusted for the others ({adjusted.n} patients, {adjusted.events} events)",
        notes=[
            "`hr`: in one Cox model of all variables; `hr_univariable`: of the variable alone, on the "
            "same patients. `p_shuffles`: of the image, among images of other patients. "
            "`multivariable.tsv`.",
            *adjusted.notes,
        ],
        headers={
            "hr": "HR",
            "hr_univariable": "HR alone",
            "95 % interval_univariable": "95 % interval, alone",
            "p_univariable": "p, alone",
            "p_shuffles": "p, shuffled",
        },
    )


def write_response_page(
    result: ResponseResult, path: str | Path, *, cohort: str, warnings: Sequence[str] = ()
) -> None:
    """Write results/response/{cohort}/response.html.

    Parameters
    ----------
    result
        What `histogep.outcome.response.predict_response` found.
    path
        Where to write.
    cohort
        Its name, for the title.
    warnings
        Warnings of jobs that decide response.
    """
    performance = result.performance.copy()
    what = performance["model"].map(MODELS).fillna("a signature, by its score alone")
    performance.insert(1, "what", what)
    by = "image" if "image" in result.scores else "expression"
    scores = result.scores
    if by in scores:
        scores = scores.sort_values(by, ascending=False)
    write_page(
        path,
        title=f"Response of cohort {cohort}",
        warnings=warnings,
        tables=[
            Table(
                _with_intervals(performance).drop(columns="interval"),
                heading="Models and signatures",
                notes=[
                    "Out of fold. `null`: mean over images (responses, for signatures) dealt to other "
                    "patients, `null, 95 %`: what they reach in one of 20 cases. For `auprc` chance is "
                    "the share of responders. `performance.tsv` has the same."
                ],
                formats=_three_digits("value", "null", "null_upper"),
                bars={"value": (0.0, 1.0)},
                headers={"null_upper": "null, 95 %"},
                group_by="model",
            ),
            Table(
                scores,
                heading=f"Patients by the score of {by}" if by in scores else "Patients",
                notes=["`response` 1: responded. Scores are out of fold. `scores.tsv`."],
            ),
        ],
    )
