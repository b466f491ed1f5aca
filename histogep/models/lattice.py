"""The lattice network on all tiles of a slide, alone or blended with the light head (no torch).

The deviation of a tile from its slide's mean is a sum over networks of gene programmes times genes of a
programme, plus, in a blend, that of the light head; the mean of the slide comes from the whole
slide's features, as in `histogep.models.ridge`. What a network adds to the sum (its share, its
snapshot, how many programmes of it) stands in its decoder. It is trained in torch
(`histogep.models.network.lattice_train`); so few weights are applied as fast with numpy, so that a
slide is predicted without a second of imports and a model folder without an installation of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from scipy.special import erf

from histogep.errors import InputError
from histogep.lattice import Lattice
from histogep.models.neighbours import ring_features
from histogep.models.preparation import (
    VIEWS,
    Preparation,
    SlideMoments,
    Tiles,
    slide_moments,
)
from histogep.models.tile_source import TileSource

WIDTH = 64
HIDDEN = 128
#: Added to a variance before its root is divided by.
EPSILON = 1e-5
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
    networks
        Name -> weights, the first axis the networks (`network_shapes`), float32.
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
    networks: dict[str, np.ndarray]
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

    def predict(self, tiles: Tiles) -> tuple[np.ndarray, np.ndarray]:
        """Return the prediction (n, g) and its slide level (g,), log1p CP10k float32.

        Parameters
        ----------
        tiles
            ALL tiles of one slide.
        """
        values = np.empty((len(tiles.row), self.decoder.shape[-1]), np.float32)

        def put(index: np.ndarray, part: np.ndarray) -> None:
            values[index] = part

        source = TileSource(tiles.values, tiles.row, tiles.col)
        return values, self.add_to(source, put)

    def add_to(
        self, source: TileSource, add: Callable[[np.ndarray, np.ndarray], None]
    ) -> np.ndarray:
        """Give the predictions of a slide's tiles band by band; return its level (g,) float32.

        Parameters
        ----------
        source
            ALL tiles of one slide; their features are read as they are needed, four times.
        add
            Called with indices of tiles and their values, (k, g) float32.
        """
        moments = slide_moments(lambda: (part for _, part in source.chunks()))
        whole: Any = 0.0
        within: Any = 0.0
        programmes: Any = 0.0
        for kept, part in source.bands(halo=self.halo):
            whole = whole + self.preparation.transform(part, view="whole")[kept.rows].sum(0)
            programmes = programmes + self._programmes(part, moments)[:, kept.rows].sum(1)
            if self.deviation is not None:
                within = within + self._rings(part, moments)[kept.rows].sum(0)
        n = len(source)
        shift = (whole / n - self.level_mean) @ self.level.astype(float)
        level = (self.target_mean + self.shrinkage * shift).astype(np.float32)
        for kept, part in source.bands(halo=self.halo):
            scores = self._programmes(part, moments)[:, kept.rows]
            values = level + decode(scores - programmes[:, None] / n, self.decoder)
            if self.deviation is not None:
                features = self._rings(part, moments)[kept.rows] - within / n
                values += features.astype(np.float32) @ self.deviation
            add(kept.tiles, values)
        return level

    def _rings(self, tiles: Tiles, moments: SlideMoments) -> np.ndarray:
        return ring_features(self.preparation, tiles, rings=self.rings, moments=moments)

    def _programmes(self, tiles: Tiles, moments: SlideMoments) -> np.ndarray:
        inputs = lattice_inputs(self.preparation, tiles, moments=moments) * self.scale
        ring = ring_matrix(self.preparation.lattice, tiles.row, tiles.col)
        return run_networks(self.networks, inputs, ring)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return every number of the model, for a safetensors file."""
        arrays = self.preparation.to_arrays() | {
            "ridge.level": np.ascontiguousarray(self.level),
            "ridge.level_mean": self.level_mean,
            "ridge.target_mean": self.target_mean,
            "lattice.scale": self.scale,
            "lattice.decoder": np.ascontiguousarray(self.decoder, np.float32),
        }
        for name, array in self.networks.items():
            arrays[f"network.{name}"] = np.ascontiguousarray(array, np.float32)
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
        wanted = network_shapes(settings["architecture"])
        if {name: array.shape for name, array in weights.items()} != wanted:
            raise InputError("the networks do not have the declared shapes: train again")
        blend = settings["kind"] == "blend"
        return cls(
            preparation=Preparation.from_arrays(
                arrays, blocks=settings["blocks"], lattice=settings["lattice"]
            ),
            scale=arrays["lattice.scale"],
            networks=weights,
            decoder=arrays["lattice.decoder"],
            deviation=arrays["ridge.deviation"] if blend else None,
            rings=int(settings["choice"]["rings"]) if blend else 0,
            level=arrays["ridge.level"],
            level_mean=arrays["ridge.level_mean"],
            target_mean=arrays["ridge.target_mean"],
            shrinkage=float(settings["choice"]["level_shrinkage"]),
        )


