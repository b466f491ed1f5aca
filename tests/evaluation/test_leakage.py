from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest

from histogep.errors import InputError
from histogep.evaluation.copies import similar_ids
from histogep.evaluation.leakage import FITTED, WEIGHED, audit, require_clean
from histogep.models.folds import split_folds
from histogep.models.network.lattice_fit import deal_members
from histogep.spots.panel import choose_panel, panel_slides

SLIDES = [f"S{i}" for i in range(8)]
PATIENTS = [f"P{i // 2}" for i in range(8)]
SETTINGS = {
    "method": "moran",
    "min_moran": 0.3,
    "p": 0.01,
    "max_genes": 20,
    "min_genes": 5,
    "markers": True,
    "exclude": ["^MT-"],
    "extended_min_detected": 0.05,
    "extended_max_genes": 60,
}
MARKERS = pd.DataFrame({"lineage": ["B", "T"], "gene": ["G70", "G71"]})


def gene_scores(slide):
    rng = np.random.default_rng(SLIDES.index(slide))
    n = 80
    moran = np.clip(np.linspace(0.9, 0, n) + rng.normal(0, 0.12, n), -1, 1)
    return pd.DataFrame(
        {
            "gene": [f"G{i}" for i in range(n)],
            "moran_i": moran,
            "p": np.where(moran > 0.1, 1e-6, 0.5),
            "fdr": 0.01,
            "mean": rng.uniform(0, 3, n),
            "dispersion": rng.uniform(0, 1, n),
            "detected": rng.uniform(0.2, 1, n),
        }
    )


def clean_study():
    """Return what the jobs of a patient_cv study write, made by the jobs' own functions."""
    folds = split_folds(
        SLIDES,
        PATIENTS,
        settings={"patient_cv": "patient", "published": 4, "validation": 1},
        seed=0,
    )
    scores = {slide: gene_scores(slide) for slide in SLIDES}
    digests = {slide: f"digest of {slide}" for slide in SLIDES}
    panels, records, models = {}, {}, []
    for fold in folds["fold"].unique():
        slides, patients = panel_slides(folds, fold)
        panels[fold] = choose_panel({s: scores[s] for s in slides}, MARKERS, SETTINGS)
        records[fold] = {
            "fold": fold,
            "slides": slides,
            "patients": patients,
            "sha256": {slide: digests[slide] for slide in slides},
        }
        rows = folds[folds["fold"] == fold]
        protocol = rows["protocol"].iloc[0]
        if protocol == "all":
            continue
        record = {"fold": fold, "protocol": protocol, "panel": "main", "model": "net"}
        record |= {"task": "expression", "genes": panels[fold].query("main")["gene"].tolist()}
        for role in ("train", "validation", "test"):
            part = rows[rows["role"] == role]
            record[f"{role}_slides"] = part["slide"].tolist()
            record[f"{role}_patients"] = part["patient"].unique().tolist()
        record |= {f"{w}_fitted_on": record["train_slides"] for w in ("scaler", "pca", "target")}
        record |= {"epoch_fitted_on": record["validation_slides"], "alpha_fitted_on": []}
        record["threshold_fitted_on"] = record["validation_slides"]
        models += [record, copy.deepcopy(record) | {"model": "tumour", "task": "tumour"}]
    return {
        "folds": folds,
        "panels": panels,
        "records": records,
        "models": models,
        "gene_scores": scores,
        "score_sha256": digests,
        "image_sha256": {slide: f"image of {slide}" for slide in SLIDES},
        "markers": MARKERS,
        "gene_settings": SETTINGS,
        "choose_panel": choose_panel,
        "similar": similar_ids({}),
    }


def run(study):
    study = dict(study)
    return audit(study.pop("folds"), **study)


@pytest.fixture
def study():
    return clean_study()


def failed(verdict):
    return {check["check"] for check in verdict["checks"] if not check["ok"]}


