"""Ensembles: a weighted mean of other models of the same fold (numpy; no torch).

The weights come from the members' scores inside the training patients, so that held-out patients
do not affect them: exp(score / temperature), as in `histogep.models.linear.weigh_candidates`. The
score of a network is that of its best epoch, which is slightly optimistic, hence the members are
averaged and none is selected.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from histogep.errors import InputError
from histogep.models.linear import weigh_candidates

LOG = logging.getLogger(__name__)
#: What the members of an ensemble must share.
_SHARED = ("protocol", "fold", "task", "panel", "genes", "lattice", "encoders", "blocks", "seed")
_WHO = tuple(
    f"{role}_{what}" for role in ("train", "validation", "test") for what in ("slides", "patients")
)
_FITTED_SUFFIX = "_fitted_on"


def fit_ensemble(
    name: str,
    records: Sequence[Mapping[str, Any]],
    arrays: Sequence[Mapping[str, np.ndarray]],
) -> tuple[dict[str, np.ndarray], dict[str, Any], pd.DataFrame]:
    """Return the arrays, the settings and the weights of an ensemble of trained models.

    Parameters
    ----------
    name
        Name of the ensemble.
    records, arrays
        settings.json and weights of the members, in the same order.

    Returns
    -------
    tuple
        Arrays, named `{member}/{array}`, and settings: `members` are those of the members with
        their `weight`; the ensemble counts as fitted on all that its members were. And a table: model,
        score, weight.

    Raises
    ------
    InputError
        The members are of different folds, genes or features.
    """
    first = records[0]
    for record in records[1:]:
        for what in (*_SHARED, "test_slides"):
            if record[what] != first[what]:
                raise InputError(
                    f"models.{name}: its members {first['model']} and {record['model']} differ in "
                    f"their {what}: train both again"
                )
    scores = np.array([_score(record) for record in records])
    patients = set(first["train_patients"]) | set(first["validation_patients"])
    known = np.isfinite(scores)
    weights = np.full(len(records), 1 / len(records))
    if known.all():
        weights = weigh_candidates(scores, n_patients=len(patients))
    else:
        LOG.warning("models.%s: a member has no inner score: all are weighted equally", name)
    slides = [*first["train_slides"], *first["validation_slides"]]
    fitted: dict[str, list[str]] = {"weight_fitted_on": slides if known.all() else []}
    for record in records:
        for key in (key for key in record if key.endswith(_FITTED_SUFFIX)):
            fitted[key] = list(dict.fromkeys([*fitted.get(key, []), *record[key]]))
    settings = {key: first[key] for key in (*_SHARED, *_WHO, "published_grid")}
    settings |= fitted | {
        "model": name,
        "kind": "ensemble",
        "alpha": None,
        "best_epoch": None,
        "threshold": None,
        "validation_score": float(weights @ scores) if known.all() else None,
        "validation_metric": "mean of the members', by weight",
        "scores": {"expression": float(weights @ scores)} if known.all() else {},
        "n_parameters": sum(int(record["n_parameters"]) for record in records),
        "members": {
            record["model"]: {**record, "weight": float(weight)}
            for record, weight in zip(records, weights, strict=True)
        },
    }
    named = {
        f"{record['model']}/{key}": array
        for record, own in zip(records, arrays, strict=True)
        for key, array in own.items()
    }
    LOG.info(
        "%s: %s",
        name,
        ", ".join(
            f"{record['model']} {weight:.3f} (inner score {score:.4f})"
            for record, weight, score in zip(records, weights, scores, strict=True)
        ),
    )
    table = pd.DataFrame(
        {"model": [record["model"] for record in records], "score": scores, "weight": weights}
    )
    return named, settings, table


def _score(record: Mapping[str, Any]) -> float:
    score = record["validation_score"]
    return float("nan") if score is None else float(score)
