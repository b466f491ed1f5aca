from __future__ import annotations

import numpy as np
import pytest

from histogep.errors import InputError
from histogep.stats.conformal import half_widths, held_out_coverage


def residuals(rng, *, n_patients, n_spots=150, n_genes=40, shift=0.3):
    """Exchangeable patients, each with its own offset and spread."""
    values, owner = [], []
    for patient in range(n_patients):
        n = int(n_spots * rng.uniform(0.3, 2))
        scale = np.exp(rng.normal(0, 0.2, n_genes))
        values.append(rng.normal(0, shift, n_genes) + scale * rng.normal(size=(n, n_genes)))
        owner.append(np.repeat(f"P{patient}", n))
    return np.concatenate(values), np.concatenate(owner)


@pytest.mark.parametrize("n_patients", [6, 12])
def test_intervals_cover_new_patients_as_promised(n_patients):
    rng = np.random.default_rng(0)
    known, owner = residuals(rng, n_patients=n_patients)
    fresh, fresh_owner = residuals(rng, n_patients=100, n_spots=60)
    width = half_widths(known, owner, coverage=0.9)
    inside = np.abs(fresh) <= width
    coverage = np.mean([inside[fresh_owner == name].mean() for name in np.unique(fresh_owner)])
    assert 0.86 < coverage < 0.94
    told = held_out_coverage(known, owner, coverage=0.9)[1].mean()
    assert told == pytest.approx(coverage, abs=0.03)


def test_every_patient_counts_as_one():
    small, large = np.linspace(0, 1, 101)[:, None], np.linspace(0, 10, 5001)[:, None]
    both, owner = np.concatenate([small, large]), np.repeat(["s", "l"], [101, 5001])
    # 0.9 of the balanced mixture: w / 20 + 1 / 2 = 0.9, so w = 8; pooled it would be 8.98.
    assert half_widths(both, owner, coverage=0.9)[0] == pytest.approx(8, abs=0.05)
    assert np.quantile(both, 0.9) > 8.9


def test_half_width_is_the_quantile_of_one_patient():
    values = np.arange(1.0, 11)[:, None] * [1, -1]
    np.testing.assert_allclose(half_widths(values, np.repeat("a", 10), coverage=0.9), [9, 9])
    np.testing.assert_allclose(half_widths(values, np.repeat("a", 10), coverage=0.91), [10, 10])


def test_coverage_of_a_patient_is_taken_with_the_width_of_the_others():
    values = np.concatenate([np.full((10, 1), 1.0), np.full((10, 1), 5.0)])
    names, covered = held_out_coverage(values, np.repeat(["a", "b"], 10), coverage=0.9)
    assert list(names) == ["a", "b"]
    np.testing.assert_array_equal(covered[:, 0], [1, 0])
    assert np.isnan(held_out_coverage(values, np.repeat("a", 20), coverage=0.9)[1]).all()


def test_a_coverage_of_one_is_refused():
    with pytest.raises(InputError, match="coverage"):
        half_widths(np.ones((3, 1)), np.repeat("a", 3), coverage=1.0)
