from __future__ import annotations

import time as clock

import lifelines
import numpy as np
import pandas as pd
import pytest
from lifelines.statistics import proportional_hazard_test
from scipy import stats

from histogep.stats.cox import RiskSets, fit_cox, scan_genes


@pytest.fixture(scope="module")
def cohort():
    """Patients with heavily tied times, whose first covariate carries the hazard."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(160, 4))
    time = np.ceil(8 * rng.exponential(np.exp(-0.7 * x[:, 0])))
    event = (rng.random(160) < 0.6).astype(int)
    assert len(np.unique(time[event == 1])) < event.sum() / 2, "no ties to speak of"
    return x, time, event


def frame(x, time, event):
    table = pd.DataFrame(x, columns=[f"x{i}" for i in range(x.shape[1])])
    return table.assign(time=time, event=event)


def test_every_gene_of_the_scan_equals_lifelines(cohort):
    x, time, event = cohort
    scan = scan_genes(x, time, event, genes=["a", "b", "c", "d"]).set_index("gene")
    for column, gene in enumerate(scan.index):
        table = frame(x[:, [column]], time, event)
        fitter = lifelines.CoxPHFitter().fit(table, "time", "event")
        sd = x[:, column].std(ddof=1)
        row = scan.loc[gene]
        assert row["coef"] / sd == pytest.approx(fitter.params_["x0"], abs=1e-5)
        assert row["se"] / sd == pytest.approx(fitter.standard_errors_["x0"], abs=1e-5)
        assert row["p"] == pytest.approx(fitter.summary["p"]["x0"], rel=1e-4)
        assert np.log(row["ci_low"]) / sd == pytest.approx(
            fitter.summary["coef lower 95%"]["x0"], abs=1e-5
        )
        test = proportional_hazard_test(fitter, table, time_transform="km")
        assert row["ph_p"] == pytest.approx(float(test.p_value[0]), rel=1e-4)
    assert scan.loc["a", "fdr"] < 1e-4 < scan.loc["b", "fdr"]
    np.testing.assert_allclose(scan["fdr"], stats.false_discovery_control(scan["p"]))


def test_a_skewed_gene_keeps_the_level_of_its_test_on_normal_scores():
    """Genes that few patients express: under an outcome without cause p must be uniform."""
    rng = np.random.default_rng(0)
    values = np.exp(3 * rng.normal(size=(400, 300)))
    time, event = rng.exponential(size=400), rng.random(400) < 0.15
    genes = [str(i) for i in range(300)]
    given = scan_genes(values, time, event, genes=genes)
    scores = scan_genes(values, time, event, genes=genes, scale="normal_scores")
    assert (given["fdr"] < 0.05).sum() >= 1  # what the scores are for
    assert (scores["fdr"] > 0.05).all()
    assert (scores["p"] < 0.05).mean() == pytest.approx(0.05, abs=0.03)


def test_a_scan_of_normal_scores_equals_lifelines_on_them(cohort):
    x, time, event = cohort
    scan = scan_genes(x, time, event, genes=list("abcd"), scale="normal_scores")
    for column in range(4):
        order = stats.rankdata(x[:, column])
        scores = stats.norm.ppf(order / (len(time) + 1))
        table = frame((scores / scores.std(ddof=1))[:, None], time, event)
        fitter = lifelines.CoxPHFitter().fit(table, "time", "event")
        assert scan["coef"][column] == pytest.approx(fitter.params_["x0"], abs=1e-5)
        assert scan["p"][column] == pytest.approx(fitter.summary["p"]["x0"], rel=1e-4)


def test_a_scan_in_parts_is_the_scan_in_one(cohort, monkeypatch):
    x, time, event = cohort
    whole = scan_genes(x, time, event, genes=list("abcd"))
    monkeypatch.setattr("histogep.stats.cox._SCAN_FLOATS", 1)
    parts = scan_genes(x, time, event, genes=list("abcd"))
    np.testing.assert_allclose(whole.drop(columns="gene"), parts.drop(columns="gene"))


@pytest.mark.parametrize("penalty", [0.0, 0.1, 2.0])
def test_many_covariates_and_a_penalty_equal_lifelines(cohort, penalty):
    x, time, event = cohort
    x = (x - x.mean(axis=0)) / x.std(axis=0, ddof=1)
    fitter = lifelines.CoxPHFitter(penalizer=penalty)
    options = {"precision": 1e-12, "r_precision": 1e-14}  # its default stops 1e-5 short
    fitter.fit(frame(x, time, event), "time", "event", fit_options=options)
    fits = fit_cox(x, time, event, penalty=penalty)
    assert fits.converged.all()
    np.testing.assert_allclose(fits.coef[0], fitter.params_, atol=1e-5)
    np.testing.assert_allclose(fits.standard_error[0], fitter.standard_errors_, atol=1e-5)
    if penalty == 0:
        assert fits.log_likelihood[0] == pytest.approx(fitter.log_likelihood_, abs=1e-6)


def test_models_of_a_batch_do_not_touch_each_other(cohort):
    x, time, event = cohort
    batch = np.stack([x, x[:, ::-1], x * [1, 100, 0.01, 1]])
    together = fit_cox(batch, time, event, penalty=np.array([[0.1], [0.5], [0.0]]))
    for i, penalty in enumerate((0.1, 0.5, 0.0)):
        alone = fit_cox(batch[i], time, event, penalty=penalty)
        np.testing.assert_allclose(together.coef[i], alone.coef[0], rtol=1e-6)


def test_a_penalty_of_its_own_for_each_covariate(cohort):
    x, time, event = cohort
    fits = fit_cox(x[:, :2], time, event, penalty=np.array([[0.0, 1e6]]))
    alone = fit_cox(x[:, :1], time, event)
    assert fits.coef[0, 1] == pytest.approx(0, abs=1e-4)
    assert fits.coef[0, 0] == pytest.approx(alone.coef[0, 0], abs=1e-4)


def test_the_likelihood_of_given_coefficients_is_that_of_the_fit(cohort):
    x, time, event = cohort
    fits = fit_cox(x, time, event)
    value = RiskSets(time, event).log_likelihood(x[None], fits.coef)
    assert value[0] == pytest.approx(fits.log_likelihood[0], abs=1e-9)


def test_the_order_of_the_patients_does_not_matter(cohort):
    x, time, event = cohort
    order = np.random.default_rng(1).permutation(len(time))
    first = scan_genes(x, time, event, genes=list("abcd"))
    again = scan_genes(x[order], time[order], event[order], genes=list("abcd"))
    np.testing.assert_allclose(first.drop(columns="gene"), again.drop(columns="gene"), rtol=1e-6)


def test_a_constant_and_a_separating_gene_have_no_estimate(cohort):
    x, time, event = cohort
    order = np.argsort(np.argsort(time))
    genes = np.stack([np.full(len(time), 2.0), -np.where(event, order, 999), x[:, 0]], axis=1)
    time = np.arange(len(time)) + 1.0  # no ties: the second gene ranks every event
    genes[:, 1] = -time
    scan = scan_genes(genes, time, np.ones(len(time)), genes=["constant", "separating", "real"])
    scan = scan.set_index("gene")
    assert scan.loc["constant", ["coef", "p", "fdr"]].isna().all()
    assert scan.loc["separating", ["coef", "p", "fdr"]].isna().all()
    assert np.isfinite(scan.loc["real", "fdr"])


def test_extreme_covariates_do_not_overflow():
    rng = np.random.default_rng(3)
    time, event = rng.exponential(size=60), np.ones(60)
    x = rng.standard_cauchy(size=(60, 1)) * 1e6
    assert np.isfinite(scan_genes(x, time, event, genes=["a"])["coef"]).all()


def test_a_scan_is_many_times_cheaper_than_a_loop():
    rng = np.random.default_rng(4)
    x, time, event = rng.normal(size=(500, 200)), rng.exponential(size=500), rng.random(500) < 0.4
    start = clock.process_time()
    scan = scan_genes(x, time, event, genes=[str(i) for i in range(200)])
    batched = clock.process_time() - start
    start = clock.process_time()
    for column in range(3):
        fitter = lifelines.CoxPHFitter().fit(frame(x[:, [column]], time, event), "time", "event")
        assert scan["coef"][column] / x[:, column].std(ddof=1) == pytest.approx(
            fitter.params_["x0"], abs=1e-5
        )
    loop = (clock.process_time() - start) / 3 * 200
    assert loop > 5 * batched  # about 100 in fact; a loose bound, as machines are shared
