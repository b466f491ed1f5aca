"""Annotated regions of a slide, from QuPath: where to look for tissue, and where not to."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from skimage.draw import polygon2mask

from histogep.bitmask import BitMask, Window, windows
from histogep.jobs import InputError

log = logging.getLogger(__name__)

#: Classes of annotations that limit the tissue, and that are taken out of it (case does not matter).
INCLUDE = ("include", "region", "tissue")
EXCLUDE = ("exclude", "ignore", "artefact", "artifact")


@dataclass(frozen=True)
class Regions:
    """Polygons in level-0 px: each a list of rings (x, y), the first its outline, the rest holes."""

    include: Sequence[list[np.ndarray]]
    exclude: Sequence[list[np.ndarray]]

    def limit(self, mask: BitMask, *, px_per_px: tuple[float, float]) -> None:
        """Take off a mask what lies in no included polygon (if there are any), or in an excluded one.

        Parameters
        ----------
        mask
            Is changed.
        px_per_px
            Level-0 px in a mask pixel, along x and y.
        """
        for window in windows(mask.shape):
            values = mask.read(window)
            if not values.any():
                continue
            if self.include:
                values = values & _covered(self.include, window, px_per_px)
            values = values & ~_covered(self.exclude, window, px_per_px)
            mask.write(window, values)


def read_regions(path: str | Path) -> Regions:
    """Return the regions of a GeoJSON file that QuPath wrote.

    Annotations of other classes are left alone, and named in the log.

    Raises
    ------
    InputError
        If the file cannot be read, or holds no region to include or to exclude.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        features = content["features"] if isinstance(content, dict) else content
        found: dict[str, list[list[np.ndarray]]] = {"include": [], "exclude": []}
        others = set()
        for feature in features:
            name = _class_name((feature.get("properties") or {}).get("classification"))
            kind = (
                "include" if name in INCLUDE else "exclude" if name in EXCLUDE else None
            )  # fmt: skip
            if kind is None:
                others.add(name or "no class")
                continue
            found[kind] += _polygons(feature["geometry"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read as annotations ({error}): export them from QuPath as GeoJSON"
        ) from error
    if not found["include"] and not found["exclude"]:
        raise InputError(
            f"{path} has no polygon of the classes {', '.join(INCLUDE + EXCLUDE)} (its classes: "
            f"{', '.join(sorted(others)) or 'none'}): give the regions one of these in QuPath"
        )
    if others:
        log.info("%s: annotations of class %s are left alone", path, ", ".join(sorted(others)))
    return Regions(**found)


def _class_name(classification: object) -> str:
    """Return the class in lower case, without what marks a class as ignored in QuPath (*)."""
    name = classification.get("name") if isinstance(classification, dict) else classification
    return str(name or "").strip().rstrip("*").lower()


def _polygons(geometry: dict[str, object]) -> list[list[np.ndarray]]:
    kind, coordinates = geometry["type"], geometry["coordinates"]
    if kind not in ("Polygon", "MultiPolygon"):
        raise ValueError(f"a region is a {kind}, not a polygon")
    rings = [coordinates] if kind == "Polygon" else coordinates
    polygons = [[np.asarray(ring, float)[:, :2] for ring in polygon] for polygon in rings]
    if any(len(ring) < 3 or not np.isfinite(ring).all() for part in polygons for ring in part):
        raise ValueError("a polygon has fewer than three points")
    return polygons


def _covered(
    polygons: Sequence[list[np.ndarray]], window: Window, px_per_px: tuple[float, float]
) -> np.ndarray:
    """Return which pixels of a window have their centre in a polygon."""
    covered = np.zeros(window.shape, bool)
    scale, origin = np.array(px_per_px), np.array([window.left, window.top]) + 0.5
    for outline, *holes in polygons:
        places = outline / scale - origin
        if (places.max(0) < 0).any() or (places.min(0) > np.array(window.shape)[::-1]).any():
            continue
        inside = polygon2mask(window.shape, places[:, ::-1])
        for hole in holes:
            inside &= ~polygon2mask(window.shape, (hole / scale - origin)[:, ::-1])
        covered |= inside
    return covered
