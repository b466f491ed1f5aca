"""Read the features of a slide's tiles as they are needed, a band of rows at a time.

A band is a few rows of the lattice with the rows beside it, so that the neighbours of every tile
are there. Memory depends on the band and the width of a row, not on the slide; of every tile only
its position is kept. Numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from histogep.models.preparation import Tiles

#: Tiles of a band, beside those of its last row.
BAND_TILES = 4096


@dataclass(frozen=True)
class Kept:
    """The tiles of a band itself, without those beside it.

    Attributes
    ----------
    tiles
        Which tiles of the slide they are.
    rows
        Their places among the tiles that were read.
    """

    tiles: np.ndarray
    rows: np.ndarray


@dataclass(frozen=True)
class TileSource:
    """Places of the n tiles of ONE slide, and their features in memory or in an open HDF5 file.

    Attributes
    ----------
    values
        (n, d): an array, or an open `h5py.Dataset`.
    row, col
        Grid indices, (n,).
    """

    values: Any
    row: np.ndarray
    col: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    def read(self, index: np.ndarray) -> np.ndarray:
        """Return the features (k, d) of some tiles, in their order; a file is read run by run."""
        order = np.argsort(index, kind="stable")
        values = np.empty((len(index), self.values.shape[1]), np.float32)
        for place, part in runs(index[order]):
            values[order[place]] = self.values[part]
        return values

    def chunks(self, *, most: int = BAND_TILES) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield the features of all tiles in the order of the file, at most this many at a time."""
        for start in range(0, len(self), most):
            part = slice(start, min(start + most, len(self)))
            yield part, np.asarray(self.values[part], np.float32)

    def bands(
        self, *, halo: int, among: np.ndarray | None = None, most: int = BAND_TILES
    ) -> Iterator[tuple[Kept, Tiles]]:
        """Yield the tiles row by row, with all those at most `halo` rows away.

        Parameters
        ----------
        halo
            Rows beside a band that are read with it.
        among
            Tiles to give; all by default. Others are not read, not even beside a band.
        most
            Tiles of a band; it always has one whole row.
        """
        index = np.arange(len(self)) if among is None else np.asarray(among)
        index = index[np.lexsort((self.col[index], self.row[index]))]
        row = self.row[index]
        first = 0
        while first < len(index):
            # The last row that ends within `most` tiles, or the first row whole.
            last = np.searchsorted(row, row[min(first + most, len(row) - 1)], side="left")
            if first + most >= len(row):
                last = len(row)
            elif last == first:
                last = np.searchsorted(row, row[first], side="right")
            low = np.searchsorted(row, row[first] - halo, side="left")
            high = np.searchsorted(row, row[last - 1] + halo, side="right")
            read = index[low:high]
            yield (
                Kept(index[first:last], np.arange(first - low, last - low)),
                Tiles(self.read(read), self.row[read], self.col[read]),
            )
            first = int(last)


def runs(index: np.ndarray) -> Iterator[tuple[slice, slice]]:
    """Yield (where in `index`, which rows) of each run of consecutive rows; `index` ascends."""
    if not len(index):
        return
    cuts = np.flatnonzero(np.diff(index) != 1) + 1
    bounds = [0, *cuts.tolist(), len(index)]
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
        yield slice(start, stop), slice(int(index[start]), int(index[stop - 1]) + 1)
