"""What a change of a sheet or of a setting makes Snakemake compute again: the table of the docs, tested."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.plan_changes import section, slide

ROOT = Path(__file__).resolve().parents[2]
#: By the first column of the table "What is computed again" in docs/reliability.md.
CHANGES = {
    "nothing": {},
    "a slide added": {"sheet": [slide(13)]},
    "a slide dropped": {"sheet": [f"-{slide(12)}"]},
    "a section added": {"sheet": [section(4)]},
    "a section dropped": {"sheet": [f"-{section(3)}"]},
    "the patients sheet": {"grown": "patients.tsv"},
    "the gene sets": {"grown": "sets.gmt"},
    "`seed`": {"settings": {"seed": 2}},
    "`lattice`": {"settings": {"lattice": {"tile_um": 110}}},
    "`tissue`": {"settings": {"tissue": {"min_tissue": 0.3}}},
    "`encoders`": {"settings": {"encoders": [{"name": "descriptors"}]}},
    "`spots`": {"settings": {"spots": {"min_on_tissue": 0.4}}},
    "`labels`": {"settings": {"labels": {"boundary": ["edge"]}}},
    "`genes`": {"settings": {"genes": {"max_genes": 100}}},
    "`folds`": {"settings": {"folds": {"published_grid": [32, 32]}}},
    "`models` (`ridge`)": {"settings": {"models": {"ridge": {"components": 20}}}},
    "`evaluation`": {"settings": {"evaluation": {"bootstraps": 333}}},
    "`deploy`": {"settings": {"deploy": {"expression": "ridge"}}},
    "`cnv`": {"settings": {"cnv": {"max_clones": 3}}},
    "`neighbourhoods`": {"settings": {"neighbourhoods": {"rings": 4}}},
    "`summary`": {"settings": {"summary": {"tumour_threshold": 0.4}}},
    "`summary` (`upper_quantile`)": {"settings": {"summary": {"upper_quantile": 0.8}}},
    "`survival`": {"settings": {"survival": {"bootstraps": 333}}},
    "`survival` (`penalties`)": {"settings": {"survival": {"penalties": [0.1, 1.0]}}},
    "`response`": {"settings": {"response": {"bootstraps": 333}}},
    "`response` (`folds`)": {"settings": {"response": {"folds": 4}}},
    "`maps`": {"settings": {"maps": {"epochs": 20}}},
    "`maps` (`published`)": {"settings": {"maps": {"published": True}}},
    "`maps` (`noise_draws`)": {"settings": {"maps": {"noise_draws": 30}}},
    "`enrichment`": {"settings": {"enrichment": {"permutations": 200}}},
    "`enrichment` (`min_size`)": {"settings": {"enrichment": {"min_size": 10}}},
    "`report`": {"settings": {"report": {"genes": 40}}},
    "`report` (`figures`)": {"settings": {"report": {"figures": 10}}},
    "`on_bad_slide: skip`": {"settings": {"on_bad_slide": "skip"}},
}
#: Made once, on request, or by a study of another kind: simulated, with `on_bad_slide: skip`, of two cohorts.
NOT_IN_THE_TABLE = {
    *("export_spatialdata", "export_qupath", "export_tiles", "export_clam"),
    *("simulate_references", "simulate_section", "simulate_slide", "copy_resource"),
    *("record_software", "export_encoder", "transfer_response", "all"),
}
PER_SLIDE = {
    *("prepare_slide", "tile_slide", "encode_tiles", "predict_slide", "infer_cnv"),
    "describe_neighbourhoods",
}

# One worker: all cases share one plan.
pytestmark = [pytest.mark.workflow, pytest.mark.xdist_group("cohorts")]


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """The rules and numbers of jobs that each change plans, in a made-up study that is finished."""
    done = subprocess.run(
        [sys.executable, ROOT / "tests/plan_changes.py", tmp_path_factory.mktemp("study") / "s"],
        input=json.dumps(CHANGES),
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def documented():
    """Return the rules of each row of the table, with the rules of *groups* put in."""
    text = (ROOT / "docs/reliability.md").read_text().split("## What is computed again")[1]
    lines = text.split("\n## ")[0].splitlines()
    groups: dict[str, set[str]] = {}

    def rules(cell):
        named = set(re.findall(r"`(\w+)`", cell))
        return named.union(*(groups[name] for name in re.findall(r"\*(\w+)\*", cell)))

    for line in lines:
        if group := re.match(r"- \*(\w+)\*: (.*)", line):
            groups[group[1]] = rules(group[2])
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in lines if line[:2] == "| "]
    return {change: rules(cell) for change, cell in rows[1:]}


def test_the_table_has_every_change():
    assert list(documented()) == list(CHANGES)


def test_the_table_leaves_out_no_rule_and_no_section_of_the_settings():
    text = "".join(path.read_text() for path in [ROOT / "Snakefile", *ROOT.glob("rules/*.smk")])
    rules = set(re.findall(r"(?m)^(?:rule|checkpoint) (\w+):", text))
    assert set().union(*documented().values()) == rules - NOT_IN_THE_TABLE
    schema = yaml.safe_load((ROOT / "config/schemas/config.schema.yaml").read_text())
    sections = {
        name
        for name, told in schema["properties"].items()
        if told.get("type") in ("object", "array")
    }
    # These name inputs or exports, or say how the made-up slides look.
    sections -= {"measured", "columns", "references", "simulation", "export"}
    changed = {name for change in CHANGES.values() for name in change.get("settings", {})}
    assert sections <= changed


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_reruns_what_the_docs_say_and_no_more(planned, change):
    assert set(planned[change]) == documented()[change]


def test_settings_of_one_outcome_or_contrast_leave_the_others_alone(planned):
    # The paper's protocol knows survival only; a cohort has tumour, survival and response contrasts.
    assert planned["`maps` (`published`)"]["train_map_net"] == 1
    assert planned["`maps`"]["train_map_net"] == 2
    assert planned["`response` (`folds`)"]["train_map_net"] == 1
    assert planned["`survival` (`penalties`)"]["train_map_net"] == 1
    everything = planned["`enrichment`"]["enrich_genes"]
    assert 0 < planned["`response`"]["enrich_genes"] < everything


def test_slides_that_stay_are_not_touched_when_one_comes_or_goes(planned):
    assert {planned["a slide added"][rule] for rule in PER_SLIDE} == {1}
    assert not PER_SLIDE & set(planned["a slide dropped"])
    new = {"prepare_slide", "tile_slide", "encode_tiles", "align_spots", "score_genes"}
    assert {planned["a section added"][rule] for rule in new} == {1}
