"""How far a tile's features lie from those of the training patients (numpy only).

Every encoder's features are a block, the descriptors two (colour, and texture with nuclei: training
slides of several scanners widen the limits of one and not of the other). A block has three measures of
its own, on features that are standardised over all training tiles and not slide by slide (which would hide a stain or a scanner): the Mahalanobis
distance in the principal components, the part that the components leave over, and the ratio of that
part to what they hold, which is large for noise. What is far is learnt by leaving out patients: a new
slide is of a new patient, and slides of one patient are alike. There are two limits: of the median tile
of a slide, which says whether the slide is out of distribution, and of a single tile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import linalg, stats

from histogep.errors import InputError
from histogep.study.encoder_choices import DESCRIPTORS

COMPONENTS = 32
#: Columns of the descriptors that are of texture and nuclei; the others are of colour.
TEXTURE = (*range(20, 26), *range(27, 35))
#: Share of exchangeable new patients that may be called out of distribution, over all measures.
LEVEL = 0.1
#: Share of the tiles of their slides that may be called out_of_distribution, over all measures.
TILE_LEVEL = 0.01
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
#: Numbers of quantiles by which distributions of patients and of tiles are taken.
_QUANTILES, _DEVIATIONS = 200, 2000


@dataclass
class Block:
    """The training tiles in one block of features.

    Attributes
    ----------
    mean, scale
        Of the training tiles, (d,); scale 0 is a constant feature, which is not used.
    components
        (d, k).
    centre, inverse_covariance
        Of the k components.
    limits
        Of the three `MEASURES`, for the median tile of a new patient's slide.
    tile_limits
        Of the three `MEASURES`, for single tiles of a slide whose median tile keeps the `limits`.
    white, empty
        The all-white tile (d,), and the distance to it below which a tile is empty, (1,).
    """

    mean: np.ndarray
    scale: np.ndarray
    components: np.ndarray
    centre: np.ndarray
    inverse_covariance: np.ndarray
    limits: np.ndarray
    tile_limits: np.ndarray
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


@dataclass(frozen=True)
class Judged:
    """How far the n tiles of a slide, and the slide as a whole, lie from the training patients.

    Attributes
    ----------
    ood_score
        Of each tile, (n,) float32: its largest measure in units of the limit of single tiles.
    out_of_distribution
        Which tiles are beyond that limit; in a slide that is out of distribution, which are beyond
        the limit of median tiles, half of them at least.
    median
        Of the slide: the largest of the medians of its measures, in units of the limits of median
        tiles.
    """

    ood_score: np.ndarray
    out_of_distribution: np.ndarray
    median: float

    @property
    def out(self) -> bool:
        """Whether the slide is out of distribution."""
        return self.median > 1


@dataclass
class FeatureDistance:
    """Distance to the training features; build it with `fit` or `from_arrays`.

    Attributes
    ----------
    blocks
        As `feature_columns` divides the features.
    columns
        Of each block.
    """

    blocks: list[Block]
    columns: list[np.ndarray]

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
        columns = feature_columns(blocks)
        owners = [patient for patient, p in zip(patients, slides, strict=True) if len(p)]
        fitted = []
        for own in columns:
            parts = [np.asarray(p[_spread(len(p))][:, own], float) for p in slides if len(p)]
            own_white = np.full(len(own), np.nan) if white is None else white[own]
            n_measures = len(columns) * len(MEASURES)
            fitted.append(_fit_block(parts, owners, own_white, components, n_measures))
        return cls(fitted, columns)

    def measure(self, values: np.ndarray) -> np.ndarray:
        """Return all measures of all blocks of tiles with features (n, d), (n, m) float32.

        Each is in units of its limit for the median tile of a new patient's slide. Those of an empty
        tile, whatever its features, are beyond both limits.
        """
        parts = [self._measure(values[at : at + _CHUNK]) for at in range(0, len(values), _CHUNK)]
        return np.concatenate(parts) if parts else np.zeros((0, self.n_measures), np.float32)

    def _measure(self, values: np.ndarray) -> np.ndarray:
        parts, empty = [], np.zeros(len(values), bool)
        for block, columns in zip(self.blocks, self.columns, strict=True):
            own = np.asarray(values[:, columns], float)
            parts.append(block.measures(own) / block.limits)
            if np.isfinite(block.white).all():
                empty |= block.from_white(own) < block.empty[0]
        measures = np.hstack(parts)
        measures[empty] = np.maximum(measures[empty], 2 * self.tile_limits)
        return measures.astype(np.float32)

    @property
    def n_measures(self) -> int:
        """Number of measures of a tile."""
        return len(self.blocks) * len(MEASURES)

    @property
    def tile_limits(self) -> np.ndarray:
        """The limits of single tiles, as `measure` scales them, (m,)."""
        return np.concatenate([block.tile_limits / block.limits for block in self.blocks])

    def judge(self, measures: np.ndarray) -> Judged:
        """Return what the measures (n, m) of all tiles of a slide say of them and of the slide."""
        median = float(np.median(measures, axis=0).max())
        distance = (measures / self.tile_limits).max(axis=1)
        out_of_distribution = distance > 1
        if median > 1:
            out_of_distribution |= (measures > 1).any(axis=1)
        return Judged(distance.astype(np.float32), out_of_distribution, median)

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
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], *, blocks: Sequence[tuple[str, int]]
    ) -> FeatureDistance:
        """Rebuild what `to_arrays` gave; `blocks` as for `fit`."""
        columns = feature_columns(blocks)
        fields = [name for name in Block.__dataclass_fields__ if name != "white"]
        fitted = []
        for n in range(len(columns)):
            own = {name: arrays[f"{n}.{name}"] for name in fields}
            unknown = np.full(len(own["mean"]), np.nan)
            fitted.append(Block(white=arrays.get(f"{n}.white", unknown), **own))
        return cls(fitted, columns)


def feature_columns(blocks: Sequence[tuple[str, int]]) -> list[np.ndarray]:
    """Return the columns of each block of distances.

    Parameters
    ----------
    blocks
        (encoder name, number of columns) in the order of the columns.
    """
    found: list[np.ndarray] = []
    start = 0
    for name, width in blocks:
        own = np.arange(start, start + int(width))
        texture = np.isin(own - start, TEXTURE) & (name == DESCRIPTORS)
        found += [own[~texture], own[texture]] if texture.any() else [own]
        start += int(width)
    return found


def _spread(n: int) -> np.ndarray:
    """Return up to `_TILES` of n tiles, evenly spread."""
    return np.unique(np.linspace(0, n - 1, min(n, _TILES)).astype(int))


def _fit_block(
    parts: Sequence[np.ndarray],
    patients: Sequence[str],
    white: np.ndarray,
    components: int,
    n_measures: int,
) -> Block:
    block = _describe(parts, components)
    block.white = np.asarray(white, float)
    if np.isfinite(block.white).all():
        away = np.concatenate([block.from_white(part) for part in parts])
        block.empty = np.array([EMPTY_SHARE * np.quantile(away, 0.001)])
    measured, within = _left_out(parts, patients, components)
    # Bonferroni, over all measures of all blocks.
    block.limits = patient_limits(measured, level=LEVEL / n_measures)
    block.tile_limits = np.maximum(
        block.limits,
        limits_of_tiles(
            measured, within, level=TILE_LEVEL / n_measures, patient_level=LEVEL / n_measures
        ),
    )
    return block


def _describe(parts: Sequence[np.ndarray], components: int) -> Block:
    """Return mean, scale, components and covariance of tiles; limits are not known yet."""
    joined = np.concatenate(parts)
    n, d = joined.shape
    mean, deviation = joined.mean(0), joined.std(0)
    # What is constant but for rounding is not used.
    scale = np.where(deviation > 1e-6 * (1 + np.abs(mean)), deviation, 0.0)
    nothing = np.zeros(0)
    limits = np.ones(len(MEASURES))
    block = Block(
        *(mean, scale, nothing, nothing, nothing, limits, limits),
        white=np.full(d, np.nan),
        empty=np.zeros(1),
    )
    standard = block.standard(joined)
    # Half of the columns at most: what nearly all of them leave over is rounding.
    kept = max(1, min(components, d // 2, n - 1))
    _, axes = linalg.eigh(standard.T @ standard / n, subset_by_index=[d - kept, d - 1])
    axes = axes[:, ::-1]
    block.components = axes * np.where(axes[np.abs(axes).argmax(0), np.arange(kept)] < 0, -1.0, 1.0)
    block.centre, block.inverse_covariance = _moments(standard @ block.components)
    return block


def _left_out(
    parts: Sequence[np.ndarray], patients: Sequence[str], components: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the log measures of patients and tiles, each from the other patients.

    A slide counts by its median tile, a patient by its furthest slide, and a tile by how far it lies
    beyond the median of its slide. With one patient each slide is left out, with one slide nothing
    can be.

    Returns
    -------
    tuple
        Log measures of patients (n patients, 3); what tiles add to those of their slide (n, 3).
    """
    names = sorted(set(patients))
    if len(names) == 1:
        patients = [str(number) for number in range(len(parts))]
    groups = np.array_split(np.array(sorted(set(patients)), object), min(_GROUPS, len(parts)))
    found: dict[str, np.ndarray] = {}
    within = []
    for group in map(set, groups):
        rest = [part for part, owner in zip(parts, patients, strict=True) if owner not in group]
        block = _describe(rest or parts, components)
        for part, owner in zip(parts, patients, strict=True):
            if owner in group:
                tiles = np.log(block.measures(part) + 1e-6)
                own = np.median(tiles, axis=0)
                found[owner] = np.maximum(found.get(owner, own), own)
                within.append(tiles - own)
    measured = np.stack([found[name] for name in sorted(found)])
    # Slides of one patient are no patients: their mean is all that they tell.
    if len(names) == 1:
        measured = measured.mean(0, keepdims=True)
    return measured, np.concatenate(within)


