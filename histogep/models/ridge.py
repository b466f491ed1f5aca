"""Ridge regression from tile features to expression, in two parts (numpy and scipy; no torch).

The deviation of a spot from its section's mean is predicted from features standardised within
the slide; the section's mean (its level) from features on the training scale. The prediction is
level + deviation. Encoders and penalties are weighted by cross-validation over training patients.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import linalg

from histogep.errors import InputError
from histogep.lattice import Lattice
from histogep.models.linear import (
    Sums,
    candidate_sets,
    held_out_sections,
    solve,
    sum_sections,
    weigh_candidates,
)
from histogep.models.preparation import Preparation, SlideMoments, Tiles, slide_moments
from histogep.models.selection import mean_over_groups
from histogep.models.tile_source import TileSource

LOG = logging.getLogger(__name__)
#: Penalties per spot, in units of the total variance of one encoder's prepared features.
ALPHAS = tuple(float(f"{alpha:.3g}") for alpha in np.logspace(-3, 1, 9))
#: How far a slide's level may move from the training mean towards what its features say.
SHRINKAGES = (0.0, 0.25, 0.5, 0.75, 1.0)
_CHUNK = 4096


@dataclass
class RidgeModel:
    """A fitted ridge; `predict` applies it to all tiles of a slide.

    Attributes
    ----------
    preparation
        Feature preparation fitted on the training slides.
    deviation, level
        Coefficients, (p, g) float32, of the slide-standardised and of the cohort-standardised features.
    level_mean
        Training mean (over sections) of the cohort-standardised features, (p,), and of the targets, (g,).
    target_mean
        Training mean over sections of the targets, (g,).
    shrinkage
        Share of the predicted level that is used; 0 gives every slide the training mean.
    choice
        What was chosen, on whom, and with which score.
    """

    preparation: Preparation
    deviation: np.ndarray
    level: np.ndarray
    level_mean: np.ndarray
    target_mean: np.ndarray
    shrinkage: float
    choice: dict[str, Any] = field(default_factory=dict)

    def predict(self, tiles: Tiles) -> tuple[np.ndarray, np.ndarray]:
        """Return the prediction (n, g) and its slide level (g,), log1p CP10k float32.

        Parameters
        ----------
        tiles
            ALL tiles of one slide: both parts are relative to the slide.
        """
        whole = self.preparation.transform(tiles, view="whole")
        shift = (whole.mean(0) - self.level_mean) @ self.level.astype(float)
        level = (self.target_mean + self.shrinkage * shift).astype(np.float32)
        features = self.within(tiles)
        features = (features - features.mean(0)).astype(np.float32)
        values = np.empty((len(features), len(level)), np.float32)
        for start in range(0, len(features), _CHUNK):
            part = slice(start, start + _CHUNK)
            np.matmul(features[part], self.deviation, out=values[part])
            values[part] += level
        return values, level

    @property
    def halo(self) -> int:
        """Rows of the lattice beside a tile that its features depend on."""
        return 1

    def within(self, tiles: Tiles, *, moments: SlideMoments | None = None) -> np.ndarray:
        """Return what the deviation is predicted from, (n, p); `moments` as for `transform`."""
        return self.preparation.transform(tiles, view="slide", moments=moments)

    def add_to(self, source: TileSource, add: Callable[[np.ndarray, np.ndarray], None]) -> None:
        """Yield the predictions of a slide's tiles band by band; they are those of `predict`.

        Parameters
        ----------
        source
            ALL tiles of one slide; their features are read as they are needed, four times.
        add
            Called with indices of tiles and their values, (k, g) float32.
        """
        moments = slide_moments(lambda: (part for _, part in source.chunks()))
        whole, within = 0.0, 0.0
        for kept, part in source.bands(halo=self.halo):
            whole = whole + self.preparation.transform(part, view="whole")[kept.rows].sum(0)
            within = within + self.within(part, moments=moments)[kept.rows].sum(0)
        shift = (whole / len(source) - self.level_mean) @ self.level.astype(float)
        level = (self.target_mean + self.shrinkage * shift).astype(np.float32)
        for kept, part in source.bands(halo=self.halo):
            features = self.within(part, moments=moments)[kept.rows] - within / len(source)
            add(kept.tiles, features.astype(np.float32) @ self.deviation + level)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return every number of the model, for a safetensors file."""
        return self.preparation.to_arrays() | {
            "ridge.deviation": np.ascontiguousarray(self.deviation),
            "ridge.level": np.ascontiguousarray(self.level),
            "ridge.level_mean": self.level_mean,
            "ridge.target_mean": self.target_mean,
        }

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]
    ) -> RidgeModel:
        """Rebuild a model from its arrays and its settings.json."""
        return cls(
            preparation=Preparation.from_arrays(
                arrays, blocks=settings["blocks"], lattice=settings["lattice"]
            ),
            deviation=arrays["ridge.deviation"],
            level=arrays["ridge.level"],
            level_mean=arrays["ridge.level_mean"],
            target_mean=arrays["ridge.target_mean"],
            shrinkage=float(settings["choice"]["level_shrinkage"]),
            choice=dict(settings["choice"]),
        )


