"""Prepare a tile's raw features for a model: standardised in two ways, reduced, evenly weighted.

Slide-standardised features (`slide`) are standardised within each slide, so that staining and
scanner drop out: they show how a tile differs from the rest of its slide. Cohort-standardised
features (`whole`, their name in model folders) are standardised with the training tiles' mean and
deviation, so they keep differences between slides. Wide blocks are reduced by
principal components, fitted on the training tiles for each of the two; narrow ones (stain and texture
descriptors) are kept as they are, beside the mean over each tile's neighbours on the lattice.
Numpy and scipy only: no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import linalg

from histogep.errors import InputError
from histogep.lattice import Lattice

#: Slide-standardised and cohort-standardised, as arrays of a model folder are named.
VIEWS = ("slide", "whole")
#: Standardised features are limited to this many deviations, so that no single tile tips a model.
LIMIT = 6.0
_SMALLEST = 1e-8
#: Tiles prepared at a time, so that a large slide takes no more memory than its features.
_CHUNK = 4096


@dataclass(frozen=True)
class Tiles:
    """The features of one slide's tiles: values (n, d), and their grid row and col (n,)."""

    values: np.ndarray
    row: np.ndarray
    col: np.ndarray


@dataclass(frozen=True)
class SlideMoments:
    """Mean and deviation (d,) of the raw features over ALL tiles of one slide."""

    mean: np.ndarray
    deviation: np.ndarray


@dataclass
class _Block:
    """What was fitted on one encoder's columns, by view."""

    name: str
    start: int
    stop: int
    mean: np.ndarray  # (w,) of the training tiles
    deviation: np.ndarray  # (w,)
    components: dict[str, np.ndarray | None]  # (w, k) by view; None where the block is kept whole
    centre: dict[str, np.ndarray]  # (p,) by view
    spread: dict[str, np.ndarray]  # (p,) deviations of the prepared columns, by view

    @property
    def neighbours(self) -> bool:
        return self.components[VIEWS[0]] is None


