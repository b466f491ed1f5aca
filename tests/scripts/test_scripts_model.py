from __future__ import annotations

import functools
import json
import re

import anndata
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from histogep.errors import InputError
from histogep.evaluation.cards import tumour_cards
from histogep.evaluation.held_out import read_held_out
from histogep.evaluation.tumour_scores import tumour_table
from histogep.files import read_json, read_tsv, write_json, write_tsv
from histogep.models.network import lattice_fit
from histogep.models.predict import read_model
from histogep.models.sections import read_sections
from histogep.slides.same_tissue import write_keypoints
from histogep.slides.thumbnail import write_thumbnail
from histogep.stats.scores import auroc, pearson
from tests.model_study import GENES, IMMUNE_GENES, LATTICE, TUMOUR_GENES, make_features, make_study

NARROW = {
    "channels": [16, 16, 24, 24, 32], "blocks": 1, "kernel": 3, "epochs": 50, "min_steps": 0,
    "batch": 1, "lr": 3e-3,
}  # fmt: skip
MODELS = {
    "cmunet": {"kind": "cmunet", "task": "expression", "panel": "main", **NARROW},
    "tumour": {"kind": "cmunet", "task": "tumour", "panel": "main", **NARROW},
    "both": {"kind": "cmunet", "task": "both", "panel": "main", **NARROW, "correlation": 1.0},
    "head": {"kind": "neighbours", "task": "tumour", "panel": "main", "rings": 1},
    "ridge": {"kind": "ridge", "task": "expression", "panel": "main"},
    "neighbours": {"kind": "neighbours", "task": "expression", "panel": "main", "ranks": [2, 0]},
    "lattice": {"kind": "lattice", "task": "expression", "panel": "main"},
    "blend": {"kind": "blend", "task": "expression", "panel": "main", "ranks": [2, 0]},
    "mean": {
        "kind": "ensemble",
        "task": "expression",
        "panel": "main",
        "members": ["ridge", "neighbours"],
    },
    "extended": {"kind": "ridge", "task": "expression", "panel": "extended"},
}
FOLDS = {
    "patient_cv": "patient",
    "published": "section",
    "validation": 1,
    "published_grid": [32, 32],
}
N_MAIN = 16


@pytest.fixture
def study(tmp_path, run_script):
    study = make_study(tmp_path, patients=("P", "P", "Q", "R", "S"))
    run_script(
        "split_folds.py",
        input={},
        output={"folds": tmp_path / "folds.tsv"},
        params={
            "patients": study.roles(), "folds": FOLDS, "seed": 1,
        },
    )  # fmt: skip
    panel = pd.DataFrame({"gene": GENES, "main": [i < N_MAIN for i in range(24)], "extended": True})
    write_tsv(panel, tmp_path / "panel.tsv")
    return study


@pytest.fixture
def train(study, run_script):
    def run(model, fold, **more):
        folder = study.folder / fold / model
        output = {
            "weights": folder / "weights.safetensors",
            "settings": folder / "settings.json",
            "history": folder / "history.tsv",
        }
        files = {"folds": study.folder / "folds.tsv", "panel": study.folder / "panel.tsv"}
        log = run_script(
            "train_model.py",
            input={**files, **study.files, **more},
            output=output,
            params={
                "code": "0", "models": {model: MODELS[model]}, "lattice": LATTICE,
                "published_grid": [32, 32], "seed": 3,
            },
            wildcards={"model": model, "fold": fold},
        )  # fmt: skip
        return output, log

    return run


@pytest.fixture
def predict(study, run_script):
    def run(model, fold, output):
        path = study.folder / fold / f"{model}.h5ad"
        run_script(
            "predict_fold.py",
            input={
                "folds": study.folder / "folds.tsv",
                "weights": output["weights"],
                "settings": output["settings"],
                **study.files,
            },
            output={"predictions": path},
            wildcards={"model": model, "fold": fold},
        )
        return anndata.read_h5ad(path)

    return run


def forget(study, fold):
    """Make the test sections of a fold unreadable, as a reader of them would find out."""
    folds = read_tsv(study.folder / "folds.tsv", dtype=str)
    test = folds.loc[(folds["fold"] == fold) & (folds["role"] == "test"), "slide"]
    kept = {}
    for kind in study.files:
        for path in study.files[kind]:
            if path.stem in set(test):
                kept[path] = path.read_bytes()
                path.write_bytes(b"not for training")
    return kept


