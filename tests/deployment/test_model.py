from __future__ import annotations

import functools
import json
import shutil

import anndata
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from histogep.deployment.extended_panel import predict_extended
from histogep.deployment.folder import folder_digest, read_settings, tiles_of
from histogep.deployment.model import load_model
from histogep.deployment.model_card import model_card
from histogep.deployment.out_of_distribution import FeatureDistance
from histogep.deployment.pack import choose_models, gene_table, package_model
from histogep.encoders.feature_file import read_features
from histogep.errors import InputError
from histogep.files import read_json, read_tsv, write_json, write_tsv
from histogep.models.fit import fit_model
from histogep.models.network import lattice_fit
from histogep.models.predict import build_model
from histogep.models.sections import read_sections
from histogep.slides.geojson import write_tiles
from histogep.slides.same_file import training_section
from histogep.stats.scores import pearson
from tests.model_study import GENES, LATTICE, make_features, make_study, random_keypoints

NARROW = {
    "channels": [8, 8, 8, 8, 8], "blocks": 1, "kernel": 3, "epochs": 15, "min_steps": 0, "batch": 2,
}  # fmt: skip
MODELS = {
    "ridge": {"kind": "ridge", "task": "expression", "panel": "main"},
    "tumour": {"kind": "cmunet", "task": "tumour", "panel": "main", **NARROW},
    "extended": {"kind": "ridge", "task": "expression", "panel": "extended"},
}
DEPLOY = {"expression": "auto", "tumour": "tumour", "extended": "extended"}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("study"), patients=("P", "Q", "R"))


@pytest.fixture(scope="module")
def packed(study):
    """Models trained on all sections, packed; the arguments of the packing."""
    weights, settings = [], []
    for name, choices in MODELS.items():
        genes = GENES if choices["panel"] == "extended" else GENES[:14]
        files = [study.files[kind] for kind in ("features", "spots", "labels")]
        sections = read_sections(study.roles(), *files, task=choices["task"], genes=genes)
        fitted = fit_model(
            {"train": sections}, name=name, settings=choices, protocol="all", fold="all",
            genes=genes, seed=1, published_grid=(32, 32), test={},
        )  # fmt: skip
        weights.append(study.folder / f"{name}.safetensors")
        settings.append(study.folder / f"{name}.json")
        save_file(fitted.arrays, weights[-1])
        write_json(fitted.settings, settings[-1])
    patient_cv = study.folder / "patient_cv.json"
    record = {"protocol": "patient_cv", "model": "ridge", "scores": {"expression": 0.3}}
    write_json(record, patient_cv)
    calibration = pd.DataFrame(
        {
            "model": "ridge",
            "gene": GENES[:13],
            "predictable": [True] * 12 + [False],
            "score": np.linspace(0.5, 0.1, 13),
            "null": 0.01,
            "half_width": 0.7,
            "coverage": 0.9,
        }
    )
    write_tsv(calibration, study.folder / "calibration.tsv")
    card = {"protocol": "patient_cv", "task": "expression", "model": "ridge", "metric": "pearson"}
    write_tsv(pd.DataFrame([card | {"value": 0.345, "null": 0.0}]), study.folder / "scorecards.tsv")
    arguments = {
        "study": "test",
        "weights": weights,
        "settings": settings,
        "fold_settings": [patient_cv],
        "features": study.files["features"],
        "images": {slide: f"image of {slide}" for slide in study.slides},
        "patients": dict(zip(study.slides, study.patients, strict=True)),
        "keypoints": {slide: random_keypoints(i) for i, slide in enumerate(study.slides)},
        "calibration": study.folder / "calibration.tsv",
        "scorecards": study.folder / "scorecards.tsv",
        "deploy": DEPLOY,
        "lattice": LATTICE,
    }
    folder = study.folder / "model"
    package_model(folder, **arguments)
    return folder, arguments


@pytest.fixture(scope="module")
def new_slide():
    return make_features("NEW", np.random.default_rng(77), shape=(18, 18))


