"""Out-of-fold scores from nested patient folds: clinical, image, both, and shuffled images.

Everything that is learnt from data is learnt inside the training patients of a fold: the filling
of missing cells, the scaling, the principal components, and, in inner folds of the training
patients, the penalty. One exception is harmless: the components are those of the outer training
patients in the inner folds too; they know no outcome, and the held-out patients are not in them.

Image features are many and correlated, patients are few. So means of genes, their upper quantiles
and summary columns, each block with the same total variance, are turned into a few principal components, which keep their
natural scale (the first has unit variance): a ridge penalty then shrinks the minor ones most.
That is a ridge on all features, at the cost of a handful of coefficients.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.linalg import eigh
from sklearn.model_selection import StratifiedKFold

from histogep.stats.penalised import Learner

log = logging.getLogger(__name__)

#: Penalties on standardised clinical covariates; the weakest stops a separated one from running off.
CLINICAL_PENALTIES = (0.01, 0.1, 1.0)
#: Floats of one batch of designs; larger batches are split.
_BATCH_FLOATS = 1_000_000
#: Newton's last step of the fits that only weigh penalties against each other.
_INNER_TOLERANCE = 1e-3


@dataclass(frozen=True)
class NestedScores:
    """Out-of-fold scores, each in standard deviations of its fold's training patients.

    Attributes
    ----------
    scores
        Patients by model: clinical, image, clinical+image (those that could be fitted), or
        expression in place of image.
    shuffled
        Model -> shuffles x patients: the images permuted over the patients, and for the clinical
        model the covariates.
    fold
        Fold of each patient, from 1.
    penalties
        Model -> penalty on the image (on the covariates: clinical) chosen in each fold.
    predictors
        Model -> folds x patients: linear predictor of every patient by each fold's model.
    """

    scores: dict[str, np.ndarray]
    shuffled: dict[str, np.ndarray]
    fold: np.ndarray
    penalties: dict[str, list[float]]
    predictors: dict[str, np.ndarray]


def nested_scores(
    learner: Learner,
    strata: np.ndarray,
    *,
    clinical: pd.DataFrame,
    image: tuple[np.ndarray, ...],
    folds: int,
    inner_folds: int,
    penalties: list[float],
    components: int,
    shuffles: int,
    seed: int,
    shuffle_seed: int,
    warned: set[str] | None,
    source: str = "image",
    groups: np.ndarray | None = None,
) -> NestedScores:
    """Return out-of-fold scores of every model from nested folds.

    Parameters
    ----------
    learner
        `CoxLearner` or `LogisticLearner` of the outcome.
    strata
        Class of each patient (event, response); folds hold equal shares of each.
    clinical
        Covariates with NaN for missing; no column for none.
    image
        Blocks of features, each patients x features with NaN for missing; no column for none.
    folds, inner_folds
        Numbers of outer and inner folds.
    penalties
        Grid of the ridge penalty on the image components.
    components
        Principal components of the image features, at most.
    shuffles
        Permutations of the images over the patients, each through the whole procedure.
    seed, shuffle_seed
        Of the folds, and of the shuffles: repeats with other folds keep the same shuffles.
    warned
        Collects the covariates dropped in a fold, so that each is reported once; None: none is reported.
    source
        What the models with `image` are called: image, or expression where it was measured.
    groups
        Rows of one group share all folds: the copies of a patient in a bootstrap sample.
    """
    both = f"clinical+{source}"
    n = len(strata)
    has_clinical, has_image = clinical.shape[1] > 0, sum(block.shape[1] for block in image) > 0
    rng = np.random.default_rng([shuffle_seed, n])
    rows = np.array([np.arange(n), *(rng.permutation(n) for _ in range(shuffles))])
    wanted = {
        "clinical": has_clinical,
        source: has_image,
        both: has_clinical and has_image,
    }
    out = {name: np.zeros((len(rows), n)) for name, fitted in wanted.items() if fitted}
    chosen: dict[str, list[float]] = {name: [] for name in out}
    predictors: dict[str, list[np.ndarray]] = {name: [] for name in out}
    fold_of = np.zeros(n, int)
    groups = np.arange(n) if groups is None else groups
    for number, (train, test) in enumerate(stratified(strata, folds, seed, groups), start=1):
        fold_of[test] = number
        inner = [
            (train[a], train[b])
            for a, b in stratified(strata[train], inner_folds, seed + 1000 * number, groups[train])
        ]
        covariates = fill_and_scale(clinical, train, warned=warned)
        width = n * (covariates.shape[1] + components) * len(penalties) * len(CLINICAL_PENALTIES)
        for part in _parts(len(rows), width):
            designs = {}
            if has_clinical:
                designs["clinical"] = np.stack(
                    [fill_and_scale(clinical.iloc[r], train) for r in rows[part]]
                )
            if has_image:
                designs[source] = np.stack(
                    [reduce_image(image, r, train, components) for r in rows[part]]
                )
            if has_clinical and has_image:
                kept = np.broadcast_to(covariates, (len(part), *covariates.shape))
                designs[both] = np.concatenate([kept, designs[source]], axis=2)
            for name, x in designs.items():
                n_clinical = 0 if name == source else covariates.shape[1]
                coef, picked = choose_and_fit(learner, x, n_clinical, train, inner, penalties)
                out[name][part[:, None], test] = _standard_scores(x, coef, train)[:, test]
                if part[0] == 0:
                    chosen[name].append(float(picked[0]))
                    predictors[name].append(x[0] @ coef[0])
    return NestedScores(
        scores={name: values[0] for name, values in out.items()},
        shuffled={name: values[1:] for name, values in out.items()},
        fold=fold_of,
        penalties=chosen,
        predictors={name: np.stack(rows) for name, rows in predictors.items()},
    )


def refit_bootstrap(
    learner: Callable[[np.ndarray], Learner],
    strata: np.ndarray,
    *,
    clinical: pd.DataFrame,
    image: tuple[np.ndarray, ...],
    draws: int,
    folds: int,
    seed: int,
    **options: Any,
) -> list[tuple[np.ndarray, NestedScores]]:
    """Return samples of patients, each with out-of-fold scores of models fitted to it.

    Patients are drawn with replacement within the strata, and the whole procedure of
    `nested_scores` is repeated: filling, scaling, components, penalties and fits. Copies of a
    patient share all folds, so that none is scored by a model that saw another copy. The spread of
    a statistic over the samples counts both who was tested and who was trained on
    (`histogep.stats.discrimination.refit_interval`).

    Parameters
    ----------
    learner
        Learner of the outcome of given rows.
    strata, clinical, image, options
        As for `nested_scores`.
    draws
        Samples.
    folds
        Outer folds, fewer where a sample has fewer patients of a class that the learner has to see
        in each of them (`Learner.learns`).
    seed
        Of samples and folds.

    Returns
    -------
    list of tuple
        Rows of the sample, and their scores in the same order.
    """
    strata = np.asarray(strata).astype(int)
    rng = np.random.default_rng([seed, len(strata), 17])
    classes = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    samples = []
    for draw in range(draws):
        while True:
            rows = np.sort(np.concatenate([rng.choice(part, len(part)) for part in classes]))
            # A class of one patient could not be in training and test.
            distinct = [len(np.intersect1d(rows, part)) for part in classes]
            if all(a >= min(3, len(b)) for a, b in zip(distinct, classes, strict=True)):
                break
        own = learner(rows)
        names = np.unique(strata).tolist()
        rarer = [n for name, n in zip(names, distinct, strict=True) if name in own.learns]
        scores = nested_scores(
            own,
            strata[rows],
            clinical=clinical.iloc[rows].reset_index(drop=True),
            image=tuple(block[rows] for block in image),
            folds=min(folds, *rarer),
            shuffles=0,
            seed=seed + 10_000 * (draw + 1),
            shuffle_seed=seed,
            warned=None,
            groups=rows,
            **options,
        )
        samples.append((rows, scores))
    return samples


def stratified(
    strata: np.ndarray, folds: int, seed: int, groups: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (train, test) rows of scikit-learn's shuffled stratified folds.

    Rows of one group, all of one stratum, stay together.
    """
    if groups is not None:
        _, first, owner = np.unique(groups, return_index=True, return_inverse=True)
        if len(first) < len(groups):
            for train, test in stratified(np.asarray(strata)[first], folds, seed):
                yield (
                    np.flatnonzero(np.isin(owner, train)),
                    np.flatnonzero(np.isin(owner, test)),
                )
            return
    counts = np.bincount(np.asarray(strata).astype(int))
    folds = max(2, min(folds, int(counts[counts > 0].max())))
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed % (2**32))
    with warnings.catch_warnings():  # a class rarer than the folds is spread over some of them
        warnings.filterwarnings("ignore", message="The least populated class")
        parts = list(splitter.split(np.zeros(len(strata)), strata))
    yield from parts


