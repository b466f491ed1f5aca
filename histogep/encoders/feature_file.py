"""Features of a slide's tiles in one HDF5 file, laid out as TRIDENT and CLAM write them.

Datasets: `features` (n, d) float32, `coords` (n, 2) int64 level-0 top-left corners, `row`, `col`
int32, `barcode` text ("" on slides without spots), `white` (d,) the features of an all-white tile.
The attributes of `coords` are TRIDENT's; those of the file hold `blocks`, `encoders`, `lattice`
(JSON) and `slide`. This module knows h5py and numpy only.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from histogep.errors import InputError
from histogep.files import complete
from histogep.slides.rejected import refuse_failed

#: Magnification times um per px, by the convention that 20x is 0.5 um per px.
MAGNIFICATION_UM = 10.0
#: Rows of a chunk, which is written and checked as one.
_CHUNK_ROWS = 256
#: Files that could not be closed; kept to the end of the process.
_UNWRITTEN: list[Any] = []


@dataclass
class Features:
    """The features of a slide's tiles and where the tiles lie.

    Attributes
    ----------
    slide
        Id of the slide.
    values
        Features, (n, d) float32; columns lie block by block.
    row, col
        Grid indices of the positions, int32.
    coords
        Top left corners (x, y) of the tiles in level-0 px, (n, 2) int64.
    barcode
        Spot barcodes (str), "" on slides without spots.
    white
        Features of an all-white tile, (d,) float32: what pads a grid.
    blocks
        (encoder name, number of columns) in the order of the columns.
    lattice
        Settings of the lattice: kind, pitch_um, tile_um.
    encoders
        One dict per encoder: name, sha256 of the weights, dim, mpp (um per px), precision.
    attributes
        TRIDENT's attributes of `coords`, as `tile_attributes` gives them.
    """

    slide: str
    values: np.ndarray
    row: np.ndarray
    col: np.ndarray
    coords: np.ndarray
    barcode: np.ndarray
    white: np.ndarray
    blocks: list[tuple[str, int]]
    lattice: dict[str, Any]
    encoders: list[dict[str, Any]]
    attributes: dict[str, Any] = field(default_factory=dict)

    def block(self, name: str) -> np.ndarray:
        """Return the columns of one encoder, (n, width)."""
        start = 0
        for block, width in self.blocks:
            if block == name:
                return self.values[:, start : start + width]
            start += width
        names = ", ".join(block for block, _ in self.blocks)
        raise InputError(f"slide {self.slide} has no features of {name!r}, only of {names}")


def tile_attributes(
    *,
    slide: str,
    mpp: float,
    tile_um: float,
    pitch_um: float,
    width_px: int,
    height_px: int,
    objective: float | None = None,
    tile_px: int = 224,
) -> dict[str, Any]:
    """Return the attributes that TRIDENT keeps on `coords`, with mpp and target_mpp added.

    Parameters
    ----------
    slide
        Id of the slide.
    mpp
        um per level-0 px.
    tile_um, pitch_um
        Side of a tile and distance between tiles in um; where tiles are apart, overlap is 0.
    width_px, height_px
        Size of level 0.
    objective
        Magnification written in the file, if any; else it follows from `mpp`.
    tile_px
        Side in px of a tile as encoded.
    """
    target_mpp = tile_um / tile_px
    side_px = max(1, round(tile_um / mpp))
    level0 = max(1, round(objective or MAGNIFICATION_UM / mpp))
    return {
        "patch_size": int(tile_px),
        "patch_size_level0": side_px,
        "level0_magnification": level0,
        # TRIDENT reads squares of patch_size x level0 / target px: a rounded target magnification makes
        # them another size on slides of odd pixel sizes (168 in place of 163 px).
        "target_magnification": level0 * tile_px / side_px,
        "overlap": max(0, round((tile_um - pitch_um) / target_mpp)),
        "name": slide,
        "savetodir": "results/features",
        "level0_width": int(width_px),
        "level0_height": int(height_px),
        "mpp": float(mpp),
        "target_mpp": float(target_mpp),
    }


class FeatureWriter:
    """Write features batch by batch into a file that appears only when all rows are in.

    Use as a context manager; `append` the rows in order. A missing row is an error at the end, so
    a file is never silently short.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        slide: str,
        row: np.ndarray,
        col: np.ndarray,
        coords: np.ndarray,
        barcode: Sequence[str] | np.ndarray,
        blocks: Sequence[tuple[str, int]],
        lattice: dict[str, Any],
        encoders: Sequence[dict[str, Any]],
        attributes: dict[str, Any],
    ) -> None:
        self._complete = complete(path)
        self._n = len(row)
        self._width = sum(int(width) for _, width in blocks)
        self._tables: dict[str, np.ndarray] = {
            "coords": np.asarray(coords, np.int64).reshape(self._n, 2),
            "row": np.asarray(row, np.int32),
            "col": np.asarray(col, np.int32),
        }
        self._barcode = [str(value) for value in barcode]
        if not len(self._tables["col"]) == len(self._barcode) == self._n:
            raise ValueError("row, col, coords and barcode differ in length")
        self._attributes = attributes
        self._root = {
            "slide": slide,
            "blocks": json.dumps([[str(name), int(width)] for name, width in blocks]),
            "lattice": json.dumps(lattice, sort_keys=True),
            "encoders": json.dumps(list(encoders), sort_keys=True),
        }
        self._written = 0

    def __enter__(self) -> FeatureWriter:
        temporary = self._complete.__enter__()
        # The chunk that rows are appended to stays in the cache; it is larger than HDF5's own.
        self._file = h5py.File(temporary, "w", rdcc_nbytes=16 * 2**20)
        self._file.attrs.update(self._root)
        for name, values in self._tables.items():
            self._file.create_dataset(name, data=values, track_times=False)
        self._file["coords"].attrs.update(self._attributes)
        self._file.create_dataset(
            "barcode",
            data=np.array(self._barcode, dtype=object),
            dtype=h5py.string_dtype("utf-8"),
            shape=(self._n,),
            track_times=False,
        )
        self._features = self._file.create_dataset(
            "features",
            shape=(self._n, self._width),
            dtype=np.float32,
            track_times=False,
            # A checksum of every chunk: flipped or zeroed bytes are an error, not other features.
            fletcher32=True,
            chunks=(min(self._n, _CHUNK_ROWS), self._width) if self._n and self._width else None,
        )
        return self

    def append(self, values: np.ndarray) -> None:
        """Add the next rows, (k, d); infinite and missing numbers are refused."""
        if not np.isfinite(values).all():
            raise ValueError(f"features from row {self._written} on are not all finite")
        self._features[self._written : self._written + len(values)] = values
        self._written += len(values)

    def set_white(self, values: np.ndarray) -> None:
        """Set the features of an all-white tile, (d,)."""
        values = np.asarray(values, np.float32).reshape(self._width)
        self._file.create_dataset("white", data=values, track_times=False)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        own: Exception | None = None
        try:
            self._file.close()
        except (OSError, RuntimeError) as failed:  # what was held back found the disk full
            own = failed
            # HDF5 crashes the process when it throws away later what it could not write.
            _UNWRITTEN.append((self._file, self._features))
        if error is None and own is None and self._written != self._n:
            own = ValueError(f"{self._written} of {self._n} rows of features were written")
        if error is None and own is not None:
            self._complete.__exit__(type(own), own, None)
            raise own
        self._complete.__exit__(kind, error, trace)


