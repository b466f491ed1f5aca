"""What a page shows of a slide: no more than there is, and each value that of its own place."""

import json
from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from histogep.errors import InputError
from histogep.files import write_tsv
from histogep.inputs.resources import FOLDER
from histogep.report.slide_layers import (
    HELD_OUT,
    MEASURED,
    PREDICTED,
    predicted_layers,
    read_scores,
    section_layers,
)

GENES = ["CD3D", "CD3E", "CD79A", "ERBB2", "KRT8", "NOISE"]
LATTICE = {"kind": "visium", "pitch_um": 100.0, "tile_um": 112.0}
N = 40
RESOURCES = {"markers": FOLDER / "markers.tsv", "signatures": FOLDER / "signatures.yaml"}


@pytest.fixture
def model(tmp_path):
    """A model folder, and the scores of the study that trained it."""
    folder = tmp_path / "model"
    folder.mkdir()
    records = {"expression": {"model": "ridge"}, "tumour": {"model": "head"}}
    (folder / "settings.json").write_text(json.dumps({"models": records}))
    table = pd.DataFrame({"gene": GENES, "main": True, "extended": True,
                          "predictable": [True] * 5 + [False], "score": [0.2, 0.3, 0.4, 0.8, 0.7, 0.9],
                          "null": 0.01, "half_width": 0.5})  # fmt: skip
    write_tsv(table, folder / "genes.tsv")
    scored = table.rename(columns={"score": "pearson"}).assign(
        protocol="patient_cv", model="ridge", null_upper=0.1, ceiling=0.95
    )
    more = scored.iloc[:1].assign(gene="FOLD", pearson=0.55)
    write_tsv(
        pd.concat([scored, more, scored.assign(model="other", ceiling=0.1)]), tmp_path / "genes.tsv"
    )
    card = {"protocol": "patient_cv", "model": "head", "metric": "auroc", "value": 0.9, "ci_low": 0.8,
            "ci_high": 0.95, "null": 0.5}  # fmt: skip
    write_tsv(
        pd.DataFrame([card, card | {"model": "x", "value": 0.1}]), tmp_path / "scorecards.tsv"
    )
    return folder


def scores(model, **options):
    folder = model.parent
    files = {
        "genes": folder / "genes.tsv",
        "scorecards": folder / "scorecards.tsv",
        "coverage": 0.9,
    }
    return read_scores(model, **{**files, **options})


def places(n=N):
    return np.arange(n) // 8, np.arange(n) % 8


def prediction(tmp_path, *, tumour=True, **uns):
    rng = np.random.default_rng(0)
    row, col = places()
    values = rng.uniform(0, 3, (N, len(GENES))).astype(np.float32)
    obs = pd.DataFrame(
        {"row": row, "col": col, "tumour": np.linspace(0, 1, N) if tumour else np.nan,
         "ood_score": np.linspace(0, 1.2, N), "out_of_distribution": np.linspace(0, 1.2, N) > 1},
        index=[f"{r}x{c}" for r, c in zip(row, col, strict=True)],
    )  # fmt: skip
    var = pd.DataFrame(
        {"predictable": [True] * 5 + [False], "score": 0.5, "half_width": 0.5}, index=GENES
    )
    told = {"slide": "S1", "lattice": LATTICE, "mpp": 0.5, "out_of_distribution": False,
            "median_ood_score": 0.6, "training_section": "", **uns}  # fmt: skip
    centres = np.column_stack([col * 100.0, row * 173.0])
    data = anndata.AnnData(values, obs=obs, var=var, obsm={"spatial": centres}, uns=told)
    data.write_h5ad(tmp_path / "S1.h5ad")
    return tmp_path / "S1.h5ad", data


def named(layers):
    return {layer.name: layer for layer in layers.layers}


def of_slide(tmp_path, model, *, genes=50, cnv=None, subtypes=None, **options):
    path, data = prediction(tmp_path, **options)
    found = predicted_layers(path, scores=scores(model), genes=genes, tumour_threshold=0.5, cnv=cnv,
                             subtypes=subtypes, **RESOURCES)  # fmt: skip
    return found, data


def test_a_slide_has_tumour_distance_and_its_best_predictable_genes(tmp_path, model):
    found, data = of_slide(tmp_path, model, genes=3)
    layers = named(found)
    assert found.maps == (PREDICTED,)
    assert not found.round
    assert [one.name for one in found.layers if one.group == "Genes"] == ["ERBB2", "KRT8", "CD79A"]
    np.testing.assert_array_equal(layers["ERBB2"].values[0], data.X[:, 3])
    assert layers["ERBB2"].half_width == 0.5
    assert layers["ERBB2"].about == {"held-out r": "0.80", "null, mean": "0.01", "null, 95 %": "0.10",
                                     "ceiling": "0.95", "predictable": "yes"}  # fmt: skip
    np.testing.assert_array_equal(layers["tumour probability"].values[0], data.obs["tumour"])
    assert layers["tumour probability"].about["held-out AUROC"] == "0.90"
    np.testing.assert_array_equal(
        layers["out-of-distribution score"].values[0], data.obs["ood_score"]
    )
    kinds = layers["tissue class"].values[0]
    assert set(kinds[data.obs["tumour"] >= 0.5]) == {"malignant"}
    share = layers["malignant share of the neighbours"].values[0]
    assert share[0] == 0
    assert share[-1] == 1
    assert "immune" in layers
    assert found.warnings == ()


