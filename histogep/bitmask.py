"""Masks of whole slides in bits, looked at window by window, and the connected pieces of them.

A slide of 50 mm x 50 mm has 39 million mask pixels of 8 um: 5 MB in bits. All that is done with
them is done in windows, so that memory does not grow with the slide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse import csgraph

#: Side in px of a window: a multiple of 8, so that windows begin with a byte.
WINDOW_PX = 256


@dataclass(frozen=True)
class Window:
    """Rows `top` to `bottom` and columns `left` to `right` (both without the last) of an image."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.bottom - self.top, self.right - self.left

    def grown(self, margin: int, shape: tuple[int, int]) -> Window:
        """Return the window with a margin on every side that lies within an image of `shape`."""
        return Window(
            max(0, self.top - margin),
            min(shape[0], self.bottom + margin),
            max(0, self.left - margin),
            min(shape[1], self.right + margin),
        )

    def within(self, outer: Window) -> tuple[slice, slice]:
        """Return where the window lies in an array of a larger one."""
        return (
            slice(self.top - outer.top, self.bottom - outer.top),
            slice(self.left - outer.left, self.right - outer.left),
        )


def windows(shape: tuple[int, int]) -> Iterator[Window]:
    """Give the windows that cover an image of `shape` once, row by row."""
    side = WINDOW_PX
    for top in range(0, shape[0], side):
        for left in range(0, shape[1], side):
            yield Window(top, min(shape[0], top + side), left, min(shape[1], left + side))


class BitMask:
    """A bool image that takes one bit a pixel.

    Parameters
    ----------
    shape
        Height and width; the mask is False everywhere at first.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape
        self._bytes = np.zeros((shape[0], -(-shape[1] // 8)), np.uint8)

    @classmethod
    def of(cls, array: np.ndarray) -> BitMask:
        """Return the mask of a bool array (height, width)."""
        mask = cls(array.shape)
        mask._bytes[:] = np.packbits(array, axis=1)
        return mask

    def write(self, window: Window, values: np.ndarray) -> None:
        """Set the pixels of a window that begins at a multiple of 8 px and ends so or at the edge."""
        if window.left % 8 or (window.right % 8 and window.right != self.shape[1]):
            raise ValueError(f"columns {window.left} to {window.right} are no whole bytes")
        columns = slice(window.left // 8, -(-window.right // 8))
        self._bytes[window.top : window.bottom, columns] = np.packbits(values, axis=1)

    def read(self, window: Window) -> np.ndarray:
        """Return the pixels of any window, bool."""
        first = window.left // 8
        part = self._bytes[window.top : window.bottom, first : -(-window.right // 8)]
        columns = slice(window.left - 8 * first, window.right - 8 * first)
        return np.unpackbits(part, axis=1)[:, columns].view(bool)

    def at(self, row: np.ndarray, col: np.ndarray) -> np.ndarray:
        """Return the pixels at rows and columns, bool."""
        return (self._bytes[row, col >> 3] >> (7 - (col & 7)).astype(np.uint8) & 1).astype(bool)

    def every(self, step: int) -> np.ndarray:
        """Return each `step`-th pixel of each `step`-th row, bool."""
        rows = self._bytes[::step]
        sampled = np.empty((len(rows), -(-self.shape[1] // step)), bool)
        for place, row in enumerate(rows):
            sampled[place] = np.unpackbits(row)[: self.shape[1] : step]
        return sampled

    def count(self) -> int:
        """Return the number of True pixels."""
        return sum(int(np.bitwise_count(row).sum(dtype=np.int64)) for row in self._bytes)


class Pieces:
    """The connected pieces of a mask, which may cross its windows.

    Parameters
    ----------
    mask
        The mask. It may be changed by `keep` only.
    holes
        True looks at the pieces of what is False.
    diagonal
        Whether pixels that share a corner are connected.
    """

    def __init__(self, mask: BitMask, *, holes: bool = False, diagonal: bool = False) -> None:
        self._mask, self._holes = mask, holes
        self._structure = ndimage.generate_binary_structure(2, 2 if diagonal else 1)
        steps = (-1, 0, 1) if diagonal else (0,)
        width = mask.shape[1]
        areas, pairs = [np.zeros(1)], [np.zeros((0, 2), np.int64)]
        self._first: dict[Window, int] = {}
        n, above, below = 1, np.zeros(width, np.int64), np.zeros(width, np.int64)
        beside = np.zeros(0, np.int64)
        for window in windows(mask.shape):
            if window.left == 0:
                above, below = below, np.zeros(width, np.int64)
            labels, n_here = self._label(window)
            self._first[window] = n
            areas.append(np.bincount(labels.ravel(), minlength=n_here + 1)[1:])
            labels = np.where(labels > 0, labels.astype(np.int64) + n - 1, 0)
            n += n_here
            padded = np.pad(above, 1)
            for step in steps:
                touching = padded[1 + window.left + step : 1 + window.right + step]
                pairs.append(np.column_stack([labels[0], touching]))
                if window.left:
                    touching = np.pad(beside, 1)[1 + step : 1 + step + len(beside)]
                    pairs.append(np.column_stack([labels[:, 0], touching]))
            below[window.left : window.right] = labels[-1]
            beside = labels[:, -1]
        joined = np.concatenate([pair[(pair > 0).all(axis=1)] for pair in pairs])
        graph = sparse.coo_matrix((np.ones(len(joined), bool), joined.T), shape=(n, n))
        # Label 0 is no piece; it is connected with nothing, so a component of its own.
        n_components, self._piece = csgraph.connected_components(graph, directed=False)
        self._none = self._piece[0]
        #: Pixels of each piece; 0 for the entry that is none.
        self.area = np.bincount(self._piece, np.concatenate(areas), minlength=n_components)

    def __len__(self) -> int:
        return len(self.area) - 1

    def _label(self, window: Window) -> tuple[np.ndarray, int]:
        values = self._mask.read(window)
        return ndimage.label(~values if self._holes else values, structure=self._structure)

    def read(self, window: Window) -> np.ndarray:
        """Return the index of each pixel's piece in `area` over one of the `windows`."""
        labels, _ = self._label(window)
        first = self._first[window]
        return self._piece[np.where(labels > 0, labels + first - 1, 0)]

    def mean(self, values: Callable[[Window], np.ndarray]) -> np.ndarray:
        """Return the mean over each piece of what `values` gives for a window; NaN for none."""
        total = np.zeros(len(self.area))
        for window in windows(self._mask.shape):
            total += np.bincount(
                self.read(window).ravel(), values(window).ravel(), minlength=len(total)
            )
        return np.divide(total, self.area, out=np.full(len(total), np.nan), where=self.area > 0)

    def keep(self, chosen: np.ndarray) -> None:
        """Take the pieces that are not `chosen` (bool, one for each of `area`) off the mask.

        Of holes, those that are not chosen are filled.
        """
        chosen = chosen.copy()
        chosen[self._none] = False
        for window in windows(self._mask.shape):
            kept = chosen[self.read(window)]
            self._mask.write(window, ~kept if self._holes else kept)
