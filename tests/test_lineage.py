"""The lineage of a file, from the records that Snakemake itself wrote."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from importlib import metadata
from pathlib import Path

import pandas as pd
import pytest
import yaml

from histogep import lineage, provenance
from histogep.files import file_sha256, write_json
from histogep.jobs import InputError, job_log
from histogep.lineage_records import METADATA, TABLE, Lineage
from histogep.software import loaded_versions, read_versions

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIGURATION = {"study": "s", "seed": 7, "survival": {"folds": 5}, "response": {"folds": 5}}
LONG = "x" * 240
#: Three rules of the real shape: a code digest, the seed, sections of the configuration; a script.
SNAKEFILE = """
rule all:
    input: "results/survival/s/cox.tsv", "results/LONG.tsv"
rule split_folds:
    input: "cohort.tsv"
    output: "results/folds/s.tsv"
    log: "logs/split_folds.log"
    params: code="CODE_OF_FOLDS", seed=7
    script: "workflow_scripts/split_folds.py"
rule fit_survival:
    input: folds="results/folds/s.tsv", big="big.bin"
    output: "results/survival/s/cox.tsv"
    log: "logs/fit_survival.log"
    params: code="CODE_OF_COX", survival={"folds": 5}, seed=7
    script: "workflow_scripts/fit_survival.py"
rule long:
    input: "results/folds/s.tsv"
    output: "results/LONG.tsv"
    shell: "cp {input} {output}"
""".replace("LONG", LONG)
SCRIPT = """
import sys
sys.path.insert(0, "REPOSITORY")
import numpy
from histogep.jobs import job_log
with job_log(snakemake.log[0]):
    with open(snakemake.output[0], "w") as handle:
        for path in snakemake.input:
            handle.write(open(path).read()[:20])
""".replace("REPOSITORY", str(REPOSITORY))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A working directory in which Snakemake has run three rules, and recorded them."""
    folder = tmp_path_factory.mktemp("run")
    snakefile = SNAKEFILE
    (folder / "workflow_scripts").mkdir()
    for mark, script in (("FOLDS", "split_folds.py"), ("COX", "fit_survival.py")):
        snakefile = snakefile.replace(f"CODE_OF_{mark}", provenance.code_digest(script))
        (folder / "workflow_scripts" / script).write_text(SCRIPT)
    (folder / "Snakefile").write_text(snakefile)
    (folder / "cohort.tsv").write_text("patient\nP1\n")
    # Above the 1 MB up to which Snakemake takes digests of inputs.
    (folder / "big.bin").write_text("0" * 1_500_000)
    (folder / "results/provenance").mkdir(parents=True)
    (folder / "results/provenance/configuration.yaml").write_text(yaml.safe_dump(CONFIGURATION))
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "1", "--quiet", "all"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy with its times, to be changed by one test."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


COX = "results/survival/s/cox.tsv"


def changes(run, **options):
    return lineage.find_changes(Lineage(run), COX, **options)


def test_a_file_traces_to_code_settings_seed_versions_and_sources(run):
    entry = Lineage(run).entry(COX)
    assert (entry.rule, entry.script) == ("fit_survival", "fit_survival.py")
    assert entry.code == provenance.code_digest("fit_survival.py")
    assert entry.seed == 7
    assert entry.settings == {"survival": {"folds": 5}}
    assert entry.software["numpy"] == __import__("numpy").__version__
    assert set(entry.inputs) == {"results/folds/s.tsv", "big.bin"}
    assert {part.file for part in Lineage(run).ancestors(COX)} == {
        COX,
        "results/folds/s.tsv",
        "big.bin",
        "cohort.tsv",
    }


def test_the_command_prints_it_and_says_when_nothing_changed(run, capsys):
    assert lineage.main([COX, "--directory", str(run), "--rehash"]) == 0
    said = capsys.readouterr().out
    assert file_sha256(run / "cohort.tsv") in said
    assert "changed since: nothing" in said
    assert provenance.code_digest("split_folds.py") in said
    assert 'survival: {"folds": 5}' in said


def test_a_name_longer_than_a_file_name_may_be_is_found(run):
    assert Lineage(run).entry(f"results/{LONG}.tsv").rule == "long"


@pytest.mark.parametrize("given", [COX, f"{{run}}/{COX}"])
def test_files_are_found_by_any_path(run, given):
    assert Lineage(run).find(given.format(run=run)) == COX


def test_a_changed_source_is_named_with_both_digests(run):
    before = file_sha256(run / "cohort.tsv")
    (run / "cohort.tsv").write_text("patient\nP2\n")
    (said,) = changes(run)
    assert "cohort.tsv: sha256" in said
    assert before in said
    assert file_sha256(run / "cohort.tsv") in said


