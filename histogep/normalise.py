"""Normalisation of counts: the one scale on which expression is learned, scored and predicted."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from histogep.jobs import InputError

SCALE = 1e4


def log_cp10k(counts: sparse.spmatrix | np.ndarray) -> sparse.csr_matrix:
    """Return log1p of counts per 10,000 (Seurat's LogNormalize), spots x genes, float32.

    Parameters
    ----------
    counts
        Raw counts, spots x genes, of ALL genes of the section: the library size is taken over
        what is given, so normalise before choosing a panel.

    Raises
    ------
    InputError
        If a count is negative or not finite, or a spot has no counts at all.
    """
    matrix = sparse.csr_matrix(counts, dtype=np.float64, copy=True)
    if matrix.nnz and not (np.isfinite(matrix.data).all() and matrix.data.min() >= 0):
        raise InputError("counts hold negative or non-finite values; give raw counts")
    library = np.asarray(matrix.sum(axis=1)).ravel()
    if (library == 0).any():
        raise InputError(
            f"{int((library == 0).sum())} spots have no counts; raise spots.min_counts above 0"
        )
    matrix.data *= np.repeat(SCALE / library, np.diff(matrix.indptr))
    np.log1p(matrix.data, out=matrix.data)
    return matrix.astype(np.float32)
