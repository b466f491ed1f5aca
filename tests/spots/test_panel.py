from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import sparse

from histogep.errors import InputError
from histogep.spots.matrices import expression_of
from histogep.spots.normalise import add_expression
from histogep.spots.panel import choose_panel, panel_slides
from histogep.spots.variable_genes import score_genes
from histogep.study.settings import complete_settings

REPOSITORY = Path(__file__).resolve().parents[2]
SCHEMA = yaml.safe_load((REPOSITORY / "config/schemas/config.schema.yaml").read_text())
DEFAULTS = complete_settings({"study": "s", "slides": "s.tsv"}, SCHEMA)["genes"]

SETTINGS = {
    "method": "moran",
    "p": 0.01,
    "min_moran": 0.3,
    "min_genes": 2,
    "max_genes": 3,
    "markers": True,
    "exclude": ["^RP[SL]", "^MT-"],
    "extended_min_detected": 0.05,
    "extended_max_genes": 7,
}
MARKERS = pd.DataFrame({"lineage": ["t_cell"], "gene": ["CD3D"]})


def _scores(**moran):
    genes = ["A", "B", "C", "D", "CD3D", "RPL3", "MT-CO1", "RARE"]
    value = pd.Series(moran).reindex(genes).fillna(0.0)
    return pd.DataFrame(
        {
            "gene": genes,
            "moran_i": value.to_numpy(),
            "p": np.where(value > 0, 1e-5, 0.5),
            "fdr": 0.5,
            "mean": np.arange(8.0),
            "dispersion": np.arange(8.0)[::-1],
            "detected": [1, 1, 1, 1, 0.5, 1, 1, 0.01],
        }
    )


def test_the_panel_takes_the_median_over_sections_and_leaves_ribosomes_out():
    high = {"A": 0.9, "B": 0.8, "C": 0.5, "D": 0.4, "RPL3": 1.0, "RARE": 1.0}
    low = {**high, "A": -0.5}
    lowest = {**low, "D": -0.9}  # its mean fails, its median passes
    panel = choose_panel(
        {"s1": _scores(**high), "s2": _scores(**low), "s3": _scores(**lowest)}, MARKERS, SETTINGS
    )
    assert list(panel.loc[panel["main"], "gene"]) == ["B", "C", "D", "CD3D"]
    assert panel.set_index("gene").loc["CD3D", "marker"] == "t_cell"
    assert set(panel["gene"]) == {"A", "B", "C", "D", "CD3D"}
    assert panel["extended"].all()


def test_both_panels_are_capped_and_markers_come_on_top():
    values = {"A": 0.9, "B": 0.8, "C": 0.5, "D": 0.4}
    settings = {**SETTINGS, "max_genes": 2, "extended_max_genes": 4}
    panel = choose_panel({"s": _scores(**values)}, MARKERS, settings)
    assert list(panel["gene"]) == ["A", "B", "CD3D", "D"]
    assert list(panel["main"]) == [True, True, True, False]
    shuffled = _scores(**values).sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(panel, choose_panel({"s": shuffled}, MARKERS, settings))


def test_too_few_passing_genes_are_filled_up_and_said(caplog):
    panel = choose_panel({"s": _scores(A=0.2, B=0.1)}, MARKERS, {**SETTINGS, "markers": False})
    assert list(panel.loc[panel["main"], "gene"]) == ["A", "B"]
    assert "only 0 genes pass" in caplog.text


def test_the_most_variable_genes_are_taken_when_asked():
    panel = choose_panel(
        {"s": _scores()}, MARKERS, {**SETTINGS, "method": "variable", "markers": False}
    )
    assert list(panel.loc[panel["main"], "gene"]) == ["A", "B", "C"]


def test_sections_without_a_common_gene_are_refused():
    other = _scores().assign(gene=[f"X{i}" for i in range(8)])
    with pytest.raises(InputError, match="same gene symbols"):
        choose_panel({"a": _scores(), "b": other}, MARKERS, SETTINGS)


def test_honest_panels_never_see_the_held_out_section_and_hist_ones_do():
    folds = pd.DataFrame(
        {
            "protocol": ["patient_cv"] * 3 + ["published"] * 2,
            "fold": ["patient_cv-1"] * 3 + ["published-1"] * 2,
            "slide": ["s1", "s2", "s3", "s1", "s2"],
            "patient": ["a", "b", "c", "a", "b"],
            "role": ["train", "validation", "test", "train", "test"],
        }
    )
    assert panel_slides(folds, "patient_cv-1") == (["s1", "s2"], ["a", "b"])
    assert panel_slides(folds, "published-1") == (["s1", "s2"], ["a", "b"])
    with pytest.raises(InputError, match="no fold"):
        panel_slides(folds, "patient_cv-9")


def _sections(**genes):
    rng = np.random.default_rng(0)
    tables = {}
    for slide, names in genes.items():
        table = pd.DataFrame({"gene": names, "moran_i": rng.random(len(names)), "p": 1e-5})
        tables[slide] = table.assign(fdr=0.5, mean=1.0, dispersion=1.0, detected=1.0)
    return tables


