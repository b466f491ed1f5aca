"""Quality of the spots of a section: counts, genes and the mitochondrial share of each."""

from __future__ import annotations

import logging

import anndata
import numpy as np
import pandas as pd
import scanpy as sc

log = logging.getLogger(__name__)

#: Column of obs -> what it is, of the three measures that are drawn.
MEASURES = {
    "total_counts": "counts of the spot",
    "n_genes_by_counts": "genes detected in the spot",
    "pct_counts_mt": "mitochondrial share of its counts (%)",
}
#: Genes of the mitochondrial genome: MT-CO1 in man, mt-Co1 in mice, MT.CO1 where R made names valid.
_MITOCHONDRIAL = r"(?i)MT[-.][A-Z]"
#: Columns of `quality_table`.
COLUMNS = ("metric", "value")


def measure_quality(spots: anndata.AnnData) -> None:
    """Put the measures of every spot into obs, as `scanpy.pp.calculate_qc_metrics` computes them.

    Parameters
    ----------
    spots
        X raw counts, spots x genes. obs gets total_counts, n_genes_by_counts and pct_counts_mt (%; NaN
        where no mitochondrial gene is among the names, for 0 would be a finding).
    """
    names = pd.Series(spots.var_names.astype(str))
    mitochondrial = names.str.match(_MITOCHONDRIAL).to_numpy(bool)
    spots.var["mitochondrial"] = mitochondrial
    measured, _ = sc.pp.calculate_qc_metrics(
        spots, qc_vars=["mitochondrial"], percent_top=None, log1p=False
    )
    for column in ("total_counts", "n_genes_by_counts"):
        spots.obs[column] = measured[column].to_numpy()
    share = measured["pct_counts_mitochondrial"].to_numpy(np.float32)
    if not mitochondrial.any():
        log.info(
            "no mitochondrial gene (MT-...) is among %d genes: its share is unknown", len(names)
        )
        share = np.full(spots.n_obs, np.nan, np.float32)
    spots.obs["pct_counts_mt"] = share


def quality_table(spots: anndata.AnnData) -> pd.DataFrame:
    """Return what a reader asks first of a section: columns metric and value; NaN is unknown.

    Parameters
    ----------
    spots
        What `histogep.spots.align.align_spots` returned; empty for a section that could not be used.
    """
    if not spots.n_obs:
        return pd.DataFrame(columns=list(COLUMNS))
    obs = spots.obs
    total = float(obs["total_counts"].sum())
    mitochondrial = spots.var["mitochondrial"].to_numpy(bool)
    of_genes = np.asarray(spots.X.sum(axis=0)).ravel()
    values = {
        "spots": spots.n_obs,
        "spots_on_tissue": int(obs["on_tissue"].sum()),
        "genes": spots.n_vars,
        "genes_detected": int((of_genes > 0).sum()),
        "counts": total,
        "median_counts": obs["total_counts"].median(),
        "lowest_counts": obs["total_counts"].min(),
        "median_genes": obs["n_genes_by_counts"].median(),
        "mitochondrial_genes": int(mitochondrial.sum()),
        "mitochondrial_share": np.nan,
        "median_mitochondrial_share": np.nan,
    }
    if mitochondrial.any():
        values["mitochondrial_share"] = of_genes[mitochondrial].sum() / total
        values["median_mitochondrial_share"] = obs["pct_counts_mt"].median() / 100
    return pd.DataFrame(values.items(), columns=list(COLUMNS))
