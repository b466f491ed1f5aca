"""The report: categories in the order of the chain, and captions that say what a figure rests on."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHAIN = [
    *(
        "00 Answer",
        "01 Data and quality",
        "02 Alignment",
        "03 Genes",
        "04 Scorecards",
        "05 Maps",
        "06 Tumour",
    ),
    *("07 Copy number", "08 Survival", "09 Response", "10 Enrichment", "11 Failed slides"),
    "12 Provenance",
]
_RULE = re.compile(r"(?ms)^(?:rule|checkpoint) (\w+):\n(.*?)(?=^(?:rule|checkpoint) |\Z)")
_ITEM = re.compile(
    r'report\(\s*(?:directory\()?"(?P<file>[^"]+)"\)?,\s*(?:patterns=\["\{slide\}\.png"\],\s*)?caption="\.\./report/(?P<caption>[^"]+)",\s*'
    r'category="(?P<category>[^"]+)",\s*labels=\{(?P<labels>.*?)\},\s*\)',
    re.DOTALL,
)


def _items():
    for file in sorted(ROOT.glob("rules/*.smk")):
        for rule, body in _RULE.findall(file.read_text()):
            assert body.count("report(\n") == len(_ITEM.findall(body)), rule
            for found in _ITEM.finditer(body):
                keys = re.findall(r'"(\w+)":', re.sub(r'"\{\w+\}"', "", found["labels"]))
                yield pytest.param(
                    {**found.groupdict(), "labels": keys, "seeded": "\n        seed=" in body},
                    id=f"{rule}-{Path(found['file']).name}",
                )


ITEMS = list(_items())


def test_categories_are_those_of_the_chain_and_told_on_the_front_page():
    used = {item.values[0]["category"] for item in ITEMS}
    assert used == set(CHAIN)
    front = re.findall(r'(?m)^  "(\d\d [^"]+)": "', (ROOT / "report/workflow.rst").read_text())
    assert front == CHAIN == sorted(CHAIN)


def test_every_caption_is_used():
    used = {item.values[0]["caption"] for item in ITEMS} | {"workflow.rst"}
    assert used == {path.name for path in ROOT.glob("report/*.rst")}


@pytest.mark.parametrize("item", ITEMS)
def test_caption_states_the_seed_of_what_is_random(item):
    caption = (ROOT / "report" / item["caption"]).read_text()
    if item["seeded"]:
        assert "{{ snakemake.params.seed }}" in caption
    # What another rule drew and `choose_figures` copies.
    if item["caption"] in {"cnv.rst", "neighbourhoods.rst"}:
        assert "{{ snakemake.params.drawn_with_seed }}" in caption


def test_labels_of_a_category_are_alike():
    """Snakemake lists them as the columns of one table."""
    keys = {}
    for item in ITEMS:
        keys.setdefault(item.values[0]["category"], set()).add(tuple(item.values[0]["labels"]))
    assert {category: found for category, found in keys.items() if len(found) > 1} == {}


def test_the_first_page_has_no_link_that_leaves_another_list_on_the_screen():
    """Snakemake's `showCategory`, to which its references to categories lead, shows the first list."""
    front = (ROOT / "report/workflow.rst").read_text()
    assert not re.search(r"[`\w]_+(?![\w\"])(?=[\s:.,]|$)", front)
    assert "showCategory" not in front
    assert "javascript:" not in front
    # It begins with the answer.
    assert front.index("summary.html") < front.index("The pages, in the list")
