"""The quality of tiles: how sharp they are, how much of them is folded, and what a slide has of both."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import ndimage
from skimage.color import hed_from_rgb

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


def mean_stains(mask: TissueMask) -> tuple[float, float]:
    """Return the mean density of haematoxylin and of eosin over a slide's tissue; NaN without any.

    Optical densities (log10) by colour deconvolution with the stain vectors of Ruifrok and Johnston
    (Anal Quant Cytol Histol 2001), as scikit-image has them, on the overview of the slide.
    """
    step = mask.overview_step
    tissue = mask.overview[mask.mask[::step, ::step]]
    if not len(tissue):
        return float("nan"), float("nan")
    density = -np.log10((tissue.astype(np.float64) + 1) / 256)
    # rgb2hed clips each stain at 0 pixel by pixel: the mean is taken of unclipped densities.
    haematoxylin, eosin, _ = density.mean(axis=0) @ hed_from_rgb
    return float(haematoxylin), float(eosin)


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
    haematoxylin, eosin = mean_stains(mask)
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
        "mean_haematoxylin": haematoxylin,
        "mean_eosin": eosin,
        "mean_tissue": tiles["tissue"].mean(),
        "mpp": slide.mpp,
        "mask_um": mask.um_per_px,
        "width_px": slide.width_px,
        "height_px": slide.height_px,
    }
    return pd.DataFrame({"metric": list(values), "value": [float(v) for v in values.values()]})


def no_quality() -> pd.DataFrame:
    """Return the quality of a slide that cannot be used, in the form of `summarise_quality`."""
    return pd.DataFrame({"metric": ["n_tiles"], "value": [0.0]})