def test_a_source_that_changed_but_kept_size_and_time_is_found_by_rehash(run):
    stat = (run / "cohort.tsv").stat()
    (run / "cohort.tsv").write_text("patient\nP9\n")
    os.utime(run / "cohort.tsv", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert changes(run) == []
    assert "cohort.tsv: sha256" in changes(run, rehash=True)[0]


def test_a_large_source_is_told_by_its_time_and_with_the_table_by_its_digest(run):
    lineage.write_table(run)
    (run / "big.bin").write_text("0" * 1_500_000)
    assert changes(run) == []
    (run / "big.bin").write_text("1" * 1_500_000)
    assert "big.bin: sha256" in changes(run)[0]
    (run / TABLE).unlink()
    (said,) = changes(run)
    assert "big.bin: written at" in said
    assert "used at" in said


def test_a_source_that_is_replaced_by_an_older_file_is_named(run):
    lineage.write_table(run)
    assert changes(run) == []
    for name, content in (("cohort.tsv", "patient\nP2\n"), ("big.bin", "1" * 1_500_001)):
        (run / name).write_text(content)
        os.utime(run / name, (1e9, 1e9))
    for _ in range(2):  # before and after the table of the next run
        said = changes(run)
        assert [line.split(": sha256 is")[0] for line in said] == ["big.bin", "cohort.tsv"], said
        lineage.write_table(run)
        (run / "big.bin").unlink()
        (run / "big.bin").write_text("2" * 1_500_000)
        os.utime(run / "big.bin", (1e9 + 1, 1e9 + 1))


def test_a_model_that_is_replaced_is_named_whatever_its_times(tmp_path):
    write_json({"digest": "d" * 64}, tmp_path / "model/settings.json")
    (tmp_path / METADATA).mkdir(parents=True)
    result = tmp_path / "results/expression/A.h5ad"
    result.parent.mkdir(parents=True)
    result.touch()
    ended = result.stat().st_mtime
    record = {
        **{"rule": "predict_slide", "starttime": ended, "endtime": ended},
        **{"params": [repr("d" * 64)], "input": ["model"]},
    }
    name = urlsafe_b64encode(b"results/expression/A.h5ad").decode()
    (tmp_path / METADATA / name).write_text(json.dumps(record))

    def told():
        found = Lineage(tmp_path)
        said = lineage.find_changes(found, "results/expression/A.h5ad")
        return said, lineage.describe(found, "results/expression/A.h5ad", said)

    os.utime(tmp_path / "model/settings.json", (1e9, 1e9))
    os.utime(tmp_path / "model", (1e9, 1e9))
    said, text = told()
    assert said == []
    assert f"model     model  digest {'d' * 64}" in text
    write_json({"digest": "e" * 64}, tmp_path / "model/settings.json")
    os.utime(tmp_path / "model", (1e9, 1e9))
    said, text = told()
    assert said == [f"model: the model's digest is {'e' * 64}, it was {'d' * 64}"]
    assert f"model     model  digest {'d' * 64}" in text


def test_a_result_that_was_edited_is_named(run):
    text = (run / COX).read_text()
    (run / COX).write_text(text + "x")
    assert changes(run)[0].startswith(f"{COX}: written at")
    lineage.write_table(run)
    assert changes(run)[0].startswith(f"{COX}: written at")
    (run / "results/folds/s.tsv").write_text("edited")
    assert any(said.startswith("results/folds/s.tsv: sha256") for said in changes(run))


def test_a_file_that_is_older_than_its_remade_input_is_named(run):
    # As Snakemake leaves it after `--forcerun split_folds --until split_folds`.
    name = urlsafe_b64encode(b"results/folds/s.tsv").decode()
    record = json.loads((run / METADATA / name).read_text())
    record["endtime"] = time.time()
    (run / METADATA / name).write_text(json.dumps(record))
    os.utime(run / "results/folds/s.tsv", (record["endtime"], record["endtime"]))
    assert f"{COX}: made before its input results/folds/s.tsv was made again" in changes(run)


def test_changed_code_and_settings_are_named(run, monkeypatch):
    monkeypatch.setattr(lineage, "code_digest", lambda script: "0" * 16)
    configuration = {**CONFIGURATION, "survival": {"folds": 3}, "seed": 8}
    (run / "results/provenance/configuration.yaml").write_text(yaml.safe_dump(configuration))
    said = "\n".join(changes(run))
    assert "code digest of fit_survival.py is 0000000000000000, it was " in said
    assert "rule fit_survival: survival.folds was 5, configuration.yaml has 3" in said
    assert "rule split_folds: seed was 7, configuration.yaml has 8" in said


def test_a_copy_without_records_and_times_answers_from_the_table(run, tmp_path, capsys):
    lineage.write_table(run)
    table = pd.read_csv(run / TABLE, sep="\t", index_col="file")
    assert table.loc[COX, "sha256"] == file_sha256(run / COX)
    assert table.loc["cohort.tsv", "sha256"] == file_sha256(run / "cohort.tsv")
    assert pd.isna(table.loc["cohort.tsv", "rule"])
    assert table.loc[COX, "seed"] == 7
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copytree(run / "results", copy / "results", copy_function=shutil.copyfile)
    for source in ("cohort.tsv", "big.bin"):
        shutil.copyfile(run / source, copy / source)
    assert lineage.main([COX, "--directory", str(copy)]) == 0
    (copy / "big.bin").write_text("2")
    assert lineage.main([COX, "--directory", str(copy)]) == 1
    assert "big.bin: sha256" in capsys.readouterr().out


def test_the_table_is_the_same_when_nothing_ran(run):
    first = lineage.write_table(run).read_bytes()
    assert lineage.write_table(run).read_bytes() == first


def test_settings_are_told_before_the_configuration_was_recorded(run, capsys):
    (run / "results/provenance/configuration.yaml").unlink()
    assert lineage.main([COX, "--directory", str(run)]) == 0
    assert 'without a name: [{"folds": 5}]' in capsys.readouterr().out


def test_a_run_ends_well_though_the_table_cannot_be_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / METADATA).mkdir(parents=True)
    (tmp_path / "results").write_text("no folder")
    lineage.record_run()
    assert f"{TABLE} was not written (" in capsys.readouterr().err


