"""Another workflow takes the rules of this one as a module, and adds one of its own."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from histogep.files import read_json
from tests import plan_changes
from tests.plan_changes import ROOT, planned

pytestmark = pytest.mark.workflow

OUTER = """
configfile: "outer.yaml"


module histogep:
    snakefile:
        "ROOT/Snakefile"
    config:
        config["histogep"]


use rule * from histogep as histogep_*


onsuccess:
    histogep.onsuccess()


rule count_stages:
    default_target: True
    input:
        "results/provenance/stages.tsv",
    output:
        "own/stages.txt",
    shell:
        "wc -l < {input} > {output}"
"""


class Outer:
    """A workflow in a folder of its own, whose configuration has ours as one of its sections."""

    def __init__(self, folder: Path):
        self.folder = folder
        plan_changes.write_inputs(folder)
        (folder / "Snakefile").write_text(OUTER.replace("ROOT", str(ROOT)))

    def configure(self, **settings):
        lines = [plan_changes.SHEET, *plan_changes.LINES, ""]
        (self.folder / "slides.tsv").write_text("\n".join(lines))
        given = {"histogep": plan_changes.CONFIG | settings, "own": "setting"}
        (self.folder / "outer.yaml").write_text(yaml.safe_dump(given))

    def run(self, *arguments, returncode=0):
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", "--cores", "1", *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
        )
        assert done.returncode == returncode, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout + done.stderr


@pytest.fixture
def outer(tmp_path):
    return Outer(tmp_path / "outer")


def test_a_rule_of_another_workflow_is_made_from_our_results(outer):
    outer.configure()
    outer.run("own/stages.txt", "results/resources/markers.tsv")
    stages = (outer.folder / "results/provenance/stages.tsv").read_text()
    assert int((outer.folder / "own/stages.txt").read_text()) == len(stages.splitlines())
    markers = (outer.folder / "results/resources/markers.tsv").read_bytes()
    assert markers == (ROOT / "histogep/resources/markers.tsv").read_bytes()
    recorded = (outer.folder / "results/provenance/configuration.yaml").read_text()
    assert yaml.safe_load(recorded)["study"] == "s"
    # Ours ends a run with the table of where each file came from; so does theirs if it asks for it.
    assert "stages.tsv" in (outer.folder / "results/provenance/lineage.tsv").read_text()
    assert planned(outer.run("--dry-run")) == {}
    # Captions are found beside our rules.
    outer.run("own/stages.txt", "--report", "report.html")
    assert "stages that ran, and those left out" in (outer.folder / "report.html").read_text()


def test_the_whole_study_is_planned_under_other_names_and_waits_for_its_checkpoint(outer):
    outer.configure()
    # All slides are empty files.
    said = outer.run("results/slides/H01.json", returncode=1)
    assert "on_bad_slide: skip" in said
    # What names a slide wrongly is refused at once, not when all slides have been encoded.
    outer.configure(on_bad_slide="skip", report={"pages": ["H99"]})
    said = outer.run("--dry-run", "--", "histogep_all", returncode=1)
    assert "report.pages names H99, which the slide sheet" in said
    outer.configure(on_bad_slide="skip")
    outer.run("results/slides/H01.json")
    assert "zero bytes" in read_json(outer.folder / "results/slides/H01.json")["failed"]["reason"]
    before = planned(outer.run("--dry-run", "--quiet", "rules", "--", "histogep_all"))
    assert before["histogep_encode_tiles"] == 15
    assert "histogep_predict_slide" not in before
    # As if all slides had been encoded, and one of them could not be used.
    for line in outer.run("results/failed_slides.tsv", "--summary").splitlines():
        name = line.split("\t")[0]
        if name.startswith("results/"):
            path = outer.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch() if path.suffix else path.mkdir(exist_ok=True)
    (outer.folder / "results/failed_slides.tsv").write_text("slide\nH12\n")
    outer.run("results/failed_slides.tsv", "--touch", "--forceall")
    after = planned(outer.run("--dry-run", "--quiet", "rules", "--", "histogep_all"))
    assert after["histogep_predict_slide"] == 11
    assert after["histogep_split_folds"] == 1
    assert "histogep_encode_tiles" not in after
