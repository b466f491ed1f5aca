"""Predictions of a trained model for all tiles of a slide, on a lattice of any size (torch)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from histogep.datasets import Grid, grid_of
from histogep.files import read_json
from histogep.jobs import InputError
from histogep.neighbours import NeighbourModel
from histogep.networks import GRID_MULTIPLE, CMUNet
from histogep.preparation import VIEWS, Preparation, Tiles
from histogep.ridge import RidgeModel
from histogep.weights import read_arrays

#: A larger lattice is predicted in windows of this many cells a side ...
WINDOW_CELLS = 384
#: ... of which neighbours share this many, blended smoothly over their middle half.
OVERLAP_CELLS = 128


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
        (t,): what maps outputs to log1p CP10k.
    task
        "expression" or "tumour".
    raw
        True: the paper's protocol (every feature, standardised, white background).
    """

    network: CMUNet
    preparation: Preparation
    target_mean: np.ndarray
    target_sd: np.ndarray
    task: str
    raw: bool = False

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
            Side in cells above which the lattice is predicted in overlapping windows.
        """
        if self.raw:
            raise InputError("a model of the paper's protocol needs the white tile: predict_grid")
        features = network_features(self.preparation, tiles)
        grid = grid_of(tiles.row, tiles.col, self.preparation.lattice)
        background = np.zeros(features.shape[1], np.float32)
        output = run_on_grid(self.network, features, grid, background, device=device, window=window)
        return self._finish(output), None

    def predict_grid(
        self, tiles: Tiles, white: np.ndarray, shape: Sequence[int], *, device: str = "cpu"
    ) -> tuple[np.ndarray, Grid]:
        """Return the prediction of every cell (rows, cols, t) float32 of the paper's grid."""
        features, background = raw_features(self.preparation, tiles, white)
        grid = grid_of(tiles.row, tiles.col, self.preparation.lattice, shape=shape)
        cells = _gather(features, background, grid.index)
        with torch.inference_mode():
            output = self.network.to(device)(torch.as_tensor(cells, device=device)[None])[0]
        return self._finish(output.permute(1, 2, 0).cpu().numpy()), grid

    def _finish(self, output: np.ndarray) -> np.ndarray:
        values = output * self.target_sd + self.target_mean
        if self.task == "tumour":
            values = 1 / (1 + np.exp(-values.astype(float)))
        return values.astype(np.float32)

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
            raw=settings["protocol"] == "hist",
        )


@dataclass
class EnsembleModel:
    """A weighted mean of models of the same genes.

    Attributes
    ----------
    members
        The models and their weights, which add up to 1.
    """

    members: list[tuple[NetworkModel | RidgeModel, float]]

    def predict(self, tiles: Tiles, *, device: str = "cpu") -> tuple[np.ndarray, None]:
        """Return predictions (n, t) float32, log1p CP10k, and no level; tiles and device as above."""
        total = 0.0
        for model, weight in self.members:
            values, _ = predict_tiles(model, tiles, device=device)
            total = total + np.float32(weight) * values
        return total, None

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]
    ) -> EnsembleModel:
        """Rebuild a model from its arrays and its settings.json."""
        members = []
        for name, record in settings["members"].items():
            prefix = f"{name}/"
            own = {
                key.removeprefix(prefix): array
                for key, array in arrays.items()
                if key.startswith(prefix)
            }
            members.append((build_model(own, record, name=name), float(record["weight"])))
        return cls(members)


Model = NetworkModel | RidgeModel | EnsembleModel


def predict_tiles(
    model: Model, tiles: Tiles, *, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return a model's prediction (n, t) of ALL tiles of a slide, and its level (t,) if it has one.

    Linear models have a level and need no device.
    """
    if isinstance(model, RidgeModel):
        return model.predict(tiles)
    return model.predict(tiles, device=device)


def read_model(weights: str | Path, settings: str | Path) -> tuple[Model, dict[str, Any]]:
    """Return a trained model and its settings, from its two files.

    Raises
    ------
    InputError
        The files do not belong together.
    """
    record = read_json(settings)
    return build_model(read_arrays(weights), record, name=str(weights)), record


def build_model(
    arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any], *, name: str = "the weights"
) -> Model:
    """Return the model whose arrays and settings are given."""
    kinds = {
        "cmunet": NetworkModel,
        "ridge": RidgeModel,
        "neighbours": NeighbourModel,
        "ensemble": EnsembleModel,
    }
    if settings["kind"] not in kinds:
        raise InputError(f"the settings of {name} are of an unknown kind {settings['kind']!r}")
    try:
        return kinds[settings["kind"]].from_arrays(arrays, settings)
    except (KeyError, RuntimeError) as error:
        raise InputError(f"{name} do not fit their settings ({error}): train again") from error


def network_features(preparation: Preparation, tiles: Tiles) -> np.ndarray:
    """Return what an honest network reads, (n, c) float32: both views, each column at unit scale."""
    views = [preparation.transform(tiles, view=view, whiten=True) for view in VIEWS]
    return np.hstack(views).astype(np.float32)


def raw_features(
    preparation: Preparation, tiles: Tiles, white: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return what a network of the paper's protocol reads: tiles (n, d) and the white tile (d,)."""
    values = preparation.standardise(tiles.values).astype(np.float32)
    return values, preparation.standardise(np.asarray(white)[None])[0].astype(np.float32)


@torch.inference_mode()
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

    A grid larger than `window` cells a side is read in windows that share `overlap` cells: a
    window counts nothing within a quarter of the overlap of its cut edges, and rises smoothly to
    its full weight over the next half, so no seam shows. Memory follows the window, not the slide.

    Parameters
    ----------
    network
        In evaluation mode.
    features
        Prepared features, (n, c) float32.
    grid
        Where the tiles lie.
    background
        Features of a cell without tile, (c,).
    device
        "cpu" or "cuda".
    window, overlap
        Cells; rounded up to multiples of 16, so that the poolings of all windows agree.
    """
    window, overlap = (-(-size // GRID_MULTIPLE) * GRID_MULTIPLE for size in (window, overlap))
    if not 0 < overlap < window:
        raise InputError(f"the overlap of {overlap} cells must be below the window of {window}")
    network = network.to(device)
    output = np.zeros((grid.n, network.architecture["n_outputs"]), np.float32)
    weight = np.zeros(grid.n, np.float32)
    rows, cols = grid.index.shape
    for top, bottom in _spans(rows, window, overlap):
        for left, right in _spans(cols, window, overlap):
            index = grid.index[top:bottom, left:right]
            row, col = np.nonzero(index < grid.n)
            if not len(row):
                continue
            cells = torch.as_tensor(_gather(features, background, index), device=device)
            values = network(cells[None])[0, :, row, col].T.float().cpu().numpy()
            share = (
                _ramp(top, bottom, rows, overlap)[row] * _ramp(left, right, cols, overlap)[col]
            ).astype(np.float32)
            tile = index[row, col]
            output[tile] += share[:, None] * values
            weight[tile] += share
    return output / weight[:, None]


def _gather(features: np.ndarray, background: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Return the features of a grid's cells, (c, rows, cols)."""
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
    """Return the weight of a window's cells along one side; full at the edges of the slide.

    The weights of two neighbours add up to 1 in the cells that they share.
    """
    place = np.arange(start, end) + 0.5
    weight = np.ones(end - start)
    for cut, inward in ((start, place - start), (end, end - place)):
        if 0 < cut < size:
            share = np.clip((inward - overlap / 4) / (overlap / 2), 0, 1)
            weight *= share * share * (3 - 2 * share)
    return weight
