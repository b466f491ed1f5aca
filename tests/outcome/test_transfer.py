from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from histogep.errors import InputError
from histogep.outcome.transfer import transfer_response
from histogep.report.figures.outcome import transfer_matrix

QUICK = {"bootstraps": 200, "inner_folds": 3}


def cohort(n, *, seed, shift=0.0, stretch=1.0, strength=3.0, genes=40):
    """Patients whose response follows a level that 12 genes show, on a platform of its own."""
    rng = np.random.default_rng(seed)
    level = rng.permutation(np.linspace(-1.7, 1.7, n))
    values = 0.5 * rng.normal(size=(n, genes))
    values[:, :12] += level[:, None]
    table = pd.DataFrame(shift + stretch * values, columns=[f"gene:G{i}" for i in range(genes)])
    response = (rng.random(n) < 1 / (1 + np.exp(-strength * level))).astype(float)
    return table.assign(patient=[f"{seed}-{i}" for i in range(n)], response=response)


@pytest.fixture(scope="module")
def planted():
    tables = {
        "a": cohort(60, seed=1),
        "b": cohort(50, seed=2, shift=7, stretch=4, genes=30),
        "noise": cohort(200, seed=4, strength=0),
    }
    return tables, transfer_response(tables, settings=QUICK, seed=1)


def test_a_response_is_carried_over_a_shift_of_platform(planted):
    _, result = planted
    rows = result.performance.set_index(["train", "test"])
    for pair in (("a", "b"), ("b", "a")):
        assert rows.loc[pair, "auroc"] > 0.8
        assert rows.loc[pair, "ci_low"] > 0.5
        assert rows.loc[pair, "p"] < 0.005
        assert rows.loc[pair, "n_genes"] == 30
    assert rows.loc[("a", "noise"), "ci_low"] < 0.5 < rows.loc[("a", "noise"), "ci_high"]
    assert rows.loc[("a", "noise"), "p"] > 0.02


def test_the_figures_are_scikit_learn_s(planted):
    _, result = planted
    for row in result.performance.itertuples():
        part = result.scores.query("train == @row.train and test == @row.test")
        assert row.auroc == pytest.approx(roc_auc_score(part["response"], part["score"]))
        assert row.auprc == pytest.approx(average_precision_score(part["response"], part["score"]))


def test_the_test_responses_are_not_learnt_from(planted):
    tables, result = planted
    turned = tables["b"].assign(response=1 - tables["b"]["response"])
    again = transfer_response({**tables, "b": turned}, settings=QUICK, seed=1)

    def scores(result):
        return result.scores.query("train == 'a' and test == 'b'")["score"].to_numpy()

    np.testing.assert_allclose(scores(result), scores(again))
    rows = again.performance.set_index(["train", "test"])
    assert rows.loc[("a", "b"), "auroc"] < 0.2


def test_the_figure_holds_every_pair(planted):
    texts = [t.get_text() for t in transfer_matrix(planted[1].performance).axes[0].texts]
    assert len(texts) == 6
    row = planted[1].performance.iloc[0]
    assert texts[0].startswith(f"{row['auroc']:.2f}")


def test_refusals_and_ids_in_both_are_told(planted, caplog):
    tables, _ = planted
    with pytest.raises(InputError, match="a transfer needs two"):
        transfer_response({"a": tables["a"]}, settings=QUICK, seed=1)
    other = tables["b"].rename(columns=lambda name: name.replace("gene:G", "gene:X"))
    with pytest.raises(InputError, match="share no gene"):
        transfer_response({"a": tables["a"], "b": other}, settings=QUICK, seed=1)
    same = transfer_response({"a": tables["a"], "b": tables["a"]}, settings=QUICK, seed=1)
    assert "60 patients of a stand in b too" in caplog.text
    assert same.performance["auroc"].isna().all()
    assert same.performance["n_shared"].tolist() == [60, 60]
    assert len(same.scores) == 0
    assert len(transfer_matrix(same.performance).axes[0].texts) == 0


