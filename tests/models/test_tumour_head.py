from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import f1_score, roc_auc_score

from histogep.errors import InputError
from histogep.files import write_json
from histogep.lattice import Lattice
from histogep.models.preparation import Tiles
from histogep.models.selection import tumour_threshold
from histogep.models.tumour_head import (
    TumourModel,
    _Moments,
    fit_tumour,
    platt,
    probability_of,
    tumour_features,
)
from histogep.stats.scores import auroc

HEX = Lattice("visium")
BLOCKS = [("descriptors", 4), ("lite0", 30)]
SIDE = 14
ROW, COL = (axis.ravel() for axis in np.indices((SIDE, SIDE)))
OPTIONS = {"blocks": BLOCKS, "lattice": HEX, "components": 8}


def make_section(rng, *, signal=1.0, shift=0.0):
    """A round tumour, hardly seen in one tile, well in a tile and its neighbours."""
    centre = rng.uniform(4, 10, 2)
    tumour = np.hypot(ROW - centre[0], COL - centre[1]) < rng.uniform(3, 5)
    mixing = np.random.default_rng(7).normal(size=34)
    values = shift + rng.normal(size=(SIDE**2, 34)) * 3 + signal * np.outer(tumour, mixing)
    labels = tumour.astype(np.float32)
    labels[rng.random(SIDE**2) < 0.1] = np.nan
    return Tiles(values.astype(np.float32), ROW, COL), labels[:, None]


def make_study(seed=0, **options):
    rng = np.random.default_rng(seed)
    sections = [make_section(rng, **options) for _ in range(5)]
    return [s[0] for s in sections], [s[1] for s in sections], list("AABCD")


@pytest.fixture(scope="module")
def fitted():
    return fit_tumour(*make_study(), **OPTIONS)


def test_the_rings_find_the_tumour_of_a_new_patient(fitted):
    model, _ = fitted
    alone, _ = fit_tumour(*make_study(), rings=0, **OPTIONS)
    rng = np.random.default_rng(99)
    areas = []
    for _ in range(4):
        tiles, labels = make_section(rng)
        known = np.isfinite(labels[:, 0])
        probability, level = model.predict(tiles)
        assert level is None
        assert probability.dtype == np.float32
        mine = roc_auc_score(labels[known, 0], probability[known, 0])
        areas.append((mine, roc_auc_score(labels[known, 0], alone.predict(tiles)[0][known, 0])))
    with_rings, without = np.mean(areas, axis=0)
    assert with_rings > 0.9
    assert with_rings > without + 0.03
    assert model.choice["reach"] > 0
    # What the left-out training patients said is about what a new patient gets.
    assert model.choice["score"] == pytest.approx(with_rings, abs=0.06)


def test_its_path_is_scikit_learns_ridge_on_the_labels():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(80, 6)) + 2, (rng.random(80) < 0.4).astype(float)
    use, alphas = np.array([0, 2, 5]), [0.01, 1.0]
    halves = _Moments.of(x[:30], y[:30]) + _Moments.of(x[30:], y[30:])
    paths = halves.paths(use, alphas)
    for path, alpha in zip(paths.T, alphas, strict=True):
        reference = Ridge(alpha=alpha * 80).fit(x[:, use], y)
        assert np.allclose(path, reference.coef_, atol=1e-10)


def test_left_out_patients_are_scored_without_themselves(fitted):
    """Each spot's inner discriminant is that of fits to the other patients, weighted as chosen."""
    model, left_out = fitted
    tiles, labels, groups = make_study()
    assert list(dict.fromkeys(left_out.patient)) == list("ABCD")
    features = [tumour_features(model.preparation, part, rings=2) for part in tiles]
    known = [np.isfinite(part[:, 0]) for part in labels]
    out = 3  # patient C
    rest = [i for i, group in enumerate(groups) if group != "C"]
    x = np.vstack([features[i][known[i]] for i in rest])
    y = np.concatenate([labels[i][known[i], 0] for i in rest])
    expected = 0
    sets = {"descriptors": range(4), "lite0": range(4, 12), "descriptors+lite0": range(12)}
    for candidate in model.choice["candidates"]:
        if candidate["weight"]:
            own = np.array(sets[candidate["encoders"]])
            use = np.concatenate(
                [
                    {"slide": 0, "whole": 36}[view] + 12 * ring + own
                    for view in candidate["views"].split("+")
                    for ring in range(candidate["reach"] + 1)
                ]
            )
            ridge = Ridge(alpha=candidate["alpha"] * len(y)).fit(x[:, use], y)
            said = ridge.predict(features[out][known[out]][:, use])
            expected = expected + candidate["weight"] * said
    assert np.allclose(left_out.discriminant[left_out.patient == "C"], expected, atol=1e-6)
    assert sum(c["weight"] for c in model.choice["candidates"]) == pytest.approx(1)


