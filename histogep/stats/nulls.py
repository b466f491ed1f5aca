"""Null distributions of a score: shuffled spots, and unrelated maps with the same patterns.

Shuffling the spots of a section destroys every pattern, so two smooth but unrelated maps beat it
easily. Three more nulls keep the pattern; a claim must beat them all, as each holds where another
fails:

- *turned*: the predicted map is turned about the middle of the section and mirrored, as a rigid
  whole. Edges, patches and gradients stay what they are. The level is exact where no direction is
  preferred (the motions are a group that leaves the null's law unchanged: Lehmann and Romano,
  Testing Statistical Hypotheses, 2005, section 15.2); it is too easy on strips of tissue, and for
  layers that run the same way in both maps;
- *shifted*: the map is moved along, and reflected where it meets the border of the section's box.
  Layers stay layers, patches in strips stay patches;
- *spectral*: the correlation of two directions drawn at random in a space of m dimensions (Fisher,
  Biometrika 1915), where 1/m is the variance that the two maps' own spectra give it. A gradient
  has one or two dimensions, white noise as many as spots. This is the effective sample size of
  Clifford, Richardson and Hemon (Biometrics 1989) with the autocorrelation read from the
  eigenvectors of the graph's Laplacian, the harmonics of the section's own shape. It holds for
  gradients in strips, and is too easy for patches, whose harmonics go together.

With unit vectors x and y, eigenvectors V and coefficients a = V'x and b = V'y, the correlation is
sum_k a_k b_k, and with signs independent of each other its variance is sum_k a_k^2 b_k^2.
"""

from __future__ import annotations

import numpy as np
from scipy import linalg, sparse
from scipy.sparse import csgraph
from scipy.sparse import linalg as sparse_linalg
from scipy.spatial import Delaunay, QhullError, cKDTree

from histogep.stats.scores import unit_columns

#: Up to this many positions the whole basis is computed; above it only the broadest maps.
_DENSE_CELLS = 3000
_BROADEST_MAPS = 300
#: Angles by which a map is turned, each also mirrored; and as many shifts.
_ANGLES = 36
#: A moved map whose variance falls below this share of the map's own is constant.
_FLAT = 1e-6
#: Least shape parameter of the law of r: at 0 it is a coin between -1 and 1.
_LEAST_SHAPE = 1e-3


