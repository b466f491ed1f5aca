from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage, stats
from sklearn import metrics as reference

from histogep.evaluation.tumour_scores import auroc_upper
from histogep.lattice import Lattice
from histogep.stats.nulls import (
    map_motions,
    moved_null,
    permutation_null,
    shuffled_in_tissue_null,
    spatial_basis,
    spectral_null,
    upper_p,
)
from histogep.stats.scores import (
    auroc,
    average_precision,
    bootstrap_patients,
    dice,
    false_discovery_rate,
    padded_pearson,
    pearson,
    rmse,
    spearman,
)


@pytest.fixture
def matrices():
    rng = np.random.default_rng(0)
    predicted = rng.normal(size=(80, 7)).astype(np.float32)
    measured = (predicted * np.linspace(-1, 1, 7) + rng.normal(size=(80, 7))).astype(np.float32)
    return predicted, np.round(measured, 1)  # rounding makes ties


def test_correlations_agree_with_scipy(matrices):
    predicted, measured = matrices
    for ours, theirs in ((pearson, stats.pearsonr), (spearman, stats.spearmanr)):
        expected = [theirs(predicted[:, g], measured[:, g])[0] for g in range(7)]
        np.testing.assert_allclose(ours(predicted, measured), expected, atol=1e-6)


def test_rmse_agrees_with_scikit_learn(matrices):
    predicted, measured = matrices
    expected = [
        reference.root_mean_squared_error(measured[:, g], predicted[:, g]) for g in range(7)
    ]
    np.testing.assert_allclose(rmse(predicted, measured), expected, rtol=1e-6)


def test_a_constant_prediction_scores_zero_and_a_constant_measurement_nothing(matrices):
    _, measured = matrices
    constant = np.full_like(measured, 0.1)  # 0.1 has no exact binary form: its mean differs
    assert (pearson(constant, measured) == 0).all()
    assert (spearman(constant, measured) == 0).all()
    assert np.isnan(pearson(measured, constant)).all()
    assert np.isnan(pearson(measured[:2], measured[:2])).all()
    with pytest.raises(ValueError, match="shapes differ"):
        pearson(measured, measured[:, :2])


def test_padded_pearson_equals_filling_up_with_zeros(matrices):
    predicted, measured = matrices
    grid = np.zeros((200, 7)), np.zeros((200, 7))
    grid[0][:80], grid[1][:80] = predicted, measured
    np.testing.assert_allclose(
        padded_pearson(predicted, measured, n_positions=200), pearson(*grid), atol=1e-9
    )
    ones = np.ones((80, 7))
    # Constant in the tissue is no constant over the grid: that is the paper's flaw.
    assert (np.abs(padded_pearson(ones, measured + 3, n_positions=200)) > 0.8).all()
    assert (padded_pearson(0 * ones, measured, n_positions=200) == 0).all()
    with pytest.raises(ValueError, match="cannot hold"):
        padded_pearson(predicted, measured, n_positions=79)


def test_scores_of_one_class_or_of_nothing_are_nan_and_unknown_cells_are_left_out():
    label = np.array([1, 0, 1, 0])
    assert np.isnan(auroc(np.arange(4.0), np.ones(4, bool)))
    assert np.isnan(auroc(np.zeros(0), np.zeros(0)))
    assert auroc(np.ones(4), label) == 0.5
    truth = np.array([1.0, 0.0, np.nan, 1.0, 0.0])
    assert auroc(np.array([3.0, 1.0, 9.0, 2.0, 2.0]), truth) == 0.875
    assert np.isnan(average_precision(np.arange(4.0), np.zeros(4, bool)))
    assert average_precision(np.ones(4), label) == 0.5
    assert np.isnan(dice(np.zeros(4, bool), np.zeros(4, bool)))
    assert np.isnan(dice(np.zeros(0, bool), np.zeros(0, bool)))
    assert dice(np.ones(4, bool), np.zeros(4, bool)) == 0
    assert dice(np.ones(4, bool), label) == pytest.approx(4 / 6)


