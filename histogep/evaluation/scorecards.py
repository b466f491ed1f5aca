"""The scorecards: every model's held-out scores beside their nulls and their ceilings."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from histogep.errors import InputError
from histogep.evaluation.cards import (
    calibrate,
    expression_cards,
    interval_cards,
    raw_cards,
    tumour_cards,
)
from histogep.evaluation.held_out import HeldOut
from histogep.evaluation.measured import Measured, check_truth
from histogep.evaluation.raw_counts import raw_table
from histogep.evaluation.registration import registration_scores
from histogep.evaluation.section_scores import (
    GENE_COLUMNS,
    SECTION_COLUMNS,
    baselines,
    gene_table,
    score_section,
    section_ceilings,
    section_table,
)
from histogep.evaluation.tumour_scores import tumour_table
from histogep.warned import decides

LOG = logging.getLogger(__name__)
BASELINES = ("tissue_mask", "training_mean")
COLUMNS = (
    "protocol",
    "task",
    "model",
    "metric",
    "value",
    "ci_low",
    "ci_high",
    "null",
    "null_upper",
    "ceiling",
    "ceiling_spatial",
    "n_sections",
    "n_patients",
    "n_genes",
)
CALIBRATION = (
    "model",
    "gene",
    "predictable",
    "score",
    "null",
    "null_upper",
    "half_width",
    "coverage",
    "n_patients",
)
REGISTRATION = ("slide", "flip", "d_row", "d_col", "score", "n_spots", "best", "ok", "p")


@dataclass(frozen=True)
class Evaluation:
    """All tables of one study.

    Attributes
    ----------
    scorecards, genes, sections, tumour, calibration, registration
        As the files of results/evaluation/{study}; their columns are in `config/README.md`.
        `scorecards` has one column more than its file, `null_upper`.
    best
        The expression model with the highest patient_cv score over sections; None without one.
    """

    scorecards: pd.DataFrame
    genes: pd.DataFrame
    sections: pd.DataFrame
    tumour: pd.DataFrame
    calibration: pd.DataFrame
    registration: pd.DataFrame
    best: str | None


def evaluate(
    sections: Sequence[HeldOut],
    measured: Mapping[str, Measured],
    folds: pd.DataFrame,
    *,
    settings: Mapping[str, Any],
    seed: int,
) -> Evaluation:
    """Score all held-out predictions of a study.

    Parameters
    ----------
    sections
        Held-out predictions of every fold and model.
    measured
        Counts of every section.
    folds
        The folds table.
    settings
        permutations, bootstraps, thinnings, coverage, shifts.
    seed
        Seed of all nulls and intervals.

    Returns
    -------
    Evaluation
        The tables.

    Raises
    ------
    InputError
        When predictions and counts do not fit, or nothing was held out.
    """
    if not sections:
        raise InputError("there are no held-out predictions to score: run predict_fold")
    for section in sections:
        check_truth(section, measured[section.slide])
    expression = [section for section in sections if section.task == "expression"]
    ceilings = section_ceilings(sections, measured, thinnings=int(settings["thinnings"]), seed=seed)
    everything = expression + baselines(expression, measured, folds)
    groups: dict[tuple[str, str], list[HeldOut]] = {}
    for section in everything:
        groups.setdefault((section.protocol, section.model), []).append(section)

    cards, genes, tables, calibrations = [], [], [], []
    base_rmse: dict[str, float] = {}
    widths: dict[str, pd.Series] = {}
    # The baselines come first: their scores are nulls of the models'.
    for (protocol, model), group in sorted(
        groups.items(),
        key=lambda item: (item[0][0] == "published", item[0][1] not in BASELINES, item[0][1]),
    ):
        LOG.info("%s: scoring %s on %d sections", protocol, model, len(group))
        scores = [
            score_section(
                section,
                measured[section.slide],
                ceilings[section.slide],
                permutations=int(settings["permutations"]),
                seed=seed,
            )
            for section in sorted(group, key=lambda section: section.slide)
        ]
        table = section_table(scores)
        tables.append(table)
        if model == "training_mean":
            base_rmse[protocol] = float(table["rmse"].mean())
        cards += expression_cards(
            scores, table, base_rmse=base_rmse.get(protocol), settings=settings, seed=seed
        )
        raw = raw_table(
            sorted(group, key=lambda section: section.slide),
            measured,
            fitted=model not in BASELINES,
        )
        cards += raw_cards(raw, protocol=protocol, model=model, settings=settings, seed=seed)
        calibrated, per_patient = pd.DataFrame(), None
        if protocol == "patient_cv" and model != "tissue_mask":
            calibrated, per_patient = calibrate(group, coverage=float(settings["coverage"]))
            if model == "training_mean":
                widths = {"training_mean": calibrated["half_width"]}
        if model in BASELINES:
            continue
        gene_scores = gene_table(scores)
        if protocol == "patient_cv":
            cards += interval_cards(
                gene_scores,
                calibrated,
                per_patient,
                baseline=widths.get("training_mean"),
                settings=settings,
                seed=seed,
            )
            gene_scores = gene_scores.join(calibrated, on="gene")
            calibrations.append(gene_scores.rename(columns={"pearson": "score"})[list(CALIBRATION)])
        genes.append(gene_scores)

    tumour = tumour_table(sections, measured, permutations=int(settings["permutations"]), seed=seed)
    cards += tumour_cards(tumour, settings=settings, seed=seed)
    scorecards = pd.DataFrame(cards, columns=list(COLUMNS))
    best = best_model(scorecards)
    return Evaluation(
        scorecards=scorecards,
        genes=_stacked(genes, [*GENE_COLUMNS, "half_width", "coverage"]),
        sections=_stacked(tables, SECTION_COLUMNS),
        tumour=tumour,
        calibration=_stacked(calibrations, CALIBRATION),
        registration=registration_table(
            [s for s in expression if s.protocol == "patient_cv" and s.model == best],
            shifts=int(settings["shifts"]),
        ),
        best=best,
    )


def best_model(scorecards: pd.DataFrame) -> str | None:
    """Return the expression model with the highest patient_cv `pearson`, baselines aside."""
    rows = scorecards[
        (scorecards["protocol"] == "patient_cv")
        & (scorecards["task"] == "expression")
        & (scorecards["metric"] == "pearson")
        & ~scorecards["model"].isin(BASELINES)
        & scorecards["value"].notna()
    ]
    return None if rows.empty else str(rows.loc[rows["value"].idxmax(), "model"])


def registration_table(sections: Sequence[HeldOut], *, shifts: int) -> pd.DataFrame:
    """Return the registration scores of every section, with a warning for those that do not fit."""
    tables = []
    for section in sorted(sections, key=lambda section: section.slide):
        tissue = section.tissue
        table = registration_scores(
            tissue.predicted, tissue.truth, tissue.row, tissue.col, shifts=shifts
        )
        if not table["ok"].all():
            best, home = table[table["best"]].iloc[0], table.loc[_is_home(table)].iloc[0]
            LOG.warning(
                "section %s: predictions fit the counts better at flip %s, row %+d, column %+d "
                "(r = %.3f) than in place (r = %.3f): look at its overlay in the report, the spot "
                "positions may be laid wrongly on the image",
                section.slide,
                best["flip"],
                best["d_row"],
                best["d_col"],
                best["score"],
                home["score"],
                **decides("expression", "tumour", slide=section.slide),
            )
        table.insert(0, "slide", section.slide)
        tables.append(table)
    if not tables:
        return pd.DataFrame(columns=list(REGISTRATION))
    return pd.concat(tables, ignore_index=True)[list(REGISTRATION)]


def _is_home(table: pd.DataFrame) -> pd.Series:
    return (table["flip"] == "none") & (table["d_row"] == 0) & (table["d_col"] == 0)


def _stacked(tables: Sequence[pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
    """Return tables under each other; a table without rows still has its columns."""
    if not tables:
        return pd.DataFrame(columns=list(columns))
    return pd.concat(tables, ignore_index=True)[list(columns)]
