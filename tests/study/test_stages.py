import pandas as pd
import pytest

from histogep.errors import InputError
from histogep.study.stages import plan_stages, trained_on

CONFIG = {
    "study": "s",
    "model": None,
    "references": {"gene_positions": "p.tsv", "gene_sets": {"h": "h.gmt"}},
    "models": {"extended": {"kind": "ridge"}},
    "deploy": {"extended": "extended"},
    "survival": {"folds": 5},
    "response": {"folds": 5},
    "folds": {"patient_cv": "patient", "published": "section"},
}


def _slides(*rows):
    frame = pd.DataFrame(rows, columns=["slide", "patient", "cohort", "counts"])
    frame["labels"] = ["drawn.geojson" if slide == "A" else "" for slide in frame["slide"]]
    return frame.set_index("slide", drop=False)


def _patients(n, **columns):
    names = [f"P{i}" for i in range(n)]
    return pd.DataFrame({"patient": names, **columns}, index=names)


TRAINING = (("A", "PA", "v", "x"), ("B", "PB", "v", "x"))
HOSPITAL = tuple((f"S{i}", f"P{i}", "h", "") for i in range(12))


def test_everything_runs_when_everything_is_given():
    patients = _patients(12, time=1.0, event=1.0, response=[0.0, 1.0] * 6)
    stages = plan_stages(CONFIG, _slides(*TRAINING, *HOSPITAL), patients)
    assert stages.runs("survival", "h")
    assert stages.runs("response", "h")
    assert not stages.runs("survival", "v")
    assert "results/enrichment/h/survival/gsea.tsv" in stages.targets()
    assert "results/enrichment/v/tumour/gsea.tsv" in stages.targets()
    assert "results/expression/S3.h5ad" in stages.of("expression")
    assert stages.of("label check") == ["results/evaluation/s/labels.tsv"]
    unlabelled = _slides(*TRAINING).assign(labels="")
    assert not plan_stages(CONFIG, unlabelled, None).runs("label check")
    assert stages.of("cnv agreement") == ["results/cnv/s/agreement.tsv"]


def test_neighbourhoods_are_described_where_there_is_a_map():
    config = {**CONFIG, "neighbourhoods": {"run": True}}
    stages = plan_stages(config, _slides(*TRAINING, *HOSPITAL), None)
    assert stages.cohorts("neighbourhoods") == ["h", "v"]
    assert "results/neighbourhoods/h/slides.tsv" in stages.targets()
    unmapped = {"models": {"expression": {"train_patients": [], "validation_patients": []}}}
    applied = plan_stages(
        {**config, "model": "m"}, _slides(*HOSPITAL), None, applied_model=unmapped
    )
    reasons = {row["stage"]: row["reason"] for row in applied.rows()}
    assert reasons["neighbourhoods"] == "the model folder has no tumour map"
    off = {**config, "neighbourhoods": {"run": False}}
    assert not plan_stages(off, _slides(*TRAINING, *HOSPITAL), None).cohorts("neighbourhoods")
    wanted = {**off, "survival": {"folds": 5, "neighbourhoods": True}}
    with pytest.raises(InputError, match="survival.neighbourhoods is true, but neighbourhoods.run"):
        plan_stages(wanted, _slides(*TRAINING, *HOSPITAL), None)


def test_what_is_missing_leaves_its_stage_out_and_says_why():
    config = {**CONFIG, "references": {"gene_positions": None, "gene_sets": {}}}
    rows = plan_stages(config, _slides(*TRAINING, *HOSPITAL), None).rows()
    reasons = {(row["stage"], row["cohort"]): row for row in rows}
    assert reasons["survival", "h"]["state"] == "left out"
    assert reasons["survival", "h"]["reason"] == "no patients sheet"
    assert "gene_positions" in reasons["cnv", "h"]["reason"]
    assert "gene_sets" in reasons["enrichment", "h"]["reason"]
    assert "gene_positions" in reasons["cnv agreement", ""]["reason"]
    stages = plan_stages({**CONFIG, "models": {}}, _slides(*TRAINING), None)
    assert not stages.runs("cnv agreement")


