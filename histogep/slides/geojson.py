"""GeoJSON to and from QuPath: annotations are read, outlines of tissue and tiles are written.

Coordinates are level-0 px from the corner where QuPath's begin (`histogep.slides.reader.Slide.origin_px`).
"""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from skimage.measure import find_contours, points_in_poly

from histogep.errors import InputError
from histogep.files import complete, given_file

log = logging.getLogger(__name__)

#: Class of a tile by its tumour probability, with QuPath's colour (red, green, blue).
TUMOUR_CLASS = {"name": "Tumor", "color": [213, 94, 0]}
TISSUE_CLASS = {"name": "Tissue", "color": [0, 158, 115]}
OTHER_CLASS = {"name": "Other", "color": [0, 114, 178]}
#: Outlines of tissue are traced on a mask of at most this many px a side.
OUTLINE_PX = 600
#: Coordinates beyond this are of no image: 120 mm at 0.05 um per px are 2.4 million.
MOST_PX = 1e8
#: Largest file that is read, in bytes: one of more holds cells, not annotations.
MOST_BYTES = 2**30
#: Rings of more points that cross themselves are not divided: it takes the square of their points.
MOST_REPAIRED = 10_000
#: Objects of QuPath that are not annotations, by their type without `Path` and `Object`.
_OBJECTS = ("detection", "cell", "nucleus", "tile", "tmacore", "root")
_WITHOUT_AREA = ("Point", "MultiPoint", "LineString", "MultiLineString")
_NAMESPACE = uuid.UUID("6f3c2d0e-4a52-5a0b-9f0e-3d2b8f1c7a55")


@dataclass(frozen=True)
class Annotation:
    """One annotated area.

    Attributes
    ----------
    label
        Which feature of the file it is, for messages: its number from 1 and its name or id.
    text
        Its class as QuPath shows it (`Tumor: Positive` for a derived one); its name where the file
        knows no classes; "" for neither.
    polygons
        Its parts as shapely polygons, in px; they may overlap, and together they are the area. Up to
        `MOST_REPAIRED` points they are valid. What is inside of a larger one that crosses itself
        follows the even-odd rule, as `Regions.limit` and shapely's tests of points have it.
    """

    label: str
    text: str
    polygons: tuple[shapely.Polygon, ...]

    @property
    def area_px2(self) -> float:
        """Sum of the areas of the polygons."""
        return float(shapely.area(self.polygons).sum())

    @property
    def parts(self) -> tuple[str, ...]:
        """The class and what it derives, in lower case, without the * of classes QuPath ignores."""
        return tuple(part.strip().rstrip("*").strip().lower() for part in self.text.split(":"))


def read_annotations(path: str | Path) -> list[Annotation]:
    """Return the annotated areas of a GeoJSON file, in its order.

    Read are a FeatureCollection, a list of features, one Feature, a bare geometry, and any of these
    within each other, as QuPath 0.2 to 0.6 and other programs write them, in UTF-8 or UTF-16.
    Detections, cells and tiles are not annotations. What has no area (points, lines, no or an empty
    geometry) and what has coordinates that are not finite is left out, with a warning that names
    the features. Rings that are not closed are closed, and those that cross themselves are divided
    at the crossings.

    Raises
    ------
    InputError
        If the file is not GeoJSON; the message names the feature.
    """
    path = Path(path)
    with given_file(path, "GeoJSON of annotations: export it again from QuPath"):
        if path.stat().st_size > MOST_BYTES:
            raise InputError(
                f"{path} has {path.stat().st_size / 2**30:.1f} GiB: export the annotations only, "
                "without cells and detections"
            )
        content = path.read_bytes()
        if content.startswith((b"\x1f\x8b", b"PK")):
            raise InputError(f"{path} is compressed: unpack it, or export it uncompressed")
        try:
            # Of bytes the parser tells UTF-8, UTF-16 and their byte order marks by itself.
            features = list(_features(json.loads(content)))
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path} cannot be read as GeoJSON ({str(error).splitlines()[0]}): "
                "export it again from QuPath"
            ) from error
    found, objects = [], 0
    planes: dict[tuple[Any, ...], str] = {}
    left_out: dict[str, list[str]] = {}
    repaired: list[str] = []
    for number, feature in enumerate(features, start=1):
        label = _label(number, feature)
        if _is_object(feature):
            objects += 1
            continue
        try:
            polygons, crossing = _areas(feature.get("geometry"))
        except _LeftOut as error:
            left_out.setdefault(str(error), []).append(label)
            continue
        except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            raise InputError(
                f"{path}: the geometry of {label} cannot be understood "
                f"({str(error).splitlines()[0] if str(error) else type(error).__name__}): "
                "export it again from QuPath"
            ) from error
        if crossing:
            repaired.append(label)
        found.append(Annotation(label, _class_text(feature), polygons))
        planes.setdefault(_plane(feature), label)
    if len(planes) > 1:
        first, second, *_ = planes.items()
        raise InputError(
            f"{path}: {first[1]} and {second[1]} are drawn on different planes of a stack (z, t "
            f"{first[0]} and {second[0]}), and a slide has one: export the annotations of one plane"
        )
    log.info(
        "%s: %d objects, of which %d are annotated areas and %d detections, cells or tiles",
        *(path, len(features), len(found), objects),
    )
    for reason, labels in left_out.items():
        log.warning("%s: %d left out, %s: %s", path, len(labels), reason, _listed(labels))
    if repaired:
        log.warning(
            "%s: %d areas cross themselves and are divided at the crossings: %s",
            *(path, len(repaired), _listed(repaired)),
        )
    if not found:
        reasons = [f"{len(labels)} {reason}" for reason, labels in left_out.items()]
        if objects:
            reasons.append(f"{objects} detections, cells or tiles, which are not annotations")
        raise InputError(
            f"{path} holds no annotated area ({'; '.join(reasons) or 'it is empty'}): "
            "draw areas in QuPath and export the annotations"
        )
    return found


