"""Convert images that OpenSlide cannot read by region to pyramidal TIFFs in a viewer's colours."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable
from pathlib import Path

import pyvips

from histogep.errors import BadSlide
from histogep.files import complete
from histogep.slides.tiff import TiffImage

log = logging.getLogger(__name__)
# libvips logs every thread it starts.
logging.getLogger("pyvips").setLevel(logging.WARNING)

#: Most bytes of pixels that a byte of a PNG can stand for (deflate: 1,032); a JPEG of three channels
#: has at most some 1,000.
MOST_BYTES_PER_BYTE = 1100
#: Values of white, with the largest value that an image of that scale has at least: a bright-field
#: image has glass, and glass is bright.
_SCALES = ((1.0, 0.25), (255.0, 64.0), (65535.0, 16384.0))


#: How libtiff and libvips report a form of storage that they know but were built without.
_UNSUPPORTED = re.compile(r"not supported|not configured|unsupported", re.IGNORECASE)


def open_picture(
    slide: str, source: Path, tiff: TiffImage | None, *, access: str = "sequential"
) -> pyvips.Image:
    """Return a picture as it is stored, red, green and blue of several pages side by side.

    Warnings of the decoders count as errors: most damaged pixels are noticed by nothing else. Only
    where the tags of a TIFF alone cause warnings, which does no harm, warnings are ignored.

    Raises
    ------
    BadSlide
        If it cannot be opened, or its size cannot be true.
    """
    harmless = tiff is not None and _tags_are_warned_of(source)
    options = {"access": access, "fail_on": "error" if harmless else "warning"}
    try:
        if tiff is None:
            picture = pyvips.Image.new_from_file(str(source), **options)
        else:
            below = {} if tiff.subifd < 0 else {"subifd": tiff.subifd}
            planes = [
                pyvips.Image.tiffload(str(source), page=page, **below, **options)
                for page in tiff.pages
            ]
            picture = planes[0].bandjoin(planes[1:]) if len(planes) > 1 else planes[0]
    except pyvips.Error as error:
        raise BadSlide(
            f"slide {slide}: {source} cannot be read as an image ({_one_line(error)}): "
            "fetch it again, or give another format"
        ) from error
    n_bytes = source.stat().st_size
    if tiff is None and _packed_bytes(picture) > MOST_BYTES_PER_BYTE * n_bytes:
        raise BadSlide(
            f"slide {slide}: {source} claims {picture.width} x {picture.height} px, more than its "
            f"{n_bytes} bytes can hold: it is damaged or hostile, fetch it again"
        )
    if picture.bands < 3:
        raise BadSlide(
            f"slide {slide}: {source} has {picture.bands} channel(s) ({picture.interpretation}): "
            "an H&E image has three (RGB)"
        )
    return picture


class _Heard(logging.Handler):
    """Counts what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def _tags_are_warned_of(source: Path) -> bool:
    """Return whether libtiff warns of a TIFF before any pixel is read."""
    heard, logger = _Heard(), logging.getLogger("pyvips")
    logger.addHandler(heard)
    try:
        pyvips.Image.tiffload(str(source), fail_on="none", revalidate=True)
    except pyvips.Error:
        return False  # reported where it is read
    finally:
        logger.removeHandler(heard)
    return bool(heard.messages)


def orientation(picture: pyvips.Image) -> int:
    """Return the orientation of EXIF or TIFF, 1 for upright."""
    return picture.get("orientation") if "orientation" in picture.get_fields() else 1


