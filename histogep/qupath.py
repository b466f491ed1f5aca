"""Tiles as a GeoJSON file that QuPath opens, written feature by feature."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from histogep.files import complete

#: Class of a tile by its tumour probability, with QuPath's colour (red, green, blue).
TUMOUR_CLASS = {"name": "Tumor", "color": [213, 94, 0]}
OTHER_CLASS = {"name": "Other", "color": [0, 114, 178]}
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