def test_bootstrap_resamples_patients_not_sections():
    values = np.repeat([0.0, 1.0, 2.0, 3.0], 25)
    by_patient = bootstrap_patients(values, np.repeat(list("abcd"), 25), bootstraps=2000, seed=0)
    by_section = bootstrap_patients(values, np.arange(100), bootstraps=2000, seed=0)
    assert np.ptp(by_patient) > 3 * np.ptp(by_section)
    exact = stats.bootstrap(
        (np.arange(4.0),), np.mean, method="percentile", n_resamples=5000, rng=0
    ).confidence_interval
    np.testing.assert_allclose(by_patient, (exact.low, exact.high), atol=0.26)
    assert np.isnan(bootstrap_patients(values, np.repeat("a", 100), bootstraps=10, seed=0)).all()


@pytest.mark.parametrize(("n_patients", "expected"), [(3, 0.75), (6, 0.85)])
def test_interval_holds_the_mean_as_often_as_its_docstring_says(n_patients, expected):
    rng = np.random.default_rng(2)
    held = 0
    for seed in range(400):
        low, high = bootstrap_patients(
            rng.normal(size=n_patients), np.arange(n_patients), bootstraps=300, seed=seed
        )
        held += low <= 0 <= high
    assert held / 400 == pytest.approx(expected, abs=0.06)


def test_false_discovery_rate_skips_nan():
    p = np.array([0.01, np.nan, 0.02, 0.5])
    expected = stats.false_discovery_control([0.01, 0.02, 0.5])
    np.testing.assert_allclose(false_discovery_rate(p)[[0, 2, 3]], expected)
    assert np.isnan(false_discovery_rate(p)[1])


def fields(rng, *, n_maps, side, sigma):
    noise = rng.normal(size=(n_maps, side + 16, side + 16))
    noise = ndimage.gaussian_filter(noise, (0, sigma, sigma))
    return noise[:, 8:-8, 8:-8].reshape(n_maps, -1).T


def graph(row, col):
    """Return what the nulls need to know of cells: centres and graph."""
    return (*Lattice().centres_um(row, col), Lattice().neighbours(row, col))


SQUARE = graph(*np.divmod(np.arange(400), 20))


@pytest.fixture(scope="module")
def basis():
    return spatial_basis(*SQUARE)


def test_basis_is_orthonormal_and_without_the_constant(basis):
    assert basis.shape == (400, 399)
    np.testing.assert_allclose(basis.T @ basis, np.eye(399), atol=1e-9)
    np.testing.assert_allclose(basis.sum(0), 0, atol=1e-8)


@pytest.mark.parametrize("dense", [True, False])
def test_the_contrast_between_two_pieces_is_the_broadest_map(dense, monkeypatch):
    """Cells without neighbours take part, and do not hide it among many maps of eigenvalue 0."""
    row, col = np.divmod(np.arange(30 * 50), 50)
    piece = np.where(col < 18, 0, np.where(col > 30, 1, 2))
    keep = (piece < 2) | ((row % 4 == 0) & (col % 4 == 0) & (col > 20) & (col < 29))
    row, col, piece = row[keep], col[keep], piece[keep]
    if not dense:
        monkeypatch.setattr("histogep.stats.nulls._DENSE_CELLS", 100)
        monkeypatch.setattr("histogep.stats.nulls._BROADEST_MAPS", 20)
    basis = spatial_basis(*graph(row, col))
    assert basis.shape[1] == (len(row) - 1 if dense else 20)
    first = basis[:, 0]
    assert (piece == 2).sum() > 10
    assert (np.sign(first[piece == 0]) == -np.sign(first[piece == 1].mean())).all()
    assert (np.sign(first[piece == 1]) == np.sign(first[piece == 1].mean())).all()
    contrast = np.where(piece == 0, -1.0, np.where(piece == 1, 1.0, 0.0))
    contrast -= contrast.mean()
    assert ((basis[:, :1].T @ contrast) ** 2).sum() > 0.5 * contrast @ contrast


def test_cells_on_one_line_have_a_basis():
    row, col = np.zeros(12, int), np.arange(12) * 2
    basis = spatial_basis(*graph(row, col))
    np.testing.assert_allclose(basis.T @ basis, np.eye(11), atol=1e-9)
    assert map_motions(*graph(row, col)[:2]).shape == (2, 72, 12)


