"""What the documents say is so: files, columns, settings, messages, commands and links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "config/README.md"]
DOCUMENTS += sorted(ROOT.glob("docs/*.md"))
_RULE = re.compile(r"(?ms)^(?:rule|checkpoint) (\w+):\n(.*?)(?=^(?:rule|checkpoint) |\Z)")


def _outputs():
    """Yield rule and path of every output of every rule."""
    for file in sorted(ROOT.glob("rules/*.smk")):
        for rule, body in _RULE.findall(file.read_text()):
            (block,) = re.findall(r"(?ms)^    output:\n(.*?)(?=^    \w+:)", body)
            for path in re.findall(r'"((?:results|data)/[^"]+)"', block):
                yield rule, path.removeprefix("results/")


def _listed():
    """Return file -> (rules, content) of the tables of docs/outputs.md."""
    rows = re.findall(
        r"(?m)^\| `([^`]+)` \| (.+?) \| (.+) \|$", (ROOT / "docs/outputs.md").read_text()
    )
    assert len(rows) == len({file for file, _, _ in rows})
    return {file: (set(re.findall(r"`(\w+)`", rules)), content) for file, rules, content in rows}


def test_every_output_of_every_rule_is_listed_and_nothing_else():
    made = {}
    for rule, path in _outputs():
        made.setdefault(path, set()).add(rule)
    listed = {file: rules for file, (rules, _) in _listed().items()}
    assert listed.pop("provenance/lineage.tsv") == set()
    assert listed == made
