"""The warnings of a study: of every job its results rest on, also of those that did not run again."""

import json
import logging
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from histogep.warned import decides, of_slide
from histogep.workflow import warnings_of_jobs as jobs
from histogep.workflow.job import job_log
from histogep.workflow.records import read_record

LOG = logging.getLogger("histogep.some_room")


class Files(dict):
    """Files of a job by name, as Snakemake gives them."""


def run(rule, *, wildcards=None, reads=(), writes=(), warns=(), log=None):
    """Run one job in the working directory: it warns and writes its outputs."""
    from pathlib import Path

    wildcards = wildcards or {}
    job = SimpleNamespace(
        rule=rule, threads=1, params={}, resources={}, wildcards=wildcards,
        input=Files(given=list(reads)), output=Files(made=list(writes)),
    )  # fmt: skip
    path = Path("logs") / rule / f"{log or '-'.join(wildcards.values()) or 'all'}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with job_log(path, job):
        for text, marks in warns:
            LOG.warning(text, **marks)
        for file in writes:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            Path(file).write_text(rule)
    return path.with_suffix(".json")


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Labels of two slides, a model of both, and a list of the slides."""
    monkeypatch.chdir(tmp_path)
    undetermined = ("all are left undetermined", decides("tumour"))
    run("label_spots", wildcards={"slide": "A"}, writes=["results/labels/A.tsv"],
        warns=[undetermined, ("few counts", {})])  # fmt: skip
    run("label_spots", wildcards={"slide": "B"}, writes=["results/labels/B.tsv"],
        warns=[undetermined])  # fmt: skip
    run("train_model", wildcards={"study": "s", "model": "ridge"},
        reads=["results/labels/A.tsv", "results/labels/B.tsv"], writes=["results/models/ridge"],
        warns=[("slow", {}), ("slow", {}), ("of one section", of_slide("A"))])  # fmt: skip
    return tmp_path


def test_the_record_of_a_job_keeps_its_warnings(study):
    record = read_record("logs/label_spots/A.json")
    assert [(w.text, w.decides, w.n) for w in record["warnings"]] == [
        ("all are left undetermined", ("tumour",), 1),
        ("few counts", (), 1),
    ]


def test_a_record_of_an_earlier_version_is_read_and_has_none(study):
    path = study / "logs/label_spots/A.json"
    record = json.loads(path.read_text())
    del record["warnings"]
    path.write_text(json.dumps(record))
    assert read_record(path)["warnings"] == []


def test_all_jobs_behind_a_result_are_listed_the_deciding_warnings_first(study):
    table = jobs.list_warnings(["results/models/ridge"], planned=["a column is not used"])
    assert table.to_numpy().tolist() == [
        ["label_spots", "A", "", "tumour", 1, "all are left undetermined"],
        ["label_spots", "B", "", "tumour", 1, "all are left undetermined"],
        ["(plan)", "", "", "", 1, "a column is not used"],
        ["label_spots", "A", "", "", 1, "few counts"],
        ["train_model", "", "study=s, model=ridge", "", 2, "slow"],
        ["train_model", "A", "study=s, model=ridge", "", 1, "of one section"],
    ]
    assert list(table.columns) == list(jobs.COLUMNS)


def test_a_slide_that_left_the_study_leaves_no_warning_though_its_log_stays(study):
    run("train_model", wildcards={"study": "s", "model": "ridge"},
        reads=["results/labels/B.tsv"], writes=["results/models/ridge"])  # fmt: skip
    assert (study / "logs/label_spots/A.json").is_file()
    assert jobs.list_warnings(["results/models/ridge"])["slide"].tolist() == ["B"]


def test_a_job_that_ran_again_leaves_only_what_it_warned_of_the_last_time(study):
    run("label_spots", wildcards={"slide": "A"}, writes=["results/labels/A.tsv"])
    table = jobs.list_warnings(["results/labels/A.tsv", "results/labels/B.tsv"])
    assert table["slide"].tolist() == ["B"]
    # Under another log too: a record that is older than the one that made the file last.
    run("label_spots", wildcards={"slide": "B"}, writes=["results/labels/B.tsv"], log="again")
    assert jobs.list_warnings(["results/labels/B.tsv"]).empty


def test_a_study_without_records_or_with_damaged_ones_has_no_warnings(study):
    (study / "logs/label_spots/A.json").write_text('{"format": "histogep job record 1"')
    assert jobs.list_warnings(["results/labels/A.tsv"]).empty
    assert jobs.list_warnings(["results/labels/A.tsv"], directory=study / "elsewhere").empty


def test_a_page_gets_the_warnings_that_decide_it_once_for_all_slides(study):
    files = ["results/models/ridge"]
    assert jobs.deciding_warnings(files, "tumour", "expression") == [
        "tumour (label_spots, slides A, B): all are left undetermined"
    ]
    assert jobs.deciding_warnings(files, "survival") == []


def test_the_end_of_a_run_tells_its_warnings_and_is_silent_without(study, capsys):
    began = datetime.now(UTC)
    jobs.say_warnings(began - timedelta(hours=1))
    assert capsys.readouterr().err.splitlines() == [
        "6 warnings, of which 2 decide a result; see logs/:",
        "  label_spots: 3 (A 2, B 1)",
        "  train_model: 3 (A 1)",
        "What decides a result:",
        "  tumour (label_spots, slides A, B): all are left undetermined",
    ]
    # Of this run only: a later one in which nothing warns says nothing.
    run("label_spots", wildcards={"slide": "C"}, writes=["results/labels/C.tsv"])
    jobs.say_warnings(began)
    assert capsys.readouterr().err == ""


def test_many_slides_make_one_line(study, capsys):
    began = datetime.now(UTC)
    for number in range(12):
        slide = f"S{number:02d}"
        run("prepare_slide", wildcards={"slide": slide}, writes=[f"results/slides/{slide}.json"],
            warns=[(f"slide {slide}: a pixel is 4 um", decides("slide"))])  # fmt: skip
    jobs.say_warnings(began)
    said = capsys.readouterr().err.splitlines()
    assert said[1] == "  prepare_slide: 12 (S00 1, S01 1, S02 1, S03 1, S04 1 and 7 more slides)"
    assert said[3:] == [
        "  slide (prepare_slide, slides S00, S01, S02, S03, S04 and 7 more): a pixel is 4 um"
    ]


def test_a_run_never_fails_because_of_its_warnings(study, monkeypatch, capsys):
    monkeypatch.setattr(jobs, "read_record", lambda path: 1 / 0)
    jobs.say_warnings(datetime(2000, 1, 1, tzinfo=UTC))
    assert "the warnings were not listed (ZeroDivisionError" in capsys.readouterr().err
