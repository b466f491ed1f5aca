from __future__ import annotations

import html
import importlib.util
import re
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from histogep.errors import InputError
from histogep.files import file_sha256, read_json, read_tsv, write_json, write_tsv
from histogep.spots.normalise import add_expression

TESTS = Path(__file__).parent
OUTPUTS = {
    "scorecards": "scorecards.tsv",
    "genes": "genes.tsv",
    "sections": "sections.tsv",
    "tumour": "tumour.tsv",
    "calibration": "calibration.tsv",
    "registration": "registration.tsv",
    "scorecards_page": "scorecards.html",
    "genes_page": "genes.html",
    "genes_plot": "genes.svg",
    "maps": "maps.png",
    "tumour_plot": "tumour.png",
}


def neighbour(name):
    """Import another test file, for the study that it makes."""
    (path,) = TESTS.parent.glob(f"**/{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_study(folder, *, keep=lambda section: True):
    """Write the in-memory study of test_scorecards as the jobs before this one would."""
    sections, measured, folds = neighbour("test_scorecards").make_study()
    groups = {}
    for section in filter(keep, sections):
        groups.setdefault((section.fold, section.model), []).append(section)
    predictions = []
    for (fold, model), members in groups.items():
        tables = []
        for s in members:
            obs = pd.DataFrame(
                {
                    "slide": s.slide,
                    "patient": s.patient,
                    "barcode": s.barcode,
                    "row": s.row,
                    "col": s.col,
                    "in_tissue": s.in_tissue,
                },
                index=[f"{s.slide}:{i}" for i in range(len(s.row))],
            )
            tables.append(anndata.AnnData(s.predicted, obs=obs, layers={"truth": s.truth}))
        table = anndata.concat(tables)
        table.var_names = list(members[0].genes)
        table.uns = {k: getattr(members[0], k) for k in ("protocol", "fold", "model", "task")}
        path = folder / "predictions" / fold / f"{model}.h5ad"
        path.parent.mkdir(parents=True, exist_ok=True)
        table.write_h5ad(path)
        predictions.append(path)
    spots = []
    (folder / "spots").mkdir()
    for slide, m in measured.items():
        others = m.library_sizes - np.asarray(m.counts.sum(1)).ravel()
        counts = sparse.hstack([m.counts, sparse.csr_matrix(others[:, None])]).tocsr()
        # Spots and genes lie in another order than in the predictions.
        rng = np.random.default_rng(len(spots))
        table = anndata.AnnData(
            counts.astype(np.float32),
            obs=pd.DataFrame({"row": m.row, "col": m.col}, index=m.barcode),
            var=pd.DataFrame(index=[*m.genes, "OTHER"]),
            uns={"slide": slide, "lattice": m.lattice.to_settings()},
        )[rng.permutation(len(m.barcode)), rng.permutation(len(m.genes) + 1)].copy()
        add_expression(table).write_h5ad(folder / "spots" / f"{slide}.h5ad")
        spots.append(folder / "spots" / f"{slide}.h5ad")
    write_tsv(folds, folder / "folds.tsv")
    write_json({"ok": True}, folder / "leakage.json")
    shared = {"protocol": "patient_cv", "panel": "main", "task": "expression"}
    trained = {"net": 0.2, "zeta": 0.3}
    for model, score in trained.items():
        record = shared | {"model": model, "scores": {"expression": score}}
        write_json(record, folder / f"{model}.json")
    limits = {"sentence": "9 genes, of 9 that pass; genes.min_moran (0.05) is what binds"}
    write_json({"fold": "patient_cv-1", "limits": limits}, folder / "panel.json")
    labels = folder / "S1.tsv"
    write_tsv(pd.DataFrame({"barcode": ["a"], "label": ["malignant"], "source": ["cnv"]}), labels)
    return {
        "labels": [labels],
        "settings": [folder / f"{model}.json" for model in trained],
        "panels": [folder / "panel.json"],
        "verdict": folder / "leakage.json",
        "folds": folder / "folds.tsv",
        "predictions": predictions,
        "spots": spots,
    }


def evaluate(run_script, tmp_path, inputs, *, to="evaluation", deploy="auto"):
    log = run_script(
        "evaluate_model.py",
        input=inputs,
        output={name: tmp_path / to / file for name, file in OUTPUTS.items()},
        params={
            "evaluation": neighbour("test_scorecards").SETTINGS,
            "deploy": {"expression": deploy},
            "seed": 1,
        },
        wildcards={"study": "demo"},
    )
    return log, tmp_path / to


def test_evaluate_model_writes_every_table_and_figure_the_same_twice(run_script, tmp_path):
    inputs = write_study(tmp_path)
    log, folder = evaluate(run_script, tmp_path, inputs)
    assert "patient_cv expression net pearson" in log
    tables = {f: read_tsv(folder / f) for f in OUTPUTS.values() if f.endswith(".tsv")}
    assert all(len(table) for table in tables.values())
    cards = tables["scorecards.tsv"].set_index(["protocol", "model", "metric"])
    assert cards.columns.tolist() == [
        *("task", "value", "ci_low", "ci_high", "null", "null_upper", "ceiling"),
        *("ceiling_spatial", "n_sections", "n_patients", "n_genes"),
    ]
    assert cards.loc[("patient_cv", "tissue_mask", "pearson"), "value"] == 0
    assert cards.loc[("patient_cv", "net", "pearson"), "value"] > 0.1
    assert cards.loc[("published", "net", "pearson"), "null"] > 0.4
    assert (
        "inferred from copy number with markers, by no pathologist, in 1 of 1 (S1)"
        in (folder / "scorecards.html").read_text()
    )
    page = (folder / "genes.html").read_text()
    assert set(tables["genes.tsv"]["gene"]) == set(re.findall(r"<tr><td>(\w+)</td>", page))
    assert "is what binds" in page
    # Shuffled spots and genes change nothing: joined by barcode and name, not by row.
    module = neighbour("test_scorecards")
    direct = module.evaluate(*module.make_study(), settings=module.SETTINGS, seed=1)
    assert cards.loc[("patient_cv", "net", "pearson"), "value"] == pytest.approx(
        module.card(direct, "patient_cv", "net", "pearson")["value"], abs=1e-5
    )
    calibration = tables["calibration.tsv"]
    needed = ["model", "gene", "predictable", "score", "null", "half_width", "coverage"]
    assert set(needed) <= set(calibration.columns)
    assert calibration["predictable"].dtype == bool
    page = (folder / "scorecards.html").read_text()
    assert "patient_cv card: expression" in page
    assert "The paper&#x27;s protocol" in page
    assert (folder / "genes.svg").read_bytes().startswith(b"<?xml")
    assert (folder / "maps.png").stat().st_size > 10_000
    assert (folder / "tumour.png").stat().st_size > 10_000
    _, again = evaluate(run_script, tmp_path, inputs, to="again")
    for file in OUTPUTS.values():
        assert (folder / file).read_bytes() == (again / file).read_bytes(), file


@pytest.mark.parametrize(("task", "absent"), [("expression", "tumour"), ("tumour", "expression")])
def test_evaluate_model_with_one_task_only(run_script, tmp_path, task, absent):
    inputs = write_study(tmp_path, keep=lambda section: section.task == task)
    _, folder = evaluate(run_script, tmp_path, inputs)
    cards = read_tsv(folder / "scorecards.tsv")
    assert set(cards["task"]) == {task}
    empty = ["tumour.tsv"] if absent == "tumour" else ["genes.tsv", "calibration.tsv"]
    for file in empty:
        assert read_tsv(folder / file).empty


def test_evaluate_model_refuses_a_section_predicted_twice(run_script, tmp_path):
    inputs = write_study(tmp_path)
    again = tmp_path / "predictions" / "patient_cv-9"
    again.mkdir()
    table = anndata.read_h5ad(inputs["predictions"][0])
    table.uns["fold"] = "patient_cv-9"
    table.write_h5ad(again / "net.h5ad")
    inputs["predictions"].append(again / "net.h5ad")
    with pytest.raises(InputError, match="tested once"):
        evaluate(run_script, tmp_path, inputs)


def write_audit(folder, *, leak):
    """Write the study of test_leakage as files; `leak` changes it before."""
    study = neighbour("test_leakage").clean_study()
    leak(study)
    inputs = {"folds": folder / "folds.tsv", "markers": folder / "markers.tsv"}
    write_tsv(study["folds"], inputs["folds"])
    write_tsv(study["markers"], inputs["markers"])
    inputs["copies"] = folder / "copies.tsv"
    write_tsv(study["similar"], inputs["copies"])
    inputs |= {"gene_scores": [], "panels": [], "records": [], "settings": []}
    inputs["slides"] = [folder / "slides" / f"{slide}.json" for slide in study["image_sha256"]]
    for path in inputs["slides"]:
        digest = study["image_sha256"][path.stem]
        write_json({"slide": path.stem, "sha256": digest}, path)
    digests = {}
    for slide, table in study["gene_scores"].items():
        path = folder / "sections" / f"{slide}.tsv"
        path.parent.mkdir(exist_ok=True)
        write_tsv(table, path)
        digests[slide] = file_sha256(path)
        inputs["gene_scores"].append(path)
    for fold, panel in study["panels"].items():
        record = study["records"][fold]
        record["sha256"] = {slide: digests[slide] for slide in record["sha256"]}
        write_tsv(panel, folder / f"{fold}.tsv")
        write_json(record, folder / f"{fold}.json")
        inputs["panels"].append(folder / f"{fold}.tsv")
        inputs["records"].append(folder / f"{fold}.json")
    for settings in study["models"]:
        path = folder / settings["fold"] / settings["model"] / "settings.json"
        write_json(settings, path)
        inputs["settings"].append(path)
    return inputs


def audit(run_script, tmp_path, inputs):
    return run_script(
        "audit_leakage.py",
        input=inputs,
        output={"verdict": tmp_path / "leakage.json", "page": tmp_path / "leakage.html"},
        params={"genes": neighbour("test_leakage").SETTINGS},
        wildcards={"study": "demo"},
    )


def test_audit_leakage_passes_a_clean_study(run_script, tmp_path):
    log = audit(run_script, tmp_path, write_audit(tmp_path, leak=lambda study: None))
    verdict = read_json(tmp_path / "leakage.json")
    assert verdict["ok"]
    assert verdict["n_checks"] > 100
    assert verdict["known_leaks"]
    assert "known leak of the paper's protocol, published-1" in log
    page = (tmp_path / "leakage.html").read_text()
    assert f"{verdict['n_checks']} checks, 0 failed" in page
    assert html.escape(verdict["known_leaks"][0]["detail"]) in page
    for check in {check["check"] for check in verdict["checks"]}:
        assert f"<td>{check}</td>" in page


def plant_patient(study):
    folds = study["folds"]
    row = folds[(folds["fold"] == "patient_cv-1") & (folds["role"] == "test")].index[0]
    folds.loc[row, "role"] = "train"


def plant_image(study):
    study["image_sha256"]["S2"] = study["image_sha256"]["S0"]


def plant_panel(study):
    module = neighbour("test_leakage")
    study["panels"]["patient_cv-1"] = module.choose_panel(
        study["gene_scores"], module.MARKERS, module.SETTINGS
    )


@pytest.mark.parametrize(
    ("leak", "check"),
    [
        (plant_patient, "patient_cv-1.*patient_in_one_role"),
        (plant_image, "one_patient_per_image"),
        (plant_panel, "patient_cv-1.*panel_chosen_again"),
    ],
)
def test_audit_leakage_stops_the_run_and_says_where(run_script, tmp_path, leak, check):
    inputs = write_audit(tmp_path, leak=leak)
    with pytest.raises(InputError, match=rf"(?s)leak: .*{check}"):
        audit(run_script, tmp_path, inputs)
    assert not (tmp_path / "leakage.json").exists()
    assert not (tmp_path / "leakage.html").exists()
    assert "leak: " in (tmp_path / "job.log").read_text()
