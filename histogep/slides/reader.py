"""Read regions of a whole-slide image by physical size, in bounded memory.

A slide is described by the JSON that `histogep.slides.prepare` writes. OpenSlide reads its pixels, and
libvips does where it gives the same ones.

Sparse scans (MRXS, SCN) fill only a part of the area that their format spans. OpenSlide tells which
(`openslide.bounds-*`), and QuPath shows that part alone. So does this module: level-0 px are counted
from the corner of that part, and everything that is read or written in px agrees with QuPath.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import openslide
from PIL import Image

from histogep.errors import BadSlide
from histogep.files import read_json
from histogep.slides.fast_tiff import FastTiff
from histogep.slides.rejected import refuse_failed
from histogep.slides.sources import refuse_replaced

#: Largest region in px that is held at once; larger ones are read in blocks.
MAX_REGION_PX = 4096 * 4096
#: Decoded pixels that are kept for neighbouring reads.
CACHE_BYTES = 16 * 2**20
#: A level finer than wanted by at most this share still counts as fine enough.
_LEVEL_TOLERANCE = 1.01


def bounds_px(properties: Mapping[str, str], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return left, top, width and height in OpenSlide's level-0 px of the part that was scanned.

    Parameters
    ----------
    properties
        Of OpenSlide; `openslide.bounds-*` are absent where all was scanned.
    size
        Width and height of level 0.
    """
    names = ("BOUNDS_X", "BOUNDS_Y", "BOUNDS_WIDTH", "BOUNDS_HEIGHT")
    try:
        given = [int(properties[getattr(openslide, f"PROPERTY_NAME_{name}")]) for name in names]
    except (KeyError, ValueError):
        return 0, 0, *size
    left, top = (min(max(0, place), side) for place, side in zip(given[:2], size, strict=True))
    width, height = min(given[2], size[0] - left), min(given[3], size[1] - top)
    return (left, top, width, height) if width > 0 and height > 0 else (0, 0, *size)


