"""Measured bulk expression: a genes x patients table, whatever way it lies, on a log scale."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from histogep.clinical import PATIENT_NAMES
from histogep.jobs import InputError
from histogep.tables import Layout, read_layout, read_table

log = logging.getLogger(__name__)

#: Suffix of the expression columns in tables of TCGA that hold mutations and copy number too.
_RNA = "_rnaseq"
#: Columns of other gene ids in cBioPortal's tables, and descriptions in GCT files.
_NOT_PATIENTS = ("Entrez_Gene_Id", "entrez_gene_id", "Description", "Cytoband")
#: Scale -> (to the log scale that is analysed, from there to linear values; None: there are none).
SCALES: dict[str, tuple[Callable | None, Callable | None]] = {
    "log2_tpm": (None, lambda x: np.exp2(x) - 0.001),
    "log2": (None, lambda x: np.exp2(x) - 1),
    "log1p": (None, np.expm1),
    "linear": (lambda x: np.log2(x + 1), lambda x: np.exp2(x) - 1),
    "zscore": (None, None),
}


def measured_samples(path: str | Path) -> list[str]:
    """Return the samples of an expression table, without reading its values.

    Raises
    ------
    InputError
        The file is no table, or names no sample.
    """
    layout = read_layout(path)
    name = _patient_column(layout)
    if name is None:
        samples = _sample_columns(layout)
    else:
        column = layout.columns.index(name)
        samples = read_table(path, layout, dtype=str, usecols=[column]).iloc[:, 0].tolist()
    if not samples:
        raise InputError(f"{path} has no column of a patient beside its column of genes")
    return samples


def read_expression(path: str | Path, *, scale: str) -> pd.DataFrame:
    """Return samples x genes on a log scale (z-scores stay as they are).

    Parameters
    ----------
    path
        Genes in rows (the first column names them) and samples in columns; or samples in rows
        with a column of patients (`histogep.clinical.PATIENT_NAMES`) and genes in columns, those
        that end in `_rnaseq` where there are any. TSV or CSV, gz or zip.
    scale
        A key of `SCALES`.

    Returns
    -------
    DataFrame
        Rows that stand twice are averaged, rows being genes or samples. Genes with a missing value
        are left out and counted in the log.

    Raises
    ------
    InputError
        Cells that are no numbers; values that do not fit the scale.
    """
    layout = read_layout(path)
    name = _patient_column(layout)
    if name is None:
        keep = [0, *(layout.columns.index(sample) for sample in _sample_columns(layout))]
        table = read_table(path, layout, index_col=0, usecols=keep)
        table = table[table.index.notna()]
        table.index = table.index.astype(str)
        repeated = int(table.index.duplicated().sum())
        values = _numbers(table, path).groupby(level=0, sort=True).mean().T
        if repeated:
            log.info("%s: %d repeated genes averaged", path, repeated)
    else:
        rna = [column for column in layout.columns if column.endswith(_RNA)]
        genes = rna or [column for column in layout.columns if column != name]
        wanted = [layout.columns.index(column) for column in (name, *genes)]
        table = read_table(path, layout, usecols=wanted).set_index(name)
        table.index = table.index.astype(str)
        values = _numbers(table, path).rename(columns=lambda gene: gene.removesuffix(_RNA))
        values = values.groupby(level=0, sort=True).mean()
        values = values[sorted(values)]
    missing = values.isna().any()
    if missing.any():
        log.warning("%s: %d genes with a missing value are left out", path, missing.sum())
        values = values.loc[:, ~missing]
    if values.empty:
        raise InputError(f"{path} holds no gene that was measured in every patient")
    to_log = SCALES[scale][0]
    if scale in ("log1p", "linear", "log2") and (values < 0).any(axis=None):
        raise InputError(
            f"{path} has values below 0, which {scale} values cannot have; set its scale to one "
            f"of {', '.join(SCALES)}"
        )
    return values if to_log is None else to_log(values)


def _patient_column(layout: Layout) -> str | None:
    """Return the column of patients when the samples lie in rows."""
    return next((name for name in PATIENT_NAMES if name in layout.columns), None)


def _sample_columns(layout: Layout) -> list[str]:
    return [name for name in layout.columns[1:] if name not in _NOT_PATIENTS]


def _numbers(table: pd.DataFrame, path: str | Path) -> pd.DataFrame:
    odd = [str(name) for name in table if not pd.api.types.is_numeric_dtype(table[name])]
    if odd:
        raise InputError(
            f"{path}: columns with cells that are no numbers: {', '.join(odd[:5])} "
            f"({len(odd)} in all)"
        )
    return table.replace([np.inf, -np.inf], np.nan)