def test_patients_of_both_cohorts_do_not_train(planted):
    """Whose response is known by heart is told apart with features of pure noise, too."""
    tables, _ = planted
    both = {"a": tables["a"], "b": tables["noise"]}
    apart = transfer_response(both, settings=QUICK, seed=1)
    joined = pd.concat([tables["a"], tables["noise"].iloc[:100]], ignore_index=True)
    mixed = transfer_response({"a": joined, "b": tables["noise"]}, settings=QUICK, seed=1)
    row = mixed.performance.iloc[0]
    assert (row["n_shared"], row["n_train"]) == (100, 60)
    assert row["auroc"] == pytest.approx(apart.performance.iloc[0]["auroc"], abs=0.1)
    # Under other ids they are found by their images; a cohort of measured expression has none.
    renamed = joined.assign(
        patient=[f"R{number}" for number in range(len(joined))],
        images=[*[""] * 60, *[f"{number:064x},{number + 500:064x}" for number in range(100)]],
    )
    noise = tables["noise"].assign(
        images=[f"{number:064x}" for number in range(len(tables["noise"]))]
    )
    hidden = transfer_response({"a": renamed, "b": noise}, settings=QUICK, seed=1)
    row = hidden.performance.iloc[0]
    assert (row["n_shared"], row["n_train"]) == (100, 60)
    alone = transfer_response({"a": renamed, "b": tables["noise"]}, settings=QUICK, seed=1)
    assert alone.performance["n_shared"].tolist() == [0, 0]
    # Measured expression has no images, but its own ranks, on whatever scale.
    measured = renamed.drop(columns="images").assign(source="measured")
    genes = [name for name in measured if name.startswith("gene:")]
    measured[genes] = np.exp(measured[genes])
    table = tables["noise"].assign(source="measured")
    found = transfer_response({"a": measured, "b": table}, settings=QUICK, seed=1)
    row = found.performance.iloc[0]
    assert (row["n_shared"], row["n_train"]) == (100, 60)
    assert row["auroc"] == pytest.approx(apart.performance.iloc[0]["auroc"], abs=0.1)
    # A predicted cohort is compared by images alone: predictions of two patients may be alike.
    mixed = transfer_response({"a": measured, "b": tables["noise"]}, settings=QUICK, seed=1)
    assert mixed.performance["n_shared"].tolist() == [0, 0]


def test_immunotherapy_cohorts_are_carried_over(shared_data, request):
    from histogep.outcome.bulk_patients import summarise_measured
    from histogep.outcome.signatures import read_signatures
    from histogep.study.clinical import read_clinical

    signatures = read_signatures(request.config.rootpath / "histogep/resources/signatures.yaml")
    tables = {}
    for name in ("Hugo", "Riaz", "Mariathasan"):
        tables[name], _ = summarise_measured(
            shared_data / f"icb/ICB_small_{name}_expr.csv.gz",
            scale="log2_tpm",
            patients=read_clinical(shared_data / f"icb/ICB_small_{name}_clin.csv"),
            signatures=signatures,
        )
    rows = transfer_response(tables, settings=QUICK, seed=1).performance
    assert len(rows) == 6
    sizes = rows.drop_duplicates("test").set_index("test")
    assert sizes.loc["Mariathasan", ["n_test", "test_positives"]].tolist() == [133, 42]
    assert sizes.loc["Hugo", ["n_test", "test_positives"]].tolist() == [27, 14]
    assert sizes.loc["Riaz", ["n_test", "test_positives"]].tolist() == [14, 4]
    assert (rows["n_genes"] > 1500).all()
    assert rows["auroc"].between(0.2, 0.9).all()  # nothing carries over perfectly here: a leak
    assert (rows["ci_low"] <= rows["auroc"]).all()
    assert (rows["auroc"] <= rows["ci_high"]).all()