def test_turns_and_reflections_are_those_of_numpy():
    side = 9
    row, col = np.divmod(np.arange(side * side), side)
    values = np.random.default_rng(0).normal(size=(side, side))
    turns, shifts = map_motions(100.0 * col, 100.0 * row)
    seen = {values.ravel()[turn].tobytes() for turn in turns}
    for quarter in range(4):
        assert np.rot90(values, quarter).tobytes() in seen
        assert np.rot90(values.T, quarter).tobytes() in seen
    for motions in (turns, shifts):
        np.testing.assert_array_equal(motions[0], np.arange(side * side))
        assert motions.min() >= 0
        assert motions.max() < side * side
    # A shift keeps neighbours together, but for the reflections at the borders.
    steps = np.abs(np.diff(col[shifts].reshape(-1, side, side), axis=2))
    assert steps.max() <= 1


@pytest.mark.parametrize("dense", [True, False])
def test_maps_that_share_a_signal_beat_every_null(basis, dense, monkeypatch):
    rng = np.random.default_rng(5)
    truth = fields(rng, n_maps=20, side=20, sigma=1.5)
    measured = truth + rng.normal(0, truth.std(), truth.shape)
    if not dense:
        monkeypatch.setattr("histogep.stats.nulls._DENSE_CELLS", 100)
        monkeypatch.setattr("histogep.stats.nulls._BROADEST_MAPS", 80)
        basis = spatial_basis(*SQUARE)
        assert basis.shape == (400, 80)
    options = {"draws": 999, "seed": 0}
    nulls = [moved_null(truth, measured, m, **options) for m in map_motions(*SQUARE[:2])]
    nulls.append(spectral_null(truth, measured, basis, **options))
    for null in nulls:
        assert (upper_p(pearson(truth, measured), null) < 0.05).mean() > 0.9


def test_permutation_null_has_the_spread_of_shuffling(matrices):
    predicted, measured = matrices
    null = permutation_null(predicted, measured, permutations=500, seed=0)
    assert null.shape == (500, 7)
    np.testing.assert_allclose(null.std(0), 1 / np.sqrt(79), rtol=0.15)
    again = permutation_null(predicted, measured, permutations=500, seed=0)
    np.testing.assert_array_equal(null, again)
    flat = measured.copy()
    flat[:, 0] = 1
    assert np.isnan(permutation_null(predicted, flat, permutations=5, seed=0)[:, 0]).all()


def test_shuffling_inside_the_tissue_leaves_the_outline():
    rng = np.random.default_rng(6)
    inside = np.arange(300) < 150
    measured = inside[:, None] * (2 + rng.normal(size=(300, 5)))
    outline = pearson(np.repeat(inside[:, None], 5, 1), measured)
    null = shuffled_in_tissue_null(measured, measured, inside, permutations=50, seed=0)
    assert (null.mean(0) > 0.5 * outline).all()
    assert (null.mean(0) < outline).all()


def test_p_is_never_zero_and_one_for_a_constant_prediction(basis):
    assert upper_p(np.array([9.0]), np.zeros((99, 1))) == pytest.approx(0.01)
    measured = np.random.default_rng(7).normal(size=(400, 3))
    flat, options = np.ones((400, 3)), {"draws": 50, "seed": 0}
    nulls = [moved_null(flat, measured, motions, **options) for motions in map_motions(*SQUARE[:2])]
    for null in (*nulls, spectral_null(flat, measured, basis, **options)):
        np.testing.assert_allclose(upper_p(pearson(flat, measured), null), 1)
    assert np.isnan(upper_p(np.array([np.nan]), np.zeros((9, 1))))[0]


def test_auroc_of_unrelated_maps_is_centred_on_a_half():
    rng = np.random.default_rng(8)
    smooth = fields(rng, n_maps=1, side=20, sigma=2)[:, 0]
    white = rng.normal(size=400)
    label = fields(rng, n_maps=1, side=20, sigma=2)[:, 0] > 0
    bounds = [auroc_upper(x, label, *SQUARE, draws=2000, seed=0) for x in (smooth, white)]
    # For white noise Mann and Whitney's own standard error tells the bound.
    spread = np.sqrt(401 / (12 * label.sum() * (~label).sum()))
    # It is the largest of three bounds, and so no smaller.
    assert -0.01 < bounds[1] - (0.5 + 1.645 * spread) < 0.03
    assert bounds[0] > bounds[1] + 0.05
