"""The lattice of positions (spots or tiles) on which models are trained and slides are cut.

Every position has a grid row and column. On the hexagonal lattice of Visium the rows are
`pitch_um * sqrt(3) / 2` apart, odd rows are shifted right by half a pitch, and the grid column is
`array_col // 2`; the lattices of legacy ST and Visium HD are square.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histogep.errors import InputError

if TYPE_CHECKING:
    from scipy import sparse

KINDS = ("visium", "st", "square")

_SQUARE_STEPS = [(dr, dc) for dr in (-1, 0, 1) for dc in (-1, 0, 1) if (dr, dc) != (0, 0)]
#: Steps to the six neighbours of a hexagonal position in an even and in an odd row.
_HEX_STEPS = {
    0: [(-1, -1), (-1, 0), (0, -1), (0, 1), (1, -1), (1, 0)],
    1: [(-1, 0), (-1, 1), (0, -1), (0, 1), (1, 0), (1, 1)],
}


@dataclass(frozen=True)
class Lattice:
    """A lattice of square tiles laid on tissue by physical size.

    Parameters
    ----------
    kind
        "visium" (hexagonal), "st" (legacy arrays, square) or "square" (Visium HD bins).
    pitch_um
        Distance in um between the centres of a position and its nearest neighbours.
    tile_um
        Side in um of the square tile cut around each centre.
    context_um
        Sides in um of the squares around each centre whose features lie side by side, `tile_um`
        among them; empty for the tile alone.
    """

    kind: str = "visium"
    pitch_um: float = 100.0
    tile_um: float = 112.0
    context_um: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"lattice.kind is {self.kind!r}: it must be one of {', '.join(KINDS)}")
        for name in ("pitch_um", "tile_um"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and np.isfinite(value) and value > 0):
                raise InputError(f"lattice.{name} is {value!r}: it must be a length in um above 0")
            object.__setattr__(self, name, float(value))
        sides = tuple(sorted({float(side) for side in self.context_um}))
        if sides and (self.tile_um not in sides or sides[0] <= 0 or not np.isfinite(sides[-1])):
            raise InputError(
                f"lattice.context_um is {list(sides)}: it must hold lengths in um above 0, and "
                f"tile_um ({self.tile_um:g}) among them"
            )
        object.__setattr__(self, "context_um", sides if sides != (self.tile_um,) else ())

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Lattice:
        """Return the lattice of a dict with kind, pitch_um, tile_um and context_um."""
        unknown = set(settings) - {"kind", "pitch_um", "tile_um", "context_um"}
        if unknown:
            raise InputError(f"lattice has unknown settings: {', '.join(sorted(unknown))}")
        return cls(**settings)

    def to_settings(self) -> dict[str, Any]:
        """Return the plain dict that `from_settings` reads; context_um only where there is some."""
        settings: dict[str, Any] = {
            "kind": self.kind,
            "pitch_um": self.pitch_um,
            "tile_um": self.tile_um,
        }
        return settings | ({"context_um": list(self.context_um)} if self.context_um else {})

    @property
    def views(self) -> list[tuple[float, str]]:
        """Sides in um of the squares that are encoded, `tile_um` first, and what blocks add for them."""
        wider = [side for side in self.context_um if side != self.tile_um]
        return [(self.tile_um, ""), *((side, f"@{side:g}um") for side in wider)]

    @property
    def hexagonal(self) -> bool:
        """Whether odd rows are shifted by half a pitch."""
        return self.kind == "visium"

    @property
    def row_um(self) -> float:
        """Distance in um between the rows."""
        return self.pitch_um * (np.sqrt(3) / 2 if self.hexagonal else 1.0)

    @property
    def cell_um2(self) -> float:
        """Area in um2 of the tissue that one position stands for."""
        return self.pitch_um * self.row_um

    @property
    def spot_um(self) -> float:
        """Diameter in um of a spot where no file says it: 55 of 100 um of Visium, a bin all of it."""
        return self.pitch_um * {"visium": 0.55, "st": 0.5, "square": 1.0}[self.kind]

    def centres_um(self, row: np.ndarray, col: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the centres (x, y) in um of positions; (0, 0) lies half a pitch from the origin.

        Parameters
        ----------
        row, col
            Grid indices.

        Returns
        -------
        tuple of numpy.ndarray
            x and y in um, float64.
        """
        row, col = np.asarray(row, np.int64), np.asarray(col, np.int64)
        shift = (row % 2) / 2 if self.hexagonal else 0.0
        return (col + shift + 0.5) * self.pitch_um, row * self.row_um + self.pitch_um / 2

    def cover(self, width_um: float, height_um: float) -> tuple[np.ndarray, np.ndarray]:
        """Return row and col (int32, row by row) of the positions with their centre in a rectangle.

        Parameters
        ----------
        width_um, height_um
            Size in um of the rectangle, whose top left corner is the origin.
        """
        parts = list(self.cover_by_rows(width_um, height_um))
        row, col = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return row, col

    def cover_by_rows(
        self, width_um: float, height_um: float, *, rows: int = 32
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the positions of `cover` some rows at a time; at least once, if only with none."""
        n_rows = max(0, int(np.ceil((height_um - self.pitch_um / 2) / self.row_um)) + 1)
        n_cols = max(0, int(np.ceil((width_um - self.pitch_um / 2) / self.pitch_um)) + 1)
        for first in range(0, max(n_rows, 1), rows):
            n = max(0, min(rows, n_rows - first)) * n_cols
            row, col = np.divmod(np.arange(n), max(n_cols, 1))
            row = row + first
            x_um, y_um = self.centres_um(row, col)
            inside = (x_um < width_um) & (y_um < height_um)
            yield row[inside].astype(np.int32), col[inside].astype(np.int32)

    def neighbours(self, row: np.ndarray, col: np.ndarray) -> sparse.csr_matrix:
        """Return which positions of a table touch: the 6 (hexagonal) or 8 (square) nearest.

        Parameters
        ----------
        row, col
            Grid indices of the n positions of ONE slide, each at most once, in any order.

        Returns
        -------
        scipy.sparse.csr_matrix
            Boolean, n by n, symmetric, without the diagonal; indices sorted.
        """
        from scipy import sparse  # here: a plan, which knows lattices too, does without

        row, col = np.asarray(row, np.int64), np.asarray(col, np.int64)
        n = len(row)
        if n == 0:
            return sparse.csr_matrix((0, 0), dtype=bool)
        stride = int(col.max() - col.min()) + 3
        key = (row - row.min()) * stride + (col - col.min()) + 1
        order = np.argsort(key, kind="stable")
        ordered = key[order]
        if (np.diff(ordered) == 0).any():
            raise ValueError("a lattice position is listed twice: give one slide at a time")
        first, second = [], []
        for step in range(6 if self.hexagonal else 8):
            d_row, d_col = self._step(step, row)
            target = key + d_row * stride + d_col
            place = np.minimum(np.searchsorted(ordered, target), n - 1)
            found = ordered[place] == target
            first.append(np.flatnonzero(found))
            second.append(order[place[found]])
        rows, cols = np.concatenate(first), np.concatenate(second)
        adjacency = sparse.csr_matrix((np.ones(len(rows), bool), (rows, cols)), shape=(n, n))
        adjacency.sort_indices()
        return adjacency

    def rings(self, row: np.ndarray, col: np.ndarray, n_rings: int) -> list[sparse.csr_matrix]:
        """Return which positions lie exactly 1, 2, ... `n_rings` steps apart in the table.

        Parameters
        ----------
        row, col
            As for `neighbours`.
        n_rings
            Number of rings.

        Returns
        -------
        list of scipy.sparse.csr_matrix
            Boolean, n by n, symmetric, one per ring; the first is `neighbours`.
        """
        from scipy import sparse

        touching = self.neighbours(row, col).astype(np.float32)
        seen = sparse.identity(touching.shape[0], np.float32, format="csr")
        front, rings = seen, []
        for _ in range(n_rings):
            reached = ((front @ touching) > 0).astype(np.float32)
            front = ((reached - reached.multiply(seen)) > 0).astype(np.float32)
            seen = seen + front
            rings.append(front.astype(bool))
        return rings

    def _step(self, step: int, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.hexagonal:
            steps = np.array([_HEX_STEPS[0][step], _HEX_STEPS[1][step]])[row % 2]
            return steps[:, 0], steps[:, 1]
        return np.full(len(row), _SQUARE_STEPS[step][0]), np.full(len(row), _SQUARE_STEPS[step][1])

    def symmetries(self) -> list[np.ndarray]:
        """Return the rotations and flips that map the lattice onto itself, the identity first.

        Returns
        -------
        list of numpy.ndarray
            Integer 2x2 matrices for `transform`: 12 of the hexagonal lattice, 8 of a square one.
        """
        turn = np.array([[0, -1], [1, 1]] if self.hexagonal else [[0, -1], [1, 0]])
        flip = np.array([[1, 1], [0, -1]] if self.hexagonal else [[1, 0], [0, -1]])
        turns = [np.linalg.matrix_power(turn, k) for k in range(6 if self.hexagonal else 4)]
        return turns + [matrix @ flip for matrix in turns]

    def transform(
        self, row: np.ndarray, col: np.ndarray, symmetry: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the grid indices (int32, from 0) of positions after one of the `symmetries`."""
        row, col = np.asarray(row, np.int64), np.asarray(col, np.int64)
        axial = np.stack([col - row // 2 if self.hexagonal else col, row])
        axis, new_row = np.asarray(symmetry) @ axial
        lowest = new_row.min(initial=0) if len(new_row) == 0 else new_row.min()
        # The parity of a row decides its shift: an odd offset would move every second row.
        new_row = new_row - (lowest - lowest % 2 if self.hexagonal else lowest)
        if self.hexagonal:
            axis = axis + (lowest - lowest % 2) // 2
            axis = axis + new_row // 2
        new_col = axis - (axis.min() if len(axis) else 0)
        return new_row.astype(np.int32), new_col.astype(np.int32)
