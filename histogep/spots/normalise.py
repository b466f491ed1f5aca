"""Normalisation of counts: the one scale on which expression is learned, scored and predicted."""

from __future__ import annotations

import anndata
import numpy as np
import scanpy as sc
from scipy import sparse

from histogep.errors import InputError
from histogep.spots.matrices import EXPRESSION

SCALE = 1e4


def add_expression(spots: anndata.AnnData) -> anndata.AnnData:
    """Return spots with `layers[EXPRESSION]`: log1p of counts per 10,000 (Seurat's LogNormalize).

    Parameters
    ----------
    spots
        X raw counts, spots x genes, of ALL genes of the section: the library size is taken over
        what is given, so normalise before choosing a panel. X is left as it is.

    Returns
    -------
    AnnData
        The same object; the layer is CSR, float32.

    Raises
    ------
    InputError
        A count is negative or not finite, or a spot has no counts at all.
    """
    counts = sparse.csr_matrix(spots.X, dtype=np.float32, copy=True)
    if counts.nnz and not (np.isfinite(counts.data).all() and counts.data.min() >= 0):
        raise InputError("counts hold negative or non-finite values; give raw counts")
    # scanpy would leave such a spot at 0 for all genes: a profile that nobody measured.
    empty = np.asarray(counts.sum(axis=1)).ravel() == 0
    if empty.any():
        raise InputError(f"{empty.sum()} spots have no counts; raise spots.min_counts above 0")
    spots.layers[EXPRESSION] = counts
    sc.pp.normalize_total(spots, target_sum=SCALE, layer=EXPRESSION)
    sc.pp.log1p(spots, layer=EXPRESSION)
    # scanpy's note that X was logged: it was not.
    spots.uns.pop("log1p", None)
    return spots