class Slide:
    """A slide opened lazily, at the first read.

    Parameters
    ----------
    slide
        Id of the slide.
    image
        Path of what OpenSlide opens.
    mpp
        um per level-0 px.
    width_px, height_px
        Size of what was scanned (`bounds_px`), level-0 px.
    objective
        Magnification written in the file, if any.
    origin_px
        Its corner (x, y) in OpenSlide's level-0 px: (0, 0) but for sparse scans. The file itself is
        asked when it is opened.
    """

    def __init__(
        self,
        *,
        slide: str,
        image: str | Path,
        mpp: float,
        width_px: int,
        height_px: int,
        objective: float | None = None,
        origin_px: tuple[int, int] = (0, 0),
    ) -> None:
        self.slide = slide
        self.image = str(image)
        self.mpp = float(mpp)
        self.width_px = int(width_px)
        self.height_px = int(height_px)
        self.objective = objective
        self.origin_px = tuple(origin_px)
        self._handle: openslide.OpenSlide | None = None
        self._fast: FastTiff | None = None

    @classmethod
    def from_json(cls, path: str | Path) -> Slide:
        """Return the slide that a results/slides/{slide}.json describes.

        Raises
        ------
        BadSlide
            If prepare_slide could not use the slide.
        InputError
            If the image was replaced since.
        """
        content = read_json(path)
        refuse_failed(content)
        refuse_replaced(content, path)
        return cls(
            slide=content["slide"],
            image=content["image"],
            mpp=content["mpp"],
            width_px=content["width"],
            height_px=content["height"],
            objective=content.get("objective"),
            origin_px=content.get("origin_px", (0, 0)),
        )

    def __enter__(self) -> Slide:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        if self._handle is not None:
            self._handle.close()
            self._handle = self._fast = None

    @property
    def handle(self) -> openslide.OpenSlide:
        """The opened slide."""
        if self._handle is None:
            try:
                self._handle = openslide.OpenSlide(self.image)
                self._handle.set_cache(openslide.OpenSlideCache(CACHE_BYTES))
            except (openslide.OpenSlideError, OSError) as error:
                raise BadSlide(
                    f"slide {self.slide}: {self.image} cannot be opened any more ({error}); "
                    "put the file back or run prepare_slide again"
                ) from error
            left, top, *size = bounds_px(self._handle.properties, self._handle.dimensions)
            self.origin_px = left, top
            if tuple(size) != (self.width_px, self.height_px):
                raise BadSlide(
                    f"slide {self.slide}: {self.image} is {tuple(size)} px, but was "
                    f"{(self.width_px, self.height_px)} when prepared; run prepare_slide again"
                )
            self._fast = FastTiff(self._handle, self.image)
        return self._handle

    def read(
        self,
        x0_px: float,
        y0_px: float,
        width_px: float,
        height_px: float,
        *,
        size: tuple[int, int] | None = None,
    ) -> np.ndarray:
        """Return a region as RGB, white outside the slide.

        The pixels come from the coarsest level that is still as fine as wanted, and are averaged
        (never picked) on the way down.

        Parameters
        ----------
        x0_px, y0_px
            Top left corner in level-0 px; may be negative or a fraction.
        width_px, height_px
            Size of the region in level-0 px.
        size
            Width and height of the result in px; the region's own size by default.

        Returns
        -------
        numpy.ndarray
            uint8, (height, width, 3).
        """
        if width_px <= 0 or height_px <= 0:
            raise ValueError(f"a region of {width_px} x {height_px} px has no pixels")
        out_width, out_height = size or (max(1, round(width_px)), max(1, round(height_px)))
        scale = min(width_px / out_width, height_px / out_height)
        level = self.level(scale)
        down_x, down_y = self.downsample(level)
        left, top = x0_px / down_x, y0_px / down_y
        right, bottom = left + width_px / down_x, top + height_px / down_y
        pixels, origin, factor = self._pixels(level, (left, top, right, bottom), scale / down_x)
        box = (
            max(0.0, (left - origin[0]) / factor),
            max(0.0, (top - origin[1]) / factor),
            min(float(pixels.width), (right - origin[0]) / factor),
            min(float(pixels.height), (bottom - origin[1]) / factor),
        )
        if pixels.size == (out_width, out_height) and box == (0, 0, *pixels.size):
            return np.asarray(pixels)
        shrunk = pixels.resize((out_width, out_height), Image.Resampling.BILINEAR, box=box)
        return np.asarray(shrunk)

    def thumbnail(self, um_per_px: float) -> np.ndarray:
        """Return the whole slide at about `um_per_px` (never finer than level 0), uint8 RGB."""
        scale = max(1.0, um_per_px / self.mpp)
        size = (max(1, round(self.width_px / scale)), max(1, round(self.height_px / scale)))
        return self.read(0, 0, self.width_px, self.height_px, size=size)

    def picture(self, most_px: int) -> np.ndarray:
        """Return the whole slide with at most `most_px` a side (never finer than level 0), uint8 RGB."""
        return self.thumbnail(self.mpp * max(1.0, max(self.width_px, self.height_px) / most_px))

    def level(self, scale: float) -> int:
        """Return the coarsest level that is still as fine as `scale` level-0 px per px."""
        fine = [
            level
            for level, downsample in enumerate(self.handle.level_downsamples)
            if downsample <= scale * _LEVEL_TOLERANCE
        ]
        return max(fine, default=0)

    def downsample(self, level: int) -> tuple[float, float]:
        """Return the level-0 px in a px of a level, along x and y.

        Levels are rounded to whole pixels, so each axis has its own.
        """
        (width, height), (full_width, full_height) = (
            self.handle.level_dimensions[level],
            self.handle.dimensions,
        )
        return full_width / width, full_height / height

    def _pixels(
        self, level: int, edges: tuple[float, float, float, float], shrink: float
    ) -> tuple[Image.Image, tuple[int, int], int]:
        """Return the pixels of a level around `edges`, their origin and the whole-number factor.

        A region above `MAX_REGION_PX` is read block by block, each averaged by the factor at once.
        """
        # A pixel's edge that only rounding put inside the next pixel is not worth that pixel.
        left, top = math.floor(edges[0] + 1e-6), math.floor(edges[1] + 1e-6)
        width = math.ceil(edges[2] - 1e-6) - left
        height = math.ceil(edges[3] - 1e-6) - top
        factor = max(1, int(shrink))
        if width * height <= MAX_REGION_PX or factor == 1:
            region = self.region(level, left, top, width, height)
            return Image.fromarray(region), (left, top), 1
        side = max(factor, math.isqrt(MAX_REGION_PX) // factor * factor)
        shrunk = Image.new("RGB", (-(-width // factor), -(-height // factor)))
        for y in range(0, height, side):
            for x in range(0, width, side):
                size = min(side, width - x), min(side, height - y)
                block = Image.fromarray(self.region(level, left + x, top + y, *size))
                shrunk.paste(block.reduce(factor), (x // factor, y // factor))
        return shrunk, (left, top), factor

    def region(self, level: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        """Return pixels of one level as they are, white where the slide has none.

        Parameters
        ----------
        level
            Its number.
        left, top, width, height
            In px of the level, from the slide's corner; may reach out of it.

        Returns
        -------
        numpy.ndarray
            uint8 RGB, (height, width, 3).
        """
        handle = self.handle
        # Tiled TIFFs have no bounds: only OpenSlide's px may begin elsewhere.
        fast = self._fast if self.origin_px == (0, 0) else None
        pixels = fast.read(level, left, top, width, height) if fast else None
        if pixels is not None:
            return pixels
        down_x, down_y = self.downsample(level)
        location = (
            self.origin_px[0] + round(left * down_x),
            self.origin_px[1] + round(top * down_y),
        )
        try:
            region = handle.read_region(location, level, (width, height))
        except openslide.OpenSlideError as error:
            self.close()  # one bad tile spoils the handle for all later reads
            raise BadSlide(
                f"slide {self.slide}: {self.image} is damaged near level-0 px {location} ({error});"
                " fetch the file again or leave the slide out of the sheet"
            ) from error
        if region.getextrema()[3][0] == 255:
            return np.asarray(region.convert("RGB"))
        white = Image.new("RGB", region.size, "white")
        white.paste(region, mask=region.getchannel("A"))
        return np.asarray(white)
