from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.linear_model import Ridge

from histogep.errors import InputError
from histogep.lattice import Lattice
from histogep.models.linear import sum_sections
from histogep.models.neighbours import (
    NeighbourModel,
    _Basis,
    _path_scores,
    fit_neighbours,
    ring_columns,
    ring_features,
)
from histogep.models.preparation import Preparation, Tiles
from histogep.models.ridge import fit_ridge
from histogep.models.selection import section_score

HEX, SQUARE = Lattice("visium"), Lattice("st")
BLOCKS = [("descriptors", 4), ("lite0", 30)]
SIDE, N_GENES = 14, 60
EVERY_CELL = [axis.ravel() for axis in np.indices((SIDE, SIDE))]


def around(field):
    """Return the mean over the six neighbours of each cell, by their distance in um."""
    x, y = HEX.centres_um(*EVERY_CELL)
    distance = np.hypot(x[:, None] - x, y[:, None] - y)
    touching = (distance > 1) & (distance < 1.2 * HEX.pitch_um)
    return (touching @ field) / touching.sum(1, keepdims=True)


def make_section(rng, *, noise=1.5):
    """Genes of two programmes: one is seen in the tile, the other in the tiles around it."""
    field = rng.normal(size=(SIDE * SIDE, 2))
    mixing = np.random.default_rng(7).normal(size=(2, 34))
    values = field @ mixing + 0.5 * rng.normal(size=(len(field), 34))
    programmes = np.column_stack([field[:, 0], 2 * around(field[:, 1:])[:, 0]])
    loads = np.zeros((2, N_GENES))
    loads[0, :25], loads[1, 25:50] = 1.0, -1.0
    targets = programmes @ loads + noise * rng.normal(size=(len(field), N_GENES)) + 3.0
    return Tiles(values, *EVERY_CELL), targets


@pytest.fixture(scope="module")
def study():
    rng = np.random.default_rng(0)
    sections = [make_section(rng) for _ in range(4)]
    return [s[0] for s in sections], [s[1] for s in sections], list("AABC")


OPTIONS = {"blocks": BLOCKS, "lattice": HEX, "components": 8}


@pytest.fixture(scope="module")
def model(study):
    return fit_neighbours(*study, **OPTIONS)


@pytest.mark.parametrize("lattice", [HEX, SQUARE])
def test_rings_are_the_cells_at_that_many_steps(lattice):
    row, col = EVERY_CELL
    if lattice.hexagonal:  # steps between axial coordinates of a hexagonal lattice
        q = col - row // 2
        dq, dr = q[:, None] - q, row[:, None] - row
        steps = np.maximum.reduce([abs(dq), abs(dr), abs(dq + dr)])
    else:
        steps = np.maximum(abs(row[:, None] - row), abs(col[:, None] - col))
    rings = lattice.rings(row, col, 3)
    for k, ring in enumerate(rings, start=1):
        assert (ring.toarray() == (steps == k)).all()
    assert lattice.rings(row, col, 0) == []


def test_ring_features_are_means_over_rings(study):
    tiles = study[0][0]
    preparation = Preparation.fit(study[0], **OPTIONS)
    features = ring_features(preparation, tiles, rings=2)
    assert features.shape == (SIDE * SIDE, 3 * (4 + 8))
    own = features[:, :12]
    prepared = preparation.transform(tiles, view="slide")
    assert np.array_equal(own, prepared[:, [0, 1, 2, 3, *range(8, 16)]])
    assert features[:, 12:24] == pytest.approx(around(own))
    # A tile on its own has its own features in every ring; one more, far away, changes nothing.
    lonely = Tiles(
        np.vstack([tiles.values, tiles.values[:1]]),
        np.append(tiles.row, 90),
        np.append(tiles.col, 90),
    )
    alone = ring_features(preparation, lonely, rings=2)
    assert np.array_equal(alone[-1, :12], alone[-1, 12:24])
    assert np.array_equal(alone[-1, :12], alone[-1, 24:])


def test_full_rank_is_scikit_learns_ridge_and_low_rank_the_best_of_its_fits(study):
    x = [part.values for part in study[0]]
    sums = sum_sections(x, study[1])
    basis = _Basis(sums, np.arange(34))
    fit = basis.fit(0.2, most=3)
    stacked = np.vstack([part - part.mean(0) for part in x])
    centred = np.vstack([part - part.mean(0) for part in study[1]])
    reference = Ridge(alpha=0.2 * len(stacked), fit_intercept=False).fit(stacked, centred)
    assert np.allclose(basis.vectors @ fit.coefficients(0), reference.coef_.T, atol=1e-10)
    # Of the fit to the data and the penalty's pseudo-data, the nearest matrix of rank 3.
    augmented = np.vstack([stacked, np.sqrt(0.2 * len(stacked)) * np.eye(34)])
    u, s, v = np.linalg.svd(augmented @ reference.coef_.T, full_matrices=False)
    nearest = (u[:, :3] * s[:3]) @ v[:3]
    got = basis.vectors @ fit.coefficients(3)
    assert np.allclose(augmented @ got, nearest, atol=1e-8)
    assert np.linalg.matrix_rank(got, tol=1e-8) == 3