def test_the_folder_predicts_a_new_slide_in_three_lines(packed, new_slide, tmp_path):
    features, fields = new_slide
    model = load_model(packed[0])
    table = model.predict(features).to_anndata()
    path = tmp_path / "new.h5ad"
    table.write_h5ad(path)
    table = anndata.read_h5ad(path)
    assert table.shape == (len(fields), 14)
    assert table.X.dtype == np.float32
    assert table.X.min() >= 0
    expression = table[:, GENES[:6]].X
    assert pearson(expression[:, :1], fields[:, :1])[0] > 0.6
    assert pearson(expression[:, 4:5], fields[:, :1])[0] < -0.6
    tumour = table.obs["tumour"].to_numpy()
    assert tumour[fields[:, 0] > 0.5].mean() > tumour[fields[:, 0] < -0.5].mean() + 0.2
    assert table.obs_names[20] == "1x2"
    assert table.obsm["spatial"][20] == pytest.approx([2.5 * 200 + 112, 173 + 112], abs=1)
    assert table.var["predictable"].tolist() == [True] * 12 + [False] * 2
    assert table.var["half_width"].isna().tolist() == [False] * 13 + [True]
    assert table.uns["model_digest"] == model.settings["digest"]
    assert table.uns["mpp"] == 0.5
    assert not table.obs["out_of_distribution"].to_numpy().mean() > 0.05


@pytest.mark.parametrize("kind", ["lattice", "blend"])
def test_a_committee_is_packed_checked_and_applied(
    packed, study, new_slide, tmp_path, kind, monkeypatch
):
    """The folder predicts what the model did before it was packed, and says what it is."""
    shorter = functools.partial(lattice_fit.train_committee, steps=20, snapshots=(10, 20))
    monkeypatch.setattr(lattice_fit, "train_committee", shorter)
    files = [study.files[what] for what in ("features", "spots", "labels")]
    sections = read_sections(study.roles(), *files, task="expression", genes=GENES[:14])
    fitted = fit_model(
        {"train": sections}, name=kind,
        settings={"kind": kind, "task": "expression", "panel": "main", "ranks": [2], "rings": 1},
        protocol="all", fold="all", genes=GENES[:14], seed=1, published_grid=(32, 32), test={},
    )  # fmt: skip
    save_file(fitted.arrays, tmp_path / "weights.safetensors")
    write_json(fitted.settings, tmp_path / "settings.json")
    arguments = dict(packed[1])
    arguments["weights"] = [*arguments["weights"], tmp_path / "weights.safetensors"]
    arguments["settings"] = [*arguments["settings"], tmp_path / "settings.json"]
    arguments["deploy"] = DEPLOY | {"expression": kind}
    folder = tmp_path / "model"
    package_model(folder, **arguments)
    said = load_model(folder).predict(new_slide[0]).expression
    before = build_model(fitted.arrays, fitted.settings).predict(tiles_of(new_slide[0]))[0]
    assert said == pytest.approx(np.maximum(before, 0), abs=1e-5)
    assert said.std(0).min() > 0.01
    card = (folder / "README.md").read_text()
    assert (
        f"| expression | {kind} ({kind}, {fitted.settings['n_parameters']:,} parameters) |" in card
    )
    settings = read_json(folder / "settings.json")
    settings["models"]["expression"]["architecture"]["n_networks"] += 1
    settings["digest"] = folder_digest(folder, settings)
    write_json(settings, folder / "settings.json")
    with pytest.raises(InputError, match="the settings declare"):
        load_model(folder)


def test_packing_twice_gives_the_same_folder(packed, tmp_path):
    folder, arguments = packed
    package_model(tmp_path / "again", **arguments)
    names = sorted(path.name for path in folder.iterdir())
    assert names == [
        "README.md", "expression.safetensors", "extended.safetensors", "genes.tsv", "settings.json",
        "training_features.safetensors", "training_images.parquet", "tumour.safetensors",
    ]  # fmt: skip
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    card = (folder / "README.md").read_text()
    assert "0.345" in card
    assert "12 of them predictable" in card


def test_the_card_says_whose_labels_and_what_was_never_tested(packed, tmp_path):
    _, arguments = packed
    package_model(tmp_path / "m", **arguments, labels="inferred from markers, by no pathologist")
    card = (tmp_path / "m/README.md").read_text()
    assert "| tumour labels | inferred from markers, by no pathologist |" in card
    assert "and a tumour map from H&E tiles" in card
    cards = read_tsv(arguments["scorecards"])
    settings = json.loads((tmp_path / "m/settings.json").read_text())
    genes = read_tsv(tmp_path / "m/genes.tsv")
    untested = model_card(settings, genes, cards[cards["task"] != "tumour"])
    assert "The tumour map was never tested on held-out patients." in untested
    assert "gene expression was never" not in untested
    del settings["models"]["tumour"]
    settings["absent"] = {"tumour": "all labels are undetermined"}
    without = model_card(settings, genes, cards[cards["task"] != "tumour"])
    assert "it has no tumour map" in without
    assert "no tumour map: all labels are undetermined" in without


