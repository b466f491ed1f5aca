"""How far a tile's features lie from those of the training slides (numpy only).

Features are standardised, each encoder weighted evenly, and reduced to principal components; the
part they leave over is one more coordinate. The distance is Mahalanobis in those coordinates,
divided by the root of their number, so that 1 is typical. What counts as `distant` is learnt by
leaving each training slide out in turn: slides differ more than tiles of one slide do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import linalg

from histogep.jobs import InputError

COMPONENTS = 32
LEVELS = (0.5, 0.75, 0.9, 0.95, 0.99)
#: Tiles beyond this quantile of left-out training tiles are distant.
DISTANT_LEVEL = 0.99
#: Share of the pooled variance mixed into the covariance, which few slides estimate badly.
_SHRINKAGE = 0.05
_LIMIT = 20.0
_CHUNK = 4096


@dataclass
class FeatureDistance:
    """Distance to the training features; build it with `fit` or `from_arrays`.

    Attributes
    ----------
    mean, scale
        Of the training tiles, (d,); `scale` holds the encoder's weight too.
    components
        (d, k).
    centre, inverse_covariance
        Of the k + 1 coordinates.
    levels, quantiles
        Quantiles of the distances of left-out training slides' tiles.
    """

    mean: np.ndarray
    scale: np.ndarray
    components: np.ndarray
    centre: np.ndarray
    inverse_covariance: np.ndarray
    levels: np.ndarray
    quantiles: np.ndarray

    @classmethod
    def fit(
        cls,
        slides: Sequence[np.ndarray],
        *,
        blocks: Sequence[tuple[str, int]],
        components: int = COMPONENTS,
    ) -> FeatureDistance:
        """Fit on the features of each training slide, (n, d) each.

        Parameters
        ----------
        slides
            Features of each slide, (n, d).
        blocks
            (encoder name, number of columns) in the order of the columns.
        components
            Number of principal components kept.
        """
        n = sum(len(part) for part in slides)
        if n < 3:
            raise InputError(f"the training slides have {n} tiles: too few for distances")
        mean = sum(part.sum(0, dtype=float) for part in slides) / n
        squares = sum(((part - mean) ** 2).sum(0, dtype=float) for part in slides) / n
        width = np.concatenate([np.full(int(w), float(w)) for _, w in blocks])
        deviation = np.sqrt(squares)
        scale = np.where(deviation > 1e-8, deviation, np.inf) * np.sqrt(width)
        covariance = np.zeros((len(mean), len(mean)))
        for part in slides:
            standard = np.clip((part - mean) / scale, -_LIMIT, _LIMIT)
            covariance += standard.T @ standard / n
        last = len(mean) - 1
        kept = min(components, len(mean), n - 1)
        _, axes = linalg.eigh(covariance, subset_by_index=[last - kept + 1, last])
        axes = axes[:, ::-1]
        axes = axes * np.where(axes[np.abs(axes).argmax(0), np.arange(kept)] < 0, -1.0, 1.0)
        # An infinite scale (a constant feature) is kept as 0 = "not used" on disk.
        stored = np.where(np.isfinite(scale), scale, 0.0)
        fitted = cls(mean, stored, axes, np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0))
        places = [fitted.coordinates(part) for part in slides]
        distances = []
        for left_out in range(len(places)):
            rest = [part for i, part in enumerate(places) if i != left_out] or places
            centre, inverse = _moments(rest)
            distances.append(_mahalanobis(places[left_out], centre, inverse))
        fitted.centre, fitted.inverse_covariance = _moments(places)
        fitted.levels = np.array(LEVELS)
        fitted.quantiles = np.quantile(np.concatenate(distances), LEVELS)
        return fitted

    @property
    def threshold(self) -> float:
        """Distance beyond which a tile is distant."""
        return float(self.quantiles[np.argmin(np.abs(self.levels - DISTANT_LEVEL))])

    def coordinates(self, values: np.ndarray) -> np.ndarray:
        """Return the k components and the log of what they leave over, (n, k + 1)."""
        used = self.scale > 0
        standard = np.zeros((len(values), len(self.mean)))
        standard[:, used] = np.clip(
            (values[:, used] - self.mean[used]) / self.scale[used], -_LIMIT, _LIMIT
        )
        scores = standard @ self.components
        rest = np.maximum((standard**2).sum(1) - (scores**2).sum(1), 0.0)
        return np.column_stack([scores, np.log(rest + 1e-6)])

    def distance(self, values: np.ndarray) -> np.ndarray:
        """Return the distance of tiles with features (n, d) to the training tiles, (n,) float64."""
        parts = [
            _mahalanobis(
                self.coordinates(values[start : start + _CHUNK]),
                self.centre,
                self.inverse_covariance,
            )
            for start in range(0, len(values), _CHUNK)
        ]
        return np.concatenate(parts) if parts else np.zeros(0)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return all that was fitted, for a safetensors file."""
        return {name: np.ascontiguousarray(value) for name, value in vars(self).items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> FeatureDistance:
        """Rebuild what `to_arrays` gave."""
        return cls(**{name: arrays[name] for name in cls.__dataclass_fields__})


def _moments(parts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and inverse covariance of coordinates, shrunk towards a diagonal."""
    joined = np.concatenate(parts)
    centre = joined.mean(0)
    covariance = np.atleast_2d(np.cov(joined, rowvar=False))
    diagonal = np.diag(np.diag(covariance))
    shrunk = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * diagonal
    floor = 1e-9 * max(float(np.trace(covariance)) / len(centre), 1e-12)
    return centre, linalg.inv(shrunk + floor * np.eye(len(centre)))


def _mahalanobis(places: np.ndarray, centre: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    shifted = places - centre
    squares = np.einsum("ij,jk,ik->i", shifted, inverse, shifted, optimize=True)
    return np.sqrt(np.maximum(squares, 0.0) / len(centre))
