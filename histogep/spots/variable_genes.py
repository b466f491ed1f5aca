"""How spatially variable each gene of a section is: Moran's I, and its dispersion.

Moran's I (Moran 1950, Biometrika 37:17) with binary weights of the nearest neighbours, by squidpy.
"""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import scanpy as sc
import squidpy as sq
from scipy import sparse, stats
from scipy.spatial import cKDTree

from histogep.errors import InputError
from histogep.spots.panel import SCORE_COLUMNS

_GRAPH = "neighbours"


def nearest_neighbours(
    x: np.ndarray, y: np.ndarray, *, n_neighbours: int, tie: tuple[np.ndarray, np.ndarray]
) -> sparse.csr_matrix:
    """Return the binary weights of each spot's nearest neighbours, n x n, not symmetric.

    On a lattice the last neighbour is a tie for most spots. `squidpy.gr.spatial_neighbors_knn` takes
    the one that its search tree meets first, so its graph depends on the order of the spots; here
    ties are broken by a rule: smaller distance (to a millionth of the median nearest distance), then
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
    :math:`I = \frac{n}{S_0} \frac{\sum_{ij} w_{ij} z_i z_j}{\sum_i z_i^2}`; p by its expectation
    :math:`-1/(n-1)` and its variance under normality (Cliff & Ord 1981), as squidpy and esda.

    Parameters
    ----------
    expression
        Spots x genes.
    weights
        Spots x spots, zero diagonal, symmetric or not.

    Returns
    -------
    tuple of numpy.ndarray
        I and p per gene, float64; a constant gene has I = 0 and p = 1, and so has every
        gene where no spot has a neighbour.
    """
    matrix = sparse.csc_matrix(expression, dtype=np.float64)
    n, n_genes = matrix.shape
    if n < 4:
        raise InputError(f"Moran's I needs at least 4 spots, the section has {n}")
    varies = _varies(matrix)
    value, p = np.zeros(n_genes), np.ones(n_genes)
    if not varies.any() or not weights.sum():
        return value, p
    # One constant gene would be NaN, and with it every FDR.
    table = anndata.AnnData(sparse.csr_matrix(matrix[:, varies]))
    table.obsp[_GRAPH] = sparse.csr_matrix(weights, dtype=np.float64)
    scores = sq.gr.spatial_autocorr(
        table,
        connectivity_key=_GRAPH,
        mode="moran",
        transformation=False,
        n_perms=None,
        corr_method=None,
        n_jobs=1,
        copy=True,
    ).loc[table.var_names]
    value[varies] = scores["I"]
    # Its own p is of the nearer tail, so small for negative I too, and 0 where it is below 1e-16.
    z = (scores["I"] + 1 / (n - 1)) / np.sqrt(scores["var_norm"])
    p[varies] = stats.norm.sf(z)
    return value, p


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
    """Return one row per gene of a section, `histogep.spots.panel.SCORE_COLUMNS`.

    `dispersion` is the logarithm of variance over mean of the linear values (scanpy's
    `highly_variable_genes`); a constant gene gets the lowest of all. It is not standardised among
    genes of a like mean, which is meant to choose cells' types: of the 250 genes that are then chosen
    in her2st the median Moran's I is .02, against .06 without.

    Parameters
    ----------
    expression
        log1p CP10k, spots x genes (`histogep.spots.matrices.expression_of`).
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
    return pd.DataFrame(
        {
            "gene": np.asarray(genes, dtype=object),
            "moran_i": value,
            "p": p,
            "fdr": stats.false_discovery_control(p),
            "mean": np.asarray(matrix.mean(axis=0)).ravel(),
            "dispersion": _dispersion(matrix),
            "detected": np.diff(matrix.indptr) / matrix.shape[0],
        },
        columns=list(SCORE_COLUMNS),
    )


def _varies(matrix: sparse.csc_matrix) -> np.ndarray:
    """Return which columns hold more than one value."""
    low, high = matrix.min(axis=0), matrix.max(axis=0)
    return low.toarray().ravel() < high.toarray().ravel()


def _dispersion(matrix: sparse.csc_matrix) -> np.ndarray:
    varies = _varies(matrix)
    dispersion = np.zeros(matrix.shape[1])
    if varies.sum() > 1:
        table = anndata.AnnData(sparse.csr_matrix(matrix[:, varies]))
        found = sc.pp.highly_variable_genes(table, flavor="seurat", inplace=False)
        found = found["dispersions"].to_numpy(np.float64)
        dispersion[varies], dispersion[~varies] = found, found.min()
    return dispersion
