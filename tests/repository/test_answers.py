"""docs/answers.md names files, columns, metrics and models as they are."""

import ast
import re
from pathlib import Path

import pytest

from histogep.report.pages_evaluation import METRICS
from histogep.report.pages_outcome import MODELS

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/answers.md").read_text()
LISTED = {
    file: content
    for page in ROOT.glob("docs/outputs/*.md")
    for file, content in re.findall(r"(?m)^\*\*`([^`]+)`\*\* · .+\n\n(.+)$", page.read_text())
}
QUESTIONS = re.findall(r"(?m)^\| (\d+)\. .+ \| `([^`]+)` \| (.+) \|$", TEXT)


def section(heading):
    return TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def test_there_are_ten_questions_and_each_has_its_paragraph():
    numbers = [int(number) for number, _, _ in QUESTIONS]
    assert numbers == list(range(1, 11))
    assert [int(n) for n in re.findall(r"(?m)^(\d+)\. ", TEXT)] == numbers


@pytest.mark.parametrize(("number", "file", "columns"), QUESTIONS)
def test_the_columns_of_an_answer_are_those_of_its_file(number, file, columns):
    listed = "model/{study}" if file.startswith("model/") else file
    content = LISTED[listed]
    if listed != file:
        content = ast.get_docstring(_function("histogep/deployment/pack.py", "gene_table"))
    for column in re.findall(r"`(\w+)`", columns):
        assert re.search(rf"\b{column}\b", content), column


def _function(path, name):
    tree = ast.parse((ROOT / path).read_text())
    return next(n for n in ast.walk(tree) if getattr(n, "name", "") == name)


def test_every_metric_of_the_scorecards_is_explained_and_nothing_else():
    explained = re.findall(r"(?m)^\| `(\w+)` \|", section("Metrics of scorecards.tsv"))
    assert sorted(set(explained) - {"metric"}) == sorted(METRICS)


def test_every_model_of_the_outcome_tables_is_explained_and_nothing_else():
    text = section("Rows of concordance.tsv and performance.tsv").split("| `group`")[0]
    explained = re.findall(r"(?m)^\| `([^`]+)` \|", text)
    assert sorted(set(explained) - {"model"}) == sorted(MODELS)
