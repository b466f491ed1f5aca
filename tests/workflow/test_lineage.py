"""The lineage of a file, from the records that jobs of a real run of Snakemake wrote."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml

from histogep.errors import InputError
from histogep.files import file_sha256, write_json
from histogep.workflow import code as provenance
from histogep.workflow import lineage
from histogep.workflow.job import job_log
from histogep.workflow.lineage import COLUMNS, TABLE, Lineage
from histogep.workflow.records import FORMAT, HASHED_INPUT_BYTES, read_record, state_of
from histogep.workflow.software import loaded_versions

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGURATION = {
    "study": "s", "seed": 7, "slides": "slides.tsv",
    "survival": {"folds": 5, "horizons": [12]}, "response": {"folds": 5},
}  # fmt: skip
BIG = HASHED_INPUT_BYTES + 1
#: Rules of the real shape: a code digest, the seed, sections of the configuration; a script.
SNAKEFILE = """
rule all:
    input: "results/survival/s/cox.tsv"
rule split_folds:
    input: "cohort.tsv"
    output: "results/folds/s.tsv"
    log: "logs/split_folds/s.log"
    params: code="CODE_OF_FOLDS", seed=7, slides=["A", "B"]
    script: "workflow_scripts/split_folds.py"
rule fit_survival:
    input: folds="results/folds/s.tsv", big="big.bin"
    output: "results/survival/{cohort}/cox.tsv"
    log: "logs/fit_survival/{cohort}.log"
    threads: 1
    resources: mem_mb=500
    params: code="CODE_OF_COX", survival={"folds": 5, "horizons": [12]}, response={"folds": 5}, seed=7
    script: "workflow_scripts/fit_survival.py"
"""
SCRIPT = """
import sys
sys.path.insert(0, "REPOSITORY")
import numpy
from histogep.workflow.job import job_log
with job_log(snakemake.log[0], snakemake):
    with open(snakemake.output[0], "w") as handle:
        for path in snakemake.input:
            handle.write(open(path).read()[:20])
""".replace("REPOSITORY", str(REPOSITORY))


def snakemake(folder, *options):
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--quiet", "all", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A working directory in which Snakemake has run two rules, whose jobs recorded themselves."""
    folder = tmp_path_factory.mktemp("run")
    snakefile = SNAKEFILE
    (folder / "workflow_scripts").mkdir()
    for mark, script in (("FOLDS", "split_folds.py"), ("COX", "fit_survival.py")):
        snakefile = snakefile.replace(f"CODE_OF_{mark}", provenance.code_digest(script))
        (folder / "workflow_scripts" / script).write_text(SCRIPT)
    (folder / "Snakefile").write_text(snakefile)
    (folder / "cohort.tsv").write_text("patient\nP1\n")
    (folder / "big.bin").write_text("0" * BIG)
    (folder / "results/provenance").mkdir(parents=True)
    (folder / "results/provenance/configuration.yaml").write_text(yaml.safe_dump(CONFIGURATION))
    snakemake(folder)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy with its times, to be changed by one test."""
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns(".snakemake"))
    return tmp_path / "run"


COX, FOLDS = "results/survival/s/cox.tsv", "results/folds/s.tsv"
COX_RECORD, FOLDS_RECORD = Path("logs/fit_survival/s.json"), Path("logs/split_folds/s.json")


def changes(run, **options):
    return lineage.find_changes(Lineage(run), COX, **options)


def record_job(folder, rule, *, input, output, params=None, log="logs/job.log"):
    """Record a job in a study without running anything but `job_log`; its output must be there."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        Path(log).parent.mkdir(parents=True, exist_ok=True)
        job = SimpleNamespace(
            rule=rule, input=input, output=output, params=params or {},
            wildcards={}, resources={}, threads=1,
        )  # fmt: skip
        with job_log(log, job):
            pass
    finally:
        os.chdir(before)


# ----------------------------------------------------------------------- records of jobs

#: A record that could be one, and is of no file.
_RECORD = {"format": FORMAT} | dict.fromkeys(("rule", "script", "code", "started", "ended"), "")
_RECORD |= dict.fromkeys(
    ("wildcards", "params", "threads", "resources", "software", "inputs", "outputs"), {}
)


