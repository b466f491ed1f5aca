"""What a score would be had by chance: shuffled spots, and maps that are only as smooth.

Shuffling the spots of a section destroys every pattern, so two smooth maps that have nothing to do
with each other beat it easily. The second null keeps the smoothness: a map is written in the
eigenvectors of the section's own neighbourhood graph (Moran's eigenvector maps, from broad to
fine), and the signs of its coefficients are drawn anew. That is the "singleton" Moran spectral
randomisation of Wagner and Dray (Methods in Ecology and Evolution 2015, 6:1169): each surrogate
map has the same variance and the same Moran's I as the prediction.

With unit vectors x and y and coefficients a = V'x and b = V'y, the correlation is sum_k a_k b_k and
that of a surrogate sum_k s_k a_k b_k with random signs s_k. So all genes and all draws are one
matrix product, and no surrogate map need be made.
"""

from __future__ import annotations

import numpy as np
from scipy import linalg, sparse
from scipy.sparse import linalg as sparse_linalg

from histogep.metrics import unit_columns

#: Up to this many cells the whole basis is computed; above it only the broadest maps.
_DENSE_CELLS = 3000
_BROADEST_MAPS = 300


def permutation_null(
    predicted: np.ndarray, measured: np.ndarray, *, permutations: int, seed: int
) -> np.ndarray:
    """Return the correlations of predictions whose cells are shuffled.

    Parameters
    ----------
    predicted, measured
        Cells by genes. All genes are shuffled alike, so that the correlation between genes stays
        and the mean over genes has the right spread.
    permutations
        Number of shuffles.
    seed
        Seed of the shuffles.

    Returns
    -------
    numpy.ndarray
        Permutations by genes; NaN for a gene measured constant.
    """
    ours, _ = unit_columns(predicted)
    theirs, unscorable = unit_columns(measured)
    ours, theirs = ours.astype(np.float32), theirs.astype(np.float32)
    rng = np.random.default_rng(seed)
    null = np.empty((permutations, ours.shape[1]))
    for draw in range(permutations):
        null[draw] = np.einsum("ng,ng->g", ours[rng.permutation(len(ours))], theirs)
    null[:, unscorable] = np.nan
    return null


def shuffled_in_tissue_null(
    predicted: np.ndarray,
    measured: np.ndarray,
    in_tissue: np.ndarray,
    *,
    permutations: int,
    seed: int,
) -> np.ndarray:
    """Return whole-grid correlations of predictions shuffled inside the tissue, background kept.

    What is left of the score is the outline of the tissue.

    Parameters
    ----------
    predicted, measured
        All cells of the grid by genes.
    in_tissue
        Whether each cell is in the tissue.
    permutations, seed
        Number of shuffles and their seed.
    """
    ours, _ = unit_columns(predicted)
    theirs, unscorable = unit_columns(measured)
    outside = np.einsum("ng,ng->g", ours[~in_tissue], theirs[~in_tissue])
    ours, theirs = ours[in_tissue].astype(np.float32), theirs[in_tissue].astype(np.float32)
    rng = np.random.default_rng(seed)
    null = np.empty((permutations, ours.shape[1]))
    for draw in range(permutations):
        null[draw] = outside + np.einsum("ng,ng->g", ours[rng.permutation(len(ours))], theirs)
    null[:, unscorable] = np.nan
    return null


def spatial_basis(adjacency: sparse.spmatrix) -> np.ndarray:
    """Return Moran's eigenvector maps of a neighbourhood graph, the broadest first.

    The eigenvectors of HWH, with W the adjacency and H the centring matrix I - 11'/n (Dray et al.,
    Ecological Modelling 2006). Isolated cells do no harm: they lie in the eigenvectors of 0.

    Parameters
    ----------
    adjacency
        Symmetric graph of the n cells of one section.

    Returns
    -------
    numpy.ndarray
        n by n - 1 orthonormal columns, orthogonal to the constant; of sections above 3,000 cells
        only the 300 broadest, the rest being near white and treated so.
    """
    n = adjacency.shape[0]
    if n < 3:
        return np.zeros((n, 0))
    weights = adjacency.astype(np.float64)
    if n <= _DENSE_CELLS:
        dense = weights.toarray()
        dense -= dense.mean(0)
        dense -= dense.mean(1, keepdims=True)
        # The constant gets an eigenvalue below all others, which are at least -max(degree).
        dense -= (2.0 * weights.sum(1).max() + 1.0) / n
        _, vectors = linalg.eigh(dense, overwrite_a=True, check_finite=False)
        return vectors[:, :0:-1].copy()

    def multiply(vector: np.ndarray) -> np.ndarray:
        vector = np.asarray(vector).reshape(n, -1)
        product = weights @ (vector - vector.mean(0))
        return product - product.mean(0)

    operator = sparse_linalg.LinearOperator(
        (n, n), matvec=multiply, matmat=multiply, dtype=np.float64
    )
    start = np.random.default_rng(0).standard_normal(n)
    _, vectors = sparse_linalg.eigsh(operator, k=_BROADEST_MAPS, which="LA", v0=start, tol=1e-6)
    vectors -= vectors.mean(0)
    return np.linalg.qr(vectors[:, ::-1])[0]


def spatial_null(
    predicted: np.ndarray, measured: np.ndarray, basis: np.ndarray, *, draws: int, seed: int
) -> np.ndarray:
    """Return correlations with surrogates of the prediction that have its autocorrelation.

    Parameters
    ----------
    predicted, measured
        Cells by genes.
    basis
        Columns of `spatial_basis` of the same cells in the same order.
    draws
        Number of surrogates; the signs are common to all genes.
    seed
        Seed of the signs.

    Returns
    -------
    numpy.ndarray
        Draws by genes, float32; NaN for a gene measured constant.
    """
    ours, _ = unit_columns(predicted)
    theirs, unscorable = unit_columns(measured)
    rng = np.random.default_rng(seed)
    a, b = basis.T @ ours, basis.T @ theirs
    signs = rng.integers(0, 2, (draws, len(a)), dtype=np.int8).astype(np.float32) * 2 - 1
    null = signs @ (a * b).astype(np.float32)
    left = len(ours) - 1 - len(a)
    if left > 0:
        # Outside the basis the maps are turned at random: variance |a|^2 |b|^2 / dimensions.
        rest_a = (1.0 - np.einsum("kg,kg->g", a, a)).clip(0)
        rest_b = (1.0 - np.einsum("kg,kg->g", b, b)).clip(0)
        spread = np.sqrt(rest_a * rest_b / left).astype(np.float32)
        null += rng.standard_normal(null.shape, dtype=np.float32) * spread
    null[:, unscorable] = np.nan
    return null


def upper_p(score: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Return (1 + draws at or above the score) / (1 + draws) per gene; NaN without a score.

    The observed score counts as one draw (Phipson and Smyth, 2010), so that p is never 0. Draws
    equal up to rounding count as reached: a constant prediction has p = 1.
    """
    score = np.asarray(score, float)
    reached = (null >= score - 1e-6).sum(0)
    return np.where(np.isfinite(score), (1.0 + reached) / (1.0 + len(null)), np.nan)