def network_shapes(architecture: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of all weights of networks of an architecture.

    Parameters
    ----------
    architecture
        `n_networks`, and the columns that each reads and gives: `n_inputs`, `n_outputs`.
    """
    n, inputs, outputs = (
        int(architecture[f"n_{what}"]) for what in ("networks", "inputs", "outputs")
    )
    shapes: dict[str, tuple[int, ...]] = {}
    for name, reads, gives in (
        ("first", inputs, WIDTH),
        ("mix", 2 * WIDTH, HIDDEN),
        ("back", HIDDEN, WIDTH),
    ):
        shapes |= {f"{name}_weight": (n, reads, gives), f"{name}_bias": (n, 1, gives)}
    for name in ("inner_scale", "inner_shift", "outer_scale"):
        shapes[name] = (n, 1, WIDTH)
    return shapes | {"last_weight": (n, WIDTH, outputs)}


def ring_matrix(lattice: Lattice, row: np.ndarray, col: np.ndarray) -> sparse.csr_matrix:
    """Return what gives the mean over the ring of each position of ONE slide, (n, n) float32.

    A position without neighbours has its own value, as in
    `histogep.models.preparation.neighbour_mean`.
    """
    touching = lattice.neighbours(row, col).astype(np.float32)
    degree = np.diff(touching.indptr)
    touching = touching + sparse.diags((degree == 0).astype(np.float32), format="csr")
    return sparse.diags(1 / np.maximum(degree, 1).astype(np.float32), format="csr") @ touching


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


def run_networks(
    networks: Mapping[str, np.ndarray], inputs: np.ndarray, ring: sparse.csr_matrix
) -> np.ndarray:
    """Return the programmes of the positions of a slide, (networks, n, k) float32.

    The same as `histogep.models.network.committee.Committee` without dropout.

    Parameters
    ----------
    networks
        Name -> weights, the first axis the networks.
    inputs
        Scaled inputs, (n, c).
    ring
        From `ring_matrix`, (n, n).
    """
    features = np.asarray(inputs, np.float32)
    outputs = []
    for k in range(len(networks["last_weight"])):
        of = {name: array[k] for name, array in networks.items()}
        hidden = features @ of["first_weight"] + of["first_bias"]
        own = _normalised(hidden) * of["inner_scale"] + of["inner_shift"]
        mixed = np.hstack([own, ring @ own]) @ of["mix_weight"] + of["mix_bias"]
        mixed *= 0.5 * (1 + erf(mixed * np.float32(0.5**0.5)))
        hidden += mixed @ of["back_weight"] + of["back_bias"]
        outputs.append((_normalised(hidden) * of["outer_scale"]) @ of["last_weight"])
    return np.stack(outputs)


def _normalised(values: np.ndarray) -> np.ndarray:
    """Return values with mean 0 and deviation 1 over the last axis."""
    centred = values - values.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + np.float32(EPSILON))


def decode(programmes: np.ndarray, decoder: np.ndarray) -> np.ndarray:
    """Return the genes (n, g) of programmes (networks, n, k), summed over the networks."""
    n_networks, n, k = programmes.shape
    flat = programmes.transpose(1, 0, 2).reshape(n, n_networks * k)
    return flat.astype(np.float32) @ decoder.reshape(n_networks * k, -1)
