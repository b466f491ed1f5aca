from __future__ import annotations

import gzip

import numpy as np
import pandas as pd
import pytest

from histogep.bulk import measured_samples, read_expression
from histogep.clinical import read_clinical
from histogep.jobs import InputError
from histogep.measured import summarise_measured
from histogep.patients import count_patients
from histogep.signatures import Signature, read_signatures

CYTOLYTIC = {
    "cytolytic": Signature("cytolytic", "", "", "geometric-mean", {"GZMA": 1.0, "PRF1": 1.0}, 1.0)
}


@pytest.fixture
def bulk(tmp_path):
    """cBioPortal's layout: genes in rows, a second gene id, a repeated gene, a missing value."""
    path = tmp_path / "data_mrna.txt.gz"
    with gzip.open(path, "wt") as handle:
        handle.write(
            "Hugo_Symbol\tEntrez_Gene_Id\tTCGA-A1-A0SB-01\tTCGA-A1-A0SD-01\tTCGA-A1-A0SD-11\t"
            "TCGA-A1-A0SE-01\tTCGA-A1-A0SF-01\n"
            "GZMA\t1\t3\t1\t9\t2\t0\nPRF1\t2\t1\t1\t9\t2\t0\nTP53\t3\t5\t3\t9\t1\t0\n"
            "TP53\t3\t7\t3\t9\t1\t0\nGONE\t4\t\t1\t1\t1\t1\n"
        )
    return path


@pytest.fixture
def clinical(tmp_path):
    path = tmp_path / "patients.tsv"
    path.write_text(
        "patient\ttime\tevent\tstage\nTCGA-A1-A0SB\t5\t1\tII\nTCGA-A1-A0SD\t7\t0\t\n"
        "TCGA-A1-A0SE\t\t\tI\nTCGA-A1-ZZZZ\t9\t1\tI\n"
    )
    return read_clinical(path)


def test_one_row_per_patient_with_everyone_left_out_named(bulk, clinical, caplog):
    table, dropped = summarise_measured(
        bulk, scale="linear", patients=clinical, signatures=CYTOLYTIC
    )
    assert table["patient"].tolist() == ["TCGA-A1-A0SB", "TCGA-A1-A0SD"]
    assert table["gene:TP53"].tolist() == [np.log2(7), np.log2(4)]  # two rows averaged
    assert "gene:GONE" not in table
    assert "1 genes with a missing value" in caplog.text
    np.testing.assert_allclose(
        table["signature:cytolytic"], [np.sqrt(3.01 * 1.01), np.sqrt(1.01 * 1.01)]
    )
    reasons = dropped.set_index("slides")["reason"]
    assert reasons["TCGA-A1-A0SD-11"] == "sample type 11 (counted: 01)"
    assert reasons["TCGA-A1-A0SE-01"].startswith("neither time and event nor response")
    assert reasons["TCGA-A1-A0SF-01"] == "no row in the clinical table"
    assert "1 samples dropped, no row in the clinical table: TCGA-A1-A0SF" in caplog.text
    counts = count_patients(table, dropped).set_index("what")["n"]
    assert (counts["in the table"], counts["with an event"], counts["II"]) == (2, 1, 1)
    assert counts["missing (a level of its own)"] == 1
    assert counts["no row in the clinical table"] == 1


def test_samples_are_known_without_reading_the_values(bulk, shared_data):
    assert measured_samples(bulk)[0] == "TCGA-A1-A0SB-01"
    assert len(measured_samples(bulk)) == 5
    samples = measured_samples(shared_data / "tcga/tcga_brca_all_clean.csv.zip")
    assert len(samples) == 1022
    assert len(set(samples)) == 956


def test_the_table_of_tcga_brca_comes_whole(shared_data):
    path = shared_data / "tcga/tcga_brca_all_clean.csv.zip"
    values = read_expression(path, scale="zscore")
    raw = pd.read_csv(path, low_memory=False).drop_duplicates("case_id").set_index("case_id")
    assert values.shape == (956, 1558)
    np.testing.assert_allclose(values["TP53"], raw.loc[values.index, "TP53_rnaseq"])


def test_patients_of_tcga_brca_are_those_of_the_clinical_table(shared_data, request):
    table, dropped = summarise_measured(
        shared_data / "tcga/tcga_brca_all_clean.csv.zip",
        scale="zscore",
        patients=read_clinical(shared_data / "tcga/TCGA-CDR-SupplementalTableS1.xlsx"),
        signatures=read_signatures(request.config.rootpath / "resources/signatures.yaml"),
    )
    assert dropped.empty
    assert (len(table), table["event"].sum()) == (956, 130)
    porpoise = read_clinical(shared_data / "tcga/tcga_brca_all_clean.csv.zip")
    ours = table.set_index("patient")
    assert (ours["event"] == porpoise.loc[ours.index, "event"]).all()
    np.testing.assert_allclose(ours["time"], porpoise.loc[ours.index, "time"], atol=0.006)


@pytest.mark.parametrize(
    ("text", "scale", "message"),
    [
        ("gene,A,B\nX,1,high\n", "log2", "cells that are no numbers: B"),
        ("gene,A,B\nX,1,-2\n", "log1p", "values below 0"),
        ("gene,A,B\nX,1,\n", "log2", "no gene that was measured in every patient"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path, text, scale, message):
    path = tmp_path / "bulk.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_expression(path, scale=scale)


def test_ids_that_never_meet_are_refused_with_examples(tmp_path, clinical):
    path = tmp_path / "bulk.csv"
    path.write_text("gene,A,B\nX,1,2\n")
    with pytest.raises(InputError, match="none of the 2 samples .* A: no row in the clinical"):
        summarise_measured(path, scale="log2", patients=clinical, signatures={})
