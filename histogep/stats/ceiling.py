r"""The noise ceiling: what a perfect predictor would score against counts as noisy as these.

The perfect predictor gives every spot the mean of its log1p counts per 10,000 over repeated
sequencing, given its true expression and its depth. Its correlation with one measurement is
``sqrt(R)``, where the reliability ``R`` is the share of the variance over the spots that is not
sequencing noise. ``R`` is estimated in three steps.

1. A count thinned by fair coins, ``X1 ~ Binomial(X, 1/2)`` and ``X2 = X - X1``, gives two technical
   replicates at half the depth, independent if the counts are Poisson given the expression. Each
   half is normalised with ITS library; ``r`` is their correlation over the spots, averaged over
   several thinnings, with its standard error from the spots' influence on it.
2. ``r`` is the reliability at half depth. Spearman and Brown's (1910) formula for twice the length,
   ``2 r / (1 + r)``, holds for counts but not for their logarithm: at few counts a spot log1p
   flattens more at half depth, and depends more on the depth. So both reliabilities are computed
   for a gene of the same mean at the same depths, its rate varying by a lognormal factor of
   variance ``v``; ``r`` determines ``v``, and ``v`` the reliability at full depth.
3. ``sqrt`` is steep at 0, and ``r`` of a weak gene is mostly chance: averaging roots of such ``r``
   gives a ceiling far too low, cutting them at 0 first one too high. So the distribution of ``v``
   over the genes is estimated first (nonparametric maximum likelihood: Kiefer and Wolfowitz, Annals
   of Mathematical Statistics 1956), and a gene's ceiling is the mean of ``sqrt(R)`` under what that
   distribution and its own ``r`` leave possible (empirical Bayes: Robbins 1956).

Assumptions. (1) The noise is Poisson. Counts often vary more, and by what varies from spot to
spot without being expression of its neighbourhood; taken for signal, it makes this ceiling too
high. ``spatial`` is the other extreme: signal is only what neighbouring spots share, read from the
covariance of their counts, which no noise enters that is independent between spots. The truth lies
between. (2) All that replicates counts as signal: differences between cells that no image shows,
and the library size, on which log1p of sparse counts depends. So it is a ceiling of what the counts
allow, not of what can be seen in H&E.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse, stats

from histogep.stats.scores import unit_columns

_SCALE = 1e4
#: Variances of the lognormal factor, 0 among them.
_VARIANCES = np.concatenate([[0.0], np.geomspace(1e-4, 20.0, 40)])
#: Nodes of the factor, and groups of spots of similar depth.
_NODES, _DEPTHS = 11, 12
#: Rates (counts a spot) at which expectations are tabulated; normal above `_EXACT`.
_RATES = np.geomspace(1e-5, 1e5, 160)
_EXACT = 300.0
_EM_STEPS = 200
#: A gene's reliability is known when r exceeds that of a gene without signal by so many errors.
KNOWN = 1.645


@dataclass(frozen=True)
class Ceiling:
    """Ceilings per gene of one section; NaN for genes that are constant in a half of every thinning.

    Attributes
    ----------
    in_tissue
        Against the in-tissue spots.
    spatial
        The same if only what neighbouring spots share is signal; NaN without neighbours.
    whole_grid
        Against the whole grid with zeros outside the tissue (NaN if no grid was given).
    excess, error
        Correlation of thinned halves less that of a gene without signal, and its standard error.
    level_halves
        Mean over the spots of each half, thinnings by 2 by genes, from which the ceiling of the
        differences BETWEEN sections follows.
    """

    in_tissue: np.ndarray
    spatial: np.ndarray
    whole_grid: np.ndarray
    excess: np.ndarray
    error: np.ndarray
    level_halves: np.ndarray


def noise_ceiling(
    counts: sparse.spmatrix | np.ndarray,
    library_sizes: np.ndarray,
    *,
    thinnings: int,
    seed: int,
    n_positions: int | None = None,
    adjacency: sparse.spmatrix | None = None,
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
        Repeats; they average out the randomness of the thinning, not that of the counts.
    seed
        Seed of the thinning.
    n_positions
        Number of positions on the whole grid, for the ceiling of the whole-grid metric too.
    adjacency
        Symmetric graph of neighbouring spots, for `spatial`.

    Raises
    ------
    ValueError
        Counts that are not whole numbers from 0 on, or library sizes below them.
    """
    counts = sparse.csr_matrix(counts, copy=True)
    counts.sum_duplicates()
    counts.eliminate_zeros()
    whole = np.rint(counts.data)
    if len(whole) and (np.abs(whole - counts.data).max() > 1e-6 or whole.min() < 0):
        raise ValueError("the ceiling thins raw counts: they must be whole numbers, none negative")
    whole = whole.astype(np.int64)
    panel_sizes = np.asarray(counts.sum(1)).ravel()
    library = np.rint(np.asarray(library_sizes, float).ravel())
    others = (library - panel_sizes).astype(np.int64)
    if len(others) != counts.shape[0] or others.min(initial=0) < 0:
        raise ValueError("library sizes must count all genes of every spot, the panel included")
    rng = np.random.default_rng(seed)
    n, n_genes = counts.shape
    together, levels = [], []
    influence = np.zeros((n, n_genes))
    for _ in range(thinnings):
        half = rng.binomial(whole, 0.5)
        half_others = rng.binomial(others, 0.5)
        first = _normalised(counts, half, half_others)
        second = _normalised(counts, whole - half, others - half_others)
        levels.append([first.mean(0), second.mean(0)])
        a, flat_a = unit_columns(first)
        b, flat_b = unit_columns(second)
        r = np.einsum("ng,ng->g", a, b)
        influence += a * b - r * (a**2 + b**2) / 2
        # A half that happens to be constant defines no correlation.
        together.append(np.where(flat_a | flat_b, np.nan, r))
    defined = np.isfinite(together).any(0) & (panel_sizes.sum() > 0)
    r = _mean(together)
    error = np.sqrt(np.einsum("ng,ng->g", influence, influence)) / thinnings
    result = {name: np.full(n_genes, np.nan) for name in ("in_tissue", "spatial", "whole_grid")}
    result |= {"excess": np.full(n_genes, np.nan), "error": np.full(n_genes, np.nan)}
    result["level_halves"] = np.array(levels).reshape(-1, 2, n_genes)
    genes = np.flatnonzero(defined)
    if not len(genes):
        return Ceiling(**result)
    share = np.asarray(counts.sum(0)).ravel()[genes] / library.sum()
    mean, signal, total = _moments(share, library, 1.0)
    _, half_signal, half_total = _moments(share, library, 0.5)
    expected = half_signal / half_total
    r, error = r[genes], np.maximum(error[genes], 1e-3)
    likely = stats.norm.logpdf(r[:, None], expected, error[:, None])
    weight = _posterior(likely)
    result["in_tissue"][genes] = (weight * np.sqrt(signal / total)).sum(1)
    result["excess"][genes], result["error"][genes] = r - expected[:, 0], error
    if n_positions is not None:
        if n_positions < n:
            raise ValueError(
                f"a grid of {n_positions} positions cannot hold {n} in-tissue positions"
            )
        tissue = n / n_positions
        raised = tissue * mean**2 * (1 - tissue)
        padded = (tissue * signal + raised) / (tissue * total + raised)
        result["whole_grid"][genes] = (weight * np.sqrt(padded)).sum(1)
    if adjacency is not None and adjacency.nnz:
        shared, spread = _shared_variance(counts[:, genes], library, share, adjacency)
        likely = stats.norm.logpdf(shared[:, None], _VARIANCES, spread[:, None])
        among_all = (weight * total).sum(1)
        root = np.sqrt(np.minimum(signal / among_all[:, None], 1.0))
        result["spatial"][genes] = np.minimum(
            (_posterior(likely) * root).sum(1), result["in_tissue"][genes]
        )
    return Ceiling(**result)


