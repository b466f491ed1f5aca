import numpy as np
import pytest
from scipy import sparse

from histogep.jobs import InputError
from histogep.normalise import log_cp10k


def test_equals_scanpys_normalisation():
    import anndata
    import scanpy as sc

    counts = np.random.default_rng(0).poisson(2.0, (30, 50)).astype(np.float32)
    reference = anndata.AnnData(counts.copy())
    sc.pp.normalize_total(reference, target_sum=1e4)
    sc.pp.log1p(reference)
    np.testing.assert_allclose(log_cp10k(counts).toarray(), reference.X, rtol=1e-5)


def test_the_input_is_left_as_it_was():
    counts = sparse.csr_matrix(np.array([[1, 3], [0, 2]]))
    log_cp10k(counts)
    assert counts.toarray().tolist() == [[1, 3], [0, 2]]


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
        log_cp10k(np.array(counts, dtype=float))
