"""A job takes the study that the planning process has read, and no other one."""

import datetime
import inspect
import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from inspect import signature
from pathlib import Path

import pytest

from histogep.errors import InputError
from histogep.workflow import resolved
from histogep.workflow.resolved import RESOLVED, Given, open_study, resolved_study, write_resolved
from histogep.workflow.study import Study
from tests.workflow.test_study_reading import folder  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]
PROPERTIES = (
    *("stages", "name", "skips_bad_slides", "sections", "annotated", "predicted", "cohorts"),
    *("folds", "exported_encoders", "model_folder", "model_digest"),
)


@pytest.fixture
def given(folder):  # noqa: F811
    """What a study of two sections and twelve slides is read from, in its folder."""
    rows = (folder / "slides.tsv").read_text().splitlines()
    for i in range(12):
        (folder / f"H{i}.svs").touch()
        rows.append(f"H{i}\tH{i}\th\tH{i}.svs\t")
    (folder / "slides.tsv").write_text("\n".join([*rows, ""]))
    lines = [f"H{i}\t{i + 1}\t{i % 2}" for i in range(12)]
    (folder / "patients.tsv").write_text("\n".join(["patient\ttime\tevent", *lines, ""]))
    config = {
        "study": "s",
        "slides": "slides.tsv",
        "patients": "patients.tsv",
        "on_bad_slide": "skip",
        "references": {"gene_sets": {"g": "sets.gmt"}},
    }
    return Given(config, [folder / "study.yaml"], ROOT)


@pytest.fixture
def written(given):
    study = open_study(given, main_process=True)
    assert write_resolved(study, given)
    return study


def answers(study):
    """Return what every method and property of a study answers, for all its slides and cohorts."""
    values = {
        "slide": list(study.slides)[:3],
        "cohort": study.cohorts,
        "fold": study.folds,
        "model": list(study.settings["models"]),
        "outcome": ["survival", "response"],
        "contrast": ["tumour", "survival"],
        "pattern": ["x"],
        "name": ["settings.json"],
        "encoder": list(study.exported_encoders),
    }
    found = {name: repr(getattr(study, name)) for name in PROPERTIES}
    for name, method in vars(Study).items():
        wanted = list(signature(method).parameters)[1:] if inspect.isfunction(method) else [None]
        # Simulated slides alone have a composition.
        if name.startswith("_") or name == "composition" or set(wanted) - values.keys():
            continue
        for chosen in itertools.product(*(values[key] for key in wanted)):
            found[name, chosen] = repr(method(study, *chosen))
    return found


def test_a_job_gets_what_the_planning_process_read_without_reading_it(written, given, monkeypatch):
    def read_again(*_, **__):
        raise AssertionError("the study was read again")

    monkeypatch.setattr(Given, "read", read_again)
    study = open_study(given, main_process=False)
    assert repr(study.settings) == repr(written.settings)
    assert repr(study.slides) == repr(written.slides)
    assert study.references == written.references
    expected = answers(written)
    assert len(expected) > 50
    assert answers(study) == expected


def test_a_job_in_which_slides_turn_out_bad_plans_as_the_planning_process_does(written, given):
    failed = {"H0", "H1", "H2"}
    study = resolved_study(given)
    assert study.without(failed).targets() == written.without(failed).targets()
    assert "results/survival/h/cox.tsv" in written.targets()
    assert "results/survival/h/cox.tsv" not in study.without(failed).targets()
    with pytest.raises(InputError, match="after bad slides were left out"):
        _ = study.without({"A1"}).stages


def changed_sheet(given):
    sheet = Path(given.configfiles[0]).with_name("slides.tsv")
    sheet.write_text(sheet.read_text().replace("A1\tA\t", "A1\tZ\t"))


