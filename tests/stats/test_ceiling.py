from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import sparse

from histogep.evaluation.cards import _level_ceiling
from histogep.stats.ceiling import KNOWN, ceiling_of_halves, noise_ceiling
from histogep.stats.scores import padded_pearson, pearson


def simulate(rng, *, n=500, n_genes=120, depth=3000.0, spread=0.5):
    """Return counts, library sizes and a function that draws replicates of the same truth."""
    base = np.exp(rng.normal(-7, 1.3, n_genes))
    base /= base.sum() * 3
    rate = base * np.exp(rng.normal(0, spread, (n, n_genes)))
    library = depth * np.exp(rng.normal(0, 0.3, n))

    def draw():
        counts = rng.poisson(rate * library[:, None])
        others = rng.poisson(library * 0.66)
        return counts, counts.sum(1) + others

    return (*draw(), draw)


def log_normalised(counts, library):
    return np.log1p(counts / library[:, None] * 1e4)


@pytest.mark.parametrize(("depth", "spread"), [(3000, 0.4), (3000, 0.8), (20000, 0.4)])
def test_a_perfect_predictor_scores_the_ceiling(depth, spread):
    rng = np.random.default_rng(0)
    counts, library, draw = simulate(rng, depth=depth, spread=spread)
    # The truth that no single section shows: the mean of many replicates at full depth.
    truth = np.mean([log_normalised(*draw()) for _ in range(60)], axis=0)
    measured = log_normalised(counts, library)
    ceiling = noise_ceiling(
        sparse.csr_matrix(counts), library, thinnings=5, seed=0, n_positions=900
    )
    oracle = pearson(truth, measured)
    known = np.isfinite(oracle) & np.isfinite(ceiling.in_tissue)
    assert np.mean(ceiling.in_tissue[known]) == pytest.approx(np.mean(oracle[known]), abs=0.035)
    assert np.abs(ceiling.in_tissue - oracle)[known & (oracle > 0.5)].mean() < 0.06
    whole = padded_pearson(truth, measured, n_positions=900)
    assert np.nanmean(ceiling.whole_grid) == pytest.approx(np.nanmean(whole), abs=0.03)
    assert np.nanmean(ceiling.whole_grid) > np.nanmean(ceiling.in_tissue)


def test_nothing_beats_the_ceiling_but_the_data_themselves():
    rng = np.random.default_rng(1)
    counts, library, draw = simulate(rng)
    replicate = log_normalised(*draw())
    ceiling = np.nanmean(noise_ceiling(counts, library, thinnings=5, seed=0).in_tissue)
    # A second noisy measurement of the same truth falls short of it: R instead of sqrt(R).
    assert np.nanmean(pearson(replicate, log_normalised(counts, library))) < ceiling - 0.05


def test_a_panel_of_pure_noise_has_a_ceiling_near_zero():
    rng = np.random.default_rng(2)
    library = np.full(400, 20000)
    counts = rng.poisson(np.full((400, 200), 2.0))
    ceiling = noise_ceiling(counts, library, thinnings=5, seed=0)
    assert ceiling.in_tissue.mean() < 0.04
    # And of hardly any gene could one say that there is something to reach.
    assert (ceiling.excess > KNOWN * ceiling.error).mean() < 0.1


def test_the_library_counts_all_genes_not_the_panel():
    rng = np.random.default_rng(3)
    counts, library, _ = simulate(rng, n_genes=40)
    alone = noise_ceiling(counts[:, :5], library, thinnings=8, seed=0).in_tissue
    together = noise_ceiling(counts, library, thinnings=8, seed=0).in_tissue[:5]
    np.testing.assert_allclose(alone, together, atol=0.1)
    with pytest.raises(ValueError, match="all genes"):
        noise_ceiling(counts, counts.sum(1) - 1, thinnings=1, seed=0)
    with pytest.raises(ValueError, match="raw counts"):
        noise_ceiling(np.log1p(counts), library, thinnings=1, seed=0)


def test_spearman_brown_and_its_sign():
    np.testing.assert_allclose(ceiling_of_halves(np.array([0.0, 1.0, 0.5])), [0, 1, (2 / 3) ** 0.5])
    assert ceiling_of_halves(np.array([-0.5]))[0] == -((2 / 3) ** 0.5)


def test_undetected_genes_have_no_ceiling_and_seeds_decide():
    rng = np.random.default_rng(4)
    counts, library, _ = simulate(rng, n_genes=20)
    counts[:, 3] = 0
    first, again, other = (
        noise_ceiling(counts, library + 5, thinnings=2, seed=seed).in_tissue for seed in (1, 1, 2)
    )
    assert np.isnan(first[3])
    np.testing.assert_array_equal(first, again)
    assert (first != other)[4:].any()


def test_the_ceiling_of_patient_means_is_what_the_true_means_score():
    """Few shallow spots a patient, so that the noise of counts reaches the means."""
    rng = np.random.default_rng(5)
    n_patients, n_genes, genes = 40, 60, [f"G{i}" for i in range(60)]
    base = np.exp(rng.normal(-7, 1, n_genes))
    rates = base / base.sum() / 3 * np.exp(rng.normal(0, 0.35, (n_patients, n_genes)))
    library = np.full(12, 2500)

    def draw(rate):
        return rng.poisson(np.tile(rate * 2500, (12, 1)))

    measured, truth, scores = [], [], []
    for number, rate in enumerate(rates):
        counts = draw(rate)
        measured.append(log_normalised(counts, library).mean(0))
        truth.append(np.mean([log_normalised(draw(rate), library) for _ in range(60)], (0, 1)))
        halves = noise_ceiling(counts, library, thinnings=5, seed=number).level_halves
        assert halves.shape == (5, 2, n_genes)
        scores.append(SimpleNamespace(patient=f"P{number}", genes=genes, level_halves=halves))
    names = [score.patient for score in scores]
    blocks = [(np.arange(n_patients), np.arange(n_genes))]
    oracle = pearson(np.array(truth), np.array(measured)).mean()
    assert 0.5 < oracle < 0.95
    assert _level_ceiling(scores, names, genes, blocks) == pytest.approx(oracle, abs=0.04)
