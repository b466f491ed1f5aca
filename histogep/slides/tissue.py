"""Where the tissue of an H&E slide is, and where somebody wrote on the glass.

Saturation alone takes the pink haze around some sections for tissue. Haze, glass and mounting
medium are smooth while tissue is not, so the mask rests on texture at about 8 um per px, joined by
what is dense and coloured without texture (mucin, tissue out of focus). The image and the masks are
arrays at that resolution (a slide of 50 mm x 50 mm has 39 million such pixels); what takes more
bytes a pixel is computed band by band.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage
from skimage.color import rgb2hsv
from skimage.filters import threshold_otsu
from skimage.morphology import disk

from histogep.errors import BadSlide
from histogep.slides.fiducials import RADIUS_UM, find_fiducials
from histogep.slides.reader import Slide
from histogep.slides.regions import Regions

#: Side in um of the window whose standard deviation is the texture.
TEXTURE_UM = 40.0
#: Bounds in grey levels (0 to 255) of the Otsu threshold of texture. Glass with JPEG noise has up to
#: 2.5, faint fat from 4 on (her2st, both measured at 8 um per px).
TEXTURE_BOUNDS = (3.0, 8.0)
#: Optical density over the glass, and least saturation, of tissue without texture.
DENSE_OD, DENSE_SATURATION = 0.3, 0.12
#: Glass is not denser than this, haze included.
GLASS_OD = 0.35
#: A piece whose mean chroma (largest minus smallest channel) is less above the glass is dust.
DUST_CHROMA = 6.0
#: Gaps up to this radius in um (fat cells, vessels, tears) are closed.
CLOSING_UM = 40.0
#: Holes up to this area in mm2 are filled.
HOLE_MM2 = 0.1
#: Radius in um of what a pen stroke must contain; smaller coloured spots are blood or pigment.
PEN_RADIUS_UM = 24.0
#: A slide is dark, so not bright-field, when this share of it is below this grey level.
DARK_SHARE, DARK_LEVEL = 0.5, 50
#: Mask rows that are looked at together, and the side of the blocks in which pixels are read.
BAND_PX = 256
#: Surroundings in um that a band is seen with: what closing, opening and pen rims reach, and more.
MARGIN_UM = 240.0
#: The overview has at most this many px a side.
OVERVIEW_PX = 450
#: Mask rows whose shares are computed together.
_SHARE_PX = 32
#: Pixels around a block that are read with it, since its rim is averaged with them.
_RIM_PX = 2
_DIAGONAL = np.ones((3, 3), bool)
_TEXTURE_BINS = np.linspace(0, np.log1p(128), 1025)
_DENSITY_BINS = np.linspace(0, np.log(256), 5546)
_DENSITY = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)


@dataclass(frozen=True)
class TissueMask:
    """Tissue of a slide on a coarse grid.

    Attributes
    ----------
    mask
        Tissue without pen marks, bool (height, width).
    pen
        Pen marks, same shape.
    overview
        The slide at every `overview_step`-th mask pixel, uint8 RGB.
    um_per_px
        Size of a mask pixel.
    px_per_px
        Level-0 px in a mask pixel, along x and y.
    n_fragments
        Pieces of tissue.
    """

    mask: np.ndarray
    pen: np.ndarray
    overview: np.ndarray
    um_per_px: float
    px_per_px: tuple[float, float]
    n_fragments: int

    @property
    def overview_step(self) -> int:
        """Mask pixels from one pixel of the overview to the next."""
        return _overview_step(self.mask.shape)

    @property
    def tissue_mm2(self) -> float:
        """Area of the tissue in mm2."""
        return np.count_nonzero(self.mask) * self.um_per_px**2 / 1e6

    def share(self, x_px: np.ndarray, y_px: np.ndarray, side_px: float) -> np.ndarray:
        """Return the share (0 to 1, float32) of tissue in squares about level-0 centres.

        What lies outside the slide counts as no tissue.
        """
        return self._share(self.mask, x_px, y_px, side_px)

    def pen_share(self, x_px: np.ndarray, y_px: np.ndarray, side_px: float) -> np.ndarray:
        """Return the share (0 to 1, float32) of pen marks in squares about level-0 centres."""
        return self._share(self.pen, x_px, y_px, side_px)

    def contains(self, x_px: np.ndarray, y_px: np.ndarray) -> np.ndarray:
        """Return whether level-0 points lie on tissue; False outside the slide."""
        height, width = self.mask.shape
        col = np.floor(np.asarray(x_px, float) / self.px_per_px[0]).astype(np.int64)
        row = np.floor(np.asarray(y_px, float) / self.px_per_px[1]).astype(np.int64)
        inside = (col >= 0) & (col < width) & (row >= 0) & (row < height)
        return inside & self.mask[np.clip(row, 0, height - 1), np.clip(col, 0, width - 1)]

    def _share(
        self, mask: np.ndarray, x_px: np.ndarray, y_px: np.ndarray, side_px: float
    ) -> np.ndarray:
        """Sum over squares with fractional edges, by interpolation of integral images of bands."""
        height, width = mask.shape
        centre = np.asarray(x_px, float), np.asarray(y_px, float)
        (left, top), (right, bottom) = (
            [
                np.clip((axis + sign * side_px / 2) / step, 0, size)
                for axis, step, size in zip(centre, self.px_per_px, (width, height), strict=True)
            ]
            for sign in (-1, 1)
        )
        area = np.zeros(len(left))
        band = np.minimum(top, height - 1).astype(np.int64) // _SHARE_PX
        for number in np.unique(band):
            here = np.flatnonzero(band == number)
            first = int(number) * _SHARE_PX
            last = min(height, int(np.ceil(bottom[here].max())))
            values = mask[first : max(last, first + 1)]
            if not values.any():
                continue
            total = np.zeros((values.shape[0] + 1, width + 1))
            np.cumsum(values, axis=0, dtype=np.float64, out=total[1:, 1:])
            np.cumsum(total, axis=1, out=total)
            corners = [(left, top, 1), (right, bottom, 1), (left, bottom, -1), (right, top, -1)]
            for x, y, sign in corners:
                place = [y[here] - first, x[here]]
                area[here] += sign * ndimage.map_coordinates(total, place, order=1, mode="nearest")
        return (area / (side_px**2 / np.prod(self.px_per_px))).clip(0, 1).astype(np.float32)


def tissue_mask(
    slide: Slide, settings: Mapping[str, Any], *, regions: Regions | None = None
) -> TissueMask:
    """Find the tissue of a slide.

    Parameters
    ----------
    slide
        The slide.
    settings
        mask_um: size in um of a mask pixel (8); min_fragment_mm2: least area in mm2 of a piece of
        tissue (0.02). Other keys are not looked at.
    regions
        Where tissue counts, and where not.

    Raises
    ------
    BadSlide
        If the slide is not bright-field (fluorescence), has no colour, or no tissue.
    """
    scale = max(1.0, float(settings.get("mask_um", 8.0)) / slide.mpp)
    width, height = (max(1, round(side / scale)) for side in (slide.width_px, slide.height_px))
    step_x, step_y = slide.width_px / width, slide.height_px / height
    um_per_px = slide.mpp * float(np.sqrt(step_x * step_y))
    found = _find(
        _read(slide, (height, width)),
        um_per_px=um_per_px,
        min_fragment_mm2=float(settings.get("min_fragment_mm2", 0.02)),
        slide=slide.slide,
    )
    if found.n_fragments == 0 and found.n_dropped:
        raise BadSlide(f"slide {slide.slide}: {slide.image} has no colour: it is not H&E")
    if found.n_fragments == 0:
        raise BadSlide(
            f"slide {slide.slide}: no tissue found on {slide.image}; if there is some, lower "
            "tissue.min_fragment_mm2, else leave the slide out of the sheet"
        )
    n_fragments = found.n_fragments
    if regions:
        regions.limit(found.tissue, px_per_px=(step_x, step_y), slide=slide.slide, mpp=slide.mpp)
        n_fragments = ndimage.label(found.tissue, _DIAGONAL)[1]
    return TissueMask(
        mask=found.tissue,
        pen=found.pen,
        overview=found.overview,
        um_per_px=um_per_px,
        px_per_px=(step_x, step_y),
        n_fragments=n_fragments,
    )


def segment(
    rgb: np.ndarray, *, um_per_px: float, min_fragment_mm2: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the tissue (without pen) and the pen marks of an image, both bool.

    Parameters
    ----------
    rgb
        uint8 RGB, at 4 to 20 um per px.
    um_per_px
        Size of a pixel.
    min_fragment_mm2
        Smaller pieces of tissue are left out.
    """
    found = _find(rgb, um_per_px=um_per_px, min_fragment_mm2=min_fragment_mm2)
    return found.tissue, found.pen


