"""The first pages: the answer, and the warnings."""

import html
import re

import pandas as pd
import pytest
from docutils.core import publish_parts

from histogep.evaluation.summary import Summary
from histogep.evaluation.verdicts import CARE, DO_NOT, RELY, Verdict
from histogep.report.pages_summary import (
    write_slides_page,
    write_summary_page,
    write_summary_text,
    write_warnings_page,
)
from histogep.workflow.warnings_of_jobs import COLUMNS

VERDICTS = (
    Verdict("Gene expression", "4 of 5 genes can be used.", "f"),
    Verdict("Tumour map", "AUROC 0.71 & <low>.", "f", care=("labels are inferred",)),
    Verdict(
        "Response", "AUROC 0.5 {{ 1 }}.", "f", cohort="höspital", against=("p = 0.9",), care=("x",)
    ),
)
SUMMARY = Summary(
    "mine", ("3 patients",), ("gene expression: net",), ("survival: no time",), VERDICTS
)
WARNED = pd.DataFrame(
    [
        ("label_spots", "A", "", "tumour", 2, "all are left undetermined"),
        ("train_model", "", "fold=all", "", 3, "slow"),
    ],
    columns=list(COLUMNS),
)


def test_the_page_gives_every_verdict_with_grade_finding_and_reasons(tmp_path):
    write_summary_page(SUMMARY, WARNED, tmp_path / "s.html")
    text = (tmp_path / "s.html").read_text()
    grades = re.findall(r'<td class="grade"[^>]*>([^<]+)</td>', text)
    assert grades == [RELY, CARE, DO_NOT]
    assert "AUROC 0.71 &amp; &lt;low&gt;." in text
    assert "p = 0.9; x" in text
    assert "Response (höspital)" in text
    for said in ("3 patients", "gene expression: net", "survival: no time"):
        assert said in text
    assert "Warnings: 5, of which 2 decide a result" in text
    assert "tumour: all are left undetermined" in text
    assert "slow" not in text
    assert not re.search(r"(?:src|href)=", text)


def test_the_text_of_the_report_is_the_same_answer_in_ascii_and_as_docutils_reads_it(tmp_path):
    write_summary_text(SUMMARY, WARNED, tmp_path / "s.rst")
    text = (tmp_path / "s.rst").read_bytes().decode("ascii")
    body = html.unescape(publish_parts(text, writer_name="html")["html_body"])
    assert body.count('class="grade"') == 3
    assert "Response (höspital)" in body
    # A value that is put into the report's template is not read as one.
    assert "{{ 1 }}" in body
    assert "system-message" not in body


@pytest.mark.parametrize("warned", [WARNED, WARNED.iloc[:0], WARNED.iloc[:1], WARNED.iloc[1:]])
def test_the_page_of_warnings_separates_those_that_decide(tmp_path, warned):
    write_warnings_page(warned, tmp_path / "w.html")
    text = (tmp_path / "w.html").read_text()
    for row in warned.itertuples():
        assert row.warning in text
    assert ("What decides a result" in text) == (warned["decides"] != "").any()
    assert ("No job warned of anything" in text) == warned.empty


def test_the_page_of_slides_shows_deciding_warnings_where_there_are_any(tmp_path):
    listed = pd.DataFrame(
        {"slide": ["A"], "status": "used", "reason": "", "warnings": 1, "deciding": "undetermined",
         "mpp": 0.5, "tissue_mm2": 1.0, "share_pen": 0.0, "share_blurred": 0.0, "share_folded": 0.0}
    )  # fmt: skip
    write_slides_page(listed, tmp_path / "a.html")
    assert "undetermined" in (tmp_path / "a.html").read_text()
    write_slides_page(listed.assign(deciding=""), tmp_path / "b.html")
    assert "<th>deciding</th>" not in (tmp_path / "b.html").read_text()
