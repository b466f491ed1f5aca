from __future__ import annotations

import gzip

import numpy as np
import pandas as pd
import pytest

from histogep.errors import InputError
from histogep.outcome.bulk_patients import summarise_measured
from histogep.outcome.patients import count_patients
from histogep.outcome.signatures import Signature, read_signatures
from histogep.study.bulk import measured_samples, read_expression
from histogep.study.clinical import read_clinical

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
        signatures=read_signatures(request.config.rootpath / "histogep/resources/signatures.yaml"),
    )
    # One of the 956 patients is marked as redacted in the clinical table.
    assert dropped["patient"].tolist() == ["TCGA-E9-A1NC"]
    assert (len(table), table["event"].sum()) == (955, 130)
    porpoise = read_clinical(shared_data / "tcga/tcga_brca_all_clean.csv.zip")
    ours = table.set_index("patient")
    assert (ours["event"] == porpoise.loc[ours.index, "event"]).all()
    np.testing.assert_allclose(ours["time"], porpoise.loc[ours.index, "time"], atol=0.006)


@pytest.mark.parametrize(
    ("text", "scale", "message"),
    [
        ("gene,A,B\nX,1,high\n", "log2", "cells that are not numbers: B"),
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


GCT_12 = "#1.2\n3\t3\nName\tDescription\tS1\tS2\tS3\nENSG00000141510.3\tTP53\t1\t2\t3\nENSG00000146648.1\tEGFR\t3\t4\t5\nENSG00000133703.2\tKRAS\t0\t4\t4\n"
GCT_13 = (
    "#1.3\n2\t2\t1\t1\nid\tpr_gene_symbol\tS1\tS2\nsex\tna\tF\tM\nTP53\tx\t1\t2\nEGFR\ty\t3\t4\n"
)
FIREHOSE = (
    "Hybridization REF\tTCGA-AA-0001-01A\tTCGA-AA-0002-01A\ngene_id\tnormalized_count\t"
    "normalized_count\n?|100130426\t9\t9\nA1BG|1\t1\t2\nTP53|7157\t3\t4\n"
)
FIREHOSE_RAW = (
    "Hybridization REF\tTCGA-AA-0001-01A\tTCGA-AA-0001-01A\tTCGA-AA-0002-01A\tTCGA-AA-0002-01A\n"
    "gene_id\traw_count\tscaled_estimate\traw_count\tscaled_estimate\n"
    "A1BG|1\t100\t.5\t200\t.25\n"
)
STAR = (
    "# gene-model: GENCODE v36\ngene_id\tgene_name\tgene_type\tS1\tS2\nN_unmapped\t\t\t9\t9\n"
    "ENSG00000141510.18\tTP53\tprotein_coding\t1\t2\nENSG00000002586.20\tCD99\tprotein_coding\t5\t7\n"
    "ENSG00000002586.20_PAR_Y\tCD99\tprotein_coding\t0\t0\n"
)
GTEX = (
    "#1.2\n2\t2\nid\tName\tDescription\tS1\tS2\n0\tENSG00000141510.16\tTP53\t1\t2\n"
    "1\tENSG00000146648.1\tEGFR\t3\t4\n"
)
LINCS = "#1.3\n2\t2\t1\t0\nid\tpr_gene_symbol\tS1\tS2\n7157\tTP53\t1\t2\n1956\tEGFR\t3\t4\n"
XENA = "sample\tTCGA-AA-0001-01\tTCGA-AA-0002-01\nTP53\t1.5\t2.5\nEGFR\t0\t3\n"


@pytest.mark.parametrize(
    ("name", "text", "samples", "gene", "values"),
    [
        ("x.gct", GCT_12, ["S1", "S2", "S3"], "TP53", [1, 2, 3]),
        ("x.gct", GCT_13, ["S1", "S2"], "TP53", [1, 2]),
        ("fh.txt", FIREHOSE, ["TCGA-AA-0001-01A", "TCGA-AA-0002-01A"], "TP53", [3, 4]),
        ("raw.txt", FIREHOSE_RAW, ["TCGA-AA-0001-01A", "TCGA-AA-0002-01A"], "A1BG", [0.5, 0.25]),
        ("star.tsv", STAR, ["S1", "S2"], "CD99", [5, 7]),
        ("xena.tsv", XENA, ["TCGA-AA-0001-01", "TCGA-AA-0002-01"], "TP53", [1.5, 2.5]),
        ("r.tsv", "S1\tS2\nTP53\t1\t2\n", ["S1", "S2"], "TP53", [1, 2]),
        ("r.csv", '"","S1","S2"\n"TP53",1,2\n', ["S1", "S2"], "TP53", [1, 2]),
        ("excel.csv", "Gen;S1;S2\nTP53;1,5;2\nEGFR;0,25;3\n", ["S1", "S2"], "TP53", [1.5, 2]),
        ("tab.tsv", "Gen\tS1\tS2\nTP53\t1,5\t2\n", ["S1", "S2"], "TP53", [1.5, 2]),
        ("gtex.gct", GTEX, ["S1", "S2"], "TP53", [1, 2]),
        ("lincs.gct", LINCS, ["S1", "S2"], "TP53", [1, 2]),
        ("depmap.csv", ",TP53 (7157),EGFR (1956)\nS1,1,5\nS2,2,5\n", ["S1", "S2"], "TP53", [1, 2]),
        ("joined.tsv", "gene\tS1\tS2\nENSG00000141510.16_TP53\t1\t2\n", ["S1", "S2"], "TP53", [1, 2]),
        ("toil.tsv", "sample\tS1\nENSG00000141510.16|TP53|protein_coding\t1\n", ["S1"], "TP53", [1]),
        ("said.tsv", "gene\tlocus_group\tS1\nTP53\tprotein-coding gene\t1\n", ["S1"], "TP53", [1]),
        ("across.csv", ",TP53,EGFR\nS1,1,5\nS2,2,5\n", ["S1", "S2"], "TP53", [1, 2]),
        ("fc.txt", "Geneid\tChr\tStart\tEnd\tStrand\tLength\tS1\tS2\nTP53\t17\t1\t9\t+\t8\t1\t2\n",
         ["S1", "S2"], "TP53", [1, 2]),
    ],
)  # fmt: skip
def test_tables_that_people_have(tmp_path, name, text, samples, gene, values):
    path = tmp_path / name
    path.write_text(text)
    assert measured_samples(path) == samples
    table = read_expression(path, scale="log2")
    assert table.index.tolist() == samples
    assert table[gene].tolist() == values
    assert not [name for name in table if name.startswith(("?", "N_"))]


def test_a_workbook_of_expression(tmp_path):
    pd.DataFrame({"gene": ["TP53", "EGFR"], "S1": [1.5, 2], "S2": [3, 4]}).to_excel(
        tmp_path / "bulk.xlsx", index=False
    )
    assert measured_samples(tmp_path / "bulk.xlsx") == ["S1", "S2"]
    assert read_expression(tmp_path / "bulk.xlsx", scale="log2")["TP53"].tolist() == [1.5, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GCT_12.replace("3\t3", "4\t3", 1), "declares 4 genes but has 3: is it whole"),
        (GCT_12.replace("3\t3", "3\t4", 1), "declares 4 samples but has 3 columns"),
        (GCT_12.replace("3\t3", "three", 1), "line 2: a GCT file has the numbers"),
        ("gene_id\tgene_name\tgene_type\tunstranded\tstranded_first\tstranded_second\t"
         "tpm_unstranded\nENSG1.1\tX\tp\t1\t1\t1\t1\n", "is one sample's file of the GDC"),
        ("Entrez_Gene_Id\tS1\n7157\t1\n1956\t2\n", "go by numbers .* such as 7157.*: give their"),
        ("id\tS1\nENST00000269305.9|ENSG00000141510|TP53-201|TP53|\t1\n", "transcripts, such as ENST"),
        ("S1 S2\nTP53 1 2\n", "line 1: the columns are separated by blanks"),
        ("gene\tS1\tS1\nX\t1\t2\n", "S1 appears twice"),
        ("gene,S1\nX,1.234.5\n", "line 2, column 'S1': '1.234.5' is not a number"),
    ],
)  # fmt: skip
def test_tables_that_are_cut_or_of_one_sample_are_refused(tmp_path, text, message):
    path = tmp_path / "bulk.gct"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_expression(path, scale="log2")


