from __future__ import annotations

import numpy as np
import pytest

from histogep.errors import InputError
from histogep.evaluation.leakage import FITTED
from histogep.models.ensemble import fit_ensemble


def record(name, score, **changes):
    roles = {"train": ["A", "B"], "validation": ["C"], "test": ["D"]}
    settings = {
        "model": name, "protocol": "patient_cv", "fold": "patient_cv-1", "task": "expression",
        "panel": "main", "genes": ["G1"], "lattice": {}, "encoders": [], "blocks": [], "seed": 1,
        "published_grid": [32, 32], "validation_score": score, "n_parameters": 10,
    }  # fmt: skip
    for role, slides in roles.items():
        settings |= {f"{role}_slides": slides, f"{role}_patients": [s.lower() for s in slides]}
    return settings | {f"{what}_fitted_on": ["A", "B"] for what in FITTED} | changes


def test_better_members_weigh_more_and_more_so_with_more_patients():
    arrays = [{"w": np.zeros(1)}, {"w": np.ones(1)}]
    named, settings, table = fit_ensemble("mean", [record("a", 0.10), record("b", 0.12)], arrays)
    assert set(named) == {"a/w", "b/w"}
    weights = table.set_index("model")["weight"]
    assert weights["b"] > weights["a"] > 0.1
    assert settings["validation_score"] == pytest.approx(0.1 * weights["a"] + 0.12 * weights["b"])
    many = {"train_patients": [f"p{i}" for i in range(60)]}
    table = fit_ensemble("m", [record("a", 0.10, **many), record("b", 0.12, **many)], arrays)[2]
    assert table["weight"][1] > weights["b"]


def test_what_a_member_was_fitted_on_the_ensemble_was():
    leaky = record("b", 0.1, pca_fitted_on=["A", "D"], calibration_fitted_on=["B"])
    settings = fit_ensemble("mean", [record("a", 0.1), leaky], [{}, {}])[1]
    assert settings["pca_fitted_on"] == ["A", "B", "D"]
    assert settings["calibration_fitted_on"] == ["B"]
    assert settings["weight_fitted_on"] == ["A", "B", "C"]


def test_without_inner_scores_all_weigh_the_same():
    settings = fit_ensemble("mean", [record("a", None), record("b", 0.4)], [{}, {}])[1]
    assert [member["weight"] for member in settings["members"].values()] == [0.5, 0.5]
    assert settings["validation_score"] is None
    assert settings["weight_fitted_on"] == []


@pytest.mark.parametrize("what", ["fold", "genes", "seed", "test_slides"])
def test_members_of_different_make_are_refused(what):
    with pytest.raises(InputError, match=f"a and b differ in their {what}"):
        fit_ensemble("mean", [record("a", 0.1), record("b", 0.1, **{what: "x"})], [{}, {}])
