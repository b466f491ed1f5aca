"""A light head that sees a tile, the rings of tiles around it and its slide (numpy; no torch).

The deviation of a spot from its section's mean is a linear function of the tile's own features and
of their means over the rings of tiles around it. The genes share few programmes: of the
coefficients only the leading directions of the fit are kept (reduced-rank ridge regression,
Mukherjee and Zhu, Statistical Analysis and Data Mining 2011, section 2), so that with few patients
hundreds of noisy genes lend each other strength. The section's mean comes from the whole slide's
features, as in `histogep.models.ridge`. Encoders, reach, rank and penalty are weighed by inner folds.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from scipy import linalg

from histogep.errors import InputError
from histogep.lattice import Lattice
from histogep.models.linear import (
    candidate_sets,
    held_out_sections,
    sum_sections,
    weigh_candidates,
)
from histogep.models.preparation import Preparation, SlideMoments, Tiles
from histogep.models.ridge import RidgeModel, fit_level
from histogep.models.selection import mean_over_groups

LOG = logging.getLogger(__name__)
#: Penalties per spot; programmes of a low rank overfit less, so they may be smaller than a ridge's.
ALPHAS = tuple(float(f"{alpha:.3g}") for alpha in np.logspace(-4, 0, 9))
#: Numbers of gene programmes to weigh; 0 keeps all.
RANKS = (2, 5, 10, 0)
#: Farthest ring of neighbours that is looked at.
RINGS = 2


@dataclass
class NeighbourModel(RidgeModel):
    """As a ridge, but the deviation reads the own features and the rings around each tile.

    Attributes
    ----------
    rings
        Farthest ring that the coefficients read.
    """

    rings: int = RINGS

    @property
    def halo(self) -> int:
        """Rows of the lattice beside a tile that its features depend on."""
        return max(1, self.rings)

    def within(self, tiles: Tiles, *, moments: SlideMoments | None = None) -> np.ndarray:
        """Return own features and ring means of ALL tiles of a slide, (n, p (1 + rings))."""
        return ring_features(self.preparation, tiles, rings=self.rings, moments=moments)

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]
    ) -> NeighbourModel:
        """Rebuild a model from its arrays and its settings.json."""
        model = cast("NeighbourModel", super().from_arrays(arrays, settings))
        model.rings = int(settings["choice"]["rings"])
        return model


def fit_neighbours(
    tiles: Sequence[Tiles],
    targets: Sequence[np.ndarray],
    groups: Sequence[str],
    *,
    blocks: Sequence[tuple[str, int]],
    lattice: Lattice,
    components: int = 64,
    alphas: Sequence[float] = ALPHAS,
    ranks: Sequence[int] = RANKS,
    rings: int = RINGS,
    encoder_sets: Sequence[Sequence[str]] = (),
) -> NeighbourModel:
    """Fit the model on training sections; every choice is weighed by inner folds.

    Parameters
    ----------
    tiles, targets, groups, blocks, lattice, components, encoder_sets
        As for `histogep.models.ridge.fit_ridge`.
    alphas
        Penalties to weigh, per spot.
    ranks
        Numbers of gene programmes to weigh; 0 keeps all.
    rings
        Farthest ring of neighbours; every reach from 0 to this is weighed.

    Returns
    -------
    NeighbourModel
        Its `choice` names each candidate with its inner score and its weight.
    """
    if not alphas or min(alphas) <= 0 or not ranks or min(ranks) < 0 or rings < 0:
        raise InputError(
            f"alphas must be above 0, ranks and rings at least 0, not {list(alphas)}, "
            f"{list(ranks)} and {rings}"
        )
    preparation = Preparation.fit(tiles, blocks=blocks, lattice=lattice, components=components)
    sets = candidate_sets(preparation.names, encoder_sets)
    features = [ring_features(preparation, part, rings=rings) for part in tiles]
    targets = [np.asarray(part, float) for part in targets]
    # In units of its own deviation every gene weighs the same when programmes are sought.
    n_spots = sum(len(y) for y in targets)
    unit = np.sqrt(sum(((y - y.mean(0)) ** 2).sum(0) for y in targets) / n_spots)
    scaled = [y / np.where(unit > 1e-6, unit, np.inf) for y in targets]
    parts = [sum_sections([x], [y]) for x, y in zip(features, scaled, strict=True)]
    shapes = list(itertools.product(sets, range(rings + 1)))
    columns = [ring_columns(preparation, names, reach) for names, reach in shapes]
    scores = np.zeros((len(shapes), len(alphas), len(ranks), len(tiles)))
    held_out = held_out_sections(groups)
    for out in held_out:
        kept = [part for i, part in enumerate(parts) if i not in out]
        rest = sum(kept[1:], kept[0])
        judges = {i: parts[i] for i in out}
        for k, use in enumerate(columns):
            for i, values in _path_scores(rest, judges, scaled, use, alphas, ranks).items():
                scores[k, :, :, i] = values
    mean_scores = np.apply_along_axis(mean_over_groups, -1, scores, groups)
    shares = np.full(mean_scores.shape, 1 / mean_scores.size)  # with nothing to choose by
    if held_out:
        shares = weigh_candidates(mean_scores, n_patients=len(set(groups)))

    total = sum(parts[1:], parts[0])
    coefficients = np.zeros_like(total.targets)
    for k, use in enumerate(columns):
        if shares[k].any():
            basis = _Basis(total, use)
            for a, alpha in enumerate(alphas):
                fit = basis.fit(alpha, most=max(ranks))
                mixed = sum(
                    shares[k, a, r] * fit.coefficients(rank) for r, rank in enumerate(ranks)
                )
                coefficients[use] += basis.vectors @ mixed
    coefficients *= unit
    whole = [preparation.transform(part, view="whole") for part in tiles]
    level = fit_level(whole, targets, groups, alphas)
    best = np.unravel_index(mean_scores.argmax(), mean_scores.shape)
    names, reach = shapes[best[0]]
    choice = {
        "alpha": float(alphas[int(best[1])]),
        "rank": int(ranks[int(best[2])]),
        "reach": reach,
        "rings": rings,
        "encoders": names,
        "score": float((shares * mean_scores).sum()),
        **level.choice,
        "candidates": [
            {
                "encoders": "+".join(shapes[k][0]),
                "reach": shapes[k][1],
                "rank": int(ranks[r]),
                "alpha": float(alphas[a]),
                "score": float(mean_scores[k, a, r]),
                "weight": float(shares[k, a, r]),
            }
            for k, a, r in np.ndindex(*mean_scores.shape)
        ],
    }
    LOG.info(
        "neighbours: best of %d candidates %s, reach %d, rank %d, alpha %g (score %.4f); mean %.4f",
        *(mean_scores.size, "+".join(names), reach, choice["rank"], choice["alpha"]),
        *(mean_scores.max(), choice["score"]),
    )
    return NeighbourModel(
        preparation=preparation,
        deviation=coefficients.astype(np.float32),
        **level.parts,
        choice=choice,
        rings=rings,
    )


def ring_features(
    preparation: Preparation,
    tiles: Tiles,
    *,
    rings: int,
    view: str = "slide",
    moments: SlideMoments | None = None,
) -> np.ndarray:
    """Return own features, then their mean over ring 1, ring 2, ..., (n, p (1 + rings)) float64.

    A tile without neighbours in a ring has there the mean of the ring before (its own at last).
    """
    prepared = preparation.transform(tiles, view=view, moments=moments)
    own = np.concatenate([preparation.own_columns(name) for name in preparation.names])
    views = [prepared[:, own]]
    for ring in preparation.lattice.rings(tiles.row, tiles.col, rings):
        degree = np.asarray(ring.sum(1), float).ravel()
        mean = (ring.astype(float) @ views[0]) / np.maximum(degree, 1.0)[:, None]
        views.append(np.where(degree[:, None] > 0, mean, views[-1]))
    return np.hstack(views)


@dataclass(frozen=True)
class _Fit:
    """A ridge at one penalty, in the coordinates in which X'X is diagonal."""

    rotated: np.ndarray  # (p, g) coefficients
    root: np.ndarray  # (p,) roots of X'X + penalty
    axes: np.ndarray  # (p, k) leading left singular vectors of root * coefficients
    programmes: np.ndarray  # (k, g) axes' root * coefficients

    def coefficients(self, rank: int) -> np.ndarray:
        """Return the coefficients (p, g) of the best fit of a rank; 0 keeps all of it."""
        if rank == 0 or rank >= min(self.rotated.shape):
            return self.rotated
        return self.axes[:, :rank] @ self.programmes[:rank] / self.root[:, None]

    def score(self, rank: int, features: np.ndarray, loads: np.ndarray, norm: np.ndarray) -> float:
        """Return the mean correlation over the genes of a section, from its cross products.

        Parameters
        ----------
        rank
            As for `coefficients`.
        features, loads
            X'X (p, p) and X'Y (p, g) of the section, in the coordinates of the fit.
        norm
            Length of each centred gene, (g,); a gene that does not vary on it is left out, one
            that is predicted constant counts as 0.
        """
        if rank == 0 or rank >= min(self.rotated.shape):
            product = (self.rotated * loads).sum(0)
            square = (self.rotated * (features @ self.rotated)).sum(0)
        else:
            axes, weights = self.axes[:, :rank] / self.root[:, None], self.programmes[:rank]
            product = (weights * (axes.T @ loads)).sum(0)
            square = (weights * ((axes.T @ features @ axes) @ weights)).sum(0)
        own, varies = np.sqrt(np.maximum(square, 0.0)), norm > 0
        if not varies.any():
            return 0.0
        defined = (own > 1e-12 * max(float(own.max()), 1e-300)) & varies
        correlation = np.where(defined, product / np.where(defined, own * norm, 1.0), 0.0)
        return float(correlation[varies].mean())


