"""Features computed elsewhere (TRIDENT or CLAM, HDF5), assigned to the tiles of a slide.

TRIDENT writes `features` (n, d) and `coords` (n, 2), the level-0 top left corners of its patches,
with attributes of `coords` that give their size; CLAM's feature files hold the two tables alone.
Their patches lie on a grid of their own, so each tile takes the patch that covers its centre.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from scipy.spatial import KDTree

from histogep.encoders.feature_file import refuse_unfinished
from histogep.errors import InputError
from histogep.inputs.hdf5_guard import open_given
from histogep.lattice import Lattice
from histogep.slides.reader import Slide

log = logging.getLogger(__name__)

#: Share by which the patches may differ in size from the tiles of the lattice.
SIZE_TOLERANCE = 0.05


@dataclass(frozen=True)
class GivenFeatures:
    """Features of patches that were made elsewhere.

    Attributes
    ----------
    path
        Their file.
    values
        (n, d) float32.
    corners_px
        Top left corners (x, y) in level-0 px, (n, 2).
    side_px
        Side of a patch in level-0 px.
    patch_px
        Side of a patch in px as it was encoded.
    """

    path: str
    values: np.ndarray
    corners_px: np.ndarray
    side_px: float
    patch_px: int


def read_given(path: str | Path, *, slide: Slide, lattice: Lattice) -> GivenFeatures:
    """Return the features of a TRIDENT or CLAM file, after checking that they fit the lattice.

    Where the file does not give the size of a patch (CLAM), it is the distance of neighbours.

    Parameters
    ----------
    path
        The HDF5 file.
    slide
        The slide that the patches lie on.
    lattice
        Its tile_um is the size that the patches must have, within 5 %.

    Raises
    ------
    InputError
        If the file cannot be read, is of an image of another size, or its patches are of another
        size than the tiles.
    """
    with open_given(path, "features as TRIDENT and CLAM write them") as file:
        for name in ("features", "coords"):
            if not isinstance(file.get(name), h5py.Dataset):
                raise InputError(
                    f"{path} has no dataset {name!r}: give an HDF5 file with `features` and `coords` "
                    "in the column features, as TRIDENT and CLAM write it"
                )
        values = np.squeeze(file["features"][()].astype(np.float32))
        corners = np.asarray(file["coords"][()], np.float64).reshape(-1, 2)
        attributes = dict(file["coords"].attrs)
        if values.ndim != 2 or len(values) != len(corners) or len(values) < 2:
            raise InputError(
                f"{path}: features {values.shape} and coords {corners.shape} do not belong together"
            )
        if not np.isfinite(corners).all():
            raise InputError(f"{path}: some coords are not finite: make the patches again")
        if not np.isfinite(values).all():
            raise InputError(f"{path}: some features are not finite: encode the slide again")
        refuse_unfinished(values, path)
        size = tuple(int(attributes.get(f"level0_{axis}", 0)) for axis in ("width", "height"))
        own = (slide.width_px, slide.height_px)
        sparse = slide.origin_px != (0, 0)
        if sparse and size != own:
            # In OpenSlide's px, which of a sparse scan begin elsewhere than the slide's.
            corners = corners - np.array(slide.origin_px)
        whole = slide.handle.dimensions if sparse else own
        if all(size) and size not in (whole, own):
            raise InputError(
                f"{path} was made on an image of {size[0]} x {size[1]} px, but slide {slide.slide} has "
                f"{slide.width_px} x {slide.height_px}: give the features of this image"
            )
        side_px, source = _side_px(attributes, corners)
        side_um = side_px * slide.mpp
        if not abs(side_um / lattice.tile_um - 1) <= SIZE_TOLERANCE:
            raise InputError(
                f"{path}: its patches are {side_um:.4g} um wide ({side_px:g} level-0 px by the {source} "
                f"x {slide.mpp:.4g} um), the tiles of the lattice {lattice.tile_um:g} um: make features "
                "of patches of that size, or set lattice.tile_um and train on it"
            )
        patch_px = int(attributes.get("patch_size", round(side_px)))
        return GivenFeatures(str(path), values, corners, side_px, patch_px)


def match_given(
    given: GivenFeatures, x_px: np.ndarray, y_px: np.ndarray, *, slide: Slide
) -> np.ndarray:
    """Return for each tile centre (level-0 px) the row of the patch that covers it, -1 for none.

    Of several that cover it the one with the nearest centre. How far the centres are apart is
    logged, with a warning when that is more than a quarter of a patch for half of the tiles.
    """
    centres = np.column_stack([x_px, y_px])
    # The square that covers a point is the one whose centre is nearest by the larger coordinate.
    distance, row = KDTree(given.corners_px + given.side_px / 2).query(centres, p=np.inf)
    row = np.where(distance <= given.side_px / 2 + 1, row, -1)
    if (row >= 0).any():
        median = float(np.median(distance[row >= 0])) / given.side_px
        level = logging.WARNING if median > 0.25 else logging.INFO
        log.log(
            level,
            "slide %s: %d of %d tiles lie in a patch of %s, their centres %.0f %% of a patch apart",
            slide.slide,
            (row >= 0).sum(),
            len(row),
            given.path,
            100 * median,
        )
    return row


def _side_px(attributes: Mapping[str, Any], corners: np.ndarray) -> tuple[float, str]:
    """Return the side of a patch in level-0 px, and where this value comes from."""
    if "patch_size_level0" in attributes:
        return float(attributes["patch_size_level0"]), "attribute patch_size_level0"
    if {"patch_size", "downsample"} <= set(attributes):
        downsample = float(np.ravel(attributes["downsample"])[0])
        return float(attributes["patch_size"]) * downsample, "attributes patch_size and downsample"
    distance, _ = KDTree(corners).query(corners, k=2, p=np.inf)
    return float(np.median(distance[:, 1])), "distance of neighbouring coords"