def fit_ridge(
    tiles: Sequence[Tiles],
    targets: Sequence[np.ndarray],
    groups: Sequence[str],
    *,
    blocks: Sequence[tuple[str, int]],
    lattice: Lattice,
    components: int = 64,
    alphas: Sequence[float] = ALPHAS,
    encoder_sets: Sequence[Sequence[str]] = (),
) -> RidgeModel:
    """Fit both parts on training sections, weighing encoders and penalties by inner folds.

    Parameters
    ----------
    tiles, targets
        Features and log1p CP10k (n, g) of each section.
    groups
        The patient of each section (or the section itself where sections are held out).
    blocks
        (encoder name, number of columns) of the features.
    lattice
        Where the neighbours of a tile lie.
    components
        Principal components of a wide block.
    alphas
        Penalties to weigh, per spot.
    encoder_sets
        Lists of encoder names to weigh; each alone and all together by default.
    """
    if len({len(tiles), len(targets), len(groups)}) != 1 or not tiles:
        raise ValueError("tiles, targets and groups must be lists of the same length, not empty")
    if not alphas or min(alphas) <= 0:
        raise InputError(f"alphas must be numbers above 0, not {list(alphas)}")
    preparation = Preparation.fit(tiles, blocks=blocks, lattice=lattice, components=components)
    sets = candidate_sets(preparation.names, encoder_sets)
    views = {
        view: [preparation.transform(part, view=view) for part in tiles]
        for view in ("slide", "whole")
    }
    targets = [np.asarray(part, float) for part in targets]
    columns = {name: _columns(preparation, name) for name in preparation.names}
    scores = _deviation_scores(views["slide"], targets, groups, sets, columns, alphas)
    shares = weigh_candidates(scores, n_patients=len(set(groups)))
    slide_sums = sum_sections(views["slide"], targets)
    deviation = np.zeros_like(slide_sums.targets)
    for s, names in enumerate(sets):
        use = np.concatenate([columns[name] for name in names])
        part = Sums(slide_sums.features[np.ix_(use, use)], slide_sums.targets[use], slide_sums.n)
        for a in np.flatnonzero(shares[s]):
            deviation[use] += shares[s, a] * solve(part, alphas[int(a)])

    level = fit_level(views["whole"], targets, groups, alphas)
    best = np.unravel_index(scores.argmax(), scores.shape)
    choice: dict[str, Any] = {
        "alpha": float(alphas[int(best[1])]),
        "encoders": sets[int(best[0])],
        "score": float((shares * scores).sum()),
        **level.choice,
        "candidates": [
            {
                "encoders": "+".join(names),
                "alpha": float(alphas[a]),
                "score": float(scores[s, a]),
                "weight": float(shares[s, a]),
            }
            for s, names in enumerate(sets)
            for a in range(len(alphas))
        ],
    }
    LOG.info(
        "ridge: best of %d candidates on %s with alpha %g (score %.4f); mean score %.4f",
        *(scores.size, "+".join(choice["encoders"]), choice["alpha"], scores.max()),
        choice["score"],
    )
    return RidgeModel(
        preparation=preparation,
        deviation=deviation.astype(np.float32),
        **level.parts,
        choice=choice,
    )


@dataclass(frozen=True)
class Level:
    """The fitted level: the arguments of `RidgeModel` that it gives, and how it was chosen."""

    parts: dict[str, Any]
    choice: dict[str, float]


def fit_level(
    features: list[np.ndarray],
    targets: list[np.ndarray],
    groups: Sequence[str],
    alphas: Sequence[float],
) -> Level:
    """Fit the section means (the level), its penalty and shrinkage chosen by inner folds.

    Parameters
    ----------
    features
        The cohort-standardised features of each section, (n, p).
    targets, groups, alphas
        As for `fit_ridge`.
    """
    errors = _level_errors(features, targets, groups, alphas)
    alpha, shrink = np.unravel_index(errors.argmin(), errors.shape)
    feature_mean, target_mean = _section_mean(features), _section_mean(targets)
    sums = sum_sections(features, targets, centres=(feature_mean, target_mean))
    shrinkage = float(SHRINKAGES[shrink])
    return Level(
        parts={
            "level": solve(sums, alphas[int(alpha)]).astype(np.float32),
            "level_mean": feature_mean,
            "target_mean": target_mean,
            "shrinkage": shrinkage,
        },
        choice={
            "level_alpha": float(alphas[int(alpha)]),
            "level_shrinkage": shrinkage,
            "level_error": float(errors[alpha, shrink]),
        },
    )


