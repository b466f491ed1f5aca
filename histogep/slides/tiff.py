"""Which image of a TIFF is the slide, whether all of it is there, and what it says of its pixel size.

Files hold thumbnails, labels and overviews beside the slide, in any order, and some keep red, green
and blue in three pages. OpenSlide and libvips are silent about lost ends and tiles that were never
written. Tags and metadata are read with tifffile, no pixel.
"""

from __future__ import annotations

import logging
import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import tifffile

from histogep.errors import BadSlide
from histogep.files import given_file
from histogep.slides.pixel_size import Estimate, described_mpp, number

log = logging.getLogger(__name__)

#: First bytes of TIFF files, classic and Big, in both byte orders.
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
#: Most pages that a file may have: those of slides have at most a dozen.
MOST_PAGES = 4096
#: Largest tile that is read, in bytes.
MOST_TILE_BYTES = 2**29
_TILE_COUNTS = 325
_UM_PER_UNIT = {2: 25400.0, 3: 1e4}
_UM_PER_NAME = {
    **dict.fromkeys(("\u00b5m", "\u03bcm", "um", "micron", "microns", "micrometer"), 1.0),
    **{"nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "inch": 25400.0, "in": 25400.0},
}
_BESIDE = re.compile(r"\b(label|macro|thumbnail|thumb|overview|barcode|preview)\b", re.IGNORECASE)
_COLOURS = ("red", "green", "blue")
#: OME's colours of channels: red, green, blue and alpha in 32 bits, signed.
_OME_COLOURS = {"-16776961": "red", "16711935": "green", "65535": "blue"}
#: Compressions of plain TIFF that OpenSlide reads: none, LZW, JPEG, deflate, PackBits.
_READ_BY_OPENSLIDE = (1, 5, 7, 8, 32773, 32946)
#: Bytes that are unpacked at once.
_PIECE_BYTES = 2**22
#: Bytes of pixels that a byte of a file can stand for, by TIFF's number of the compression.
_MOST_BYTES_PER_BYTE = {1: 1.02, 32773: 65, 5: 3000, 8: 1100, 32946: 1100, 7: 3000, 6: 3000}


@dataclass(frozen=True)
class TiffImage:
    """The image of a TIFF that is the slide.

    Attributes
    ----------
    pages
        Its page, or those of red, green and blue.
    subifd
        Which image below that page it is, -1 for the page itself.
    width, height
        In px.
    samples
        Values of a pixel in a page.
    alpha
        Whether a fourth sample is known to be alpha.
    luma
        Whether the samples are brightness and two colour differences (YCbCr) that libvips hands on.
    plain
        Whether it is the first page, in tiles of 8-bit RGB as they are shown: OpenSlide reads it.
    scale
        The value of white that the file declares, if any.
    estimates, remarks, objective
        What it says of its pixel size, as `histogep.slides.pixel_size.settle_mpp` takes it.
    """

    pages: tuple[int, ...]
    subifd: int
    width: int
    height: int
    samples: int
    alpha: bool
    luma: bool
    plain: bool
    scale: float | None
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    remarks: Sequence[str] = ()
    objective: float | None = None


@dataclass(frozen=True)
class _Ome:
    """What OME-XML says of one image: sizes in px, planes, pixel size in um, names of channels."""

    name: str
    size: tuple[int, int]
    depth: int
    mpp: tuple[float | None, float | None]
    channels: tuple[str, ...]
    fluorescent: bool
    magnification: float | None
    bits: float | None


def choose_image(slide: str, path: Path) -> TiffImage:
    """Return which image of a TIFF is the slide: the largest that is no label, macro or thumbnail.

    Raises
    ------
    BadSlide
        If it cannot be told, or has no colour.
    """
    what = f"slide {slide}: {path}"
    with (
        given_file(what, "a TIFF", error=BadSlide),
        tifffile.TiffFile(path) as file,
    ):
        images = list(_images(file))
        if len(images) > MOST_PAGES:
            raise BadSlide(f"{what} has more than {MOST_PAGES:,} pages: give the slide alone")
        ome = _read_ome(_text(file.pages[0]))
        imagej = dict(file.imagej_metadata or {})
        found = [
            (number_, sub, page)
            for number_, sub, page in images
            if sub is not None
            and page.imagewidth > 0
            and page.imagelength > 0
            and not int(page.subfiletype or 0) & 4
        ]
        if not found:
            raise BadSlide(f"{what} holds no image")
        slides = [one for one in found if not _is_beside(one[2], ome)] or found
        largest = max((page.imagewidth * page.imagelength for *_, page in slides))
        same = [one for one in slides if one[2].imagewidth * one[2].imagelength == largest]
        size = same[0][2].imagewidth, same[0][2].imagelength
        described = next((image for image in ome if image.size == size), None)
        colour = [one for one in same if one[2].samplesperpixel >= 3 or one[2].photometric == 3]
        chosen = colour or same
        deep = (described is not None and described.depth > 1) or any(
            int(imagej.get(axis, 1)) > 1 for axis in ("slices", "frames")
        )
        if colour and len(colour) > 1 or deep:
            raise BadSlide(
                f"{what} holds {max(len(same), 2)} images of {size[0]} x {size[1]} px (planes of a "
                "stack, or several slides): save the one that is meant in a file of its own"
            )
        if not colour:
            chosen = [same[n] for n in _colour_planes(what, same, described)]
        first = chosen[0][2]
        for *_, page in chosen:
            _check_deflated(what, page)
        _check(what, path, [page for *_, page in chosen])
        estimates, remarks = _resolution(first, imagej)
        objective = None
        if described is not None:
            objective = described.magnification
            x, y = described.mpp
            if x or y:
                estimates["metadata"] = (x or y or 0.0, y or x or 0.0)
        told, magnification = described_mpp(_text(first) or _text(file.pages[0]))
        tags = first.tags
        return TiffImage(
            pages=tuple(number_ for number_, *_ in chosen),
            subifd=chosen[0][1],
            width=size[0],
            height=size[1],
            samples=int(first.samplesperpixel),
            alpha=any(int(extra) in (1, 2) for extra in first.extrasamples),
            luma=_is_luma(first),
            plain=len(chosen) == 1
            and chosen[0][:2] == (0, -1)
            and bool(first.is_tiled)
            and (first.samplesperpixel, first.bitspersample, int(first.sampleformat)) == (3, 8, 1)
            and int(first.photometric) in (2, 6)
            and int(first.compression) in _READ_BY_OPENSLIDE
            and _value(tags, 274, 1) == 1,
            scale=_declared_scale(first, described),
            estimates=told | estimates,
            remarks=remarks,
            objective=objective or magnification,
        )


def find_truncation(path: str | Path) -> str | None:
    """Return what lies beyond the end of a TIFF, or None if all is there.

    Classic files above 4 GiB (Hamamatsu's NDPI) keep the high bits of their offsets elsewhere, and
    are not checked. Of a file with more than `MOST_PAGES` images the first are.

    Parameters
    ----------
    path
        A file that begins as a TIFF does (`TIFF_STARTS`).
    """
    size, number = Path(path).stat().st_size, 0
    try:
        with tifffile.TiffFile(path) as file:
            if not file.is_bigtiff and size >= 2**32:
                return None
            for number, (*_, page) in enumerate(_images(file), start=1):
                if problem := _lost_part(file, page):
                    return problem.format(number)
    except (tifffile.TiffFileError, struct.error, IndexError):
        return f"image directory {number + 1} is damaged, or lies beyond the end of the file"
    return None


def whole_levels(path: str | Path) -> dict[tuple[int, int], int]:
    """Return the number of the first tiled page of each size (width, height) that has all its tiles.

    Pages with tiles that were never written (0 bytes) are left out: readers fill them differently.
    Empty for a file that is not a TIFF, or none that can be read: whatever is wrong with it, OpenSlide
    says it.
    """
    found: dict[tuple[int, int], int] = {}
    try:
        with tifffile.TiffFile(path) as file:
            for number_, sub, page in _images(file):
                counts = page.databytecounts if _TILE_COUNTS in page.tags else ()
                if sub == -1 and counts and 0 not in counts:
                    found.setdefault((page.imagewidth, page.imagelength), number_)
    except Exception:
        return {}
    return {size: number_ for size, number_ in found.items() if all(size)}


def _images(file: tifffile.TiffFile) -> Iterator[tuple[int, int | None, Any]]:
    """Give the images of a TIFF, each once: number of its page, which image below that, and itself.

    The page itself is number -1, and None is one that lies deeper. Directories may form loops, and
    many may name the same list of a million tiles: the length of `file.pages` is not asked for, which
    follows a loop for hours, at most one more than `MOST_PAGES` images are given, and what they name
    is held against the size of the file.
    """
    seen: set[int] = set()
    n_named = 0
    for number_ in range(MOST_PAGES + 1):
        try:
            pending: list[tuple[int | None, Any]] = [(-1, file.pages[number_])]
        except IndexError:
            return
        if pending[0][1].offset in seen:
            return
        while pending and len(seen) <= MOST_PAGES:
            sub, page = pending.pop(0)
            if page.offset in seen:
                continue
            seen.add(page.offset)
            n_named += len(page.dataoffsets) + len(page.databytecounts)
            # Two bytes at least are taken by each.
            if 2 * n_named > file.filehandle.size:
                raise tifffile.TiffFileError("its images name more tiles than it can hold")
            yield number_, sub, page
            if page.subifds:
                below = page.pages
                n_below = min(len(page.subifds), MOST_PAGES)
                pending += [(n if sub == -1 else None, below[n]) for n in range(n_below)]


def _lost_part(file: tifffile.TiffFile, page: Any) -> str:
    """Return what of a page lies beyond the end of its file, or nothing.

    tifffile leaves such tags and pages out, and goes on.
    """
    handle, tiff, size = file.filehandle, file.tiff, file.filehandle.size
    handle.seek(page.offset)
    (n_tags,) = struct.unpack(tiff.tagnoformat, handle.read(tiff.tagnosize))
    entries = handle.read(n_tags * tiff.tagsize)
    (following,) = struct.unpack(tiff.offsetformat, handle.read(tiff.offsetsize))
    if max(following, *(page.subifds or (0,))) >= size:
        return "the image directory after image {} lies beyond the end of the file"
    for place in range(0, len(entries), tiff.tagsize):
        code, kind = struct.unpack_from(tiff.byteorder + "HH", entries, place)
        if code not in page.tags and kind in tifffile.TIFF.DATA_FORMATS:
            return f"tag {code} of image {{}} lies beyond the end of the file"
    pairs = zip(page.dataoffsets, page.databytecounts, strict=False)
    lost = sum(start + length > size for start, length in pairs)
    what = "tiles" if page.is_tiled else "strips"
    return f"{lost} {what} of image {{}} lie beyond the end of the file" if lost else ""


def _text(page: Any) -> str:
    description = page.description
    return description if isinstance(description, str) else ""


def _value(tags: Any, code: int, otherwise: Any) -> Any:
    tag = tags.get(code)
    return otherwise if tag is None else tag.value


def _is_beside(page: Any, ome: Sequence[_Ome]) -> bool:
    """Return whether a page is a label, macro or thumbnail by its name."""
    size = page.imagewidth, page.imagelength
    names = [image.name for image in ome if image.size == size]
    if names:
        return all(_BESIDE.search(name) for name in names)
    text = "" if _text(page).lstrip().startswith("<") else _text(page)[:200]
    return bool(_BESIDE.search(f"{text} {_value(page.tags, 285, '')}"))


def _colour_planes(what: str, same: Sequence[tuple[int, int, Any]], ome: _Ome | None) -> list[int]:
    """Return which of pages with one channel are red, green and blue, in that order."""
    if ome is not None and ome.fluorescent:
        raise BadSlide(f"{what} holds fluorescence channels ({', '.join(ome.channels)}): not H&E")
    if len(same) != 3:
        raise BadSlide(
            f"{what} has {len(same)} channel{'s' * (len(same) > 1)} of grey: an H&E image has three "
            "(RGB)"
        )
    names = [name.strip().lower() for name in (ome.channels if ome is not None else ())]
    if not any(names) or len(names) != 3:
        log.warning("%s: its three grey pages are taken for red, green and blue", what)
        return [0, 1, 2]
    order = []
    for colour in _COLOURS:
        fits = [
            n for n, name in enumerate(names)
            if name == colour[0] or re.search(rf"\b{colour}\b", name)
        ]  # fmt: skip
        order += fits if len(fits) == 1 else []
    if sorted(order) == [0, 1, 2]:
        return order
    if all(re.fullmatch(r"(channel|ch|c)?[\s:_#-]*\d+(:\d+)*", name) for name in names):
        return [0, 1, 2]  # numbered, not named
    raise BadSlide(
        f"{what} has the channels {', '.join(ome.channels if ome else names)}, not red, green and "
        "blue: is it H&E?"
    )


def _check(what: str, path: Path, pages: Sequence[Any]) -> None:
    """Refuse what no H&E image is, and sizes that the file's bytes cannot hold."""
    first = pages[0]
    n_bytes = path.stat().st_size
    photometric, samples = int(first.photometric), int(first.samplesperpixel)
    if len(pages) == 1 and photometric != 3 and not 3 <= samples <= 4:
        raise BadSlide(f"{what} has {samples} channels: an H&E image has three (RGB)")
    if photometric == 4 or (samples == 4 and photometric not in (2, 5)):
        raise BadSlide(f"{what} has {samples} channels of no colour: an H&E image has three (RGB)")
    if _is_luma(first) and not first.is_tiled and _value(first.tags, 530, (2, 2)) != (1, 1):
        raise BadSlide(
            f"{what} is YCbCr with fewer colours than pixels, uncompressed: save it as RGB"
        )
    if int(first.bitspersample) not in (8, 16, 32) and photometric != 3:
        raise BadSlide(
            f"{what} has {first.bitspersample} bits a sample: save it with 8 or 16, or as float32"
        )
    size = first.imagewidth * first.imagelength * samples * int(first.bitspersample) / 8
    counts = first.databytecounts
    size *= sum(count > 0 for count in counts) / max(1, len(counts))  # some tiles may be left out
    most = _MOST_BYTES_PER_BYTE.get(int(first.compression), 1e5) * n_bytes
    if size * len(pages) > most:
        raise BadSlide(
            f"{what} claims {first.imagewidth} x {first.imagelength} px, more than its {n_bytes} bytes "
            "can hold: it is damaged or hostile, fetch it again"
        )
    block = first.tilewidth * first.tilelength * samples * int(first.bitspersample) / 8
    if first.is_tiled and block > MOST_TILE_BYTES:
        raise BadSlide(
            f"{what} has tiles of {first.tilewidth} x {first.tilelength} px: save it with tiles of "
            "256 to 1,024 px"
        )


def _is_luma(page: Any) -> bool:
    """Return whether a page holds YCbCr that no decoder turns into RGB: JPEG's does."""
    return int(page.photometric) == 6 and int(page.compression) not in (6, 7)


def _check_deflated(what: str, page: Any) -> None:
    """Hold deflated strips against their checksums, which libtiff does not look at."""
    if int(page.compression) not in (8, 32946) or page.is_tiled:
        return
    handle = page.parent.filehandle
    for number_, (offset, count) in enumerate(
        zip(page.dataoffsets, page.databytecounts, strict=True), start=1
    ):
        handle.seek(offset)
        inflater, content = zlib.decompressobj(), handle.read(count)
        try:
            while content and not inflater.eof:
                inflater.decompress(content, _PIECE_BYTES)
                content = inflater.unconsumed_tail
        except zlib.error as error:
            raise BadSlide(
                f"{what} is truncated or damaged (strip {number_}: {error}): fetch it again"
            ) from error
        if not inflater.eof and count:
            raise BadSlide(
                f"{what} is truncated or damaged (strip {number_} has no end): fetch it again"
            )


def _resolution(page: Any, imagej: Mapping[str, Any]) -> tuple[dict[str, Estimate], list[str]]:
    """Return the pixel size of the resolution tags, and what of them cannot be used."""
    values = []
    for code in (282, 283):
        given = _value(page.tags, code, None)
        if isinstance(given, tuple) and len(given) == 2:
            given = given[0] / given[1] if given[1] else None
        value = number(given)
        values.append(value if value and value > 0 else None)
    x, y = values
    if not (x or y):
        return {}, []
    per_x, per_y = x or y or 1.0, y or x or 1.0
    unit = str(imagej.get("unit", "")).replace("\\u00B5", "\u00b5").strip().lower()
    if unit in _UM_PER_NAME:
        um = _UM_PER_NAME[unit]
        return {"imagej": (um / per_x, um / per_y)}, []
    code = _value(page.tags, 296, None)
    um = _UM_PER_UNIT.get(int(code) if code is not None else 0)
    if um is None:
        if (per_x, per_y) == (1, 1):
            return {}, []
        return {}, [f"its TIFF resolution of {per_x:g} has no unit"]
    return {"tiff": (um / per_x, um / per_y)}, []


def _declared_scale(page: Any, ome: _Ome | None) -> float | None:
    """Return the value of white: SMaxSampleValue, MaxSampleValue or OME's SignificantBits."""
    for code in (341, 281):
        given = _value(page.tags, code, None)
        values = [number(v) for v in (given if isinstance(given, tuple) else (given,))]
        if values and all(value and value > 0 for value in values):
            return max(value for value in values if value)
    if ome is not None and ome.bits:
        return 2**ome.bits - 1
    return None


def _read_ome(text: str) -> list[_Ome]:
    """Return the images that OME-XML describes; none of what is no OME-XML, or holds entities."""
    if "<OME" not in text and ":OME" not in text or "<!DOCTYPE" in text or "<!ENTITY" in text:
        return []
    try:
        root = ElementTree.fromstring(text.strip().strip("\0"))
    except (ElementTree.ParseError, ValueError):
        return []
    objectives = {
        one.get("ID"): number(one.get("NominalMagnification")) for one in _all(root, "Objective")
    }
    images = []
    for image in _all(root, "Image"):
        pixels = next(_all(image, "Pixels"), None)
        if pixels is None:
            continue
        sizes = [number(pixels.get(f"Size{axis}")) or 0 for axis in "XYZT"]
        channels = list(_all(pixels, "Channel"))
        used = next(_all(image, "ObjectiveSettings"), None)
        images.append(
            _Ome(
                name=image.get("Name") or "",
                size=(int(sizes[0]), int(sizes[1])),
                depth=int(max(1, sizes[2]) * max(1, sizes[3])),
                mpp=(_physical(pixels, "X"), _physical(pixels, "Y")),
                channels=tuple(
                    channel.get("Name") or _OME_COLOURS.get(channel.get("Color") or "", "")
                    for channel in channels
                ),
                fluorescent=any(
                    channel.get("Fluor") or channel.get("EmissionWavelength")
                    or channel.get("ContrastMethod") == "Fluorescence"
                    for channel in channels
                ),
                magnification=None if used is None else objectives.get(used.get("ID")),
                bits=number(pixels.get("SignificantBits")),
            )
        )  # fmt: skip
    return images


def _all(element: ElementTree.Element, name: str) -> Iterator[ElementTree.Element]:
    """Give the elements of a name below another, whatever their namespace."""
    return (one for one in element.iter() if one.tag.rsplit("}", 1)[-1] == name)


def _physical(pixels: ElementTree.Element, axis: str) -> float | None:
    """Return PhysicalSizeX or -Y in um; the schema's default unit is the um."""
    size = number(pixels.get(f"PhysicalSize{axis}"))
    um = _UM_PER_NAME.get(pixels.get(f"PhysicalSize{axis}Unit", "um").strip().lower())
    return size * um if size and um and size > 0 else None