def test_a_section_that_costs_most_of_the_genes_is_named_before_they_are_lost(caplog):
    names = [f"GENE{i}" for i in range(100)]
    tables = _sections(s1=names, s2=names, s3=names[:30], s4=names)
    panel = choose_panel(tables, MARKERS, {**SETTINGS, "extended_max_genes": 200})
    assert len(panel) == 30
    assert "section s3 has 30 of the 100 genes that most sections have" in caplog.text
    assert "(100 would be shared without it, 30 with it)" in caplog.text
    assert "section s1" not in caplog.text
    assert "if case were ignored" not in caplog.text
    caplog.clear()
    choose_panel(_sections(s1=names, s2=names[10:]), MARKERS, SETTINGS)
    assert "genes are lost" not in caplog.text


def test_sections_whose_genes_go_by_other_names_are_refused_with_the_reason():
    names = [f"GENE{i}" for i in range(100)]
    ids = [f"ENSG{i:011d}" for i in range(100)]
    with pytest.raises(InputError, match=r"no gene is .*section s3 has 0 of the 100.*Ensembl ids"):
        choose_panel(_sections(s1=names, s2=names, s3=ids, s4=ids, s5=names), MARKERS, SETTINGS)
    mouse = [name.capitalize() for name in names]
    with pytest.raises(InputError, match="section s2 .*99 would be found if case were ignored"):
        choose_panel(_sections(s1=names, s2=[*mouse, "GENE1"], s3=names), MARKERS, SETTINGS)


def test_patterns_and_markers_that_hit_nothing_are_reported(caplog):
    ids = [f"ENSG{i:011d}" for i in range(100)]
    settings = {**SETTINGS, "exclude": ["^RP[SL]", "^MT-", "^ENSG0+7$"]}
    settings["extended_max_genes"] = 200
    panel = choose_panel(_sections(s1=ids, s2=ids), MARKERS, settings)
    assert len(panel) == 99
    assert "genes.exclude: the pattern ^RP[SL] finds none of 100 genes" in caplog.text
    assert "^ENSG0+7$" not in caplog.text
    assert (
        "0 of 1 lineage markers are measured in all sections; the genes go by Ensembl"
        in caplog.text
    )


def test_ribosomes_of_mice_are_left_out_like_those_of_men(caplog):
    names = ["Rpl3", "Rps6", "mt-Nd1", "Trp53", "Cd3d"]
    panel = choose_panel(_sections(s1=names, s2=names), MARKERS, SETTINGS)
    assert set(panel["gene"]) == {"Trp53", "Cd3d"}
    assert "finds none" not in caplog.text


def _limits(settings, **moran):
    panel = choose_panel(
        {"s": _scores(**moran)}, MARKERS, {**SETTINGS, "markers": False, **settings}
    )
    return panel.attrs["limits"], int(panel["main"].sum())


def test_the_setting_that_bound_is_named():
    values = {"A": 0.9, "B": 0.8, "C": 0.5, "D": 0.4}
    for settings, bound, passing, chosen, without in (
        ({"max_genes": 2}, "max_genes", 4, 2, 4),
        ({"max_genes": 4}, "", 4, 4, 4),
        ({"max_genes": 9, "min_moran": 0.45}, "min_moran", 3, 3, 4),
        ({"max_genes": 9, "min_moran": 0.95}, "min_moran", 0, 2, 4),
        ({"max_genes": 9, "p": 1e-9}, "p", 0, 2, 4),
        ({"max_genes": 9, "method": "variable"}, "extended_min_detected", 5, 5, 6),
    ):
        found, n = _limits(settings, **values)
        got = (found.bound_by, found.n_passing, found.n_chosen, found.n_without)
        assert got == (bound, passing, chosen, without), settings
        assert found.n_measured == 6  # without ribosomes and mitochondria
        assert n == found.n_chosen
        said = found.sentence({**SETTINGS, **settings})
        assert f"{chosen} genes, of {passing} that pass" in said
        assert (f"genes.{bound} " in said) == bool(bound)
        assert ("min_genes" in said) == (chosen > passing)


def test_the_defaults_give_a_panel_of_a_real_shallow_section(shared_data):
    """B4 of her2st: 283 spots with a median of 648 counts. At .4 hardly a gene passes."""
    table = pd.read_csv(shared_data / "her2st/counts/B4.tsv.gz", sep="\t", index_col=0)
    table = table.loc[:, (table > 0).mean() >= 0.05]
    spots = anndata.AnnData(sparse.csr_matrix(table.to_numpy(np.float32)))
    add_expression(spots)
    x, y = np.array([name.split("x") for name in table.index], float).T
    scores = score_genes(
        expression_of(spots),
        table.columns,
        x=x,
        y=y,
        row=y.astype(int),
        col=x.astype(int),
        neighbours=DEFAULTS["neighbours"],
    )
    limits = choose_panel({"B4": scores}, MARKERS, DEFAULTS).attrs["limits"]
    assert (limits.bound_by, limits.n_chosen) == ("max_genes", DEFAULTS["max_genes"])
    assert limits.n_passing > 3000
    strict = choose_panel({"B4": scores}, MARKERS, {**DEFAULTS, "min_moran": 0.4})
    assert strict.attrs["limits"].n_passing < DEFAULTS["min_genes"]
