"""Read the pixels of many tiles at once, at the size that an encoder takes."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from histogep.slides.reader import Slide

#: Side in px at which tiles are read.
TILE_PX = 224
#: A tile that a level holds in its own pixels to within this many px is not resampled.
_SAME_PX = 0.25
_HAIR = 1 / (1 + 1e-6)


def read_tiles(slide: Slide, corners: np.ndarray, side_px: float, *, size: int) -> np.ndarray:
    """Return square tiles of a slide, white outside of it.

    They come from the coarsest level that is at least as fine as wanted and are averaged on the way
    down, as by `Slide.read`. Their place is rounded to a whole px of that level: by less than half
    a px of the result. Fractions matter only where the whole slide is coarser than wanted.

    Parameters
    ----------
    slide
        The slide.
    corners
        Top left corners (x, y) in level-0 px, (n, 2).
    side_px
        Side of a tile in level-0 px.
    size
        Side of the result in px.

    Returns
    -------
    numpy.ndarray
        uint8 RGB, (n, size, size, 3).
    """
    level = slide.level(side_px / size)
    downsample = np.array(slide.downsample(level))
    sides = side_px / downsample  # px of the level
    if sides.min() < 0.99 * size:
        tiles = [slide.read(x, y, side_px, side_px, size=(size, size)) for x, y in corners]
        return np.stack(tiles) if tiles else np.empty((0, size, size, 3), np.uint8)
    same = np.abs(sides - size).max() <= _SAME_PX
    width, height = (size, size) if same else (math.ceil(side - 1e-6) for side in sides)
    pixels = np.empty((len(corners), height, width, 3), np.uint8)
    places = np.round(np.asarray(corners) / downsample).astype(int)
    for place, (left, top) in enumerate(places):
        pixels[place] = slide.region(level, int(left), int(top), width, height)
    if same or not len(corners):
        return pixels
    # Slightly narrower: at a factor of exactly two an eighth of the averages lie midway between two
    # grey levels, and rounding all of them up would brighten the tile.
    box = (0.0, 0.0, sides[0] * _HAIR, sides[1] * _HAIR)
    shrunk = np.empty((len(corners), size, size, 3), np.uint8)
    for place, tile in enumerate(pixels):
        picture = Image.fromarray(tile)
        shrunk[place] = picture.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return shrunk