def test_a_job_records_what_it_read_wrote_and_ran_with(run):
    record = read_record(run / COX_RECORD)
    assert (record["rule"], record["script"]) == ("fit_survival", "fit_survival.py")
    assert record["wildcards"] == {"cohort": "s"}
    assert record["params"]["survival"] == {"folds": 5, "horizons": [12]}
    assert record["code"] == provenance.code_digest("fit_survival.py")
    assert record["threads"] == 1
    assert record["resources"]["mem_mb"] == 500
    assert not {"_cores", "tmpdir"} & record["resources"].keys()
    assert {file: state.name for file, state in record["inputs"].items()} == {
        FOLDS: "folds",
        "big.bin": "big",
    }
    assert record["inputs"]["big.bin"].bytes == BIG
    assert record["outputs"][COX].sha256 == file_sha256(run / COX)
    # A file of a rule that has no name.
    assert read_record(run / FOLDS_RECORD)["inputs"]["cohort.tsv"].name == ""
    assert read_record(run / FOLDS_RECORD)["inputs"]["cohort.tsv"].sha256 == file_sha256(
        run / "cohort.tsv"
    )


def test_a_job_that_fails_or_is_killed_leaves_no_record_of_an_earlier_one(tmp_path):
    record_job(tmp_path, "one", input={}, output={})
    assert read_record(tmp_path / "logs/job.json")["rule"] == "one"
    code = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n"
        "from histogep.workflow.job import job_log\nimport time\n"
        "from types import SimpleNamespace\n"
        "parts = dict.fromkeys(('input', 'output', 'params', 'wildcards', 'resources'), {})\n"
        "with job_log('logs/job.log', SimpleNamespace(rule='one', threads=1, **parts)):\n"
        "    print('begun', flush=True)\n    time.sleep(60)\n"
    )
    for number in (signal.SIGTERM, signal.SIGKILL):
        record_job(tmp_path, "one", input={}, output={})
        job = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
        while "begun" not in (tmp_path / "logs/job.log").read_text():
            time.sleep(0.05)
        job.send_signal(number)
        job.wait()
        assert list((tmp_path / "logs").glob("*json*")) == []


@pytest.mark.filterwarnings("error")
def test_a_job_records_the_versions_that_it_loaded_and_logs_them(tmp_path):
    import anndata

    record_job(tmp_path, "one", input={}, output={})
    versions = read_record(tmp_path / "logs/job.json")["software"]
    assert versions == loaded_versions()
    assert versions["pandas"] == pd.__version__
    assert versions["anndata"] == metadata.version(anndata.__name__)
    assert f"pandas {pd.__version__}" in (tmp_path / "logs/job.log").read_text().splitlines()[-1]


def test_a_folder_is_known_by_what_is_in_it(tmp_path):
    (tmp_path / "pyramid").mkdir()
    empty = state_of(tmp_path / "pyramid", hashed_bytes=100)
    (tmp_path / "pyramid/a").write_text("1")
    (tmp_path / "pyramid/.snakemake_timestamp").write_text("")
    one = state_of(tmp_path / "pyramid", hashed_bytes=100)
    (tmp_path / "pyramid/a").rename(tmp_path / "pyramid/b")
    other = state_of(tmp_path / "pyramid", hashed_bytes=100)
    assert (empty.bytes, empty.modified) == (0, "")
    assert (one.bytes, one.modified) == (other.bytes, other.modified)
    assert len({empty.sha256, one.sha256, other.sha256}) == 3
    assert state_of(tmp_path / "pyramid", hashed_bytes=0).sha256 == ""


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "null", "[" * 100_000, '{"format": "something else"}',
        json.dumps({"format": FORMAT}), json.dumps({"format": FORMAT, "inputs": 3, "outputs": []}),
        json.dumps(_RECORD | {"ended": 3}), json.dumps(_RECORD | {"params": [3]}),
        json.dumps(_RECORD | {"outputs": {"results/folds/s.tsv": {"size": 3}}}),
    ],
)  # fmt: skip
def test_a_foreign_or_damaged_record_makes_a_result_unknown_and_nothing_else(run, content, capsys):
    (run / FOLDS_RECORD).write_text(content)
    assert changes(run) == [f"{FOLDS}: how it was made is not recorded"]
    assert lineage.main([COX, "--directory", str(run)]) == 1
    with pytest.raises(InputError, match="not recorded"):
        Lineage(run).find(FOLDS)
    (run / "results/forgotten.tsv").write_text("")
    lineage.write_table(run)
    assert "3 results have no record" in capsys.readouterr().err
    table = pd.read_csv(run / TABLE, sep="\t", index_col="file")
    assert table.loc[[FOLDS, "results/forgotten.tsv"], "rule"].eq("unknown").all()
    assert table.loc[COX, "rule"] == "fit_survival"
    # The table of that run does not make it known.
    assert changes(run) == [f"{FOLDS}: how it was made is not recorded"]