@pytest.mark.parametrize("name", ["genes.tsv", "expression.safetensors", "settings.json"])
def test_a_changed_file_is_noticed(packed, tmp_path, name):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(packed[0], folder)
    read_settings(folder)
    path = folder / name
    path.write_bytes(path.read_bytes().replace(b"G1", b"G9", 1) + b" ")
    if name == "settings.json":
        settings = json.loads(path.read_text())
        settings["study"] = "another"
        path.write_text(json.dumps(settings))
    with pytest.raises(InputError, match="not those that were packed"):
        read_settings(folder)


def test_a_folder_that_is_none_is_said_so(tmp_path):
    with pytest.raises(InputError, match=r"no settings.json"):
        load_model(tmp_path)
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        load_model(tmp_path)
    (tmp_path / "settings.json").write_text('{"format": 99, "digest": "x"}')
    with pytest.raises(InputError, match=r"format 99, this version reads 3: run the study"):
        load_model(tmp_path)
    (tmp_path / "settings.json").write_text('{"format": 3, "digest": "x", "lattice": {}}')
    with pytest.raises(InputError, match="no encoders, models"):
        load_model(tmp_path)
    settings = {"format": 3, "digest": "x", "lattice": {}, "encoders": [], "models": []}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="no models"):
        load_model(tmp_path)


def test_the_folder_knows_the_images_of_its_sections_and_an_older_one_says_it_does_not(
    packed, new_slide, tmp_path, caplog
):
    settings = read_settings(packed[0])
    assert set(settings["training_images"]) == set(settings["training_slides"])
    section = settings["training_slides"][2]
    assert training_section(settings, f"image of {section}") == section
    assert "not out of sample" in caplog.text
    assert training_section(settings, "another image") == ""
    older = shutil.copytree(packed[0], tmp_path / "older")
    del settings["training_images"]
    settings["digest"] = folder_digest(older, settings)
    write_json(settings, older / "settings.json")
    caplog.clear()
    model = load_model(older)
    assert model.predict(new_slide[0]).uns["training_section"] == ""
    assert training_section(model.settings, f"image of {section}") == ""
    assert "has no digests of its training images" in caplog.text
    assert "pack it again" in caplog.text


def test_slides_encoded_otherwise_are_refused_with_a_remedy(packed):
    model = load_model(packed[0])

    def other(**changes):
        features, _ = make_features("NEW", np.random.default_rng(77))
        for name, value in changes.items():
            setattr(features, name, value)
        return features

    cases = [
        ({"encoders": [{"name": "uni", "sha256": "u"}]}, "encoded with uni, the model reads"),
        (
            {
                "encoders": [
                    {"name": "descriptors", "sha256": "d0", "precision": "float32"},
                    {"name": "lite0", "sha256": "z", "precision": "float32"},
                ]
            },
            "other weights of lite0",
        ),
        ({"blocks": [("descriptors", 12), ("lite0", 95)]}, "feature blocks"),
        ({"lattice": LATTICE | {"tile_um": 55.0}}, "cut on the lattice"),
    ]
    for changes, message in cases:
        with pytest.raises(InputError, match=message):
            model.predict(other(**changes))


def test_the_wide_panel_needs_only_numpy(packed, new_slide):
    features, fields = new_slide
    values, genes = predict_extended(features, packed[0])
    assert genes == GENES
    assert values.dtype == np.float32
    assert values.min() >= 0
    assert pearson(values[:, :1], fields[:, :1])[0] > 0.6


def test_the_best_model_inside_the_training_patients_is_deployed():
    def record(name, task="expression", panel="main", **scores):
        return {"model": name, "task": task, "panel": panel, "scores": scores}

    records = [
        record("net"),
        record("ridge"),
        record("t", task="tumour"),
        record("w", panel="extended"),
    ]
    patient_cv = [record("net", expression=s) for s in (0.1, 0.4)] + [
        record("ridge", expression=0.2)
    ]
    names, scores = choose_models(
        records, patient_cv, {"expression": "auto", "tumour": "t", "extended": "w"}
    )
    assert names == {"expression": "net", "tumour": "t", "extended": "w"}
    assert scores["expression"] == {"net": pytest.approx(0.25), "ridge": pytest.approx(0.2)}
    names, _ = choose_models(records, patient_cv, {"expression": "ridge", "tumour": "none_such"})
    assert names == {"expression": "ridge"}
    with pytest.raises(InputError, match=r"deploy.expression names 'x'; the models are net, ridge"):
        choose_models(records, patient_cv, {"expression": "x"})
    with pytest.raises(InputError, match="is of task tumour"):
        choose_models(records, patient_cv, {"expression": "t"})
    # A network of both tasks may take either role; each is chosen by its own score.
    records.append(record("two", task="both"))
    patient_cv += [record("two", task="both", expression=0.5, tumour=0.8), record("t", tumour=0.9)]
    names, scores = choose_models(records, patient_cv, {"expression": "auto", "tumour": "auto"})
    assert names == {"expression": "two", "tumour": "t"}
    assert scores["tumour"] == {"t": 0.9, "two": 0.8}
    patient_cv[-1]["scores"]["tumour"] = 0.7
    assert choose_models(records, patient_cv, {"tumour": "auto"})[0]["tumour"] == "two"