def changed_unseen(given):
    """Another content of the same size and time."""
    sheet = Path(given.configfiles[0]).with_name("patients.tsv")
    stat, text = sheet.stat(), sheet.read_text()
    sheet.write_text(text.replace("H3\t4\t1", "H3\t4\t0"))
    os.utime(sheet, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert sheet.stat().st_size == stat.st_size


def removed_sheet(given):
    Path(given.configfiles[0]).with_name("patients.tsv").unlink()


def edited_study(given):
    text = Path(RESOLVED).read_text()
    Path(RESOLVED).write_text(text.replace('"patient": "A"', '"patient": "Z"'))


def cut_study(given):
    text = Path(RESOLVED).read_text()
    Path(RESOLVED).write_text(text[: len(text) // 2])


def other_json(given):
    Path(RESOLVED).write_text("[]\n[]\n")


@pytest.mark.parametrize(
    "change",
    [changed_sheet, changed_unseen, removed_sheet, edited_study, cut_study, other_json],
)
def test_what_is_no_longer_so_is_not_trusted(written, given, change):
    assert resolved_study(given) is not None
    change(given)
    assert resolved_study(given) is None
    if change is changed_sheet:
        assert open_study(given, main_process=False).row("A1")["patient"] == "Z"


@pytest.mark.parametrize(
    "other",
    [
        lambda given: {"config": given.config | {"seed": 7}},
        lambda given: {"config": given.config | {"on_bad_slide": "stop"}},
        lambda given: {"configfiles": [*given.configfiles, "second.yaml"]},
        lambda given: {"repository": given.repository / "." / ".." / given.repository.name},
    ],
    ids=["seed", "on_bad_slide", "configfiles", "repository"],
)
def test_another_study_of_the_same_folder_is_not_taken_for_this_one(written, given, other):
    assert resolved_study(replace(given, **other(given))) is None
    assert resolved_study(given) is not None


def test_other_code_reads_the_study_itself(written, given, monkeypatch, tmp_path):
    monkeypatch.setattr(resolved, "_LIBRARY", tmp_path)
    assert resolved_study(given) is None


def test_what_json_would_change_is_not_written(given):
    study = open_study(given, main_process=True)
    for value in ({1: "tumour"}, datetime.date(2020, 1, 1)):
        Path(RESOLVED).parent.mkdir(exist_ok=True)
        Path(RESOLVED).write_text("an older one")
        assert not write_resolved(replace(study, settings={**study.settings, "x": value}), given)
        assert not Path(RESOLVED).exists()


def test_a_folder_that_cannot_be_written_costs_no_run(given):
    Path("logs").write_text("in the way")
    assert not write_resolved(open_study(given, main_process=True), given)


def test_the_parse_of_a_job_imports_no_arrays_and_no_tables(written, given, tmp_path):
    (tmp_path / "given.json").write_text(
        json.dumps([given.config, [str(file) for file in given.configfiles], str(ROOT)])
    )
    code = (
        "import json, sys; from histogep.workflow.resolved import Given, open_study;"
        "import histogep.workflow.lineage, histogep.inputs.resources, histogep.inputs.sheet_ids;"
        "given = Given(*json.load(open('given.json')));"
        "study = open_study(given, main_process=False);"
        "print(len(study.slides), study.folds, {'numpy', 'pandas', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    folds = ["patient_cv-1", "patient_cv-2", "published-1", "published-2", "all"]
    assert done.stdout.strip() == f"14 {folds} set()"


@pytest.mark.workflow
def test_snakemake_gives_its_jobs_what_it_has_read(tmp_path):
    call = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
    call += ["--configfile", str(ROOT / ".test/config.yaml"), "--cores", "1", "--config", "seed=5"]
    target = "results/resources/markers.tsv"
    subprocess.run([*call, "--", target], cwd=tmp_path, check=True, capture_output=True)
    head, body = (tmp_path / RESOLVED).read_text().splitlines()
    assert json.loads(body)["settings"]["seed"] == 5
    # A job as a cluster's executor starts it; settings that the study file does not have would fail.
    (tmp_path / target).unlink()
    job = ["--target-jobs", "copy_resource:name=markers.tsv", "--allowed-rules", "copy_resource"]
    job += ["--mode", "remote", "--force", "--nolock", "--no-hooks"]
    trace = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run([*call, *job], cwd=tmp_path, env=trace, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / target).is_file()
    assert "histogep.workflow.resolved" in done.stderr
    assert "histogep.workflow.study_reading" not in done.stderr