def test_without_a_tumour_model_and_copy_number_the_menu_has_neither(tmp_path, model):
    found, _ = of_slide(tmp_path, model, tumour=False)
    assert {layer.group for layer in found.layers} <= {
        "Reliability",
        "Genes",
        "Marker programmes",
        "Signatures",
    }


def test_a_slide_unlike_the_training_slides_says_so(tmp_path, model):
    found, _ = of_slide(tmp_path, model, out_of_distribution=True, training_section="A1")
    assert "This slide is out of distribution" in found.warnings[0]
    assert "the training section A1" in found.warnings[1]


def test_genes_can_be_named_and_those_that_are_nowhere_are_left_out(tmp_path, model, caplog):
    found, _ = of_slide(tmp_path, model, genes=["NOISE", "ABSENT", "NOISE"])
    assert [one.name for one in found.layers if one.group == "Genes"] == ["NOISE"]
    assert named(found)["NOISE"].about["predictable"] == "no"
    assert "gene ABSENT is neither measured nor predicted" in caplog.text


def test_a_model_of_another_study_says_what_is_not_known(model):
    found = read_scores(model)
    assert found.coverage is None
    assert found.about("ERBB2")["ceiling"] == "not known"
    assert found.about("ERBB2")["held-out r"] == "0.80"
    assert "in the study that trained the model" in found.tumour["held-out AUROC"]


def test_genes_of_one_folds_panel_have_their_score_but_are_not_chosen(model):
    found = scores(model)
    assert found.about("FOLD")["held-out r"] == "0.55"
    assert "FOLD" not in found.chosen(50)
    assert found.chosen(1) == ["ERBB2"]


def cnv_file(tmp_path, names, *, slide="S1", name="CNV", refused=""):
    clones = np.where(
        np.arange(len(names)) % 3 == 0, "reference", (np.arange(len(names)) % 2).astype(str)
    )
    obs = pd.DataFrame({"clone": clones.astype(object)}, index=names)
    data = anndata.AnnData(obs=obs, uns={"slide": slide, "name": name, "refused": refused})
    data.write_h5ad(tmp_path / "cnv.h5ad")
    return tmp_path / "cnv.h5ad", clones


def test_clones_and_subtypes_bear_the_name_that_their_controls_leave_them(tmp_path, model):
    _, data = prediction(tmp_path)
    # The slide passed its own controls, and the cohort failed one.
    cnv, clones = cnv_file(tmp_path, data.obs_names, name="CNV")
    table = pd.DataFrame({"slide": ["S1", "S2"], "patient": "P", "spot": data.obs_names[3], "clone": "0",
                          "subtype": ["S1", "S9"], "name": "expression subtype"})  # fmt: skip
    write_tsv(table, tmp_path / "subtypes.tsv")
    found, _ = of_slide(tmp_path, model, cnv=cnv, subtypes=tmp_path / "subtypes.tsv")
    layer = named(found)["groups of this slide (expression subtype)"]
    expected = ["reference" if name == "reference" else f"group {name}" for name in clones]
    assert list(layer.values[0]) == expected
    assert set(layer.colours) == set(expected)
    subtypes = named(found)["subtypes of the cohort (expression subtype)"].values[0]
    assert [place for place, name in enumerate(subtypes) if name] == [3]
    assert subtypes[3] == "S1"


def test_a_profile_that_was_refused_is_not_shown_and_one_of_another_slide_is_refused(
    tmp_path, model
):
    _, data = prediction(tmp_path)
    cnv, _ = cnv_file(tmp_path, data.obs_names, refused="no reference")
    found, _ = of_slide(tmp_path, model, cnv=cnv)
    assert not any(layer.group == "Copy number" for layer in found.layers)
    cnv, _ = cnv_file(tmp_path, data.obs_names, slide="S2")
    with pytest.raises(InputError, match="is not of the places of slide S1"):
        of_slide(tmp_path, model, cnv=cnv)