def test_of_two_records_of_one_file_the_later_one_counts(run):
    record = json.loads((run / FOLDS_RECORD).read_text())
    for name, year in (("logs/zzz.json", "1999"), ("logs/aaa.json", "2999")):
        write_json({**record, "rule": f"of_{year}", "ended": year}, run / name)
    assert Lineage(run).entry(FOLDS).rule == "of_2999"


# ------------------------------------------------------------------------------- lineage


def test_a_file_traces_to_code_settings_seed_versions_and_sources(run):
    entry = Lineage(run).entry(COX)
    assert (entry.rule, entry.script) == ("fit_survival", "fit_survival.py")
    assert entry.code == provenance.code_digest("fit_survival.py")
    assert entry.seed == 7
    # By their own names, though a section of another name has the same content.
    assert entry.settings == {
        "survival": {"folds": 5, "horizons": [12]},
        "response": {"folds": 5},
    }
    assert Lineage(run).entry(FOLDS).settings == {}
    assert entry.software["numpy"] == __import__("numpy").__version__
    assert set(entry.inputs) == {FOLDS, "big.bin"}
    found = {part.file for part in Lineage(run).ancestors(COX)}
    assert found == {COX, FOLDS, "big.bin", "cohort.tsv"}


def test_the_command_prints_it_and_says_when_nothing_changed(run, capsys):
    assert lineage.main([COX, "--directory", str(run), "--rehash"]) == 0
    said = capsys.readouterr().out
    assert file_sha256(run / "cohort.tsv") in said
    assert "changed since: nothing" in said
    assert provenance.code_digest("split_folds.py") in said
    assert 'survival: {"folds": 5, "horizons": [12]}' in said


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


def test_a_large_source_is_known_by_its_time_and_with_the_table_by_its_digest(run):
    lineage.write_table(run)
    (run / "big.bin").write_text("0" * BIG)
    assert changes(run) == []
    (run / "big.bin").write_text("1" * BIG)
    assert "big.bin: sha256" in changes(run)[0]
    lineage.write_table(run)  # by the next run, which does not use it
    assert "big.bin: sha256" in changes(run)[0]
    (run / TABLE).unlink()
    (said,) = changes(run)
    assert "big.bin: written at" in said
    assert "used at" in said


def test_a_source_that_is_replaced_by_an_older_file_is_named(run):
    lineage.write_table(run)
    for content in ("1", "2"):  # before and after the table of the next run
        for name in ("cohort.tsv", "big.bin"):
            (run / name).write_text(content * BIG)
            os.utime(run / name, (1e9, 1e9))
        said = changes(run)
        assert [line.split(": sha256 is")[0] for line in said] == ["big.bin", "cohort.tsv"], said
        lineage.write_table(run)


def test_a_model_that_is_replaced_is_named_whatever_its_times(tmp_path):
    write_json({"digest": "d" * 64}, tmp_path / "model/settings.json")
    os.utime(tmp_path / "model/settings.json", (1e9, 1e9))
    result = "results/expression/A.h5ad"
    write_json({}, tmp_path / result)
    files = {"input": {"model": "model"}, "output": {"expression": result}}
    record_job(tmp_path, "predict_slide", **files, params={"model": "d" * 64})

    def told():
        found = Lineage(tmp_path)
        said = lineage.find_changes(found, result)
        return said, lineage.describe(found, result, said)

    said, text = told()
    assert said == []
    assert f"model     model  digest {'d' * 64}" in text
    write_json({"digest": "e" * 64}, tmp_path / "model/settings.json")
    os.utime(tmp_path / "model/settings.json", (1e9, 1e9))
    said, text = told()
    assert said == [f"model: the model's digest is {'e' * 64}, it was {'d' * 64}"]
    assert f"model     model  digest {'d' * 64}" in text


