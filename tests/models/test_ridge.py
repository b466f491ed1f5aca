from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from histogep.errors import InputError
from histogep.lattice import Lattice
from histogep.models.preparation import Preparation, Tiles, neighbour_mean
from histogep.models.ridge import (
    RidgeModel,
    _deviation_scores,
    fit_ridge,
    solve,
    sum_sections,
    weigh_candidates,
)
from histogep.models.selection import inner_folds, mean_over_groups, section_score
from histogep.stats.scores import auroc, pearson

LATTICE = Lattice("visium")
BLOCKS = [("descriptors", 5), ("lite0", 40)]
SIDE = 14


def make_section(rng, *, level=0.0, stain=None):
    """One field drives five genes within the section; the level of features drives their mean."""
    row, col = (axis.ravel() for axis in np.indices((SIDE, SIDE)))
    field = rng.normal(size=(SIDE * SIDE, 2))
    mixing = np.random.default_rng(7).normal(size=(2, 45))
    values = field @ mixing + rng.normal(size=(len(row), 45))
    values += level * np.random.default_rng(8).normal(size=45)
    values += 0 if stain is None else stain
    noise = rng.normal(size=(len(row), 6))
    targets = np.hstack([field[:, :1] * [1.0, 0.8, -0.7], field[:, 1:] * [1.0, -1.0], noise[:, 5:]])
    return Tiles(values, row, col), targets + 0.5 * noise + level + 3.0


@pytest.fixture(scope="module")
def study():
    rng = np.random.default_rng(0)
    levels = [-1.0, -0.9, -0.3, 0.2, 0.6, 1.1]
    sections = [make_section(rng, level=level) for level in levels]
    return [s[0] for s in sections], [s[1] for s in sections], list("AABCDE")


@pytest.fixture(scope="module")
def model(study):
    return fit_ridge(*study, blocks=BLOCKS, lattice=LATTICE, components=10)


def test_coefficients_are_those_of_scikit_learn(study):
    tiles, targets, _ = study
    features = [part.values for part in tiles]
    sums = sum_sections(features, targets)
    centred_x = np.vstack([x - x.mean(0) for x in features])
    centred_y = np.vstack([y - y.mean(0) for y in targets])
    reference = Ridge(alpha=0.3 * len(centred_x), fit_intercept=False).fit(centred_x, centred_y)
    assert np.allclose(solve(sums, 0.3), reference.coef_.T, atol=1e-10)


def test_inner_scores_are_those_of_fits_without_the_patient(study):
    tiles, targets, groups = study
    features = [part.values for part in tiles]
    columns = {"descriptors": np.arange(5), "lite0": np.arange(5, 45)}
    sets, alphas = [["descriptors"], ["lite0", "descriptors"]], [0.01, 1.0]
    scores = _deviation_scores(features, targets, groups, sets, columns, alphas)
    for s, names in enumerate(sets):
        use = np.concatenate([columns[name] for name in names])
        for a, alpha in enumerate(alphas):
            by_patient = {}
            for i, group in enumerate(groups):
                rest = [j for j, other in enumerate(groups) if other != group]
                sums = sum_sections([features[j][:, use] for j in rest], [targets[j] for j in rest])
                predicted = features[i][:, use] @ solve(sums, alpha)
                score = pearsonr(predicted, targets[i], axis=0).statistic.mean()
                by_patient.setdefault(group, []).append(score)
            expected = np.mean([np.mean(part) for part in by_patient.values()])
            assert scores[s, a] == pytest.approx(expected, abs=1e-10)


def test_planted_genes_are_found_on_a_new_slide_and_noise_is_not(model):
    tiles, targets = make_section(np.random.default_rng(5))
    predicted, _ = model.predict(tiles)
    found = pearson(predicted, targets)
    assert found[:5].min() > 0.6
    assert abs(found[5]) < 0.25


def test_stain_and_scanner_do_not_move_the_deviation(model):
    tiles, _ = make_section(np.random.default_rng(5))
    predicted, level = model.predict(tiles)
    restained = Tiles(tiles.values * 1.7 + 4.0, tiles.row, tiles.col)
    again, level_again = model.predict(restained)
    assert np.allclose(again - level_again, predicted - level, atol=1e-5)
    assert not np.allclose(level, level_again, atol=1e-2)


def test_the_level_follows_the_slide_and_is_the_mean_of_its_prediction(model):
    rng = np.random.default_rng(6)
    means = []
    for level in (-0.8, 0.8):
        tiles, _ = make_section(rng, level=level)
        predicted, predicted_level = model.predict(tiles)
        assert np.allclose(predicted.mean(0), predicted_level, atol=1e-4)
        means.append(predicted_level.mean())
    assert means[1] - means[0] > 0.8
    assert model.shrinkage > 0


def test_a_level_that_features_do_not_tell_is_shrunk(study):
    tiles, targets, groups = study
    shifts = [1.0, 1.0, -1.0, 2.0, -1.0, 1.0]
    centred = [y - y.mean(0) + shift for y, shift in zip(targets, shifts, strict=True)]
    model = fit_ridge(tiles, centred, groups, blocks=BLOCKS, lattice=LATTICE, components=10)
    assert model.shrinkage <= 0.5


