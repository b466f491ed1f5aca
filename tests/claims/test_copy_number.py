"""Quick versions of rows 1 and 8 of benchmarks_suite/claims.py, on other seeds."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks_suite" / "claims"


def _load(name):
    spec = importlib.util.spec_from_file_location(f"claims_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def copy_number():
    return _load("copy_number")


@pytest.mark.parametrize("kind", ["microglia, oligodendrocytes", "programme of clusters"])
def test_a_programme_of_normal_cells_is_no_copy_number(copy_number, kind):
    draw = dict(copy_number.false_pairs(None))[kind]
    for seed in (71, 72):
        rng = np.random.default_rng(seed)
        name, arms = copy_number.name_slide(draw(rng), rng, seed=seed)
        assert name == "expression subtype"
        assert (arms["call"] == "neutral").mean() > 0.95


def test_lost_1p_and_19q_are_copy_number(copy_number):
    pairs = {name: (draw, purity) for name, _, draw, purity in copy_number.true_pairs()}
    draw, purity = pairs["malignant_93, 1p and 19q lost, purity 0.8"]
    rng = np.random.default_rng(73)
    name, arms = copy_number.name_slide(draw(rng), rng, purity=purity, seed=73)
    assert name == "CNV"
    lost = set(arms.loc[arms["call"] == "loss", "arm"])
    assert {"1p", "19q"} <= lost


@pytest.mark.parametrize(("planted", "seed"), [(1, 74), (2, 76)])
def test_purity_makes_no_subtypes_and_copy_number_does(planted, seed):
    found, score = _load("purity_subtypes").divide_cohort(planted, patients=12, seed=seed)
    assert found == planted
    assert score == 1
