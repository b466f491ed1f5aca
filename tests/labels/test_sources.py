"""Whose labels: a sentence that never calls an inference an annotation."""

import pandas as pd
import pytest

from histogep.files import write_tsv
from histogep.labels.sources import describe_sources, read_label_sources


@pytest.fixture
def section(tmp_path):
    def write(slide, source, labels):
        path = tmp_path / f"{slide}.tsv"
        write_tsv(
            pd.DataFrame({"barcode": range(len(labels)), "label": labels, "source": source}), path
        )
        return path

    return write


def test_sections_are_counted_by_source_and_label(section):
    sources = read_label_sources(
        [
            section("A", "annotation", ["malignant", "non-malignant", "boundary"]),
            section("B", "cnv", ["undetermined"] * 2),
        ]
    )
    assert sources.to_numpy().tolist() == [
        ["A", "annotation", 3, 1, 1, 0],
        ["B", "cnv", 2, 0, 0, 2],
    ]


def test_the_sentence_names_annotated_inferred_and_undetermined_sections(section):
    known = ["malignant", "non-malignant"]
    paths = [section("A", "annotation", known), section("B", "cnv", known),
             section("C", "markers", known), section("D", "markers", ["undetermined"] * 2)]  # fmt: skip
    said = describe_sources(read_label_sources(paths))
    assert said == (
        "annotated (given in the slide sheet) in 1 of 4 sections; inferred from copy number with "
        "markers and markers, by no pathologist, in 2 of 4 (B, C); undetermined in all spots of 1 of 4 (D)"
    )
    assert describe_sources(read_label_sources([])) == ""


def test_many_sections_are_counted_and_not_all_named(section):
    paths = [section(f"S{i}", "markers", ["malignant"]) for i in range(6)]
    assert describe_sources(read_label_sources(paths)).endswith(
        "in 6 of 6 (S0, S1, S2, S3 and 2 more)"
    )
