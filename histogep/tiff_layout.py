"""The directories of a TIFF file: where its pixels lie, and whether they are all there.

OpenSlide and libvips are silent about lost ends and tiles that were never written. Only the layout
is read here, no pixel.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

#: First bytes of TIFF files, classic and Big, in both byte orders.
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def find_truncation(handle: BinaryIO) -> str | None:
    """Return what lies beyond the end of a TIFF (classic or Big), or None if all is there.

    Classic files above 4 GiB (Hamamatsu's NDPI) keep the high bits of their offsets elsewhere, and
    are not checked.
    """
    try:
        order, big, first = _read_header(handle)
    except (EOFError, struct.error):
        return "the header is cut"
    size = handle.seek(0, 2)
    if not big and size >= 2**32:
        return None
    queue = [first]
    seen: set[int] = set()
    while queue:
        offset = queue.pop()
        if offset == 0 or offset in seen:
            continue
        seen.add(offset)
        try:
            tags, following = _read_directory(handle, offset, order, big)
        except (struct.error, EOFError, OverflowError, OSError):
            return f"image directory {len(seen)} lies beyond the end of the file"
        queue += [following, *tags.get(330, ())]
        for offsets, counts, what in ((324, 325, "tile"), (273, 279, "strip")):
            pairs = zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False)
            lost = sum(start + count > size for start, count in pairs)
            if lost:
                return f"{lost} {what}s of image {len(seen)} lie beyond the end of the file"
    return None


def whole_levels(path: str | Path) -> dict[tuple[int, int], int]:
    """Return the number of the first tiled image of each size (width, height) that has all its tiles.

    Images with tiles that were never written (0 bytes) are left out: readers fill them differently.
    Empty for a file that is not TIFF, or none that can be read.
    """
    found: dict[tuple[int, int], int] = {}
    try:
        with open(path, "rb") as handle:
            if not handle.read(4).startswith(TIFF_STARTS):
                return {}
            for number, tags in enumerate(_directories(handle)):
                sizes = [tags.get(tag, (0,))[0] for tag in (_WIDTH, _HEIGHT)]
                counts = tags.get(_TILE_COUNTS, ())
                if all(sizes) and counts and 0 not in counts:
                    found.setdefault((sizes[0], sizes[1]), number)
    except (OSError, struct.error, EOFError, OverflowError):
        return {}
    return found


def _directories(handle: BinaryIO) -> Iterator[dict[int, tuple[int, ...]]]:
    """Give the layout tags of the images of a TIFF in order; those below another are not visited."""
    order, big, offset = _read_header(handle)
    seen: set[int] = set()
    while offset and offset not in seen:
        seen.add(offset)
        tags, offset = _read_directory(handle, offset, order, big)
        yield tags


def _read_header(handle: BinaryIO) -> tuple[str, bool, int]:
    """Return the byte order, whether it is a BigTIFF, and the offset of the first directory."""
    handle.seek(0)
    header = handle.read(16)
    order = "<" if header[:2] == b"II" else ">"
    big = header[2:4] in (b"+\0", b"\0+")
    if len(header) < (16 if big else 8):
        raise EOFError
    offset = header[8:16] if big else header[4:8]
    return order, big, struct.unpack(order + ("Q" if big else "I"), offset)[0]


_WIDTH, _HEIGHT, _TILE_COUNTS = 256, 257, 325
_TAG_TYPES = {3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_TYPE_BYTES |= {16: 8, 17: 8, 18: 8}
_LAYOUT_TAGS = (_WIDTH, _HEIGHT, 273, 279, 324, _TILE_COUNTS, 330)


def _read_directory(
    handle: BinaryIO, offset: int, order: str, big: bool
) -> tuple[dict[int, tuple[int, ...]], int]:
    """Return the layout tags of one TIFF directory and the offset of the next."""
    word, entry_bytes, inline = ("Q", 20, 8) if big else ("I", 12, 4)
    handle.seek(offset)
    (n,) = struct.unpack(order + ("Q" if big else "H"), _exactly(handle, 8 if big else 2))
    if n > 65535:
        raise EOFError
    entries = _exactly(handle, n * entry_bytes)
    (following,) = struct.unpack(order + word, _exactly(handle, inline))
    tags = {}
    for place in range(0, n * entry_bytes, entry_bytes):
        tag, kind, count = struct.unpack_from(order + "HH" + word, entries, place)
        length = count * _TYPE_BYTES.get(kind, 1)
        value = entries[place + entry_bytes - inline : place + entry_bytes]
        if length > inline:
            (start,) = struct.unpack(order + word, value)
            if tag in _LAYOUT_TAGS:
                handle.seek(start)
                value = _exactly(handle, length)
            elif start + length > handle.seek(0, 2):
                raise EOFError
        if tag in _LAYOUT_TAGS and kind in _TAG_TYPES:
            tags[tag] = struct.unpack_from(f"{order}{count}{_TAG_TYPES[kind]}", value)
    return tags, following


def _exactly(handle: BinaryIO, n: int) -> bytes:
    """Read n bytes; lengths that a damaged file declares are held against it before memory is asked."""
    place = handle.tell()
    if place + n > handle.seek(0, 2):
        raise EOFError
    handle.seek(place)
    content = handle.read(n)
    if len(content) < n:
        raise EOFError
    return content
