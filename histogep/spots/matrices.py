"""Matrices: the h5ad files that an earlier rule wrote, and sparse arrays that others wrote."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
from scipy import sparse

from histogep.errors import InputError
from histogep.files import readable

#: Layer of a section's spots with log1p of counts per 10,000; X holds the raw counts.
EXPRESSION = "log1p_cp10k"
#: Largest whole number up to which float32, in which counts are kept, holds all of them.
MOST_COUNTS = 2**24


def read_h5ad(path: str | Path) -> anndata.AnnData:
    """Return a matrix with its tables.

    Raises
    ------
    InputError
        The file is absent or damaged.
    """
    with readable(path):
        return anndata.read_h5ad(path)


def expression_of(spots: anndata.AnnData) -> sparse.csr_matrix:
    """Return log1p of counts per 10,000 of a section, spots x genes, float32.

    Raises
    ------
    InputError
        `histogep.spots.normalise.add_expression` did not write these spots.
    """
    if EXPRESSION not in spots.layers:
        slide = spots.uns.get("slide", "a section")
        raise InputError(
            f"the spots of {slide} have no layer {EXPRESSION}: an "
            "earlier version wrote them; delete the file, and the workflow makes it again"
        )
    return sparse.csr_matrix(spots.layers[EXPRESSION])


def check_compressed(
    data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, n_major: int, n_minor: int, name: str
) -> None:
    """Refuse the three arrays of a compressed sparse matrix that do not fit each other.

    Compiled code trusts them: an index beyond the matrix reads or writes foreign memory, and one
    within it but wrong counts for another gene.

    Parameters
    ----------
    data, indices, indptr
        Values, their places in the minor direction, and where each major line begins.
    n_major, n_minor
        Size of the matrix in the direction of the lines, and across.
    name
        File and matrix, for the message.

    Raises
    ------
    InputError
        Lengths, places or starts do not fit, or a place is given twice.
    """

    def refuse(problem: str) -> None:
        raise InputError(f"{name}: {problem}; the file is damaged: copy it again")

    if min(n_major, n_minor) < 0:
        refuse(f"a shape of {n_major} x {n_minor}")
    for part, values in (("indices", indices), ("indptr", indptr)):
        if values.ndim != 1 or values.dtype.kind not in "iu":
            refuse(f"its {part} are not a list of whole numbers")
    if data.ndim != 1 or data.dtype.kind not in "biufc":
        refuse("its values are not a list of numbers")
    if len(data) != len(indices):
        refuse(f"{len(data)} values but {len(indices)} indices")
    if len(indptr) != n_major + 1:
        refuse(f"{len(indptr) - 1} lines are marked, but it should have {n_major}")
    steps: np.ndarray = np.diff(indptr.astype(np.int64))
    if indptr[0] != 0 or int(indptr[-1]) != len(data) or (steps < 0).any():
        refuse(f"indptr does not run from 0 to its {len(data)} values")
    if len(indices) and (indices.min() < 0 or indices.max() >= n_minor):
        wrong = int(indices.min() if indices.min() < 0 else indices.max())
        refuse(f"an index of {wrong} in a matrix of {n_minor} across")
    line = np.repeat(np.arange(n_major, dtype=np.int64), steps)
    place = line * max(n_minor, 1) + indices.astype(np.int64)
    if len(place) > 1 and (np.diff(place) <= 0).any() and len(np.unique(place)) < len(place):
        refuse("one place of the matrix is given twice")


def wrong_counts(values: np.ndarray) -> str:
    """Return what is wrong with counts, "" if nothing: NaN, negative, not whole, too large."""
    values = np.asarray(values)
    if values.dtype.kind not in "iuf":
        return "values that are not numbers"
    for what, wrong in (
        ("that are not finite numbers", ~np.isfinite(values)),
        ("below 0", values < 0),
        ("that are not whole", values != np.floor(values)),
        (f"above {MOST_COUNTS} (2^24)", values > MOST_COUNTS),
    ):
        if wrong.any():
            return f"{int(wrong.sum())} values {what}, such as {values[wrong].flat[0]:g}"
    return ""
