"""Genes: how spatially variable each is in a section, and the panel that a fold learns.

Moran's I (Moran 1950, Biometrika 37:17; moments after Cliff & Ord 1981) with binary weights of the
nearest neighbours, as in R's spdep. The panel of a fold comes from its own sections only.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse, stats
from scipy.spatial import cKDTree

from histogep.gene_names import are_excluded, report_empty_patterns, why_absent
from histogep.jobs import InputError
from histogep.joins import HALF, NEAR_NOTHING

log = logging.getLogger(__name__)

SCORE_COLUMNS = ("gene", "moran_i", "p", "fdr", "mean", "variance", "detected")
#: Values that are made dense at once (64 MB each of three arrays).
_BLOCK_VALUES = 8_000_000


def nearest_neighbours(
    x: np.ndarray, y: np.ndarray, *, n_neighbours: int, tie: tuple[np.ndarray, np.ndarray]
) -> sparse.csr_matrix:
    """Return the binary weights of each spot's nearest neighbours, n x n, not symmetric.

    On a lattice the last neighbour is a tie for most spots, so ties are broken by a rule and not
    by the search tree: smaller distance (to a millionth of the median nearest distance), then
    smaller `tie[0]`, then smaller `tie[1]`. The order of the spots does not matter.

    Parameters
    ----------
    x, y
        Positions of n spots, any one unit.
    n_neighbours
        Neighbours of each spot; fewer if there are fewer other spots.
    tie
        Two integer keys per spot, unique together: row and column of the lattice.
    """
    n = len(x)
    k = min(n_neighbours, n - 1)
    if k < 1:
        raise InputError("a section needs at least 2 spots")
    # In the order of the rule, so that a stable sort by distance breaks ties by it.
    order = np.lexsort((tie[1], tie[0]))
    points = np.column_stack([x, y]).astype(np.float64)[order]
    tree = cKDTree(points)
    unit = float(np.median(tree.query(points, k=2)[0][:, 1])) * 1e-6 or 1.0
    columns = np.empty((n, k), dtype=np.int64)
    open_rows, fetched = np.arange(n), min(n, 2 * k + 10)
    while len(open_rows):
        candidates = np.sort(tree.query(points[open_rows], k=fetched)[1], axis=1)
        difference = points[candidates] - points[open_rows, None, :]
        key = np.round(np.hypot(difference[..., 0], difference[..., 1]) / unit)
        last = key.max(axis=1)
        key[candidates == open_rows[:, None]] = np.inf
        nearest = np.argsort(key, axis=1, kind="stable")[:, :k]
        # If the k-th is as far as the farthest fetched there may be more at its distance.
        kth = np.take_along_axis(key, nearest[:, -1:], axis=1)[:, 0]
        complete = (kth < last) | (fetched == n)
        columns[open_rows[complete]] = np.take_along_axis(candidates, nearest, axis=1)[complete]
        open_rows, fetched = open_rows[~complete], min(n, 2 * fetched)
    rows = np.repeat(order, k)
    weights = sparse.csr_matrix((np.ones(n * k), (rows, order[columns].ravel())), shape=(n, n))
    weights.sort_indices()
    return weights


def morans_i(
    expression: sparse.spmatrix | np.ndarray, weights: sparse.spmatrix
) -> tuple[np.ndarray, np.ndarray]:
    r"""Return Moran's I and its one-sided p (positive autocorrelation) of every gene.

    With :math:`z` the expression less its mean,
    :math:`I = \frac{n}{S_0} \frac{\sum_{ij} w_{ij} z_i z_j}{\sum_i z_i^2}`; expectation
    :math:`-1/(n-1)` and the variance under randomisation of Cliff & Ord (1981), the formula of
    spdep's `moran.test`.

    Parameters
    ----------
    expression
        Spots x genes.
    weights
        Spots x spots, zero diagonal, symmetric or not.

    Returns
    -------
    tuple of numpy.ndarray
        I and p per gene, float64; a constant gene has I = 0 and p = 1.
    """
    matrix = sparse.csc_matrix(expression)
    weights = sparse.csr_matrix(weights, dtype=np.float64)
    n, n_genes = matrix.shape
    if n < 4:
        raise InputError(f"Moran's I needs at least 4 spots, the section has {n}")
    s0 = weights.sum()
    symmetric = weights + weights.T
    s1 = 0.5 * symmetric.multiply(symmetric).sum()
    s2 = (
        (np.asarray(weights.sum(axis=1)).ravel() + np.asarray(weights.sum(axis=0)).ravel()) ** 2
    ).sum()
    value, kurtosis = np.zeros(n_genes), np.full(n_genes, np.nan)
    block_genes = max(1, _BLOCK_VALUES // n)
    for start in range(0, n_genes, block_genes):
        z = matrix[:, start : start + block_genes].toarray().astype(np.float64)
        varies = np.ptp(z, axis=0) > 0
        z -= z.mean(axis=0)
        squared = z * z
        square = np.where(varies, squared.sum(axis=0), np.nan)
        block = slice(start, start + z.shape[1])
        value[block] = n / s0 * np.einsum("ij,ij->j", z, weights @ z) / square
        kurtosis[block] = n * np.einsum("ij,ij->j", squared, squared) / square**2
    expected = -1 / (n - 1)
    variance = (
        n * ((n**2 - 3 * n + 3) * s1 - n * s2 + 3 * s0**2)
        - kurtosis * ((n**2 - n) * s1 - 2 * n * s2 + 6 * s0**2)
    ) / ((n - 1) * (n - 2) * (n - 3) * s0**2) - expected**2
    with np.errstate(invalid="ignore"):
        p = stats.norm.sf((value - expected) / np.sqrt(variance))
    constant = ~np.isfinite(value)
    return np.where(constant, 0.0, value), np.where(constant | ~np.isfinite(p), 1.0, p)


def score_genes(
    expression: sparse.spmatrix,
    genes: pd.Index,
    *,
    x: np.ndarray,
    y: np.ndarray,
    row: np.ndarray,
    col: np.ndarray,
    neighbours: int,
) -> pd.DataFrame:
    """Return one row per gene of a section: Moran's I, p, FDR, mean, variance, detection.

    Parameters
    ----------
    expression
        log1p CP10k, spots x genes (`histogep.normalise.log_cp10k`).
    genes
        Gene symbols.
    x, y
        Positions of the spots, any one unit.
    row, col
        Their cells of the lattice, for the tie rule.
    neighbours
        Nearest neighbours of Moran's I.
    """
    weights = nearest_neighbours(x, y, n_neighbours=neighbours, tie=(row, col))
    value, p = morans_i(expression, weights)
    matrix = sparse.csc_matrix(expression, dtype=np.float64)
    mean = np.asarray(matrix.mean(axis=0)).ravel()
    square = np.asarray(matrix.multiply(matrix).mean(axis=0)).ravel()
    n = matrix.shape[0]
    return pd.DataFrame(
        {
            "gene": np.asarray(genes, dtype=object),
            "moran_i": value,
            "p": p,
            "fdr": stats.false_discovery_control(p),
            "mean": mean,
            "variance": np.maximum(square - mean**2, 0) * n / (n - 1),
            "detected": np.diff(matrix.indptr) / n,
        },
        columns=list(SCORE_COLUMNS),
    )


def panel_slides(folds: pd.DataFrame, fold: str) -> tuple[list[str], list[str]]:
    """Return the sections whose genes the panel of a fold may be chosen from, and their patients.

    Honest folds choose from their training and validation sections. `hist` folds choose from ALL
    sections, the held-out one included: that is the paper's protocol, leak and all, and what is
    learned with it goes to the `hist` card and nowhere else.

    Parameters
    ----------
    folds
        The table of `histogep.folds.split_folds`.
    fold
        A fold of it.
    """
    rows = folds[folds["fold"] == fold]
    if rows.empty:
        raise InputError(f"the folds table has no fold {fold!r}")
    if (rows["protocol"] != "hist").all():
        rows = rows[rows["role"] != "test"]
    return sorted(rows["slide"]), sorted(set(rows["patient"]))


def share_genes(genes: Mapping[str, Iterable[str]]) -> list[str]:
    """Return the genes that all sections measure, sorted; name the sections that cost most of them.

    Parameters
    ----------
    genes
        Genes of each section.

    Raises
    ------
    InputError
        Hardly any gene is measured in all sections.
    """
    sets = {slide: set(names) for slide, names in genes.items()}
    shared = sorted(set.intersection(*sets.values()))
    log.info(
        "%d genes are measured in all of %d sections, which have %d to %d",
        *(len(shared), len(sets), min(map(len, sets.values())), max(map(len, sets.values()))),
    )
    problems = []
    count = pd.Series([name for names in sets.values() for name in names]).value_counts()
    usual = set(count.index[count > len(sets) / 2])
    for slide, names in sets.items():
        others = [other for name, other in sets.items() if name != slide]
        without = len(set.intersection(*others)) if others else len(shared)
        found = len(names & usual)
        if found < HALF * len(usual) or len(shared) < HALF * without:
            problems.append(
                f"section {slide} has {found} of the {len(usual)} genes that most sections have "
                f"({without} would be shared without it, {len(shared)} with it); it names "
                f"{', '.join(sorted(names)[:3])}; {why_absent(sorted(names), usual)}"
            )
    if len(shared) < NEAR_NOTHING * min(map(len, sets.values())) or not shared:
        what = f"only {len(shared)} genes are" if shared else "no gene is"
        examples = "; ".join(
            f"{s} names {', '.join(sorted(n)[:3])}" for s, n in [*sets.items()][:4]
        )
        raise InputError(
            f"{what} measured in all sections; do their tables use the same gene symbols? "
            f"{'; '.join(problems[:4]) or examples}"
        )
    for problem in problems:
        log.warning("genes are lost: %s", problem)
    return shared


def _report_markers(genes: Sequence[str], markers: pd.DataFrame) -> None:
    """Warn when the sections hold few of the lineage markers, with the likely reason."""
    wanted = markers["gene"].drop_duplicates()
    found = int(wanted.isin(genes).sum())
    low = found < HALF * len(wanted)
    log.log(
        logging.WARNING if low else logging.INFO,
        "%d of %d lineage markers are measured in all sections%s",
        *(found, len(wanted), f"; {why_absent(list(genes), wanted)}" if low else ""),
    )


def choose_panel(
    scores: Mapping[str, pd.DataFrame], markers: pd.DataFrame, settings: Mapping[str, Any]
) -> pd.DataFrame:
    """Return the panel of one fold from the gene scores of the sections it may see.

    A pure function of what it is given: the leak audit calls it again and compares.

    Parameters
    ----------
    scores
        Table of `score_genes` by section.
    markers
        Columns lineage and gene; added to the main panel when detected (`settings["markers"]`).
    settings
        The `genes` section of the configuration.

    Returns
    -------
    DataFrame
        gene, main, wide, moran_i, mean, detected, marker; main genes first, then wide ones, each
        by falling rank. A main gene is always in the wide panel too.

    Raises
    ------
    InputError
        If hardly any gene is measured in all sections.
    """
    if not scores:
        raise InputError("no section to choose genes from")
    tables = [scores[slide].set_index("gene") for slide in sorted(scores)]
    shared = share_genes({slide: scores[slide]["gene"] for slide in sorted(scores)})
    report_empty_patterns(shared, settings["exclude"], setting="genes.exclude")
    if settings["markers"]:
        _report_markers(shared, markers)
    excluded = are_excluded(shared, settings["exclude"])
    shared = pd.Index(np.array(shared, dtype=object)[~excluded], name="gene")
    if shared.empty:
        raise InputError("genes.exclude leaves no gene that is measured in all sections")
    stacked = {
        column: np.column_stack([table.loc[shared, column] for table in tables])
        for column in ("moran_i", "p", "mean", "variance", "detected")
    }
    panel = pd.DataFrame(
        {
            "moran_i": np.median(stacked["moran_i"], axis=1),
            "p": np.median(stacked["p"], axis=1),
            "mean": stacked["mean"].mean(axis=1),
            "variance": stacked["variance"].mean(axis=1),
            "detected": stacked["detected"].mean(axis=1),
        },
        index=shared,
    )
    lineage = markers.drop_duplicates("gene").set_index("gene")["lineage"]
    panel["marker"] = lineage.reindex(shared).fillna("").to_numpy()

    detected = panel["detected"] >= settings["wide_min_detected"]
    by_variance = settings["method"] == "variable"
    ranked = panel.sort_values(
        "variance" if by_variance else "moran_i", ascending=False, kind="stable"
    ).index
    passes = detected.copy()
    if not by_variance:
        passes &= (panel["moran_i"] > settings["min_moran"]) & (panel["p"] < settings["p"])
    main = [gene for gene in ranked if passes[gene]][: settings["max_genes"]]
    if len(main) < settings["min_genes"]:
        log.warning(
            "only %d genes pass (median Moran's I above %g, p below %g): the best %d are taken",
            *(len(main), settings["min_moran"], settings["p"], settings["min_genes"]),
        )
        main += [gene for gene in ranked if gene not in set(main) and detected[gene]]
        main = main[: settings["min_genes"]]
    if settings["markers"]:
        chosen = set(main)
        main += [
            gene
            for gene in ranked
            if panel.at[gene, "marker"] and detected[gene] and gene not in chosen
        ]
    chosen = set(main)
    by_mean = panel.sort_values("mean", ascending=False, kind="stable").index
    others = [gene for gene in by_mean if detected[gene] and gene not in chosen]
    wide = main + others[: max(0, settings["wide_max_genes"] - len(main))]
    panel = panel.loc[wide].reset_index()
    panel["main"] = panel["gene"].isin(chosen)
    panel["wide"] = True
    return panel[["gene", "main", "wide", "moran_i", "mean", "detected", "marker"]]
