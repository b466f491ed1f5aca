"""Check what a Zarr store from others holds before anything is read from it.

A store is a folder of many small files. A chunk that is missing reads as zeros, silently: a copy cut
short turns counts into other counts. A link may lead to any file of the machine, a codec may run code
(`pickle`), and an array can declare sizes that its files do not hold. So every array below a group is
compared with its files, and what it is packed with must be known. Both formats, 2 and 3, are read.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from histogep.errors import InputError
from histogep.files import given_file

#: Files that describe a group or an array, of format 3 and of format 2.
_MARKS = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")
#: What arrays may be packed with, by its name in either format.
_CODECS = frozenset(
    "bytes transpose vlen-utf8 zstd blosc gzip zlib lz4 crc32c shuffle bz2 lzma".split()  # noqa: SIM905
)
#: Bytes of a description: the consolidated one of a large store has a few MB.
_MOST_JSON = 2**26
#: Chunks of one array; those of a table are thousands.
_MOST_CHUNKS = 1_000_000
#: Bytes that arrays may declare beyond what their files can unpack to: repeated values.
_FREE_BYTES = 2**28
_MOST_EXPANSION = 1032
_ZSTD = b"\x28\xb5\x2f\xfd"
_AGAIN = "copy the whole store again"
_REWRITE = "write the store again with spatialdata's own settings"


def is_zarr(folder: str | Path) -> bool:
    """Return whether a folder is a Zarr store, by its name or by what it holds."""
    folder = Path(folder)
    return folder.suffix == ".zarr" or any((folder / mark).exists() for mark in _MARKS)


def read_attributes(group: str | Path) -> dict[str, Any]:
    """Return the attributes of a group or an array; empty where it has none.

    Raises
    ------
    InputError
        Its description is not JSON.
    """
    group = Path(group)
    for name in ("zarr.json", ".zattrs"):
        if os.path.lexists(group / name):
            found = _description(group / name)
            attributes = found.get("attributes", {}) if name == "zarr.json" else found
            return attributes if isinstance(attributes, dict) else {}
    return {}


def check_zarr(folder: str | Path) -> list[str]:
    """Compare every array in a group with its files; return those of which chunks are missing.

    A missing chunk is no error by itself: writers leave out chunks in which every value is the fill
    value. Which arrays may lack some is for the reader to say; `incomplete` makes the message.

    Parameters
    ----------
    folder
        The group, with all that is in it.

    Returns
    -------
    list of str
        Their names within the group, sorted ("X/data").

    Raises
    ------
    InputError
        A link, a special file, an unknown codec, a description that cannot be read, or more values
        than the files can hold.
    """
    folder = Path(folder)
    lacking, declared, stored = [], 0, 0
    _refuse_links(folder)
    for path in sorted(_arrays(folder)):
        with given_file(path, "a Zarr array"):
            array = _Array(path)
            present = [file for file in array.chunks() if file.is_file()]
            for file in present:
                stored += file.stat().st_size
                array.check_chunk(file)
            if len(present) < array.n_chunks:
                lacking.append(path.relative_to(folder).as_posix())
            declared += array.n_bytes
            if declared > _FREE_BYTES + _MOST_EXPANSION * stored:
                raise InputError(
                    f"{path} declares {array.shape} values, more than the {stored} bytes of the "
                    f"store's chunks can hold; it is damaged, or made to fill the memory: {_AGAIN}"
                )
    return lacking


def incomplete(folder: str | Path, name: str) -> InputError:
    """Return the error for an array that is needed and lacks chunks."""
    return InputError(
        f"{Path(folder) / name} lacks chunks, which would read as zeros: {_AGAIN}; if it is whole, its "
        "writer left out chunks of zeros: save it once more after "
        "zarr.config.set({'array.write_empty_chunks': True})"
    )


def refuse_linked_parts(store: str | Path) -> None:
    """Refuse a store whose groups, down to the elements, are links; the store itself may be one.

    Raises
    ------
    InputError
        With the name of the link.
    """
    for path in (*Path(store).iterdir(), *Path(store).glob("*/*")):
        if path.is_symlink():
            raise InputError(f"{path} is a link: a store must hold its own files; {_AGAIN}")


def _refuse_links(folder: Path) -> None:
    """Refuse links and special files, in and as the group, which may lead anywhere."""
    for place, folders, files in os.walk(folder):
        for name in (".", *folders, *files):
            path = Path(place) / name
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                what = "a link" if stat.S_ISLNK(mode) else "not a file"
                raise InputError(f"{path} is {what}: a store must hold its own files; {_AGAIN}")


def _arrays(folder: Path) -> Iterator[Path]:
    for place, _, files in os.walk(folder):
        path = Path(place)
        if (
            ".zarray" in files
            or "zarr.json" in files
            and _description(path / "zarr.json").get("node_type") == "array"
        ):
            yield path


def _description(path: Path) -> dict[str, Any]:
    with given_file(path, "the description of a Zarr store"):
        if path.is_symlink() or not path.is_file():
            raise InputError(f"{path} is not a file of the store: {_AGAIN}")
        if path.stat().st_size > _MOST_JSON:
            raise InputError(f"{path}: {path.stat().st_size} bytes are no description: {_AGAIN}")
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict):
            raise InputError(f"{path} is not a description of a Zarr store: {_AGAIN}")
        return found


class _Array:
    """Shape, chunks and codecs of one array, in either format."""

    def __init__(self, path: Path) -> None:
        self.path = path
        first = path / ".zarray"
        old = first.is_file() and not (path / "zarr.json").is_file()
        told = _description(first if old else path / "zarr.json")
        if old:
            kind, grid = told["dtype"], told["chunks"]
            packed = [told.get("compressor"), *(told.get("filters") or [])]
            names = [str(one["id"]) for one in packed if one is not None]
            self.separator = told.get("dimension_separator") or "."
            self.prefix = ""
        else:
            kind, grid = told["data_type"], told["chunk_grid"]
            if grid.get("name") != "regular":
                raise InputError(f"{path} has chunks of a kind {grid.get('name')!r}: {_REWRITE}")
            grid = grid["configuration"]["chunk_shape"]
            names = [
                str(one["name"] if isinstance(one, Mapping) else one) for one in told["codecs"]
            ]
            names = [name.removeprefix("numcodecs.") for name in names]
            encoding = told.get("chunk_key_encoding", {})
            v2 = encoding.get("name") == "v2"
            options = encoding.get("configuration", {})
            self.separator = options.get("separator", "." if v2 else "/")
            self.prefix = "" if v2 else "c"
        if unknown := sorted(set(names) - _CODECS):
            raise InputError(
                f"{path} is packed with {', '.join(unknown)}, which is not read: {_REWRITE}"
            )
        self.shape, self.grid = (
            tuple(_size(side, path) for side in part) for part in (told["shape"], grid)
        )
        if len(self.shape) != len(self.grid) or not all(self.grid) or self.separator not in "./":
            raise InputError(
                f"{path}: shape {self.shape} and chunks {self.grid} do not fit: {_AGAIN}"
            )
        self.text = isinstance(kind, str) and (kind in ("string", "|O") or kind == "bytes")
        self.itemsize = 1 if self.text else _bytes_of(kind, path)
        if self.n_chunks > _MOST_CHUNKS:
            raise InputError(f"{path} has {self.n_chunks} chunks, more than any table: {_AGAIN}")

    @property
    def _counts(self) -> list[int]:
        return [-(-side // chunk) for side, chunk in zip(self.shape, self.grid, strict=True)]

    @property
    def n_chunks(self) -> int:
        return math.prod(self._counts)

    @property
    def n_bytes(self) -> int:
        """Bytes that are asked for to read it: whole chunks."""
        return self.n_chunks * math.prod(self.grid) * self.itemsize

    def chunks(self) -> Iterator[Path]:
        """Give the file of each chunk."""
        if not self.shape:
            yield self.path / (self.prefix or "0")
            return
        for index in itertools.product(*map(range, self._counts)):
            parts = [self.prefix] if self.prefix else []
            yield self.path / self.separator.join([*parts, *map(str, index)])

    def check_chunk(self, file: Path) -> None:
        """Refuse an empty chunk, and one that unpacks to more than its part of the array."""
        size = file.stat().st_size
        with open(file, "rb") as handle:
            start = handle.read(18)
        if not size:
            raise InputError(f"{file} has zero bytes: {_AGAIN}")
        if start.startswith(_ZSTD) and not self.text:
            wanted = math.prod(self.grid) * self.itemsize
            if (unpacked := _zstd_size(start)) not in (None, wanted):
                raise InputError(
                    f"{file} unpacks to {unpacked} bytes, but its chunk has {wanted}: {_AGAIN}"
                )


def _size(side: Any, path: Path) -> int:
    if not isinstance(side, int) or isinstance(side, bool) or not 0 <= side < 2**40:
        raise InputError(f"{path} has a side of {side!r}: {_AGAIN}")
    return side


def _bytes_of(kind: Any, path: Path) -> int:
    if isinstance(kind, str) and re.fullmatch(r"bool|(u?int|float)(8|16|32|64)", kind):
        return np.dtype(kind).itemsize
    if isinstance(kind, str) and re.fullmatch(r"[<>|][biufSU]\d+", kind):
        return np.dtype(kind).itemsize
    if isinstance(kind, Mapping) and kind.get("name") in (
        "fixed_length_utf32",
        "null_terminated_bytes",
    ):
        return int(kind["configuration"]["length_bytes"])
    raise InputError(f"{path} holds values of a type {kind!r}, which is not read: {_REWRITE}")


def _zstd_size(start: bytes) -> int | None:
    """Return the unpacked size in a Zstandard frame's header (RFC 8878, 3.1.1), None without one."""
    flags = start[4]
    width = (1 if flags & 0x20 else 0, 2, 4, 8)[flags >> 6]
    if not width:
        return None
    at = 5 + (0 if flags & 0x20 else 1) + (0, 1, 2, 4)[flags & 3]
    return int.from_bytes(start[at : at + width], "little") + (256 if width == 2 else 0)
