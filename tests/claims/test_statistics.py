"""The claims' simulations (benchmarks_suite/claims) in small, one test for each."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from histogep.lattice import Lattice
from histogep.stats.ceiling import noise_ceiling
from histogep.stats.nulls import permutation_null, upper_p
from histogep.stats.scores import pearson

CLAIMS = Path(__file__).resolve().parents[2] / "benchmarks_suite" / "claims"


def claim(name):
    """Return the functions of a simulation."""
    return SimpleNamespace(**runpy.run_path(str(CLAIMS / f"{name}.py")))


@pytest.mark.parametrize("kind", ["gradient", "half", "patch", "smooth"])
def test_unrelated_maps_keep_their_level(kind):
    """The claims' simulation in small: 3 patients, a section each; shuffled spots do not keep it."""
    simulation = claim("predictable_genes")
    rng = np.random.default_rng(5)
    row, col = simulation.cells("square", 200, 0)
    x, y = Lattice().centres_um(row, col)
    drawn = []

    def maps():
        drawn.append(simulation.draw_maps(kind, x, y, 600, rng))
        return drawn[-1]

    p = simulation.null_p(maps, maps, row, col, patients=3, draws=2000, seed=1)
    assert (p < 0.05).mean() <= 0.06 + 2 * np.sqrt(0.05 * 0.95 / 600)
    assert (p < 0.001).sum() <= 4
    one = permutation_null(drawn[0], drawn[1], permutations=99, seed=0)
    assert (upper_p(pearson(drawn[0], drawn[1]), one) < 0.05).mean() > 0.1


@pytest.mark.parametrize(("depth", "sd"), [(650, 0.3), (1500, 0.15), (8000, 0.5)])
def test_a_perfect_predictor_reaches_the_mean_ceiling(depth, sd):
    """And with overdispersed counts the truth lies between the ceiling and the shared one."""
    simulation = claim("noise_ceiling")
    graph = Lattice().neighbours(*np.divmod(np.arange(400), 20))
    shares = []
    for number in range(3):
        rng = np.random.default_rng([8, number])
        counts, sizes, measured, perfect, _ = simulation.section(20, 120, depth, sd, 0.0, rng)
        found = noise_ceiling(counts, sizes, thinnings=5, seed=number)
        assert np.isnan(found.spatial).all()
        known = np.isfinite(found.in_tissue)
        shares.append(pearson(perfect, measured)[known].mean() / found.in_tissue[known].mean())
    assert np.mean(shares) == pytest.approx(1, abs=0.06)
    counts, sizes, measured, perfect, _ = simulation.section(20, 120, depth, sd, 0.3, rng)
    found = noise_ceiling(counts, sizes, thinnings=5, seed=1, adjacency=graph)
    known = np.isfinite(found.in_tissue)
    truth = pearson(perfect, measured)[known].mean()
    assert found.in_tissue[known].mean() > 1.3 * truth
    assert found.spatial[known].mean() < 1.3 * truth


def test_the_interval_of_the_gain_holds_the_mean_gain():
    simulation = claim("survival_gain")
    settings = {
        **{"repeats": 1, "refits": 20, "inner_folds": 2, "penalties": [0.1, 1.0]},
        **{"shuffles": 0, "bootstraps": 100, "horizons": [], "folds": 3},
    }
    rows = []
    for number in range(8):
        table = simulation.cohort(60, 0.6, np.random.default_rng([7, number]))
        rows.append(simulation.gain(table, settings, number))
    mean = np.mean([row["gain"] for row in rows])
    held = [row["low"] <= mean <= row["high"] for row in rows]
    fixed = [row["fixed_low"] <= mean <= row["fixed_high"] for row in rows]
    assert sum(held) >= 7
    assert sum(held) >= sum(fixed)
    widths = [(row["high"] - row["low"]) / (row["fixed_high"] - row["fixed_low"]) for row in rows]
    assert np.mean(widths) > 1.1