def permutation_null(
    predicted: np.ndarray, measured: np.ndarray, *, permutations: int, seed: int
) -> np.ndarray:
    """Return the correlations of predictions whose positions are shuffled.

    Parameters
    ----------
    predicted, measured
        Positions by genes. All genes are shuffled alike, so that correlations between genes stay
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

    The remaining score is that of the outline of the tissue.

    Parameters
    ----------
    predicted, measured
        All positions of the grid by genes.
    in_tissue
        Whether each position is in the tissue.
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


def map_motions(x_um: np.ndarray, y_um: np.ndarray) -> np.ndarray:
    """Return where each position of a section comes from after 72 turns, and after 72 shifts.

    Parameters
    ----------
    x_um, y_um
        Centres of the n positions of one section, in um.

    Returns
    -------
    numpy.ndarray
        2 by 72 by n, int32: `map[motions[0, t]]` is the map turned about the middle of the section
        and, from t = 36 on, mirrored; `map[motions[1, t]]` is the map shifted and reflected at the
        borders of the section's box. The first of either kind leaves all in place. A position whose
        origin is off the section gets the value of the nearest one.
    """
    centres = np.column_stack([x_um, y_um]).astype(float)
    count, n = 2 * _ANGLES, len(centres)
    low, middle, size = centres.min(0), centres.mean(0), np.ptp(centres, axis=0)
    # Points of Roberts' sequence fill the box of the shifts evenly, for any number of them.
    golden = 1.3247179572447460
    steps = (np.arange(count)[:, None] * [1 / golden, 1 / golden**2]) % 1.0 * 2.0 * size
    tree = cKDTree(centres)
    motions = np.empty((2, count, n), np.int32)
    for number in range(count):
        mirror, turn = divmod(number, _ANGLES)
        cosine, sine = np.cos(2 * np.pi * turn / _ANGLES), np.sin(2 * np.pi * turn / _ANGLES)
        rotation = np.array([[cosine, sine], [-sine, cosine]])
        rotation[1] *= -1 if mirror else 1
        motions[0, number] = tree.query((centres - middle) @ rotation + middle)[1]
        period = np.where(size > 0, 2 * size, 1.0)
        place = (centres - low + steps[number]) % period
        motions[1, number] = tree.query(np.where(place > size, 2 * size - place, place) + low)[1]
    # Rounding may not move a position that stays.
    motions[:, 0] = np.arange(n)
    return motions


def moved_null(
    predicted: np.ndarray, measured: np.ndarray, motions: np.ndarray, *, draws: int, seed: int
) -> np.ndarray:
    """Return correlations of the predictions moved over the section, by motions drawn at random.

    Parameters
    ----------
    predicted, measured
        Positions by genes.
    motions
        One kind of `map_motions` of the same positions in the same order.
    draws
        Motions drawn, with replacement; those of a draw are common to all genes.
    seed
        Seed of the draws.

    Returns
    -------
    numpy.ndarray
        Draws by genes, float32; NaN for a gene measured constant.
    """
    ours, _ = unit_columns(predicted)
    theirs, unscorable = unit_columns(measured)
    ours, theirs = ours.astype(np.float32), theirs.astype(np.float32)
    n = len(ours)
    times = np.stack([np.bincount(motion, minlength=n) for motion in motions]).astype(np.float32)
    # A moved map has another mean and length: positions at the rim stand for those beyond it.
    square = times @ ours**2 - (times @ ours) ** 2 / max(n, 1)
    product = np.stack([np.einsum("ng,ng->g", ours[motion], theirs) for motion in motions])
    flat = square < _FLAT
    correlation = np.where(flat, 0.0, product / np.sqrt(np.where(flat, 1.0, square)))
    drawn = np.random.default_rng(seed).integers(0, len(motions), draws)
    null = correlation.clip(-1, 1).astype(np.float32)[drawn]
    null[:, unscorable] = np.nan
    return null


def spatial_basis(x_um: np.ndarray, y_um: np.ndarray, adjacency: sparse.spmatrix) -> np.ndarray:
    """Return the harmonics of a section's shape, the broadest first.

    The eigenvectors of the Laplacian D - W of the neighbourhood graph. Pieces of tissue that do not
    touch are joined by the edges of the positions' minimum spanning tree: the contrast between two
    pieces is then a broad map, as it should be, and not one of as many equal ones as there are
    isolated positions.

    Parameters
    ----------
    x_um, y_um
        Centres of the n positions of one section, in um.
    adjacency
        Symmetric graph of the positions.

    Returns
    -------
    numpy.ndarray
        n by n - 1 orthonormal columns, orthogonal to the constant; above 3,000 positions
        only the 300 broadest, the rest being treated as white.
    """
    n = adjacency.shape[0]
    if n < 3:
        return np.zeros((n, 0))
    tree = _spanning_tree(np.column_stack([x_um, y_um]).astype(float))
    weights = ((adjacency + tree + tree.T) != 0).astype(np.float64)
    laplacian = sparse.diags(np.asarray(weights.sum(1)).ravel()) - weights
    if n <= _DENSE_CELLS:
        vectors = linalg.eigh(laplacian.toarray(), overwrite_a=True, check_finite=False)[1]
        return vectors[:, 1:].copy()
    start = np.random.default_rng(0).standard_normal(n)
    # Below 0, where the matrix has no eigenvalue and its factors exist.
    values, vectors = sparse_linalg.eigsh(
        laplacian.tocsc(), k=_BROADEST_MAPS + 1, sigma=-1e-4, which="LM", v0=start, tol=1e-6
    )
    vectors = vectors[:, np.argsort(values)[1:]]
    vectors -= vectors.mean(0)
    return np.linalg.qr(vectors)[0]


def _spanning_tree(centres: np.ndarray) -> sparse.csr_matrix:
    """Return the Euclidean minimum spanning tree, a part of Delaunay's triangulation."""
    n = len(centres)
    try:
        corners = Delaunay(centres).simplices
        edges = np.concatenate([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [2, 0]]])
    except QhullError:  # all on one line
        along = np.lexsort(centres.T)
        edges = np.column_stack([along[:-1], along[1:]])
    edges = np.unique(np.sort(edges, axis=1), axis=0)
    length = np.linalg.norm(centres[edges[:, 0]] - centres[edges[:, 1]], axis=1)
    graph = sparse.csr_matrix((length, edges.T), shape=(n, n))
    return csgraph.minimum_spanning_tree(graph)


def spectral_null(
    predicted: np.ndarray, measured: np.ndarray, basis: np.ndarray, *, draws: int, seed: int
) -> np.ndarray:
    """Return correlations of random directions in as many dimensions as two maps have together.

    Parameters
    ----------
    predicted, measured
        Positions by genes.
    basis
        Columns of `spatial_basis` of the same positions in the same order.
    draws, seed
        Number of draws, independent between genes, and their seed.

    Returns
    -------
    numpy.ndarray
        Draws by genes, float32; NaN for a gene measured constant.
    """
    ours, _ = unit_columns(predicted)
    theirs, unscorable = unit_columns(measured)
    rng = np.random.default_rng(seed)
    a, b = (basis.T @ ours) ** 2, (basis.T @ theirs) ** 2
    variance = np.einsum("kg,kg->g", a, b)
    left = len(ours) - 1 - len(a)
    if left > 0:
        # Outside the basis all directions count alike.
        variance += (1.0 - a.sum(0)).clip(0) * (1.0 - b.sum(0)).clip(0) / left
    flat = variance <= 0
    # r of random directions in m dimensions: (r + 1) / 2 is a beta variate of shape (m - 1) / 2.
    shape = ((1.0 / np.where(flat, 1.0, variance) - 1.0) / 2.0).clip(_LEAST_SHAPE)
    null = (2.0 * rng.beta(shape, shape, (draws, len(shape))) - 1.0).astype(np.float32)
    null[:, flat] = 0.0
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
