"""Survival: per-gene Cox models and out-of-fold risk, each against what it must beat."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from histogep.errors import InputError
from histogep.outcome.horizons import score_horizons
from histogep.outcome.known_outcomes import known_covariates, with_outcome
from histogep.outcome.maps.scores import MapScores, map_concordance, read_map_scores
from histogep.outcome.multivariable import Multivariable, fit_multivariable
from histogep.outcome.nested_cv import NestedScores, nested_scores, refit_bootstrap
from histogep.outcome.patients import CLINICAL, GENE, image_blocks, image_columns, source_name
from histogep.outcome.risk_groups import above_median, compare_halves, concordance, follow_up
from histogep.stats.cox import scan_genes
from histogep.stats.discrimination import (
    bootstrap_concordance,
    bootstrap_weights,
    interval,
    permutation_p,
    refit_interval,
    survival_pairs,
)
from histogep.stats.penalised import CoxLearner

log = logging.getLogger(__name__)

DEFAULTS: dict[str, Any] = {
    "folds": 5,
    "inner_folds": 5,
    "repeats": 5,
    "penalties": [0.01, 0.03, 0.1, 0.3, 1.0, 3.0],
    "components": 10,
    "shuffles": 50,
    "refits": 50,
    "bootstraps": 1000,
    "covariates": list(CLINICAL),
    "horizons": [36, 60],
    "gene_scale": "normal_scores",
    "neighbourhoods": False,
}
#: At most one image component for so many events of the cohort.
_EVENTS_PER_COMPONENT = 3


@dataclass(frozen=True)
class SurvivalResult:
    """What `fit_survival` finds.

    Attributes
    ----------
    cox
        One row per gene: see `histogep.stats.cox.scan_genes`; sorted by p.
    concordance
        One row per model and for the paired difference: model, c_index (mean over the repeats of
        the pooled out-of-fold C-index), ci_low, ci_high (95 %), interval (what it counts.
        `refitted`: patients are drawn again and every model fitted again to them; `models fixed`:
        patients alone, the network on the maps being too costly to train for each sample;
        `shuffles`: the range over them), p (one-sided permutation p over the shuffles: the
        covariates' for the clinical model, the images' for the others), null (mean over the
        shuffles; NaN without), protocol (patient_cv; published: the best epoch of the map
        network picked on the test fold, beside noise through the same protocol; as given: the
        stage by itself, which nothing was fitted to), repeats (whose mean it is), n, events.
    risk
        One row per patient: patient, fold (of each repeat, separated by commas), time, event,
        risk_clinical, risk_image, risk_clinical+image (mean over repeats of the out-of-fold risk,
        in standard deviations of the training patients' risk; NaN where there is no such model;
        `expression` in place of `image` where it was measured),
        group (high or low: above or below the median risk of `model`, the fullest), model,
        group_clinical, group_image (the same by these; empty without them), and lacks (covariates without a value, for which the patient is not in the
        multivariable model).
    log_rank
        Patients of high against those of low risk, by model: `histogep.outcome.risk_groups.compare_halves`.
    follow_up
        Median survival and follow-up of all patients and of both groups:
        `histogep.outcome.risk_groups.follow_up`.
    multivariable
        Cox model of the covariates with the out-of-fold image risk:
        `histogep.outcome.multivariable.fit_multivariable`.
    horizons, calibration
        Time-dependent AUC and calibration at fixed times: `histogep.outcome.horizons.score_horizons`.
    """

    cox: pd.DataFrame
    concordance: pd.DataFrame
    risk: pd.DataFrame
    log_rank: pd.DataFrame
    follow_up: pd.DataFrame
    multivariable: Multivariable
    horizons: pd.DataFrame
    calibration: pd.DataFrame


def fit_survival(
    table: pd.DataFrame,
    *,
    settings: dict[str, Any],
    seed: int,
    maps: Sequence[str | Path] = (),
) -> SurvivalResult:
    """Relate the patients' images to their survival.

    Three models are fitted in nested patient folds (`histogep.outcome.nested_cv`): the clinical covariates
    alone, the image alone, and both. What the image adds is the paired difference between both
    and the clinical model, on the same bootstrap draws. The image of every patient is then given
    to another one, at random and through the same procedure: `shuffled` and `clinical+shuffled`
    are what images without information score here, and how often they score as high is the p of
    the image and of its gain. Intervals count the training too: patients are drawn again and the
    whole procedure is repeated on them (`histogep.outcome.nested_cv.refit_bootstrap`).

    Risks of all folds are pooled: within the folds of a small cohort there are too few pairs.
    Each is first put on the scale of its training patients' risk, which takes out the shifts
    between folds.

    Parameters
    ----------
    table
        From `histogep.outcome.patients.summarise_patients`.
    settings
        Keys of `DEFAULTS`.
    seed
        Of folds, shuffles and bootstrap draws.
    maps
        Scores of the spatial-map model (`histogep.outcome.maps.scores.MapScores.write`), where it was trained.

    Raises
    ------
    InputError
        No or too few events, fewer patients than folds, a negative time, an event that is not 0
        or 1, nothing to model risk with.
    """
    settings = DEFAULTS | settings
    table = with_outcome(table, settings["folds"])
    time, event = table["time"].to_numpy(float), table["event"].to_numpy(int)
    clinical = known_covariates(table, settings["covariates"])
    genes, _, others = image_columns(table)
    image = image_blocks(table, neighbourhoods=settings["neighbourhoods"])
    if clinical.shape[1] == 0 and not genes and not others:
        raise InputError(
            "there is nothing to model risk with: no predictable gene and none of the covariates "
            f"{', '.join(settings['covariates'])}"
        )
    names = [name.removeprefix(GENE) for name in genes]
    cox = scan_genes(image[0], time, event, genes=names, scale=settings["gene_scale"])
    cox = cox.sort_values(["p", "gene"], kind="stable", ignore_index=True)
    if len(cox):
        log.info("%d of %d genes with FDR below .05", (cox["fdr"] < 0.05).sum(), len(cox))

    components = max(1, min(settings["components"], int(event.sum()) // _EVENTS_PER_COMPONENT))
    learner, source = CoxLearner(time, event), source_name(table)
    warned: set[str] = set()
    repeats = [
        nested_scores(
            learner,
            event,
            clinical=clinical,
            image=image,
            folds=settings["folds"],
            inner_folds=settings["inner_folds"],
            penalties=settings["penalties"],
            components=components,
            shuffles=settings["shuffles"],
            seed=seed + 10_000 * repeat,
            shuffle_seed=seed,
            warned=warned,
            source=source,
        )
        for repeat in range(settings["repeats"])
    ]
    for name, penalties in repeats[0].penalties.items():
        log.info("penalty of %s by fold (first repeat): %s", name, penalties)
    refits = refit_bootstrap(
        lambda rows: CoxLearner(time[rows], event[rows]),
        event,
        clinical=clinical,
        image=image,
        draws=settings["refits"],
        folds=settings["folds"],
        inner_folds=settings["inner_folds"],
        penalties=settings["penalties"],
        components=components,
        seed=seed,
        source=source,
    )
    scored = [read_map_scores(path, list(table["patient"].astype(str))) for path in maps]
    c_index = _concordance(
        repeats, refits, time, event, settings["bootstraps"], seed, source, scored
    )
    horizons, calibration = score_horizons(
        repeats,
        refits,
        time,
        event,
        months=settings["horizons"],
        draws=settings["bootstraps"],
        seed=seed,
    )
    of_image = [r.scores[source] for r in repeats if source in r.scores]
    if "stage" in clinical:
        c_index = pd.concat(
            [c_index, _stage_alone(clinical["stage"].to_numpy(float), time, event, settings, seed)],
            ignore_index=True,
        )
    multivariable = fit_multivariable(
        clinical,
        np.mean(of_image, axis=0) if of_image else None,
        time,
        event,
        shuffled=np.mean([r.shuffled[source] for r in repeats], axis=0) if of_image else None,
        source=source,
    )
    risk = _risk_table(table, repeats, source, multivariable.lacks)
    high = risk["group"].eq("high").to_numpy()
    groups = {"all": np.ones(len(risk), bool), "high risk": high, "low risk": ~high}
    return SurvivalResult(
        cox=cox,
        concordance=c_index,
        risk=risk,
        log_rank=compare_halves(repeats, time, event),
        follow_up=follow_up(risk["time"].to_numpy(), risk["event"].to_numpy(), groups),
        multivariable=multivariable,
        horizons=horizons,
        calibration=calibration,
    )


def _concordance(
    repeats: list[NestedScores],
    refits: list[tuple[np.ndarray, NestedScores]],
    time: np.ndarray,
    event: np.ndarray,
    draws: int,
    seed: int,
    source: str,
    maps: Sequence[MapScores] = (),
) -> pd.DataFrame:
    """Return the C-index of every model with interval, null and p."""
    n, pairs = len(time), survival_pairs(time, event).astype(float)
    weights = np.vstack([np.ones(n), bootstrap_weights(n, draws=draws, seed=seed)])
    models = list(repeats[0].scores)
    # Repeats x models x (as observed, then draws).
    values = np.stack(
        [
            bootstrap_concordance(np.stack([r.scores[name] for name in models]), pairs, weights)
            for r in repeats
        ]
    )
    values[..., 0] = [[concordance(time, event, r.scores[m]) for m in models] for r in repeats]
    by_model = dict(zip(models, values.mean(axis=0), strict=True))
    shuffled = {
        name: np.mean(
            [bootstrap_concordance(r.shuffled[name], pairs, weights[:1])[:, 0] for r in repeats],
            axis=0,
        )
        for name in repeats[0].shuffled
        if len(repeats[0].shuffled[name])
    }
    refitted = {
        name: np.array([concordance(time[rows], event[rows], r.scores[name]) for rows, r in refits])
        for name in models
    }
    rows: list[dict[str, Any]] = []

    def add(
        model: str,
        observed: np.ndarray,
        spread: np.ndarray,
        null: np.ndarray | None,
        bounds: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        value = float(observed[0])
        low, high = refit_interval(value, spread, observed[1:], bounds=bounds)
        p = np.nan if null is None else permutation_p(value, null)
        middle = np.nan if null is None else float(null.mean())
        rows.append(_row(model, value, low, high, p, middle, len(repeats), "refitted"))

    for name in models:
        add(name, by_model[name], refitted[name], shuffled.get(name))
    both = f"clinical+{source}"
    for name, label in ((source, "shuffled"), (both, "clinical+shuffled")):
        if name in shuffled:
            low, high = interval(shuffled[name])
            rows.append(
                _row(
                    label,
                    shuffled[name].mean(),
                    low,
                    high,
                    np.nan,
                    np.nan,
                    len(repeats),
                    "shuffles",
                )
            )
    if both in models:
        null = shuffled.get(both)
        add(
            f"{both} - clinical",
            by_model[both] - by_model["clinical"],
            refitted[both] - refitted["clinical"],
            None if null is None else null - by_model["clinical"][0],
            (-1.0, 1.0),
        )
    beside: dict[str, Any] = {"clinical": None}
    if "clinical" in models:
        beside["clinical"] = values[:, models.index("clinical")]
        beside["clinical_fold"] = np.stack([r.fold for r in repeats])
    for scored in maps:
        rows += map_concordance(scored, pairs, weights, **beside)
    table = pd.DataFrame(rows)
    table["n"], table["events"] = n, int(event.sum())
    for row in rows:
        log.info(
            "C-index %s: %.3f (%.3f to %.3f)",
            *(row[key] for key in ("model", "c_index", "ci_low", "ci_high")),
        )
    return table


def _stage_alone(
    stage: np.ndarray, time: np.ndarray, event: np.ndarray, settings: dict[str, Any], seed: int
) -> pd.DataFrame:
    """Return the C-index of the stage as it stands, over the patients whose stage is known.

    Nothing is fitted, so that there is no fold: the interval draws the patients again, and p deals
    their stages to one another.
    """
    known = np.isfinite(stage)
    stage, time, event = stage[known], time[known], event[known]
    n, pairs = len(stage), survival_pairs(time, event).astype(float)
    weights = np.vstack([np.ones(n), bootstrap_weights(n, draws=settings["bootstraps"], seed=seed)])
    drawn = bootstrap_concordance(stage[None], pairs, weights)[0]
    rng = np.random.default_rng(seed)
    dealt = np.stack([rng.permutation(stage) for _ in range(settings["bootstraps"])])
    null = bootstrap_concordance(dealt, pairs, weights[:1])[:, 0]
    low, high = interval(drawn[1:])
    p = permutation_p(float(drawn[0]), null)
    row = _row("stage", drawn[0], low, high, p, float(null.mean()), 1, "patients")
    sizes = {"protocol": "as given", "n": n, "events": int(event.sum())}
    return pd.DataFrame([row | sizes])


def _row(
    model: str,
    value: float,
    low: float,
    high: float,
    p: float,
    null: float,
    repeats: int,
    counts: str,
) -> dict[str, Any]:
    return {
        "model": model,
        "c_index": float(value),
        "ci_low": low,
        "ci_high": high,
        "interval": counts,
        "p": p,
        "null": null,
        "protocol": "patient_cv",
        "repeats": repeats,
    }


def _risk_table(
    table: pd.DataFrame, repeats: list[NestedScores], source: str, lacks: Sequence[str]
) -> pd.DataFrame:
    risk = pd.DataFrame({"patient": table["patient"].astype(str)})
    risk["fold"] = [",".join(map(str, row)) for row in zip(*(r.fold for r in repeats), strict=True)]
    risk["time"], risk["event"] = table["time"], table["event"].astype(int)
    models = [m for m in ("clinical", source, f"clinical+{source}") if m in repeats[0].scores]
    for name in ("clinical", source, f"clinical+{source}"):
        known = name in models
        risk[f"risk_{name}"] = (
            np.mean([r.scores[name] for r in repeats], axis=0) if known else np.nan
        )
    risk["group"], risk["model"] = split_at_median(risk[f"risk_{models[-1]}"]), models[-1]
    for name in ("clinical", source):
        risk[f"group_{name}"] = split_at_median(risk[f"risk_{name}"]) if name in models else ""
    risk["lacks"] = list(lacks)
    return risk.sort_values("patient", ignore_index=True)


def split_at_median(risk: pd.Series) -> np.ndarray:
    """Return `high` for patients above the median risk, `low` for the others."""
    return np.where(above_median(risk.to_numpy(float)), "high", "low")
