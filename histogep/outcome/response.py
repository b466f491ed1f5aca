"""Response to treatment: signatures, clinical covariates and image, scored out of fold."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from histogep.errors import InputError
from histogep.outcome.maps.scores import MapScores, read_map_scores
from histogep.outcome.nested_cv import NestedScores, nested_scores, refit_bootstrap
from histogep.outcome.patients import (
    CLINICAL,
    GENE,
    SIGNATURE,
    image_blocks,
    image_columns,
    source_name,
)
from histogep.stats.discrimination import (
    bootstrap_weights,
    interval,
    permutation_p,
    refit_interval,
    weighted_auroc,
    weighted_precision,
)
from histogep.stats.penalised import LogisticLearner
from histogep.stats.scores import false_discovery_rate
from histogep.study.stages import MIN_CLASS

log = logging.getLogger(__name__)

DEFAULTS: dict[str, Any] = {
    "folds": 5,
    "inner_folds": 5,
    "repeats": 5,
    "penalties": [0.01, 0.03, 0.1, 0.3, 1.0, 3.0],
    "components": 10,
    "permutations": 50,
    "refits": 50,
    "bootstraps": 1000,
    "covariates": list(CLINICAL),
    "neighbourhoods": False,
}
#: At most one image component for so many patients of the rarer class.
CLASS_PER_COMPONENT = 2
#: Permuting labels costs nothing where nothing is learnt.
_SIGNATURE_PERMUTATIONS = 2000


#: Metric -> scikit-learn's score, and the same under thousands of weightings.
METRICS = {
    "auroc": (roc_auc_score, weighted_auroc),
    "auprc": (average_precision_score, weighted_precision),
}


@dataclass(frozen=True)
class ResponseResult:
    """What `predict_response` finds.

    Attributes
    ----------
    performance
        One row per model and metric (auroc, auprc): model, metric, value (mean over the repeats),
        ci_low, ci_high (95 %, bootstrap within responders and non-responders), interval (what it
        counts: `refitted`, every model fitted again to each sample; `patients`, where nothing is
        learnt; `models fixed`, the network on the maps), p (one-sided permutation), null, null_upper (mean and 95 % quantile of the
        permuted procedure; neither is .5 or the share of responders: out of fold a useless model
        ranks below a half, and few positives lift the average precision of any score), n,
        positives.
    scores
        One row per patient: patient, fold (of each repeat), response, and the score of every
        model: a signature's value, or the mean over the repeats of the out-of-fold score.
    genes
        One row per gene: gene, difference (responders less non-responders), t, p (Welch), fdr,
        auroc, n, positives; sorted by p.
    """

    performance: pd.DataFrame
    scores: pd.DataFrame
    genes: pd.DataFrame


def predict_response(
    table: pd.DataFrame,
    *,
    settings: dict[str, Any],
    seed: int,
    maps: Sequence[str | Path] = (),
) -> ResponseResult:
    """Score the patients' response from signatures alone and from penalised logistic models.

    A signature has nothing to learn: its value is the score, and a higher one speaks for a
    response. The clinical, the image and the clinical+image model are ridge logistic regressions
    in nested patient folds (`histogep.outcome.nested_cv`). Their permutation p gives every patient the image
    (the clinical model: the covariates) of another one and repeats the whole procedure; a
    signature's permutes the responses.

    Parameters
    ----------
    table
        From `histogep.outcome.patients.summarise_patients`, with `response` (0/1).
    settings
        Keys of `DEFAULTS`.
    seed
        Of folds, permutations and bootstrap draws.
    maps
        Scores of the spatial-map model (`histogep.outcome.maps.scores.MapScores.write`), where it was trained.

    Raises
    ------
    InputError
        One class only, too few of the rarer one, a response that is not 0 or 1, nothing to score.
    """
    settings = DEFAULTS | settings
    table = with_response(table)
    response = table["response"].to_numpy(int)
    n, positives = len(table), int(response.sum())
    rarer = min(positives, n - positives)
    folds = response_folds(response, settings["folds"])
    clinical = table[[name for name in settings["covariates"] if name in table]]
    clinical = clinical.loc[:, [np.isfinite(clinical[c].to_numpy(float)).any() for c in clinical]]
    genes, _, others = image_columns(table)
    signatures = [name for name in others if name.startswith(SIGNATURE)]
    if not genes and not others and clinical.shape[1] == 0:
        raise InputError(
            "there is nothing to score a response with: no gene, signature or covariate"
        )
    image = image_blocks(table, neighbourhoods=settings["neighbourhoods"])
    learner = LogisticLearner(response)
    warned: set[str] = set()
    repeats = [
        nested_scores(
            learner,
            response,
            clinical=clinical,
            image=image,
            folds=folds,
            inner_folds=settings["inner_folds"],
            penalties=settings["penalties"],
            components=max(1, min(settings["components"], rarer // CLASS_PER_COMPONENT)),
            shuffles=settings["permutations"],
            seed=seed + 10_000 * repeat,
            shuffle_seed=seed,
            warned=warned,
            source=source_name(table),
        )
        for repeat in range(settings["repeats"])
    ]
    refits = refit_bootstrap(
        lambda rows: LogisticLearner(response[rows]),
        response,
        clinical=clinical,
        image=image,
        draws=settings["refits"],
        folds=folds,
        inner_folds=settings["inner_folds"],
        penalties=settings["penalties"],
        components=max(1, min(settings["components"], rarer // CLASS_PER_COMPONENT)),
        seed=seed,
        source=source_name(table),
    )
    scored = [read_map_scores(path, list(table["patient"].astype(str))) for path in maps]
    performance, scores = _performance(
        table, response, signatures, repeats, refits, settings, seed, scored
    )
    names = [name.removeprefix(GENE) for name in genes]
    return ResponseResult(performance, scores, compare_genes(image[0], response, genes=names))


def response_folds(response: np.ndarray, folds: int) -> int:
    """Return the number of folds: no more than there are patients of the rarer class."""
    positives = int(np.sum(response))
    possible = min(folds, positives, len(response) - positives)
    if possible < folds:
        log.warning("%d folds instead of %d: one per patient of the rarer class", possible, folds)
    return possible


def compare_genes(values: np.ndarray, response: np.ndarray, *, genes: list[str]) -> pd.DataFrame:
    """Compare responders with non-responders gene by gene (Welch's t; rank AUROC).

    Parameters
    ----------
    values
        Patients x genes.
    response
        0 or 1, (n,).
    genes
        Names of the columns.
    """
    positive = np.asarray(response).astype(bool)
    yes, no = values[positive], values[~positive]
    spread = values.std(axis=0) > 1e-9 * (1 + np.abs(values).max(axis=0, initial=0))
    table = pd.DataFrame({"gene": list(genes), "difference": yes.mean(axis=0) - no.mean(axis=0)})
    table[["t", "p", "fdr", "auroc"]] = np.nan
    rows = np.flatnonzero(spread)
    if len(rows):
        t, p = stats.ttest_ind(yes[:, rows], no[:, rows], axis=0, equal_var=False)
        table.loc[rows, "t"], table.loc[rows, "p"] = t, p
        table.loc[rows, "fdr"] = false_discovery_rate(p)
        above = stats.mannwhitneyu(yes[:, rows], no[:, rows], axis=0, method="asymptotic")
        table.loc[rows, "auroc"] = above.statistic / (len(yes) * len(no))
    table["n"], table["positives"] = len(positive), int(positive.sum())
    return table.sort_values(["p", "gene"], kind="stable", ignore_index=True)


def with_response(table: pd.DataFrame) -> pd.DataFrame:
    """Return the patients whose response is known, or refuse what cannot be compared.

    Raises
    ------
    InputError
        No response, one class only, too few of the rarer one, a response that is not 0 or 1.
    """
    if "response" not in table:
        raise InputError("the patients have no column 'response'")
    values = table["response"].to_numpy(float)
    ids = table["patient"].astype(str)
    known = np.isfinite(values)
    odd = known & ~np.isin(values, (0, 1))
    if odd.any():
        raise InputError(f"responses other than 0 and 1: {', '.join(ids[odd])}")
    if not known.all():
        log.warning(
            "%d patients without a response left out: %s", (~known).sum(), ", ".join(ids[~known])
        )
    n, positives = int(known.sum()), int(values[known].sum())
    if positives in (0, n):
        kind = "responders" if positives else "non-responders"
        raise InputError(
            f"all {n} patients with a known response are {kind}; a comparison needs both (1 and 0)"
            if n
            else "no patient has a known response"
        )
    if min(positives, n - positives) < MIN_CLASS:
        raise InputError(
            f"{positives} responders and {n - positives} non-responders are too few: at least "
            f"{MIN_CLASS} of each are needed for folds"
        )
    log.info("%d patients, %d responders", n, positives)
    return table[known].reset_index(drop=True)


def _performance(
    table: pd.DataFrame,
    response: np.ndarray,
    signatures: list[str],
    repeats: list[NestedScores],
    refits: list[tuple[np.ndarray, NestedScores]],
    settings: dict[str, Any],
    seed: int,
    maps: Sequence[MapScores],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    n, positives = len(response), int(response.sum())
    weights = bootstrap_weights(n, draws=settings["bootstraps"], seed=seed, strata=response)
    rng = np.random.default_rng([seed, n, 11])
    labels = np.array([rng.permutation(response) for _ in range(_SIGNATURE_PERMUTATIONS)])
    scores = pd.DataFrame({"patient": table["patient"].astype(str)})
    scores["fold"] = [
        ",".join(map(str, row)) for row in zip(*(r.fold for r in repeats), strict=True)
    ]
    scores["response"] = response
    rows: list[dict[str, Any]] = []

    def add(
        model: str,
        observed: list[np.ndarray],
        null: dict[str, np.ndarray],
        counts: str,
        again: list[tuple[np.ndarray, np.ndarray]] | None = None,
    ) -> None:
        """Add a row for each metric: scores of the repeats, and labels and scores of the refits."""
        for metric, (judge, judge_many) in METRICS.items():
            value = float(np.mean([judge(response, score) for score in observed]))
            fixed = np.mean([judge_many(s, weights * response, weights) for s in observed], 0)
            low, high = interval(fixed)
            if again is not None:
                spread = np.array([judge(labels, score) for labels, score in again])
                low, high = refit_interval(value, spread, fixed, bounds=(0.0, 1.0))
            by_chance = null[metric]
            rows.append(
                {
                    "model": model,
                    "metric": metric,
                    "value": value,
                    "ci_low": low,
                    "ci_high": high,
                    "interval": counts,
                    "p": permutation_p(value, by_chance),
                    "null": float(np.mean(by_chance)) if len(by_chance) else np.nan,
                    "null_upper": float(np.quantile(by_chance, 0.95)) if len(by_chance) else np.nan,
                    "n": n,
                    "positives": positives,
                }
            )

    for column in signatures:
        values = table[column].to_numpy(float)
        name = column.removeprefix(SIGNATURE)
        if not np.isfinite(values).all():
            log.warning("signature %s is missing for some patients; left out", name)
            continue
        unit = np.ones(labels.shape)
        null = {metric: many(values, labels, unit) for metric, (_, many) in METRICS.items()}
        add(name, [values], null, "patients")
        scores[name] = values
    # Model -> scores of its repeats, and of the shuffles of each.
    learnt = {
        name: ([r.scores[name] for r in repeats], [r.shuffled[name] for r in repeats])
        for name in repeats[0].scores
    }
    for of_maps in maps:
        learnt |= {m: (list(of_maps.scores[m]), list(of_maps.shuffled[m])) for m in of_maps.scores}
    truth, once = response[None], np.ones((1, n))
    for name, (observed, shuffled) in learnt.items():
        null = {
            metric: np.mean([[many(s, truth, once)[0] for s in part] for part in shuffled], axis=0)
            for metric, (_, many) in METRICS.items()
        }
        refitted = name in repeats[0].scores
        again = [(response[rows], r.scores[name]) for rows, r in refits] if refitted else None
        add(name, observed, null, "refitted" if refitted else "models fixed", again)
        scores[name] = np.mean(observed, axis=0)
    for row in rows:
        log.info(
            "%s of %s: %.3f, null %.3f (95 %%: %.3f), p %.3g",
            *(row[key] for key in ("metric", "model", "value", "null", "null_upper", "p")),
        )
    return pd.DataFrame(rows), scores.sort_values("patient", ignore_index=True)
