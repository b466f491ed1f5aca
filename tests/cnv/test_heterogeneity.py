import numpy as np
import pytest
from scipy import sparse

from histogep.cnv.heterogeneity import FEWEST_PLACES, MOST_PLACES, measure_heterogeneity


def _slide(n=120, *, parts=1, noise=0.3, seed=0):
    """Return expression and profiles of places in parts that differ, and which are malignant."""
    rng = np.random.default_rng(seed)
    part = np.arange(n) % parts
    values = rng.normal(size=(parts, 80))[part] + rng.normal(0, noise, (n, 80))
    profile = rng.normal(size=(parts, 40))[part] + rng.normal(0, noise, (n, 40))
    return np.maximum(values + 3, 0).astype(np.float32), profile, np.arange(n) % 4 > 0


def _range(values):
    """Return the interquartile range of the correlations of all pairs, by hand."""
    low, high = np.quantile(np.corrcoef(values), [0.25, 0.75])
    return high - low


def test_scores_are_the_spread_of_correlations_among_malignant_places():
    expression, profile, malignant = _slide()
    found = measure_heterogeneity(expression, profile, malignant, seed=0)
    assert found["ithgex"] == pytest.approx(_range(expression[malignant]), abs=1e-5)
    assert found["ithcna"] == pytest.approx(_range(profile[malignant]), abs=1e-5)
    assert found["n_places"] == malignant.sum()
    thin = measure_heterogeneity(sparse.csr_matrix(expression), profile, malignant, seed=0)
    assert thin == pytest.approx(found)
    # What lies in the rest of the slide does not matter.
    profile[~malignant] = 100
    assert measure_heterogeneity(expression, profile, malignant, seed=0) == pytest.approx(found)


def test_a_tumour_of_several_parts_is_more_heterogeneous():
    one, three = (measure_heterogeneity(*_slide(parts=n), seed=0) for n in (1, 3))
    assert three["ithcna"] > 3 * one["ithcna"]
    assert three["ithgex"] > 3 * one["ithgex"]


def test_a_profile_of_zeros_correlates_with_nothing():
    """infercnvpy alone gives NaN for the whole slide where one place is denoised to zeros."""
    expression, profile, malignant = _slide()
    places = np.flatnonzero(malignant)
    profile[places[:30]] = 0
    found = measure_heterogeneity(expression, profile, malignant, seed=0)
    assert found["ithcna"] == pytest.approx(_range(profile[places[30:]]), abs=1e-5)
    profile[places[:50]] = 0
    found = measure_heterogeneity(expression, profile, malignant, seed=0)
    assert np.isnan(found["ithcna"])
    assert np.isfinite(found["ithgex"])


def test_few_places_have_no_score_and_many_are_drawn():
    expression, profile, malignant = _slide()
    few = malignant & (np.cumsum(malignant) < FEWEST_PLACES)
    found = measure_heterogeneity(expression, profile, few, seed=0)
    assert np.isnan([found["ithcna"], found["ithgex"]]).all()
    assert found["n_places"] == FEWEST_PLACES - 1
    large = _slide(3 * MOST_PLACES, parts=3)
    first, again = (measure_heterogeneity(*large, seed=1) for _ in range(2))
    assert first == again
    assert first["n_places"] == MOST_PLACES
    # Pairs of a third of the places say what those of all would.
    assert first["ithgex"] == pytest.approx(_range(large[0][large[2]]), rel=0.1)
