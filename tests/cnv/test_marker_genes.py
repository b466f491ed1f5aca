import numpy as np
import pytest
from scipy import sparse, stats
from sklearn.metrics import roc_auc_score

from histogep.cnv.marker_genes import COLUMNS, rank_markers

GENES = [f"g{i}" for i in range(60)]


@pytest.fixture(scope="module")
def spots():
    """Return log1p CP10k of spots in two groups and one spot of a third; genes 3 and 4 are b's."""
    rng = np.random.default_rng(1)
    groups = np.array(["a"] * 50 + ["b"] * 40 + ["c"])
    mean = np.full((len(groups), len(GENES)), 5.0)
    mean[groups == "b", 3:5] *= 2
    mean[groups == "a", 7] *= 3
    return np.log1p(rng.poisson(mean)).astype(np.float32), groups


def test_planted_markers_come_first_with_the_tests_of_scipy(spots):
    values, groups = spots
    found = rank_markers(values, groups, GENES)
    assert list(found.columns) == ["group", *COLUMNS]
    assert set(found["group"]) == {"a", "b"}
    assert found.loc[found["group"] == "a", "gene"].iloc[0] == "g7"
    second = found[found["group"] == "b"]
    assert set(second["gene"].iloc[:2]) == {"g3", "g4"}
    assert (second["score"].diff().dropna() <= 0).all()
    row = second.set_index("gene").loc["g3"]
    own = groups == "b"
    test = stats.mannwhitneyu(
        values[own, 3], values[~own, 3], use_continuity=False, method="asymptotic"
    )
    assert row["p"] == pytest.approx(test.pvalue, rel=1e-3)
    assert row["auroc"] == pytest.approx(roc_auc_score(own, values[:, 3]))
    assert row["difference"] == pytest.approx(
        values[own, 3].mean() - values[~own, 3].mean(), rel=1e-4
    )
    change = np.log2(np.expm1(values[own, 3].mean()) / np.expm1(values[~own, 3].mean()))
    assert row["log2_fold_change"] == pytest.approx(change, rel=1e-4)
    assert (row["n_in"], row["n_out"]) == (40, 51)
    assert (found["p_adjusted"] >= found["p"]).all()


def test_sparse_expression_and_repeated_symbols(spots):
    values, groups = spots
    dense, thin = (rank_markers(m, groups, GENES) for m in (values, sparse.csr_matrix(values)))
    np.testing.assert_allclose(dense["score"], thin["score"], rtol=1e-5)
    twice = rank_markers(values, groups, ["g"] * len(GENES), most=3)
    assert len(twice) == 6


@pytest.mark.parametrize("groups", [["a"] * 91, ["a"] * 90 + ["b"], []])
def test_nothing_is_ranked_without_two_groups(spots, groups):
    found = rank_markers(spots[0][: len(groups)], np.array(groups, dtype=str), GENES)
    assert found.empty
    assert list(found.columns) == ["group", *COLUMNS]
