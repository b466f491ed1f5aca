from __future__ import annotations

import gseapy
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.duration.hazard_regression import PHReg

from histogep.enrichment.gsea import enrich_contrast, running_sum
from histogep.enrichment.patient_permutation import (
    enrichment_scores,
    normalise_by_sign,
    subtype_labels,
    welch_t,
)
from histogep.errors import InputError
from histogep.stats.cox import normal_scores, permuted_score_z, scan_genes

N_GENES = 120
SETS = {
    "planted": {
        "HAZARD": [f"G{i:03d}" for i in range(20)],
        "OTHER": [f"G{i:03d}" for i in range(20, 40)],
        "NOISE": [f"G{i:03d}" for i in range(60, 80)],
    }
}


def cohort(n=24, seed=1, hazard=1.8):
    """Patients with two programmes of 20 genes each; the first one raises the hazard."""
    rng = np.random.default_rng(seed)
    programmes = rng.normal(size=(2, n))
    genes = 0.1 * rng.normal(size=(n, N_GENES))
    genes[:, :20] += 0.2 * programmes[0][:, None]
    genes[:, 20:40] += 0.2 * programmes[1][:, None]
    time = 24 * rng.exponential(size=n) / np.exp(hazard * programmes[0])
    limit = rng.uniform(24, 150, n)
    table = pd.DataFrame(genes, columns=[f"gene:G{i:03d}" for i in range(N_GENES)])
    return table.assign(
        patient=[f"P{i:02d}" for i in range(n)],
        time=np.minimum(time, limit).round(),  # with ties
        event=(time <= limit).astype(float),
        response=(programmes[1] + 0.3 * rng.normal(size=n) > 0).astype(float),
        share_A=(programmes[1] > 0) * 0.9,
        share_B=(programmes[1] <= 0) * 0.9,
    )


def enriched(table, folder, contrast="survival", *, permutations=300, subtype=None, gene_sets=SETS):
    """Return gsea of a contrast, its ranking made as fit_survival and predict_response do."""
    sources = {"patients": table}
    if contrast == "survival":
        genes = table.filter(like="gene:")
        names = [name.removeprefix("gene:") for name in genes]
        scan = scan_genes(
            genes.to_numpy(), table["time"], table["event"], genes=names, scale="normal_scores"
        )
        scan.to_csv(folder / "cox.tsv", sep="\t", index=False)
        sources["cox"] = folder / "cox.tsv"
    ranking, gsea, title, reason = enrich_contrast(
        contrast,
        sources,
        gene_sets,
        settings={"permutations": 200, "patient_permutations": permutations, "subtype": subtype},
        gene_scale="normal_scores",
        seed=1,
    )
    return gsea, title, reason


def test_enrichment_scores_are_gseapy_s_in_every_ranking():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(6, N_GENES)) + np.linspace(-1, 1, 6)[:, None]
    genes = [f"G{i:03d}" for i in range(N_GENES)]
    members = [np.arange(20), np.arange(100, 108), rng.choice(N_GENES, 30, replace=False)]
    ours = enrichment_scores(scores, members)
    for row, values in enumerate(scores):
        ranked = pd.DataFrame({"gene": genes, "score": values})
        ranked = ranked.sort_values("score", ascending=False)
        theirs = gseapy.prerank(
            ranked, {str(i): [genes[g] for g in m] for i, m in enumerate(members)},
            min_size=2, permutation_num=10, threads=1, seed=1, outdir=None, no_plot=True,
        ).res2d.set_index("Term")["ES"]  # fmt: skip
        for number, columns in enumerate(members):
            assert ours[row, number] == pytest.approx(theirs[str(number)], abs=1e-6)
            inside = np.isin(ranked.index, columns)
            path = running_sum(ranked["score"].to_numpy(), inside)
            assert ours[row, number] == pytest.approx(path[np.abs(path).argmax()], abs=1e-12)


def test_the_score_statistic_is_statsmodels_own_under_permuted_outcomes():
    table = cohort(n=40)
    values = table[["gene:G000", "gene:G050"]].to_numpy()
    time, event = table["time"].to_numpy(), table["event"].to_numpy(int)
    assert len(set(time[event == 1])) < event.sum()  # tied events
    rng = np.random.default_rng(1)
    outcome_of = np.array([np.arange(40), rng.permutation(40), rng.permutation(40)])
    z = permuted_score_z(values, time, event, outcome_of=outcome_of)
    for draw, rows in enumerate(outcome_of):
        for gene in range(2):
            model = PHReg(time[rows], values[:, [gene]], status=event[rows], ties="efron")
            at_zero = np.zeros(1)
            expected = model.score(at_zero)[0] / np.sqrt(-model.hessian(at_zero)[0, 0])
            assert z[draw, gene] == pytest.approx(expected, abs=1e-8)
    scaled = permuted_score_z(values, time, event, outcome_of=outcome_of, scale="normal_scores")
    again = permuted_score_z(normal_scores(values), time, event, outcome_of=outcome_of)
    np.testing.assert_allclose(scaled, again)


def test_welch_t_is_scipy_s():
    rng = np.random.default_rng(0)
    values, labels = rng.normal(size=(20, 5)), rng.random((3, 20)) < 0.4
    for row, flags in zip(welch_t(values, labels), labels, strict=True):
        theirs = stats.ttest_ind(values[flags], values[~flags], equal_var=False).statistic
        np.testing.assert_allclose(row, theirs)