def test_genes_that_excel_made_dates_of_are_named_and_not_averaged(tmp_path, caplog):
    path = tmp_path / "bulk.csv"
    dates = ["1-Mar", "1-Mar", "2-Sep", "01.Mrz", "2023-03-01", "Dec-01"]
    path.write_text("gene,A,B\nTP53,1,2\nNOV,3,3\n" + "".join(f"{d},5,6\n" for d in dates))
    table = read_expression(path, scale="log2")
    assert list(table) == ["NOV", "TP53"]
    assert "6 genes whose name Excel turned into a date are left out: 1-Mar, " in caplog.text


def test_ensembl_ids_become_symbols_where_the_positions_tell_them(tmp_path, caplog):
    path = tmp_path / "bulk.csv"
    path.write_text("gene,A\nENSG00000141510.18,1\nENSG00000000001,2\n")
    table = read_expression(path, scale="log2", symbols={"ENSG00000141510": "TP53"})
    assert sorted(table) == ["ENSG00000000001", "TP53"]
    assert "1 of 2 genes are Ensembl ids without a symbol" in caplog.text
    read_expression(path, scale="log2")
    assert "give references.gene_positions" in caplog.text


def bulk_values(kind, seed=0):
    rng = np.random.default_rng(seed)
    linear = rng.gamma(0.5, 400, (40, 60)) + rng.exponential(0.01, (40, 60))
    return {
        "linear": linear,
        "counts": rng.poisson(linear * rng.uniform(0.3, 3, (40, 1))),
        "log2": np.log2(linear + 1),
        "log1p": np.log1p(linear),
        "log2_tpm": np.log2(np.where(linear < 20, 0, linear) + 0.001),
        "zscore": rng.normal(0, 1, (40, 60)),
    }[kind]


