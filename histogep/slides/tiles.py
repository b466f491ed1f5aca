"""The tiles of a slide: lattice positions on tissue, or the spots that were measured there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from histogep.errors import BadSlide, InputError
from histogep.lattice import Lattice
from histogep.slides.reader import Slide
from histogep.slides.tissue import TissueMask


def lattice_tiles(
    slide: Slide, mask: TissueMask, *, lattice: Lattice, settings: Mapping[str, Any]
) -> pd.DataFrame:
    """Lay the lattice over a slide without spots; keep the positions on tissue, of all fragments.

    Parameters
    ----------
    slide, mask
        The slide and its tissue.
    lattice
        Row and column count from the slide's top left corner.
    settings
        min_tissue: least share of tissue in a tile (0.4); max_pen: largest share of pen (0.2).

    Returns
    -------
    pandas.DataFrame
        row, col, x_px, y_px, tissue, pen, barcode (all "").

    Raises
    ------
    BadSlide
        If no position is left.
    """
    least, most = float(settings.get("min_tissue", 0.4)), float(settings.get("max_pen", 0.2))
    n_positions = n_enough = 0
    kept = []
    for row, col in lattice.cover_by_rows(slide.width_px * slide.mpp, slide.height_px * slide.mpp):
        x_um, y_um = lattice.centres_um(row, col)
        tiles = _table(slide, mask, row, col, x_um / slide.mpp, y_um / slide.mpp, lattice)
        enough = tiles["tissue"] >= least
        n_positions, n_enough = n_positions + len(tiles), n_enough + int(enough.sum())
        kept.append(tiles[enough & (tiles["pen"] <= most)])
    n_kept = sum(map(len, kept))
    if n_kept == 0:
        raise BadSlide(
            f"slide {slide.slide}: of {n_positions} positions, {n_enough} have enough tissue and "
            f"{n_kept} of these no pen marks; lower tissue.min_tissue or raise tissue.max_pen"
        )
    return pd.concat([tiles for tiles in kept if len(tiles)], ignore_index=True)


def spot_tiles(
    slide: Slide, mask: TissueMask, *, lattice: Lattice, spots: str | Path
) -> pd.DataFrame:
    """Return the tiles of a section: its in-tissue spots, all of them, in the order of the file.

    Parameters
    ----------
    slide, mask
        The slide and its tissue.
    lattice
        Its kind and pitch must be those of the spots.
    spots
        results/spots/{slide}.h5ad.

    Returns
    -------
    pandas.DataFrame
        As `lattice_tiles`, with the spots' barcodes, grid rows and columns.
    """
    from anndata.io import read_elem

    try:
        with h5py.File(spots, "r") as file:
            table = read_elem(file["obs"])
            centres = np.asarray(read_elem(file["obsm"]["spatial"]), np.float64)
            own = read_elem(file["uns"]["lattice"]) if "lattice" in file["uns"] else {}
    except (OSError, KeyError) as error:
        raise InputError(
            f"{spots} cannot be read as spots ({error}): delete it and run align_spots again"
        ) from error
    kind, pitch = own.get("kind", lattice.kind), float(own.get("pitch_um", lattice.pitch_um))
    square = {"st", "square"}
    if (kind != lattice.kind and {kind, lattice.kind} != square) or not np.isclose(
        pitch, lattice.pitch_um, rtol=0.01
    ):
        raise InputError(
            f"{spots} lies on a {kind} lattice of {pitch:g} um, but the study's is "
            f"{lattice.kind} of {lattice.pitch_um:g} um: correct `lattice` in the configuration"
        )
    table.index = table.index.astype(str)
    if "in_tissue" in table:
        inside = table["in_tissue"].to_numpy().astype(bool)
        table, centres = table[inside], centres[inside]
    return _table(
        slide,
        mask,
        table["row"].to_numpy(),
        table["col"].to_numpy(),
        centres[:, 0],
        centres[:, 1],
        lattice,
        barcode=table.index.to_numpy(),
    )


def no_tiles() -> pd.DataFrame:
    """Return the table of a slide that cannot be used: the columns of every other, without rows."""
    kinds: dict[str, Any] = dict.fromkeys(("row", "col"), np.int32)
    kinds |= dict.fromkeys(("x_px", "y_px"), np.float64)
    kinds |= dict.fromkeys(("tissue", "pen"), np.float32) | {"barcode": object}
    kinds |= dict.fromkeys(("blur", "tissue_fold"), np.float32)
    return pd.DataFrame({name: np.zeros(0, kind) for name, kind in kinds.items()})


def _table(
    slide: Slide,
    mask: TissueMask,
    row: np.ndarray,
    col: np.ndarray,
    x_px: np.ndarray,
    y_px: np.ndarray,
    lattice: Lattice,
    barcode: np.ndarray | None = None,
) -> pd.DataFrame:
    side_px = lattice.tile_um / slide.mpp
    return pd.DataFrame(
        {
            "row": np.asarray(row, np.int32),
            "col": np.asarray(col, np.int32),
            "x_px": np.asarray(x_px, np.float64),
            "y_px": np.asarray(y_px, np.float64),
            "tissue": mask.share(x_px, y_px, side_px),
            "pen": mask.pen_share(x_px, y_px, side_px),
            "barcode": [""] * len(row) if barcode is None else barcode.astype(object),
        }
    )
