"""Response across cohorts: a model of one cohort's patients scores those of another."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score, roc_auc_score

from histogep.errors import InputError
from histogep.inputs.barcodes import patient_key
from histogep.outcome.nested_cv import choose_and_fit, reduce_image, stratified
from histogep.outcome.patients import IMAGES_COLUMN, image_columns, source_name
from histogep.outcome.response import CLASS_PER_COMPONENT, DEFAULTS, with_response
from histogep.stats.discrimination import (
    bootstrap_weights,
    interval,
    permutation_p,
    weighted_auroc,
    weighted_precision,
)
from histogep.stats.penalised import LogisticLearner
from histogep.stats.scores import unit_columns
from histogep.warned import decides

log = logging.getLogger(__name__)

COLUMNS = [
    *("train", "test", "n_train", "train_positives", "n_test", "test_positives", "n_genes"),
    *("n_shared", "auroc", "ci_low", "ci_high", "auroc_null", "auroc_null_upper", "p"),
    *("auprc", "auprc_null", "auprc_null_upper"),
]
SCORE_COLUMNS = ["train", "test", "patient", "response", "score"]
#: Two measured profiles whose ranks correlate by more are of one sample; fewest genes to say so.
_SAME_PROFILE, _COPY_GENES = 0.999, 20
#: Permutations of the test cohort's responses; they cost nothing, as the model stays.
_PERMUTATIONS = 2000


@dataclass(frozen=True)
class TransferResult:
    """What `transfer_response` finds.

    Attributes
    ----------
    performance
        One row per ordered pair of cohorts: train, test, n_train, train_positives, n_test,
        test_positives, n_genes (both have), n_shared (patients who stand in both, by their id, by
        an image or by their measured expression, and do not train; where too few are left there is
        no model and the figures are empty), auroc, ci_low, ci_high (95 %, bootstrap of test patients within their class),
        p (one-sided, the test responses permuted), auprc; auroc_null, auroc_null_upper, auprc_null,
        auprc_null_upper (mean and 95 % quantile over those permutations).
    scores
        train, test, patient, response, score: of every test patient.
    """

    performance: pd.DataFrame
    scores: pd.DataFrame


def transfer_response(
    tables: dict[str, pd.DataFrame], *, settings: dict[str, Any], seed: int
) -> TransferResult:
    """Train on each cohort and test on each other one.

    The model is that of `histogep.outcome.response` without clinical covariates: ridge logistic regression
    on principal components of genes and signatures, its penalty chosen in folds of the training
    cohort. Platforms and tissues shift and stretch expression, so every gene and signature is
    standardised within its cohort first; that uses the test cohort's expression, never its
    responses. Nothing else is taken from the test cohort.

    Parameters
    ----------
    tables
        Cohort -> patient table with `response`.
    settings
        Keys of `histogep.outcome.response.DEFAULTS`.
    seed
        Of folds, permutations and bootstrap draws.

    Raises
    ------
    InputError
        Fewer than two cohorts, a cohort without both classes, two cohorts without a shared gene.
    """
    if len(tables) < 2:
        raise InputError(f"{len(tables)} cohort with responses: a transfer needs two")
    settings = DEFAULTS | settings
    tables = {name: with_response(table) for name, table in sorted(tables.items())}
    rows, scores = [], []
    for train, test in permutations(tables, 2):
        # The same patients, predicted and measured say, must not teach what they are tested on.
        known = set().union(*_marks(tables[test]))
        shared = np.array([bool(own & known) for own in _marks(tables[train])])
        shared |= _same_profiles(tables[train], tables[test])
        if shared.any():
            log.warning(
                "%d patients of %s stand in %s too, by id, image or measured expression, and do not "
                "train for it",
                *(shared.sum(), train, test),
            )
        row = {"train": train, "test": test, "n_shared": int(shared.sum())}
        try:
            learnt = with_response(tables[train][~shared])
        except InputError as error:
            log.warning("%s to %s: no model (%s)", train, test, error, **decides("response"))
            rows.append(row | {"n_train": int((~shared).sum()), **_sizes(tables[test])})
            continue
        scored, found = _transfer(learnt, tables[test], train, test, settings, seed)
        rows.append(row | found)
        scores.append(scored)
        log.info(
            "%s to %s: AUROC %.3f (%.3f to %.3f), p %.3g",
            *(rows[-1][key] for key in ("train", "test", "auroc", "ci_low", "ci_high", "p")),
        )
    empty = pd.DataFrame(columns=SCORE_COLUMNS)
    return TransferResult(
        pd.DataFrame(rows).reindex(columns=COLUMNS),
        pd.concat(scores, ignore_index=True) if scores else empty,
    )


def _marks(table: pd.DataFrame) -> list[set[str]]:
    """Return what each patient is known by: the id, and the images where slides were predicted."""
    marks = [{patient_key(patient)} for patient in table["patient"]]
    if IMAGES_COLUMN in table:
        for own, images in zip(marks, table[IMAGES_COLUMN], strict=True):
            own |= set(images.split(",")) - {""}
    return marks


def _same_profiles(train: pd.DataFrame, test: pd.DataFrame) -> np.ndarray:
    """Return which patients of `train` have the measured profile of one of `test`, (n,).

    By the ranks of the genes that both measured, which no scale changes. Other tumours, of one
    hospital and one platform, correlate by .97 at most.
    """
    none = np.zeros(len(train), bool)
    genes = [name for name in image_columns(train)[0] if name in test]
    both = (train, test)
    if any(source_name(table) != "expression" for table in both) or len(genes) < _COPY_GENES:
        return none
    ranks = [unit_columns(rankdata(table[genes].to_numpy(float), axis=1).T)[0] for table in both]
    return (ranks[0].T @ ranks[1]).max(axis=1, initial=0) > _SAME_PROFILE


def _sizes(test: pd.DataFrame) -> dict[str, int]:
    return {"n_test": len(test), "test_positives": int(test["response"].sum())}


def _transfer(
    train: pd.DataFrame,
    test: pd.DataFrame,
    train_name: str,
    test_name: str,
    settings: dict[str, Any],
    seed: int,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    blocks = []
    for columns, others in zip(image_columns(train), image_columns(test), strict=True):
        known = [name for name in columns if name in set(others)]
        both = [_standardised(table[known]) for table in (train, test)]
        blocks.append(np.concatenate(both))
    genes = blocks[0].shape[1]
    if not genes and not blocks[2].shape[1]:
        raise InputError(f"cohorts {train_name} and {test_name} share no gene or signature")
    rows, n = np.arange(len(train)), len(train)
    y, truth = train["response"].to_numpy(int), test["response"].to_numpy(int)
    rarer = min(y.sum(), n - y.sum())
    components = max(1, min(settings["components"], int(rarer) // CLASS_PER_COMPONENT))
    x = reduce_image(tuple(blocks), np.arange(n + len(test)), rows, components)[None]
    inner = list(stratified(y, min(settings["inner_folds"], int(rarer)), seed))
    # The test patients' responses are not there to be learnt from.
    learner = LogisticLearner(np.concatenate([y, np.full(len(test), np.nan)]))
    coef, _ = choose_and_fit(learner, x, 0, rows, inner, settings["penalties"])
    score = x[0, n:] @ coef[0]

    draws = bootstrap_weights(
        len(test), draws=settings["bootstraps"], seed=seed, strata=truth
    )  # within classes
    low, high = interval(weighted_auroc(score, draws * truth, draws))
    rng = np.random.default_rng([seed, len(test), 13])
    labels = np.array([rng.permutation(truth) for _ in range(_PERMUTATIONS)])
    null = weighted_auroc(score, labels, np.ones(labels.shape))
    null_precision = weighted_precision(score, labels, np.ones(labels.shape))
    auroc = float(roc_auc_score(truth, score))
    row = {
        "n_train": n,
        "train_positives": int(y.sum()),
        **_sizes(test),
        "n_genes": genes,
        "auroc": auroc,
        "ci_low": low,
        "ci_high": high,
        "auroc_null": float(null.mean()),
        "auroc_null_upper": float(np.quantile(null, 0.95)),
        "p": permutation_p(auroc, null),
        "auprc": float(average_precision_score(truth, score)),
        "auprc_null": float(null_precision.mean()),
        "auprc_null_upper": float(np.quantile(null_precision, 0.95)),
    }
    scored = pd.DataFrame(
        {
            "train": train_name,
            "test": test_name,
            "patient": test["patient"].astype(str),
            "response": truth,
            "score": score,
        }
    )
    return scored, row


def _standardised(table: pd.DataFrame) -> np.ndarray:
    """Return columns with mean 0 and unit variance over the patients that have a value."""
    values = table.to_numpy(float)
    spread = np.nanstd(values, axis=0) if len(values) else np.ones(values.shape[1])
    flat = ~(spread > 1e-9 * (1 + np.nanmax(np.abs(values), axis=0, initial=0)))
    scaled = (values - np.nanmean(values, axis=0)) / np.where(flat, 1.0, spread)
    return np.where(flat, 0.0, scaled)
