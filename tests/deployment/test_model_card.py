from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from histogep.deployment.model_card import model_card

WHY = "fold all: its 2 training sections have 0 spots labelled malignant and 0 non-malignant"


def _card(*, models, absent=None, auroc=None):
    settings = {
        "study": "s",
        "lattice": {"kind": "visium", "pitch_um": 100.0, "tile_um": 112.0},
        "encoders": [{"name": "descriptors", "sha256": "0" * 64}],
        "training_slides": ["S1", "S2"],
        "models": {
            role: {"model": name, "kind": "ridge", "n_parameters": 10}
            for role, name in models.items()
        },
        "absent": absent or {},
    }
    genes = pd.DataFrame({"gene": ["A"], "main": True, "extended": False, "predictable": True})
    rows = [("patient_cv", "expression", "ridge", "pearson", 0.4)]
    if auroc is not None:
        rows.append(("patient_cv", "tumour", "light", "auroc", auroc))
    columns = ["protocol", "task", "model", "metric", "value"]
    return model_card(settings, genes, pd.DataFrame(rows, columns=columns))


def test_a_folder_without_a_tumour_map_promises_none():
    text = _card(models={"expression": "ridge"}, absent={"light": WHY})
    assert (
        "Predicts spatial gene expression (log1p CP10k) from H&E tiles; it has no tumour map."
        in text
    )
    assert "| tumour map | none in this folder, and never tested |" in text
    assert f"| light | no tumour map: {WHY} |" in text


@pytest.mark.parametrize(("auroc", "tested"), [(0.9, True), (np.nan, False), (None, False)])
def test_a_tumour_map_that_no_held_out_section_could_test_says_so(auroc, tested):
    text = _card(models={"expression": "ridge", "tumour": "light"}, auroc=auroc)
    assert "and a tumour map from H&E tiles" in text
    assert ("never tested" in text) != tested