def ceiling_of_halves(correlation: np.ndarray) -> np.ndarray:
    """Return the ceiling at full depth, with the sign of the correlation between the halves.

    sign(r) sqrt(2 |r| / (1 + |r|)), after Spearman and Brown (British Journal of Psychology 1910):
    for means of many spots, where r is far from 0 and the logarithm nearly straight.
    """
    size = np.abs(correlation)
    return np.sign(correlation) * np.sqrt(2 * size / (1 + size))


def _moments(
    share: np.ndarray, library: np.ndarray, depth: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean, variance of the expectation and whole variance of log1p CP10k of Poisson counts.

    Parameters
    ----------
    share
        Share of the library of each gene.
    library
        Counts of each spot.
    depth
        Part of the counts that is kept.

    Returns
    -------
    tuple of numpy.ndarray
        Genes by variances of the lognormal factor (`_VARIANCES`).
    """
    parts = np.array_split(np.sort(np.maximum(library, 1.0)), min(_DEPTHS, len(library)))
    sizes = np.array([part.mean() for part in parts])
    weights = np.array([len(part) for part in parts]) / len(library)
    node, node_weight = np.polynomial.hermite_e.hermegauss(_NODES)
    node_weight = node_weight / node_weight.sum()
    sd = np.sqrt(np.log1p(_VARIANCES))
    factor = np.exp(sd[:, None] * node - sd[:, None] ** 2 / 2)
    # The nodes' own mean is not quite 1 for a wide factor.
    factor /= (factor @ node_weight)[:, None]
    moments = np.zeros((3, len(share), len(_VARIANCES)))
    grid = np.log(_RATES)
    for size, weight in zip(sizes, weights, strict=True):
        first, second = _expectations(_SCALE / (size * depth))
        rate = np.log((share * size * depth)[:, None, None] * factor).clip(grid[0], grid[-1])
        expected = np.interp(rate, grid, first)
        squared = np.interp(rate, grid, second)
        moments[0] += weight * expected @ node_weight
        moments[1] += weight * expected**2 @ node_weight
        moments[2] += weight * squared @ node_weight
    mean = moments[0]
    total = np.maximum(moments[2] - mean**2, 1e-12)
    return mean, (moments[1] - mean**2).clip(0, total), total


def _expectations(scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and mean square of log1p(scale X) of a Poisson X, at every rate of `_RATES`."""
    exact = _RATES <= _EXACT
    k = np.arange(int(_EXACT + 12 * np.sqrt(_EXACT)))
    chance = stats.poisson.pmf(k, _RATES[exact][:, None])
    node, weight = np.polynomial.hermite_e.hermegauss(_NODES)
    weight = weight / weight.sum()
    large = (_RATES[~exact][:, None] + np.sqrt(_RATES[~exact])[:, None] * node).clip(0)
    few, many = np.log1p(scale * k), np.log1p(scale * large)
    return (
        np.concatenate([chance @ few, many @ weight]),
        np.concatenate([chance @ few**2, many**2 @ weight]),
    )


def _shared_variance(
    counts: sparse.csr_matrix, library: np.ndarray, share: np.ndarray, adjacency: sparse.spmatrix
) -> tuple[np.ndarray, np.ndarray]:
    """Return the variance of each gene's relative rate that neighbours share, and its error.

    sum over pairs of (x_i - m_i)(x_j - m_j) / sum of m_i m_j, with m the mean at the spot's depth;
    of Poisson counts without signal the sum has the variance of its pairs, sum of m_i m_j.
    """
    graph = sparse.csr_matrix(adjacency, dtype=np.float64)
    rest = np.asarray(counts.toarray(), float) - library[:, None] * share
    pairs = float(library @ (graph @ library)) / 2
    product = np.einsum("ng,ng->g", rest, graph @ rest) / 2
    size = np.maximum(pairs * share**2, 1e-12)
    # The mean comes from the same counts, which pulls all pairs together.
    return product / size + 1.0 / np.maximum(share * library.sum(), 1.0), 1.0 / np.sqrt(size)


def _posterior(likely: np.ndarray) -> np.ndarray:
    """Return each gene's weights of the variances under the prior of highest likelihood.

    Parameters
    ----------
    likely
        Log likelihood, genes by variances.
    """
    density = np.exp(likely - likely.max(1, keepdims=True))
    prior = np.full(density.shape[1], 1.0 / density.shape[1])
    for _ in range(_EM_STEPS):
        weight = density * prior
        weight /= weight.sum(1, keepdims=True)
        prior = weight.mean(0)
    return weight


def _normalised(counts: sparse.csr_matrix, data: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return log1p counts per 10,000 of one half, dense."""
    dense = sparse.csr_matrix(
        (data.astype(np.float64), counts.indices, counts.indptr), shape=counts.shape
    ).toarray()
    library = dense.sum(1) + others
    return np.log1p(dense * (_SCALE / np.maximum(library, 1.0))[:, None])


def _mean(repeats: list[np.ndarray]) -> np.ndarray:
    values = np.stack(repeats)
    known = np.isfinite(values)
    count = known.sum(0)
    total = np.where(known, values, 0.0).sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