def find_pen(rgb: np.ndarray, *, um_per_px: float) -> np.ndarray:
    """Return where a green, blue, red or black pen was used, bool.

    Hues of pens that haematoxylin and eosin never have, in areas larger than blood or pigment.
    """
    pen = np.zeros(rgb.shape[:2], bool)
    value = _brightest(rgb)
    # Bright and pale pixels, most of a slide, are none of the colours below.
    if not ((_chroma(rgb) > 0.15 * value) | (value < 0.36 * 255)).any():
        return pen
    hue, saturation, value = np.moveaxis(rgb2hsv(rgb), 2, 0)
    degrees = hue * 360
    green = (degrees > 75) & (degrees < 185) & (saturation > 0.18)
    blue = (degrees >= 185) & (degrees < 222) & (saturation > 0.35)
    red = ((degrees < 12) | (degrees > 350)) & (saturation > 0.68) & (value > 0.45)
    black = (value < 0.36) & (saturation < 0.6)
    radius = _px(PEN_RADIUS_UM, um_per_px)
    for colour in (green, blue, red, black):
        if colour.any():
            pen |= ndimage.binary_opening(colour, disk(radius))
    return ndimage.binary_dilation(pen, disk(radius), mask=saturation > 0.15) if pen.any() else pen


@dataclass(frozen=True)
class _Found:
    """What `_find` found: masks, an overview, pieces of tissue, and pieces without colour."""

    tissue: np.ndarray
    pen: np.ndarray
    overview: np.ndarray
    n_fragments: int
    n_dropped: int