@pytest.mark.parametrize("model", ["ridge", "neighbours", "lattice", "blend"])
def test_an_honest_fold_trains_without_its_test_sections_and_finds_the_genes(
    study, train, predict, model, monkeypatch
):
    shorter = functools.partial(lattice_fit.train_committee, steps=80, snapshots=(40, 80))
    monkeypatch.setattr(lattice_fit, "train_committee", shorter)
    kept = forget(study, "patient_cv-2")
    assert len(kept) == 3
    output, _ = train(model, "patient_cv-2")
    for path, content in kept.items():
        path.write_bytes(content)
    settings = read_json(output["settings"])
    test = set(settings["test_slides"])
    assert test
    assert settings["validation_slides"]
    for key, slides in settings.items():
        if key.endswith("_fitted_on"):
            assert not test & set(slides), key
    assert set(settings["alpha_fitted_on"]) == set(study.slides) - test
    table = predict(model, "patient_cv-2", output)
    assert list(table.var_names) == GENES[:N_MAIN]
    assert set(table.obs["slide"]) == test
    assert table.obs["in_tissue"].all()
    found = pearson(table.X, table.layers["truth"])
    assert np.abs(found[:12]).min() > 0.3
    assert np.nanmax(np.abs(found[12:])) < 0.3
    assert table.layers["level"].std(0).max() < 1e-4
    assert table.uns["protocol"] == "patient_cv"
    assert table.uns["model"] == model
    for member in settings.get("committee", ()):
        assert not test & {*member["trained_slides"], *member["judged_slides"]}


@pytest.mark.parametrize("model", ["cmunet", "tumour"])
def test_an_honest_network_stops_on_validation_patients(study, train, predict, model):
    output, log = train(model, "patient_cv-1")
    settings = read_json(output["settings"])
    assert settings["epoch_fitted_on"] == settings["validation_slides"]
    assert settings["scaler_fitted_on"] == settings["train_slides"]
    history = read_tsv(output["history"])
    assert list(history) == ["epoch", "lr", "train_loss", "validation_loss", "validation_score"]
    best = int(history["validation_score"].idxmax()) + 1
    assert settings["best_epoch"] == best
    assert settings["validation_score"] == pytest.approx(
        history["validation_score"].max(), rel=1e-4
    )
    assert f"{settings['n_parameters']} parameters" in log
    assert "seconds" not in settings
    # What "auto" was on this machine, not the word.
    assert settings["training"]["precision"] in ("float32", "bfloat16")
    table = predict(model, "patient_cv-1", output)
    truth = table.layers["truth"]
    assert set(table.obs["slide"]) == {"S0", "S1"}
    if model == "tumour":
        assert list(table.var_names) == ["tumour"]
        assert table.uns["threshold"] == settings["threshold"]
        assert np.isnan(truth).any()
        assert auroc(table.X[:, 0], truth[:, 0]) > 0.8
    else:
        one = (table.obs["slide"] == "S0").to_numpy()
        found = pearson(table.X[one], truth[one])
        assert found[:12].mean() > 0.3


def best_threshold(probability, truth):
    """Return the lowest of the thresholds of the best F1, by scikit-learn."""
    known = np.isfinite(truth)
    probability, truth = probability[known], truth[known] > 0.5
    scores = {t: f1_score(truth, probability >= t) for t in np.unique(probability)}
    return min(t for t, score in scores.items() if score == max(scores.values()))


def test_the_tumour_threshold_is_that_of_the_validation_patients(study, train):
    output, log = train("tumour", "patient_cv-1")
    settings = read_json(output["settings"])
    assert settings["threshold_fitted_on"] == settings["validation_slides"]
    assert settings["threshold_fitted_on"]
    assert "tumour threshold" in log
    model, _ = read_model(output["weights"], output["settings"])
    roles = {s: p for s, p in study.roles().items() if s in settings["validation_slides"]}
    files = [study.files[kind] for kind in ("features", "spots", "labels")]
    sections = read_sections(roles, *files, task="tumour")
    predicted = np.concatenate([model.predict(section.tiles)[0][:, 0] for section in sections])
    truth = np.concatenate([section.targets[:, 0] for section in sections])
    assert settings["threshold"] == pytest.approx(best_threshold(predicted, truth), abs=1e-6)


