"""Annotated regions of a slide, from QuPath: where to look for tissue, and where not to."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely

from histogep.errors import BadSlide, InputError
from histogep.slides.annotation_fit import HARDLY_ANY, explain_misfit
from histogep.slides.geojson import read_annotations
from histogep.warned import decides

log = logging.getLogger(__name__)

#: Classes of annotations that limit the tissue, and that are taken out of it (case does not matter).
INCLUDE = ("include", "region", "tissue")
EXCLUDE = ("exclude", "ignore", "artefact", "artifact")
#: Mask rows that are looked at together.
BAND_PX = 256
#: Crossings of edges and rows that are held at once.
_MOST_CROSSINGS = 4_000_000
#: Places on tissue that annotations are compared with.
_SAMPLE = 4000


@dataclass(frozen=True)
class Regions:
    """Polygons in level-0 px.

    Attributes
    ----------
    include, exclude
        Where tissue counts, and where not.
    path
        The file, for messages.
    """

    include: Sequence[shapely.Polygon]
    exclude: Sequence[shapely.Polygon]
    path: str = ""

    def limit(
        self, mask: np.ndarray, *, px_per_px: tuple[float, float], slide: str = "", mpp: float = 0
    ) -> None:
        """Take off a mask what lies in no included polygon (if there are any), or in an excluded one.

        Parameters
        ----------
        mask
            The tissue, bool (height, width); is changed.
        px_per_px
            Level-0 px in a mask pixel, along x and y.
        slide, mpp
            Its id and um per px, for messages.

        Raises
        ------
        BadSlide
            If nothing or hardly anything lies in the regions and their scale explains it.
        """
        touching = {"include": np.zeros(len(self.include), bool)}
        touching["exclude"] = np.zeros(len(self.exclude), bool)
        edges = {
            "include": [_edges(polygon, px_per_px) for polygon in self.include],
            "exclude": [_edges(polygon, px_per_px) for polygon in self.exclude],
        }
        n_before, points = np.count_nonzero(mask), _places(mask, px_per_px)
        for top in range(0, len(mask), BAND_PX):
            band = mask[top : top + BAND_PX]
            if not band.any():
                continue
            excluded = _covered(edges["exclude"], top, band, touching["exclude"])
            if self.include:
                band &= _covered(edges["include"], top, band, touching["include"])
            band &= ~excluded
        n_after = np.count_nonzero(mask)
        where = f"slide {slide}: {self.path}"
        log.info(
            "%s: %.1f %% of the tissue is left; %d of %d included and %d of %d excluded areas lie on it",
            *(where, 100 * n_after / max(1, int(n_before))),
            *(n for name in ("include", "exclude") for n in _counts(touching[name])),
        )
        for name, touched in touching.items():
            if not touched.all():
                log.warning("%s: %d of %d areas to %s touch no tissue",
                            where, (~touched).sum(), len(touched), name)  # fmt: skip
        if n_before and n_after < HARDLY_ANY * n_before:
            self._explain(where, points, n_after / n_before, mpp)

    def _explain(self, where: str, points: np.ndarray, left: float, mpp: float) -> None:
        """Warn of regions that leave hardly any tissue, and refuse those that leave none."""
        explained, explanation, _ = explain_misfit(self.include, points, mpp)
        would = f"; {explained:.0%} would be if {explanation}" if explained > 2 * left else ""
        if left > 0:
            log.warning(
                "%s: only %.1f %% of the tissue is left%s",
                *(where, 100 * left, would),
                **decides("slide"),
            )
            return
        raise BadSlide(
            f"{where}: none of its tissue lies in the annotated regions{would}; annotate them in the "
            "pixels of this image"
        )


def read_regions(path: str | Path) -> Regions:
    """Return the regions of a GeoJSON file that QuPath wrote.

    Annotations of other classes are left alone, and named in the log. A class that is derived
    (`Tissue: Frozen`) counts as the one it derives from, but as excluded if any part of it is so.

    Raises
    ------
    InputError
        If the file cannot be read, or holds no region to include or to exclude.
    """
    include: list[shapely.Polygon] = []
    exclude: list[shapely.Polygon] = []
    others = set()
    for annotation in read_annotations(path):
        parts = annotation.parts
        if any(part in EXCLUDE for part in parts):
            exclude.extend(annotation.polygons)
        elif parts[0] in INCLUDE:
            include.extend(annotation.polygons)
        else:
            others.add(annotation.text.lower() or "no class")
    if not include and not exclude:
        raise InputError(
            f"{path} has no polygon of the classes {', '.join(INCLUDE + EXCLUDE)} (its classes: "
            f"{', '.join(sorted(others))}): give the regions one of these in QuPath"
        )
    if others:
        log.info("%s: annotations of class %s are left alone", path, ", ".join(sorted(others)))
    return Regions(include, exclude, str(path))


def _counts(touched: np.ndarray) -> tuple[int, int]:
    return int(touched.sum()), len(touched)


def _places(mask: np.ndarray, px_per_px: tuple[float, float]) -> np.ndarray:
    """Return some places on tissue (x, y), (n, 2), level-0 px."""
    step = max(1, round((np.count_nonzero(mask) / _SAMPLE) ** 0.5))
    row, col = np.nonzero(mask[::step, ::step])
    return (np.column_stack([col, row]) * step + 0.5) * np.array(px_per_px)


def _edges(polygon: shapely.Polygon, px_per_px: tuple[float, float]) -> np.ndarray:
    """Return the edges of all rings as (x0, y0, x1, y1) with y0 < y1; pixel centres are whole."""
    rings = [shapely.get_coordinates(ring) for ring in (polygon.exterior, *polygon.interiors)]
    edges = np.concatenate([np.hstack([ring[:-1], ring[1:]]) for ring in rings])
    edges = edges / np.array(px_per_px * 2) - 0.5
    down = edges[:, 1] > edges[:, 3]
    edges[down] = edges[down][:, [2, 3, 0, 1]]
    return edges[edges[:, 1] < edges[:, 3]]


def _covered(
    areas: Sequence[np.ndarray], top: int, tissue: np.ndarray, touching: np.ndarray
) -> np.ndarray:
    """Return which pixels of a band of tissue have their centre in an area; note which hold tissue."""
    covered = np.zeros(tissue.shape, bool)
    for number, edges in enumerate(areas):
        # Rows whose centres an edge crosses: from its upper end to just above its lower one.
        first = np.ceil(np.maximum(edges[:, 1], top)).astype(np.int64)
        count = np.ceil(np.minimum(edges[:, 3], top + len(tissue))).astype(np.int64) - first
        here = np.flatnonzero(count > 0)
        if not len(here):
            continue
        parity = _parity(edges[here], first[here] - top, count[here], top, tissue.shape)
        covered |= parity
        touching[number] |= bool((parity & tissue).any())
    return covered


def _parity(
    edges: np.ndarray, first: np.ndarray, count: np.ndarray, top: int, shape: tuple[int, int]
) -> np.ndarray:
    """Return where an odd number of edges lies to the left of a pixel's centre: inside."""
    height, width = shape
    turns = np.zeros(height * (width + 1), np.uint8)
    pieces = np.append(np.searchsorted(count.cumsum(), np.arange(0, count.sum(), _MOST_CROSSINGS)),
                       len(edges))  # fmt: skip
    for start, stop in zip(pieces[:-1], pieces[1:], strict=True):
        x0, y0, x1, y1 = edges[start:stop].T
        crossed = count[start:stop]
        edge = np.repeat(np.arange(stop - start), crossed)
        row = np.arange(len(edge)) - (crossed.cumsum() - crossed)[edge] + first[start:stop][edge]
        x = x0[edge] + (row + top - y0[edge]) * ((x1 - x0) / (y1 - y0))[edge]
        col = np.ceil(np.clip(x, 0, width)).astype(np.int64)
        place = row * (width + 1) + col
        turns ^= (np.bincount(place, minlength=len(turns)) & 1).astype(np.uint8)
    inside = np.cumsum(turns.reshape(height, width + 1), axis=1, dtype=np.uint8)
    return (inside[:, :width] & 1).astype(bool)