@pytest.mark.parametrize(
    ("declared", "true", "right"),
    [
        ("log2_tpm", "linear", "linear"), ("log2", "linear", "linear"), ("log1p", "linear", "linear"),
        ("log2", "counts", "counts"), ("linear", "counts", "counts"), ("linear", "log2", "log2"),
        ("linear", "log1p", "log2"), ("counts", "linear", "linear"), ("zscore", "linear", "linear"),
        ("zscore", "log2", "log2"), ("log2", "zscore", "zscore"), ("linear", "zscore", "zscore"),
        ("counts", "log2", "linear"), ("log2", "log2_tpm", "log2_tpm"),
        ("zscore", "log2_tpm", "set scale: log2_tpm"), ("log2_tpm", "zscore", "set scale: zscore"),
    ],
)  # fmt: skip
def test_values_of_another_scale_are_refused_with_the_right_one(tmp_path, declared, true, right):
    path = tmp_path / "bulk.tsv"
    values = bulk_values(true)
    table = pd.DataFrame(values, index=[f"S{i}" for i in range(40)])
    table.columns = [f"G{i}" for i in range(60)]
    table.T.rename_axis("gene").to_csv(path, sep="\t")
    with pytest.raises(InputError, match=right):
        read_expression(path, scale=declared)
    read = read_expression(path, scale=true)
    assert np.isfinite(read.to_numpy()).all()
    assert read.to_numpy().max() < 32


def test_counts_are_scaled_to_their_depth(tmp_path):
    path = tmp_path / "bulk.tsv"
    path.write_text("gene\tA\tB\nX\t1\t10\nY\t3\t30\n")
    table = read_expression(path, scale="counts")
    np.testing.assert_allclose(table.loc["A"], table.loc["B"])
    assert table.loc["A", "X"] == np.log2(250_001)


@pytest.mark.parametrize("scale", ["counts", "linear", "log2", "log1p"])
def test_a_sample_without_any_value_is_refused(tmp_path, scale):
    """Without counts the scaled values are undefined, and with them no gene would be tested."""
    path = tmp_path / "bulk.tsv"
    table = pd.DataFrame(bulk_values(scale), index=[f"S{i}" for i in range(40)])
    table.columns = [f"G{i}" for i in range(60)]
    table.loc["S7"] = 0
    table.T.rename_axis("gene").to_csv(path, sep="\t")
    with pytest.raises(
        InputError, match=r"same value in 1 samples: S7 \(0\); nothing was measured"
    ):
        read_expression(path, scale=scale)


def test_a_small_panel_may_be_silent_but_counts_need_a_depth(tmp_path):
    path = tmp_path / "bulk.tsv"
    path.write_text("gene\tA\tB\nX\t0\t10\nY\t0\t30\n")
    with pytest.raises(InputError, match=r"samples: A \(0\)"):
        read_expression(path, scale="counts")


def test_one_profile_under_two_patients_is_refused(shared_data, tmp_path):
    table = pd.read_csv(shared_data / "icb/ICB_small_Hugo_expr.csv.gz", index_col=0)
    path = tmp_path / "expression.csv"
    table.assign(Pt99=table["Pt4"]).to_csv(path)
    with pytest.raises(InputError, match="Pt4 and Pt99.*both learnt from and tested on"):
        read_expression(path, scale="log2_tpm")
    # Two samples of one patient may be one file twice: they are averaged.
    twice = table.rename(columns={"Pt4": "TCGA-A1-A0SB-01A"})
    twice.assign(**{"TCGA-A1-A0SB-01B": twice["TCGA-A1-A0SB-01A"]}).to_csv(path)
    assert len(read_expression(path, scale="log2_tpm")) == 28
