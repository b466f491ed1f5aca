import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from histogep.genes import (
    choose_panel,
    morans_i,
    nearest_neighbours,
    panel_slides,
    score_genes,
)
from histogep.jobs import InputError

SETTINGS = {
    "method": "moran",
    "p": 0.01,
    "min_moran": 0.3,
    "min_genes": 2,
    "max_genes": 3,
    "markers": True,
    "exclude": ["^RP[SL]", "^MT-"],
    "wide_min_detected": 0.05,
    "wide_max_genes": 7,
}
MARKERS = pd.DataFrame({"lineage": ["t_cell"], "gene": ["CD3D"]})


def _lattice(n_rows=12, n_cols=11):
    row, col = (part.ravel() for part in np.mgrid[:n_rows, :n_cols])
    return row, col, col * 100.0, row * 100.0


@pytest.fixture
def section():
    rng = np.random.default_rng(3)
    row, col, x, y = _lattice()
    smooth = np.sin(row / 3)[:, None] * [2.0, 1.0, 0.0] + rng.normal(0, 1, (len(row), 3))
    return row, col, x, y, np.maximum(smooth, 0)


def test_morans_i_equals_squidpys_on_the_same_graph(section):
    import squidpy

    row, col, x, y, expression = section
    weights = nearest_neighbours(x, y, n_neighbours=15, tie=(row, col))
    data = anndata.AnnData(expression)
    data.obsp["spatial_connectivities"] = sparse.csr_matrix(weights)
    scores = squidpy.gr.spatial_autocorr(
        data, mode="moran", n_perms=None, transformation=False, copy=True, use_raw=False, n_jobs=1
    )
    value, _ = morans_i(expression, weights)
    np.testing.assert_allclose(
        value, scores.loc[data.var_names, "I"].to_numpy(), rtol=1e-9, atol=1e-12
    )


def test_p_equals_the_textbook_formula_under_randomisation(section):
    """Cliff & Ord written out with dense matrices, as spdep's moran.test(randomisation=TRUE)."""
    from scipy.stats import norm

    row, col, x, y, expression = section
    w = nearest_neighbours(x, y, n_neighbours=15, tie=(row, col)).toarray()
    value, p = morans_i(expression, w)
    n = len(x)
    for gene in range(expression.shape[1]):
        z = expression[:, gene] - expression[:, gene].mean()
        s0, s1 = w.sum(), 0.5 * ((w + w.T) ** 2).sum()
        s2 = ((w.sum(0) + w.sum(1)) ** 2).sum()
        b2 = n * (z**4).sum() / (z**2).sum() ** 2
        i = n / s0 * (z @ w @ z) / (z @ z)
        second = (
            n * ((n * n - 3 * n + 3) * s1 - n * s2 + 3 * s0**2)
            - b2 * ((n * n - n) * s1 - 2 * n * s2 + 6 * s0**2)
        ) / ((n - 1) * (n - 2) * (n - 3) * s0**2)
        z_score = (i + 1 / (n - 1)) / np.sqrt(second - 1 / (n - 1) ** 2)
        assert value[gene] == pytest.approx(i, rel=1e-9)
        assert p[gene] == pytest.approx(norm.sf(z_score), rel=1e-7)


def test_a_smooth_gene_stands_out_and_noise_does_not(section):
    row, col, x, y, expression = section
    weights = nearest_neighbours(x, y, n_neighbours=15, tie=(row, col))
    value, p = morans_i(expression, weights)
    assert value[0] > value[1] > value[2]
    assert p[0] < 1e-6
    assert p[2] > 1e-3


def test_constant_genes_have_no_autocorrelation_and_spoil_no_fdr(section):
    row, col, x, y, expression = section
    expression = sparse.csr_matrix(np.column_stack([expression, np.full(len(x), 2.0)]))
    scores = score_genes(
        expression, pd.Index(list("abcd")), x=x, y=y, row=row, col=col, neighbours=15
    ).set_index("gene")
    assert scores.loc["d", ["moran_i", "p"]].tolist() == [0, 1]
    assert scores.notna().all().all()
    assert scores.loc["a", "fdr"] < 0.01
    np.testing.assert_allclose(
        scores["variance"], expression.toarray().var(axis=0, ddof=1), atol=1e-12
    )


def test_ties_are_broken_by_the_rule_whatever_the_order_of_the_spots():
    row, col, x, y = _lattice(7, 7)
    weights = nearest_neighbours(x, y, n_neighbours=15, tie=(row, col)).toarray()
    assert (weights.sum(axis=1) == 15).all()
    shuffle = np.random.default_rng(0).permutation(len(x))
    shuffled = nearest_neighbours(
        x[shuffle], y[shuffle], n_neighbours=15, tie=(row[shuffle], col[shuffle])
    ).toarray()
    np.testing.assert_array_equal(shuffled, weights[np.ix_(shuffle, shuffle)])
    # The centre (3, 3): 12 within two steps, then the first three by row of the 8 at (1, 2).
    near = {(row[i], col[i]) for i in np.flatnonzero(weights[24])}
    assert {(1, 2), (1, 4), (2, 1)} <= near
    assert (5, 4) not in near