def test_too_few_known_outcomes_leave_survival_out():
    patients = _patients(12, time=[1.0] * 5 + [float("nan")] * 7, event=1.0)
    stages = plan_stages(CONFIG, _slides(*TRAINING, *HOSPITAL), patients)
    assert not stages.runs("survival", "h")
    assert any("5 patients" in row["reason"] for row in stages.rows())


def test_one_training_patient_is_refused():
    with pytest.raises(InputError, match="at least 2"):
        plan_stages(CONFIG, _slides(("A", "PA", "v", "x"), ("B", "PA", "v", "x")), None)


def test_a_model_folder_replaces_training():
    stages = plan_stages({**CONFIG, "model": "m"}, _slides(*TRAINING), None)
    assert not stages.runs("model")
    predicted = [f"results/expression/{slide}.h5ad" for slide in "AB"]
    assert stages.of("expression") == [*predicted, "results/predicted_slides.tsv"]


def test_measured_cohorts_need_no_slide_and_name_what_is_left_out():
    from histogep.study.sheets import no_slides

    rows = _patients(12, time=1.0, event=1.0)
    stages = plan_stages(CONFIG, no_slides(), None, {"bulk": rows})
    assert stages.runs("patients", "bulk")
    assert stages.runs("survival", "bulk")
    assert not stages.runs("response", "bulk")
    assert stages.of("enrichment") == ["results/enrichment/bulk/survival/gsea.tsv"]
    reasons = {row["stage"]: row["reason"] for row in stages.rows() if row["state"] == "left out"}
    assert reasons["model"] == "no slides: nothing to train on"
    assert reasons["expression"] == "no slides: nothing to predict"
    assert "no slide" in reasons["cnv"]
    assert "no column response" in reasons["response"]


def test_a_measured_cohort_stands_beside_slides():
    patients = _patients(12, time=1.0, event=1.0)
    slides = _slides(*TRAINING, *HOSPITAL)
    stages = plan_stages(CONFIG, slides, patients, {"bulk": patients.head(11)})
    assert stages.runs("survival", "h")
    assert stages.runs("survival", "bulk")


def test_nothing_to_work_on_is_refused():
    from histogep.study.sheets import no_slides

    with pytest.raises(InputError, match="give a slide sheet as `slides:`"):
        plan_stages(CONFIG, no_slides(), None)


def test_a_transfer_needs_two_cohorts_with_responses():
    from histogep.study.sheets import no_slides

    rows = _patients(12, response=[0.0, 1.0] * 6)
    one = plan_stages(CONFIG, no_slides(), None, {"a": rows})
    assert not one.runs("transfer")
    assert "1 cohorts, a transfer needs 2" in str(one.rows())
    two = plan_stages(CONFIG, no_slides(), None, {"a": rows, "b": rows})
    assert two.of("transfer") == ["results/transfer/s/performance.tsv"]
    assert two.cohorts("response") == ["a", "b"]


def test_outcomes_that_cannot_be_modelled_leave_their_stage_out():
    slides = _slides(*TRAINING, *HOSPITAL)
    patients = _patients(12, time=1.0, event=[1.0] * 4 + [0.0] * 8, response=[1.0] * 2 + [0.0] * 10)
    stages = plan_stages(CONFIG, slides, patients)
    reasons = {r["stage"]: r["reason"] for r in stages.rows() if r["cohort"] == "h"}
    assert not stages.runs("survival", "h")
    assert reasons["survival"] == "4 patients have an event, at least 5 are needed"
    assert not stages.runs("response", "h")
    assert reasons["response"].startswith("2 of 12 patients responded")
    assert plan_stages({**CONFIG, "survival": {"folds": 4}}, slides, patients).runs("survival", "h")


