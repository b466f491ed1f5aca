"""How far a tile's features lie from those of the training patients (numpy only).

Every encoder's features are a block with three measures of its own, on features that are standardised
over all training tiles and not slide by slide (which would hide a stain or a scanner): the Mahalanobis
distance in the principal components, the part that the components leave over, and the ratio of that
part to what they hold, which is large for noise. What is far is learnt by leaving out patients: a new
slide is of a new patient, and slides of one patient are alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import linalg, stats

from histogep.jobs import InputError

COMPONENTS = 32
#: Share of exchangeable new patients that may be called out of distribution, over all measures.
LEVEL = 0.1
#: What is assumed of the standard deviation of log measures between patients before any is seen, and
#: how many patients that assumption weighs: a few training patients estimate it badly.
PRIOR_SD, PRIOR_PATIENTS = 0.3, 4
#: A tile this near to the all-white tile, as a share of what nearly all training tiles keep, is empty.
EMPTY_SHARE = 0.5
MEASURES = ("mahalanobis", "rest", "ratio")
#: Share of the pooled variance mixed into the covariance, which few slides estimate badly.
_SHRINKAGE = 0.05
_LIMIT, _CHUNK = 50.0, 4096
#: Patients are left out in so many groups at most; so many tiles of a slide take part in the fit.
_GROUPS, _TILES = 10, 500


@dataclass
class Block:
    """The training tiles in the features of one encoder.

    Attributes
    ----------
    mean, scale
        Of the training tiles, (d,); scale 0 is a constant feature, which is not used.
    components
        (d, k).
    centre, inverse_covariance
        Of the k components.
    limits
        Of the three `MEASURES`: beyond them a tile is distant.
    white, empty
        The all-white tile (d,), and the distance to it below which a tile is empty, (1,).
    """

    mean: np.ndarray
    scale: np.ndarray
    components: np.ndarray
    centre: np.ndarray
    inverse_covariance: np.ndarray
    limits: np.ndarray
    white: np.ndarray
    empty: np.ndarray

    def standard(self, values: np.ndarray) -> np.ndarray:
        """Return standardised features."""
        used = self.scale > 0
        standard = np.zeros(np.shape(values))
        standard[..., used] = (values[..., used] - self.mean[used]) / self.scale[used]
        return np.clip(standard, -_LIMIT, _LIMIT)

    def measures(self, values: np.ndarray) -> np.ndarray:
        """Return the three measures of tiles with features (n, d), (n, 3)."""
        standard = self.standard(values)
        scores = standard @ self.components
        held = (scores**2).sum(1)
        rest = np.maximum((standard**2).sum(1) - held, 0.0)
        shifted = scores - self.centre
        squares = np.einsum("ij,jk,ik->i", shifted, self.inverse_covariance, shifted, optimize=True)
        return np.column_stack(
            [
                np.sqrt(np.maximum(squares, 0.0) / len(self.centre)),
                np.sqrt(rest / len(self.mean)),
                np.sqrt(rest / np.maximum(held, 1e-12)),
            ]
        )

    def from_white(self, values: np.ndarray) -> np.ndarray:
        """Return the distance of tiles to the all-white tile, (n,)."""
        return np.linalg.norm(self.standard(values) - self.standard(self.white), axis=1)


@dataclass
class FeatureDistance:
    """Distance to the training features; build it with `fit` or `from_arrays`.

    Attributes
    ----------
    blocks
        One for each encoder, in the order of the columns.
    """

    blocks: list[Block]

    @classmethod
    def fit(
        cls,
        slides: Sequence[np.ndarray],
        *,
        patients: Sequence[str],
        blocks: Sequence[tuple[str, int]],
        white: np.ndarray | None = None,
        components: int = COMPONENTS,
    ) -> FeatureDistance:
        """Fit on the features of each training slide, (n, d) each.

        Parameters
        ----------
        slides
            Features of each slide, (n, d).
        patients
            Patient of each slide.
        blocks
            (encoder name, number of columns) in the order of the columns.
        white
            Features (d,) of an all-white tile, if known.
        components
            Number of principal components kept of each block.
        """
        if sum(len(part) for part in slides) < 3:
            n = sum(len(part) for part in slides)
            raise InputError(f"the training slides have {n} tiles: too few for distances")
        level = LEVEL / (len(blocks) * len(MEASURES))
        fitted, start = [], 0
        for _, width in blocks:
            columns = slice(start, start + int(width))
            parts = [
                np.asarray(part[_spread(len(part)), columns], float) for part in slides if len(part)
            ]
            owners = [patient for patient, p in zip(patients, slides, strict=True) if len(p)]
            own_white = np.full(int(width), np.nan) if white is None else white[columns]
            fitted.append(_fit_block(parts, owners, own_white, components, level))
            start = columns.stop
        return cls(fitted)

    @property
    def threshold(self) -> float:
        """Distance beyond which a tile is distant: distances are in units of it."""
        return 1.0

    def distance(self, values: np.ndarray) -> np.ndarray:
        """Return the distance of tiles with features (n, d) to the training tiles, (n,) float64.

        It is the largest of all measures of all blocks, each divided by its limit; that of an empty
        tile, whatever its features, is at least 2.
        """
        parts = [self._distance(values[at : at + _CHUNK]) for at in range(0, len(values), _CHUNK)]
        return np.concatenate(parts) if parts else np.zeros(0)

    def _distance(self, values: np.ndarray) -> np.ndarray:
        worst, start = np.zeros(len(values)), 0
        for block in self.blocks:
            own = np.asarray(values[:, start : start + len(block.mean)], float)
            start += len(block.mean)
            worst = np.maximum(worst, (block.measures(own) / block.limits).max(1))
            if np.isfinite(block.white).all():
                empty = block.from_white(own) < block.empty[0]
                worst = np.where(empty, np.maximum(worst, 2.0), worst)
        return worst

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return all that was fitted, for a safetensors file: names are `<block>.<what>`.

        There is no `white` where the all-white tile is not known.
        """
        return {
            f"{number}.{name}": np.ascontiguousarray(value)
            for number, block in enumerate(self.blocks)
            for name, value in vars(block).items()
            if name != "white" or np.isfinite(value).all()
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> FeatureDistance:
        """Rebuild what `to_arrays` gave."""
        numbers = range(len({name.split(".")[0] for name in arrays}))
        fields = [name for name in Block.__dataclass_fields__ if name != "white"]
        blocks = []
        for n in numbers:
            own = {name: arrays[f"{n}.{name}"] for name in fields}
            unknown = np.full(len(own["mean"]), np.nan)
            blocks.append(Block(white=arrays.get(f"{n}.white", unknown), **own))
        return cls(blocks)


def _spread(n: int) -> np.ndarray:
    """Return up to `_TILES` of n tiles, evenly spread."""
    return np.unique(np.linspace(0, n - 1, min(n, _TILES)).astype(int))


def _fit_block(
    parts: Sequence[np.ndarray],
    patients: Sequence[str],
    white: np.ndarray,
    components: int,
    level: float,
) -> Block:
    block = _describe(parts, components)
    block.white = np.asarray(white, float)
    if np.isfinite(block.white).all():
        away = np.concatenate([block.from_white(part) for part in parts])
        block.empty = np.array([EMPTY_SHARE * np.quantile(away, 0.001)])
    block.limits = patient_limits(_left_out(parts, patients, components), level=level)
    return block


def _describe(parts: Sequence[np.ndarray], components: int) -> Block:
    """Return mean, scale, components and covariance of tiles; limits are not known yet."""
    joined = np.concatenate(parts)
    n, d = joined.shape
    mean, deviation = joined.mean(0), joined.std(0)
    # What is constant but for rounding is not used.
    scale = np.where(deviation > 1e-6 * (1 + np.abs(mean)), deviation, 0.0)
    nothing = np.zeros(0)
    block = Block(
        mean, scale, nothing, nothing, nothing, np.ones(3), np.full(d, np.nan), np.zeros(1)
    )
    standard = block.standard(joined)
    # Half of the columns at most: what nearly all of them leave over is rounding.
    kept = max(1, min(components, d // 2, n - 1))
    _, axes = linalg.eigh(standard.T @ standard / n, subset_by_index=[d - kept, d - 1])
    axes = axes[:, ::-1]
    block.components = axes * np.where(axes[np.abs(axes).argmax(0), np.arange(kept)] < 0, -1.0, 1.0)
    block.centre, block.inverse_covariance = _moments(standard @ block.components)
    return block


def _left_out(parts: Sequence[np.ndarray], patients: Sequence[str], components: int) -> np.ndarray:
    """Return the log of the measures of each patient from the others, (n patients, 3).

    A slide counts by its median tile, a patient by its furthest slide. With one patient each slide
    is left out, with one slide nothing can be.
    """
    names = sorted(set(patients))
    if len(names) == 1:
        patients = [str(number) for number in range(len(parts))]
        names = patients
    if len(names) == 1:
        return np.log(np.median(_describe(parts, components).measures(parts[0]), axis=0) + 1e-6)[
            None
        ]
    found: dict[str, np.ndarray] = {}
    for group in np.array_split(np.array(names, object), min(_GROUPS, len(names))):
        rest = [
            part for part, owner in zip(parts, patients, strict=True) if owner not in set(group)
        ]
        block = _describe(rest, components)
        for part, owner in zip(parts, patients, strict=True):
            if owner in set(group):
                own = np.log(np.median(block.measures(part), axis=0) + 1e-6)
                found[owner] = np.maximum(found.get(owner, own), own)
    measured = np.stack([found[name] for name in names])
    # Slides of one patient are no patients: their mean is all that they tell.
    return measured if len(set(names)) > 1 else measured.mean(0, keepdims=True)


def patient_limits(measured: np.ndarray, *, level: float) -> np.ndarray:
    """Return the limit of each measure, which a new patient passes with a probability of `level`.

    The prediction interval of one more normal value, for log measures (n patients, m). Their variance
    is moderated by a prior of `PRIOR_PATIENTS` patients (Smyth, Stat Appl Genet Mol Biol 2004), since
    two or three patients say little of it.
    """
    n = len(measured)
    spread = measured.var(0, ddof=1) if n > 1 else np.zeros(measured.shape[1])
    freedom = PRIOR_PATIENTS + n - 1
    variance = (PRIOR_PATIENTS * PRIOR_SD**2 + (n - 1) * spread) / freedom
    beyond = stats.t.ppf(1 - level, freedom) * np.sqrt(variance * (1 + 1 / n))
    return np.exp(measured.mean(0) + beyond)


def _moments(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and inverse covariance of coordinates, shrunk towards a diagonal."""
    centre = places.mean(0)
    covariance = np.atleast_2d(np.cov(places, rowvar=False))
    diagonal = np.diag(np.diag(covariance))
    shrunk = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * diagonal
    floor = 1e-9 * max(float(np.trace(covariance)) / len(centre), 1e-12)
    return centre, linalg.inv(shrunk + floor * np.eye(len(centre)))