def test_without_validation_patients_the_threshold_is_out_of_fold_or_none(
    study, train, predict, monkeypatch
):
    monkeypatch.setitem(MODELS, "tumour", MODELS["tumour"] | {"epochs": 8})
    folds = read_tsv(study.folder / "folds.tsv", dtype=str)
    folds.loc[(folds["fold"] == "patient_cv-1") & (folds["role"] == "validation"), "role"] = "train"
    dropped = (folds["fold"] == "patient_cv-1") & (folds["patient"] == "S")
    write_tsv(folds[~dropped], study.folder / "folds.tsv")
    settings = read_json(train("tumour", "patient_cv-1")[0]["settings"])
    assert settings["threshold_fitted_on"] == settings["train_slides"]
    assert 0 < settings["threshold"] < 1
    # The paper's protocol validates on nobody.
    output, _ = train("tumour", "published-1")
    settings = read_json(output["settings"])
    assert settings["threshold"] is None
    assert settings["threshold_fitted_on"] == []
    assert "threshold" not in predict("tumour", "published-1", output).uns


def test_an_ensemble_is_the_weighted_mean_of_its_members(study, train, predict):
    members = {name: train(name, "patient_cv-2")[0] for name in ("ridge", "neighbours")}
    files = {
        "members": [output["weights"] for output in members.values()],
        "member_settings": [output["settings"] for output in members.values()],
    }
    output, log = train("mean", "patient_cv-2", **files)
    settings = read_json(output["settings"])
    records = {name: read_json(output["settings"]) for name, output in members.items()}
    table = read_tsv(output["history"]).set_index("model")
    assert table["weight"].sum() == pytest.approx(1, abs=1e-5)
    assert table["score"].to_dict() == pytest.approx(
        {name: record["validation_score"] for name, record in records.items()}, rel=1e-4
    )
    assert table["weight"].idxmax() == table["score"].idxmax()
    # The weights are those of the scores alone: no file of a held-out section is opened.
    assert settings["test_slides"] == records["ridge"]["test_slides"]
    assert set(settings["weight_fitted_on"]) == set(study.slides) - set(settings["test_slides"])
    assert settings["alpha_fitted_on"] == records["ridge"]["alpha_fitted_on"]
    ours = predict("mean", "patient_cv-2", output)
    theirs = [predict(name, "patient_cv-2", members[name]).X for name in table.index]
    expected = sum(
        settings["members"][n]["weight"] * x for n, x in zip(table.index, theirs, strict=True)
    )
    assert np.allclose(ours.X, expected, atol=1e-5)
    assert "mean: ridge 0." in log
    other = train("neighbours", "patient_cv-1")[0]
    files["members"][1], files["member_settings"][1] = other["weights"], other["settings"]
    with pytest.raises(InputError, match="ridge and neighbours differ in their fold"):
        train("mean", "patient_cv-2", **files)


def test_training_twice_gives_the_same_files(study, train, monkeypatch):
    monkeypatch.setitem(MODELS, "cmunet", MODELS["cmunet"] | {"epochs": 4})
    first, _ = train("cmunet", "patient_cv-1")
    before = {name: path.read_bytes() for name, path in first.items()}
    second, _ = train("cmunet", "patient_cv-1")
    assert {name: path.read_bytes() for name, path in second.items()} == before


def test_the_paper_protocol_predicts_the_whole_grid(study, train, predict):
    output, _ = train("cmunet", "published-1")
    settings = read_json(output["settings"])
    assert settings["validation_slides"] == []
    assert settings["epoch_fitted_on"] == []
    assert settings["best_epoch"] == 50
    table = predict("cmunet", "published-1", output)
    assert table.n_obs == 32 * 32
    tissue = table.obs["in_tissue"].to_numpy()
    assert tissue.sum() == int(0.9 * 18 * 18)
    truth = table.layers["truth"]
    assert (truth[~tissue] == 0).all()
    assert (table.obs["barcode"][~tissue] == "").all()
    spots = anndata.read_h5ad(study.files["spots"][0])
    at = pd.Series(np.flatnonzero(tissue), table.obs["barcode"][tissue])[spots.obs_names]
    assert np.array_equal(table.obsm["spatial"][at], spots.obsm["spatial"])
    # Where the grid has no spot, it goes on at the pitch: 200 px along a row.
    first = table.obs.query("row == 31").sort_values("col").index[-2:]
    assert np.diff(table[first].obsm["spatial"], axis=0) == pytest.approx(
        np.array([[200.0, 0]]), abs=0.5
    )
    assert list(table.uns["spatial"]) == [study.slides[0]]
    place = table.obs[tissue].set_index("barcode").loc[spots.obs_names, ["row", "col"]]
    assert (place.to_numpy() == spots.obs[["row", "col"]].to_numpy()).all()
    # Genes that follow nothing score high over the whole grid: the outline is all they follow.
    whole = pearson(table.X, truth)[12:].mean()
    inside = pearson(table.X[tissue], truth[tissue])[12:].mean()
    assert whole > 0.7
    assert abs(inside) < 0.2