@dataclass(frozen=True)
class _Band:
    """Rows of an image: `rows`, the same with a margin (`outer`), and `rows` in that (`inner`)."""

    rows: slice
    outer: slice
    inner: slice


def _bands(height: int, margin: int = 0) -> Iterator[_Band]:
    """Give the bands that cover an image once."""
    for top in range(0, height, BAND_PX):
        rows = slice(top, min(height, top + BAND_PX))
        outer = slice(max(0, top - margin), min(height, rows.stop + margin))
        yield _Band(rows, outer, slice(top - outer.start, rows.stop - outer.start))


def _read(slide: Slide, shape: tuple[int, int]) -> np.ndarray:
    """Return a slide at the size of its mask, uint8 RGB; in blocks, since its levels may be fine."""
    height, width = shape
    step_x, step_y = slide.width_px / width, slide.height_px / height
    rgb = np.empty((*shape, 3), np.uint8)
    for y in _bands(height, _RIM_PX):
        for x in _bands(width, _RIM_PX):
            cols, rows = x.outer.stop - x.outer.start, y.outer.stop - y.outer.start
            corner = x.outer.start * step_x, y.outer.start * step_y
            block = slide.read(*corner, cols * step_x, rows * step_y, size=(cols, rows))
            rgb[y.rows, x.rows] = block[y.inner, x.inner]
    return rgb


