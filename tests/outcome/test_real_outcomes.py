"""The statistics on measured expression of TCGA-BRCA: an oracle, and an outcome without cause."""

from __future__ import annotations

import lifelines
import numpy as np
import pandas as pd
import pytest

from histogep.outcome.bulk_patients import summarise_measured
from histogep.outcome.patients import GENE, image_columns
from histogep.outcome.survival import fit_survival
from histogep.stats.cox import normal_scores, scan_genes
from histogep.study.clinical import read_clinical


@pytest.fixture(scope="module")
def brca(shared_data):
    path = shared_data / "tcga/tcga_brca_all_clean.csv.zip"
    return summarise_measured(path, scale="zscore", patients=read_clinical(path), signatures={})[0]


@pytest.mark.parametrize("scale", ["as_given", "normal_scores"])
def test_genes_of_tcga_brca_equal_lifelines(brca, scale):
    genes = ["gene:ERBB2", "gene:CD3D", "gene:TP53", "gene:GALP"]
    values = brca[genes].to_numpy(float)
    scan = scan_genes(values, brca["time"], brca["event"], genes=genes, scale=scale)
    values = normal_scores(values) if scale == "normal_scores" else values
    options = {"precision": 1e-12, "r_precision": 1e-14}  # its default stops 1e-5 short
    for gene, x in enumerate(((values - values.mean(axis=0)) / values.std(axis=0, ddof=1)).T):
        table = pd.DataFrame({"x": x, "time": brca["time"], "event": brca["event"]})
        fitted = lifelines.CoxPHFitter().fit(table, "time", "event", fit_options=options)
        assert scan["coef"][gene] == pytest.approx(fitted.params_["x"], abs=1e-6)
        assert scan["se"][gene] == pytest.approx(fitted.standard_errors_["x"], abs=1e-6)
        assert scan["p"][gene] == pytest.approx(fitted.summary["p"]["x"], rel=1e-5)


def test_immune_genes_stand_out_and_a_permuted_outcome_has_no_gene(brca):
    genes, _, _ = image_columns(brca)
    values = brca[genes].to_numpy(float)
    time, event = brca["time"].to_numpy(), brca["event"].to_numpy()
    scan = scan_genes(values, time, event, genes=genes, scale="normal_scores")
    strongest = scan.sort_values("p").head(25).set_index("gene")
    immune = {GENE + name for name in ("CD3D", "CD6", "CD79A", "MS4A1", "KLRB1", "CCL19", "CD74")}
    assert len(immune & set(strongest.index)) >= 4
    assert (strongest.loc[list(immune & set(strongest.index)), "hr"] < 1).all()
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(len(time))
        permuted = scan_genes(values, time[order], event[order], genes=genes, scale="normal_scores")
        assert (permuted["fdr"].dropna() > 0.05).all()


def test_a_permuted_outcome_of_tcga_brca_scores_one_half(brca):
    order = np.random.default_rng(1).permutation(len(brca))
    table = brca[["patient", "source", *image_columns(brca)[0][:300]]].copy()
    table[["time", "event"]] = brca[["time", "event"]].to_numpy()[order]
    settings = {"repeats": 1, "shuffles": 0, "refits": 5, "inner_folds": 3}
    row = fit_survival(table, settings=settings, seed=1).concordance.iloc[0]
    assert row["model"] == "expression"
    assert (row["n"], row["events"]) == (956, 130)
    assert row["ci_low"] < 0.5 < row["ci_high"]
