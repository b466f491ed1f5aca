"""Places and images of sections, for tables of several of them whose rows are known by barcode."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem

from histogep.errors import InputError
from histogep.files import readable
from histogep.lattice import Lattice
from histogep.slides.thumbnail import smaller_entry


def place_on_slides(table: anndata.AnnData, spots: Sequence[str | Path]) -> None:
    """Give a table of spots the places and the images of their sections, as squidpy reads them.

    `obsm["spatial"]` becomes x and y in level-0 px, `uns["spatial"]` one entry for each section, by
    its id; `obs["slide"]` is squidpy's `library_key` where there are several. A position without a
    spot (the background of a whole grid) lies where the lattice of the section's spots has it.

    Parameters
    ----------
    table
        obs slide, barcode ("" for a position without a spot), row and col of the lattice.
    spots
        results/spots/{slide}.h5ad of these sections at least; their matrices are not read.

    Raises
    ------
    InputError
        A section has no file of spots, or a spot is not among them.
    """
    files = {Path(path).stem: path for path in spots}
    owner = table.obs["slide"].astype(str).to_numpy(object)
    barcode = table.obs["barcode"].astype(str).to_numpy(object)
    places = np.empty((table.n_obs, 2))
    images: dict[str, Any] = {}
    for slide in dict.fromkeys(owner):
        if slide not in files:
            raise InputError(f"there are predictions but no spots of section {slide}")
        with readable(files[slide]), h5py.File(files[slide], "r") as file:
            known = pd.Index(read_elem(file["obs"]).index.astype(str))
            pixels = np.asarray(read_elem(file["obsm"]["spatial"]), np.float64)
            entry = read_elem(file["uns"]["spatial"])
            lattice = Lattice.from_settings(
                {
                    name: read_elem(file["uns"]["lattice"][name])
                    for name in ("kind", "pitch_um", "tile_um")
                }
            )
        rows = np.flatnonzero(owner == slide)
        at = known.get_indexer(pd.Index(barcode[rows]))
        measured = barcode[rows] != ""
        if (at[measured] < 0).any():
            raise InputError(
                f"{(at[measured] < 0).sum()} spots of section {slide} are not in {files[slide]}: "
                "run predict_fold again"
            )
        x_um, y_um = lattice.centres_um(
            *(table.obs[axis].to_numpy()[rows] for axis in ("row", "col"))
        )
        design = np.column_stack([x_um, y_um, np.ones(len(rows))])
        fit, *_ = np.linalg.lstsq(design[measured], pixels[at[measured]], rcond=None)
        places[rows] = np.where(measured[:, None], pixels[at], design @ fit)
        images |= smaller_entry(entry)
    table.obsm["spatial"] = places
    table.uns["spatial"] = images
