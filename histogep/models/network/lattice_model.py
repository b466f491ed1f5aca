"""The lattice network on all tiles of a slide, alone or blended with the light head (torch).

The deviation of a tile from its slide's mean is a sum over networks of gene programmes times genes of a
programme, plus, in a blend, that of the light head; the mean of the slide comes from the whole
slide's features, as in `histogep.models.ridge`. What a network adds to the sum (its share, its
snapshot, how many programmes of it) stands in its decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from histogep.models.neighbours import ring_features
from histogep.models.network.committee import Committee, ring_table
from histogep.models.preparation import (
    VIEWS,
    Preparation,
    SlideMoments,
    Tiles,
    slide_moments,
)
from histogep.models.tile_source import TileSource

_SMALLEST = 1e-8


@dataclass
class LatticeModel:
    """A trained lattice network, or a blend of it with the light head.

    Attributes
    ----------
    preparation
        Fitted on the training slides.
    scale
        What each input is multiplied by, (c,).
    committee
        The networks, in evaluation mode.
    decoder
        Genes of each programme of each network, (networks, k, g) float32, log1p CP10k.
    deviation
        Coefficients (p, g) of the light head times its share; None of a network alone.
    rings
        Farthest ring that the light head reads.
    level, level_mean, target_mean, shrinkage
        Of the slide's mean, as in `histogep.models.ridge.RidgeModel`.
    """

    preparation: Preparation
    scale: np.ndarray
    committee: Committee
    decoder: np.ndarray
    deviation: np.ndarray | None
    rings: int
    level: np.ndarray
    level_mean: np.ndarray
    target_mean: np.ndarray
    shrinkage: float

    @property
    def halo(self) -> int:
        """Rows of the lattice beside a tile that its prediction depends on."""
        return 1 if self.deviation is None else max(1, self.rings)

    def predict(self, tiles: Tiles, *, device: str = "cpu") -> tuple[np.ndarray, np.ndarray]:
        """Return the prediction (n, g) and its slide level (g,), log1p CP10k float32.

        Parameters
        ----------
        tiles
            ALL tiles of one slide.
        device
            "cpu" or "cuda".
        """
        values = np.empty((len(tiles.row), self.decoder.shape[-1]), np.float32)

        def put(index: np.ndarray, part: np.ndarray) -> None:
            values[index] = part

        source = TileSource(tiles.values, tiles.row, tiles.col)
        return values, self.add_to(source, put, device=device)

    def add_to(
        self,
        source: TileSource,
        add: Callable[[np.ndarray, np.ndarray], None],
        *,
        device: str = "cpu",
    ) -> np.ndarray:
        """Give the predictions of a slide's tiles band by band; return its level (g,) float32.

        Parameters
        ----------
        source
            ALL tiles of one slide; their features are read as they are needed, four times.
        add
            Called with indices of tiles and their values, (k, g) float32.
        device
            "cpu" or "cuda".
        """
        self.committee.to(device)
        moments = slide_moments(lambda: (part for _, part in source.chunks()))
        whole, within, programmes = 0.0, 0.0, 0.0
        for kept, part in source.bands(halo=self.halo):
            whole = whole + self.preparation.transform(part, view="whole")[kept.rows].sum(0)
            programmes = programmes + self._programmes(part, moments, device)[:, kept.rows].sum(1)
            if self.deviation is not None:
                within = within + self._rings(part, moments)[kept.rows].sum(0)
        n = len(source)
        shift = (whole / n - self.level_mean) @ self.level.astype(float)
        level = (self.target_mean + self.shrinkage * shift).astype(np.float32)
        for kept, part in source.bands(halo=self.halo):
            scores = self._programmes(part, moments, device)[:, kept.rows]
            values = level + decode(scores - programmes[:, None] / n, self.decoder)
            if self.deviation is not None:
                features = self._rings(part, moments)[kept.rows] - within / n
                values += features.astype(np.float32) @ self.deviation
            add(kept.tiles, values)
        return level

    def _rings(self, tiles: Tiles, moments: SlideMoments) -> np.ndarray:
        return ring_features(self.preparation, tiles, rings=self.rings, moments=moments)

    def _programmes(self, tiles: Tiles, moments: SlideMoments, device: str) -> np.ndarray:
        inputs = lattice_inputs(self.preparation, tiles, moments=moments) * self.scale
        table = ring_table(self.preparation.lattice, tiles.row, tiles.col)
        return run_networks(self.committee, inputs, table, device=device)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return every number of the model, for a safetensors file."""
        arrays = self.preparation.to_arrays() | {
            "ridge.level": np.ascontiguousarray(self.level),
            "ridge.level_mean": self.level_mean,
            "ridge.target_mean": self.target_mean,
            "lattice.scale": self.scale,
            "lattice.decoder": np.ascontiguousarray(self.decoder, np.float32),
        }
        for name, tensor in self.committee.named_parameters():
            arrays[f"network.{name}"] = np.ascontiguousarray(tensor.detach().cpu().numpy())
        if self.deviation is not None:
            arrays["ridge.deviation"] = np.ascontiguousarray(self.deviation)
        return arrays

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]
    ) -> LatticeModel:
        """Rebuild a model from its arrays and its settings.json."""
        prefix = "network."
        weights = {
            name.removeprefix(prefix): array
            for name, array in arrays.items()
            if name.startswith(prefix)
        }
        blend = settings["kind"] == "blend"
        return cls(
            preparation=Preparation.from_arrays(
                arrays, blocks=settings["blocks"], lattice=settings["lattice"]
            ),
            scale=arrays["lattice.scale"],
            committee=networks_of(weights, settings["architecture"]),
            decoder=arrays["lattice.decoder"],
            deviation=arrays["ridge.deviation"] if blend else None,
            rings=int(settings["choice"]["rings"]) if blend else 0,
            level=arrays["ridge.level"],
            level_mean=arrays["ridge.level_mean"],
            target_mean=arrays["ridge.target_mean"],
            shrinkage=float(settings["choice"]["level_shrinkage"]),
        )


