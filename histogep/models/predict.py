"""Predictions of any trained model for all tiles of a slide; torch is loaded for networks only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from histogep.errors import InputError
from histogep.files import read_json
from histogep.models.lattice import LatticeModel
from histogep.models.neighbours import NeighbourModel
from histogep.models.preparation import Tiles
from histogep.models.ridge import RidgeModel
from histogep.models.tile_source import TileSource
from histogep.models.tumour_head import TumourModel
from histogep.models.weights import read_arrays


class Model(Protocol):
    """What every trained model can do; networks and ensembles take a `device` too."""

    def predict(
        self, tiles: Tiles, *args: Any, **options: Any
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return predictions (n, t) float32 of ALL tiles of a slide, and its level if it has one."""

    def add_to(
        self, source: TileSource, add: Callable[..., None], *args: Any, **options: Any
    ) -> None:
        """Give these predictions piece by piece: indices of tiles and their values."""


@dataclass
class EnsembleModel:
    """A weighted mean of models of the same genes.

    Attributes
    ----------
    members
        The models and their weights, which add up to 1.
    """

    members: list[tuple[Model, float]]

    def predict(self, tiles: Tiles, *, device: str = "cpu") -> tuple[np.ndarray, None]:
        """Return predictions (n, t) float32, log1p CP10k, and no level; tiles and device as above."""
        total: Any = 0.0
        for model, weight in self.members:
            values, _ = predict_tiles(model, tiles, device=device)
            total = total + np.float32(weight) * values
        return total, None

    def add_to(
        self,
        source: TileSource,
        add: Callable[[np.ndarray, np.ndarray], None],
        *,
        device: str = "cpu",
    ) -> None:
        """Give what each member adds to the predictions of a slide's tiles."""
        for model, weight in self.members:

            def weighted(tiles: np.ndarray, values: np.ndarray, weight: float = weight) -> None:
                add(tiles, np.float32(weight) * values)

            add_predictions(model, source, weighted, device=device)

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


@dataclass
class AbsentModel:
    """Stands for a model that could not be trained; it says nothing of any tile.

    Attributes
    ----------
    reason
        Why there is no model.
    n_targets
        Columns of its answer.
    """

    reason: str
    n_targets: int = 1

    def predict(self, tiles: Tiles) -> tuple[np.ndarray, None]:
        """Return NaN for all tiles, (n, t) float32, and no level."""
        return np.full((len(tiles.row), self.n_targets), np.nan, np.float32), None

    def add_to(self, source: TileSource, add: Callable[[np.ndarray, np.ndarray], None]) -> None:
        """Give NaN for all tiles."""
        rows = np.arange(len(source))
        add(rows, np.full((len(rows), self.n_targets), np.nan, np.float32))

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]
    ) -> AbsentModel:
        """Rebuild it from its settings.json; it has no arrays."""
        return cls(settings["absent"], len(settings["genes"]))


#: Models that need no device.
Plain = RidgeModel | TumourModel | LatticeModel | AbsentModel


def predict_tiles(
    model: Model, tiles: Tiles, *, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return a model's prediction (n, t) of ALL tiles of a slide, and its level (t,) if it has one.

    Models of expression have a level, but for CMU-Net, which alone needs a device.
    """
    if isinstance(model, Plain):
        return model.predict(tiles)
    return model.predict(tiles, device=device)


def add_predictions(
    model: Model,
    source: TileSource,
    add: Callable[[np.ndarray, np.ndarray], None],
    *,
    device: str = "cpu",
) -> None:
    """Give a model's prediction of ALL tiles of a slide piece by piece; see `add_to` of its class.

    Tumour outputs are log odds.
    """
    if isinstance(model, Plain):
        model.add_to(source, add)
    else:
        model.add_to(source, add, device=device)


def read_model(weights: str | Path, settings: str | Path) -> tuple[Model, dict[str, Any]]:
    """Return a trained model and its settings, from its two files.

    Raises
    ------
    InputError
        The files do not belong together.
    """
    record = read_json(settings)
    return build_model(read_arrays(weights), record, name=str(weights)), record


def network_shapes(architecture: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of every tensor of a network of an architecture."""
    from histogep.models.network import network as networks  # torch: seconds in every job

    return networks.network_shapes(architecture)


def build_model(
    arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any], *, name: str = "the weights"
) -> Model:
    """Return the model whose arrays and settings are given."""
    if settings.get("absent"):
        return AbsentModel.from_arrays(arrays, settings)
    kinds: dict[str, Any] = {
        "ridge": RidgeModel,
        "neighbours": TumourModel if settings["task"] == "tumour" else NeighbourModel,
        "lattice": LatticeModel,
        "blend": LatticeModel,
        "ensemble": EnsembleModel,
    }
    if settings["kind"] == "cmunet":
        from histogep.models.network.predict import NetworkModel  # torch: seconds in every job

        kinds["cmunet"] = NetworkModel
    if settings["kind"] not in kinds:
        raise InputError(f"the settings of {name} are of an unknown kind {settings['kind']!r}")
    try:
        return kinds[settings["kind"]].from_arrays(arrays, settings)
    except InputError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(f"{name} do not fit their settings ({error}): train again") from error