def fill_and_scale(
    clinical: pd.DataFrame, train: np.ndarray, *, warned: set[str] | None = None
) -> np.ndarray:
    """Return covariates for all rows, filled and standardised by the training rows.

    A missing cell becomes the training median, and missing becomes a level of its own: a column
    that marks it. A column that is constant in the training rows is set to zero, with a warning.
    """
    columns = []
    for name in clinical:
        values = clinical[name].to_numpy(float)
        missing = ~np.isfinite(values)
        known = values[train][~missing[train]]
        filled = np.where(missing, np.median(known) if len(known) else 0.0, values)
        candidates = [(name, filled)]
        if missing.any():
            candidates.append((f"{name} missing", missing.astype(float)))
        for label, column in candidates:
            spread = column[train].std()
            if spread > 1e-9 * (1 + np.abs(column).max()):
                columns.append((column - column[train].mean()) / spread)
                continue
            columns.append(np.zeros(len(column)))
            if warned is not None and label not in warned:
                warned.add(label)
                log.warning(
                    "covariate %s is constant in a fold's training patients; left out there", label
                )
    return np.stack(columns, axis=1) if columns else np.zeros((len(clinical), 0))


def reduce_image(
    image: tuple[np.ndarray, ...], rows: np.ndarray, train: np.ndarray, components: int
) -> np.ndarray:
    """Return principal components of the image features for all rows, fitted on `train`.

    Parameters
    ----------
    image
        Blocks of features, patients x features each.
    rows
        Which patient's image each row gets: `arange(n)`, or a permutation of it.
    train
        Rows that means, scales and components are taken from.
    components
        How many to keep; fewer where the rank is lower.

    Returns
    -------
    ndarray
        (n, components) with columns of zeros past the rank; the first has unit variance.
    """
    train_blocks, scales = [], []
    for block in image:
        values = block[rows]
        known = np.isfinite(values)
        if not known.all():
            middle = np.array(
                [
                    np.median(column[k]) if k.any() else 0.0
                    for column, k in zip(values[train].T, known[train].T, strict=True)
                ]
            )
            values = np.where(known, values, middle)
        scaled = values[train]
        centre = scaled.mean(axis=0)
        scaled -= centre
        spread = np.sqrt(np.einsum("ij,ij->j", scaled, scaled) / len(train))
        largest = np.maximum(values.max(axis=0, initial=0), -values.min(axis=0, initial=0))
        keep = spread > 1e-9 * (1 + largest)
        if not keep.any():
            continue
        if not keep.all():
            scaled, values = scaled[:, keep], values[:, keep]
        unit = spread[keep] * np.sqrt(keep.sum())
        scaled /= unit
        train_blocks.append(scaled)
        scales.append((values, centre[keep], unit))
    result = np.zeros((len(rows), components))
    if not train_blocks:
        return result
    joined = train_blocks[0] if len(train_blocks) == 1 else np.concatenate(train_blocks, axis=1)
    values, axes = _principal_axes(joined, components)
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])
    axes *= signs[:, None]
    # Projected block by block, so that no scaled copy of all patients is made.
    start = 0
    for block, centre, unit in scales:
        part = axes[:, start : start + len(unit)] / unit
        result[:, : len(axes)] += block @ part.T - part @ centre
        start += len(unit)
    return result / np.sqrt(values[0] / len(train))


