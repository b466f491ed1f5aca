"""A small image of a slide, and the entry of `uns["spatial"]` by which scanpy and squidpy draw on it.

Every h5ad whose rows have places carries such an entry, made by `spatial_entry` alone. The image of a
section is that of its spots file; that of a slide without spots is a JPEG that tile_slide writes, so
that what is predicted later needs no whole-slide image.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from histogep.errors import InputError
from histogep.files import complete, readable

#: Longest side in px of the image in predictions and profiles, of which a study has thousands.
THUMBNAIL_PX = 600
#: The same of a section's spots, which are looked at closely.
HIRES_PX = 1000
_JPEG_QUALITY = 90


def write_thumbnail(pixels: np.ndarray, path: str | Path) -> None:
    """Write a small image as JPEG (of 600 px about 50 to 100 KB)."""
    with complete(path) as temporary:
        Image.fromarray(pixels).save(temporary, "JPEG", quality=_JPEG_QUALITY)


def read_thumbnail(path: str | Path) -> np.ndarray:
    """Return an image that `write_thumbnail` wrote, uint8 RGB.

    Raises
    ------
    InputError
        The file is absent or damaged.
    """
    with readable(path, Image.DecompressionBombError, SyntaxError), Image.open(path) as image:
        return np.array(image.convert("RGB"))


def spatial_entry(
    pixels: np.ndarray, *, slide: str, width_px: float, spot_px: float
) -> dict[str, dict[str, Any]]:
    """Return `uns["spatial"]` of one slide, as scanpy and squidpy read it.

    Parameters
    ----------
    pixels
        The whole slide, uint8 RGB.
    slide
        Its id, by which the entry goes.
    width_px
        Width of the slide in level-0 px, in which `obsm["spatial"]` is.
    spot_px
        Diameter of a spot in level-0 px.

    Returns
    -------
    dict
        slide -> images (hires), scalefactors (tissue_hires_scalef: px of the image in a level-0 px;
        spot_diameter_fullres), metadata.
    """
    return {
        slide: {
            "images": {"hires": pixels},
            "scalefactors": {
                "tissue_hires_scalef": pixels.shape[1] / width_px,
                "spot_diameter_fullres": float(spot_px),
            },
            "metadata": {},
        }
    }


def smaller_entry(
    spatial: Mapping[str, Any], *, most_px: int = THUMBNAIL_PX
) -> dict[str, dict[str, Any]]:
    """Return `uns["spatial"]` of one slide again, its image of at most `most_px` a side.

    Raises
    ------
    InputError
        There is no entry, or more than one.
    """
    if len(spatial) != 1:
        raise InputError(
            f"uns['spatial'] has {len(spatial)} entries, one is needed: make the file again"
        )
    ((slide, entry),) = spatial.items()
    pixels, scales = np.asarray(entry["images"]["hires"]), entry["scalefactors"]
    width_px = pixels.shape[1] / float(scales["tissue_hires_scalef"])
    if max(pixels.shape[:2]) > most_px:
        image = Image.fromarray(pixels)
        image.thumbnail((most_px, most_px), Image.Resampling.BILINEAR, reducing_gap=None)
        pixels = np.array(image)
    return spatial_entry(
        pixels, slide=slide, width_px=width_px, spot_px=float(scales["spot_diameter_fullres"])
    )