@pytest.mark.parametrize("kind", ["visium", "st", "jittered", "line", "ring"])
def test_neighbours_equal_a_brute_force_search(kind):
    row, col, x, y = _lattice(9, 8)
    x, y = {
        "visium": ((col + row % 2 / 2) * 100, row * 50 * np.sqrt(3)),
        "st": (x, y),
        "jittered": (x + np.random.default_rng(0).normal(0, 9, len(x)), y),
        # All are equally far from the first: more ties than are fetched at once.
        "ring": (
            np.where(np.arange(len(x)) == 0, 0, 100 * np.cos(np.arange(len(x)))),
            np.where(np.arange(len(x)) == 0, 0, 100 * np.sin(np.arange(len(x)))),
        ),
        "line": (x * 0 + 3.0, np.arange(len(x)) // 3 * 10.0),
    }[kind]
    keep = (np.random.default_rng(1).random(len(x)) < 0.8) | (np.arange(len(x)) == 0)
    row, col, x, y = (part[keep] for part in (row, col, x, y))
    weights = nearest_neighbours(x, y, n_neighbours=15, tie=(row, col)).toarray()
    for i in range(len(x)):
        distance = np.round(np.hypot(x - x[i], y - y[i]), 3)
        distance[i] = np.inf
        expected = np.lexsort((col, row, distance))[:15]
        assert set(np.flatnonzero(weights[i])) == set(expected)


def test_small_blocks_of_genes_give_the_same(section, monkeypatch):
    from histogep import genes

    row, col, x, y, expression = section
    weights = nearest_neighbours(x, y, n_neighbours=15, tie=(row, col))
    whole = morans_i(expression, weights)
    monkeypatch.setattr(genes, "_BLOCK_VALUES", 1)
    np.testing.assert_allclose(whole, morans_i(expression, weights), rtol=1e-12)


def test_fifteen_thousand_genes_of_a_real_section_take_seconds(shared_data):
    import time

    from histogep.normalise import log_cp10k

    table = pd.read_csv(shared_data / "her2st/counts/A1.tsv.gz", sep="\t", index_col=0)
    table = table[table.sum(axis=1) >= 100]
    col, row = np.array([name.split("x") for name in table.index], dtype=int).T
    start = time.process_time()
    scores = score_genes(
        log_cp10k(table.to_numpy(np.float32)),
        table.columns,
        **{"x": col * 200.0, "y": row * 200.0, "row": row, "col": col},
        neighbours=15,
    )
    assert time.process_time() - start < 10
    assert scores["moran_i"].idxmax() == scores.index[scores["gene"] == "MUCL1"][0]
    assert (scores["fdr"] >= scores["p"]).all()
    assert scores.set_index("gene").loc["ERBB2", "fdr"] < 1e-50


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
            "variance": np.arange(8.0)[::-1],
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
    assert panel["wide"].all()


def test_both_panels_are_capped_and_markers_come_on_top():
    values = {"A": 0.9, "B": 0.8, "C": 0.5, "D": 0.4}
    settings = {**SETTINGS, "max_genes": 2, "wide_max_genes": 4}
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
            "protocol": ["honest"] * 3 + ["hist"] * 2,
            "fold": ["honest-1"] * 3 + ["hist-1"] * 2,
            "slide": ["s1", "s2", "s3", "s1", "s2"],
            "patient": ["a", "b", "c", "a", "b"],
            "role": ["train", "validation", "test", "train", "test"],
        }
    )
    assert panel_slides(folds, "honest-1") == (["s1", "s2"], ["a", "b"])
    assert panel_slides(folds, "hist-1") == (["s1", "s2"], ["a", "b"])
    with pytest.raises(InputError, match="no fold"):
        panel_slides(folds, "honest-9")


def _sections(**genes):
    rng = np.random.default_rng(0)
    tables = {}
    for slide, names in genes.items():
        table = pd.DataFrame({"gene": names, "moran_i": rng.random(len(names)), "p": 1e-5})
        tables[slide] = table.assign(fdr=0.5, mean=1.0, variance=1.0, detected=1.0)
    return tables


def test_a_section_that_costs_most_of_the_genes_is_named_before_they_are_lost(caplog):
    names = [f"GENE{i}" for i in range(100)]
    tables = _sections(s1=names, s2=names, s3=names[:30], s4=names)
    panel = choose_panel(tables, MARKERS, {**SETTINGS, "wide_max_genes": 200})
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
    settings["wide_max_genes"] = 200
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
