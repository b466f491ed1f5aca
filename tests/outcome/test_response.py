from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score

from histogep.errors import InputError
from histogep.outcome.response import compare_genes, predict_response
from histogep.outcome.signatures import read_signatures, score_signatures
from histogep.report.figures.outcome import roc
from histogep.stats.discrimination import bootstrap_weights, weighted_auroc, weighted_precision
from histogep.stats.penalised import fit_logistic

QUICK = {"repeats": 2, "permutations": 12, "refits": 20, "bootstraps": 300, "inner_folds": 3}


def simulate(n=30, seed=1, strength=3.0):
    """Patients whose response follows an immune level that 15 genes and a signature show."""
    rng = np.random.default_rng(seed)
    immune = rng.permutation(np.linspace(-1.7, 1.7, n))
    genes = 0.1 * rng.normal(size=(n, 50))
    genes[:, :15] += 0.2 * immune[:, None]
    genes[:, 15:30] += 0.2 * rng.normal(size=(n, 1))
    table = pd.DataFrame(genes, columns=[f"gene:G{i:02d}" for i in range(50)])
    return table.assign(
        patient=[f"{i:03d}" for i in range(n)],
        response=(rng.random(n) < 1 / (1 + np.exp(-strength * immune))).astype(float),
        age=rng.normal(60, 10, n),
        **{"signature:immune": immune + 0.3 * rng.normal(size=n), "signature:none": rng.random(n)},
    )


@pytest.fixture(scope="module")
def planted():
    table = simulate()
    return table, predict_response(table, settings=QUICK, seed=1)


def test_the_planted_response_is_found(planted):
    table, result = planted
    auroc = result.performance.query("metric == 'auroc'").set_index("model")
    assert auroc.loc["image", "value"] > 0.75
    assert auroc.loc["image", "p"] == pytest.approx(1 / 13)
    assert auroc.loc["immune", "value"] > 0.75
    assert auroc.loc["immune", "p"] < 0.01
    assert auroc.loc["none", "p"] > 0.05
    assert auroc.loc["clinical", "value"] < auroc.loc["image", "value"]
    assert (result.performance["null"] < result.performance["null_upper"]).all()
    found = set(result.genes.query("fdr < 0.05")["gene"])
    assert len(found & {f"G{i:02d}" for i in range(15)}) >= 12
    assert len(found - {f"G{i:02d}" for i in range(15)}) <= 2


def test_the_null_is_that_of_the_permuted_procedure():
    """8 responders of 30: a random score has an average precision of .34, not of 8 / 30."""
    table = simulate(strength=0)
    table["response"] = np.repeat([1.0, 0.0], [8, 22])
    result = predict_response(table, settings=QUICK | {"repeats": 1}, seed=3)
    rows = result.performance.set_index(["model", "metric"])
    rng = np.random.default_rng(0)
    truth = table["response"]
    chance = [average_precision_score(truth, rng.random(30)) for _ in range(2000)]
    assert np.mean(chance) > 8 / 30 + 0.05
    assert rows.loc[("immune", "auprc"), "null"] == pytest.approx(np.mean(chance), abs=0.015)
    upper = np.quantile(chance, 0.95)
    assert rows.loc[("immune", "auprc"), "null_upper"] == pytest.approx(upper, abs=0.04)
    assert rows.loc[("immune", "auroc"), "null"] == pytest.approx(0.5, abs=0.01)
    # Out of fold a useless model ranks below a half.
    assert 0.36 < rows.loc[("image", "auroc"), "null"] < 0.5


def test_figures_of_a_signature_equal_scikit_learn(planted):
    table, result = planted
    values = result.performance[result.performance["model"] == "immune"].set_index("metric")
    score, truth = table["signature:immune"], table["response"]
    assert values.loc["auroc", "value"] == pytest.approx(roc_auc_score(truth, score))
    assert values.loc["auprc", "value"] == pytest.approx(average_precision_score(truth, score))
    assert (values["ci_low"] < values["value"]).all()


def test_two_runs_are_identical(planted):
    table, result = planted
    again = predict_response(table, settings=QUICK, seed=1)
    pd.testing.assert_frame_equal(result.performance, again.performance)
    pd.testing.assert_frame_equal(result.scores, again.scores)


def test_the_figure_draws_every_learnt_model(planted):
    _, result = planted
    axes = roc(result.scores, result.performance).axes
    assert [line.get_label() for line in axes[0].lines[:3]] == [
        *("clinical", "image", "clinical+image")
    ]
    rows = result.performance.set_index(["model", "metric"])
    # Every area stands beside the null of the permuted procedure.
    for ax, metric in ((axes[2], "auroc"), (axes[3], "auprc")):
        for label in ax.get_yticklabels():
            row = rows.loc[(label.get_text().split()[0], metric)]
            expected = f"null {row['null']:.2f}, 95 % {row['null_upper']:.2f}"
            assert label.get_text().endswith(expected)


def test_neighbourhoods_are_a_block_of_their_own_where_asked_for():
    """A response that only the neighbourhoods tell, among genes that tell nothing."""
    table = simulate(n=40, strength=0).drop(columns=["signature:immune", "signature:none"])
    rng = np.random.default_rng(0)
    shift = 2.5 * (table["response"].to_numpy() - 0.5)
    table["neighbourhood:immune_infiltration"] = shift + 0.3 * rng.normal(size=len(table))
    few = {**QUICK, "repeats": 1}
    scores = {}
    for asked in (False, True):
        settings = {**few, "neighbourhoods": asked}
        performance = predict_response(table, settings=settings, seed=1).performance
        scores[asked] = performance.set_index(["model", "metric"]).loc[("image", "auroc"), "value"]
    assert scores[False] < 0.75
    assert scores[True] > 0.9


