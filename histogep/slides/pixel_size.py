"""The pixel size of a slide: all evidence, the value that is used, and what contradicts it."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import openslide

from histogep.errors import BadSlide
from histogep.files import given_file
from histogep.warned import decides

log = logging.getLogger(__name__)

#: Pixel sizes in um that an H&E scan can have; 72 dpi (352.8 um) and 0 are not among them.
MPP_RANGE = (0.05, 5.0)
#: Share by which two estimates of the pixel size may differ before a warning.
MPP_TOLERANCE = 0.1
#: Share by which the width and the height of a pixel may differ.
SQUARE_TOLERANCE = 0.05
#: Pixels larger than this, in um, are those of an overview: nuclei are 5 to 10 um wide.
COARSE_UM = 2.0
#: um per px times magnification: about 10 on most scanners, 4.4 to 11 with the cameras in use.
USUAL_PRODUCT = (4.0, 16.0)
#: Outside of this the pixel size of a file contradicts its own objective, and is refused.
POSSIBLE_PRODUCT = (2.5, 25.0)
#: Sources of a pixel size, the most trusted first.
SOURCES = (
    "sheet",
    "metadata",
    "vendor",
    "imaged volume",
    "description",
    "imagej",
    "tiff",
    "density",
)
_UM_PER_UNIT = {"centimeter": 1e4, "inch": 25400.0}
#: Where the formats keep the pixel size from which OpenSlide makes `openslide.mpp-*`, and its um.
_VENDOR_PROPERTIES = {
    "aperio": ("aperio.MPP", "aperio.MPP", 1.0),
    "mirax": (
        "mirax.LAYER_0_LEVEL_0_SECTION.MICROMETER_PER_PIXEL_X",
        "mirax.LAYER_0_LEVEL_0_SECTION.MICROMETER_PER_PIXEL_Y",
        1.0,
    ),
    "ventana": ("ventana.ScanRes", "ventana.ScanRes", 1.0),
    "dicom": (
        "dicom.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing[1]",
        "dicom.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing[0]",
        1e3,
    ),
}
#: Width and height of a pixel in um, or one number for both.
Estimate = float | tuple[float, float]


def settle_mpp(
    slide: str,
    estimates: Mapping[str, Estimate],
    *,
    objective: float | None = None,
    remarks: Sequence[str] = (),
    spots: Mapping[str, tuple[float, float]] | None = None,
) -> dict[str, Any]:
    """Return the pixel size of a slide, its source, and every disagreement.

    The sheet goes before the metadata, the metadata before TIFF resolution tags (`SOURCES`).
    Estimates outside `MPP_RANGE`, and those of pixels that are not square, are not evidence. Those
    that differ by more than 10 % from the one used cause a warning. A pixel size that the
    magnification contradicts (um per px times magnification is about 10) causes a warning outside
    `USUAL_PRODUCT`, and is refused outside `POSSIBLE_PRODUCT` unless the sheet gives it.

    Parameters
    ----------
    slide
        Id, for messages.
    estimates
        Source -> um per px, or its x and y.
    objective
        Magnification written in the file, if any.
    remarks
        Other statements of the file that cannot be used, such as a resolution without a unit.
    spots
        What the spots of a section imply (`spot_mpp`): name -> least and most. It is compared, and
        named where nothing else is known, but not used: whose pixels they count is not certain.

    Returns
    -------
    dict
        mpp, mpp_source, mpp_estimates (the mean of x and y), mpp_refused, mpp_warning ("" for none).

    Raises
    ------
    BadSlide
        If no estimate is left, or the sheet's own is impossible.
    """
    low, high = MPP_RANGE
    sound: dict[str, float] = {}
    refused: dict[str, float] = {}
    reasons = list(remarks)
    impossible: list[str] = []
    for name, value in estimates.items():
        x, y = value if isinstance(value, tuple) else (value, value)
        mean = (x + y) / 2
        if not (math.isfinite(mean) and low < min(x, y) and max(x, y) < high):
            refused[name] = mean if math.isfinite(mean) else 0.0
            impossible.append(f"{name} says {mean:g}")
        elif max(x, y) > (1 + SQUARE_TOLERANCE) * min(x, y):
            refused[name] = mean
            reasons.append(f"{name} says {x:.4g} along x but {y:.4g} along y")
        else:
            sound[name] = mean
    if "sheet" in refused:
        raise BadSlide(
            f"slide {slide}: `mpp` is {refused['sheet']:g} in the slides sheet: "
            f"it must be um per px, between {low:g} and {high:g}"
        )
    if objective:
        for name in [name for name in sound if name != "sheet"]:
            least, most = (product / objective for product in POSSIBLE_PRODUCT)
            if not least <= sound[name] <= most:
                reasons.append(
                    f"{name} says {sound[name]:.4g}, which its objective of {objective:g}x contradicts"
                )
                refused[name] = sound.pop(name)
    if not sound:
        implied = [f"{name} say {_about(*ends)}" for name, ends in (spots or {}).items()]
        tried = "".join(f"; {reason}" for reason in impossible + reasons + implied)
        raise BadSlide(
            f"slide {slide}: its file does not give the pixel size{tried}: "
            "fill in the `mpp` column (um per px) of the slides sheet"
        )
    source = min(sound, key=lambda name: SOURCES.index(name) if name in SOURCES else len(SOURCES))
    mpp = sound[source]
    apart = [
        f"{name} says {value:.4g}"
        for name, value in sound.items()
        if abs(value / mpp - 1) > MPP_TOLERANCE
    ]
    # Rejected values are reported too; impossible sizes are the defaults of programs (72 dpi).
    apart += reasons
    for name, (least, most) in (spots or {}).items():
        if not least * (1 - MPP_TOLERANCE) <= mpp <= most * (1 + MPP_TOLERANCE):
            apart.append(f"{name} say {_about(least, most)}")
    least, most = USUAL_PRODUCT
    if objective and not least <= mpp * objective <= most:
        apart.append(f"its objective of {objective:g}x suggests about {10 / objective:.2g}")
    warnings = []
    if apart:
        warnings.append(f"mpp {mpp:.4g} um per px ({source}) is used, but {', '.join(apart)}")
    if mpp > COARSE_UM:
        warnings.append(
            f"A PIXEL IS {mpp:.3g} UM WIDE ({source}): this is an overview, not the slide at the "
            "10x to 40x that encoders learned on; nuclei cannot be seen, tiles are enlarged. Give the "
            "full-resolution image, or correct `mpp`"
        )
    for warning in warnings:
        log.warning("slide %s: %s", slide, warning, **decides("slide"))
    return {
        "mpp": mpp,
        "mpp_source": source,
        "mpp_estimates": sound,
        "mpp_refused": refused,
        "mpp_warning": "; ".join(warnings),
    }


def spot_mpp(path: str | Path) -> dict[str, tuple[float, float]]:
    """Return the least and most um per px that Space Ranger's scale factors imply.

    Visium HD gives `microns_per_pixel`. `spot_diameter_fullres` is the width of a spot in px: 55 um by
    the maker, but drawn as 65 um by most versions of Space Ranger.

    Raises
    ------
    BadSlide
        If the file cannot be read.
    """
    with given_file(path, "Space Ranger's scale factors", error=BadSlide):
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        exact = number(content.get("microns_per_pixel"))
        width = number(content.get("spot_diameter_fullres"))
    if exact and exact > 0:
        return {"its scale factors": (exact, exact)}
    return {"its spots": (55 / width, 65 / width)} if width and width > 0 else {}


def _about(least: float, most: float) -> str:
    return f"{least:.3g}" + (f" to {most:.3g}" if most > least else "")


def metadata_mpp(properties: Mapping[str, str]) -> tuple[dict[str, Estimate], list[str]]:
    """Return what OpenSlide's properties say about the pixel size, and what of it cannot be used.

    Beside `openslide.mpp-*` the numbers of the formats themselves, the size of DICOM's imaged volume,
    and TIFF's resolution tags where they have a unit.
    """
    vendor = properties.get(openslide.PROPERTY_NAME_VENDOR, "")
    estimates: dict[str, Estimate] = {}
    # For plain TIFF, OpenSlide's value IS that of the resolution tags.
    if vendor != "generic-tiff":
        _add(estimates, "metadata", *(number(properties.get(f"openslide.mpp-{a}")) for a in "xy"))
    if vendor in _VENDOR_PROPERTIES:
        *names, um = _VENDOR_PROPERTIES[vendor]
        values = [number(properties.get(name)) for name in names]
        _add(estimates, "vendor", *(value * um if value and um else None for value in values))
    if vendor == "dicom":
        sides = [
            number(properties.get(f"dicom.ImagedVolume{axis}")) for axis in ("Width", "Height")
        ]
        counts = [
            number(properties.get(f"dicom.TotalPixelMatrix{axis}")) for axis in ("Columns", "Rows")
        ]
        if all(sides) and all(counts):
            _add(
                estimates,
                "imaged volume",
                *(
                    1e3 * side / n if side and n else None
                    for side, n in zip(sides, counts, strict=True)
                ),
            )
    resolution = [number(properties.get(f"tiff.{axis}Resolution")) for axis in "XY"]
    if vendor == "generic-tiff" or not any(resolution):
        return estimates, []  # the tags themselves are read
    unit = _UM_PER_UNIT.get(properties.get("tiff.ResolutionUnit", ""))
    if unit is None:
        return estimates, [f"its TIFF resolution of {resolution[0]:g} has no unit"]
    _add(estimates, "tiff", *(unit / value if value else None for value in resolution))
    return estimates, []


def described_mpp(description: str) -> tuple[dict[str, Estimate], float | None]:
    """Return the pixel size and the magnification in the text of a converted Aperio slide."""
    found = {
        key: number(value)
        for key, value in re.findall(r"\|\s*(MPP|AppMag)\s*=\s*([0-9.,]+)", description)
    }
    estimates: dict[str, Estimate] = {}
    _add(estimates, "description", found.get("MPP"), found.get("MPP"))
    return estimates, found.get("AppMag")


def density_mpp(start: bytes) -> dict[str, Estimate]:
    """Return the pixel size that the first bytes of a JPEG (JFIF) or PNG (pHYs) give with a unit."""
    estimates: dict[str, Estimate] = {}
    if start[6:11] == b"JFIF\0" and start[13] in (1, 2):
        um = 25400.0 if start[13] == 1 else 1e4
        x, y = (int.from_bytes(start[at : at + 2], "big") for at in (14, 16))
        _add(estimates, "density", um / x if x else None, um / y if y else None)
    place = start.find(b"pHYs") if start.startswith(b"\x89PNG") else -1
    if 0 < place <= len(start) - 13 and start[place + 12] == 1:
        x, y = (int.from_bytes(start[at : at + 4], "big") for at in (place + 4, place + 8))
        _add(estimates, "density", 1e6 / x if x else None, 1e6 / y if y else None)
    return estimates


def number(text: object) -> float | None:
    """Return a finite number, with a decimal point or comma; None for all else."""
    try:
        value = float(str(text).replace(",", "."))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _add(
    estimates: dict[str, Estimate], name: str, x: float | None, y: float | None = None
) -> None:
    """Add an estimate of one or both axes, if there is any."""
    if x or y:
        estimates[name] = (x or y or 0.0, y or x or 0.0)