def patient_cv(study):
    return next(m for m in study["models"] if m["fold"] == "patient_cv-1" and m["model"] == "net")


def test_a_clean_study_passes_and_the_papers_leaks_are_named(study):
    verdict = run(study)
    assert verdict["ok"], failed(verdict)
    assert verdict["n_failed"] == 0
    assert verdict["n_checks"] == len(verdict["checks"]) > 100
    require_clean(verdict)
    leaks = verdict["known_leaks"]
    assert {leak["fold"] for leak in leaks} == {f"published-{i}" for i in range(1, 5)}
    assert any("genes chosen with the test sections" in leak["detail"] for leak in leaks)
    # The panels of both protocols must differ for the check of panels to mean anything.
    assert list(study["panels"]["patient_cv-1"]["gene"]) != list(
        study["panels"]["published-1"]["gene"]
    )


def test_a_patient_in_two_roles_fails_with_fold_slide_and_patient(study):
    folds = study["folds"]
    test = folds[(folds["fold"] == "patient_cv-1") & (folds["role"] == "test")].iloc[0]
    at = (folds["fold"] == "patient_cv-1") & (folds["slide"] == test["slide"])
    folds.loc[at, "role"] = "train"
    verdict = run(study)
    assert "patient_in_one_role" in failed(verdict)
    with pytest.raises(InputError, match=r"leak: ") as error:
        require_clean(verdict)
    for name in ("patient_cv-1", test["slide"], test["patient"]):
        assert name in str(error.value)


def test_a_section_in_two_roles_fails(study):
    folds = study["folds"]
    row = folds[(folds["fold"] == "published-1") & (folds["role"] == "test")].iloc[[0]]
    study["folds"] = pd.concat([folds, row.assign(role="train")], ignore_index=True)
    assert "section_in_one_role" in failed(run(study))


def test_a_section_with_two_patients_fails(study):
    folds = study["folds"]
    folds.loc[(folds["fold"] == "patient_cv-2") & (folds["slide"] == "S0"), "patient"] = "P9"
    verdict = run(study)
    assert "one_patient_per_section" in failed(verdict)


def test_a_section_tested_twice_or_never_fails(study):
    folds = study["folds"]
    first = (folds["fold"] == "patient_cv-1") & (folds["role"] == "test")
    again = (folds["fold"] == "patient_cv-2") & folds["slide"].isin(folds.loc[first, "slide"])
    folds.loc[again, "role"] = "test"
    assert "patient_cv_sections_tested_once" in failed(run(study))
    study = clean_study()
    study["folds"] = study["folds"][study["folds"]["fold"] != "patient_cv-1"]
    detail = [c for c in run(study)["checks"] if c["check"] == "patient_cv_sections_tested_once"]
    assert "never tested" in detail[0]["detail"]


@pytest.mark.parametrize("honestly_recorded", [True, False])
def test_a_panel_chosen_with_the_test_section_fails(study, honestly_recorded):
    """Even when its record keeps quiet about it."""
    leaky = choose_panel(study["gene_scores"], MARKERS, SETTINGS)
    study["panels"]["patient_cv-1"] = leaky
    patient_cv(study)["genes"] = leaky.query("main")["gene"].tolist()
    if honestly_recorded:
        study["records"]["patient_cv-1"]["slides"] = SLIDES
    verdict = run(study)
    assert "panel_chosen_again" in failed(verdict)
    assert ("panel_sections" in failed(verdict)) == honestly_recorded
    assert {c["fold"] for c in verdict["checks"] if not c["ok"]} == {"patient_cv-1"}


def test_a_panel_of_the_right_genes_but_foreign_statistics_fails(study):
    panel = study["panels"]["patient_cv-1"]
    study["panels"]["patient_cv-1"] = panel.assign(moran_i=panel["moran_i"] + 0.01)
    assert failed(run(study)) == {"panel_chosen_again"}


