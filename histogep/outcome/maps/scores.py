"""Out-of-fold scores of the spatial-map model as a table, and their rows beside the other models'.

This module needs no torch: the network is trained in a job of its own, and its scores are evaluated
like those of the other models, on the same patients and the same bootstrap draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from histogep.errors import InputError
from histogep.files import read_tsv, write_tsv
from histogep.stats.discrimination import bootstrap_concordance, interval, permutation_p

MAPS, CLINICAL_MAPS = "maps", "clinical+maps"
#: Prefix of the models of the paper's protocol.
PUBLISHED = "published "
_COLUMNS = ["model", "repeat", "draw", "patient", "fold", "score"]


@dataclass(frozen=True)
class MapScores:
    """Scores of n patients.

    Attributes
    ----------
    scores
        Model -> repeats x patients.
    shuffled
        Model -> repeats x draws x patients: maps shuffled over the patients; under the paper's
        protocol noise in their place.
    fold
        Repeats x patients, from 1.
    """

    scores: dict[str, np.ndarray]
    shuffled: dict[str, np.ndarray]
    fold: np.ndarray

    def write(self, path: str | Path, patients: list[str]) -> None:
        """Write model, repeat, draw (0: as observed), patient, fold, score."""
        tables = []
        for name, observed in self.scores.items():
            values = np.concatenate([observed[:, None], self.shuffled[name]], axis=1)
            repeats, draws, n = values.shape
            tables.append(
                pd.DataFrame(
                    {
                        "model": name,
                        "repeat": np.repeat(np.arange(1, repeats + 1), draws * n),
                        "draw": np.tile(np.repeat(np.arange(draws), n), repeats),
                        "patient": np.tile(patients, repeats * draws),
                        "fold": np.repeat(self.fold, draws, axis=0).ravel(),
                        "score": values.ravel(),
                    }
                )
            )
        table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=_COLUMNS)
        write_tsv(table[_COLUMNS], path)


def read_map_scores(path: str | Path, patients: list[str]) -> MapScores:
    """Return what `MapScores.write` wrote, in the order of some patients.

    Raises
    ------
    InputError
        Other patients than those.
    """
    table = read_tsv(path, dtype={"patient": str, "model": str})
    if len(table) and set(table["patient"]) != set(patients):
        raise InputError(f"{path} is of other patients than the cohort's: remove it and run again")
    scores, shuffled, fold = {}, {}, np.zeros((0, len(patients)), int)
    for name, rows in table.groupby("model", sort=False):
        shape = rows["repeat"].nunique(), rows["draw"].nunique(), len(patients)
        place = {patient: number for number, patient in enumerate(patients)}
        ordered = rows.assign(place=rows["patient"].map(place))
        ordered = ordered.sort_values(["repeat", "draw", "place"])
        values = ordered["score"].to_numpy(float).reshape(shape)
        fold = ordered["fold"].to_numpy(int).reshape(shape)[:, 0]
        scores[str(name)], shuffled[str(name)] = values[:, 0], values[:, 1:]
    return MapScores(scores, shuffled, fold)


def map_concordance(
    maps: MapScores,
    pairs: np.ndarray,
    weights: np.ndarray,
    *,
    clinical: np.ndarray | None,
    clinical_fold: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Return rows of the concordance table: model, c_index, ..., null, protocol, repeats.

    Intervals hold the networks fixed and resample patients: they do not count the training.

    Parameters
    ----------
    maps
        Scores of both protocols.
    pairs, weights
        Comparable pairs, and bootstrap draws whose first row weighs all patients alike.
    clinical
        C-index of the clinical model under `weights`, repeats x draws; None without one.
    clinical_fold
        Its folds, repeats x patients. The difference is that over the repeats which both have:
        the same patients held out in the same folds.

    Returns
    -------
    list of dict
        Honest models: pooled over the folds, mean over the repeats, `null` the mean of the
        shuffled maps. Models of the paper's protocol: the C-index of each test fold at its best
        epoch, mean over the folds, `null` the mean of noise through the same protocol, whose own
        row has the range of its draws.

    Raises
    ------
    InputError
        A shared repeat whose folds are not the same.
    """
    rows = []

    def row(model: str, values: np.ndarray, null: np.ndarray, protocol: str, repeats: int) -> None:
        low, high = interval(values[1:])
        rows.append(
            {
                "model": model,
                "c_index": float(values[0]),
                "ci_low": low,
                "ci_high": high,
                "interval": "models fixed",
                "p": permutation_p(float(values[0]), null),
                "null": float(null.mean()) if len(null) else np.nan,
                "protocol": protocol,
                "repeats": repeats,
            }
        )

    for name, observed in maps.scores.items():
        published = name.startswith(PUBLISHED)
        judge = _by_fold if published else bootstrap_concordance
        values, nulls = [], []
        for repeat, scores in enumerate(observed):
            extra = {"fold": maps.fold[repeat]} if published else {}
            values.append(judge(scores[None], pairs, weights, **extra)[0])
            nulls.append(judge(maps.shuffled[name][repeat], pairs, weights[:1], **extra)[:, 0])
        value, null = np.mean(values, axis=0), np.mean(nulls, axis=0)
        row(name, value, null, "published" if published else "patient_cv", len(observed))
        label = name.replace("maps", "noise" if published else "shuffled maps")
        if len(null):
            low, high = interval(null)
            rows.append(
                {
                    **rows[-1],
                    "model": label,
                    "c_index": float(null.mean()),
                    "ci_low": low,
                    "ci_high": high,
                    "interval": "shuffles",
                    "p": np.nan,
                    "null": np.nan,
                }
            )
        if name == CLINICAL_MAPS and clinical is not None and clinical_fold is not None:
            shared = min(len(values), len(clinical))
            if not np.array_equal(maps.fold[:shared], clinical_fold[:shared]):
                raise InputError(
                    "the network on the maps was trained in other folds than the clinical model: "
                    "remove the cohort's files under results/maps/, so that they are made again"
                )
            beside = clinical[:shared].mean(axis=0)
            gain = np.mean(values[:shared], axis=0) - beside
            null = np.mean(nulls[:shared], axis=0) - beside[0]
            row(f"{name} - clinical", gain, null, "patient_cv", shared)
    return rows


def _by_fold(
    scores: np.ndarray, pairs: np.ndarray, weights: np.ndarray, *, fold: np.ndarray
) -> np.ndarray:
    """Return the mean over the folds of the concordance within each, models x draws."""
    values = []
    for number in np.unique(fold):
        rows = np.flatnonzero(fold == number)
        values.append(
            bootstrap_concordance(scores[:, rows], pairs[np.ix_(rows, rows)], weights[:, rows])
        )
    with np.errstate(invalid="ignore"):
        return np.nanmean(np.stack(values), axis=0)
