"""Where the tissue of an H&E slide is, and where somebody wrote on the glass.

Saturation alone takes the pink haze around some sections for tissue. Haze, glass and mounting
medium are smooth while tissue is not, so the mask rests on texture at about 8 um per px, joined by
what is dense and coloured without texture (mucin, tissue out of focus).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage
from skimage.color import rgb2hsv
from skimage.filters import threshold_otsu
from skimage.measure import label, regionprops_table
from skimage.morphology import disk, remove_small_holes, remove_small_objects

from histogep.jobs import InputError
from histogep.slides import Slide

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
#: A mask of more pixels is made coarser: finding tissue holds some 90 bytes of each in memory.
MAX_MASK_PX = 4_000_000


@dataclass(frozen=True)
class TissueMask:
    """Tissue of a slide on a coarse grid.

    Attributes
    ----------
    mask
        Tissue without pen marks, bool (height, width).
    pen
        Pen marks, bool, same shape.
    thumbnail
        The pixels that the masks were made from, uint8 RGB.
    um_per_px
        Size of a mask pixel.
    px_per_px
        Level-0 px in a mask pixel, along x and y.
    n_fragments
        Pieces of tissue.
    """

    mask: np.ndarray
    pen: np.ndarray
    thumbnail: np.ndarray
    um_per_px: float
    px_per_px: tuple[float, float]
    n_fragments: int

    @property
    def tissue_mm2(self) -> float:
        """Area of the tissue in mm2."""
        return float(self.mask.sum()) * self.um_per_px**2 / 1e6

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
        tissue = self.mask[np.clip(row, 0, height - 1), np.clip(col, 0, width - 1)]
        return inside & tissue

    def _share(
        self, mask: np.ndarray, x_px: np.ndarray, y_px: np.ndarray, side_px: float
    ) -> np.ndarray:
        """Sum over squares with fractional edges, by interpolation of the integral image."""
        total = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
        total[1:, 1:] = mask.cumsum(0, dtype=np.float64).cumsum(1)
        centre = np.asarray(x_px, float), np.asarray(y_px, float)
        low, high = (
            [
                np.clip((axis + sign * side_px / 2) / step, 0, size)
                for axis, step, size in zip(centre, self.px_per_px, mask.shape[::-1], strict=True)
            ]
            for sign in (-1, 1)
        )
        corners = [(low, low, 1), (high, high, 1), (low, high, -1), (high, low, -1)]
        area = sum(
            sign * ndimage.map_coordinates(total, [ys[1], xs[0]], order=1, mode="nearest")
            for xs, ys, sign in corners
        )
        return (area / (side_px**2 / np.prod(self.px_per_px))).clip(0, 1).astype(np.float32)


def tissue_mask(slide: Slide, settings: Mapping[str, Any]) -> TissueMask:
    """Find the tissue of a slide.

    Parameters
    ----------
    slide
        The slide.
    settings
        mask_um: size in um of a mask pixel (8), larger on slides above 16 mm x 16 mm, so that the
        mask has at most `MAX_MASK_PX` pixels whatever the slide; min_fragment_mm2: least area in
        mm2 of a piece of tissue (0.02). Other keys are not looked at.

    Raises
    ------
    InputError
        If the slide is not bright-field (fluorescence), has no colour, or no tissue.
    """
    area_um2 = slide.width_px * slide.height_px * slide.mpp**2
    mask_um = max(
        float(settings.get("mask_um", 8.0)), slide.mpp, float(np.sqrt(area_um2 / MAX_MASK_PX))
    )
    thumbnail = slide.thumbnail(mask_um)
    height, width = thumbnail.shape[:2]
    px_per_px = (slide.width_px / width, slide.height_px / height)
    um_per_px = slide.mpp * float(np.sqrt(np.prod(px_per_px)))
    refuse_dark(thumbnail, slide=slide.slide)
    tissue, pen = segment(
        thumbnail,
        um_per_px=um_per_px,
        min_fragment_mm2=float(settings.get("min_fragment_mm2", 0.02)),
    )
    if not tissue.any():
        raise InputError(
            f"slide {slide.slide}: no tissue found on {slide.image}; if there is some, lower "
            "tissue.min_fragment_mm2, else leave the slide out of the sheet"
        )
    if _chroma(thumbnail)[tissue].mean() < DUST_CHROMA:
        raise InputError(f"slide {slide.slide}: {slide.image} has no colour: it is not H&E")
    return TissueMask(
        mask=tissue,
        pen=pen,
        thumbnail=thumbnail,
        um_per_px=um_per_px,
        px_per_px=px_per_px,
        n_fragments=int(label(tissue, connectivity=2).max()),
    )


def refuse_dark(rgb: np.ndarray, *, slide: str) -> None:
    """Raise an InputError if most of an image is dark, as fluorescence is."""
    if (rgb.max(axis=2) < DARK_LEVEL).mean() > DARK_SHARE:
        raise InputError(
            f"slide {slide}: its background is dark (fluorescence?), so it is not H&E; "
            "leave it out of the slides sheet"
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
    pen = find_pen(rgb, um_per_px=um_per_px)
    values = rgb.astype(np.float32)
    # Strokes are painted over with glass, or their rims would be texture.
    pen_rim = ndimage.binary_dilation(pen, disk(max(1, round(PEN_RADIUS_UM / um_per_px))))
    grey = values.mean(axis=2)
    texture = _local_sd(grey, size=max(3, round(TEXTURE_UM / um_per_px) | 1))
    low, high = np.log1p(TEXTURE_BOUNDS)
    clean = np.log1p(texture[~pen_rim]) if not pen_rim.all() else np.zeros(1)
    threshold = threshold_otsu(clean) if np.ptp(clean) > 0 else high
    rough = np.log1p(texture) > np.clip(threshold, low, high)
    density = -np.log((values + 1) / 256).mean(axis=2)
    smooth = ~rough & ~pen_rim & (density < GLASS_OD)
    # With hardly any smooth bright ground the image is all tissue, and glass is taken as white.
    has_glass = smooth.mean() > 0.01
    glass_density = np.percentile(density[smooth], 25) if has_glass else 0.0
    chroma = _chroma(rgb)
    glass_chroma = np.median(chroma[smooth]) if has_glass else 0.0
    saturation = chroma / np.maximum(values.max(axis=2), 1)
    dense = (density > glass_density + DENSE_OD) & (saturation > DENSE_SATURATION)
    radius = max(1, round(CLOSING_UM / um_per_px))
    # The texture of an edge reaches half a window onto the glass; closing and opening keep the size.
    tissue = _close(rough | dense, radius) & ~pen_rim | (dense & ~pen)
    tissue = ndimage.binary_opening(tissue, disk(max(1, radius // 3)))
    px_per_mm2 = 1e6 / um_per_px**2
    tissue = remove_small_holes(tissue, max_size=max(1, round(HOLE_MM2 * px_per_mm2)))
    tissue &= ~pen
    tissue = remove_small_objects(tissue, max_size=max(1, round(min_fragment_mm2 * px_per_mm2)))
    return _without_dust(tissue, chroma - glass_chroma, rough), pen


def find_pen(rgb: np.ndarray, *, um_per_px: float) -> np.ndarray:
    """Return where a green, blue, red or black pen was used, bool.

    Hues of pens that haematoxylin and eosin never have, in areas larger than blood or pigment.
    """
    hue, saturation, value = np.moveaxis(rgb2hsv(rgb), 2, 0)
    degrees = hue * 360
    green = (degrees > 75) & (degrees < 185) & (saturation > 0.18)
    blue = (degrees >= 185) & (degrees < 222) & (saturation > 0.35)
    red = ((degrees < 12) | (degrees > 350)) & (saturation > 0.68) & (value > 0.45)
    black = (value < 0.36) & (saturation < 0.6)
    radius = max(1, round(PEN_RADIUS_UM / um_per_px))
    pen = np.zeros(rgb.shape[:2], bool)
    for colour in (green, blue, red, black):
        pen |= ndimage.binary_opening(colour, disk(radius))
    return ndimage.binary_dilation(pen, disk(radius), mask=saturation > 0.15) if pen.any() else pen


def _chroma(rgb: np.ndarray) -> np.ndarray:
    return rgb.max(axis=2).astype(np.float32) - rgb.min(axis=2)


def _local_sd(grey: np.ndarray, *, size: int) -> np.ndarray:
    # float64, and centred: the difference of two large sums would be noise on smooth glass.
    centred = grey.astype(np.float64) - grey.mean(dtype=np.float64)
    mean = ndimage.uniform_filter(centred, size)
    square = ndimage.uniform_filter(centred**2, size)
    return np.sqrt(np.maximum(square - mean**2, 0))


def _close(mask: np.ndarray, radius: int) -> np.ndarray:
    """Close gaps; by distances, since a large disk is slow, and with a margin, to keep the rims."""
    padded = np.pad(mask, radius + 1)
    if not padded.any():
        return mask
    grown = ndimage.distance_transform_edt(~padded) <= radius
    closed = ndimage.distance_transform_edt(grown) > radius
    return closed[radius + 1 : -radius - 1, radius + 1 : -radius - 1] | mask


def _without_dust(tissue: np.ndarray, chroma: np.ndarray, rough: np.ndarray) -> np.ndarray:
    """Drop pieces without colour: hairs, cover-slip edges, stitching."""
    pieces = label(tissue, connectivity=2)
    if pieces.max() == 0:
        return tissue
    shown = np.where(rough, chroma, np.nan)
    means = regionprops_table(
        pieces, np.where(np.isnan(shown), chroma, shown), properties=("label", "mean_intensity")
    )
    dust = means["label"][means["mean_intensity"] < DUST_CHROMA]
    return tissue & ~np.isin(pieces, dust)