def write_features(features: Features, path: str | Path) -> None:
    """Write the features of one slide; the file is complete or absent."""
    with FeatureWriter(
        path,
        slide=features.slide,
        row=features.row,
        col=features.col,
        coords=features.coords,
        barcode=features.barcode,
        blocks=features.blocks,
        lattice=features.lattice,
        encoders=features.encoders,
        attributes=features.attributes,
    ) as writer:
        writer.append(np.asarray(features.values, np.float32))
        writer.set_white(features.white)


def read_features(path: str | Path) -> Features:
    """Return the features of one slide.

    Raises
    ------
    InputError
        If the file cannot be read, or its tables do not agree in length; a BadSlide if the slide
        could not be used.
    """
    with open_features(path) as features, _readable(path):
        features.values = features.values[()].astype(np.float32, copy=False)
    return features


@contextlib.contextmanager
def open_features(path: str | Path) -> Iterator[Features]:
    """Give the features of one slide with `values` still in the file, an open `h5py.Dataset`.

    Raises
    ------
    InputError
        As for `read_features`.
    """
    with contextlib.ExitStack() as stack:
        with _readable(path):
            file = stack.enter_context(h5py.File(path, "r"))
            refuse_failed(file.attrs)
            features = Features(
                slide=str(file.attrs["slide"]),
                values=file["features"],
                row=file["row"][()],
                col=file["col"][()],
                coords=file["coords"][()],
                barcode=file["barcode"].asstr()[()],
                white=file["white"][()],
                blocks=[(name, int(width)) for name, width in json.loads(file.attrs["blocks"])],
                lattice=json.loads(file.attrs["lattice"]),
                encoders=json.loads(file.attrs["encoders"]),
                attributes={key: _plain(value) for key, value in file["coords"].attrs.items()},
            )
            n, d = features.values.shape
        lengths = {len(getattr(features, name)) for name in ("row", "col", "coords", "barcode")}
        width = sum(width for _, width in features.blocks)
        if lengths != {n} or len(features.white) != d or width != d:
            raise InputError(
                f"the tables of {path} do not agree: delete it, run encode_tiles again"
            )
        with _readable(path):
            refuse_unfinished(features.values, path)
        yield features


@contextlib.contextmanager
def _readable(path: str | Path) -> Iterator[None]:
    """Turn what goes wrong when a file is read into a message."""
    try:
        yield
    except InputError:
        raise
    except (OSError, KeyError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read as features ({error}): delete it and run encode_tiles again"
        ) from error


def refuse_unfinished(values: Any, path: str | Path) -> None:
    """Raise an InputError if the last row of features, an array or an open dataset, is all zero.

    HDF5 holds zeros where nothing was written yet, so a writer that died after a flush leaves a
    file that opens and reads like any other.
    """
    if values.size and not values[-1].any():
        last = int(np.flatnonzero(np.any(values[()], axis=1)).max(initial=-1))
        raise InputError(
            f"{path}: the features of all tiles after number {last + 1} of {len(values)} are zero, "
            "so its writer was stopped: make the file again"
        )


def _plain(value: Any) -> Any:
    """Turn numpy scalars of HDF5 attributes into plain types."""
    return value.item() if isinstance(value, np.generic) else value