def save_pyramid(picture: pyvips.Image, path: str | Path, *, mpp: float) -> None:
    """Save a picture as a tiled, pyramidal TIFF that states its pixel size, without other metadata.

    The same picture is the same bytes. What is read from a file in order passes through once.
    """
    picture.copy(interpretation="srgb", xres=1000 / mpp, yres=1000 / mpp).tiffsave(
        str(path),
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


def write_pyramid(
    slide: str, source: Path, tiff: TiffImage | None, path: Path, *, mpp: float
) -> None:
    """Write a pyramidal, tiled TIFF in bounded memory; the picture is read from top to bottom.

    Parameters
    ----------
    slide, source, tiff
        Id; the picture; which image of a TIFF it is.
    path
        File to write; complete or absent.
    mpp
        um per px, written as its resolution.

    Raises
    ------
    BadSlide
        If the picture is damaged, or the meaning of its values is unknown.
    """

    def opened() -> pyvips.Image:
        return open_picture(slide, source, tiff)

    try:
        picture = _as_rgb(slide, source, tiff, opened)
        if orientation(picture) > 1:
            log.info(
                "%s: turned upright, by its orientation tag (%d)", source, orientation(picture)
            )
            # Turning needs all of it: from a file, where memory is too small.
            picture = picture.copy_memory() if _is_small(picture) else _on_disk(picture)
            picture = picture.autorot()
        with complete(path) as temporary:
            save_pyramid(picture, temporary, mpp=mpp)
    except pyvips.Error as error:
        if _UNSUPPORTED.search(str(error)):
            raise BadSlide(
                f"slide {slide}: {source} is stored in a form that cannot be read here "
                f"({_one_line(error)}): save it as 8-bit RGB, with JPEG or without compression"
            ) from error
        raise BadSlide(
            f"slide {slide}: {source} is truncated or damaged ({_one_line(error)}): fetch it again"
        ) from error


def _as_rgb(
    slide: str, source: Path, tiff: TiffImage | None, opened: Callable[[], pyvips.Image]
) -> pyvips.Image:
    """Return a picture with three channels of 8 bits, transparent parts white."""
    picture = opened()
    alpha = picture.interpretation != "cmyk" and picture.bands == 4
    if tiff is not None and alpha and not tiff.alpha:
        log.warning("slide %s: the fourth channel of %s has no known use: left out", slide, source)
        picture, alpha = picture[0:3], False
    if picture.interpretation == "cmyk":
        return _from_cmyk(picture)
    if tiff is not None and tiff.luma:
        return _from_luma(picture[0:3])
    if picture.interpretation in ("lab", "labs", "xyz"):
        return picture.colourspace("srgb")
    if picture.format != "uchar":
        white = _white(slide, source, tiff, opened())
        if white != 255:
            picture = picture * (255.0 / white)
        picture = picture.rint().cast("uchar")
    picture = picture.copy(interpretation="srgb")
    return picture.flatten(background=255) if alpha else picture


def _from_cmyk(picture: pyvips.Image) -> pyvips.Image:
    """Return red, green and blue of inks, by the picture's own profile if it has one."""
    if "icc-profile-data" in picture.get_fields():
        return picture.icc_transform("srgb", embedded=True, pcs="lab").cast("uchar")
    inks = picture.cast("float")
    black = 255 - inks[3]
    return ((255 - inks[0:3]) * black / 255).rint().cast("uchar").copy(interpretation="srgb")


def _from_luma(picture: pyvips.Image) -> pyvips.Image:
    """Return red, green and blue of YCbCr of full range (ITU-R BT.601, as JPEG has it)."""
    centred = picture.cast("float") - [0, 128, 128]
    rgb = centred.recomb([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]])
    return rgb.rint().cast("uchar").copy(interpretation="srgb")


def _white(slide: str, source: Path, tiff: TiffImage | None, picture: pyvips.Image) -> float:
    """Return the value of white in a picture whose samples are not of 8 bits."""
    colours = picture[0:3]
    # min and max at once: the picture is read from top to bottom, once.
    stats = colours.stats()
    low, high, total = (stats(column, 0)[0] for column in range(3))
    declared = None if tiff is None else tiff.scale
    if not (low >= 0 and high > 0 and math.isfinite(total)):
        raise BadSlide(
            f"slide {slide}: {source} has values from {low:g} to {high:g}, or some that are not finite: "
            "these are not colours; save it as 8-bit RGB"
        )
    if declared and 0.25 * declared <= high <= declared:
        return declared
    whole = picture.format not in ("float", "double")
    for white, least in _SCALES:
        if least < high <= white * (1 if whole else 1.001) and not (whole and white == 1):
            return white
    if picture.format == "uint" and high > 2**30:
        return 2.0**32 - 1
    raise BadSlide(
        f"slide {slide}: {source} has values up to {high:g} ({picture.format}): which value is white "
        "cannot be told; save it as 8-bit RGB"
    )


def _packed_bytes(picture: pyvips.Image) -> float:
    """Return the bytes of the pixels as PNG packs them: a palette has as few as one bit for each."""
    fields = picture.get_fields()
    bits = picture.get("bits-per-sample") if "bits-per-sample" in fields else 8
    return picture.width * picture.height * bits / 8 * (1 if "palette" in fields else picture.bands)


def _is_small(picture: pyvips.Image) -> bool:
    return picture.width * picture.height * 3 < 2**28


def _on_disk(picture: pyvips.Image) -> pyvips.Image:
    """Return a picture held in a temporary file of libvips, read from any place."""
    temporary = pyvips.Image.new_temp_file("%s.v")
    picture.write(temporary)
    return temporary


def _one_line(error: Exception) -> str:
    return "; ".join(str(error).split("\n")).strip("; ")[:300]