def test_deployment_trains_on_all_sections_for_the_median_share_of_the_schedule(
    study, train, tmp_path
):
    patient_cv = []
    # Of 25, 50 and 100 epochs: with fewer sections a schedule may have more.
    for i, (epoch, whole) in enumerate(((2, 25), (9, 50), (60, 100))):
        patient_cv.append(tmp_path / f"{i}.json")
        write_json(
            {
                "best_epoch": epoch,
                "schedule_epochs": whole,
                "scores": {"expression": 0.1 * i},
                "threshold": 0.2 * i or None,
            },
            patient_cv[-1],
        )
    output, _ = train("cmunet", "all", fold_settings=patient_cv)
    settings = read_json(output["settings"])
    assert settings["best_epoch"] == 9
    assert settings["train_slides"] == study.slides
    assert settings["validation_score"] == pytest.approx(0.1)
    assert settings["threshold"] == pytest.approx(0.3)
    assert settings["threshold_fitted_on"] == study.slides
    assert len(read_tsv(output["history"])) == 9


def test_with_two_training_patients_the_epoch_comes_from_inner_folds(study, train):
    folds = read_tsv(study.folder / "folds.tsv", dtype=str)
    folds.loc[(folds["fold"] == "patient_cv-1") & (folds["role"] == "validation"), "role"] = "train"
    dropped = (folds["fold"] == "patient_cv-1") & (folds["patient"] == "S")
    write_tsv(folds[~dropped], study.folder / "folds.tsv")
    output, log = train("cmunet", "patient_cv-1")
    settings = read_json(output["settings"])
    assert settings["train_patients"] == ["Q", "R"]
    assert settings["epoch_fitted_on"] == settings["train_slides"]
    assert re.search(r"inner folds chose \d\.\d\d of the schedule", log)
    assert len(read_tsv(output["history"])) == settings["best_epoch"]
    assert settings["validation_score"] > 0.1


def test_a_model_of_other_folds_is_not_scored(study, train, predict):
    output, _ = train("ridge", "patient_cv-1")
    settings = read_json(output["settings"])
    settings["train_slides"].append("S0")
    write_json(settings, output["settings"])
    with pytest.raises(InputError, match="trained on its test sections S0"):
        predict("ridge", "patient_cv-1", output)


def test_the_light_head_maps_tumours_of_held_out_patients(study, train, predict):
    kept = forget(study, "patient_cv-1")
    output, _ = train("head", "patient_cv-1")
    for path, content in kept.items():
        path.write_bytes(content)
    settings = read_json(output["settings"])
    test = set(settings["test_slides"])
    for what in ("alpha", "threshold", "scaler", "calibration"):
        assert set(settings[f"{what}_fitted_on"]) == set(study.slides) - test
    assert 0.7 < settings["scores"]["tumour"] == settings["validation_score"] <= 1
    table = predict("head", "patient_cv-1", output)
    assert list(table.var_names) == ["tumour"]
    assert table.uns["threshold"] == settings["threshold"]
    assert auroc(table.X[:, 0], table.layers["truth"][:, 0]) > 0.8


def test_one_network_learns_both_tasks(study, train, predict):
    """Expression and tumour map from one training; evaluation reads them as two models' would be."""
    output, _ = train("both", "patient_cv-1")
    settings = read_json(output["settings"])
    assert settings["genes"] == GENES[:N_MAIN]
    assert settings["architecture"]["n_outputs"] == N_MAIN + 1
    history = read_tsv(output["history"]).set_index("epoch")
    best = history.loc[settings["best_epoch"]]
    mean = (history["validation_expression"] + 2 * history["validation_tumour"] - 1) / 2
    assert mean.to_numpy() == pytest.approx(history["validation_score"].to_numpy(), abs=1e-5)
    assert mean.idxmax() == settings["best_epoch"]
    assert settings["scores"] == pytest.approx(
        {"expression": best["validation_expression"], "tumour": best["validation_tumour"]}, abs=1e-5
    )
    assert settings["threshold_fitted_on"] == settings["validation_slides"]
    table = predict("both", "patient_cv-1", output)
    assert list(table.var_names) == [*GENES[:N_MAIN], "tumour"]
    path = study.folder / "patient_cv-1" / "both.h5ad"
    sections = read_held_out([path])
    assert {(s.slide, s.task) for s in sections} == {
        (slide, task) for slide in ("S0", "S1") for task in ("expression", "tumour")
    }
    for section in sections:
        if section.task == "tumour":
            assert section.threshold == settings["threshold"]
            assert auroc(section.predicted[:, 0], section.truth[:, 0]) > 0.8
            assert 0 <= section.predicted.min() <= section.predicted.max() <= 1
        else:
            assert section.threshold is None
            assert pearson(section.predicted, section.truth)[:12].mean() > 0.3