def test_noise_is_not_a_tumour():
    """The inner score is that of the best of many candidates; a new patient tells the truth."""
    inner, new = [], []
    for seed in range(3):
        model, _ = fit_tumour(*make_study(seed, signal=0.0), rings=1, **OPTIONS)
        inner.append(model.choice["score"])
        rng = np.random.default_rng(100 + seed)
        for _ in range(4):
            tiles, labels = make_section(rng, signal=0.0)
            new.append(auroc(model.predict(tiles)[0][:, 0], labels[:, 0]))
    assert np.mean(new) == pytest.approx(0.5, abs=0.05)
    assert np.mean(inner) < 0.62


def test_platt_is_a_logistic_regression_that_counts_patients_alike():
    rng = np.random.default_rng(0)
    patients = np.repeat(["a", "b"], [400, 100])
    discriminant = rng.normal(size=500)
    label = (rng.random(500) < 1 / (1 + np.exp(-3 * discriminant + 0.5))).astype(float)
    slope, intercept = platt(discriminant, label, patients)
    weight = np.repeat([250 / 400, 250 / 100], [400, 100])
    reference = LogisticRegression(C=np.inf, tol=1e-10).fit(discriminant[:, None], label, weight)
    assert slope == pytest.approx(reference.coef_[0, 0], rel=0.05)  # but for the targets drawn in
    assert intercept == pytest.approx(reference.intercept_[0], abs=0.05)
    # Classes that do not overlap give finite odds, and what points the wrong way says nothing.
    slope, _ = platt(label * 2, label, patients)
    assert 0 < slope < 50
    slope, intercept = platt(-discriminant, label, patients)
    assert slope == 0
    assert probability_of(np.array([intercept]))[0] == pytest.approx(label @ weight / 500, abs=0.01)


def test_probabilities_are_calibrated_on_left_out_patients(fitted):
    model, left_out = fitted
    probability = probability_of(model.slope * left_out.discriminant + left_out.offset)
    high = probability > 0.5
    assert left_out.label[high].mean() > 0.7
    assert left_out.label[~high].mean() < 0.3
    assert probability.mean() == pytest.approx(left_out.label.mean(), abs=0.05)
    assert 0 < tumour_threshold(probability, left_out.label > 0.5) < 1


def test_it_is_the_same_from_its_arrays(fitted):
    model, _ = fitted
    settings = {"blocks": BLOCKS, "lattice": HEX.to_settings(), "choice": model.choice}
    again = TumourModel.from_arrays(model.to_arrays(), settings)
    tiles, _ = make_section(np.random.default_rng(5))
    assert np.array_equal(again.predict(tiles)[0], model.predict(tiles)[0])


def test_one_class_and_one_patient(caplog, tmp_path):
    tiles, labels, groups = make_study()
    with pytest.raises(InputError, match="of one class"):
        fit_tumour(tiles, [np.zeros_like(part) for part in labels], groups, **OPTIONS)
    # Patients whose spots are of one class have no AUROC, and the others still choose.
    labels[2] = np.zeros_like(labels[2])
    model, _ = fit_tumour(tiles, labels, groups, rings=1, **OPTIONS)
    assert 0.8 < model.choice["score"] <= 1
    # A single section has nobody to leave out.
    model, left_out = fit_tumour(tiles[:1], labels[:1], ["A"], rings=0, **OPTIONS)
    assert left_out is None
    assert model.choice["score"] is None
    write_json(model.choice, tmp_path / "settings.json")  # which knows no NaN
    assert "all candidates are weighted equally" in caplog.text


def test_the_threshold_has_the_best_dice_and_is_the_lowest_of_equals():
    rng = np.random.default_rng(1)
    for rounded in (1, 7):
        label = rng.random(300) < 0.3
        score = np.round(rng.uniform(size=300) * 0.5 + 0.4 * label, rounded)
        overlap = {t: f1_score(label, score >= t) for t in np.unique(score)}
        equal = [t for t, value in overlap.items() if value > max(overlap.values()) - 1e-12]
        assert tumour_threshold(score, label) == min(equal)


def test_it_needs_no_torch():
    code = (
        "import sys, histogep.models.tumour_head, histogep.models.fit, histogep.evaluation.predictions, "
        "histogep.deployment.streaming, histogep.deployment.pack; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
