"""The tiles of a slide as PNG in one tar, with a table that says which is which.

Names are `SLIDE/ROWxCOL.png`, so that what is unpacked is a folder of images for torchvision's
`ImageFolder` and what is streamed has one sample each for WebDataset. The same slide gives the same bytes.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from histogep.encoders.tile_pixels import TILE_PX, read_tiles
from histogep.files import complete
from histogep.lattice import Lattice
from histogep.progress import progress
from histogep.slides.reader import Slide

#: Tiles in memory at a time.
_BATCH = 64


def write_tile_images(
    slide: Slide, tiles: pd.DataFrame, path: str | Path, *, lattice: Lattice, size: int = TILE_PX
) -> pd.DataFrame:
    """Write every tile as a PNG of `size` px, with the pixels that encoders see.

    Parameters
    ----------
    slide, tiles
        The slide and results/tiles/{slide}.parquet.
    path
        The tar; complete or absent.
    lattice
        Its tile_um is the side of a tile.
    size
        Side of an image in px.

    Returns
    -------
    pandas.DataFrame
        One row per tile in the order of the tar: file, row, col, barcode, x_px, y_px (centre), side_px
        (level-0 px), and the tile's quality.
    """
    side_px = lattice.tile_um / slide.mpp
    corners = tiles[["x_px", "y_px"]].to_numpy(np.float64) - side_px / 2
    names = [
        f"{slide.slide}/{row}x{col}.png"
        for row, col in zip(tiles["row"], tiles["col"], strict=True)
    ]
    with (
        complete(path) as temporary,
        tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        starts = range(0, len(tiles), _BATCH)
        for start in progress(starts, unit="batch", what="tile images"):
            part = slice(start, start + _BATCH)
            pixels = read_tiles(slide, corners[part], side_px, size=size)
            for name, tile in zip(names[part], pixels, strict=True):
                content = io.BytesIO()
                Image.fromarray(tile).save(content, "PNG")
                member = tarfile.TarInfo(name)
                member.size, member.mode = content.tell(), 0o644
                content.seek(0)
                tar.addfile(member, content)
    index = pd.DataFrame({"file": names})
    for column in ("row", "col", "barcode", "x_px", "y_px"):
        index[column] = tiles[column].to_numpy()
    index["side_px"] = side_px
    for column in ("tissue", "pen", "blur", "tissue_fold"):
        index[column] = tiles[column].to_numpy()
    return index