def test_a_result_that_was_edited_is_named(run):
    text = (run / COX).read_text()
    (run / COX).write_text(text[:-1] + "x")
    said = changes(run)
    assert said[0].startswith(f"{COX}: sha256 is")
    lineage.write_table(run)
    assert changes(run) == said
    stat = (run / FOLDS).stat()
    (run / FOLDS).write_text("edited".ljust(stat.st_size))
    os.utime(run / FOLDS, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert any(said.startswith(f"{FOLDS}: sha256") for said in changes(run, rehash=True))


def test_a_result_too_large_for_a_digest_is_known_by_size_and_by_the_time_after_the_run(
    run, monkeypatch
):
    record = json.loads((run / COX_RECORD).read_text())
    record["outputs"][COX]["sha256"] = ""
    (run / COX_RECORD).write_text(json.dumps(record))
    monkeypatch.setattr(lineage, "HASHED_INPUT_BYTES", 0)
    assert changes(run) == []
    lineage.write_table(run)
    assert changes(run) == []
    os.utime(run / COX, (1e9, 1e9))
    for _ in range(2):
        (said,) = changes(run)
        assert said.startswith(f"{COX}: ")
        assert "written at 2001" in said
        lineage.write_table(run)
    (run / TABLE).unlink()
    (run / COX).write_text("longer than it was")
    assert "18 bytes written at" in changes(run)[0]


def test_only_new_times_of_the_same_content_are_no_change(run):
    for name in (COX, FOLDS, "cohort.tsv", "big.bin"):
        os.utime(run / name)
    (run / TABLE).unlink(missing_ok=True)
    assert [said for said in changes(run) if "big.bin" not in said] == []


def test_a_file_that_is_older_than_its_remade_input_is_named(run):
    snakemake(run, "--forcerun", "split_folds", "--until", "split_folds")
    assert changes(run) == [f"{COX}: made before its input {FOLDS} was made again"]
    snakemake(run)
    assert changes(run) == []


def test_changed_code_and_settings_are_named(run, monkeypatch):
    monkeypatch.setattr(lineage, "code_digest", lambda script: "0" * 16)
    configuration = {**CONFIGURATION, "survival": {"folds": 3, "horizons": [12]}, "seed": 8}
    (run / "results/provenance/configuration.yaml").write_text(yaml.safe_dump(configuration))
    said = "\n".join(changes(run))
    assert "code digest of fit_survival.py is 0000000000000000, it was " in said
    assert "rule fit_survival: survival.folds was 5, configuration.yaml has 3" in said
    assert "response" not in said
    assert "rule split_folds: seed was 7, configuration.yaml has 8" in said


def test_a_copy_without_records_and_times_answers_from_the_table(run, tmp_path, capsys):
    lineage.write_table(run)
    table = pd.read_csv(run / TABLE, sep="\t", index_col="file")
    assert table.loc[COX, "sha256"] == file_sha256(run / COX)
    assert table.loc["cohort.tsv", "sha256"] == file_sha256(run / "cohort.tsv")
    assert table.loc["big.bin", "sha256"] == file_sha256(run / "big.bin")
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


@pytest.mark.parametrize("text", ["file\trule\n", "\t".join(COLUMNS) + "\na\tb\n", "file\n\0"])
def test_a_table_of_another_version_is_no_record_and_is_replaced(run, text):
    (run / TABLE).write_text(text)
    assert changes(run) == []
    lineage.write_table(run)
    assert COX in (run / TABLE).read_text()


def test_a_run_ends_well_though_the_table_cannot_be_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    record_job(tmp_path, "one", input={}, output={"job": "logs/job.log"})
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


def test_an_image_is_known_by_the_digest_that_prepare_slide_took(tmp_path):
    from histogep.slides.sources import source_sha256

    # A slide of several files: the digest is not that of the file that the sheet names.
    (tmp_path / "A.mrxs").write_bytes(b"slide")
    (tmp_path / "A").mkdir()
    (tmp_path / "A/Slidedat.ini").write_text("[GENERAL]\n")
    (tmp_path / "A/Data0000.dat").write_text("tiles")
    digest = source_sha256(tmp_path / "A.mrxs")
    result, tiles = "results/slides/A.json", "results/tiles/A.parquet"
    write_json({"sha256": digest}, tmp_path / result)
    write_json({}, tmp_path / tiles)
    record_job(tmp_path, "prepare_slide", input={"image": "A.mrxs"}, output={"slide": result})
    files = {"input": {"slide": result, "image": "A.mrxs"}, "output": {"tiles": tiles}}
    record_job(tmp_path, "tile_slide", **files, log="logs/tile.log")
    assert digest in lineage.write_table(tmp_path).read_text()
    for options in ({}, {"rehash": True}):
        assert lineage.find_changes(Lineage(tmp_path), tiles, **options) == []
    (tmp_path / "A/Data0000.dat").write_text("other")
    (said,) = lineage.find_changes(Lineage(tmp_path), tiles, rehash=True)
    assert said == f"A.mrxs: sha256 is {source_sha256(tmp_path / 'A.mrxs')}, it was {digest}"


def test_a_model_folder_is_known_by_its_own_digest(tmp_path, capsys):
    write_json({"digest": "d" * 64}, tmp_path / "results/model/s/settings.json")
    record_job(tmp_path, "package_model", input={}, output={"model": "results/model/s"})
    assert lineage.main(["results/model/s/settings.json", "--directory", str(tmp_path)]) == 0
    assert f"model     results/model/s  digest {'d' * 64}" in capsys.readouterr().out
