"""Three tiny slides go through the whole workflow, and what it prints fits a terminal."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from histogep.files import read_json, read_tsv

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.workflow


def snakemake(folder, *arguments):
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--cores", "2"]
    command += ["--directory", folder, "--configfile", ROOT / ".test/config.yaml", *arguments]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=ROOT)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-6000:]
    return said


def test_three_tiny_slides_go_through_the_whole_workflow(tmp_path):
    said = snakemake(tmp_path)
    assert read_json(tmp_path / "results/evaluation/small/leakage.json")["ok"]
    assert set(read_tsv(tmp_path / "results/slides.tsv")["status"]) == {"used"}
    assert len(read_tsv(tmp_path / "results/predicted_slides.tsv")) == 1
    # What a job does, its end and how far the run is: no lists of files.
    jobs = re.findall(r"(?m)^Job \d+: .+$", said)
    assert "Train ridge on fold patient_cv-1" in "\n".join(jobs)
    assert len(jobs) == int(re.search(r"(?m)^total +(\d+)$", said)[1])
    assert f"{len(jobs)} of {len(jobs)} steps (100%) done" in said
    assert "Reason:" not in said
    # At the end what the jobs warned of, which is what the table has of them.
    warned = read_tsv(tmp_path / "results/warnings.tsv", keep_default_na=False)
    warned = warned[warned["rule"] != "(plan)"]
    told = re.search(r"(?m)^(\d+) warnings?, .*; see results/warnings.tsv:$", said)
    assert int(told[1]) == warned["n"].sum()
    for rule, n in warned.groupby("rule")["n"].sum().items():
        assert re.search(rf"(?m)^  {rule}: {n}\b", said[told.start() :]), rule
    for text in warned.loc[warned["decides"] != "", "warning"]:
        assert text.split(": ")[-1] in said[told.start() :]
    lines = [line for line in said[: told.start()].splitlines() if "results/" in line]
    assert [line for line in lines if "left out:" not in line] == []
    assert "Nothing to be done" in snakemake(tmp_path, "--dry-run")