def _find(rgb: np.ndarray, *, um_per_px: float, min_fragment_mm2: float, slide: str = "") -> _Found:
    """Find pen and tissue; with the id of a slide, refuse one that is dark."""
    if slide:
        _refuse_dark(rgb, slide)
    step = _overview_step(rgb.shape[:2])
    bands = list(_bands(len(rgb), int(np.ceil(MARGIN_UM / um_per_px)) + 4))
    pen, tissue = np.zeros(rgb.shape[:2], bool), np.zeros(rgb.shape[:2], bool)
    for band in bands:
        pen[band.rows] = find_pen(rgb[band.outer], um_per_px=um_per_px)[band.inner]
    printed = _printed(rgb, um_per_px)
    texture_threshold = _texture_threshold(rgb, pen, bands, um_per_px)
    glass_density, glass_chroma = _glass(rgb, pen, bands, um_per_px, texture_threshold)
    closing = _px(CLOSING_UM, um_per_px)
    for band in bands:
        seen, stroke = rgb[band.outer], pen[band.outer]
        rough = np.log1p(_texture(seen, um_per_px)) > texture_threshold
        dense = _density(seen) > glass_density + DENSE_OD
        dense &= _chroma(seen) / np.maximum(_brightest(seen), 1) > DENSE_SATURATION
        if printed is not None:
            # Printed rings are rough too; what lies on them is tissue if it has colour.
            rough &= ~printed[band.outer]
        shown = rough | dense
        if not shown.any():
            continue
        # The texture of an edge reaches half a window onto the glass; closing and opening keep the
        # size.
        shown = _close(shown, closing) & ~_pen_rim(stroke, um_per_px) | (dense & ~stroke)
        shown = ndimage.binary_opening(shown, disk(max(1, closing // 3)))
        tissue[band.rows] = shown[band.inner]
    px_per_mm2 = 1e6 / um_per_px**2
    labels, n = ndimage.label(~tissue)
    filled = _areas(labels, n) <= max(1, round(HOLE_MM2 * px_per_mm2))
    filled[0] = False
    tissue |= filled[labels]
    del labels  # of four bytes a pixel: not two at once
    tissue &= ~pen
    labels, n = ndimage.label(tissue)
    kept = _areas(labels, n) > max(1, round(min_fragment_mm2 * px_per_mm2))
    kept[0] = False
    tissue = kept[labels]
    del labels
    # Pieces without colour are hairs, cover-slip edges, stitching.
    labels, n = ndimage.label(tissue, _DIAGONAL)
    total = _areas(labels, n, rgb)[1:]
    coloured = np.append(False, total / _areas(labels, n)[1:] - glass_chroma >= DUST_CHROMA)
    n_fragments = int(coloured.sum())
    return _Found(coloured[labels], pen, rgb[::step, ::step].copy(), n_fragments, n - n_fragments)


def _printed(rgb: np.ndarray, um_per_px: float) -> np.ndarray | None:
    """Return where the frame of an array is printed, with the reach of its texture; None if nowhere."""
    centres = find_fiducials(rgb, um_per_px=um_per_px)
    if not len(centres):
        return None
    ring = np.ones(rgb.shape[:2], bool)
    ring[tuple(np.rint(centres).astype(int).T)] = False
    away = ndimage.distance_transform_edt(ring)
    return away <= (RADIUS_UM + TEXTURE_UM) / um_per_px


def _areas(labels: np.ndarray, n: int, rgb: np.ndarray | None = None) -> np.ndarray:
    """Return the pixels of each label from 0 to n, or the sum of an image's chroma over them."""
    total = np.zeros(n + 1)
    for band in _bands(len(labels)):
        weights = None if rgb is None else _chroma(rgb[band.rows]).ravel()
        total += np.bincount(labels[band.rows].ravel(), weights, minlength=n + 1)
    return total


def _refuse_dark(rgb: np.ndarray, slide: str) -> None:
    dark = sum(int((_brightest(rgb[band.rows]) < DARK_LEVEL).sum()) for band in _bands(len(rgb)))
    if dark > DARK_SHARE * rgb.shape[0] * rgb.shape[1]:
        raise BadSlide(
            f"slide {slide}: its background is dark (fluorescence?), so it is not H&E; "
            "leave it out of the slides sheet"
        )


def _px(um: float, um_per_px: float, *, least: int = 1) -> int:
    """Return a length in pixels."""
    return max(least, round(um / um_per_px))


def _texture_threshold(
    rgb: np.ndarray, pen: np.ndarray, bands: Sequence[_Band], um_per_px: float
) -> float:
    """Return Otsu's threshold of the log texture of what is no pen, within its bounds."""
    low, high = np.log1p(TEXTURE_BOUNDS)
    counts = np.zeros(len(_TEXTURE_BINS) - 1, np.int64)
    for band in bands:
        clean = ~_pen_rim(pen[band.outer], um_per_px)[band.inner]
        texture = _texture(rgb[band.outer], um_per_px)[band.inner]
        counts += np.histogram(np.log1p(texture[clean]), _TEXTURE_BINS)[0]
    if (counts > 0).sum() < 2:
        return high
    centres = (_TEXTURE_BINS[1:] + _TEXTURE_BINS[:-1]) / 2
    return float(np.clip(threshold_otsu(hist=(counts, centres)), low, high))


def _glass(
    rgb: np.ndarray,
    pen: np.ndarray,
    bands: Sequence[_Band],
    um_per_px: float,
    texture_threshold: float,
) -> tuple[float, float]:
    """Return optical density (lower quartile) and chroma (median) of the smooth bright ground.

    Where most of that ground is much denser than its lower quartile it is smooth tissue (neuropil
    can be), and the chroma is that of the ground as bright as the quartile.
    """

    def ground() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for band in bands:
            density = _density(rgb[band.rows])
            texture = _texture(rgb[band.outer], um_per_px)[band.inner]
            smooth = np.log1p(texture) <= texture_threshold
            smooth &= (density < GLASS_OD) & ~_pen_rim(pen[band.outer], um_per_px)[band.inner]
            yield density[smooth], _chroma(rgb[band.rows])[smooth]

    densities = np.zeros(len(_DENSITY_BINS) - 1, np.int64)
    chromas = np.zeros(256, np.int64)
    for density, chroma in ground():
        densities += np.histogram(density, _DENSITY_BINS)[0]
        chromas += np.bincount(chroma, minlength=256)
    # With hardly any smooth bright ground the image is all tissue, and glass is taken as white.
    if chromas.sum() <= 0.01 * rgb.shape[0] * rgb.shape[1]:
        return 0.0, 0.0
    quartile, middle = np.searchsorted(densities.cumsum(), np.array([0.25, 0.5]) * densities.sum())
    glass = float(_DENSITY_BINS[quartile : quartile + 2].mean())
    if _DENSITY_BINS[middle] > glass + DENSE_OD / 2:
        chromas[:] = 0
        for density, chroma in ground():
            chromas += np.bincount(chroma[density <= glass], minlength=256)
    median = np.searchsorted(chromas.cumsum(), 0.5 * chromas.sum())
    return glass, float(median)


def _overview_step(shape: tuple[int, int]) -> int:
    return max(1, -(-max(shape) // OVERVIEW_PX))


def _brightest(rgb: np.ndarray) -> np.ndarray:
    # Faster than a reduction over a short axis, here and below.
    return np.maximum(np.maximum(rgb[..., 0], rgb[..., 1]), rgb[..., 2])


def _chroma(rgb: np.ndarray) -> np.ndarray:
    return _brightest(rgb) - np.minimum(np.minimum(rgb[..., 0], rgb[..., 1]), rgb[..., 2])


def _density(rgb: np.ndarray) -> np.ndarray:
    """Return the optical density, mean over the channels."""
    red, green, blue = np.moveaxis(rgb, 2, 0)
    return (_DENSITY[red] + _DENSITY[green] + _DENSITY[blue]) / 3


def _pen_rim(stroke: np.ndarray, um_per_px: float) -> np.ndarray:
    """Return pen marks with their rims: these would be texture."""
    if not stroke.any():
        return stroke
    return ndimage.binary_dilation(stroke, disk(_px(PEN_RADIUS_UM, um_per_px)))


def _texture(rgb: np.ndarray, um_per_px: float) -> np.ndarray:
    """Return the standard deviation of the grey level around each pixel."""
    size = _px(TEXTURE_UM, um_per_px, least=3) | 1
    # float64, and near 0: the difference of two large sums would be noise on smooth glass.
    centred = (rgb[..., 0].astype(np.float64) + rgb[..., 1] + rgb[..., 2]) / 3 - 240
    mean = ndimage.uniform_filter(centred, size)
    square = ndimage.uniform_filter(centred**2, size)
    return np.sqrt(np.maximum(square - mean**2, 0))


def _close(mask: np.ndarray, radius: int) -> np.ndarray:
    """Close gaps; by distances, since a large disk is slow, and with a margin, to keep the rims."""
    padded = np.pad(mask, radius + 1)
    grown = ndimage.distance_transform_edt(~padded) <= radius
    closed = ndimage.distance_transform_edt(grown) > radius
    return closed[radius + 1 : -radius - 1, radius + 1 : -radius - 1] | mask