def test_a_cohort_without_a_row_in_the_patient_sheet_has_no_patients_stage():
    slides = _slides(*TRAINING, *HOSPITAL, ("X", "PX", "other", ""))
    stages = plan_stages(CONFIG, slides, _patients(12, time=1.0, event=1.0))
    assert stages.runs("patients", "h")
    assert not stages.runs("patients", "other")
    assert "results/expression/X.h5ad" in stages.targets()


def test_a_patient_sheet_with_other_ids_is_no_silent_loss_of_the_outcomes():
    slides = _slides(*TRAINING, *HOSPITAL)
    patients = _patients(12, time=1.0, event=1.0)
    other = patients.rename(index=lambda name: f"PAT-{name}")
    with pytest.raises(InputError, match=r"It has PAT-P0, PAT-P1, PAT-P10 and 9 more; the slides"):
        plan_stages(CONFIG, slides, other.sort_index())
    some = patients.rename(index={"P0": "P-0", "P1": "P-1"})
    stages = plan_stages(CONFIG, slides, some)
    told = "left out: patients (h): not in the patients sheet: P0, P1"
    assert told in stages.left_out()
    rows = stages.rows()
    reason = next(r["reason"] for r in rows if (r["stage"], r["cohort"]) == ("patients", "h"))
    assert reason == (
        "10 patients with slides to predict are in the patients sheet, 2 are not: P0, P1 (83 % "
        "matched; 2 more would match without leading zeros of numbers, or marks such as - and _: "
        "'P0' and 'P-0')"
    )
    few = patients.rename(index={f"P{i}": f"P-{i}" for i in range(7)})
    (note,) = [x for x in plan_stages(CONFIG, slides, few).left_out() if x.startswith(told[:24])]
    assert "only 5 of 12 are; 7 more would match without leading zeros" in note
    strange = _slides(*TRAINING, *HOSPITAL, ("X", "PX", "other", ""))
    told = plan_stages(CONFIG, strange, patients).left_out()
    reason = "the patients sheet names none of its 1 patients, such as PX"
    assert f"left out: patients (other), survival (other), response (other): {reason}" in told


def test_what_an_earlier_run_left_of_a_stage_that_is_left_out_is_named(tmp_path):
    slides = _slides(*TRAINING, *HOSPITAL)
    (tmp_path / "results/survival/h").mkdir(parents=True)
    (tmp_path / "results/response/h").mkdir(parents=True)
    stages = plan_stages(CONFIG, slides, _patients(12, time=1.0, event=1.0))
    (said,) = stages.leftovers(tmp_path)
    assert said.startswith("results/response/h: from an earlier run, not part of this one")
    # What is left of a cohort that is no longer in the sheet has no stage at all.
    (tmp_path / "results/patients").mkdir()
    (tmp_path / "results/patients/gone.parquet").touch()
    (tmp_path / "results/predicted_slides.tsv").touch()
    said = plan_stages(CONFIG, _slides(*TRAINING), None).leftovers(tmp_path)
    assert [line.split(":")[0] for line in said] == [
        "results/patients/gone.parquet",
        "results/predicted_slides.tsv",
        "results/response/h",
        "results/survival/h",
    ]


def test_patients_that_the_model_learnt_from_are_no_out_of_sample_patients():
    """Slides without spots of the training patients: their prediction is not out of sample."""
    patients = _patients(12, time=1.0, event=1.0)
    taught = tuple((f"T{i}", f"P{i}", "v", "x") for i in range(4))
    slides = _slides(*taught, *HOSPITAL)
    stages = plan_stages(CONFIG, slides, patients)
    reasons = {r["stage"]: r["reason"] for r in stages.rows() if r["cohort"] == "h"}
    assert reasons["survival"] == "time is known of 8 patients, at least 10 are needed"
    kept = plan_stages({**CONFIG, "summary": {"training_patients": "keep"}}, slides, patients)
    assert kept.runs("survival", "h")
    everybody = tuple((f"T{i}", f"P{i}", "v", "x") for i in range(12))
    stages = plan_stages(CONFIG, _slides(*everybody, *HOSPITAL), patients)
    reasons = {r["stage"]: r["reason"] for r in stages.rows() if r["cohort"] == "h"}
    assert reasons["survival"] == "the model was trained on every patient with a slide to predict"
    assert not stages.runs("patients", "h")
    assert not stages.runs("enrichment", "h")