def section_files(tmp_path, *, held_out_by="f1"):
    rng = np.random.default_rng(1)
    row, col = places()
    names = [f"B{i}" for i in range(N)]
    counts = sparse.csr_matrix(rng.poisson(3, (N, len(GENES) - 1)).astype(np.float32))
    obs = pd.DataFrame({"row": row, "col": col}, index=names)
    image = {"images": {"hires": np.zeros((2, 2, 3), np.uint8)},
             "scalefactors": {"tissue_hires_scalef": 1.0, "spot_diameter_fullres": 110.0}}  # fmt: skip
    data = anndata.AnnData(
        counts, obs=obs, var=pd.DataFrame(index=GENES[:-1]),
        obsm={"spatial": np.column_stack([col * 100.0, row * 173.0])},
        uns={"slide": "A1", "mpp": 0.5, "lattice": LATTICE, "spatial": {"A1": image}},
    )  # fmt: skip
    data.layers["log1p_cp10k"] = counts.log1p()
    data.write_h5ad(tmp_path / "A1.h5ad")
    labels = pd.DataFrame({"barcode": names, "label": ["malignant"] * 20 + ["non-malignant"] * 19 + ["undetermined"],
                           "source": "annotation", "confidence": 1.0, "original": "", "ranked": ""})  # fmt: skip
    write_tsv(labels, tmp_path / "A1.tsv")
    folds = pd.DataFrame({"protocol": "patient_cv", "fold": ["f1", "f2"], "slide": "A1", "patient": "A",
                          "role": ["test", "train"] if held_out_by == "f1" else ["train", "train"]})  # fmt: skip
    write_tsv(folds, tmp_path / "folds.tsv")
    paths, values = [], {}
    # In another order than the spots, and without one of them.
    order = rng.permutation(N - 1)
    for fold in ("f1", "f2"):
        for task, model, columns in (
            ("expression", "ridge", GENES),
            ("tumour", "head", ["tumour"]),
            ("both", "network", [*GENES, "tumour"]),
        ):
            predicted = rng.uniform(0, 1, (N - 1, len(columns))).astype(np.float32)
            table = pd.DataFrame({"slide": "A1", "patient": "A", "barcode": np.array(names)[order],
                                  "row": row[order], "col": col[order], "in_tissue": True})  # fmt: skip
            table.index = [f"A1:{i}" for i in range(N - 1)]
            held = anndata.AnnData(
                predicted, obs=table, var=pd.DataFrame(index=columns), layers={"truth": predicted.copy()},
                uns={"fold": fold, "model": model, "protocol": "patient_cv", "task": task, "threshold": 0.5},
            )  # fmt: skip
            path = tmp_path / "predictions" / fold / f"{model}.h5ad"
            path.parent.mkdir(parents=True, exist_ok=True)
            held.write_h5ad(path)
            paths.append(path)
            back = np.full((N, len(columns)), np.nan)
            back[order] = predicted
            values[fold, model] = back
    return data, values, (tmp_path / "A1.h5ad", tmp_path / "A1.tsv", paths, tmp_path / "folds.tsv")


def test_a_section_shows_what_was_measured_beside_what_never_saw_its_patient(tmp_path, model):
    data, values, files = section_files(tmp_path)
    found = section_layers(*files, scores=scores(model), genes=[*GENES, "FOLD"], **RESOURCES)
    layers = named(found)
    assert found.maps == (MEASURED, HELD_OUT)
    assert found.round
    assert found.size_px == (110.0, 110.0)
    measured, predicted = layers["ERBB2"].values
    np.testing.assert_array_equal(measured, data.layers["log1p_cp10k"][:, 3].toarray().ravel())
    np.testing.assert_array_equal(predicted, values["f1", "ridge"][:, 3])
    assert np.isnan(predicted[-1])
    assert layers["NOISE"].values[0] is None
    truth, probability = layers["tumour: label as 0 or 1, and probability"].values
    assert truth[:20].tolist() == [1.0] * 20
    assert truth[20:39].tolist() == [0.0] * 19
    assert np.isnan(truth[39])
    np.testing.assert_array_equal(probability, values["f1", "head"][:, 0])
    assert layers["label"].values[1] is None
    assert "fold f1" in found.notes[0]
    assert "90% conformal" in found.notes[1]


def test_a_network_of_both_tasks_shows_its_genes_and_its_tumour_map(tmp_path, model):
    _, values, files = section_files(tmp_path)
    found = scores(model)
    found = replace(found, models=dict.fromkeys(("expression", "tumour"), "network"))
    layers = named(section_layers(*files, scores=found, genes=["ERBB2"], **RESOURCES))
    np.testing.assert_array_equal(layers["ERBB2"].values[1], values["f1", "network"][:, 3])
    probability = layers["tumour: label as 0 or 1, and probability"].values[1]
    np.testing.assert_array_equal(probability, values["f1", "network"][:, -1])


def test_a_section_that_no_fold_holds_out_is_refused(tmp_path, model):
    _, _, files = section_files(tmp_path, held_out_by="none")
    with pytest.raises(InputError, match="held out in 0 patient_cv folds"):
        section_layers(*files, scores=scores(model), genes=2, **RESOURCES)
