import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import squidpy as sq
from scipy import sparse, stats

from histogep.spots.matrices import expression_of
from histogep.spots.normalise import add_expression
from histogep.spots.variable_genes import morans_i, nearest_neighbours, score_genes


def _lattice(n_rows=12, n_cols=11):
    row, col = (part.ravel() for part in np.mgrid[:n_rows, :n_cols])
    return row, col, col * 100.0, row * 100.0


@pytest.fixture
def section():
    rng = np.random.default_rng(3)
    row, col, x, y = _lattice()
    smooth = np.sin(row / 3)[:, None] * [2.0, 1.0, 0.0] + rng.normal(0, 1, (len(row), 3))
    return row, col, x, y, np.maximum(smooth, 0)


def test_moran_and_p_equal_the_textbook_formulae(section):
    """Moran's I and its variance under normality (Cliff & Ord 1981), written out with dense matrices."""
    row, col, x, y, expression = section
    w = nearest_neighbours(x, y, n_neighbours=15, tie=(row, col)).toarray()
    value, p = morans_i(expression, w)
    n = len(x)
    s0, s1 = w.sum(), 0.5 * ((w + w.T) ** 2).sum()
    s2 = ((w.sum(0) + w.sum(1)) ** 2).sum()
    variance = (n * n * s1 - n * s2 + 3 * s0**2) / ((n * n - 1) * s0**2) - 1 / (n - 1) ** 2
    for gene in range(expression.shape[1]):
        z = expression[:, gene] - expression[:, gene].mean()
        i = n / s0 * (z @ w @ z) / (z @ z)
        assert value[gene] == pytest.approx(i, rel=1e-9)
        assert p[gene] == pytest.approx(
            stats.norm.sf((i + 1 / (n - 1)) / np.sqrt(variance)), rel=1e-7
        )


def test_p_is_one_sided_and_does_not_end_at_zero():
    """squidpy's own is of the nearer tail, and 0 below 1e-16."""
    row, col, x, y = _lattice()
    weights = nearest_neighbours(x, y, n_neighbours=4, tie=(row, col))
    board = (row + col) % 2  # a chequerboard: like lies beside unlike
    value, p = morans_i(np.column_stack([board, row > 5, row]).astype(float), weights)
    assert value[0] < -0.5
    assert p[0] > 0.95
    assert 0 < p[2] < 1e-20


def test_spots_without_neighbours_have_no_autocorrelation(section):
    expression = section[-1]
    n = len(expression)
    value, p = morans_i(expression, sparse.csr_matrix((n, n)))
    assert value.tolist() == [0, 0, 0]
    assert p.tolist() == [1, 1, 1]


def test_p_holds_on_permuted_sections(shared_data):
    """The share of p below .01 where there is nothing: the statistic is skewed, so it is near .02.

    By the variance under randomisation, as spdep has it, the same share is .035 for the rarest
    genes, whose one or two spots make their kurtosis as large as the number of spots.
    """
    spots = _her2st(shared_data, "C2")
    expression = expression_of(spots)
    row, col = (spots.obs[name].to_numpy() for name in ("row", "col"))
    weights = nearest_neighbours(col, row, n_neighbours=15, tie=(row, col))
    detected = np.diff(expression.tocsc().indptr)
    order = np.random.default_rng(0).permutation(len(row))
    _, p = morans_i(expression[order], weights)
    for low, high in ((1, 5), (5, 20), (20, 1000)):
        assert (p[(detected >= low) & (detected < high)] < 0.01).mean() < 0.03


def test_squidpys_own_graph_depends_on_the_order_of_the_spots():
    """Why the graph is ours. Once squidpy breaks ties by a rule, its graph can be used."""
    _, _, x, y = _lattice()

    def graph(order):
        data = anndata.AnnData(np.zeros((len(x), 1)), obsm={"spatial": np.c_[x, y][order]})
        sq.gr.spatial_neighbors_knn(data, n_neighs=15)
        return data.obsp["spatial_connectivities"].toarray()

    first = graph(np.arange(len(x)))
    order = np.random.default_rng(0).permutation(len(x))
    assert (graph(order) != first[np.ix_(order, order)]).any()


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
    assert scores.loc["d", "dispersion"] == scores["dispersion"].min()


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


def _her2st(shared_data, name):
    table = pd.read_csv(shared_data / f"her2st/counts/{name}.tsv.gz", sep="\t", index_col=0)
    table = table[table.sum(axis=1) >= 100]
    col, row = np.array([spot.split("x") for spot in table.index], dtype=int).T
    obs = pd.DataFrame({"row": row, "col": col}, index=table.index)
    counts = sparse.csr_matrix(table.to_numpy(np.float32))
    return add_expression(anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=table.columns)))


def test_genes_of_a_real_section_are_scored(shared_data):
    spots = _her2st(shared_data, "A1")
    row, col = (spots.obs[name].to_numpy() for name in ("row", "col"))
    scores = score_genes(
        expression_of(spots),
        spots.var_names,
        **{"x": col * 200.0, "y": row * 200.0, "row": row, "col": col},
        neighbours=15,
    )
    assert scores["moran_i"].idxmax() == scores.index[scores["gene"] == "MUCL1"][0]
    assert (scores["fdr"] >= scores["p"]).all()
    assert scores.notna().all().all()
    by_gene = scores.set_index("gene")
    assert by_gene.loc["ERBB2", "fdr"] < 1e-50
    # The dispersion is scanpy's, of the genes that vary here.
    varies = np.ptp(spots.X.toarray(), axis=0) > 0
    table = anndata.AnnData(expression_of(spots)[:, varies], var=spots.var[varies])
    sc.pp.highly_variable_genes(table, flavor="seurat")
    expected = table.var["dispersions"]
    np.testing.assert_allclose(by_gene.loc[expected.index, "dispersion"], expected, atol=1e-6)
    # By hand, of the linear values.
    linear = np.expm1(table[:, ["ERBB2"]].X.toarray().astype(np.float64).ravel())
    assert by_gene.loc["ERBB2", "dispersion"] == pytest.approx(
        np.log(linear.var(ddof=1) / linear.mean()), rel=1e-4
    )
    assert (
        by_gene.loc[~by_gene.index.isin(expected.index), "dispersion"]
        == by_gene["dispersion"].min()
    ).all()