def test_rounding_of_the_written_panel_is_no_leak(study, tmp_path):
    from histogep.files import read_tsv, write_tsv

    for fold, panel in study["panels"].items():
        write_tsv(panel, tmp_path / "panel.tsv")
        study["panels"][fold] = read_tsv(tmp_path / "panel.tsv", keep_default_na=False)
    assert run(study)["ok"]


def test_gene_scores_that_changed_since_fail(study):
    study["score_sha256"]["S3"] = "another"
    assert failed(run(study)) == {"gene_scores_unchanged"}


@pytest.mark.parametrize("what", [*FITTED, "calibration"])
def test_anything_fitted_on_the_test_section_fails(study, what):
    model = patient_cv(study)
    leaked = model["test_slides"][0]
    model[f"{what}_fitted_on"] = [*model["train_slides"], leaked]
    verdict = run(study)
    assert failed(verdict) == {f"{what}_fitted_on"}
    with pytest.raises(InputError, match=f"patient_cv-1/net.*{leaked} .patient P.*test"):
        require_clean(verdict)


def test_not_saying_what_was_fitted_on_whom_fails(study):
    del patient_cv(study)["pca_fitted_on"]
    assert failed(run(study)) == {"pca_fitted_on"}


def test_a_model_trained_on_other_sections_than_the_table_fails(study):
    model = patient_cv(study)
    model["train_slides"] = model["train_slides"][1:]
    assert failed(run(study)) == {"model_train_slides"}
    model = patient_cv(study := clean_study())
    model["train_patients"] = [*model["train_patients"], *model["test_patients"]]
    assert failed(run(study)) == {"model_patients"}


def make_blend(study):
    """Make the first model of the clean study a blend, with the hands that its fit deals."""
    model = patient_cv(study)
    slides = [*model["train_slides"], *model["validation_slides"]]
    patient = dict(zip(SLIDES, PATIENTS, strict=True))
    sees, judged = deal_members([patient[slide] for slide in slides])
    model["kind"] = "blend"
    model["committee"] = [
        {"trained_slides": [slides[i] for i in own], "judged_slides": [slides[i] for i in out]}
        for own, out in zip(sees, judged, strict=True)
    ]
    for what in (*WEIGHED, "programmes"):
        model[f"{what}_fitted_on"] = slides
    return model


def test_a_clean_committee_passes(study):
    model = make_blend(study)
    assert sum(len(member["judged_slides"]) for member in model["committee"]) > 2
    assert run(study)["ok"], failed(run(study))


def test_a_member_that_saw_a_patient_it_is_judged_on_fails(study):
    """Another section of the patient is enough, and so is one of the test patient."""
    member = make_blend(study)["committee"][0]
    member["trained_slides"] = [*member["trained_slides"], member["judged_slides"][0]]
    assert failed(run(study)) == {"member_patients"}
    with pytest.raises(InputError, match="member 1 saw the patients p., on whom it is judged"):
        require_clean(run(study))
    member = (model := make_blend(study := clean_study()))["committee"][0]
    member["trained_slides"] = [*member["trained_slides"], model["test_slides"][0]]
    assert failed(run(study)) == {"member_sections"}


def test_a_share_weighed_on_sections_that_a_member_saw_fails(study):
    """One hand was not left out by anyone, or counts twice."""
    model = make_blend(study)
    lost = model["committee"][0]["judged_slides"]
    model["committee"][0]["judged_slides"] = []
    assert failed(run(study)) == {"weighed_on_left_out"}
    with pytest.raises(InputError, match=f"`share` was weighed on the sections {lost[0]}"):
        require_clean(run(study))
    model = make_blend(study := clean_study())
    model["committee"].append(dict(model["committee"][0]))
    assert failed(run(study)) == {"weighed_on_left_out"}


def test_a_committee_that_does_not_say_what_it_saw_fails(study):
    del make_blend(study)["committee"]
    assert failed(run(study)) == {"member_sections", "weighed_on_left_out"}
    del make_blend(study := clean_study())["rank_fitted_on"]
    assert failed(run(study)) == {"weighed_on_left_out"}


