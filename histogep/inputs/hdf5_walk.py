"""Walk over all of an HDF5 file, in a process of its own, to check what it holds.

`histogep.inputs.hdf5_guard` runs this module, since the library that reads HDF5 may crash, or never return, on
a damaged file. It knows h5py only, so that it starts quickly, and prints one line of JSON.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import h5py
from h5py import h5a, h5d, h5g, h5l, h5o, h5s, h5t, h5z

#: Deflate, the filter that shrinks most of those that HDF5 has, makes at most 1,032 bytes of one.
_MOST_EXPANSION = 1032
#: Bytes that a file may declare beyond what it can hold: datasets never filled, index tables.
_FREE_BYTES = 2**26
#: Objects of one file; AnnData and 10x files have less than a few thousand.
_MOST_OBJECTS = 100_000
#: Rank of a dataset; tables and matrices have two dimensions, images three or four.
_MOST_DIMENSIONS = 8
#: Bytes of text that are held at once while lengths of strings are added up.
_TEXT_BLOCK = 2**28
_REWRITE = "ask for the file as its tool wrote it, or copy its values into a new file"
_OUTSIDE = (
    "takes its values from another file (external storage): they are not read; ask for a file that "
    "holds its own values"
)
_LINKS = {
    h5l.TYPE_EXTERNAL: "is a link to another file (external link): it is not followed; ask for a "
    "file that holds its own values",
    h5l.TYPE_SOFT: "is a soft link, which may lead anywhere: it is not followed; ask for a file "
    "that holds its own values",
}
#: Bit of the message "external data files" in an object's header (HDF5 file format, 0x0007).
_EXTERNAL_FILES = 1 << 7
#: Bytes of values that are read at once.
_BLOCK = 2**26
#: Takes a name within the file and what is wrong there.
Refuse = Callable[[str, str], NoReturn]


class Unsafe(Exception):
    """An object of the file is not safe to read; the message names it."""


def walk(path: str) -> None:
    """Visit every link, object and attribute of a file, then read all of its values once.

    Raises
    ------
    Unsafe
        With the name of the object and what is wrong with it.
    """
    with h5py.File(path, "r") as file:
        for dataset in _visit(file, os.path.getsize(path)):
            _read(dataset)
        dict(file.attrs)
        file.visititems(_read_attributes)


def _visit(file: h5py.File, n_bytes: int) -> list[h5py.Dataset]:
    """Visit every link, object and attribute once; return the datasets."""
    budget = _FREE_BYTES + _MOST_EXPANSION * n_bytes
    own = h5o.get_info(file.id).fileno
    seen, stack, n_objects = set(), [("", h5o.open(file.id, b"/"))], 0
    texts, found = [], []

    def refuse(name: str, problem: str) -> NoReturn:
        raise Unsafe(f"{name or '/'} {problem}")

    while stack:
        name, node = stack.pop()
        info = h5o.get_info(node)
        if info.fileno != own:
            refuse(name, _OUTSIDE)
        n_objects += 1
        if n_objects > _MOST_OBJECTS:
            refuse(name, f"is one of more than {_MOST_OBJECTS} objects; no matrix has so many")
        _check_attributes(node, name, n_bytes, refuse)
        if isinstance(node, h5g.GroupID):
            if info.addr in seen:
                refuse(name, f"is a group that has another name too (a loop?); {_REWRITE}")
            seen.add(info.addr)
            for link in _names_of_links(node):
                child = f"{name}/{_decode(link, name, refuse)}"
                kind = node.links.get_info(link).type
                if kind != h5l.TYPE_HARD:
                    refuse(child, _LINKS.get(kind, f"is a user-defined link; {_REWRITE}"))
                if _header_says_external(node, link):
                    refuse(child, _OUTSIDE)
                stack.append((child, h5o.open(node, link)))
        elif isinstance(node, h5d.DatasetID):
            budget -= _declared_bytes(node, name, refuse)
            if budget < 0:
                refuse(
                    name,
                    f"declares {node.shape} values, more than the {n_bytes} bytes of the whole file "
                    f"can hold; it is damaged, or made to fill the memory. {_REWRITE}",
                )
            if _is_text(node.get_type()):
                texts.append((name, node))
            else:
                found.append(h5py.Dataset(node))
        elif not isinstance(node, h5t.TypeID):
            refuse(name, f"is neither a group, a dataset nor a type; {_REWRITE}")
    for name, node in texts:
        _check_text(node, name, n_bytes, refuse)
    return found


def _read_attributes(_: str, node: h5py.Group | h5py.Dataset) -> None:
    dict(node.attrs)


def _read(dataset: h5py.Dataset) -> None:
    """Read all values of a dataset, block by block."""
    if dataset.shape is None or not dataset.size:
        return
    if not dataset.shape:
        dataset[()]
        return
    step = max(1, _BLOCK // max(1, dataset.dtype.itemsize * (dataset.size // dataset.shape[0])))
    if dataset.chunks:
        # Whole chunks: one is unpacked for each block that touches it.
        step = max(dataset.chunks[0], step // dataset.chunks[0] * dataset.chunks[0])
    for start in range(0, dataset.shape[0], step):
        dataset[start : start + step]


def _names_of_links(group: h5g.GroupID) -> list[bytes]:
    names: list[bytes] = []
    group.links.iterate(lambda name: names.append(bytes(name)))
    return names


def _header_says_external(group: h5g.GroupID, link: bytes) -> bool:
    """Return whether an object keeps its values in other files, without opening it."""
    return bool(h5o.get_info(group, link).hdr.mesg.present & _EXTERNAL_FILES)


def _decode(name: bytes, group: str, refuse: Refuse) -> str:
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        refuse(group, f"holds a name that is not UTF-8 ({name!r}); {_REWRITE}")


def _check_attributes(node: Any, name: str, n_bytes: int, refuse: Refuse) -> None:
    """Refuse attributes that refer to other files or are larger than the file."""
    for index in range(h5a.get_num_attrs(node)):
        attribute = h5a.open(node, index=index)
        label = f"{name}@{_decode(attribute.name, name, refuse)}"
        if _refers_elsewhere(attribute.get_type()):
            refuse(label, f"is a reference that may lead to another file; {_REWRITE}")
        size = math.prod(attribute.shape) * attribute.get_type().get_size()
        if size > n_bytes:
            refuse(label, f"declares {size} bytes, more than the file has; it is damaged")


def _declared_bytes(dataset: h5d.DatasetID, name: str, refuse: Refuse) -> int:
    """Return the bytes of a dataset once read, after a look at where its values lie."""
    plan = dataset.get_create_plist()
    if plan.get_layout() == h5d.VIRTUAL:
        refuse(name, _OUTSIDE.replace("external storage", "virtual dataset"))
    if plan.get_external_count():
        refuse(name, _OUTSIDE)
    kind = dataset.get_type()
    if _refers_elsewhere(kind):
        refuse(name, f"holds references that may lead to another file; {_REWRITE}")
    for index in range(plan.get_nfilters()):
        code, flags, _, label = plan.get_filter(index)
        if not h5z.filter_avail(code):
            refuse(
                name,
                f"is compressed with filter {code} ({label.decode('utf-8', 'replace')}), which is "
                "not installed: write the file again with gzip or without compression",
            )
    if dataset.get_space().get_simple_extent_type() == h5s.NULL:
        return 0
    shape = dataset.shape
    if len(shape) > _MOST_DIMENSIONS:
        refuse(name, f"has {len(shape)} dimensions; {_REWRITE}")
    size = math.prod(shape) * kind.get_size()
    # A string of any length is 16 bytes in its dataset; the letters lie elsewhere in the file.
    if size > _FREE_BYTES + _MOST_EXPANSION * dataset.get_storage_size():
        refuse(
            name,
            f"declares {shape} values ({size:.3g} bytes), but the file holds "
            f"{dataset.get_storage_size()} bytes of it; it is damaged, or made to fill the memory. "
            f"{_REWRITE}",
        )
    return size


def _parts(kind: h5t.TypeID) -> Iterator[h5t.TypeID]:
    """Yield a type and the types that it is made of."""
    yield kind
    if isinstance(kind, h5t.TypeCompoundID):
        for index in range(kind.get_nmembers()):
            yield from _parts(kind.get_member_type(index))
    elif isinstance(kind, h5t.TypeArrayID | h5t.TypeVlenID):
        yield from _parts(kind.get_super())


def _refers_elsewhere(kind: h5t.TypeID) -> bool:
    """Return whether a type is a reference other than to an object of the same file.

    AnnData before 0.8 pointed from a column to its categories with object references.
    """
    return any(
        part.get_class() == h5t.REFERENCE and not part.equal(h5t.STD_REF_OBJ)
        for part in _parts(kind)
    )


def _is_text(kind: h5t.TypeID) -> bool:
    return any(
        isinstance(part, h5t.TypeVlenID)
        or (isinstance(part, h5t.TypeStringID) and part.is_variable_str())
        for part in _parts(kind)
    )


def _check_text(node: h5d.DatasetID, name: str, n_bytes: int, refuse: Refuse) -> None:
    """Refuse strings or lists of varying length that together are longer than the file.

    Many entries may point to one long text, so that a small file unpacks to any size.
    """
    dataset = h5py.Dataset(node)
    if not dataset.size:
        return
    n_rows = dataset.shape[0] if dataset.shape else 1
    step = max(1, _TEXT_BLOCK // max(1, n_bytes * (dataset.size // n_rows)))
    total = 0
    for start in range(0, n_rows, step):
        total += _length(dataset[start : start + step] if dataset.shape else dataset[()])
        if total > n_bytes:
            refuse(name, f"holds more text than the file's {n_bytes} bytes; it is damaged")


def _length(values: Any) -> int:
    if isinstance(values, bytes | str):
        return len(values)
    if isinstance(values, dict):
        return 0
    return sum(_length(value) for value in values) if hasattr(values, "__iter__") else 1


def main(path: str) -> None:
    """Print what is wrong with a file as JSON: `unsafe`, `damaged`, or neither."""
    result = {}
    try:
        walk(path)
    except Unsafe as error:
        result = {"unsafe": str(error)}
    except Exception as error:
        lines = str(error).strip().splitlines()
        result = {"damaged": lines[0] if lines else type(error).__name__}
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1])
