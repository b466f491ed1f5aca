"""The rules by which a result is graded: each reason lowers it, and none raises it."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from histogep.cnv import controls as cnv_controls
from histogep.evaluation import verdicts as v

ROOT = Path(__file__).resolve().parents[2]
CARD = {
    "protocol": "patient_cv", "task": "expression", "model": "net", "metric": "pearson_patients",
    "value": 0.5, "ci_low": 0.4, "ci_high": 0.6, "null": 0.0, "null_upper": 0.1, "ceiling": 0.7,
    "n_sections": 8, "n_patients": 6, "n_genes": 10,
}  # fmt: skip
PANEL = pd.DataFrame(
    {"gene": list("abcdef"), "main": [True] * 5 + [False], "predictable": [True] * 4 + [False] * 2,
     "score": 0.4, "null": 0.01}
)  # fmt: skip


def expression(genes=PANEL, warned=(), alike=0, **changed):
    return v.judge_expression(
        pd.DataFrame([CARD | changed]), genes, model="net", file="f", warned=warned, alike=alike
    )


def test_expression_that_is_beyond_its_null_may_be_relied_on_with_its_numbers_in_words():
    verdict = expression()
    assert (verdict.grade, verdict.because) == (v.RELY, "")
    assert verdict.finding == (
        "4 of the 5 genes of the panel can be used: predicted for held-out patients, their maps beat "
        "chance. Over all genes r = 0.50 (0.40 to 0.60); a predictor that does not look at the tissue "
        "has 0.00 (at most 0.10 in 19 of 20 cases), and a perfect one 0.70 against counts as noisy as "
        "these."
    )
    assert (verdict.value, verdict.null, verdict.null_upper, verdict.ceiling) == (0.5, 0, 0.1, 0.7)


@pytest.mark.parametrize(
    ("changed", "grade", "reason"),
    [
        ({"ci_low": -0.1}, v.DO_NOT, "not beyond its null"),
        ({"value": 0.1}, v.DO_NOT, "not beyond its null"),
        ({"value": np.nan}, v.DO_NOT, "never tested"),
        ({"model": "other"}, v.DO_NOT, "never tested"),
        ({"protocol": "published"}, v.DO_NOT, "never tested"),
        ({"genes": PANEL.assign(predictable=False)}, v.DO_NOT, "no gene beats chance"),
        (
            {"genes": PANEL.assign(predictable=[True, True, *[False] * 4])},
            v.CARE,
            "fewer than half",
        ),
        ({"n_patients": 4}, v.CARE, "4 patients were held out, fewer than 5"),
        ({"n_patients": 5}, v.RELY, ""),
        ({"null_upper": np.nan}, v.RELY, ""),
        ({"alike": 1}, v.CARE, "may be one patient"),
        ({"warned": ["expression: genes are lost"]}, v.CARE, "a warning decides it"),
        ({"warned": ["a"], "value": 0.05}, v.DO_NOT, "not beyond its null; a warning decides it"),
    ],
)
def test_expression(changed, grade, reason):
    verdict = expression(**changed)
    assert verdict.grade == grade
    assert reason in verdict.because


def labels(*sources):
    rows = [(f"S{i}", s, 100, 40, 50, 10) for i, s in enumerate(sources)]
    columns = ["slide", "source", "n_spots", "n_malignant", "n_non_malignant", "n_undetermined"]
    return pd.DataFrame(rows, columns=columns)


def tumour(sources=("annotation",) * 3, upper=0.7, model="t", absent="", warned=(), **changed):
    card = CARD | {"task": "tumour", "model": "t", "metric": "auroc", "value": 0.9, "ci_low": 0.8,
                   "ci_high": 0.95, "null": 0.5, "null_upper": np.nan} | changed  # fmt: skip
    sections = pd.DataFrame({"protocol": "patient_cv", "model": "t", "auroc_upper": [upper, upper]})
    return v.judge_tumour(
        pd.DataFrame([card]), sections, labels(*sources), model=model, file="f", absent=absent,
        warned=warned,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "grade", "reason"),
    [
        ({}, v.RELY, ""),
        ({"value": 0.69}, v.DO_NOT, "not beyond its null"),
        ({"ci_low": 0.5}, v.DO_NOT, "not beyond its null"),
        ({"value": np.nan}, v.DO_NOT, "never tested"),
        ({"model": ""}, v.DO_NOT, "there is no tumour map"),
        (
            {"model": "", "absent": "its labels are undetermined"},
            v.DO_NOT,
            "labels are undetermined",
        ),
        ({"value": 0.75}, v.CARE, "below 0.8"),
        ({"n_patients": 2}, v.CARE, "2 patients"),
        ({"sources": ("annotation", "cnv")}, v.CARE, "labels of 1 of 2 sections are inferred"),
        ({"sources": ("markers",)}, v.CARE, "not how well it finds tumour"),
        ({"warned": ["w"]}, v.CARE, "a warning decides it"),
    ],
)
def test_tumour_map(changed, grade, reason):
    verdict = tumour(**changed)
    assert verdict.grade == grade
    assert reason in verdict.because


def test_the_tumour_verdict_says_whose_labels_it_was_tested_against():
    assert "annotated (given in the slide sheet) in 3 of 3 sections" in tumour().finding
    finding = tumour(sources=("annotation", "cnv", "cnv")).finding
    assert (
        "inferred from copy number with markers, by no pathologist, in 2 of 3 (S1, S2)" in finding
    )


def controls(*slides):
    rows = [
        {"slide": slide, "control": c, "verdict": "pass", "name": n, "reference": r, "note": note}
        for slide, n, r, note in slides
        for c in ("genes", "whole arms, tumour")
    ]
    rows.append({"slide": "cohort", "control": "subtypes", "verdict": "pass"})
    columns = ["slide", "control", "verdict", "name", "reference", "note"]
    return pd.DataFrame(rows, columns=columns)


GOOD = ("A", "CNV", "labels", "measured")


@pytest.mark.parametrize(
    ("slides", "grade", "reason", "share"),
    [
        ([GOOD], v.RELY, "", 1),
        ([GOOD, ("B", "CNV", "prediction", "predicted")], v.RELY, "", 1),
        ([GOOD, ("B", "expression subtype", "prediction", "predicted")], v.CARE,
         "1 of 1 profiles from predicted expression", 0.5),
        ([("B", "expression subtype", "prediction", "predicted")], v.DO_NOT,
         'call none of them copy number but "expression subtype"', 0),
        ([("A", "CNV", "ranked", "measured; low confidence")], v.DO_NOT, "low confidence", 0),
        ([GOOD, ("B", "CNV, low confidence", "ranked", "measured; x")], v.CARE, "ranked", 0.5),
        ([GOOD, ("B", "CNV", "labels", "only 3 reference spots")], v.CARE, "no profile", 0.5),
        ([GOOD, ("B", "CNV", "labels", "measured; no malignant spot, so no clone")], v.CARE,
         "no profile", 0.5),
    ],
)  # fmt: skip
def test_copy_number(slides, grade, reason, share):
    verdict = v.judge_copy_number({"c": controls(*slides)}, file="f")
    assert verdict.grade == grade
    assert reason in verdict.because
    assert verdict.value == pytest.approx(share)


def test_copy_number_of_no_slide_is_no_verdict():
    assert v.judge_copy_number({}, file="f") is None
    assert v.judge_copy_number({"c": controls()}, file="f") is None


def test_copy_number_is_called_as_in_its_room():
    assert v.COPY_NUMBER == cnv_controls.COPY_NUMBER


def image(*, gain=0.1, low=0.02, high=0.2, p=0.01, hr=(2.0, 1.2, 3.0), events=60, beside=True, stage=True,
          warned=(), fitted=None):  # fmt: skip
    rows = [("clinical", 0.6, 0.5, 0.7, 0.1, 0.5), ("image", 0.68, 0.6, 0.8, p, 0.5),
            ("clinical+image", 0.6 + gain, 0.6, 0.8, p, 0.6),
            ("clinical+image - clinical", gain, low, high, p, -0.01)]  # fmt: skip
    rows = rows if beside else rows[1:2]
    table = pd.DataFrame(rows, columns=["model", "c_index", "ci_low", "ci_high", "p", "null"])
    table = table.assign(protocol="patient_cv", n=100, events=events)
    if stage:
        table.loc[len(table)] = ["stage", 0.58, 0.5, 0.66, 0.04, 0.5, "as given", 90, events]
    published = table.iloc[[0]].assign(model="published maps", protocol="published", c_index=0.99)
    hazards = pd.DataFrame(
        [("age", 1.1, 0.9, 1.3, 0.2), ("stage", 1.5, 1.0, 2.2, 0.05), ("image risk", *hr, 0.01)],
        columns=["variable", "hr", "ci_low", "ci_high", "p"],
    ).assign(events=events if fitted is None else fitted)
    follow_up = pd.DataFrame({"group": ["all", "high risk"], "median_follow_up": [46.8, np.nan]})
    return v.judge_image(
        pd.concat([table, published]), hazards, follow_up, cohort="c", file="f", warned=warned
    )


@pytest.mark.parametrize(
    ("changed", "grade", "reason"),
    [
        ({}, v.RELY, ""),
        ({"p": 0.05}, v.DO_NOT, "p is not below 0.05"),
        ({"p": np.nan}, v.DO_NOT, "p is not below 0.05"),
        ({"gain": -0.1, "low": -0.2}, v.DO_NOT, "does not add to the clinic"),
        ({"low": -0.01}, v.CARE, "includes no gain"),
        ({"hr": (2.0, 0.9, 4.0)}, v.CARE, "hazard ratio includes 1"),
        ({"low": -0.3, "gain": -0.2, "high": -0.1}, v.DO_NOT, "the interval lies below no gain"),
        ({"hr": (0.6, 0.4, 0.9)}, v.CARE, "hazard ratio lies below 1"),
        ({"events": 29}, v.CARE, "29 events for 3 coefficients"),
        # Patients without a stage are not in the multivariable model.
        ({"events": 60, "fitted": 29}, v.CARE, "29 events for 3 coefficients"),
        ({"events": 30}, v.RELY, ""),
        ({"beside": False, "low": 0.1}, v.CARE, "no clinical covariate"),
        ({"warned": ["x"]}, v.CARE, "a warning decides it"),
    ],
)
def test_image_beside_the_clinic(changed, grade, reason):
    verdict = image(**changed)
    assert verdict.grade == grade
    assert reason in verdict.because


def test_the_image_verdict_names_stage_hazard_ratio_and_follow_up():
    finding = image().finding
    assert "adds +0.10 (+0.02 to +0.20) to the C-index of the clinical covariates" in finding
    assert "the stage by itself 0.58" in finding
    assert "adjusted for the others: 2 (1.2 to 3)" in finding
    assert "100 patients, 60 events, median follow-up 46.8 months" in finding


@pytest.mark.parametrize(
    ("changed", "grade", "reason"),
    [
        ({}, v.RELY, ""),
        ({"p": 0.2}, v.DO_NOT, "p is not below"),
        ({"ci_low": 0.45}, v.CARE, "includes chance"),
        ({"ci_low": 0.2, "ci_high": 0.4, "p": 0.9}, v.DO_NOT, "the interval lies below chance"),
        ({"positives": 31}, v.CARE, "the rarer outcome has 9 patients"),
        ({"model": "cytolytic"}, v.DO_NOT, "no model of the image"),
    ],
)
def test_response(changed, grade, reason):
    row = {"model": "image", "metric": "auroc", "value": 0.8, "ci_low": 0.6, "ci_high": 0.9,
           "p": 0.01, "null": 0.5, "null_upper": 0.65, "n": 40, "positives": 20} | changed  # fmt: skip
    verdict = v.judge_response(pd.DataFrame([row]), cohort="c", file="f")
    assert verdict.grade == grade
    assert reason in verdict.because


@pytest.mark.parametrize(
    ("out", "known", "grade"),
    [(0, 0, v.RELY), (1, 0, v.CARE), (5, 0, v.CARE), (6, 0, v.DO_NOT), (0, 1, v.CARE)],
)
def test_slides_like_the_training_slides(out, known, grade):
    table = pd.DataFrame(
        {
            "slide": [f"S{i}" for i in range(10)],
            "out_of_distribution": [i < out for i in range(10)],
            "training_section": ["P1" if i < known else np.nan for i in range(10)],
        }
    )
    verdict = v.judge_slides(table, file="f")
    assert verdict.grade == grade
    assert verdict.finding.startswith(f"{out} of 10 slides")
    assert v.judge_slides(table.iloc[:0], file="f") is None


def test_a_model_that_is_applied_is_never_more_than_with_care():
    settings = {
        "study": "other",
        "models": {"expression": {"model": "net", "train_patients": list("abcdef")}},
    }
    verdict = v.judge_applied_expression(PANEL, settings, file="f")
    assert verdict.grade == v.CARE
    assert "on no section of this study" in verdict.because
    assert "4 of the 5 genes" in verdict.finding
    assert "median r was 0.40 there, where knowing nothing has 0.01" in verdict.finding
    none = v.judge_applied_expression(PANEL.assign(predictable=False), settings, file="f")
    assert (none.grade, np.isnan(none.value)) == (v.DO_NOT, True)
    assert v.judge_applied_tumour(settings, file="f").grade == v.DO_NOT
    settings["models"]["tumour"] = {"model": "t"}
    assert v.judge_applied_tumour(settings, file="f").grade == v.CARE


def test_the_table_has_a_row_for_each_verdict():
    table = v.table_of([expression(), image(p=0.9)])
    assert list(table.columns) == list(v.COLUMNS)
    assert table["grade"].tolist() == [v.RELY, v.DO_NOT]
    assert v.table_of([]).empty


def test_the_numbers_of_the_rules_are_those_of_the_documents():
    section = (ROOT / "docs/methods/verdicts.md").read_text()
    for grade in v.GRADES:
        assert f"*{grade}*" in section
    for name in (
        "FEW_PATIENTS",
        "HALF",
        "GOOD_AUROC",
        "LEVEL",
        "EVENTS_PER_COEFFICIENT",
        "FEW_OF_A_CLASS",
    ):
        value = f"{getattr(v, name):g}".removeprefix("0")
        assert re.search(rf"(?<![\d.]){re.escape(value)}(?![\d.]*\d)", section), name