class _Basis:
    """The eigenvectors of X'X of some columns, in which every penalty is a division."""

    def __init__(self, sums: Any, use: np.ndarray):
        values, self.vectors = linalg.eigh(sums.features[np.ix_(use, use)])
        self.values, self.n = np.maximum(values, 0.0), sums.n
        self.loads = self.vectors.T @ sums.targets[use]

    def fit(self, alpha: float, *, most: int) -> _Fit:
        """Return the ridge at a penalty, with its `most` leading directions."""
        diagonal = self.values + alpha * self.n
        rotated, root = self.loads / diagonal[:, None], np.sqrt(diagonal)
        fitted = root[:, None] * rotated
        size = len(fitted)
        subset = [max(0, size - max(most, 1)), size - 1]
        axes = linalg.eigh(fitted @ fitted.T, subset_by_index=subset)[1][:, ::-1]
        return _Fit(rotated, root, axes, axes.T @ fitted)


def _path_scores(
    rest: Any,
    judges: Mapping[int, Any],
    targets: Sequence[np.ndarray],
    use: np.ndarray,
    alphas: Sequence[float],
    ranks: Sequence[int],
) -> dict[int, np.ndarray]:
    """Return, for each section left out, its score at every penalty and rank."""
    basis = _Basis(rest, use)
    rotated = {
        i: (
            basis.vectors.T @ part.features[np.ix_(use, use)] @ basis.vectors,
            basis.vectors.T @ part.targets[use],
            np.where(
                np.ptp(targets[i], axis=0) > 0,
                np.linalg.norm(targets[i] - targets[i].mean(0), axis=0),
                0,
            ),
        )
        for i, part in judges.items()
    }
    scores = {i: np.zeros((len(alphas), len(ranks))) for i in judges}
    for a, alpha in enumerate(alphas):
        fit = basis.fit(alpha, most=max(ranks))
        for i, section in rotated.items():
            scores[i][a] = [fit.score(rank, *section) for rank in ranks]
    return scores


def ring_columns(preparation: Preparation, encoders: Sequence[str], reach: int) -> np.ndarray:
    """Return the columns of some encoders, out to a ring, among those of `ring_features`."""
    widths = [len(preparation.own_columns(name)) for name in preparation.names]
    starts = dict(zip(preparation.names, np.cumsum([0, *widths[:-1]]), strict=True))
    width = dict(zip(preparation.names, widths, strict=True))
    return np.concatenate(
        [
            ring * sum(widths) + starts[name] + np.arange(width[name])
            for ring in range(reach + 1)
            for name in encoders
        ]
    )
