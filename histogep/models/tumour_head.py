"""A light tumour map: a regularised discriminant on a tile, the rings around it and its slide.

Ridge regression of the labels (a linear discriminant with a shrunken covariance; Hastie, Tibshirani
and Friedman, The Elements of Statistical Learning, 2nd ed., sections 4.2 and 4.3) on the features
that `histogep.models.neighbours` reads, standardised twice: within the slide, and on the scale of the
training tiles, which recognises a slide that is tumour throughout. Encoders, views, reach and
penalty are weighted by cross-validation over training patients. The scores of the patients left out
also turn the discriminant into a probability (Platt, 1999) and choose the threshold. Numpy only: no
torch.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import linalg

from histogep.errors import InputError
from histogep.lattice import Lattice
from histogep.models.linear import candidate_sets, held_out_sections, weigh_candidates
from histogep.models.neighbours import RINGS, ring_columns, ring_features
from histogep.models.preparation import VIEWS, Preparation, SlideMoments, Tiles, slide_moments
from histogep.models.selection import mean_over_groups
from histogep.models.tile_source import TileSource
from histogep.stats.scores import auroc

LOG = logging.getLogger(__name__)
#: Penalties per spot, in units of the total variance of one encoder's prepared features.
ALPHAS = tuple(float(f"{alpha:.3g}") for alpha in np.logspace(-4, 0, 9))
#: Views to weigh: relative to the slide, or that and the training tiles' scale.
VIEW_SETS = (VIEWS[:1], VIEWS)


@dataclass
class TumourModel:
    """A fitted tumour map; `predict` applies it to all tiles of a slide.

    Attributes
    ----------
    preparation
        Feature preparation fitted on the training slides.
    coefficients
        (p,) of `tumour_features`.
    slope, intercept
        What turns the discriminant into log odds.
    rings
        Farthest ring that the coefficients read.
    choice
        What was chosen, on whom, and with which score; the threshold of the best Dice.
    """

    preparation: Preparation
    coefficients: np.ndarray
    slope: float
    intercept: float
    rings: int
    choice: dict[str, Any] = field(default_factory=dict)

    def predict(self, tiles: Tiles) -> tuple[np.ndarray, None]:
        """Return the tumour probability (n, 1) float32 of ALL tiles of one slide, and no level."""
        features = tumour_features(self.preparation, tiles, rings=self.rings)
        return probability_of(self.log_odds(features))[:, None], None

    def log_odds(self, features: np.ndarray) -> np.ndarray:
        """Return the log odds (n,) of `tumour_features`."""
        return self.slope * (features @ self.coefficients) + self.intercept

    def add_to(self, source: TileSource, add: Callable[[np.ndarray, np.ndarray], None]) -> None:
        """Give the log odds of a slide's tiles band by band; `probability_of` them is `predict`'s.

        Parameters
        ----------
        source
            ALL tiles of one slide; their features are read as they are needed, three times.
        add
            Called with indices of tiles and their log odds, (k, 1).
        """
        moments = slide_moments(lambda: (part for _, part in source.chunks()))
        for kept, part in source.bands(halo=max(1, self.rings)):
            features = tumour_features(self.preparation, part, rings=self.rings, moments=moments)
            add(kept.tiles, self.log_odds(features[kept.rows])[:, None])

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return every number of the model, for a safetensors file."""
        return self.preparation.to_arrays() | {
            "tumour.coefficients": np.ascontiguousarray(self.coefficients),
            "tumour.odds": np.array([self.slope, self.intercept]),
        }

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]
    ) -> TumourModel:
        """Rebuild a model from its arrays and its settings.json."""
        slope, intercept = arrays["tumour.odds"]
        return cls(
            preparation=Preparation.from_arrays(
                arrays, blocks=settings["blocks"], lattice=settings["lattice"]
            ),
            coefficients=arrays["tumour.coefficients"],
            slope=float(slope),
            intercept=float(intercept),
            rings=int(settings["choice"]["rings"]),
            choice=dict(settings["choice"]),
        )


@dataclass
class HeldOutMap:
    """Scores of patients that were held out in cross-validation.

    Attributes
    ----------
    discriminant, label, patient
        Of every labelled spot, (n,).
    offset
        Log odds of a spot with a discriminant of 0.
    """

    discriminant: np.ndarray
    label: np.ndarray
    patient: np.ndarray
    offset: float = 0.0