def test_scores_are_normalised_by_those_of_their_sign():
    scores = np.array([[0.4], [0.2], [-0.1], [-0.3], [0.0]])
    np.testing.assert_allclose(
        normalise_by_sign(scores)[:, 0], [0.4 / 0.3, 0.2 / 0.3, -0.5, -1.5, 0.0]
    )


def test_the_planted_set_holds_against_permuted_patients(tmp_path):
    gsea, _, _ = enriched(cohort(), tmp_path)
    gsea = gsea.set_index("gene_set")
    assert gsea.loc["HAZARD", "significant"]
    assert gsea.index[0] == "HAZARD"
    assert gsea.loc["HAZARD", "nes_patients"] > 1
    assert gsea.loc["HAZARD", "p_patients"] >= 1 / 301  # never zero
    assert not gsea.loc[["OTHER", "NOISE"], "significant"].any()
    assert (gsea["n_patients"] == 24).all()


def test_too_few_permutations_for_the_number_of_sets_are_told(tmp_path, caplog):
    """The best set of a large collection cannot be significant, however strong: say so."""
    rng = np.random.default_rng(3)
    genes = [f"G{i:03d}" for i in range(40, N_GENES)]
    many = {f"R{i:02d}": list(rng.choice(genes, 8, replace=False)) for i in range(19)}
    sets = {"many": SETS["planted"] | many}  # 22 sets
    gsea, _, reason = enriched(cohort(), tmp_path, permutations=99, gene_sets=sets)
    best = gsea.set_index("gene_set").loc["HAZARD"]
    assert best["p_patients"] == 0.01
    assert not best["significant"]
    assert "many: of 22 sets at least 5 must beat all 99 permutations" in reason
    assert "set enrichment.patient_permutations to 440 or more" in reason
    assert reason in caplog.text
    gsea, _, reason = enriched(cohort(), tmp_path, permutations=440, gene_sets=sets)
    assert reason == ""
    assert gsea.set_index("gene_set").loc["HAZARD", "significant"]


def test_permuted_outcomes_give_no_hits_where_permuted_genes_do(tmp_path):
    """The defect: with genes that follow each other, a competitive p finds sets in nearly all."""
    table = cohort()
    competitive = significant = 0
    for seed in range(12):
        shuffled = table.copy()
        order = np.random.default_rng(seed).permutation(len(table))
        shuffled[["time", "event"]] = table[["time", "event"]].to_numpy()[order]
        gsea, _, _ = enriched(shuffled, tmp_path, permutations=200)
        competitive += (gsea["fdr"] < 0.05).any()
        significant += gsea["significant"].any()
    assert competitive >= 8
    assert significant <= 2  # of 12, 5 % each: more than 2 has a chance of 2 %


def test_a_subtype_is_compared_with_the_others(tmp_path):
    gsea, title, _ = enriched(cohort(), tmp_path, "subtype", subtype="A")
    assert "of expression subtype A" in title
    measured = cohort().assign(cnv_burden=0.1)
    assert "of copy-number subtype A" in enriched(measured, tmp_path, "subtype", subtype="A")[1]
    gsea = gsea.set_index("gene_set")
    assert gsea.loc["OTHER", "significant"]
    assert gsea.loc["OTHER", "nes"] > 0
    assert not gsea.loc["HAZARD", "significant"]
    against, _, _ = enriched(cohort(), tmp_path, "subtype", subtype="B")
    assert against.set_index("gene_set").loc["OTHER", "nes"] < 0
    with pytest.raises(InputError, match="no subtype is called 'C'; this cohort has A, B"):
        enriched(cohort(), tmp_path, "subtype", subtype="C")


def test_too_few_patients_of_a_subtype_are_told_and_stop_nothing(tmp_path):
    table = cohort()
    table.loc[2:, ["share_A", "share_B"]] = [0.0, 1.0]
    table.loc[:1, ["share_A", "share_B"]] = [1.0, 0.0]
    gsea, _, reason = enriched(table, tmp_path, "subtype", subtype="A")
    assert gsea.empty
    assert "2 patients of subtype A and 22 of others" in reason


def test_a_patient_without_a_profile_has_no_subtype():
    table = pd.DataFrame({"share_A": [0.6, 0.2, np.nan, 0.0], "share_B": [0.4, 0.8, np.nan, 0.0]})
    np.testing.assert_array_equal(subtype_labels(table, "A"), [1, 0, np.nan, np.nan])


def test_response_is_permuted_with_its_own_patients(tmp_path):
    table = cohort(n=40)
    table.loc[:1, "response"] = np.nan
    known = table["response"].notna()
    values = table.loc[known].filter(like="gene:").to_numpy()
    t = welch_t(values, (table.loc[known, "response"] == 1).to_numpy()[None])[0]
    genes = pd.DataFrame({"gene": [f"G{i:03d}" for i in range(N_GENES)], "t": t})
    genes.to_csv(tmp_path / "genes.tsv", sep="\t", index=False)
    _, gsea, _, _ = enrich_contrast(
        "response",
        {"patients": table, "response_genes": tmp_path / "genes.tsv"},
        SETS,
        settings={"permutations": 200, "patient_permutations": 200},
        gene_scale="normal_scores",
        seed=1,
    )
    gsea = gsea.set_index("gene_set")
    assert (gsea["n_patients"] == 38).all()
    assert gsea["significant"].tolist() == [True, False, False]
    assert gsea.index[0] == "OTHER"