def test_a_tumour_map_that_could_not_be_learned_is_not_deployed(caplog):
    records = [
        {"model": "net", "task": "both", "panel": "main", "absent_tumour": "no labels"},
        {"model": "t", "task": "tumour", "panel": "main", "absent": "no labels"},
    ]
    assert choose_models(records, [], {"tumour": "auto"})[0] == {"expression": "net"}
    assert choose_models(records, [], {"tumour": "t"})[0] == {"expression": "net"}
    assert "the folder has no tumour map: no labels" in caplog.text


def test_genes_carry_the_figures_of_the_model_that_predicts_them():
    calibration = pd.DataFrame(
        {
            "model": ["net", "ridge", "extended", "extended"],
            "gene": ["A", "A", "A", "B"],
            "predictable": [True, False, False, "True"],
            "score": [0.3, 0.1, 0.2, 0.25],
            "null": 0.0,
            "half_width": 1.0,
        }
    )
    models = {
        "expression": {"model": "net", "genes": ["A", "C"]},
        "extended": {"model": "extended", "genes": ["A", "B", "C"]},
    }
    table = gene_table(models, calibration).set_index("gene")
    assert table.loc["A", ["score", "predictable"]].tolist() == [0.3, True]
    assert table.loc["B", ["score", "predictable", "main"]].tolist() == [0.25, True, False]
    assert not table.loc["C", "predictable"]
    assert np.isnan(table.loc["C", "score"])


def test_far_features_are_distant_and_near_ones_are_not(study):
    slides = [read_features(path).values for path in study.files["features"]]
    blocks = [("descriptors", 12), ("lite0", 96)]
    chosen = {"patients": study.patients, "components": 8}
    fitted = FeatureDistance.fit(slides, blocks=blocks, **chosen)
    near, _ = make_features("NEW", np.random.default_rng(5))
    assert not fitted.judge(fitted.measure(near.values)).out
    shifted = near.values + 6.0
    assert fitted.judge(fitted.measure(shifted)).out_of_distribution.mean() > 0.9
    again = FeatureDistance.from_arrays(fitted.to_arrays(), blocks=blocks)
    assert np.array_equal(again.measure(near.values), fitted.measure(near.values))
    # In its own coordinates the first measure is the Mahalanobis distance of scipy.
    from scipy.spatial.distance import mahalanobis

    block = fitted.blocks[0]
    place = (block.standard(near.values[:1, :12]) @ block.components)[0]
    expected = mahalanobis(place, block.centre, block.inverse_covariance) / np.sqrt(len(place))
    assert block.measures(near.values[:1, :12])[0, 0] == pytest.approx(expected)
    constant = [np.column_stack([part, np.ones(len(part))]) for part in slides]
    wider = FeatureDistance.fit(constant, blocks=[*blocks, ("flat", 1)], **chosen)
    assert np.isfinite(wider.measure(constant[0])).all()


def test_tiles_for_qupath(tmp_path):
    path = tmp_path / "tiles.geojson"
    arguments = {
        "name": "S",
        "centres_px": np.array([[100.0, 200.0], [300.0, 200.0], [500.0, 200.0]]),
        "side_px": 50.0,
        "tumour": np.array([0.9, 0.1, np.nan]),
        "measurements": {"out-of-distribution score": np.array([1.0, np.nan, 2.0])},
    }
    write_tiles(path, **arguments)
    tiles = json.loads(path.read_text())["features"]
    assert [t["properties"].get("classification", {}).get("name") for t in tiles] == [
        "Tumor", "Other", None,
    ]  # fmt: skip
    ring = tiles[0]["geometry"]["coordinates"][0]
    assert ring[0] == ring[-1] == [75.0, 175.0]
    assert ring[2] == [125.0, 225.0]
    assert tiles[1]["properties"]["measurements"] == {"tumour probability": 0.1}
    assert len({tile["id"] for tile in tiles}) == 3
    first = path.read_bytes()
    write_tiles(path, **arguments)
    assert path.read_bytes() == first
    empty = arguments | {"centres_px": np.zeros((0, 2))}
    write_tiles(path, **empty)
    assert json.loads(path.read_text())["features"] == []