@dataclass(frozen=True)
class _Moments:
    """Sums over labelled spots: enough to fit a discriminant without them."""

    n: int
    x: np.ndarray
    y: float
    xx: np.ndarray
    xy: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray) -> _Moments:
        return cls(len(y), x.sum(0), float(y.sum()), x.T @ x, x.T @ y)

    def __add__(self, other: _Moments) -> _Moments:
        return _Moments(
            self.n + other.n,
            self.x + other.x,
            self.y + other.y,
            self.xx + other.xx,
            self.xy + other.xy,
        )

    @property
    def both_classes(self) -> bool:
        return 0 < self.y < self.n

    def paths(self, use: np.ndarray, alphas: Sequence[float]) -> np.ndarray:
        """Return the coefficients (p, penalties) of some columns at every penalty."""
        mean_x, mean_y = self.x[use] / self.n, self.y / self.n
        covariance = self.xx[np.ix_(use, use)] / self.n - np.outer(mean_x, mean_x)
        values, vectors = linalg.eigh(covariance)
        loads = vectors.T @ (self.xy[use] / self.n - mean_x * mean_y)
        return vectors @ (loads[:, None] / (np.maximum(values, 0.0)[:, None] + np.array(alphas)))


def fit_tumour(
    tiles: Sequence[Tiles],
    labels: Sequence[np.ndarray],
    groups: Sequence[str],
    *,
    blocks: Sequence[tuple[str, int]],
    lattice: Lattice,
    components: int = 64,
    alphas: Sequence[float] = ALPHAS,
    rings: int = RINGS,
    encoder_sets: Sequence[Sequence[str]] = (),
) -> tuple[TumourModel, HeldOutMap | None]:
    """Fit the map on training sections; every choice is weighed by inner folds.

    Parameters
    ----------
    tiles
        ALL tiles of each section.
    labels
        1, 0, or NaN where the label is unknown, (n, 1) or (n,) of each section.
    groups
        The patient of each section.
    blocks, lattice, components, encoder_sets
        As for `histogep.models.ridge.fit_ridge`.
    alphas
        Penalties to weigh, per spot.
    rings
        Farthest ring of neighbours; every reach from 0 to this is weighed.

    Returns
    -------
    tuple
        The model, and the cross-validated scores of its patients (None if none can be left out).

    Raises
    ------
    InputError
        The labelled spots are of one class, or there is no valid penalty.
    """
    if not alphas or min(alphas) <= 0 or rings < 0:
        raise InputError(
            f"alphas must be above 0 and rings at least 0, not {list(alphas)} and {rings}"
        )
    preparation = Preparation.fit(tiles, blocks=blocks, lattice=lattice, components=components)
    sets = candidate_sets(preparation.names, encoder_sets)
    flat = [np.asarray(part, float).ravel() for part in labels]
    known = [np.isfinite(part) for part in flat]
    y = [part[k] for part, k in zip(flat, known, strict=True)]
    x = [
        tumour_features(preparation, part, rings=rings)[k]
        for part, k in zip(tiles, known, strict=True)
    ]
    parts = [_Moments.of(*pair) for pair in zip(x, y, strict=True)]
    total = sum(parts[1:], parts[0])
    if not total.both_classes:
        raise InputError("the labelled spots of the training sections are of one class")
    shapes = list(itertools.product(VIEW_SETS, sets, range(rings + 1)))
    columns = [_columns(preparation, *shape, rings=rings) for shape in shapes]
    held = [np.full((len(part), len(shapes), len(alphas)), np.nan) for part in y]
    for out in held_out_sections(groups):
        kept = [part for i, part in enumerate(parts) if i not in out]
        rest = sum(kept[1:], kept[0])
        if not rest.both_classes:
            continue
        for k, use in enumerate(columns):
            paths = rest.paths(use, alphas)
            for i in out:
                shift = rest.x[use] / rest.n
                held[i][:, k] = (x[i][:, use] - shift) @ paths + rest.y / rest.n
    # Somers' D (0: chance, 1: perfect) has the scale of a correlation.
    scores = np.full((len(shapes), len(alphas)), np.nan)
    seen = [bool(np.isfinite(part).all()) for part in held]
    for k, a in np.ndindex(*scores.shape):
        areas = [
            auroc(h[:, k, a], part) if s else np.nan
            for h, part, s in zip(held, y, seen, strict=True)
        ]
        scores[k, a] = 2 * mean_over_groups(areas, groups) - 1
    judged = bool(np.isfinite(scores).all())
    shares = np.full(scores.shape, 1 / scores.size)
    if judged:
        shares = weigh_candidates(scores, n_patients=len(set(groups)))
    else:
        LOG.warning("no patient can be left out: all candidates are weighted equally")
    coefficients = np.zeros(len(total.x))
    for k, use in enumerate(columns):
        if shares[k].any():
            coefficients[use] += total.paths(use, alphas) @ shares[k]
    centre = total.y / total.n - total.x @ coefficients / total.n
    left_out = None
    if judged:
        judges = np.flatnonzero(seen)
        left_out = HeldOutMap(
            np.concatenate([np.einsum("nka,ka->n", held[i], shares) for i in judges]),
            np.concatenate([y[i] for i in judges]),
            np.repeat([groups[int(i)] for i in judges], [len(y[i]) for i in judges]),
        )
        slope, offset = platt(left_out.discriminant, left_out.label, left_out.patient)
        left_out.offset = offset
    else:
        joined = np.concatenate([part @ coefficients for part in x]) + centre
        slope, offset = platt(joined, np.concatenate(y), np.repeat(groups, [len(p) for p in y]))
    best = np.unravel_index(np.nan_to_num(scores, nan=-1.0).argmax(), scores.shape)
    views, names, reach = shapes[best[0]]
    area = (1 + float((shares * scores).sum())) / 2 if judged else None
    choice = {
        "alpha": float(alphas[best[1]]),
        "views": list(views),
        "reach": reach,
        "rings": rings,
        "encoders": names,
        "score": area,
        "candidates": [
            {
                "views": "+".join(shapes[k][0]),
                "encoders": "+".join(shapes[k][1]),
                "reach": shapes[k][2],
                "alpha": float(alphas[a]),
                "score": (1 + float(scores[k, a])) / 2 if judged else None,
                "weight": float(shares[k, a]),
            }
            for k, a in np.ndindex(*scores.shape)
        ],
    }
    LOG.info(
        "tumour: best of %d candidates %s, view %s, reach %d, alpha %g; mean inner AUROC %s",
        *(scores.size, "+".join(names), "+".join(views), reach, choice["alpha"], area),
    )
    model = TumourModel(
        preparation=preparation,
        coefficients=coefficients,
        slope=slope,
        intercept=float(offset + slope * centre),
        rings=rings,
        choice=choice,
    )
    return model, left_out


