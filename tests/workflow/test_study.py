"""What each job reads, asked of a study without Snakemake."""

import os
from dataclasses import replace

import pandas as pd
import pytest

from histogep.errors import InputError
from histogep.files import files_of, write_tsv
from histogep.workflow.study import SUMMARY, References, Sheets, Study

SETTINGS = {
    "study": "s",
    "seed": 1,
    "model": None,
    "on_bad_slide": "stop",
    "folds": {"patient_cv": "patient", "published": "section"},
    "models": {
        "cmunet": {"kind": "cmunet", "panel": "main", "members": []},
        "ridge": {"kind": "ridge", "panel": "main", "members": []},
        "both": {"kind": "ensemble", "panel": "main", "members": ["cmunet", "ridge"]},
        "extended": {"kind": "ridge", "panel": "extended", "members": []},
    },
    "deploy": {"extended": "extended"},
    "encoders": [{"name": "descriptors"}],
    "references": {"gene_positions": "genes.gtf", "gene_sets": {"sets": "sets.gmt"}},
    "measured": {"bulk": {"scale": "log2"}},
    "summary": {
        **{"endpoint": "OS", "sample_types": ["01"], "tumour_threshold": 0.5},
        "training_patients": "exclude",
    },
    "survival": {"folds": 5, "covariates": [], "penalties": [1.0], "gene_scale": "unit"},
    "response": {"folds": 5, "covariates": [], "penalties": [1.0]},
    "report": {"pages": 2, "genes": 50, "figures": 50},
    "evaluation": {"coverage": 0.9},
    "maps": {"outcomes": ["survival"], "published": False, "noise_draws": 3, "epochs": 1},
    "enrichment": {
        **{"min_size": 5, "max_size": 50, "permutations": 10, "patient_permutations": 10},
        "subtype": "S1",
    },
    "export": {"spatialdata": False, "qupath": False, "tiles": [], "clam": False},
}
REFERENCES = References(
    gene_positions="genes.gtf",
    gene_sets={"sets": "sets.gmt"},
    patients="patients.tsv",
    measured={"bulk": {"measured": "bulk.csv", "patients": "patients.tsv"}},
)
NAN = float("nan")


def sheet(*rows):
    columns = "slide patient cohort image counts positions labels regions features mpp max_mm"
    frame = pd.DataFrame(
        [{**dict.fromkeys(columns.split(), ""), "mpp": NAN, "max_mm": NAN, **row} for row in rows]
    )
    return frame.set_index("slide", drop=False)


def section(name, patient, **more):
    return {
        **{"slide": name, "patient": patient, "cohort": "visium", "image": f"{name}.svs"},
        **{"counts": f"counts/{name}", **more},
    }


def slide(name, patient, **more):
    row = {"slide": name, "patient": patient, "cohort": "hospital", "image": f"{name}.svs"}
    return {**row, **more}