class Preparation:
    """Feature preparation fitted on training slides; `transform` applies it to any slide.

    Build it with `fit` or `from_arrays`.
    """

    def __init__(self, blocks: list[_Block], lattice: Lattice):
        self._blocks = {block.name: block for block in blocks}
        self.lattice = lattice

    @classmethod
    def fit(
        cls,
        slides: Iterable[Tiles],
        *,
        blocks: Sequence[tuple[str, int]],
        lattice: Lattice,
        components: int = 64,
    ) -> Preparation:
        """Fit the scales and the components on the tiles of training slides.

        Parameters
        ----------
        slides
            Tiles of each training slide.
        blocks
            (encoder name, number of columns) in the order of the columns.
        lattice
            Where the neighbours of a tile lie.
        components
            Principal components kept of a block that is wider than this.
        """
        slides = list(slides)
        fitted, start = [], 0
        n_tiles = sum(len(tiles.values) for tiles in slides)
        if n_tiles < 2:
            raise InputError(f"the training slides have {n_tiles} tiles: at least 2 are needed")
        for name, width in blocks:
            stop = start + int(width)
            columns = [np.asarray(tiles.values[:, start:stop], float) for tiles in slides]
            mean = sum(part.sum(0) for part in columns) / n_tiles
            deviation = np.sqrt(sum(((part - mean) ** 2).sum(0) for part in columns) / n_tiles)
            block = _Block(name, start, stop, mean, deviation, {}, {}, {})
            for view in VIEWS:
                standard = [_standardise(part, *_moments(part, block, view)) for part in columns]
                block.components[view] = (
                    _principal_components(standard, min(components, n_tiles - 1))
                    if width > components
                    else None
                )
                prepared = [
                    _with_neighbours(_components(part, block, view), block, tiles, lattice)
                    for part, tiles in zip(standard, slides, strict=True)
                ]
                centre = sum(part.sum(0) for part in prepared) / n_tiles
                squares = sum(((part - centre) ** 2).sum(0) for part in prepared) / n_tiles
                block.centre[view], block.spread[view] = centre, np.sqrt(squares)
            fitted.append(block)
            start = stop
        return cls(fitted, lattice)

    @property
    def names(self) -> list[str]:
        """Names of the encoders, in the order of their columns."""
        return list(self._blocks)

    @property
    def n_raw(self) -> int:
        """Number of raw feature columns."""
        return max(block.stop for block in self._blocks.values())

    def width(self, *, names: Sequence[str] | None = None) -> int:
        """Return the number of prepared columns of one view of some encoders (all by default)."""
        return sum(len(self._blocks[n].spread[VIEWS[0]]) for n in names or self.names)

    def own_columns(self, name: str) -> np.ndarray:
        """Return the columns of a tile's own features of one encoder among the prepared columns."""
        start = 0
        for other, block in self._blocks.items():
            width = len(block.spread[VIEWS[0]])
            if other == name:
                return np.arange(start, start + width // (2 if block.neighbours else 1))
            start += width
        raise KeyError(name)

    def transform(
        self,
        tiles: Tiles,
        *,
        view: str,
        names: Sequence[str] | None = None,
        whiten: bool = False,
        moments: SlideMoments | None = None,
    ) -> np.ndarray:
        """Return the prepared features of ALL tiles of one slide, (n, p) float64.

        Parameters
        ----------
        tiles
            Every tile of the slide: slide-standardised features are relative to them.
        view
            "slide" or "whole".
        names
            Encoders to use; all by default.
        whiten
            True scales every column to unit variance over the training tiles (for networks);
            False leaves a block's columns as they relate and scales the block to a total variance
            of 1 (for ridge, so that no encoder outweighs another by its width).
        moments
            Of the whole slide, from `slide_moments`, where `tiles` are only some of its tiles with all
            their neighbours.
        """
        if tiles.values.ndim != 2 or tiles.values.shape[1] != self.n_raw:
            raise InputError(
                f"the features have shape {tiles.values.shape}, the model reads {self.n_raw} "
                "columns: encode the tiles with the encoders of the model"
            )
        prepared = []
        for name in names or self.names:
            block = self._blocks[name]
            columns = tiles.values[:, block.start : block.stop]
            scale_of_view = _moments(columns, block, view, moments)
            parts = [
                _components(
                    _standardise(columns[start : start + _CHUNK], *scale_of_view), block, view
                )
                for start in range(0, len(columns), _CHUNK)
            ]
            reduced = _with_neighbours(np.vstack(parts), block, tiles, self.lattice)
            spread = block.spread[view]
            scale = spread if whiten else np.sqrt((spread**2).sum())
            prepared.append((reduced - block.centre[view]) / np.maximum(scale, _SMALLEST))
        if whiten:
            return np.clip(np.hstack(prepared), -LIMIT, LIMIT)
        return np.hstack(prepared)

    def standardise(self, values: np.ndarray) -> np.ndarray:
        """Return raw features (n, d) in deviations from the training tiles' mean, not reduced.

        This is what the paper's protocol reads: any tile, a white one too, whatever its slide.
        """
        return np.hstack(
            [
                _standardise(columns, *_moments(columns, block, "whole"))
                for block in self._blocks.values()
                for columns in [values[:, block.start : block.stop]]
            ]
        )

    def to_arrays(self, prefix: str = "preparation") -> dict[str, np.ndarray]:
        """Return all that was fitted as named arrays, float64, for a safetensors file."""
        arrays: dict[str, np.ndarray] = {}
        for name, block in self._blocks.items():
            stem = f"{prefix}.{name}"
            arrays |= {f"{stem}.mean": block.mean, f"{stem}.deviation": block.deviation}
            for view in VIEWS:
                arrays[f"{stem}.{view}.centre"] = block.centre[view]
                arrays[f"{stem}.{view}.spread"] = block.spread[view]
                if (components := block.components[view]) is not None:
                    arrays[f"{stem}.{view}.components"] = components
        return {
            name: np.ascontiguousarray(array, dtype=np.float64) for name, array in arrays.items()
        }

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, np.ndarray],
        *,
        blocks: Sequence[tuple[str, int]],
        lattice: Mapping[str, Any] | Lattice,
        prefix: str = "preparation",
    ) -> Preparation:
        """Rebuild what `to_arrays` gave; `blocks` and `lattice` come from the model's settings."""
        if not isinstance(lattice, Lattice):
            lattice = Lattice.from_settings(lattice)
        fitted, start = [], 0
        for name, width in blocks:
            stem = f"{prefix}.{name}"
            fitted.append(
                _Block(
                    name,
                    start,
                    start + int(width),
                    arrays[f"{stem}.mean"],
                    arrays[f"{stem}.deviation"],
                    {view: arrays.get(f"{stem}.{view}.components") for view in VIEWS},
                    {view: arrays[f"{stem}.{view}.centre"] for view in VIEWS},
                    {view: arrays[f"{stem}.{view}.spread"] for view in VIEWS},
                )
            )
            start += int(width)
        return cls(fitted, lattice)


