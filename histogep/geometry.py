"""Check a slide's file, convert it when it cannot be read by region, and settle its pixel size."""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path
from typing import Any

import openslide
import pyvips

from histogep.files import complete
from histogep.jobs import BadSlide
from histogep.slides import bounds_px
from histogep.sources import dicom_series, source_files, source_sha256
from histogep.tiff_layout import TIFF_STARTS, find_truncation

log = logging.getLogger(__name__)
# libvips tells of every thread it starts.
logging.getLogger("pyvips").setLevel(logging.WARNING)

#: Pixel sizes in um that an H&E scan can have; 72 dpi (352.8 um) and 0 are not among them.
MPP_RANGE = (0.05, 5.0)
#: Share by which two estimates of the pixel size may differ before a warning.
MPP_TOLERANCE = 0.1
_UM_PER_UNIT = {"centimeter": 1e4, "inch": 25400.0}
_UM_PER_OME_UNIT = {"\u00b5m": 1.0, "\u03bcm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4}
_JPEG, _PNG, _BMP = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM"


def describe_slide(
    *, slide: str, source: str | Path, folder: str | Path, mpp: float | None = None
) -> dict[str, Any]:
    """Return the geometry of a slide: the content of results/slides/{slide}.json.

    Parameters
    ----------
    slide
        Id of the slide.
    source
        Image file, or folder of a DICOM series.
    folder
        Where a pyramidal TIFF is written if OpenSlide cannot read `source` by region; it is made,
        and stays empty otherwise.
    mpp
        um per px given by the user; goes before what the file says.

    Raises
    ------
    BadSlide
        If the file is missing, empty, truncated or of no known type, or the pixel size is unknown.
    """
    source, folder = Path(source), Path(folder)
    image = check_source(slide, source)
    folder.mkdir(parents=True, exist_ok=True)
    estimates: dict[str, float] = {} if mpp is None else {"sheet": float(mpp)}
    if openslide.OpenSlide.detect_format(str(image)) is None:
        picture = _open_picture(slide, image)
        # libvips gives 1 px per mm when a file says nothing.
        if picture.xres > 0 and picture.xres != 1:
            estimates["tiff"] = 1000 / picture.xres
        if "image-description" in picture.get_fields():
            estimates |= _ome_mpp(str(picture.get("image-description")))
        settled = settle_mpp(slide, estimates)
        log.info("%s cannot be read by region: converting it to a pyramidal TIFF", source)
        image = folder / "pyramid.tiff"
        _write_pyramid(slide, source, picture, image, settled["mpp"])
        with openslide.OpenSlide(str(image)) as handle:
            geometry = _read_levels(handle)
        geometry["vendor"] = "converted"
    else:
        try:
            with openslide.OpenSlide(str(image)) as handle:
                geometry = _read_levels(handle)
                estimates |= _metadata_mpp(handle.properties)
        except openslide.OpenSlideError as error:
            raise BadSlide(
                f"slide {slide}: {source} is damaged or incomplete ({error}): fetch it again"
            ) from error
        settled = settle_mpp(slide, estimates)
    return {
        "slide": slide,
        "source": source.as_posix(),
        "image": image.as_posix(),
        **geometry,
        **settled,
        "sha256": source_sha256(source),
        "bytes": sum(file.stat().st_size for file in source_files(source)),
    }


def check_source(slide: str, source: Path) -> Path:
    """Return the file to open, or raise a BadSlide that tells what is wrong with it.

    A folder stands for the DICOM series in it. Offsets of every TIFF directory are compared with
    the file's size, because OpenSlide is silent about lost ends.
    """
    if not source.exists():
        raise BadSlide(f"slide {slide}: {source} does not exist: mend `image` in the slides sheet")
    if source.is_dir():
        series = sorted(source.glob("*.dcm"))
        if not series:
            raise BadSlide(f"slide {slide}: the folder {source} holds no DICOM (*.dcm) files")
        if len(set(map(dicom_series, series))) > 1:
            raise BadSlide(
                f"slide {slide}: the folder {source} holds more than one DICOM series: name one file "
                "of the slide's own"
            )
        for file in series:
            if openslide.OpenSlide.detect_format(str(file)) is not None:
                return file
        raise BadSlide(f"slide {slide}: no file in {source} is a DICOM whole-slide image")
    if source.stat().st_size == 0:
        raise BadSlide(f"slide {slide}: {source} has zero bytes: fetch it again")
    with open(source, "rb") as handle:
        start = handle.read(8)
        if start.startswith(TIFF_STARTS):
            problem = find_truncation(handle)
            if problem:
                raise BadSlide(f"slide {slide}: {source} is truncated ({problem}): fetch it again")
            return source
    if start.startswith((_JPEG, _PNG, _BMP)):
        return source
    if openslide.OpenSlide.detect_format(str(source)) is None:
        raise BadSlide(
            f"slide {slide}: {source} is of an unsupported type: give a whole-slide format that "
            "OpenSlide reads (svs, ndpi, mrxs, scn, bif, DICOM, tiled TIFF), a TIFF, JPEG or PNG"
        )
    return source


def settle_mpp(slide: str, estimates: dict[str, float]) -> dict[str, Any]:
    """Return mpp, mpp_source, mpp_estimates, mpp_refused and mpp_warning.

    The sheet goes before the metadata, the metadata before TIFF resolution tags. Estimates outside
    `MPP_RANGE` are refused; those that differ by more than 10 % from the one used are warned of.

    Raises
    ------
    BadSlide
        If no estimate is left, or the sheet's own is impossible.
    """
    low, high = MPP_RANGE
    sound = {name: value for name, value in estimates.items() if low < value < high}
    refused = {name: value for name, value in estimates.items() if name not in sound}
    if "sheet" in refused:
        raise BadSlide(
            f"slide {slide}: `mpp` is {refused['sheet']:g} in the slides sheet: "
            f"it must be um per px, between {low:g} and {high:g}"
        )
    if not sound:
        tried = "".join(f"; {name} says {value:g}" for name, value in refused.items())
        raise BadSlide(
            f"slide {slide}: its file does not give the pixel size{tried}: "
            "fill in the `mpp` column (um per px) of the slides sheet"
        )
    source = next(name for name in ("sheet", "metadata", "tiff") if name in sound)
    apart = [
        f"{name} says {value:.4g}"
        for name, value in sound.items()
        if abs(value / sound[source] - 1) > MPP_TOLERANCE
    ]
    warning = ""
    if apart:
        warning = f"mpp {sound[source]:.4g} um per px ({source}) is used, but {', '.join(apart)}"
        log.warning("slide %s: %s", slide, warning)
    return {
        "mpp": sound[source],
        "mpp_source": source,
        "mpp_estimates": sound,
        "mpp_refused": refused,
        "mpp_warning": warning,
    }


def _read_levels(handle: openslide.OpenSlide) -> dict[str, Any]:
    left, top, width, height = bounds_px(handle.properties, handle.dimensions)
    objective = handle.properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER)
    return {
        "vendor": handle.properties.get(openslide.PROPERTY_NAME_VENDOR, ""),
        "width": width,
        "height": height,
        "origin_px": [left, top],
        "objective": None if objective is None else _number(objective),
        "level_downsamples": list(handle.level_downsamples),
    }


