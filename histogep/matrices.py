"""Read the h5ad files that an earlier rule wrote."""

from __future__ import annotations

from pathlib import Path

import anndata

from histogep.files import readable


def read_h5ad(path: str | Path) -> anndata.AnnData:
    """Return a matrix with its tables.

    Raises
    ------
    InputError
        The file is absent or damaged.
    """
    with readable(path):
        return anndata.read_h5ad(path)
