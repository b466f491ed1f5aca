"""The tiles of a slide: lattice positions on tissue, or the spots that were measured there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from scipy import ndimage

from histogep.errors import BadSlide, InputError
from histogep.lattice import Lattice
from histogep.progress import progress
from histogep.slides.reader import Slide
from histogep.slides.tissue import TissueMask

#: um per px at which sharpness is measured, on every slide alike.
SHARPNESS_UM = 1.0
#: Variance of the Laplacian (grey levels squared, at 1 um per px) under which tissue is out of focus.
BLURRED = 20.0
#: Side in um of the blocks in which folds are sought, and the share of a tile that makes it folded.
FOLD_BLOCK_UM, FOLDED = 8.0, 0.25
#: Density, in shares of the median of a slide's tissue, from which on a block is folded.
FOLD_DENSITY = 1.75
#: Blocks up to this density (hundredths of the natural logarithm) are glass or lumen, not tissue.
GLASS_DENSITY = 15
_GREY = np.array([0.299, 0.587, 0.114], np.float32)


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


def measure_quality(slide: Slide, tiles: pd.DataFrame, *, tile_um: float) -> pd.DataFrame:
    """Return how sharp each tile is, and how much of it lies in folds, both at 1 um per px.

    Slides coarser than 1 um per px are measured as they are, and come out sharper than they look.

    Parameters
    ----------
    slide
        The slide.
    tiles
        x_px and y_px: level-0 centres.
    tile_um
        Side of a tile in um.

    Returns
    -------
    pandas.DataFrame
        blur: variance of the Laplacian in grey levels squared, low where a tile is out of focus;
        fold: share of its blocks of about 8 um, wider than a nucleus, that are denser than
        `FOLD_DENSITY` times the median of the slide's tissue. Light goes through a fold twice, so
        it is about twice as dense (Beer and Lambert). Both float32.
    """
    side_px = tile_um / slide.mpp
    size = max(8, round(tile_um / max(SHARPNESS_UM, slide.mpp)))
    block = max(1, round(FOLD_BLOCK_UM * size / tile_um))
    n = size // block
    starts = np.arange(n) * block
    sharpness = np.empty(len(tiles), np.float32)
    # Density of each block in hundredths: a byte for each.
    dense = np.empty((len(tiles), n * n), np.uint8)
    centres = zip(tiles["x_px"], tiles["y_px"], strict=True)
    for place, (x_px, y_px) in enumerate(
        progress(centres, total=len(tiles), unit="tile", what="quality")
    ):
        corner = x_px - side_px / 2, y_px - side_px / 2
        rgb = slide.read(*corner, side_px, side_px, size=(size, size))
        sharpness[place] = ndimage.laplace(rgb @ _GREY).var()
        sums = np.add.reduceat(rgb[: n * block, : n * block], starts, axis=0, dtype=np.float32)
        means = np.add.reduceat(sums, starts, axis=1) / block**2
        dense[place] = (-100 * np.log((means + 1) / 256).mean(2).ravel()).clip(0, 255)
    median = np.median(dense[dense > GLASS_DENSITY]) if (dense > GLASS_DENSITY).any() else 255
    share = (dense > FOLD_DENSITY * median).mean(axis=1) if len(tiles) else np.zeros(0)
    return pd.DataFrame(
        {"blur": sharpness, "tissue_fold": share.astype(np.float32)}, index=tiles.index
    )


def summarise_quality(
    slide: Slide, mask: TissueMask, tiles: pd.DataFrame, *, lattice: Lattice
) -> pd.DataFrame:
    """Return the quality of a slide's tiles as a table of metric and value.

    Parameters
    ----------
    slide, mask, tiles
        The slide, its tissue, and the tiles that were kept, with blur and fold.
    lattice
        That was laid over it.
    """
    size_um = slide.width_px * slide.mpp, slide.height_px * slide.mpp
    n_positions = sum(len(row) for row, _ in lattice.cover_by_rows(*size_um))
    n_pen, n_tissue = np.count_nonzero(mask.pen), np.count_nonzero(mask.mask)
    values = {
        "n_positions": n_positions,
        "n_tiles": len(tiles),
        "tissue_mm2": mask.tissue_mm2,
        "n_fragments": mask.n_fragments,
        "share_tissue": n_tissue / mask.mask.size,
        "share_pen": n_pen / max(1, int(n_pen + n_tissue)),
        "share_blurred": (tiles["blur"] < BLURRED).mean(),
        "share_folded": (tiles["tissue_fold"] > FOLDED).mean(),
        "median_sharpness": tiles["blur"].median(),
        "mean_tissue": tiles["tissue"].mean(),
        "mpp": slide.mpp,
        "mask_um": mask.um_per_px,
        "width_px": slide.width_px,
        "height_px": slide.height_px,
    }
    return pd.DataFrame({"metric": list(values), "value": [float(v) for v in values.values()]})
