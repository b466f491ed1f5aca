"""CMU-Net on all tiles of a slide: in one pass, or in windows that agree with it (torch).

A lattice larger than the window is read in overlapping windows. The bottleneck of the network sees
hundreds of positions, too far for windows, but its grid is 256 times smaller. So there are two
passes: the encoder, window by window, gives the bottleneck's input, which is mixed for the whole
slide; then each window is encoded again and decoded with its part of the bottleneck. The rest needs
`local_context` = 93 positions of context, fewer than the overlap gives, so that windows of any size
give the same as one pass over the slide, apart from rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from histogep.errors import InputError
from histogep.models.network.network import GRID_MULTIPLE, CMUNet, local_context
from histogep.models.preparation import VIEWS, Preparation, SlideMoments, Tiles, slide_moments
from histogep.models.sections import Grid, grid_of
from histogep.models.tile_source import TileSource
from histogep.models.tumour_head import probability_of

#: Positions over which one window gives way to the next.
BLEND_CELLS = 32
#: Positions of context on each side, a multiple of 16 ...
CONTEXT_CELLS = -(-local_context() // GRID_MULTIPLE) * GRID_MULTIPLE
#: ... and what neighbouring windows share.
OVERLAP_CELLS = 2 * CONTEXT_CELLS + BLEND_CELLS
#: A larger lattice is predicted in windows of this many positions a side.
WINDOW_CELLS = 512

#: Rows and columns of a window.
Area = tuple[slice, slice]
#: Gives the features (c, rows, cols) float32 of the positions of a window.
Cells = Callable[[Area], np.ndarray]


@dataclass
class NetworkModel:
    """A trained CMU-Net with its feature preparation.

    Attributes
    ----------
    network
        In evaluation mode.
    preparation
        Fitted on the training slides.
    target_mean, target_sd
        (t,): what maps outputs to log1p CP10k (tumour: 0 and 1).
    task
        "expression", "tumour" or "both"; of both, the tumour is the last output.
    raw
        True: the paper's protocol (every feature, standardised, white background).
    absent_tumour
        True: of both tasks the tumour could not be learned; its probability is NaN.
    """

    network: CMUNet
    preparation: Preparation
    target_mean: np.ndarray
    target_sd: np.ndarray
    task: str
    raw: bool = False
    absent_tumour: bool = False

    def predict(
        self, tiles: Tiles, *, device: str = "cpu", window: int = WINDOW_CELLS
    ) -> tuple[np.ndarray, None]:
        """Return predictions (n, t) float32, log1p CP10k or probability, and no level.

        Parameters
        ----------
        tiles
            ALL tiles of one slide.
        device
            "cpu" or "cuda".
        window
            Side in positions above which the lattice is predicted in overlapping windows.
        """
        self._refuse_raw()
        features = network_features(self.preparation, tiles)
        grid = grid_of(tiles.row, tiles.col, self.preparation.lattice)
        background = np.zeros(features.shape[1], np.float32)
        output = run_on_grid(self.network, features, grid, background, device=device, window=window)
        return self.finish(output), None

    def add_to(
        self,
        source: TileSource,
        add: Callable[[np.ndarray, np.ndarray], None],
        *,
        device: str = "cpu",
        window: int = WINDOW_CELLS,
    ) -> None:
        """Yield the outputs of a slide's tiles window by window; they add up to those of `predict`.

        Parameters
        ----------
        source
            ALL tiles of one slide; their features are read as they are needed, twice.
        add
            Called with indices of tiles and what to add to their outputs, (k, t) float32, in the
            units of the targets; a tumour output is a logit: `probability_of` makes it a
            probability when all windows have been added.
        device, window
            As for `predict`.
        """
        self._refuse_raw()
        moments = slide_moments(lambda: (part for _, part in source.chunks()))
        grid = grid_of(source.row, source.col, self.preparation.lattice)
        cells = _StreamedCells(self.preparation, source, grid, moments)
        for tiles, share, values in windows_of(
            self.network, grid, cells, device=device, window=window
        ):
            add(tiles, share[:, None] * (values * self.target_sd + self.target_mean))

    def predict_grid(
        self, tiles: Tiles, white: np.ndarray, shape: Sequence[int], *, device: str = "cpu"
    ) -> tuple[np.ndarray, Grid]:
        """Return the prediction at every position (rows, cols, t) float32 of the paper's grid."""
        features, background = raw_features(self.preparation, tiles, white)
        grid = grid_of(tiles.row, tiles.col, self.preparation.lattice, shape=shape)
        cells = _gather(features, background, grid.index)
        with torch.inference_mode():
            output = self.network.to(device)(torch.as_tensor(cells, device=device)[None])[0]
        return self.finish(output.permute(1, 2, 0).cpu().numpy()), grid

    def finish(self, output: np.ndarray) -> np.ndarray:
        """Return outputs of the network (..., t) in their units, float32."""
        values = output * self.target_sd + self.target_mean
        if self.task == "tumour":
            return probability_of(values)
        if self.task == "both":
            last = values[..., -1]
            values[..., -1] = np.nan if self.absent_tumour else probability_of(last)
        return values.astype(np.float32)

    def _refuse_raw(self) -> None:
        if self.raw:
            raise InputError("a model of the paper's protocol needs the white tile: predict_grid")

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return every number of the model, for a safetensors file."""
        weights = {
            f"network.{name}": np.ascontiguousarray(tensor.detach().cpu().numpy())
            for name, tensor in self.network.state_dict().items()
        }
        targets = {"target.mean": self.target_mean, "target.sd": self.target_sd}
        return weights | targets | self.preparation.to_arrays()

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]
    ) -> NetworkModel:
        """Rebuild a model from its arrays and its settings.json."""
        network = CMUNet(**settings["architecture"])
        prefix = "network."
        weights = {
            name.removeprefix(prefix): torch.from_numpy(np.array(array))
            for name, array in arrays.items()
            if name.startswith(prefix)
        }
        network.load_state_dict(weights)
        return cls(
            network=network.eval(),
            preparation=Preparation.from_arrays(
                arrays, blocks=settings["blocks"], lattice=settings["lattice"]
            ),
            target_mean=arrays["target.mean"],
            target_sd=arrays["target.sd"],
            task=settings["task"],
            raw=settings["protocol"] == "published",
            absent_tumour=bool(settings.get("absent_tumour")),
        )


def network_features(
    preparation: Preparation, tiles: Tiles, *, moments: SlideMoments | None = None
) -> np.ndarray:
    """Return what a patient_cv network reads, (n, c) float32: slide- and cohort-standardised, each column at unit scale.

    `moments` as for `Preparation.transform`.
    """
    views = [
        preparation.transform(tiles, view=view, whiten=True, moments=moments) for view in VIEWS
    ]
    return np.hstack(views).astype(np.float32)


def raw_features(
    preparation: Preparation, tiles: Tiles, white: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return what a network of the paper's protocol reads: tiles (n, d) and the white tile (d,)."""
    values = preparation.standardise(tiles.values).astype(np.float32)
    return values, preparation.standardise(np.asarray(white)[None])[0].astype(np.float32)