def tumour_features(
    preparation: Preparation, tiles: Tiles, *, rings: int, moments: SlideMoments | None = None
) -> np.ndarray:
    """Return the features that the map reads of ALL tiles, (n, 2 p (1 + rings)): view after view.

    `moments` as for `Preparation.transform`.
    """
    return np.hstack(
        [
            ring_features(preparation, tiles, view=view, rings=rings, moments=moments)
            for view in VIEWS
        ]
    )


def probability_of(log_odds: np.ndarray) -> np.ndarray:
    """Return probabilities, float32."""
    return (1 / (1 + np.exp(-np.clip(np.asarray(log_odds, float), -80, 80)))).astype(np.float32)


def platt(discriminant: np.ndarray, label: np.ndarray, patients: np.ndarray) -> tuple[float, float]:
    """Return slope and intercept of the log odds of a label given a discriminant.

    Every patient weighs the same. The targets are moved away from 0 and 1 as Platt (1999) does, so
    that classes that do not overlap give finite odds; a slope is never negative.
    """
    _, owner, count = np.unique(np.asarray(patients, str), return_inverse=True, return_counts=True)
    weight = len(owner) / (len(count) * count[owner])
    n_positive, n_negative = float(label.sum()), float((1 - label).sum())
    target = np.where(label > 0.5, (n_positive + 1) / (n_positive + 2), 1 / (n_negative + 2))
    scale = max(float(discriminant.std()), 1e-12)
    x = np.column_stack([discriminant / scale, np.ones(len(discriminant))])
    beta = np.zeros(2)
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(x @ beta, -30, 30)))
        gradient = x.T @ (weight * (target - p))
        hessian = (x * (weight * p * (1 - p))[:, None]).T @ x + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        beta += np.clip(step, -5, 5)
        if np.abs(step).max() < 1e-10:
            break
    if beta[0] < 0:
        prevalence = float((weight * target).sum() / weight.sum())
        return 0.0, float(np.log(prevalence / (1 - prevalence)))
    return float(beta[0] / scale), float(beta[1])


def _columns(
    preparation: Preparation,
    views: Sequence[str],
    encoders: Sequence[str],
    reach: int,
    *,
    rings: int,
) -> np.ndarray:
    """Return the columns of views and encoders, out to a ring, among those of `tumour_features`."""
    own = ring_columns(preparation, encoders, reach)
    width = (rings + 1) * sum(len(preparation.own_columns(name)) for name in preparation.names)
    return np.concatenate([VIEWS.index(view) * width + own for view in views])