def patient_limits(measured: np.ndarray, *, level: float) -> np.ndarray:
    """Return the limit of each measure, which a new patient passes with a probability of `level`.

    The prediction interval of one more normal value, for log measures (n patients, m). Their variance
    is moderated by a prior of `PRIOR_PATIENTS` patients (Smyth, Stat Appl Genet Mol Biol 2004), since
    two or three patients say little of it.
    """
    scale, freedom = _of_new_patient(measured)
    return np.exp(measured.mean(0) + stats.t.ppf(1 - level, freedom) * scale)


def limits_of_tiles(
    measured: np.ndarray, within: np.ndarray, *, level: float, patient_level: float
) -> np.ndarray:
    """Return the limit of each measure, which a tile passes with a probability of `level`.

    The tile is of a new patient whose median tile keeps the limit of `patient_limits`: its log measure
    is that of the patient, as drawn from the prediction interval cut at the limit, plus what tiles
    deviate by from their slide, as found.

    Parameters
    ----------
    measured, within
        Log measures of patients (n patients, m); what tiles add to those of their slide (n tiles, m).
    level
        Share of tiles beyond the limit.
    patient_level
        Level of the limit of patients.
    """
    scale, freedom = _of_new_patient(measured)
    shares = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    patient = stats.t.ppf(shares * (1 - patient_level), freedom)
    limits = []
    for centre, own_scale, deviations in zip(measured.mean(0), scale, within.T, strict=True):
        tiles = np.sort(deviations)
        if len(tiles) > _DEVIATIONS:  # the same distribution by fewer values
            tiles = np.quantile(tiles, (np.arange(_DEVIATIONS) + 0.5) / _DEVIATIONS)
        limits.append(np.quantile(centre + np.add.outer(own_scale * patient, tiles), 1 - level))
    return np.exp(limits)


def _of_new_patient(measured: np.ndarray) -> tuple[np.ndarray, int]:
    """Return scale and degrees of freedom of the log measures of one more patient about the mean."""
    n = len(measured)
    spread = measured.var(0, ddof=1) if n > 1 else np.zeros(measured.shape[1])
    freedom = PRIOR_PATIENTS + n - 1
    variance = (PRIOR_PATIENTS * PRIOR_SD**2 + (n - 1) * spread) / freedom
    return np.sqrt(variance * (1 + 1 / n)), freedom


def _moments(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and inverse covariance of coordinates, shrunk towards a diagonal."""
    centre = places.mean(0)
    covariance = np.atleast_2d(np.cov(places, rowvar=False))
    diagonal = np.diag(np.diag(covariance))
    shrunk = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * diagonal
    floor = 1e-9 * max(float(np.trace(covariance)) / len(centre), 1e-12)
    return centre, linalg.inv(shrunk + floor * np.eye(len(centre)))