def slide_moments(chunks: Callable[[], Iterator[np.ndarray]]) -> SlideMoments:
    """Return the moments of a slide's raw features, which are read twice.

    Parameters
    ----------
    chunks
        Gives, at each call, the features of all tiles of the slide, some (k, d) at a time.
    """
    n, total = 0, 0.0
    for part in chunks():
        n, total = n + len(part), total + part.sum(0, dtype=float)
    mean = total / n
    squares = sum(((part - mean) ** 2).sum(0) for part in chunks())
    return SlideMoments(np.asarray(mean), np.sqrt(squares / n))


def _moments(
    columns: np.ndarray, block: _Block, view: str, given: SlideMoments | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and deviation of a view: the slide's own, or the training tiles'.

    The deviation of a feature that does not vary (or hardly does on this slide, so that it is not
    informative about its tiles) is infinite.
    """
    if view == "slide":
        if given is None:
            own = slide_moments(
                lambda: (columns[i : i + _CHUNK] for i in range(0, len(columns), _CHUNK))
            )
            mean, deviation = own.mean, own.deviation
        else:
            part = slice(block.start, block.stop)
            mean, deviation = given.mean[part], given.deviation[part]
        floor = np.maximum(1e-3 * block.deviation, _SMALLEST)
    elif view == "whole":
        mean, deviation, floor = block.mean, block.deviation, _SMALLEST
    else:
        raise ValueError(f"view {view!r} is not one of {VIEWS}")
    return mean, np.where(deviation > floor, deviation, np.inf)


def _standardise(columns: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Return columns in deviations from a mean, within the limit."""
    return np.clip((columns - mean) / deviation, -LIMIT, LIMIT)


def _components(standard: np.ndarray, block: _Block, view: str) -> np.ndarray:
    """Return the components of a wide block; a narrow one as it is."""
    components = block.components[view]
    return standard if components is None else standard @ components


def _with_neighbours(
    values: np.ndarray, block: _Block, tiles: Tiles, lattice: Lattice
) -> np.ndarray:
    """Return a narrow block beside its neighbourhood's mean; a wide one as it is."""
    if not block.neighbours:
        return values
    return np.hstack([values, neighbour_mean(values, tiles.row, tiles.col, lattice)])


def neighbour_mean(
    values: np.ndarray, row: np.ndarray, col: np.ndarray, lattice: Lattice
) -> np.ndarray:
    """Return the mean of `values` (n, p) over each tile's neighbours; its own where it has none."""
    adjacency = lattice.neighbours(row, col).astype(np.float64)
    degree = np.asarray(adjacency.sum(1)).ravel()
    mean = (adjacency @ values) / np.maximum(degree, 1.0)[:, None]
    return np.where(degree[:, None] > 0, mean, values)


def _principal_components(parts: Sequence[np.ndarray], k: int) -> np.ndarray:
    """Return the k leading axes (w, k) of the tiles; their sign makes the largest entry positive."""
    n = sum(len(part) for part in parts)
    mean = sum(part.sum(0) for part in parts) / n
    covariance = sum(part.T @ part for part in parts) / n - np.outer(mean, mean)
    width = len(mean)
    _, axes = linalg.eigh(covariance, subset_by_index=[max(0, width - k), width - 1])
    axes = axes[:, ::-1]
    largest = axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])]
    return axes * np.where(largest < 0, -1.0, 1.0)
