import anndata
import numpy as np
import pytest
import scanpy as sc
from scipy import sparse

from histogep.errors import InputError
from histogep.spots.matrices import expression_of
from histogep.spots.normalise import add_expression


def test_expression_is_what_scanpy_makes_of_the_counts():
    counts = np.random.default_rng(0).poisson(2.0, (30, 50)).astype(np.float32)
    reference = anndata.AnnData(sparse.csr_matrix(counts))
    sc.pp.normalize_total(reference, target_sum=1e4)
    sc.pp.log1p(reference)
    spots = add_expression(anndata.AnnData(counts.copy()))
    np.testing.assert_array_equal(expression_of(spots).toarray(), reference.X.toarray())
    # By hand, in float64.
    share = counts.astype(np.float64) / counts.sum(axis=1, dtype=np.float64)[:, None]
    np.testing.assert_allclose(expression_of(spots).toarray(), np.log1p(1e4 * share), rtol=1e-6)


def test_the_counts_are_left_as_they_were_and_not_called_logged():
    spots = anndata.AnnData(sparse.csr_matrix(np.array([[1, 3], [0, 2]])))
    add_expression(spots)
    assert spots.X.toarray().tolist() == [[1, 3], [0, 2]]
    assert not spots.uns


def test_spots_of_an_earlier_version_are_refused():
    with pytest.raises(InputError, match="an earlier version wrote them"):
        expression_of(anndata.AnnData(np.ones((2, 2))))


@pytest.mark.parametrize(
    ("counts", "complaint"),
    [
        ([[1, -1]], "negative"),
        ([[0, 0], [1, 1]], "1 spots have no counts"),
        ([[np.nan, 1]], "non-finite"),
    ],
)
def test_what_are_no_counts_is_refused(counts, complaint):
    with pytest.raises(InputError, match=complaint):
        add_expression(anndata.AnnData(np.array(counts, dtype=float)))