def test_noise_has_no_score(study):
    tiles, targets, groups = study
    rng = np.random.default_rng(1)
    noise = [rng.normal(size=part.shape) for part in targets]
    model = fit_ridge(tiles, noise, groups, blocks=BLOCKS, lattice=LATTICE)
    assert abs(model.choice["score"]) < 0.04


def test_a_model_is_the_same_from_its_arrays(model):
    settings = {"blocks": BLOCKS, "lattice": LATTICE.to_settings(), "choice": model.choice}
    again = RidgeModel.from_arrays(model.to_arrays(), settings)
    tiles, _ = make_section(np.random.default_rng(5))
    assert np.array_equal(again.predict(tiles)[0], model.predict(tiles)[0])


def test_shares_average_what_the_noise_cannot_tell_apart():
    scores = np.array([[0.10, 0.11], [0.02, 0.105]])
    few, many = (weigh_candidates(scores, n_patients=n) for n in (2, 400))
    assert few.sum() == pytest.approx(1) == many.sum()
    assert few.max() < 0.5 < many.max()
    assert many[0, 1] == many.max()


def test_unknown_encoders_and_penalties_are_refused(study):
    with pytest.raises(InputError, match=r"encoder_sets names \['uni'\]"):
        fit_ridge(*study, blocks=BLOCKS, lattice=LATTICE, encoder_sets=[["uni"]])
    with pytest.raises(InputError, match="alphas"):
        fit_ridge(*study, blocks=BLOCKS, lattice=LATTICE, alphas=[0.0])


def test_principal_components_are_those_of_numpy(study):
    tiles, _, _ = study
    preparation = Preparation.fit(tiles, blocks=BLOCKS, lattice=LATTICE, components=10)
    assert preparation.width() == 2 * 5 + 10
    wide = np.vstack([part.values[:, 5:] for part in tiles])
    standard = np.clip((wide - wide.mean(0)) / wide.std(0), -6, 6)
    scores = np.linalg.svd(standard - standard.mean(0), full_matrices=False)
    scores = scores[0][:, :10] * scores[1][:10]
    got = np.vstack([preparation.transform(part, view="whole", names=["lite0"]) for part in tiles])
    correlation = np.abs(pearson(got, scores))
    assert correlation == pytest.approx(1.0, abs=1e-6)
    # Blocks weigh the same: total variance 1; whitened: each column 1.
    assert got.var(0).sum() == pytest.approx(1.0)
    white = np.vstack([preparation.transform(p, view="whole", whiten=True) for p in tiles])
    assert white.std(0) == pytest.approx(1.0, abs=0.02)


def test_neighbour_means_on_the_hexagonal_lattice():
    row, col = (axis.ravel() for axis in np.indices((5, 5)))
    values = np.zeros((25, 1))
    values[12] = 6.0  # row 2, col 2: an even row
    mean = neighbour_mean(values, row, col, LATTICE).reshape(5, 5)
    touched = {(1, 1), (1, 2), (2, 1), (2, 3), (3, 1), (3, 2)}
    assert {tuple(place) for place in np.argwhere(mean > 0).tolist()} == touched
    alone = neighbour_mean(np.array([[4.0]]), np.array([3]), np.array([3]), LATTICE)
    assert alone[0, 0] == 4.0


def test_features_of_another_width_are_refused(model):
    with pytest.raises(InputError, match="reads 45 columns"):
        model.predict(Tiles(np.zeros((4, 44)), np.arange(4), np.zeros(4, int)))


def test_scores_agree_with_scipy_and_scikit_learn():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 30, 4))
    b[:, 3] = 2.0
    got = pearson(a, b)
    assert got[:3] == pytest.approx(pearsonr(a[:, :3], b[:, :3], axis=0).statistic)
    assert np.isnan(got[3])
    assert section_score(a, b) == pytest.approx(got[:3].mean())
    a[:, 0] = 1.0  # says nothing of gene 0, and does not gain by it
    assert section_score(a, b) == pytest.approx(got[1:3].sum() / 3)
    truth = rng.integers(0, 2, 50).astype(float)
    score = np.round(rng.normal(size=50) + truth, 1)
    assert auroc(score, truth) == pytest.approx(roc_auc_score(truth, score))
    truth[:5] = np.nan
    assert auroc(score, truth) == pytest.approx(roc_auc_score(truth[5:], score[5:]))
    assert np.isnan(auroc(score, np.ones(50)))
    assert mean_over_groups([1.0, 3.0, 8.0, np.nan], ["a", "a", "b", "b"]) == 5.0


def test_inner_folds_hold_out_patients_whole():
    assert inner_folds(["a", "a", "b", "c"]) == [["a"], ["b"], ["c"]]
    many = inner_folds([f"p{i}" for i in range(23)], most=10)
    assert sorted(map(len, many)) == [2] * 7 + [3] * 3
    assert len({name for hand in many for name in hand}) == 23


def test_ridge_needs_no_torch():
    code = "import sys, histogep.models.ridge, histogep.deployment.out_of_distribution; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
