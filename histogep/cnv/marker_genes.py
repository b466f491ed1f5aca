"""Genes that are higher in one group of profiles than in the others: of clones and of subtypes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scanpy as sc
from sklearn.metrics import roc_auc_score

log = logging.getLogger(__name__)

COLUMNS = [
    *(
        "gene",
        "score",
        "difference",
        "log2_fold_change",
        "auroc",
        "p",
        "p_adjusted",
        "n_in",
        "n_out",
    ),
]
#: Fewest profiles of a group that is ranked, and of the others together.
_FEWEST = 2


def rank_markers(
    expression: Any,
    groups: Sequence[str] | np.ndarray,
    genes: Sequence[str],
    *,
    most: int = 50,
) -> pd.DataFrame:
    """Return the genes that are higher in each group than in the others, by `scanpy.tl.rank_genes_groups`.

    Wilcoxon's rank-sum test with its correction for ties. Groups were found from the same expression,
    and neighbouring spots, as clones of one patient, are no independent draws: p orders genes, and
    says neither that the groups exist nor what holds in another patient.

    Parameters
    ----------
    expression
        log1p CP10k, not negative (profiles by genes), dense or sparse.
    groups
        Group of each profile. With one group nothing is ranked; groups of one profile are left out.
    genes
        Names of the columns.
    most
        Genes listed of each group, best first.

    Returns
    -------
    pandas.DataFrame
        group, then `COLUMNS`: score (Wilcoxon's z), difference (of mean log1p CP10k: of equal scores,
        as few profiles give, the larger comes first), log2_fold_change (of CP10k, back from those
        means), auroc, p (two-sided), p_adjusted (Benjamini-Hochberg over all genes), n_in and n_out
        (profiles in the group and in the others).
    """
    groups = np.asarray(groups, dtype=object).astype(str)
    size = pd.Series(groups).value_counts()
    ranked = [
        name
        for name in sorted(size.index)
        if size[name] >= _FEWEST and len(groups) - size[name] >= _FEWEST
    ]
    empty = pd.DataFrame(columns=["group", *COLUMNS])
    if not ranked:
        return empty
    if left_out := sorted(set(size.index) - set(ranked)):
        log.info("no markers of %s: one profile alone", ", ".join(left_out))
    data = anndata.AnnData(
        X=expression.astype(np.float32),
        obs=pd.DataFrame({"group": pd.Categorical(groups)}, index=_names(len(groups))),
        var=pd.DataFrame(index=_names(len(genes))),
    )
    sc.tl.rank_genes_groups(
        data, "group", groups=ranked, reference="rest", method="wilcoxon", tie_correct=True
    )
    tables = []
    for name in ranked:
        found = sc.get.rank_genes_groups_df(data, group=name)
        own = groups == name
        means = [np.asarray(data.X[rows].mean(axis=0)).ravel() for rows in (own, ~own)]
        found["difference"] = (means[0] - means[1])[found["names"].astype(int)]
        found = found[(found["scores"] > 0) & (found["difference"] > 0)]
        found = found.sort_values(["scores", "difference"], ascending=False, kind="stable")
        found = found.head(most)
        column = found["names"].astype(int).to_numpy()
        values = data.X[:, column]
        values = values.toarray() if hasattr(values, "toarray") else values
        table = pd.DataFrame(
            {
                "group": name,
                "gene": np.asarray(genes, dtype=object)[column],
                "score": found["scores"].to_numpy(np.float64),
                "difference": found["difference"].to_numpy(np.float64),
                "log2_fold_change": found["logfoldchanges"].to_numpy(np.float64),
                "auroc": [roc_auc_score(own, gene) for gene in values.T],
                "p": found["pvals"].to_numpy(),
                "p_adjusted": found["pvals_adj"].to_numpy(),
                "n_in": int(own.sum()),
                "n_out": int((~own).sum()),
            }
        )
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _names(n: int) -> list[str]:
    """Return names that are unique, as symbols need not be."""
    return [str(number) for number in range(n)]