def test_an_applied_model_brings_the_patients_that_it_learnt_from():
    model = {"models": {"expression": {"train_patients": ["P0"], "validation_patients": ["P1"]}}}
    config = {**CONFIG, "model": "m"}
    patients = _patients(12, time=1.0, event=1.0)
    slides = _slides(*HOSPITAL)
    assert trained_on([], model) == ["P0", "P1"]
    stages = plan_stages(config, slides, patients, applied_model=model)
    assert stages.runs("survival", "h")
    reasons = {r["stage"]: r["reason"] for r in stages.rows() if r["cohort"] == "h"}
    assert reasons["survival"] == "time is known of 10 patients"
    spelt = {"models": {"expression": {"train_patients": ["p0 "], "validation_patients": ["p1"]}}}
    assert plan_stages(config, slides, patients, applied_model=spelt).rows() == stages.rows()
    model["models"]["tumour"] = {"train_patients": ["P2"]}
    stages = plan_stages(config, slides, patients, applied_model=model)
    assert not stages.runs("survival", "h")


def test_slides_without_spots_need_the_extended_panel_for_copy_number():
    slides = _slides(*TRAINING, *HOSPITAL)
    config = {**CONFIG, "deploy": {"extended": ""}}
    stages = plan_stages(config, slides, None)
    # Sections are measured, and so need no model.
    assert stages.cohorts("cnv") == ["v"]
    rows = {r["stage"]: r for r in stages.rows() if r["cohort"] == "h"}
    assert rows["cnv"]["reason"].startswith("deploy.extended names no ridge")
    config, model = {**CONFIG, "model": "m"}, {"models": {"expression": {}}}
    stages = plan_stages(config, _slides(*HOSPITAL), None, applied_model=model)
    rows = {r["stage"]: r for r in stages.rows() if r["cohort"] == "h"}
    assert rows["cnv"]["reason"].startswith("the model folder has no ridge")
    model["models"]["extended"] = {"kind": "ridge"}
    assert plan_stages(config, _slides(*HOSPITAL), None, applied_model=model).cohorts("cnv") == [
        "h"
    ]


def test_without_a_tumour_map_there_is_no_contrast_of_tumour():
    config, slides = {**CONFIG, "model": "m"}, _slides(*HOSPITAL)
    without = {"models": {"expression": {}}}
    stages = plan_stages(config, slides, None, applied_model=without)
    rows = {r["stage"]: r for r in stages.rows() if r["cohort"] == "h"}
    assert rows["enrichment"]["state"] == "left out"
    assert rows["enrichment"]["reason"].startswith("the model folder has no tumour map")
    with_map = {"models": {"expression": {}, "tumour": {}}}
    stages = plan_stages(config, slides, None, applied_model=with_map)
    assert stages.of("enrichment") == ["results/enrichment/h/tumour/gsea.tsv"]


def test_a_named_subtype_is_a_contrast_of_its_own():
    patients = _patients(12, time=1.0, event=1.0)
    config = {**CONFIG, "enrichment": {"subtype": "A"}}
    stages = plan_stages(config, _slides(*TRAINING, *HOSPITAL), patients)
    assert "results/enrichment/h/subtype/gsea.tsv" in stages.targets()
    assert "results/enrichment/v/subtype/gsea.tsv" not in stages.targets()


def test_fewer_folds_than_asked_for_are_told():
    config = {**CONFIG, "folds": {"patient_cv": 5, "published": 2}}
    told = plan_stages(config, _slides(*TRAINING), None).left_out()
    asked = "left out: folds.patient_cv is 5, but there are 2 patients to hold out: 2 folds"
    assert [line for line in told if "folds" in line] == [asked]