def _principal_axes(x: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest eigenvalues of x'x and their unit axes as rows, at most `count`."""
    n, p = x.shape
    gram = x.T @ x if p <= n else x @ x.T
    low = max(0, len(gram) - count)
    values, vectors = eigh(
        gram, subset_by_index=(low, len(gram) - 1), overwrite_a=True, check_finite=False
    )
    values, vectors = values[::-1], vectors[:, ::-1]
    keep = values > 1e-10 * values[0]
    values, vectors = values[keep], vectors[:, keep]
    axes = vectors.T.copy() if p <= n else (vectors / np.sqrt(values)).T @ x
    return values, axes


def choose_and_fit(
    learner: Learner,
    x: np.ndarray,
    n_clinical: int,
    train: np.ndarray,
    inner: list[tuple[np.ndarray, np.ndarray]],
    penalties: list[float],
) -> tuple[np.ndarray, np.ndarray]:
    """Choose each design's penalties by the inner held-out likelihood, then fit it.

    The first `n_clinical` columns have a penalty of their own, so that either block can be shrunk
    away. Returned with the coefficients: the image's penalty (the covariates' without an image).
    """
    batch, n, p = x.shape
    grid = np.array(
        [
            [of_clinical] * n_clinical + [of_image] * (p - n_clinical)
            for of_clinical in (CLINICAL_PENALTIES if n_clinical else (0.0,))
            for of_image in (penalties if p > n_clinical else (0.0,))
        ]
    )
    # From weak to strong, so that the strongest of equals wins.
    grid = grid[np.argsort(grid.sum(axis=1), kind="stable")]
    ridge = np.repeat(grid, batch, axis=0)
    tiled = np.broadcast_to(x, (len(grid), batch, n, p)).reshape(-1, n, p)
    gains = np.zeros(len(tiled))
    for inner_train, held_out in inner:
        coef = learner.fit(tiled, inner_train, ridge, tolerance=_INNER_TOLERANCE)
        gains += learner.gain(tiled, coef, inner_train, held_out)
    gains = np.where(np.isfinite(gains), gains, -np.inf).reshape(len(grid), batch)
    best = grid[len(grid) - 1 - np.argmax(gains[::-1], axis=0)]
    return learner.fit(x, train, best), best[:, -1]


def _standard_scores(x: np.ndarray, coef: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Return linear predictors in standard deviations of the training rows, (B, n).

    Folds differ in penalty and so in the spread of their predictors; on this scale the patients
    of different folds can be ranked together.
    """
    eta = np.einsum("bnp,bp->bn", x, coef)
    centre, spread = eta[:, train].mean(axis=1), eta[:, train].std(axis=1)
    return (eta - centre[:, None]) / np.where(spread > 1e-12, spread, 1.0)[:, None]


def _parts(count: int, floats_each: int) -> list[np.ndarray]:
    """Split a batch so that no part exceeds the memory of `_BATCH_FLOATS`."""
    size = max(1, _BATCH_FLOATS // max(1, floats_each))
    return [np.arange(start, min(start + size, count)) for start in range(0, count, size)]
