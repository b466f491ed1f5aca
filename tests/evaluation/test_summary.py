"""The summary of a study is made of the tables that its stages wrote, whichever ran."""

import json

import pandas as pd
import pytest

from histogep.evaluation.summary import summarise_study
from histogep.files import write_json, write_tsv

SETTINGS = {
    "study": "s",
    "digest": "0123456789abcdef",
    "models": {
        # Of a kind that this version does not know.
        "expression": {
            "model": "best",
            "kind": "blend",
            "n_parameters": 1234,
            "train_patients": ["a"] * 6,
        },
    },
    "absent": {"tumour": "labels are undetermined"},
}
CARD = {
    "protocol": "patient_cv", "task": "expression", "model": "best", "metric": "pearson_patients",
    "value": 0.5, "ci_low": 0.4, "ci_high": 0.6, "null": 0.0, "null_upper": 0.1, "ceiling": 0.7,
    "n_sections": 8, "n_patients": 6, "n_genes": 1,
}  # fmt: skip


@pytest.fixture
def files(tmp_path):
    """What a study of sections and H&E writes."""
    (tmp_path / "model").mkdir()
    write_json(SETTINGS, tmp_path / "model/settings.json")
    genes = pd.DataFrame(
        {"gene": ["A", "NA"], "main": True, "predictable": True, "score": 0.4, "null": 0.0}
    )
    write_tsv(genes, tmp_path / "model/genes.tsv")
    write_tsv(pd.DataFrame([CARD]), tmp_path / "scorecards.tsv")
    columns = ["protocol", "model", "slide", "patient", "auroc_upper"]
    write_tsv(pd.DataFrame(columns=columns), tmp_path / "tumour.tsv")
    write_json({"ok": True, "notices": []}, tmp_path / "leakage.json")
    labels = tmp_path / "P1.tsv"
    write_tsv(pd.DataFrame({"barcode": ["x"], "label": ["undetermined"], "source": "cnv"}), labels)
    slides = pd.DataFrame(
        {"slide": ["P1", "H1", "H2"], "patient": ["p1", "h1", "h2"], "role": ["section", "slide", "slide"],
         "status": ["used", "used", "left out"]}
    )  # fmt: skip
    write_tsv(slides, tmp_path / "slides.tsv")
    predicted = pd.DataFrame(
        {"slide": ["H1"], "out_of_distribution": [False], "training_section": ""}
    )
    write_tsv(predicted, tmp_path / "predicted.tsv")
    stages = pd.DataFrame(
        [
            ("model", "", "ran", "x"),
            ("survival", "c", "left out", "no time"),
            ("cnv", "c", "ran", "y"),
        ],
        columns=["stage", "cohort", "state", "reason"],
    )
    write_tsv(stages, tmp_path / "stages.tsv")
    return {
        "stages": tmp_path / "stages.tsv", "slides": tmp_path / "slides.tsv", "model": tmp_path / "model",
        "scorecards": tmp_path / "scorecards.tsv", "tumour": tmp_path / "tumour.tsv",
        "verdict": tmp_path / "leakage.json", "labels": [labels], "predicted": tmp_path / "predicted.tsv",
    }  # fmt: skip


def test_a_study_with_undetermined_labels_says_so_and_promises_no_tumour_map(files):
    summary = summarise_study("s", files, {"tumour": ["tumour: all are left undetermined"]})
    assert [(v.question, v.grade) for v in summary.verdicts] == [
        ("Gene expression", "rely on it"),
        ("Tumour map", "do not"),
        ("Slides like the training slides", "rely on it"),
    ]
    assert "labels are undetermined" in summary.verdicts[1].because
    assert "undetermined in all spots of 1 of 1 (P1)" in summary.verdicts[1].finding
    assert summary.asked[0] == (
        "2 patients; sections (measured, they train the model): 1; slides without spots (predicted): 1; "
        "left out: 1"
    )
    assert summary.deployed == (
        "gene expression: best (blend, 1,234 parameters)",
        "tumour map: none",
        "model folder of the study s, 0123456789ab",
    )
    assert summary.left_out == ("survival (c): no time",)
    plain = json.loads(json.dumps(summary.to_plain(), allow_nan=False))
    assert plain["verdicts"][0]["value"] == 0.5
    assert plain["verdicts"][1]["value"] is None


def test_a_study_of_slides_with_a_model_from_elsewhere_never_says_rely_on_it(files):
    for name in ("scorecards", "tumour", "verdict", "labels"):
        del files[name]
    grades = {v.question: v.grade for v in summarise_study("s", files, {}).verdicts}
    assert grades["Gene expression"] == "with care"
    assert grades["Tumour map"] == "do not"


def test_warnings_are_reasons_for_care(files):
    verdict, *_ = summarise_study("s", files, {"slide": ["a"], "expression": ["b"]}).verdicts
    assert (verdict.grade, verdict.because) == ("with care", "2 warnings decide it")


def test_a_study_of_measured_expression_alone_has_its_outcomes(files, tmp_path):
    performance = tmp_path / "response/bulk/performance.tsv"
    performance.parent.mkdir(parents=True)
    row = {"model": "expression", "metric": "auroc", "value": 0.7, "ci_low": 0.6, "ci_high": 0.8,
           "p": 0.01, "null": 0.5, "null_upper": 0.6, "n": 40, "positives": 20}  # fmt: skip
    write_tsv(pd.DataFrame([row]), performance)
    counts = tmp_path / "bulk.counts.tsv"
    rows = [("patients", "in the table", 40), ("patients", "with a response known", 40),
            ("patients", "responders", 20)]  # fmt: skip
    write_tsv(pd.DataFrame(rows, columns=["part", "what", "n"]), counts)
    given = {"stages": files["stages"], "performance": [performance], "counts": [counts]}
    summary = summarise_study("s", given, {})
    assert [(v.question, v.cohort, v.grade) for v in summary.verdicts] == [
        ("Response from the measured expression", "bulk", "rely on it")
    ]
    assert summary.asked == ("Cohort bulk: response of 40 (20 responders), of 40 patients",)
    assert summary.deployed == ()
