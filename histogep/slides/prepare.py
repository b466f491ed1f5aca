"""Check a slide's file, convert it when it cannot be read by region, and settle its pixel size."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import openslide

from histogep.errors import BadSlide
from histogep.files import given_file
from histogep.slides.pictures import open_picture, orientation, write_pyramid
from histogep.slides.pixel_size import (
    Estimate,
    density_mpp,
    metadata_mpp,
    number,
    settle_mpp,
    spot_mpp,
)
from histogep.slides.reader import bounds_px
from histogep.slides.sources import dicom_files, dicom_series, source_files, source_sha256
from histogep.slides.tiff import TIFF_STARTS, choose_image, find_truncation, whole_levels

log = logging.getLogger(__name__)

#: Largest side of a slide in mm, whole mounts included.
MOST_MM = 120.0
_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
#: What OpenSlide calls a tiled TIFF of no scanner, of which it shows the first image.
_PLAIN_TIFF = "generic-tiff"


def describe_slide(
    *,
    slide: str,
    source: str | Path,
    folder: str | Path,
    mpp: float | None = None,
    spots_mpp: float | None = None,
    most_mm: float = MOST_MM,
    scalefactors: str | Path | None = None,
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
    spots_mpp
        um per px that the distance of a section's spots implies; it is named and compared, not used.
    most_mm
        Largest side that the slide may have, in mm.
    scalefactors
        Space Ranger's `scalefactors_json.json` of a section.

    Raises
    ------
    BadSlide
        If the file is missing, empty, truncated or of no known type, holds no colour image, is
        larger than a slide can be, or the pixel size is unknown.
    """
    source, folder = Path(source), Path(folder)
    image = check_source(slide, source)
    folder.mkdir(parents=True, exist_ok=True)
    estimates: dict[str, Estimate] = {} if mpp is None else {"sheet": float(mpp)}
    vendor = openslide.OpenSlide.detect_format(str(image))
    start = _start(image)
    spots = {} if scalefactors is None else spot_mpp(scalefactors)
    if spots_mpp is not None:
        # The pitch is exact; by the width of a spot the runs of CytAssist are some per cent off.
        spots = {"its spots": (spots_mpp, spots_mpp)}
    tiff = None
    if start.startswith(TIFF_STARTS) and (
        vendor in (None, _PLAIN_TIFF) or (vendor == "aperio" and not _shows_largest(image))
    ):
        tiff = choose_image(slide, image)
    if vendor is None or (tiff is not None and not tiff.plain):
        picture = open_picture(slide, image, tiff)
        size = picture.width, picture.height
        if orientation(picture) > 4:
            size = size[::-1]
        if tiff is None:
            told, remarks, objective = density_mpp(start), (), None
        else:
            told, remarks, objective = tiff.estimates, tiff.remarks, tiff.objective
        settled = settle_mpp(
            slide, estimates | dict(told), objective=objective, remarks=remarks, spots=spots
        )
        _check_size(slide, source, size, settled, most_mm)
        log.info("%s cannot be read by region: converting it to a pyramidal TIFF", source)
        path = folder / "pyramid.tiff"
        write_pyramid(slide, image, tiff, path, mpp=settled["mpp"])
        image = path
        with openslide.OpenSlide(str(image)) as handle:
            geometry = _read_levels(handle)
        geometry |= {"vendor": "converted", "objective": objective}
    else:
        try:
            with openslide.OpenSlide(str(image)) as handle:
                geometry = _read_levels(handle)
                told, remarks = metadata_mpp(handle.properties)
        except openslide.OpenSlideError as error:
            raise BadSlide(
                f"slide {slide}: {source} is damaged or incomplete ({error}): fetch it again"
            ) from error
        estimates |= told
        if tiff is not None:
            estimates |= dict(tiff.estimates)
            remarks += tiff.remarks
            geometry["objective"] = geometry["objective"] or tiff.objective
        settled = settle_mpp(
            slide, estimates, objective=geometry["objective"], remarks=remarks, spots=spots
        )
        _check_size(slide, source, (geometry["width"], geometry["height"]), settled, most_mm)
    return {
        "slide": slide,
        "source": source.as_posix(),
        "image": image.as_posix(),
        **geometry,
        **settled,
        "sha256": source_sha256(source),
        "bytes": sum(file.stat().st_size for file in source_files(source)),
    }


def _shows_largest(image: Path) -> bool:
    """Return whether OpenSlide shows the largest tiled image of a TIFF, and not a thumbnail."""
    try:
        with openslide.OpenSlide(str(image)) as handle:
            shown = handle.dimensions[0] * handle.dimensions[1]
    except openslide.OpenSlideError:
        return False
    return all(width * height <= shown for width, height in whole_levels(image))


def _start(image: Path) -> bytes:
    with open(image, "rb") as handle:
        return handle.read(65536)


def _check_size(
    slide: str, source: Path, size: tuple[int, int], settled: dict[str, Any], most_mm: float
) -> None:
    """Refuse what is larger than a slide: a wrong pixel size, or a hostile file."""
    sides = [side * settled["mpp"] / 1000 for side in size]
    if max(sides) > most_mm:
        raise BadSlide(
            f"slide {slide}: {source} is {size[0]} x {size[1]} px of {settled['mpp']:.4g} um "
            f"({settled['mpp_source']}), so {sides[0]:.0f} x {sides[1]:.0f} mm, more than the "
            f"{most_mm:g} mm of a slide: correct `mpp`, or allow it in the column `max_mm`"
        )


def check_source(slide: str, source: Path) -> Path:
    """Return the file to open, or raise a BadSlide that tells what is wrong with it.

    A folder stands for the DICOM series in it. Offsets of every TIFF directory are compared with
    the file's size, because OpenSlide is silent about lost ends.
    """
    if not source.exists():
        raise BadSlide(
            f"slide {slide}: {source} does not exist: correct `image` in the slides sheet"
        )
    if source.is_dir():
        series = dicom_files(source)
        if not series:
            raise BadSlide(f"slide {slide}: the folder {source} holds no DICOM files")
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
        with given_file(f"slide {slide}: {source}", "a TIFF", error=BadSlide):
            problem = find_truncation(source)
        if problem:
            raise BadSlide(f"slide {slide}: {source} is truncated ({problem}): fetch it again")
        return source
    if start.startswith((_JPEG, _PNG)):
        return source
    if openslide.OpenSlide.detect_format(str(source)) is None:
        raise BadSlide(
            f"slide {slide}: {source} is of an unsupported type: give a whole-slide format that "
            "OpenSlide reads (svs, ndpi, mrxs, scn, bif, DICOM, tiled TIFF), a TIFF, JPEG or PNG"
        )
    return source


def _read_levels(handle: openslide.OpenSlide) -> dict[str, Any]:
    left, top, width, height = bounds_px(handle.properties, handle.dimensions)
    objective = handle.properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER)
    return {
        "vendor": handle.properties.get(openslide.PROPERTY_NAME_VENDOR, ""),
        "width": width,
        "height": height,
        "origin_px": [left, top],
        "objective": None if objective is None else number(objective),
        "level_downsamples": list(handle.level_downsamples),
    }