def test_responses_without_cause_score_one_half():
    values, ps, hits = [], [], 0
    for seed in range(5):
        table = simulate(n=50, seed=seed, strength=0)
        result = predict_response(table, settings=QUICK | {"repeats": 1}, seed=seed)
        row = result.performance.query("metric == 'auroc' and model == 'image'").iloc[0]
        values.append(row["value"])
        ps.append(row["p"])
        hits += (result.genes["fdr"] < 0.05).sum()
    assert 0.38 < np.mean(values) < 0.6
    assert np.mean(ps) > 0.2
    assert hits <= 2  # of 250 genes


@pytest.mark.parametrize("c", [0.05, 1.0, 20.0])
def test_the_batched_logistic_regression_equals_scikit_learn(c):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 60, 4))
    y = (rng.random(60) < 0.3).astype(int)
    coef, intercept = fit_logistic(x, y, penalty=1 / (c * 60))
    for i in range(3):
        model = LogisticRegression(C=c, tol=1e-10, max_iter=5000).fit(x[i], y)
        np.testing.assert_allclose(coef[i], model.coef_[0], atol=1e-5)
        assert intercept[i] == pytest.approx(model.intercept_[0], abs=1e-5)


def test_weighted_areas_equal_scikit_learn():
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(0, 8, 40).astype(float), rng.integers(0, 2, 40)
    weights = bootstrap_weights(40, draws=6, seed=1, strata=truth)
    assert (weights @ truth == truth.sum()).all()
    for ours, theirs in (
        (weighted_auroc, roc_auc_score),
        (weighted_precision, average_precision_score),
    ):
        values = ours(scores, weights * truth, weights)
        for draw, value in zip(weights, values, strict=True):
            assert value == pytest.approx(theirs(truth, scores, sample_weight=draw))
        # Permuted labels are another weighting of the positives.
        labels = np.array([rng.permutation(truth) for _ in range(5)])
        values = ours(scores, labels, np.ones(labels.shape))
        for label, value in zip(labels, values, strict=True):
            assert value == pytest.approx(theirs(label, scores))
    assert np.isnan(weighted_auroc(scores, np.ones((1, 40)), np.ones((1, 40)))).all()


def test_gene_comparison_equals_scipy_and_scikit_learn():
    rng = np.random.default_rng(0)
    values, response = rng.normal(size=(25, 6)), np.repeat([0, 1], [15, 10])
    values[:, 5] = 1.0
    table = compare_genes(values, response, genes=list("abcdef")).set_index("gene")
    for column, gene in enumerate("abcde"):
        yes, no = values[response == 1, column], values[response == 0, column]
        expected = stats.ttest_ind(yes, no, equal_var=False)
        assert table.loc[gene, "t"] == pytest.approx(expected.statistic)
        assert table.loc[gene, "p"] == pytest.approx(expected.pvalue)
        assert table.loc[gene, "auroc"] == pytest.approx(roc_auc_score(response, values[:, column]))
    assert table.loc["f", ["t", "p", "fdr"]].isna().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.assign(response=1.0), "all 30 patients with a known response are responders"),
        (lambda t: t.assign(response=np.nan), "no patient has a known response"),
        (lambda t: t.assign(response=[1.0] * 2 + [0.0] * 28), "2 responders and 28 non-responders"),
        (lambda t: t.assign(response=[3.0, *t["response"][1:]]), "other than 0 and 1: 000"),
        (lambda t: t.drop(columns="response"), "no column 'response'"),
        (lambda t: t[["patient", "response"]], "nothing to score a response with"),
    ],
)
def test_refusals_say_what_is_wrong(change, message):
    with pytest.raises(InputError, match=message):
        predict_response(change(simulate()), settings=QUICK, seed=1)


def test_few_responders_mean_fewer_folds(caplog):
    table = simulate()
    table["response"] = [1.0] * 4 + [0.0] * 26
    result = predict_response(table, settings=QUICK, seed=1)
    assert "4 folds instead of 5" in caplog.text
    assert set(",".join(result.scores["fold"]).split(",")) == {"1", "2", "3", "4"}


def test_imvigor_scores_its_known_cytolytic_auroc(shared_data, request):
    folder = shared_data / "icb"
    expression = pd.read_csv(folder / "ICB_small_Mariathasan_expr.csv.gz", index_col=0).T
    clinical = pd.read_csv(folder / "ICB_small_Mariathasan_clin.csv", index_col=0)
    signatures = read_signatures(request.config.rootpath / "histogep/resources" / "signatures.yaml")
    scores, _ = score_signatures(expression, signatures, linear=lambda x: 2**x - 0.001)
    table = scores.add_prefix("signature:").assign(
        patient=clinical["patientid"], response=clinical["response"].map({"R": 1.0, "NR": 0.0})
    )
    result = predict_response(table.reset_index(drop=True), settings=QUICK | {"repeats": 1}, seed=1)
    row = result.performance.query("model == 'cytolytic' and metric == 'auroc'").iloc[0]
    assert row["value"] == pytest.approx(0.61, abs=0.02)
    assert (row["n"], row["positives"]) == (133, 42)
    assert row["ci_low"] < row["value"] < row["ci_high"]
    assert 0 < row["p"] < 0.1
