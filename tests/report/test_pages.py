from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from histogep.report.pages import Table, format_value, render_page, write_page
from histogep.report.pages_evaluation import write_genes_page


class Reader(HTMLParser):
    """Collect the cells as a browser would, and check that tags nest."""

    def __init__(self):
        super().__init__()
        self.open, self.rows, self.links, self.styles = [], [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.links += [attrs[key] for key in ("src", "href") if key in attrs]
        if "style" in attrs:
            self.styles.append(attrs["style"])
        if tag == "meta":
            return
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def read(text):
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return reader


FRAME = pd.DataFrame(
    {
        "model": ["ridge", "<b>&net"],
        "value": [0.123456, np.nan],
        "n": [1200, 3],
        "ok": [True, False],
    }
)


def test_page_holds_the_table_and_needs_no_other_file():
    reader = read(render_page("A & B", [Table(FRAME)]))
    assert reader.rows[0] == ["model", "value", "n", "ok"]
    assert reader.rows[1] == ["ridge", "0.123", "1,200", "yes"]
    assert reader.rows[2] == ["<b>&net", "–", "3", "no"]
    assert reader.links == []


def test_text_is_escaped_everywhere():
    nasty = "<script>x</script>"
    table = Table(
        FRAME.rename(columns={"model": nasty}),
        heading=nasty,
        notes=[nasty],
        headers={"n": nasty},
    )
    text = render_page(nasty, [table], notes=[nasty])
    assert "<script" not in text
    read(text)


def test_formats_headers_and_bars():
    table = Table(
        FRAME,
        formats={"value": "{:.1%}", "n": lambda n: f"n={n}"},
        headers={"n": "sections"},
        bars={"value": (0, 0.2), "n": (0, 100)},
        bar_colours={"value": "#abcdef"},
    )
    reader = read(render_page("t", [table]))
    assert reader.rows[0][2] == "sections"
    assert reader.rows[1][1:3] == ["12.3%", "n=1200"]
    assert "#abcdef 61.7%" in reader.styles[0]
    assert "100.0%" in reader.styles[1]  # beyond the range
    assert len(reader.styles) == 3  # NaN has no bar


def test_a_sentence_is_broken_into_lines_and_a_short_text_is_not():
    frame = pd.DataFrame(
        {"slide": ["S1"], "reason": ["the file is cut short: " + "fetch it again " * 3]}
    )
    page = render_page("Slides", [Table(frame)])
    assert "<td>S1</td>" in page
    assert '<td class="sentence">the file' in page


def test_groups_and_empty_tables(tmp_path):
    frame = pd.DataFrame({"a": ["x", "x", "y"]})
    write_page(
        tmp_path / "p.html", title="t", tables=[Table(frame, group_by="a"), Table(frame[:0])]
    )
    text = (tmp_path / "p.html").read_text()
    assert text.count('<tr class="group">') == 1
    assert "Nothing to show." in text


def test_an_option_for_an_unknown_column_is_refused():
    with pytest.raises(ValueError, match="no columns valeu"):
        render_page("t", [Table(FRAME, bars={"valeu": (0, 1)})])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.00012345, "0.000123"), (12345.678, "12,346"), (2.0, "2"), (True, "yes"), ("a", "a")],
)
def test_default_formats(value, text):
    assert format_value(value) == text


def test_names_in_backticks_are_code_and_nothing_else_is_html():
    page = render_page("t", [], notes=["`null` & <b>"])
    assert "<p><code>null</code> &amp; &lt;b&gt;</p>" in page


@pytest.mark.parametrize(("value", "text"), [(-0.0001, "0.000"), (-0.001, "-0.001")])
def test_what_rounds_to_nothing_has_no_sign(value, text):
    assert format_value(value, "{:.3f}") == text


def test_the_page_of_genes_begins_with_the_deployed_model_and_says_what_bound(tmp_path):
    columns = ("pearson", "null_upper", "ceiling", "ceiling_spatial", "relative", "fdr")
    genes = pd.DataFrame(
        [
            {"protocol": "patient_cv", "model": model, "gene": "TP53", "predictable": True}
            | dict.fromkeys(columns, 0.5)
            for model in ("cmunet", "ridge", "neighbours")
        ]
    )
    said = {"patient_cv-1": "20 genes; genes.p binds", "all": "7 genes; genes.min_moran binds"}
    page = tmp_path / "genes.html"
    write_genes_page(genes, page, study="s", first="ridge", panels=said)
    text = page.read_text()
    order = [text.index(f"<h2>{model}") for model in ("ridge", "cmunet", "neighbours")]
    assert order == sorted(order)
    assert "ridge, the model that is deployed" in text
    # What holds for the panel that is deployed stands above all tables.
    assert text.index("7 genes; genes.min_moran binds") < order[0]
    assert text.index("20 genes; genes.p binds") > order[-1]
    write_genes_page(genes, page, study="s")
    assert "deployed" not in page.read_text()