class _LeftOut(Exception):
    """Why a feature has no area."""


def _features(content: Any) -> Iterator[dict[str, Any]]:
    """Give the features of what a GeoJSON file holds, however it is nested."""
    if isinstance(content, list):
        for item in content:
            yield from _features(item)
        return
    if not isinstance(content, dict):
        raise InputError(
            f"a feature is expected, but {type(content).__name__} {str(content)[:40]!r} is found: "
            "it is not GeoJSON"
        )
    kind = content.get("type")
    if kind == "FeatureCollection" or (kind is None and "features" in content):
        features = content.get("features")
        if not isinstance(features, list):
            raise InputError("its `features` are not a list: it is not GeoJSON")
        yield from _features(features)
    elif kind == "Feature" or "geometry" in content:
        yield content
    elif "coordinates" in content or "geometries" in content:
        yield {"type": "Feature", "geometry": content, "properties": {}}
    else:
        raise InputError(
            f"an object of type {kind!r} is neither a feature nor a geometry: it is not GeoJSON"
        )


def _plane(feature: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return z and t of the plane on which QuPath drew a feature, 0 where it does not say."""
    geometry = feature.get("geometry")
    for holder in (geometry, feature, _properties(feature)):
        plane = holder.get("plane") if isinstance(holder, Mapping) else None
        if isinstance(plane, Mapping):
            return tuple(plane.get(axis) or 0 for axis in "zt")
    return 0, 0


def _properties(feature: Mapping[str, Any]) -> Mapping[str, Any]:
    properties = feature.get("properties")
    return properties if isinstance(properties, Mapping) else {}


def _label(number: int, feature: Mapping[str, Any]) -> str:
    name = _properties(feature).get("name") or feature.get("id")
    return f"feature {number}" + (f" {str(name)[:60]!r}" if name else "")


def _is_object(feature: Mapping[str, Any]) -> bool:
    """Return whether a feature is a detection, cell, tile or core of QuPath, by any version."""
    properties = _properties(feature)
    kind = (
        properties.get("objectType")  # 0.4 and later
        or properties.get("object_type")  # 0.3
        or feature.get("objectType")
        or (feature.get("id") if str(feature.get("id")).endswith("Object") else "")  # 0.2
    )
    kind = re.sub("[^a-z]", "", str(kind or "").lower())
    kind = kind.removeprefix("path").removesuffix("object")
    return kind in _OBJECTS or "nucleusGeometry" in feature


def _class_text(feature: Mapping[str, Any]) -> str:
    properties = _properties(feature)
    given = properties.get("classification", properties.get("name"))
    if isinstance(given, Mapping):
        names = given.get("names")
        given = given.get("name") or (": ".join(map(str, names)) if isinstance(names, list) else "")
    elif isinstance(given, list):
        given = ": ".join(map(str, given))
    return str(given or "").strip()


def _areas(geometry: Any) -> tuple[tuple[shapely.Polygon, ...], bool]:
    """Return the polygons of a geometry, and whether any of its rings crosses itself."""
    if geometry is None:
        raise _LeftOut("without a geometry")
    found, crossing = [], False
    for polygon in _polygons(geometry):
        if shapely.get_num_coordinates(polygon) > MOST_REPAIRED or shapely.is_valid(polygon):
            found.append(polygon)
        else:
            crossing = True
            outline, *holes = (
                shapely.make_valid(shapely.Polygon(ring), method="structure")
                for ring in (polygon.exterior, *polygon.interiors)
            )
            found.extend(_parts(outline.difference(shapely.union_all(holes))))
    found = [
        polygon
        for polygon in found
        if shapely.get_num_coordinates(polygon) > MOST_REPAIRED or shapely.area(polygon) > 0
    ]
    if not found:
        kind = str(geometry.get("type"))
        raise _LeftOut("points or lines, which have no area" if kind in _WITHOUT_AREA else "empty")
    return tuple(found), crossing


def _parts(geometry: shapely.Geometry) -> Iterator[shapely.Polygon]:
    """Give the polygons of what a repair made."""
    for part in shapely.get_parts(geometry):
        if part.geom_type == "Polygon":
            yield part
        elif part.geom_type in ("MultiPolygon", "GeometryCollection"):
            yield from _parts(part)


def _polygons(geometry: Any) -> Iterator[shapely.Polygon]:
    """Give the polygons of a geometry, closed; what has no area is passed over."""
    if geometry is None:
        return
    if not isinstance(geometry, Mapping):
        raise TypeError(f"it is {type(geometry).__name__}, not a geometry")
    kind = geometry.get("type")
    if kind == "GeometryCollection":
        for part in geometry["geometries"]:
            yield from _polygons(part)
    elif kind in ("Polygon", "MultiPolygon"):
        coordinates = geometry["coordinates"]
        for rings in [coordinates] if kind == "Polygon" else coordinates:
            closed = [ring for ring in map(_ring, rings) if ring is not None]
            if closed and len(rings) and _ring(rings[0]) is not None:
                yield shapely.Polygon(closed[0], closed[1:])
    elif kind not in _WITHOUT_AREA:
        raise ValueError(f"its type {kind!r} is unknown")


def _ring(points: Any) -> np.ndarray | None:
    """Return the points (n, 2) of a closed ring, None for one without an area."""
    if not len(points):
        return None
    ring = np.array([point[:2] for point in points])
    if ring.dtype.kind not in "iuf" or ring.ndim != 2 or ring.shape[1] != 2:
        if ring.dtype.kind == "O" and any(value is None for value in ring.ravel()):
            raise _LeftOut("with coordinates that are not finite")
        raise TypeError("its coordinates are not pairs of numbers")
    ring = ring.astype(np.float64)
    if not (np.abs(ring) < MOST_PX).all():
        raise _LeftOut("with coordinates that are not finite")
    if (ring[0] != ring[-1]).any():
        ring = np.concatenate([ring, ring[:1]])
    return ring if len(ring) >= 4 else None


def _listed(labels: list[str]) -> str:
    return ", ".join(labels[:5]) + (f" and {len(labels) - 5} more" if len(labels) > 5 else "")


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
    classes = [
        None if np.isnan(p) else TUMOUR_CLASS if p >= threshold else OTHER_CLASS for p in tumour
    ]
    write_squares(
        path,
        name=name,
        centres_px=centres_px,
        side_px=side_px,
        classes=classes,
        measurements={"tumour probability": tumour, **measurements},
    )


def write_squares(
    path: str | Path,
    *,
    name: str,
    centres_px: np.ndarray,
    side_px: float,
    classes: Sequence[Mapping[str, Any] | None],
    measurements: Mapping[str, np.ndarray],
) -> None:
    """Write square tiles, each with a class of its own, as a GeoJSON FeatureCollection for QuPath.

    Parameters
    ----------
    path, name, centres_px, side_px
        As of `write_tiles`.
    classes
        Of each tile QuPath's class: name and color (red, green, blue); None for none.
    measurements
        QuPath's measurement list: numbers by name, (n,) each; missing ones are left out.
    """
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]]) * side_px / 2
    with complete(path) as temporary, open(temporary, "w", encoding="utf-8") as handle:
        handle.write('{"type": "FeatureCollection", "features": [')
        for i, centre in enumerate(centres_px):
            properties = {
                "objectType": "tile",
                "measurements": {
                    key: round(float(values[i]), 5)
                    for key, values in measurements.items()
                    if np.isfinite(values[i])
                },
            }
            if (kind := classes[i]) is not None:
                properties["classification"] = dict(kind)
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
    path: str | Path, *, name: str, mask: np.ndarray, px_per_px: tuple[float, float]
) -> None:
    """Write the pieces of a tissue mask, with their holes, as annotations of the class Tissue.

    Parameters
    ----------
    path
        File to write; complete or absent.
    name
        Id of the slide.
    mask
        The tissue, bool (height, width). Of a large one every n-th pixel counts, so that there are at
        most `OUTLINE_PX` a side.
    px_per_px
        Level-0 px in a mask pixel, along x and y.
    """
    step = max(1, -(-max(mask.shape) // OUTLINE_PX))
    padded = np.pad(mask[::step, ::step], 1).astype(np.float64)
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