def test_a_model_with_another_panel_fails(study):
    patient_cv(study)["genes"] = patient_cv(study)["genes"][:-1]
    assert failed(run(study)) == {"model_genes"}


def test_the_papers_fold_may_share_patients_but_not_its_section(study):
    model = next(m for m in study["models"] if m["fold"] == "published-1")
    model["train_slides"] = [*model["train_slides"], model["test_slides"][0]]
    assert "published_section_held_out" in failed(run(study))


def test_a_model_that_claims_the_wrong_protocol_fails(study):
    next(m for m in study["models"] if m["fold"] == "published-1")["protocol"] = "patient_cv"
    assert failed(run(study)) == {"model_protocol"}


def test_a_missing_record_or_panel_fails(study):
    del study["records"]["patient_cv-1"], study["panels"]["patient_cv-2"]
    assert failed(run(study)) == {"panel_sections", "panel_chosen_again"}


def test_one_image_under_two_patients_fails(study):
    study["image_sha256"]["S1"] = study["image_sha256"]["S0"]
    assert run(study)["ok"]
    study["image_sha256"]["S2"] = study["image_sha256"]["S0"]
    with pytest.raises(InputError, match="S0, S1, S2 of the patients P0, P1 have the same image"):
        require_clean(run(study))
    del study["image_sha256"]["S2"]
    with pytest.raises(InputError, match="no digest of the image of S2"):
        require_clean(run(study))


def test_counts_under_two_patients_fail_whatever_the_names_of_their_files(study):
    same = study["score_sha256"]["S0"]
    study["score_sha256"]["S1"] = same
    for record in study["records"].values():
        record["sha256"] |= {"S1": same} if "S1" in record["sha256"] else {}
    assert run(study)["ok"]  # of one patient
    study["score_sha256"]["S2"] = same
    for record in study["records"].values():
        record["sha256"] |= {"S2": same} if "S2" in record["sha256"] else {}
    assert failed(run(study)) == {"one_patient_per_counts"}
    with pytest.raises(InputError, match="S0, S1, S2 of the patients P0, P1 have the same counts"):
        require_clean(run(study))


def test_a_changed_copy_fails_and_what_may_be_innocent_is_noticed(study):
    ids = {"slide": "S0", "patient": "P0", "other": "S2", "other_patient": "P1"}
    pair = pd.DataFrame([ids | {"what": "image", "score": 90.0, "detail": "90 keypoints agree"}])
    study["similar"] = pair.assign(verdict="alike")
    verdict = run(study)
    assert verdict["ok"]
    assert "S0 of patient P0 and S2 of patient P1" in verdict["notices"][0]["detail"]
    study["similar"] = pair.assign(verdict="copy")
    assert failed(run(study)) == {"one_patient_per_section_changed"}
    study["similar"] = None
    assert failed(run(study)) == {"one_patient_per_section_changed"}


@pytest.mark.parametrize("other", ["p0", " P0"])
def test_a_patient_under_two_spellings_fails(study, other):
    study["folds"].loc[study["folds"]["slide"] == "S1", "patient"] = other
    assert "one_spelling_per_patient" in failed(run(study))
    with pytest.raises(InputError, match="are one, by barcode or but for case"):
        require_clean(run(study))


def test_the_page_has_a_sentence_for_every_check():
    import re
    from pathlib import Path

    from histogep.evaluation import leakage
    from histogep.report.pages_leakage import MEANINGS

    source = Path(leakage.__file__).read_text()
    named = set(re.findall(r"found\.add\(\s*\"(\w+)\"", source))
    named |= {f"one_patient_per_{what}" for what in ("image", "counts")}
    named |= {f"model_{role}_slides" for role in ("train", "validation", "test")}
    named |= {f"{protocol}_sections_tested_once" for protocol in ("patient_cv", "published")}
    assert named == set(MEANINGS)