def _metadata_mpp(properties: Any) -> dict[str, float]:
    """Return the pixel sizes in um that OpenSlide and the TIFF resolution tags give."""
    estimates = {}
    axes = [_number(properties.get(f"openslide.mpp-{axis}")) for axis in "xy"]
    axes = [value for value in axes if value is not None]
    # For plain TIFF, OpenSlide's value IS that of the resolution tags.
    if axes and properties.get(openslide.PROPERTY_NAME_VENDOR) != "generic-tiff":
        estimates["metadata"] = sum(axes) / len(axes)
    unit = _UM_PER_UNIT.get(properties.get("tiff.ResolutionUnit", ""))
    resolution = _number(properties.get("tiff.XResolution"))
    if unit and resolution:
        estimates["tiff"] = unit / resolution
    return estimates | _ome_mpp(properties.get("tiff.ImageDescription", ""))


def _ome_mpp(description: str) -> dict[str, float]:
    """Return the pixel size in um that the OME-XML of an OME-TIFF gives for its first image."""
    pixels = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", description)
    if pixels is None:
        return {}
    given = dict(re.findall(r'\b(PhysicalSize[XY](?:Unit)?)="([^"]*)"', pixels.group()))
    sizes = []
    for axis in "XY":
        # The schema's default unit is the um.
        unit = _UM_PER_OME_UNIT.get(given.get(f"PhysicalSize{axis}Unit", "\u00b5m"))
        size = _number(given.get(f"PhysicalSize{axis}"))
        if unit and size:
            sizes.append(size * unit)
    return {"metadata": sum(sizes) / len(sizes)} if sizes else {}


def _number(text: str | None) -> float | None:
    try:
        value = float(str(text).replace(",", "."))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _open_picture(slide: str, source: Path) -> pyvips.Image:
    try:
        picture = pyvips.Image.new_from_file(str(source), access="sequential", fail_on="truncated")
    except pyvips.Error as error:
        raise BadSlide(
            f"slide {slide}: {source} cannot be read as an image ({_one_line(error)}): "
            "fetch it again, or give another format"
        ) from error
    if (
        picture.bands == 2
        or picture.bands > 4
        or picture.interpretation in ("multiband", "fourier")
    ):
        raise BadSlide(
            f"slide {slide}: {source} has {picture.bands} channels ({picture.interpretation}): "
            "an H&E image has three (RGB)"
        )
    return picture


def _write_pyramid(slide: str, source: Path, picture: pyvips.Image, path: Path, mpp: float) -> None:
    """Write a pyramidal, tiled TIFF in bounded memory; `picture` is read once from top to bottom."""
    if picture.interpretation not in ("srgb", "rgb"):
        picture = picture.colourspace("srgb")
    if picture.hasalpha():
        picture = picture.flatten(background=255)
    try:
        with complete(path) as temporary:
            picture.cast("uchar").copy(xres=1000 / mpp, yres=1000 / mpp).tiffsave(
                str(temporary),
                tile=True,
                tile_width=256,
                tile_height=256,
                pyramid=True,
                compression="jpeg",
                Q=90,
                bigtiff=True,
                resunit="cm",
                keep="none",
            )
    except pyvips.Error as error:
        raise BadSlide(
            f"slide {slide}: {source} is truncated or damaged ({_one_line(error)}): fetch it again"
        ) from error


def _one_line(error: Exception) -> str:
    return "; ".join(str(error).split("\n")).strip("; ")[:300]