def networks_of(weights: Mapping[str, np.ndarray], architecture: Mapping[str, Any]) -> Committee:
    """Return networks with given weights, in evaluation mode."""
    committee = Committee(**architecture)
    committee.load_state_dict({n: torch.from_numpy(np.array(a)) for n, a in weights.items()})
    return committee.eval()


def lattice_inputs(
    preparation: Preparation, tiles: Tiles, *, moments: SlideMoments | None = None
) -> np.ndarray:
    """Return a tile's own columns of both views, not whitened, (n, c) float64, not yet scaled.

    `moments` as for `Preparation.transform`.
    """
    own = np.concatenate([preparation.own_columns(name) for name in preparation.names])
    views = [preparation.transform(tiles, view=view, moments=moments)[:, own] for view in VIEWS]
    return np.hstack(views)


def input_scale(preparation: Preparation, parts: list[np.ndarray]) -> np.ndarray:
    """Return what gives each block of each view a root mean square of 1 over its columns, (c,)."""
    n = sum(len(part) for part in parts)
    squares = sum((part**2).sum(0) for part in parts) / n
    widths = [len(preparation.own_columns(name)) for name in preparation.names] * len(VIEWS)
    edges = np.cumsum([0, *widths])
    scale = np.ones(len(squares))
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        scale[start:stop] = 1 / max(float(np.sqrt(squares[start:stop].mean())), _SMALLEST)
    return scale


@torch.inference_mode()
def run_networks(
    committee: Committee, inputs: np.ndarray, table: np.ndarray, *, device: str = "cpu"
) -> np.ndarray:
    """Return the programmes of the positions of a slide, (networks, n, k) float32.

    Parameters
    ----------
    committee
        The networks, on the device.
    inputs
        Scaled inputs, (n, c).
    table
        Which positions touch each, (n, 6 or 8) (`histogep.models.network.committee.ring_table`).
    device
        "cpu" or "cuda".
    """
    n_networks, n = committee.architecture["n_networks"], len(inputs)
    features = torch.as_tensor(inputs, dtype=torch.float32, device=device)
    own = torch.as_tensor(table, device=device)
    first = torch.arange(n_networks, device=device)[:, None, None] * n
    all_tables = torch.where(own < n, own + first, n_networks * n).reshape(-1, own.shape[1])
    output = committee(features.expand(n_networks, -1, -1), all_tables)
    return output.cpu().numpy()


def decode(programmes: np.ndarray, decoder: np.ndarray) -> np.ndarray:
    """Return the genes (n, g) of programmes (networks, n, k), summed over the networks."""
    n_networks, n, k = programmes.shape
    flat = programmes.transpose(1, 0, 2).reshape(n, n_networks * k)
    return flat.astype(np.float32) @ decoder.reshape(n_networks * k, -1)