def test_inner_scores_are_those_of_fits_without_the_patient(study):
    x, y = [part.values for part in study[0]], study[1]
    y = [np.column_stack([part, np.full(len(part), 2.0)]) for part in y]  # a gene that never varies
    rest = sum_sections(x[:2], y[:2])
    use = np.arange(3, 34)
    alphas, ranks = [0.01, 1.0], [1, 4, 0]
    judges = {i: sum_sections([x[i]], [y[i]]) for i in (2, 3)}
    scores = _path_scores(rest, judges, y, use, alphas, ranks)
    basis = _Basis(rest, use)
    for a, alpha in enumerate(alphas):
        fit = basis.fit(alpha, most=4)
        for r, rank in enumerate(ranks):
            coefficients = basis.vectors @ fit.coefficients(rank)
            for i in judges:
                predicted = x[i][:, use] @ coefficients
                expected = pearsonr(predicted[:, :-1], y[i][:, :-1], axis=0).statistic.mean()
                assert scores[i][a, r] == pytest.approx(expected, abs=1e-10)


def test_neighbours_and_programmes_find_more_than_a_ridge_on_a_new_slide(study, model):
    tiles, targets = make_section(np.random.default_rng(5), noise=0.3)
    ridge = fit_ridge(*study, **OPTIONS)
    ours, theirs = (m.predict(tiles)[0] for m in (model, ridge))
    for genes in (slice(0, 25), slice(25, 50)):
        assert section_score(ours[:, genes], targets[:, genes]) > 0.7
    around_it = slice(25, 50)
    assert (
        section_score(ours[:, around_it], targets[:, around_it])
        > section_score(theirs[:, around_it], targets[:, around_it]) + 0.05
    )
    assert abs(section_score(ours[:, 50:], targets[:, 50:])) < 0.1
    assert model.choice["reach"] >= 1
    assert model.choice["rank"] == 2


def test_low_rank_helps_where_genes_share_programmes(study):
    tiles, targets = make_section(np.random.default_rng(5), noise=0.3)
    low, full = (fit_neighbours(*study, ranks=[rank], **OPTIONS) for rank in (2, 0))
    assert section_score(low.predict(tiles)[0][:, :50], targets[:, :50]) > 0.01 + section_score(
        full.predict(tiles)[0][:, :50], targets[:, :50]
    )


def test_stain_does_not_move_the_deviation_and_the_level_is_its_mean(model):
    tiles, _ = make_section(np.random.default_rng(5))
    predicted, level = model.predict(tiles)
    restained = Tiles(tiles.values * 1.7 + 4.0, tiles.row, tiles.col)
    again, level_again = model.predict(restained)
    assert np.allclose(again - level_again, predicted - level, atol=1e-5)
    assert np.allclose(predicted.mean(0), level, atol=1e-4)


def test_a_model_is_the_same_from_its_arrays(model):
    settings = {"blocks": BLOCKS, "lattice": HEX.to_settings(), "choice": model.choice}
    again = NeighbourModel.from_arrays(model.to_arrays(), settings)
    tiles, _ = make_section(np.random.default_rng(5))
    assert np.array_equal(again.predict(tiles)[0], model.predict(tiles)[0])


def test_weights_add_up_and_columns_are_those_of_the_encoders(study, model):
    candidates = model.choice["candidates"]
    assert sum(c["weight"] for c in candidates) == pytest.approx(1)
    assert len(candidates) == 3 * 3 * 9 * 4
    best = max(candidates, key=lambda c: c["score"])
    assert (best["rank"], best["reach"], best["alpha"]) == tuple(
        model.choice[key] for key in ("rank", "reach", "alpha")
    )
    preparation = Preparation.fit(study[0], **OPTIONS)
    lite0 = ring_columns(preparation, ["lite0"], 1)
    assert list(lite0) == [*range(4, 12), *range(16, 24)]
    assert len(ring_columns(preparation, ["descriptors", "lite0"], 2)) == 36


def test_noise_has_no_score(study):
    rng = np.random.default_rng(1)
    noise = [rng.normal(size=part.shape) for part in study[1]]
    assert abs(fit_neighbours(study[0], noise, study[2], **OPTIONS).choice["score"]) < 0.04


def test_one_section_is_fitted_with_nothing_to_choose_by(study):
    one = fit_neighbours(study[0][:1], study[1][:1], ["A"], **OPTIONS)
    assert len({c["weight"] for c in one.choice["candidates"]}) == 1
    assert np.isfinite(one.predict(study[0][1])[0]).all()


def test_strange_choices_are_refused(study):
    for options in ({"ranks": []}, {"rings": -1}, {"alphas": [0.0]}, {"ranks": [-2]}):
        with pytest.raises(InputError, match="alphas must be above 0, ranks and rings"):
            fit_neighbours(*study, **OPTIONS, **options)


def test_it_needs_no_torch():
    code = "import sys, histogep.models.neighbours; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
