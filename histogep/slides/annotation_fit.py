"""Check that annotated areas lie on what they annotate, and explain it where they do not."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import shapely

from histogep.errors import InputError
from histogep.warned import decides

log = logging.getLogger(__name__)

#: Share of the spots in annotated areas below which a warning is logged.
FEW = 0.5
#: Share below which the file is refused, if another scale or order of the coordinates explains it.
HARDLY_ANY = 0.1
#: Share that an explanation must bring into the areas to be accepted, where hardly any is now.
EXPLAINED = 0.8
#: Share from which an explanation is accepted although some spots already lie in the areas.
ALL_EXPLAINED = 0.9
#: By how much a smaller or larger copy of an image differs from it.
_FACTORS = (2.0, 4.0, 8.0, 16.0, 32.0, 0.5, 0.25, 0.125)


def points_within(
    polygons: Sequence[shapely.Polygon] | np.ndarray, points: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return which points lie in which polygons, including points on an edge.

    Parameters
    ----------
    polygons
        Of any shape; rings that cross themselves follow the even-odd rule.
    points
        (n, 2).

    Returns
    -------
    tuple of numpy.ndarray
        Indices of points and of polygons, one pair for each point in a polygon.
    """
    tree = shapely.STRtree(shapely.points(points))
    pairs = tree.query(np.asarray(polygons, dtype=object), predicate="intersects")
    return pairs[1], pairs[0]


def check_fit(
    where: str,
    polygons: Sequence[shapely.Polygon],
    points: np.ndarray,
    *,
    n_inside: int,
    n_touching: int,
    n_areas: int,
    mpp: float | None = None,
) -> None:
    """Log how well annotated areas and spots match; refuse annotations that do not match.

    Parameters
    ----------
    where
        File and slide, for messages.
    polygons
        The areas, in level-0 px.
    points
        Centres of the spots, (n, 2), level-0 px.
    n_inside
        Number of spots in an area.
    n_touching, n_areas
        Number of areas that contain a spot, and number of areas.
    mpp
        um per px, to recognise annotations in um.

    Raises
    ------
    InputError
        If no spot lies in an area; or fewer than `HARDLY_ANY` do and another scale, or x and y
        exchanged, brings most of them in; or fewer than `FEW` do and another scale brings
        nearly all in and ends where the spots do.
    """
    n = len(points)
    share = n_inside / max(1, n)
    log.info(
        "%s: %d of %d annotated areas hold spots, %d of %d spots lie in one",
        *(where, n_touching, n_areas, n_inside, n),
    )
    said = f"{where}: {n_inside} of {n} spots lie in an annotated area"
    if share < FEW:
        explained, explanation, fits = explain_misfit(polygons, points, mpp)
        would = f"{explained:.0%} of them would if {explanation}"
        if explained > max(EXPLAINED if share < HARDLY_ANY else ALL_EXPLAINED, 1.5 * share) and (
            fits or share < HARDLY_ANY
        ):
            raise InputError(
                f"{said}, but {would}: export the annotations in px of the full image; if they are "
                "right, annotate the other spots as well, with a text of labels.undetermined"
            )
        if n_inside == 0:
            raise InputError(
                f"{said}: are the areas in px of the full image, x before y, from its top left corner?"
            )
        log.warning(
            "%s%s", said, f"; {would}" if explained > 2 * share else "", **decides("tumour")
        )
    if n_touching < FEW * n_areas:
        log.warning(
            "%s: %d of %d annotated areas hold no spot", where, n_areas - n_touching, n_areas
        )


def explain_misfit(
    polygons: Sequence[shapely.Polygon], points: np.ndarray, mpp: float | None = None
) -> tuple[float, str, bool]:
    """Return the explanation that would bring most points into the areas.

    Parameters
    ----------
    polygons, points, mpp
        As for `check_fit`.

    Returns
    -------
    tuple
        The share of the points that would lie in an area, the explanation, and whether the areas
        would also end, to the right and below, about where the points do.
    """

    def likely(told: tuple[float, str, bool]) -> float:
        return told[0] + 0.2 * told[2]

    return max(_explanations(polygons, points, mpp), key=likely, default=(0.0, "", False))


def _explanations(
    polygons: Sequence[shapely.Polygon], points: np.ndarray, mpp: float | None
) -> Iterator[tuple[float, str, bool]]:
    areas = np.asarray(polygons, dtype=object)
    if not len(areas) or not len(points):
        return
    ends = np.maximum(shapely.bounds(areas)[:, 2:].max(0), 1e-9)

    def tried(changed: np.ndarray, told: str) -> tuple[float, str, bool]:
        inside = len(np.unique(points_within(areas, changed)[0]))
        ratio = changed.max(0) / ends
        return inside / len(points), told, bool((ratio > 0.75).all() and (ratio < 1.33).all())

    yield tried(points[:, ::-1], "x and y were exchanged")
    factors = {factor: f"{factor:g}" for factor in _FACTORS}
    apart = points.max(0) / ends
    factor = float(np.mean(apart))
    if 0.8 < apart[0] / max(apart[1], 1e-9) < 1.25 and not any(
        0.8 < factor / known < 1.25 for known in (1, *_FACTORS)
    ):
        factors[factor] = f"about {factor:.3g}"
    for factor, told in factors.items():
        yield tried(points / factor, f"their coordinates were multiplied by {told}")
    if mpp:
        yield tried(points * mpp, f"they were in um, of {mpp:.4g} um per px")