def _section_mean(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.mean([part.mean(0) for part in parts], axis=0)


def _columns(preparation: Preparation, name: str) -> np.ndarray:
    """Return where the prepared columns of one encoder lie."""
    start = 0
    for other in preparation.names:
        width = preparation.width(names=[other])
        if other == name:
            return np.arange(start, start + width)
        start += width
    raise KeyError(name)


def _deviation_scores(
    features: list[np.ndarray],
    targets: list[np.ndarray],
    groups: Sequence[str],
    sets: list[list[str]],
    columns: dict[str, np.ndarray],
    alphas: Sequence[float],
) -> np.ndarray:
    """Return the inner-fold score (mean in-section correlation) of (encoder set, alpha)."""
    scores = np.zeros((len(sets), len(alphas), len(features)))
    parts = [sum_sections([x], [y]) for x, y in zip(features, targets, strict=True)]
    held_out = held_out_sections(groups)
    if not held_out:
        scores[:, len(alphas) // 2] = 1e-9  # nothing to choose by: the middle of the grid
        return scores.mean(-1)
    for out in held_out:
        kept = [part for i, part in enumerate(parts) if i not in out]
        rest = sum(kept[1:], kept[0])
        for s, names in enumerate(sets):
            use = np.concatenate([columns[name] for name in names])
            values, axes = linalg.eigh(rest.features[np.ix_(use, use)])
            loads = axes.T @ rest.targets[use]
            for i in out:
                rotated = (features[i][:, use] - features[i][:, use].mean(0)) @ axes
                scores[s, :, i] = _path_scores(rotated, values, loads, targets[i], alphas, rest.n)
    return np.array(
        [
            [mean_over_groups(scores[s, a], groups) for a in range(len(alphas))]
            for s in range(len(sets))
        ]
    )


def _path_scores(
    rotated: np.ndarray,
    values: np.ndarray,
    loads: np.ndarray,
    measured: np.ndarray,
    alphas: Sequence[float],
    n: int,
) -> np.ndarray:
    """Return the mean correlation over genes for each alpha, from cross products only.

    With features rotated to the eigenvectors, the prediction is T (d * C), so that its products
    with the truth and with itself follow from T'Y and T'T.
    """
    varies = np.ptp(measured, axis=0) > 0
    if not varies.any():
        return np.zeros(len(alphas))
    centred = measured[:, varies] - measured[:, varies].mean(0)
    loads = loads[:, varies]
    with_truth, with_self = rotated.T @ centred, rotated.T @ rotated
    norm = np.sqrt((centred**2).sum(0))
    scores = []
    for alpha in alphas:
        weights = loads / (np.maximum(values, 0.0) + alpha * n)[:, None]
        product = (weights * with_truth).sum(0)
        own = np.sqrt(np.maximum((weights * (with_self @ weights)).sum(0), 0.0))
        defined = own > 1e-12 * max(float(own.max()), 1e-300)
        scores.append(np.where(defined, product / np.where(defined, own * norm, 1.0), 0.0).mean())
    return np.array(scores)


def _level_errors(
    features: list[np.ndarray],
    targets: list[np.ndarray],
    groups: Sequence[str],
    alphas: Sequence[float],
) -> np.ndarray:
    """Return the inner-fold error of held-out section means of (alpha, shrinkage).

    The error is squared, in units of each gene's variance over spots, and averaged over genes,
    sections and patients.
    """
    means = [part.mean(0) for part in targets]
    variance = np.mean([part.var(0) for part in targets], axis=0)
    variance = np.maximum(variance, 1e-6 * max(float(variance.max()), 1e-12))
    errors = np.zeros((len(alphas), len(SHRINKAGES), len(features)))
    for out in held_out_sections(groups):
        kept = [i for i in range(len(features)) if i not in out]
        x_mean = _section_mean([features[i] for i in kept])
        y_mean = _section_mean([targets[i] for i in kept])
        sums = sum_sections(
            [features[i] for i in kept], [targets[i] for i in kept], centres=(x_mean, y_mean)
        )
        values, axes = linalg.eigh(sums.features)
        loads = axes.T @ sums.targets
        for i in out:
            shift = (features[i].mean(0) - x_mean) @ axes
            for a, alpha in enumerate(alphas):
                predicted = (shift / (np.maximum(values, 0.0) + alpha * sums.n)) @ loads
                for k, shrinkage in enumerate(SHRINKAGES):
                    residual = means[i] - y_mean - shrinkage * predicted
                    errors[a, k, i] = (residual**2 / variance).mean()
    return np.array(
        [
            [mean_over_groups(errors[a, k], groups) for k in range(len(SHRINKAGES))]
            for a in range(len(alphas))
        ]
    )