def test_a_missing_source_is_named(run):
    (run / "cohort.tsv").unlink()
    assert "cohort.tsv: is no longer there" in changes(run)


def test_what_nobody_recorded_is_refused_with_a_remedy(run, tmp_path, capsys):
    with pytest.raises(InputError, match="name a file under results/"):
        Lineage(run).find("results/other.tsv")
    assert lineage.main([COX, "--directory", str(tmp_path)]) == 2
    assert "--directory" in capsys.readouterr().err


@pytest.mark.filterwarnings("error")
def test_a_job_leaves_its_versions_in_its_log_and_a_failed_one_does_not(tmp_path):
    with job_log(tmp_path / "a.log"):
        import anndata
    assert read_versions(tmp_path / "a.log") == loaded_versions()
    assert read_versions(tmp_path / "a.log")["pandas"] == pd.__version__
    assert read_versions(tmp_path / "a.log")["anndata"] == metadata.version(anndata.__name__)
    with pytest.raises(InputError), job_log(tmp_path / "b.log"):
        raise InputError("wrong")
    assert read_versions(tmp_path / "b.log") == {}


def test_an_image_is_told_by_the_digest_that_prepare_slide_took(tmp_path):
    (tmp_path / "A.svs").write_bytes(b"slide")
    write_json({"sha256": file_sha256(tmp_path / "A.svs")}, tmp_path / "results/slides/A.json")
    (tmp_path / METADATA).mkdir(parents=True)
    ended = (tmp_path / "results/slides/A.json").stat().st_mtime
    record = {
        "rule": "prepare_slide",
        "code": '"../workflow_scripts/prepare_slide.py"\n',
        "params": [repr(provenance.code_digest("prepare_slide.py")), "None"],
        "input": ["A.svs"],
        "starttime": ended - 1,
        "endtime": ended,
    }
    name = urlsafe_b64encode(b"results/slides/A.json").decode()
    (tmp_path / METADATA / name).write_text(json.dumps(record))
    found = Lineage(tmp_path)
    assert lineage.find_changes(found, "results/slides/A.json") == []
    (tmp_path / "A.svs").write_bytes(b"other")
    (said,) = lineage.find_changes(found, "results/slides/A.json")
    assert said.startswith(f"A.svs: sha256 is {file_sha256(tmp_path / 'A.svs')}, it was ")


def test_a_model_folder_is_told_by_its_own_digest(tmp_path, capsys):
    write_json({"digest": "d" * 64}, tmp_path / "results/model/s/settings.json")
    (tmp_path / METADATA).mkdir(parents=True)
    ended = (tmp_path / "results/model/s").stat().st_mtime
    record = {"rule": "package_model", "starttime": ended - 1, "endtime": ended}
    name = urlsafe_b64encode(b"results/model/s").decode()
    (tmp_path / METADATA / name).write_text(json.dumps(record))
    assert lineage.main(["results/model/s/settings.json", "--directory", str(tmp_path)]) == 0
    assert f"model     results/model/s  digest {'d' * 64}" in capsys.readouterr().out
