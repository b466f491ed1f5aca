r"""The noise ceiling: what a perfect predictor would score against counts as noisy as these.

Derivation. Given the expression of a spot, its counts are Poisson: the noise of sequencing. A
Poisson count thinned by fair coins, ``X1 ~ Binomial(X, 1/2)`` and ``X2 = X - X1``, gives two
independent Poisson counts of half the rate, that is, two technical replicates at half the depth.
Each half is normalised as the data are (log1p of counts per 10,000 of ITS library); let ``r`` be
their correlation over the spots. In the terms of classical test theory each half is ``t + e`` with
independent errors of one variance, so ``r = var(t) / (var(t) + var(e))``, the reliability at half
depth. Twice the depth halves ``var(e)`` against ``var(t)``; Spearman and Brown's (1910) formula for
twice the length gives the reliability at full depth, ``R = 2 r / (1 + r)``. A predictor that equals
``t`` up to scale correlates with the measured ``t + e`` by ``sqrt(var(t) / var(t + e)) = sqrt(R)``:
that is the ceiling.

What it rests on. (1) After log1p the noise falls with depth only about as 1/depth: exact for rare
genes (a count is 0 or 1) and for abundant ones (the delta method), near enough between. (2) All
that replicates counts as signal: differences between cells that no image shows, and the library
size, on which log1p of sparse counts depends. So it is a ceiling of what the counts allow, not of
what can be seen in H&E. (3) A gene without signal has ``r`` around 0, of either sign; cutting at 0
before averaging would give a panel of pure noise a ceiling of about 0.1. So ceilings keep the sign
of ``r`` here and are cut at 0 only after averaging over genes or sections.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from histogep.metrics import padded_pearson, pearson

_SCALE = 1e4


@dataclass(frozen=True)
class Ceiling:
    """Signed ceilings per gene of one section.

    Attributes
    ----------
    in_tissue
        Against the in-tissue spots.
    whole_grid
        Against the whole grid with zeros outside the tissue (NaN if no grid was given).
    level_halves
        Mean over the spots of each half, thinnings by 2 by genes: what a ceiling of the differences
        BETWEEN sections rests on.
    """

    in_tissue: np.ndarray
    whole_grid: np.ndarray
    level_halves: np.ndarray


def noise_ceiling(
    counts: sparse.spmatrix | np.ndarray,
    library_sizes: np.ndarray,
    *,
    thinnings: int,
    seed: int,
    n_cells: int | None = None,
) -> Ceiling:
    """Return the highest correlation per gene that counts of this depth allow.

    Parameters
    ----------
    counts
        Raw counts of the panel, spots by genes.
    library_sizes
        Counts of ALL genes of each spot. The genes outside the panel are thinned as one: a sum of
        binomials of one probability is binomial.
    thinnings
        Repeats; their correlations are averaged before the correction. They remove the chance of
        the coin, not that of the counts.
    seed
        Seed of the coins.
    n_cells
        Cells of the whole grid, for the ceiling of the whole-grid metric too.

    Returns
    -------
    Ceiling
        NaN for genes that are constant in a half of every thinning.
    """
    counts = sparse.csr_matrix(counts, copy=True)
    counts.sum_duplicates()
    counts.eliminate_zeros()
    whole = np.rint(counts.data)
    if len(whole) and (np.abs(whole - counts.data).max() > 1e-6 or whole.min() < 0):
        raise ValueError("the ceiling thins raw counts: whole numbers from 0 on are needed")
    whole = whole.astype(np.int64)
    panel_sizes = np.asarray(counts.sum(1)).ravel()
    others = np.rint(np.asarray(library_sizes, float).ravel() - panel_sizes).astype(np.int64)
    if len(others) != counts.shape[0] or others.min(initial=0) < 0:
        raise ValueError("library sizes must count all genes of every spot, the panel included")
    rng = np.random.default_rng(seed)
    inside, grid, levels = [], [], []
    for _ in range(thinnings):
        half = rng.binomial(whole, 0.5)
        half_others = rng.binomial(others, 0.5)
        first = _normalised(counts, half, half_others)
        second = _normalised(counts, whole - half, others - half_others)
        levels.append([first.mean(0), second.mean(0)])
        # A half that happens to be constant defines no correlation.
        inside.append(_defined(pearson(first, second), pearson(second, first)))
        if n_cells is not None:
            grid.append(
                _defined(
                    padded_pearson(first, second, n_cells=n_cells),
                    padded_pearson(second, first, n_cells=n_cells),
                )
            )
    missing = np.full(counts.shape[1], np.nan)
    return Ceiling(
        in_tissue=ceiling_of_halves(_mean(inside) if inside else missing),
        whole_grid=ceiling_of_halves(_mean(grid)) if grid else missing,
        level_halves=np.array(levels).reshape(-1, 2, counts.shape[1]),
    )


def ceiling_of_halves(correlation: np.ndarray) -> np.ndarray:
    """Return the ceiling at full depth, with the sign of the correlation between the halves.

    sign(r) sqrt(2 |r| / (1 + |r|)), after Spearman and Brown (British Journal of Psychology 1910).
    """
    size = np.abs(correlation)
    return np.sign(correlation) * np.sqrt(2 * size / (1 + size))


def _normalised(counts: sparse.csr_matrix, data: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return log1p counts per 10,000 of one half, dense."""
    dense = sparse.csr_matrix(
        (data.astype(np.float64), counts.indices, counts.indptr), shape=counts.shape
    ).toarray()
    library = dense.sum(1) + others
    return np.log1p(dense * (_SCALE / np.maximum(library, 1.0))[:, None])


def _defined(one_way: np.ndarray, other_way: np.ndarray) -> np.ndarray:
    """Return the correlation where neither side is constant (`pearson` gives 0 for one of them)."""
    return np.where(np.isnan(other_way), np.nan, one_way)


def _mean(repeats: list[np.ndarray]) -> np.ndarray:
    values = np.stack(repeats)
    known = np.isfinite(values)
    count = known.sum(0)
    total = np.where(known, values, 0.0).sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
