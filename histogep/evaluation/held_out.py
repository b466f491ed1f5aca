"""Held-out predictions: the file of each fold and model, as it is written and read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from histogep.errors import InputError
from histogep.models.sections import TASKS, TUMOUR, Section
from histogep.spots.matrices import read_h5ad

PROTOCOLS = ("patient_cv", "published")


@dataclass(frozen=True)
class HeldOut:
    """One section as one model, which never saw it, predicts it.

    Attributes
    ----------
    protocol, fold, model, task
        Where the prediction comes from.
    slide, patient
        Section that was predicted.
    genes
        Columns of `predicted` and `truth` ("tumour" for the tumour map).
    barcode, row, col, in_tissue
        The positions: the in-tissue spots (patient_cv) or the whole grid (published).
    predicted, truth
        Positions by genes: log1p CP10k; or probability and 0/1, NaN where the label is unknown.
    threshold
        Probability from which a spot is called tumour, chosen inside the fold; None if it was not.
    absent
        Why the fold has no tumour map: its predictions are NaN. Empty where it has one.
    """

    protocol: str
    fold: str
    model: str
    task: str
    slide: str
    patient: str
    genes: tuple[str, ...]
    barcode: np.ndarray
    row: np.ndarray
    col: np.ndarray
    in_tissue: np.ndarray
    predicted: np.ndarray
    truth: np.ndarray
    threshold: float | None = None
    absent: str = ""

    def instead(self, model: str, predicted: np.ndarray) -> HeldOut:
        """Return the same section with another model's values in place of the predictions."""
        return replace(self, model=model, predicted=np.asarray(predicted, np.float32))

    @property
    def tissue(self) -> HeldOut:
        """The section without its background positions."""
        return self if self.in_tissue.all() else self.cells(self.in_tissue)

    def cells(self, keep: np.ndarray) -> HeldOut:
        """Return the section with some of its positions only."""
        names = ("barcode", "row", "col", "in_tissue", "predicted", "truth")
        return replace(self, **{name: getattr(self, name)[keep] for name in names})


def table_of_section(
    section: Section,
    values: np.ndarray,
    layers: dict[str, np.ndarray],
    barcode: np.ndarray,
    row: np.ndarray,
    col: np.ndarray,
    tissue: np.ndarray,
) -> anndata.AnnData:
    """Return the predictions of one section as a table.

    Parameters
    ----------
    section
        The section, with its slide and patient.
    values
        Predictions, positions x targets: log1p CP10k, not cut; or probability.
    layers
        `truth`, the measurement, NaN where a tumour label is unknown; `level`, the slide's level, of
        linear models of expression.
    barcode, row, col, tissue
        The positions, and which of them lie in tissue.
    """
    obs = pd.DataFrame(
        {
            "slide": section.slide,
            "patient": section.patient,
            "barcode": barcode.astype(object),
            "row": row,
            "col": col,
            "in_tissue": np.asarray(tissue, bool),
        },
        index=pd.Index(
            [f"{section.slide}:{r}x{c}" for r, c in zip(row, col, strict=True)], dtype=object
        ),
    )
    return anndata.AnnData(values.astype(np.float32), obs=obs, layers=layers)


def join_tables(tables: Sequence[anndata.AnnData], settings: Mapping[str, Any]) -> anndata.AnnData:
    """Return results/predictions/{study}/{fold}/{model}.h5ad of the tables of its sections.

    A model of both tasks has the tumour as its last column. `uns` says the protocol, fold, model and
    task; `threshold`, the tumour threshold chosen inside the fold, where one was; and `absent`, why
    a model could not be trained, whose predictions are NaN.
    """
    table = anndata.concat(tables, merge="same")
    columns = [*settings["genes"], *([TUMOUR] if settings["task"] == "both" else [])]
    table.var_names = pd.Index(columns, dtype=object)
    table.uns = {key: settings[key] for key in ("protocol", "fold", "model", "task")}
    if reason := settings.get("absent") or settings.get("absent_tumour"):
        table.uns["absent"] = reason
    if settings["threshold"] is not None:
        table.uns["threshold"] = settings["threshold"]
    return table


def read_held_out(paths: Iterable[str | Path]) -> list[HeldOut]:
    """Return the held-out sections of prediction files (one file per fold and model).

    Parameters
    ----------
    paths
        results/predictions/{study}/{fold}/{model}.h5ad.

    Raises
    ------
    InputError
        For a file without truth or provenance, non-finite predictions, or a section that one model
        predicts twice under one protocol (it would count twice).
    """
    sections: list[HeldOut] = []
    for path in paths:
        sections += _read_one(Path(path))
    seen: dict[tuple[str, str, str, str], str] = {}
    for section in sections:
        key = (section.protocol, section.model, section.task, section.slide)
        if key in seen:
            raise InputError(
                f"section {section.slide} is predicted by {section.model} in the folds {seen[key]} "
                f"and {section.fold}: under protocol {section.protocol} it may be tested once"
            )
        seen[key] = section.fold
    return sections


def _read_one(path: Path) -> list[HeldOut]:
    table = read_h5ad(path)
    told = {key: str(table.uns.get(key, "")) for key in ("protocol", "fold", "model", "task")}
    if told["protocol"] not in PROTOCOLS or told["task"] not in TASKS:
        raise InputError(
            f"{path} says protocol {told['protocol']!r} and task {told['task']!r} in its uns: "
            "expected patient_cv or published, expression, tumour or both; run predict_fold again"
        )
    if "truth" not in table.layers:
        raise InputError(f"{path} has no layer `truth`: run predict_fold again")
    predicted, truth = _dense(table.X), _dense(table.layers["truth"])
    names = tuple(table.var_names.astype(str))
    absent = str(table.uns.get("absent", ""))
    # Of a model of both tasks the tumour is the last column.
    columns = {told["task"]: slice(None)}
    if told["task"] == "both":
        columns = {"expression": slice(None, -1), "tumour": slice(-1, None)}
    unknown = ~np.isfinite(predicted)
    if "tumour" in columns and absent:
        unknown[:, columns["tumour"]] = False
    if "expression" in columns:
        unknown[:, columns["expression"]] |= ~np.isfinite(truth[:, columns["expression"]])
    if unknown.any():
        cell, gene = np.argwhere(unknown)[0]
        raise InputError(
            f"{path} has no finite number for {table.var_names[gene]} at position "
            f"{table.obs_names[cell]} ({unknown.sum()} such values): train {told['model']} again"
        )
    obs = table.obs
    owner = obs["slide"].astype(str).to_numpy(object)
    threshold = table.uns.get("threshold")
    sections = []
    for slide in dict.fromkeys(owner):
        rows = np.flatnonzero(owner == slide)
        for task, part in columns.items():
            tumour = task == "tumour"
            sections.append(
                HeldOut(
                    **told | {"task": task},
                    slide=slide,
                    patient=str(obs["patient"].iloc[rows[0]]),
                    genes=names[part],
                    barcode=obs["barcode"].astype(str).to_numpy(object)[rows],
                    row=obs["row"].to_numpy(np.int32)[rows],
                    col=obs["col"].to_numpy(np.int32)[rows],
                    in_tissue=obs["in_tissue"].to_numpy(bool)[rows],
                    predicted=predicted[rows, part],
                    truth=truth[rows, part],
                    threshold=float(threshold) if tumour and threshold is not None else None,
                    absent=absent if tumour else "",
                )
            )
    return sections


def _dense(matrix: Any) -> np.ndarray:
    return np.asarray(matrix.toarray() if sparse.issparse(matrix) else matrix, np.float32)
