"""Pixels of tiled TIFF slides through libvips: those of OpenSlide, for a quarter of its time.

OpenSlide paints each decoded tile on a transparent canvas, which costs more than to decode it.
libvips hands the pixels on. It is used for the levels whose pixels it is seen to give exactly as
OpenSlide does, and for whole tiles only; all else is left to OpenSlide.
"""

from __future__ import annotations

import logging
import threading

import numpy as np
import openslide
import pyvips
from scipy import ndimage

from histogep.slides.tiff import whole_levels

# libvips tells of every thread it starts.
logging.getLogger("pyvips").setLevel(logging.WARNING)

#: Formats that are tiled TIFF without a trick, by OpenSlide's names.
VENDORS = ("aperio", "generic-tiff")
#: Side in px of the samples that are compared.
_SAMPLE_PX = 64


class FastTiff:
    """The levels of a slide that libvips reads as OpenSlide does.

    Parameters
    ----------
    handle
        The slide opened by OpenSlide.
    image
        Its path.
    """

    def __init__(self, handle: openslide.OpenSlide, image: str) -> None:
        self._handle, self._image = handle, image
        tiff = handle.properties.get(openslide.PROPERTY_NAME_VENDOR) in VENDORS
        pages = whole_levels(image) if tiff else {}
        self._pages = [pages.get(size) for size in handle.level_dimensions]
        self._opened: dict[int, pyvips.Image | None] = {}
        # A region of libvips belongs to the thread that made it.
        self._regions = threading.local()
        self._lock = threading.Lock()

    def read(self, level: int, left: int, top: int, width: int, height: int) -> np.ndarray | None:
        """Return pixels of a level, uint8 (height, width, 3); None where OpenSlide is to read.

        Parameters
        ----------
        level
            Of OpenSlide.
        left, top, width, height
            In px of the level; a part outside of it is for OpenSlide.
        """
        columns, rows = self._handle.level_dimensions[level]
        if left < 0 or top < 0 or left + width > columns or top + height > rows:
            return None
        with self._lock:
            if level not in self._opened:
                self._opened[level] = self._open(level)
            # Another reader may give the level up while this one reads.
            opened = self._opened[level]
        if opened is None:
            return None
        regions = self._regions.__dict__.setdefault("by_level", {})
        try:
            if level not in regions:
                regions[level] = pyvips.Region.new(opened)
            return _fetch(regions[level], left, top, width, height)
        except pyvips.Error:
            # Damaged: OpenSlide says where, or reads it after all.
            self._opened[level] = None
            return None

    def _open(self, level: int) -> pyvips.Image | None:
        """Return a level, or None if it has other pixels than OpenSlide gives."""
        page = self._pages[level]
        if page is None:
            return None
        try:
            image = pyvips.Image.new_from_file(
                self._image, page=page, fail_on="warning", revalidate=True
            )
            if (image.bands, image.format) != (3, "uchar"):
                return None
            # A handle of its own: one bad tile spoils it.
            with openslide.OpenSlide(self._image) as handle:
                alike = all(_alike(handle, level, image, share) for share in (0.0, 0.5, 1.0))
        except (pyvips.Error, openslide.OpenSlideError):
            return None
        return image if alike else None


def _alike(handle: openslide.OpenSlide, level: int, image: pyvips.Image, share: float) -> bool:
    """Return whether a sample of a level is the same by both readers.

    OpenSlide has one downsample for both axes of a level. Where that is not a whole number, it reads a
    part of a pixel beside the place that was asked for, and interpolates, with half transparent
    seams between tiles: each opaque pixel must then lie between those of libvips around it.
    """
    left, top = (int(share * max(0, side - _SAMPLE_PX)) for side in (image.width, image.height))
    width, height = min(_SAMPLE_PX, image.width), min(_SAMPLE_PX, image.height)
    downsample = handle.level_downsamples[level]
    location = round(left * downsample), round(top * downsample)
    theirs = np.asarray(handle.read_region(location, level, (width, height)))
    opaque, theirs = theirs[..., 3] == 255, theirs[..., :3].astype(np.int16)
    ours = _fetch(pyvips.Region.new(image), left, top, width, height).astype(np.int16)
    if downsample == int(downsample):
        return bool(opaque.all()) and np.array_equal(ours, theirs)
    low, high = (f(ours, (3, 3, 1)) for f in (ndimage.minimum_filter, ndimage.maximum_filter))
    # cairo rounds on the way; what lies beyond the sample may have come in at its rim.
    between = ((theirs >= low - 2) & (theirs <= high + 2)).all(axis=2)[1:-1, 1:-1]
    opaque = opaque[1:-1, 1:-1]
    return bool(between[opaque].all()) and 2 * opaque.sum() >= opaque.size


def _fetch(region: pyvips.Region, left: int, top: int, width: int, height: int) -> np.ndarray:
    pixels = region.fetch(left, top, width, height)
    return np.frombuffer(pixels, np.uint8).reshape(height, width, 3)