def study(*rows, files=REFERENCES, applied=None, **settings):
    n = 12
    patients = pd.DataFrame(
        {"time": 1.0, "event": 1.0, "response": [0.0, 1.0] * (n // 2)},
        index=[f"H{i}" for i in range(n)],
    ).rename_axis("patient")
    if not rows:
        rows = [
            *(section("A1", "A", labels="A1.tsv"), section("A2", "A"), section("B1", "B")),
            *(section("C1", "C"), slide("T1", "A")),
            *(slide(f"S{i}", f"H{i}") for i in range(n)),
        ]
    tables = Sheets(sheet(*rows), patients)
    return Study.of_sheets(SETTINGS | settings, files, tables, applied=applied)


# ---------------------------------------------------------------- one slide


def test_a_slide_has_its_image_pixel_size_and_what_else_the_sheet_gives():
    given = study(slide("S1", "H1", mpp=0.25, max_mm=30, features="f.h5"), section("A1", "A"))
    assert given.image_files("S1") == {"image": "S1.svs"}
    assert (given.mpp("S1"), given.mpp("A1")) == (0.25, None)
    assert (given.most_mm("S1"), given.most_mm("A1")) == (30.0, None)
    assert given.given_features("S1") == {"given": "f.h5"}
    assert given.given_features("A1") == {}
    with pytest.raises(InputError, match="the slide sheet has no slide X"):
        given.image("X")


def test_the_scale_factors_of_a_space_ranger_folder_come_with_the_image(tmp_path):
    scales = tmp_path / "spatial/scalefactors_json.json"
    scales.parent.mkdir()
    scales.touch()
    rows = section("A1", "A", counts=str(tmp_path)), section("B1", "B")
    assert study(*rows).image_files("A1") == {"image": "A1.svs", "scalefactors": str(scales)}
    assert study(*rows).image_files("B1") == {"image": "B1.svs"}


def test_tiles_lie_on_the_spots_of_a_section_or_in_the_regions_of_a_slide():
    given = study(section("A1", "A", regions="r.geojson"), slide("S1", "H1", regions="r.geojson"))
    assert given.places("A1") == {"spots": "results/spots/A1.h5ad"}
    assert given.places("S1") == {"regions": "r.geojson"}
    # Where a model is applied nothing is a section.
    applied = study(section("A1", "A", regions="r.geojson"), model="m")
    assert applied.places("A1") == {"regions": "r.geojson"}
    assert applied.sections == []


def test_counts_come_with_positions_and_simulated_ones_as_single_files():
    given = study(section("A1", "A", positions="p.tsv"), section("B1", "B"))
    assert given.counts("A1") == {
        **{"counts": "counts/A1", "positions": "p.tsv", "gene_positions": "genes.gtf"},
    }
    assert "positions" not in given.counts("B1")
    made = study(section("A1", "A", counts="data/simulated/A1")).counts("A1")
    assert made["counts"] == "data/simulated/A1/filtered_feature_bc_matrix.h5"
    assert set(made) == {"counts", "positions", "scalefactors", "hires"}


def test_copy_number_is_of_spots_or_of_predictions_with_their_agreement():
    given = study()
    assert given.cnv_files("A1") == {
        **{"spots": "results/spots/A1.h5ad", "labels": "results/labels/A1.tsv"},
    }
    predicted = given.cnv_files("S1")
    assert predicted["model"] == "results/model/s"
    assert predicted["agreement"] == "results/cnv/s/agreement.tsv"
    applied = study(
        model="m",
        files=References(model="/m", patients="patients.tsv"),
        applied={"digest": "d", "models": {"tumour": {}}},
    )
    assert applied.cnv_files("S1")["model"] == "/m"
    assert "agreement" not in applied.cnv_files("S1")
    assert applied.model_digest == "d"


# ---------------------------------------------------------------- folds and models


def test_folds_and_who_is_predicted_in_them():
    given = study()
    assert given.folds == [
        "patient_cv-1",
        "patient_cv-2",
        "patient_cv-3",
        *(f"published-{i}" for i in range(1, 5)),
        "all",
    ]
    held_out = given.held_out()
    assert ("patient_cv-1", "both") in held_out
    assert ("published-1", "cmunet") in held_out
    assert not {("published-1", "ridge"), ("patient_cv-1", "extended")} & set(held_out)
    assert given.extended_held_out() == [(f"patient_cv-{i}", "extended") for i in (1, 2, 3)]
    assert (
        given.extended_files("settings.json")[0]
        == "results/models/s/patient_cv-1/extended/settings.json"
    )
    assert given.audited_settings() == given.held_out_settings() + given.extended_files(
        "settings.json"
    )
    assert len(given.held_out_predictions()) == len(held_out)
    assert given.fold_files("{study}/{fold}")[-1] == "s/all"
    unplaced = study(files=References(), references={"gene_positions": None, "gene_sets": {}})
    assert unplaced.extended_held_out() == []


def test_what_a_model_is_trained_from_beyond_the_sections():
    given = study()
    assert given.training_files("ridge", "patient_cv-1") == {}
    assert given.training_files("both", "patient_cv-1")["members"] == [
        f"results/models/s/patient_cv-1/{name}/weights.safetensors" for name in ("cmunet", "ridge")
    ]
    assert given.training_files("ridge", "all")["fold_settings"] == [
        f"results/models/s/patient_cv-{i}/ridge/settings.json" for i in (1, 2, 3)
    ]


# ---------------------------------------------------------------- cohorts


def test_a_predicted_cohort_is_summarised_from_its_slides():
    given = study()
    files = given.summary_files("hospital")
    assert files["expression"][0] == "results/expression/T1.h5ad"
    assert files["subtypes"] == "results/cnv/hospital/patients.tsv"
    assert files["patients"] == "patients.tsv"
    assert given.predicted_patients("hospital")["S3"] == "H3"
    assert given.training_patients("hospital") == ["A", "B", "C"]
    assert given.summary_settings("hospital") is SETTINGS["summary"]
    assert given.measured_scale("hospital") is None


def test_a_measured_cohort_is_summarised_from_its_table():
    given = study()
    assert given.summary_files("bulk") == {
        **{"measured": "bulk.csv", "patients": "patients.tsv", "gene_positions": "genes.gtf"},
    }
    assert given.summary_settings("bulk") == {"endpoint": "OS", "sample_types": ["01"]}
    assert given.training_patients("bulk") == []
    assert given.measured_scale("bulk") == "log2"
    assert given.map_scores("bulk", "survival") == []
    assert given.cohorts == ["bulk", "hospital", "visium"]


def test_what_ranks_genes_depends_on_the_contrast():
    given = study()
    assert set(given.ranking_files("hospital", "survival")) == {"cox", "patients"}
    assert set(given.ranking_files("hospital", "response")) == {"response_genes", "patients"}
    assert set(given.ranking_files("hospital", "subtype")) == {"patients"}
    assert given.ranking_files("visium", "tumour")["labels"][0] == "results/labels/A1.tsv"
    predicted = given.ranking_files("hospital", "tumour")["expression"]
    # T1 is of a training patient.
    assert predicted == [f"results/expression/S{i}.h5ad" for i in range(12)]
    assert list(given.ranking_patients("hospital", "tumour")) == [f"S{i}" for i in range(12)]
    assert given.ranking_patients("hospital", "survival") == {}
    assert given.ranking_settings("hospital", "tumour") == {"tumour_threshold": 0.5}
    assert given.ranking_settings("visium", "tumour") == {}
    assert given.ranking_settings("hospital", "survival") == {"gene_scale": "unit"}
    kept = study(summary=SETTINGS["summary"] | {"training_patients": "keep"})
    assert kept.unseen_slides("hospital")[0] == "T1"


def test_activity_is_of_predicted_slides_or_else_of_sections():
    given = study()
    assert given.activity_files("hospital")[0] == "results/expression/S0.h5ad"
    assert given.activity_files("visium")[0] == "results/spots/A1.h5ad"
    assert given.activity_patients("visium") == {"A1": "A", "A2": "A", "B1": "B", "C1": "C"}


def test_a_job_is_given_the_settings_that_it_reads_and_no_others():
    given = study()
    assert set(given.enrichment_settings("tumour")) == {"min_size", "max_size", "permutations"}
    assert "subtype" in given.enrichment_settings("subtype")
    assert given.map_settings("survival") == {"published": False, "epochs": 1}
    assert given.map_settings("response") == {"epochs": 1}
    assert set(given.outcome_settings("response")) == {"folds", "covariates", "penalties"}
    assert (
        given.map_scores("hospital", "survival")[1]
        == "results/maps/hospital/survival.published.tsv"
    )
    assert given.map_scores("hospital", "response") == []


# ---------------------------------------------------------------- slides that cannot be used


def test_a_study_without_some_slides_is_planned_once_for_the_same_slides(tmp_path, monkeypatch):
    whole = study(on_bad_slide="skip")
    listed = tmp_path / "failed.tsv"
    write_tsv(pd.DataFrame({"slide": ["C1", "S0"]}), listed)
    usable = whole.of_usable_slides(listed)
    assert whole.without([]) is whole
    assert whole.of_usable_slides(listed) is usable
    assert whole.without(["S0", "C1", "unknown"]) is usable
    # Another list in its place is another study.
    write_tsv(pd.DataFrame({"slide": ["C1"]}), tmp_path / "one.tsv")
    os.replace(tmp_path / "one.tsv", listed)
    assert "S0" in whole.of_usable_slides(listed).slide_patients()
    write_tsv(pd.DataFrame({"slide": ["C1", "S0"]}), listed)
    assert whole.of_usable_slides(listed) is usable
    planned = []
    monkeypatch.setattr(
        "histogep.workflow.study.plan_stages",
        lambda *given, **more: planned.append(given) or planned,
    )
    assert usable.stages is whole.of_usable_slides(listed).stages
    assert len(planned) == 1


def test_what_follows_is_asked_of_the_usable_slides_only():
    whole = study(on_bad_slide="skip")
    usable = whole.without({"C1", "S0"})
    assert usable.sections == ["A1", "A2", "B1"]
    assert "S0" not in usable.slide_patients()
    assert usable.folds == [
        *("patient_cv-1", "patient_cv-2"),
        *(f"published-{i}" for i in (1, 2, 3)),
        "all",
    ]
    assert "results/expression/S0.h5ad" not in usable.targets()
    assert "results/failed_slides.tsv" in usable.targets()
    assert "results/failed_slides.tsv" not in study().targets()
    assert usable.training_patients("hospital") == ["A", "B"]
    # The whole study still knows all of them.
    assert "S0" in whole.slide_patients()
    assert whole.section_files("{slide}") == ["A1", "A2", "B1", "C1"]


def test_the_summary_waits_for_every_result_and_names_those_that_it_reads():
    whole = study()
    files = whole.summary_sources()
    assert [SUMMARY, *files["finished"]] == whole.targets()
    assert SUMMARY not in files["finished"]
    assert files["scorecards"] == "results/evaluation/s/scorecards.tsv"
    assert files["labels"] == whole.section_files("results/labels/{slide}.tsv")
    assert files["model"] == "results/model/s"
    assert files["predicted"] == "results/predicted_slides.tsv"
    for name, stage in (("controls", "cnv"), ("counts", "patients"), ("concordance", "survival")):
        cohorts = whole.stages.cohorts(stage)
        assert len(files.get(name, [])) == len(cohorts)
        assert all(
            cohort in path for cohort, path in zip(cohorts, files.get(name, []), strict=True)
        )


def test_the_summary_of_a_model_from_elsewhere_reads_its_folder_and_no_scorecards():
    applied = {"models": {"expression": {}, "tumour": {}}, "training_slides": [], "digest": "d"}
    other = study(files=replace(REFERENCES, model="there"), applied=applied, model="there")
    files = other.summary_sources()
    assert files["model"] == "there"
    assert not {"scorecards", "tumour", "verdict", "labels"} & set(files)


def test_a_study_without_slides_has_none_to_check():
    bulk = study(slide("S1", "H1"), on_bad_slide="skip").sheets().slides.iloc[:0]
    given = Study.of_sheets(SETTINGS | {"on_bad_slide": "skip"}, REFERENCES, Sheets(bulk))
    assert not given.skips_bad_slides
    assert given.failures() == []


def test_too_few_usable_slides_are_refused_with_the_reason():
    with pytest.raises(InputError, match="after bad slides were left out: sections of 1 patient"):
        _ = study().without({"B1", "C1"}).stages
    with pytest.raises(InputError, match="^sections of 1 patient"):
        _ = study(section("A1", "A"), slide("S1", "H1")).stages


def test_no_method_changes_the_settings():
    given = study()
    before = repr(SETTINGS)
    _ = given.stages, given.summary_settings("hospital"), given.map_settings("survival")
    assert repr(SETTINGS) == before


# ---------------------------------------------------------------- tables by slide


def test_rows_say_of_each_slide_what_it_is():
    rows = study().slide_rows()
    assert rows["A1"] == {"patient": "A", "cohort": "visium", "role": "section"}
    assert rows["S2"] == {"patient": "H2", "cohort": "hospital", "role": "slide"}
    assert set(study().predicted_rows()) == {"T1", *(f"S{i}" for i in range(12))}
    assert study().annotated_files("{slide}") == ["A1"]


def test_files_are_paired_with_slides_by_name_whatever_their_order():
    paths = ["q/B.quality.tsv", "q/A.1.quality.tsv"]
    assert files_of(["A.1", "B"], paths, suffix=".quality.tsv") == paths[::-1]
    for names in (["A.1"], ["A.1", "B", "C"]):
        with pytest.raises(ValueError, match="not one file"):
            files_of(names, paths, suffix=".quality.tsv")


def test_pages_are_drawn_of_the_slides_that_are_asked_for():
    assert study().page_slides() == ["A1", "A2", "B1", "C1", "T1", "S0"]
    assert study(report={"pages": 0}).page_slides() == ["A1", "A2", "B1", "C1"]
    assert study(report={"pages": "all"}).page_slides()[-1] == "S11"
    some = study(report={"pages": ["S3", "A1"]})
    assert some.page_slides() == ["A1", "S3"]
    assert some.without({"S3"}).page_slides() == ["A1"]
    assert [path for path in some.targets() if "slides_html" in path] == [
        f"results/slides_html/{name}.html" for name in ("A1", "S3", "index")
    ]
    with pytest.raises(InputError, match="report.pages names S99, which the slide sheet"):
        study(report={"pages": ["S99"]}).page_slides()
    called = study(section("A1", "A"), section("B1", "B"), slide("Index", "H1"))
    with pytest.raises(InputError, match="a slide is called index"):
        called.page_slides()


def test_a_page_reads_what_there_is_of_its_slide():
    section_files = study().page_files("A1")
    assert section_files["spots"] == "results/spots/A1.h5ad"
    assert set(section_files["predictions"]) == set(study().held_out_predictions())
    assert section_files["subtypes"] == "results/cnv/visium/subtypes.tsv"
    bare = study(references={"gene_positions": None, "gene_sets": {}}).page_files("S1")
    assert set(bare) == {"expression", "gene_scores", "scorecards"}
    applied = {"models": {"expression": {}, "extended": {"kind": "ridge"}}, "digest": "d"}
    elsewhere = study(applied=applied, model="model")
    assert set(elsewhere.page_files("A1")) == {"expression", "cnv", "subtypes"}
    assert elsewhere.page_coverage() is None
    assert study().page_coverage() == 0.9


def test_figures_of_all_slides_are_there_to_choose_from():
    figures = study(neighbourhoods={"run": True}).slide_figures()
    assert "results/expression/S0.png" in figures["expression"]
    assert "results/expression/A1.png" not in figures["expression"]
    assert {"results/cnv/A1.png", "results/cnv/S0.png"} <= set(figures["cnv"])
    assert {"results/neighbourhoods/A1.png", "results/neighbourhoods/S0.png"} <= set(
        figures["neighbourhoods"]
    )
    assert study(references={"gene_positions": None, "gene_sets": {}}).slide_figures()["cnv"] == []


def test_nothing_is_exported_unless_asked_and_what_is_asked_has_its_cost():
    rows = section("A", "p1"), section("B", "p2"), slide("S", "H1")
    assert study(*rows).export_targets() == []
    assert study(*rows).export_costs() == []
    given = study(*rows, export=SETTINGS["export"] | {"spatialdata": True, "tiles": ["S", "A"]})
    wanted = [f"results/spatialdata/{name}.zarr" for name in ("A", "B", "S")]
    wanted += ["results/tile_images/A.tar", "results/tile_images/S.tar"]
    assert given.export_targets() == wanted
    assert set(wanted) <= set(given.targets())
    stores, tiles = given.export_costs()
    assert stores.startswith(
        "export.spatialdata: 3 slides as results/spatialdata/{slide}.zarr: about"
    )
    assert "for each cm2" in stores
    assert tiles.startswith("export.tiles: 2 slides")
    # A slide that cannot be used is left out, one that is not in the sheet is a mistake.
    assert given.without(["S"]).export_targets() == [*wanted[:2], "results/tile_images/A.tar"]
    wrong = study(*rows, export=SETTINGS["export"] | {"qupath": ["A", "X"]})
    with pytest.raises(
        InputError, match="export.qupath: X is not in the slide sheet, which has A, B"
    ):
        wrong.export_targets()
