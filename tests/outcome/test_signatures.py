from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from histogep.errors import InputError
from histogep.outcome.signatures import read_signatures, score_signatures

SHIPPED = "histogep/resources/signatures.yaml"


@pytest.fixture(scope="module")
def signatures(request):
    return read_signatures(request.config.rootpath / SHIPPED)


def values(genes, n=6, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(rng.uniform(0.1, 3, (n, len(genes))), columns=genes)


def test_the_shipped_signatures_are_the_published_ones(signatures):
    assert tuple(signatures["cytolytic"].weights) == ("GZMA", "PRF1")
    inflamed = signatures["t_cell_inflamed"]
    assert len(inflamed.weights) == 18
    assert len(inflamed.subtract) == 11
    assert [gene for gene, weight in inflamed.weights.items() if weight < 0] == ["CD276"]
    assert sum(inflamed.weights.values()) == pytest.approx(1.1, abs=0.1)
    assert len(signatures["chemokine"].weights) == 12
    assert {"ifn_gamma", "proliferation", "tls", "immune", "stroma"} <= set(signatures)
    assert all(signature.reference for signature in signatures.values())
    assert "EIF1AY" not in signatures["tls"].weights


def test_cytolytic_is_the_geometric_mean_of_linear_values(signatures):
    table = values(["GZMA", "PRF1", "TP53"])
    scores, _ = score_signatures(table, signatures)
    linear = np.expm1(table[["GZMA", "PRF1"]]) + 0.01
    np.testing.assert_allclose(scores["cytolytic"], stats.gmean(linear, axis=1))
    log2 = np.log2(np.expm1(table) + 0.001)  # the same expression on another scale
    again, _ = score_signatures(log2, signatures, linear=lambda x: 2**x - 0.001)
    np.testing.assert_allclose(again["cytolytic"], scores["cytolytic"])


def test_z_scores_have_a_mean_in_place_of_a_geometric_mean(signatures):
    table = values(["GZMA", "PRF1"]) - 2
    scores, _ = score_signatures(table, signatures, linear=None)
    np.testing.assert_allclose(scores["cytolytic"], table.mean(axis=1))


def test_housekeeping_is_subtracted_when_half_of_it_is_there(signatures, caplog):
    inflamed = signatures["t_cell_inflamed"]
    genes = [*inflamed.weights, *inflamed.subtract]
    table = values(genes)
    first, _ = score_signatures(table, {"t": inflamed})
    shifted, _ = score_signatures(table + 1, {"t": inflamed})
    np.testing.assert_allclose(first["t"], shifted["t"])  # a library-size shift cancels
    base = table[list(inflamed.subtract)].mean(axis=1)
    weights = pd.Series(inflamed.weights)
    expected = (table[weights.index].sub(base, axis=0) * weights).sum(axis=1) / weights.sum()
    np.testing.assert_allclose(first["t"], expected)
    few, _ = score_signatures(table.drop(columns=list(inflamed.subtract[:6])), {"t": inflamed})
    caplog.set_level("INFO")
    np.testing.assert_allclose(few["t"], (table[weights.index] @ weights) / weights.sum())


def test_an_alias_stands_in_for_a_symbol(signatures):
    proliferation = signatures["proliferation"]
    genes = ["KNTC2" if gene == "NDC80" else gene for gene in proliferation.weights]
    _, coverage = score_signatures(values(genes), {"p": proliferation})
    assert coverage["n_found"][0] == 11


def test_below_its_coverage_a_signature_is_not_scored(signatures, caplog):
    caplog.set_level("INFO")
    table = values(["GZMA", "CCL2", "CCL3", "CCL4", "CCL5", "CCL8", "CCL18"])
    scores, coverage = score_signatures(table, signatures)
    coverage = coverage.set_index("signature")
    assert list(scores) == ["chemokine"]
    assert coverage.loc["chemokine", "coverage"] == 0.5
    assert not coverage.loc["cytolytic", "scored"]
    assert coverage.loc["cytolytic", "missing"] == "PRF1"
    assert "cytolytic is not scored: 1 of its 2 genes" in caplog.text
    np.testing.assert_allclose(scores["chemokine"], table.drop(columns="GZMA").mean(axis=1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("genes: [A]", "no `signatures:`"),
        ("signatures: {x: {formula: median, genes: [A]}}", "formula 'median' is none of"),
        ("signatures: {x: {formula: mean, gene: [A]}}", "unknown keys gene"),
        ("signatures: {x: {formula: mean, genes: [A, A]}}", "a gene stands twice"),
        ("signatures: {x: {formula: weighted-mean, genes: [A]}}", "weights belong to"),
        ("signatures: {x: {formula: mean, genes: [A], min_coverage: 2}}", "min_coverage 2"),
        ("signatures: [", "not readable as YAML"),
    ],
)
def test_a_faulty_file_is_refused(tmp_path, text, message):
    path = tmp_path / "signatures.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_signatures(path)


@pytest.mark.parametrize(
    ("cohort", "low", "high"), [("Mariathasan", 0.59, 0.63), ("Hugo", 0.2, 0.8), ("Riaz", 0.2, 1)]
)
def test_cytolytic_activity_in_patients_under_immunotherapy(
    shared_data, signatures, cohort, low, high
):
    from sklearn.metrics import roc_auc_score

    folder = shared_data / "icb"
    expression = pd.read_csv(folder / f"ICB_small_{cohort}_expr.csv.gz", index_col=0).T
    response = pd.read_csv(folder / f"ICB_small_{cohort}_clin.csv", index_col=0)["response"]
    known = response.dropna().index
    scores, _ = score_signatures(expression.loc[known], signatures, linear=lambda x: 2**x - 0.001)
    assert {"cytolytic", "t_cell_inflamed", "ifn_gamma", "chemokine"} <= set(scores)
    auroc = roc_auc_score(response[known] == "R", scores["cytolytic"])
    assert low < auroc < high


def test_without_its_large_weights_a_signature_is_not_turned_round(tmp_path, caplog):
    """Weights of either sign: what is left after a gene is lost may sum to less than nothing."""
    path = tmp_path / "own.yaml"
    path.write_text(
        "signatures:\n"
        "  risk: {formula: weighted-mean, min_coverage: 0.5, weights: {A: 1.0, B: -0.6, C: -0.3, D: 0.2}}\n"
    )
    own = read_signatures(path)
    table = pd.DataFrame({"A": [0.0, 1, 2], "B": [2.0, 1, 0], "C": [2.0, 1, 0], "D": [1.0, 1, 1]})
    scores, _ = score_signatures(table, own)
    assert scores["risk"].is_monotonic_increasing
    caplog.set_level("INFO")
    scores, coverage = score_signatures(table.drop(columns="A"), own)
    assert not coverage["scored"][0]
    assert scores.empty or "risk" not in scores
    assert "3 of its 4 genes with -233 % of its weight" in caplog.text


def test_what_a_formula_does_not_do_is_refused(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(
        "signatures:\n  x: {formula: geometric-mean, genes: [A, B], subtract: [C], min_coverage: 0.5}\n"
    )
    with pytest.raises(InputError, match="x: subtract belongs to a mean or weighted-mean"):
        read_signatures(path)