def test_ridge_does_not_map_tumours(train, monkeypatch):
    monkeypatch.setitem(MODELS, "ridge", MODELS["ridge"] | {"task": "tumour"})
    with pytest.raises(InputError, match="ridge cannot predict tumour; use cmunet, or neighbours"):
        train("ridge", "patient_cv-1")


@pytest.mark.parametrize("model", ["tumour", "head", "both"])
def test_undetermined_labels_are_a_listed_outcome_and_all_else_goes_on(
    study, train, predict, monkeypatch, model
):
    monkeypatch.setitem(MODELS, model, MODELS[model] | {"epochs": 2})
    for path in study.files["labels"][2:]:  # those of the patients that train
        write_tsv(read_tsv(path).assign(label="undetermined"), path)
    output, log = train(model, "patient_cv-1")
    settings = read_json(output["settings"])
    assert "0 spots labelled malignant and 0 non-malignant" in log
    assert settings["threshold"] is None
    assert "tumour" not in settings["scores"]
    table = predict(model, "patient_cv-1", output)
    assert np.isnan(table[:, "tumour"].X).all()
    assert np.isfinite(table.X[:, :-1]).all()
    sections = read_held_out([study.folder / f"patient_cv-1/{model}.h5ad"])
    maps = [section for section in sections if section.task == "tumour"]
    assert all("no tumour map can be learned" in section.absent for section in maps)
    rows = tumour_table(sections, {}, permutations=20, seed=0)
    assert len(rows) == 2
    assert rows["auroc"].isna().all()
    assert rows["n_malignant"].min() > 0
    assert rows["absent"].str.contains("give labels").all()
    cards = {c["metric"]: c for c in tumour_cards(rows, settings={"bootstraps": 100}, seed=0)}
    assert np.isnan(cards["auroc"]["value"])
    assert cards["auroc"]["n_sections"] == 0


