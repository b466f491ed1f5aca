"""Tiles and tissue as GeoJSON files that QuPath opens, written feature by feature."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from skimage.measure import find_contours, points_in_poly

from histogep.bitmask import BitMask
from histogep.files import complete

#: Class of a tile by its tumour probability, with QuPath's colour (red, green, blue).
TUMOUR_CLASS = {"name": "Tumor", "color": [213, 94, 0]}
TISSUE_CLASS = {"name": "Tissue", "color": [0, 158, 115]}
OTHER_CLASS = {"name": "Other", "color": [0, 114, 178]}
#: Outlines of tissue are traced on a mask of at most this many px a side.
OUTLINE_PX = 600
_NAMESPACE = uuid.UUID("6f3c2d0e-4a52-5a0b-9f0e-3d2b8f1c7a55")


def write_tiles(
    path: str | Path,
    *,
    name: str,
    centres_px: np.ndarray,
    side_px: float,
    tumour: np.ndarray,
    measurements: Mapping[str, np.ndarray],
    threshold: float = 0.5,
) -> None:
    """Write square tiles with their class and measurements as a GeoJSON FeatureCollection.

    Parameters
    ----------
    path
        File to write; complete or absent.
    name
        Id of the slide; tile ids derive from it, so the same tiles give the same file.
    centres_px
        Centres (x, y), (n, 2), level-0 px.
    side_px
        Side of a tile, level-0 px.
    tumour
        Probability, (n,); NaN gives a tile no class.
    measurements
        Further numbers by name, (n,) each; missing ones are left out.
    threshold
        Probability from which a tile is classed as tumour.
    """
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]]) * side_px / 2
    columns = {"tumour probability": tumour, **measurements}
    with complete(path) as temporary, open(temporary, "w", encoding="utf-8") as handle:
        handle.write('{"type": "FeatureCollection", "features": [')
        for i, centre in enumerate(centres_px):
            properties = {
                "objectType": "tile",
                "measurements": {
                    key: round(float(values[i]), 5)
                    for key, values in columns.items()
                    if np.isfinite(values[i])
                },
            }
            if np.isfinite(tumour[i]):
                kind = TUMOUR_CLASS if tumour[i] >= threshold else OTHER_CLASS
                properties["classification"] = kind
            ring = np.round(centre + corners, 1).tolist()
            feature = {
                "type": "Feature",
                "id": str(uuid.uuid5(_NAMESPACE, f"{name}/{i}")),
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": properties,
            }
            handle.write(("," if i else "") + "\n" + json.dumps(feature))
        handle.write("\n]}\n")


def write_outlines(
    path: str | Path, *, name: str, mask: BitMask, px_per_px: tuple[float, float]
) -> None:
    """Write the pieces of a tissue mask, with their holes, as annotations of the class Tissue.

    Parameters
    ----------
    path
        File to write; complete or absent.
    name
        Id of the slide.
    mask
        The tissue; every so-manieth pixel of a large one, so that at most `OUTLINE_PX` a side count.
    px_per_px
        Level-0 px in a mask pixel, along x and y.
    """
    step = max(1, -(-max(mask.shape) // OUTLINE_PX))
    padded = np.pad(mask.every(step), 1).astype(np.float64)
    scale = np.array(px_per_px) * step
    # Between the centres of two pixels lies their edge; the padding shifts by one pixel.
    rings = [(ring[:, ::-1] - 0.5) * scale for ring in find_contours(padded, 0.5)]
    outlines = [ring for ring in rings if _signed_area(ring) > 0]
    holes = [ring for ring in rings if _signed_area(ring) < 0]
    polygons = [[outline] for outline in outlines]
    for hole in holes:
        # A piece may lie in the hole of another: the smallest outline around a hole is its own.
        around = [i for i, ring in enumerate(outlines) if points_in_poly(hole[:1], ring)[0]]
        polygons[min(around, key=lambda i: abs(_signed_area(outlines[i])))].append(hole)
    features = [
        {
            "type": "Feature",
            "id": str(uuid.uuid5(_NAMESPACE, f"{name}/tissue/{i}")),
            "geometry": {
                "type": "Polygon",
                "coordinates": [np.round(ring, 1).tolist() for ring in polygon],
            },
            "properties": {"objectType": "annotation", "classification": TISSUE_CLASS},
        }
        for i, polygon in enumerate(polygons)
    ]
    with complete(path) as temporary:
        temporary.write_text(json.dumps({"type": "FeatureCollection", "features": features}) + "\n")


def _signed_area(ring: np.ndarray) -> float:
    x, y = ring.T
    return float(x[:-1] @ y[1:] - x[1:] @ y[:-1]) / 2