def run_on_grid(
    network: CMUNet,
    features: np.ndarray,
    grid: Grid,
    background: np.ndarray,
    *,
    device: str = "cpu",
    window: int = WINDOW_CELLS,
    overlap: int = OVERLAP_CELLS,
) -> np.ndarray:
    """Return a network's output at the tiles of a grid, (n, t) float32.

    Parameters
    ----------
    network, grid, device, window, overlap
        As for `windows_of`.
    features
        Prepared features, (n, c) float32.
    background
        Features at a position without tile, (c,).
    """
    output = np.zeros((grid.n, network.architecture["n_outputs"]), np.float32)

    def cells(area: Area) -> np.ndarray:
        return _gather(features, background, grid.index[area])

    for tiles, share, values in windows_of(
        network, grid, cells, device=device, window=window, overlap=overlap
    ):
        output[tiles] += share[:, None] * values
    return output


@torch.inference_mode()
def windows_of(
    network: CMUNet,
    grid: Grid,
    cells: Cells,
    *,
    device: str = "cpu",
    window: int = WINDOW_CELLS,
    overlap: int = OVERLAP_CELLS,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield tiles, their share (k,) and their output (k, t) float32, window by window.

    The shares of a tile over all windows add up to 1. The share of a window is 0 in its context,
    and rises smoothly to 1 over the `BLEND_CELLS` next to it. Memory depends on the window, apart
    from the bottleneck's grid: one position for 256 of the lattice.

    Parameters
    ----------
    network
        In evaluation mode.
    grid
        Where the tiles lie.
    cells
        Gives the features of the positions of a window.
    device
        "cpu" or "cuda".
    window, overlap
        Positions; rounded up to multiples of 16 and 32, so that the poolings of all windows agree.
    """
    window = -(-window // GRID_MULTIPLE) * GRID_MULTIPLE
    overlap = -(-overlap // (2 * GRID_MULTIPLE)) * 2 * GRID_MULTIPLE
    if not 0 < overlap < window:
        raise InputError(f"the overlap of {overlap} positions must be below the window of {window}")
    network = network.to(device)
    rows, cols = grid.index.shape
    areas = [
        (slice(top, bottom), slice(left, right))
        for top, bottom in _spans(rows, window, overlap)
        for left, right in _spans(cols, window, overlap)
    ]

    def read(area: Area) -> Tensor:
        return torch.as_tensor(cells(area), device=device)[None]

    mixed = None
    if len(areas) > 1:
        mixed = network.bottleneck(_deepest(network, grid, areas, read, overlap))
    for area in areas:
        index = grid.index[area]
        row, col = np.nonzero(index < grid.n)
        if not len(row):
            continue
        skips, deep = network.encode(read(area))
        if mixed is None:
            deep = network.bottleneck(deep)
        else:
            corner = [side.start // GRID_MULTIPLE for side in area]
            size = deep.shape[-2:]
            deep = mixed[..., corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]]
        values = network.decode(skips, deep)[0, :, row, col].T.float().cpu().numpy()
        ramps = [
            _ramp(side.start, side.stop, whole, overlap)
            for side, whole in zip(area, (rows, cols), strict=True)
        ]
        share = (ramps[0][row] * ramps[1][col]).astype(np.float32)
        said = share > 0
        yield index[row, col][said], share[said], values[said]


def _deepest(
    network: CMUNet,
    grid: Grid,
    areas: Sequence[Area],
    read: Callable[[Area], Tensor],
    overlap: int,
) -> Tensor:
    """Return what the bottleneck reads of the whole grid; neighbours meet amid their overlap."""
    rows, cols = grid.index.shape
    shape = (-(-rows // GRID_MULTIPLE), -(-cols // GRID_MULTIPLE))
    whole: Tensor | None = None
    empty: dict[tuple[int, ...], Tensor] = {}
    for area in areas:
        index = grid.index[area]
        deep = empty.get(index.shape)
        if deep is None:
            _, deep = network.encode(read(area))
        if (index == grid.n).all():  # the same wherever it lies
            empty[index.shape] = deep
        if whole is None:
            whole = deep.new_zeros((1, deep.shape[1], *shape))
        inner, outer = [], []
        for side, length, size in zip(area, (rows, cols), deep.shape[-2:], strict=True):
            cut = overlap // 2 // GRID_MULTIPLE
            first = cut if side.start else 0
            last = size - cut if side.stop < length else size
            inner.append(slice(first, last))
            start = side.start // GRID_MULTIPLE
            outer.append(slice(start + first, start + last))
        whole[..., outer[0], outer[1]] = deep[..., inner[0], inner[1]]
    return whole


class _StreamedCells:
    """Features at a window's positions, prepared from a source that is read band by band."""

    def __init__(
        self, preparation: Preparation, source: TileSource, grid: Grid, moments: SlideMoments
    ):
        self._preparation, self._source, self._moments = preparation, source, moments
        self._grid, self._width = grid, len(VIEWS) * preparation.width()
        self._place = np.empty((grid.n, 2), np.int32)
        row, col = np.nonzero(grid.tissue)
        self._place[grid.index[row, col]] = np.column_stack([row, col])

    def __call__(self, area: Area) -> np.ndarray:
        top, left, bottom, right = (edge for edges in _edges(area) for edge in edges)
        cells = np.zeros((self._width, bottom - top, right - left), np.float32)
        # Tiles beside a window enter the neighbourhood means of its outermost positions.
        index = self._grid.index[max(top - 1, 0) : bottom + 1, max(left - 1, 0) : right + 1]
        for kept, part in self._source.bands(halo=1, among=index[index < self._grid.n]):
            features = network_features(self._preparation, part, moments=self._moments)
            row, col = (self._place[kept.tiles] - (top, left)).T
            inside = (row >= 0) & (row < bottom - top) & (col >= 0) & (col < right - left)
            cells[:, row[inside], col[inside]] = features[kept.rows[inside]].T
        return cells


def _edges(area: Area) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the first row and column of a window, and those after its last."""
    return (area[0].start, area[1].start), (area[0].stop, area[1].stop)


def _gather(features: np.ndarray, background: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Return the features at a grid's positions, (c, rows, cols)."""
    cells = np.broadcast_to(background, (*index.shape, len(background))).astype(np.float32)
    tissue = index < len(features)
    cells[tissue] = features[index[tissue]]
    return cells.transpose(2, 0, 1)


def _spans(size: int, window: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each window along one side of the grid."""
    start = 0
    while True:
        yield start, min(start + window, size)
        if start + window >= size:
            return
        start += window - overlap


def _ramp(start: int, end: int, size: int, overlap: int) -> np.ndarray:
    """Return the weight of a window's positions along one side; full at the edges of the slide.

    The weights of two neighbours add up to 1 at the positions that they share.
    """
    place = np.arange(start, end) + 0.5
    weight = np.ones(end - start)
    blend = min(BLEND_CELLS, overlap / 2)
    for cut, inward in ((start, place - start), (end, end - place)):
        if 0 < cut < size:
            share = np.clip((inward - (overlap - blend) / 2) / blend, 0, 1)
            weight *= share * share * (3 - 2 * share)
    return weight