def test_the_chain_from_all_sections_to_a_new_slide(study, train, run_script, tmp_path):
    trained = {name: train(name, "all")[0] for name in ("ridge", "head", "extended")}
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    calibration = {
        "model": "ridge", "gene": GENES[:N_MAIN], "predictable": True, "score": 0.4, "null": 0.0,
        "half_width": 0.8, "coverage": 0.9,
    }  # fmt: skip
    write_tsv(pd.DataFrame(calibration), evaluation / "calibration.tsv")
    card = {"protocol": "patient_cv", "task": "expression", "model": "ridge", "metric": "pearson"}
    write_tsv(pd.DataFrame([card | {"value": 0.4}]), evaluation / "scorecards.tsv")
    patient_cv = tmp_path / "patient_cv.json"
    write_json(
        {"protocol": "patient_cv", "model": "ridge", "scores": {"expression": 0.4}}, patient_cv
    )
    images = [tmp_path / f"{slide}.json" for slide in study.slides]
    for slide, path in zip(study.slides, images, strict=True):
        write_json({"slide": slide, "sha256": f"image of {slide}"}, path)
    no_picture = tmp_path / "keypoints.parquet"
    write_keypoints({}, no_picture)
    run_script(
        "package_model.py",
        input={
            "calibration": evaluation / "calibration.tsv",
            "scorecards": evaluation / "scorecards.tsv",
            "fold_settings": [patient_cv],
            "weights": [files["weights"] for files in trained.values()],
            "settings": [files["settings"] for files in trained.values()],
            "features": study.files["features"],
            "slides": images,
            "keypoints": [no_picture],
            "labels": study.files["labels"],
        },
        output={"model": tmp_path / "model"},
        params={
            "lattice": LATTICE,
            "patients": study.roles(),
            "deploy": {"expression": "auto", "tumour": "auto", "extended": "extended"},
        },
        wildcards={"study": "test"},
    )
    from histogep.encoders.feature_file import write_features

    features, fields = make_features("NEW", np.random.default_rng(4), shape=(18, 18))
    write_features(features, tmp_path / "NEW.h5")
    write_json({"slide": "NEW", "sha256": "a new image"}, tmp_path / "NEW.json")
    write_thumbnail(np.full((90, 90, 3), 240, np.uint8), tmp_path / "NEW.jpg")
    output = {
        "expression": tmp_path / "out" / "NEW.h5ad",
        "geojson": tmp_path / "out" / "NEW.geojson",
        "map": tmp_path / "out" / "NEW.png",
    }
    arguments = {
        "input": {
            "slide": tmp_path / "NEW.json",
            "features": tmp_path / "NEW.h5",
            "keypoints": no_picture,
            "thumbnail": tmp_path / "NEW.jpg",
            "model": tmp_path / "model",
        },
        "output": output,
        "wildcards": {"slide": "NEW"},
    }
    run_script("predict_slide.py", **arguments)
    table = anndata.read_h5ad(output["expression"])
    for genes, field in ((TUMOUR_GENES[:4], 0), (IMMUNE_GENES, 1)):
        predicted = table[:, genes].X
        truth = np.repeat(fields[:, field : field + 1], len(genes), axis=1)
        assert pearson(predicted, truth).min() > 0.6
    assert auroc(table.obs["tumour"], fields[:, 0] > 0.2) > 0.85
    assert abs(table.uns["spatial"]["NEW"]["images"]["hires"].astype(int) - 240).max() <= 2
    tiles = json.loads(output["geojson"].read_text())["features"]
    assert len(tiles) == len(fields)
    assert output["map"].stat().st_size > 10_000
    before = {name: path.read_bytes() for name, path in output.items() if name != "expression"}
    run_script("predict_slide.py", **arguments)
    assert before == {name: output[name].read_bytes() for name in before}
    assert table.uns["training_section"] == ""
    # The file of a training section under another id.
    write_json({"slide": "NEW", "sha256": f"image of {study.slides[1]}"}, tmp_path / "NEW.json")
    log = run_script("predict_slide.py", **arguments)
    assert f"the image is that of the training section {study.slides[1]}" in log
    told = anndata.read_h5ad(output["expression"]).uns
    assert told["training_section"] == study.slides[1]
    assert told["image_sha256"] == f"image of {study.slides[1]}"
    far = anndata.read_h5ad(output["expression"])
    far.obs["ood_score"], far.obs["out_of_distribution"], far.obs["tumour"] = 3.0, True, np.nan
    far.uns["out_of_distribution"], far.uns["median_ood_score"] = True, 3.0
    far.write_h5ad(tmp_path / "FAR.h5ad")
    listed = {"table": tmp_path / "listed.tsv", "page": tmp_path / "listed.html"}
    listing = {
        "input": {"expression": [output["expression"], tmp_path / "FAR.h5ad"]},
        "output": listed,
        "params": {
            "slides": {
                "NEW": {"patient": "p", "cohort": "c"}, "FAR": {"patient": "q", "cohort": "d"},
            },
            "tumour_threshold": 0.6,
        },
    }  # fmt: skip
    run_script("list_predicted.py", **listing)
    near, away = read_tsv(listed["table"]).to_dict("records")
    assert (near["slide"], near["patient"], near["cohort"], near["n_tiles"]) == (
        *("NEW", "p", "c"),
        table.n_obs,
    )
    assert near["tumour_fraction"] == pytest.approx((table.obs["tumour"] >= 0.6).mean(), rel=1e-4)
    assert near["median_ood_score"] == pytest.approx(table.uns["median_ood_score"], rel=1e-4)
    assert near["out_of_distribution_fraction"] == pytest.approx(
        table.obs["out_of_distribution"].mean(), rel=1e-4
    )
    assert near["training_section"] == study.slides[1]
    assert (near["out_of_distribution"], away["out_of_distribution"]) == (False, True)
    assert (away["median_ood_score"], away["out_of_distribution_fraction"]) == (3.0, 1.0)
    assert np.isnan(away["tumour_fraction"])
    page = listed["page"].read_text()
    assert "1 of 2 are unlike the training slides" in page
    assert page.index("FAR") < page.index("NEW")
    del far.uns["out_of_distribution"]
    far.write_h5ad(tmp_path / "FAR.h5ad")
    with pytest.raises(InputError, match="FAR.h5ad"):
        run_script("list_predicted.py", **listing)
    write_json({"slide": "OTHER", "sha256": ""}, tmp_path / "NEW.json")
    with pytest.raises(InputError, match="is of slide NEW"):
        run_script("predict_slide.py", **arguments)
