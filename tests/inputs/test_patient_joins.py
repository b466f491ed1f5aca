from __future__ import annotations

import pytest

from histogep.inputs.patient_joins import join_ids, report_join


@pytest.mark.parametrize(
    ("ours", "theirs", "way"),
    [
        ("P01 P02 P03", "P1 P2 P3", "zeros"),
        ("P-1 P-2 P-3", "P01 P02 P03", "zeros"),
        ("pat_1 pat_2", "PAT-001 PAT-002", "zeros"),
        ("P1 P2 P3", "p1 p2 p3", "case"),
        ("A1.svs B2.svs", "A1 B2", "ending"),
        ("A-T B-T", "A B", "suffix"),
        ("A-01A B-01A", "A B", "suffix"),
        ("TCGA-AA-0001-01Z-00-DX1 TCGA-AA-0002-01Z-00-DX1", "TCGA-AA-0001 TCGA-AA-0002", "barcode"),
        ("1 2 3", "1.0 2.0 3.0", "decimal"),
        ("1 2 3", "P001 P002 P003", "letters in front"),
    ],
)
def test_why_ids_do_not_meet_is_said(ours, theirs, way):
    met = join_ids(ours.split(), theirs.split())
    assert met.n_matched == 0
    assert met.near_nothing
    assert way in met.hint
    back = join_ids(theirs.split(), ours.split())
    assert back.hint


def test_ids_that_meet_and_ids_of_others():
    met = join_ids([f"P{i}" for i in range(20)], [f"P{i}" for i in range(100)])
    assert (met.share, met.few, met.near_nothing, met.hint) == (1.0, False, False, "")
    # A small table of outcomes beside many slides is none that belongs to others.
    met = join_ids([f"P{i}" for i in range(200)], [f"P{i}" for i in range(12)])
    assert met.few
    assert not met.near_nothing
    met = join_ids([f"P{i}" for i in range(50)], ["P0", *(f"Q{i}" for i in range(50))])
    assert met.near_nothing
    # P1 and H1 are two patients as long as others meet by their whole id.
    assert join_ids(["P1", "P2", "P3"], ["P1", "H2", "H3"]).hint == ""
    assert not join_ids([], []).near_nothing


def test_the_share_stands_in_the_log_and_below_a_half_it_is_a_warning(caplog):
    caplog.set_level("INFO")
    report_join(["a", "b", "c"], ["a", "b", "x"], "with a sample")
    assert "2 of 3 patients with a sample (67 %) are in the clinical table" in caplog.text
    assert caplog.records[-1].levelname == "INFO"
    report_join(["a", "B", "C"], ["a", "b", "c"], "with a sample")
    assert caplog.records[-1].levelname == "WARNING"
    assert "2 more would match without case: 'B' and 'b'" in caplog.text
