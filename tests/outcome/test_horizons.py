from __future__ import annotations

import lifelines
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from histogep.outcome.horizons import (
    event_probability,
    horizon_weights,
    kaplan_meier_at,
    score_horizons,
    uncensored_probability,
)
from histogep.outcome.nested_cv import nested_scores, refit_bootstrap
from histogep.report.figures.outcome import calibration_at
from histogep.stats.discrimination import weighted_auroc
from histogep.stats.penalised import CoxLearner


@pytest.fixture(scope="module")
def cohort():
    """Times tied with each other and with censorings."""
    rng = np.random.default_rng(0)
    n = 200
    age = rng.normal(size=n)
    happens, leaves = rng.exponential(60 / np.exp(0.9 * age)), rng.uniform(5, 120, n)
    time = np.minimum(happens, leaves).round(-1) + 1
    event = (happens <= leaves).astype(int)
    return age, time, event


def test_censoring_weights_equal_the_product_by_hand(cohort):
    _, time, event = cohort
    expected = []
    for own in time:
        product = 1.0
        for moment in np.unique(time[event == 0]):
            if moment < own:
                # Who has the event at the same time left before the censored ones.
                at_risk = (time > moment).sum() + ((time == moment) & (event == 0)).sum()
                product *= 1 - ((time == moment) & (event == 0)).sum() / at_risk
        expected.append(product)
    np.testing.assert_allclose(uncensored_probability(time, event), expected, rtol=1e-9)
    assert (uncensored_probability(np.zeros(4), np.array([1, 0, 0, 1])) == 1).all()


@pytest.mark.parametrize("months", [25.0, 41.0, 60.0])
def test_the_auc_at_a_time_under_draws_equals_scikit_learn_with_the_same_weights(cohort, months):
    age, time, event = cohort
    case, control = horizon_weights(time, event, months)
    draws = np.random.default_rng(0).multinomial(len(time), np.full(len(time), 1 / len(time)), 5)
    draws = np.vstack([np.ones(len(time)), draws])
    ours = weighted_auroc(age, draws * case, draws * (case + control))
    for draw, value in zip(draws, ours, strict=True):
        expected = roc_auc_score(case > 0, age, sample_weight=draw * (case + control))
        assert value == pytest.approx(expected, abs=1e-12)


def test_without_censoring_it_is_the_plain_auc(cohort):
    age, time, _ = cohort
    case, control = horizon_weights(time, np.ones(len(time)), 30)
    assert set(case) == set(control) == {0, 1}
    value = weighted_auroc(age, case[None], (case + control)[None])[0]
    assert value == pytest.approx(roc_auc_score(time <= 30, age))


def test_the_chance_of_an_event_equals_lifelines(cohort):
    age, time, event = cohort
    train = np.arange(150)
    table = pd.DataFrame({"age": age, "time": time, "event": event})
    fitted = lifelines.CoxPHFitter(baseline_estimation_method="breslow").fit(
        table.iloc[train], "time", "event"
    )
    eta = fitted.predict_log_partial_hazard(table).to_numpy()
    # At event times: between them lifelines interpolates its step function.
    ours = event_probability(eta, time, event, train, np.array([31.0, 61.0]))
    theirs = 1 - fitted.predict_survival_function(table, times=[31.0, 61.0]).to_numpy().T
    np.testing.assert_allclose(ours, theirs, atol=1e-9)


def test_kaplan_meier_at_a_time_is_the_product_by_hand(cohort):
    _, time, event = cohort
    for months in (11.0, 36.0, 60.0):
        left = 1.0
        for moment in np.unique(time[(event == 1) & (time <= months)]):
            left *= 1 - ((time == moment) & (event == 1)).sum() / (time >= moment).sum()
        chance, low, high = kaplan_meier_at(time, event, months)
        assert chance == pytest.approx(1 - left)
        assert low < chance < high
    assert np.isnan(kaplan_meier_at(time, event, 0.5)[1])
    assert kaplan_meier_at(time[event == 1], np.ones(event.sum()), 1000)[0] == 1


@pytest.fixture(scope="module")
def scored(cohort):
    age, time, event = cohort
    rng = np.random.default_rng(1)
    shared = {
        "clinical": pd.DataFrame({"age": age}),
        "image": (rng.normal(size=(len(age), 5)), np.zeros((len(age), 0))),
        "folds": 4,
        "inner_folds": 3,
        "penalties": [0.1, 1.0],
        "components": 3,
    }
    repeats = [
        nested_scores(
            CoxLearner(time, event),
            event,
            shuffles=9,
            seed=seed,
            shuffle_seed=1,
            warned=set(),
            **shared,
        )
        for seed in (1, 2)
    ]
    refits = refit_bootstrap(
        lambda rows: CoxLearner(time[rows], event[rows]), event, draws=20, seed=1, **shared
    )
    return score_horizons(repeats, refits, time, event, months=[36, 60, 500], draws=200, seed=1)


def test_a_true_hazard_is_told_apart_and_calibrated(scored, caplog):
    horizons, calibration = scored
    assert set(horizons["months"]) == {36, 60}  # nobody is followed beyond 500 months
    table = horizons.set_index(["model", "months"])
    for months in (36, 60):
        clinical = table.loc[("clinical", months)]
        assert 0.6 < clinical["ci_low"] < clinical["auc"] < clinical["ci_high"] < 1
        assert clinical["expected"] == pytest.approx(clinical["observed"], abs=0.06)
        image = table.loc[("image", months)]
        assert image["ci_low"] < 0.5 < image["ci_high"] or abs(image["auc"] - 0.5) < 0.1
        gain = table.loc[("clinical+image - clinical", months)]
        assert gain["auc"] == pytest.approx(
            table.loc[("clinical+image", months), "auc"] - clinical["auc"]
        )
        # The image is noise: its AUC stands where its shuffles do.
        assert abs(image["null"] - image["auc"]) < 0.15
        assert image["null"] < image["null_upper"]
        groups = calibration.query("model == 'clinical' and months == @months")
        assert groups["predicted"].is_monotonic_increasing
        assert groups["n"].sum() == 200
        inside = (groups["ci_low"] <= groups["predicted"]) & (
            groups["predicted"] <= groups["ci_high"]
        )
        assert inside.sum() >= len(groups) - 1


def test_the_figure_shows_every_time_and_says_when_there_is_none(scored):
    horizons, calibration = scored
    axes = calibration_at(horizons, calibration).axes
    assert [a.get_title(loc="left").split(" (")[0] for a in axes] == [
        "By 36 months",
        "By 60 months",
    ]
    labels = [text.get_text() for text in axes[0].get_legend().get_texts()]
    row = horizons.query("model == 'clinical' and months == 36").iloc[0]
    assert f"clinical: AUC {row['auc']:.2f}" in labels[0]
    empty = calibration_at(horizons.head(0), calibration.head(0))
    assert "Too few patients" in empty.axes[0].texts[0].get_text()
