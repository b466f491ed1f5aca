from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from histogep.clinical import fold_stage, read_clinical
from histogep.covariates import stage_number
from histogep.jobs import InputError

WORKBOOK = "tcga/TCGA-CDR-SupplementalTableS1.xlsx"


@pytest.fixture(scope="module")
def raw_cdr(shared_data):
    return pd.read_excel(shared_data / WORKBOOK, index_col=0).set_index("bcr_patient_barcode")


@pytest.fixture(scope="module")
def cdr(raw_cdr, tmp_path_factory):
    """The workbook's table as text, which is read faster."""
    path = tmp_path_factory.mktemp("cdr") / "cdr.tsv"
    raw_cdr.to_csv(path, sep="\t")
    return path


def test_the_workbook_is_read_as_its_table_is(shared_data, cdr):
    pd.testing.assert_frame_equal(read_clinical(shared_data / WORKBOOK), read_clinical(cdr))


@pytest.mark.parametrize("endpoint", ["OS", "PFI", "DSS", "DFI"])
def test_tcga_cdr_keeps_every_patient_and_event_of_the_table(cdr, raw_cdr, endpoint, caplog):
    sheet = read_clinical(cdr, endpoint=endpoint)
    assert set(sheet.index) == set(raw_cdr.index)
    theirs = raw_cdr.loc[sheet.index]
    both = theirs[endpoint].notna() & theirs[f"{endpoint}.time"].notna()
    assert sheet["event"].notna().equals(both)
    assert sheet["event"].sum() == theirs.loc[both, endpoint].sum()
    np.testing.assert_allclose(
        sheet.loc[both, "time"] * 30.44, theirs.loc[both, f"{endpoint}.time"]
    )
    assert "I/II NOS (14)" in caplog.text
    assert "Stage X (13)" in caplog.text


def test_stages_of_tcga_cdr_fold_to_four_or_none(cdr, raw_cdr):
    sheet = read_clinical(cdr)
    ajcc = raw_cdr.loc[sheet.index, "ajcc_pathologic_tumor_stage"]
    assert set(sheet["stage"]) == {"", "I", "II", "III", "IV"}
    assert (sheet.loc[ajcc == "Stage IIIC", "stage"] == "III").all()
    assert (sheet.loc[ajcc.isin(["Stage I", "Stage IA", "Stage IB"]), "stage"] == "I").all()
    # Ovarian cancer has a clinical stage only.
    ovary = raw_cdr.loc[sheet.index, "type"] == "OV"
    assert (ajcc[ovary] == "[Not Applicable]").all()
    assert (sheet.loc[ovary, "stage"] != "").mean() > 0.9
    assert sheet["stage"].map(stage_number).notna().equals(sheet["stage"] != "")


@pytest.mark.parametrize(
    ("text", "stage"),
    [
        ("Stage IIIC1", "III"), ("Stage IA2", "I"), ("IIb", "II"), ("STAGE IVC", "IV"), ("I", "I"),
        ("Stage 0", ""), ("IS", ""), ("Stage IS", ""), ("I/II NOS", ""), ("Stage X", ""), ("", ""),
    ],
)  # fmt: skip
def test_stages_fold(text, stage):
    assert fold_stage(text) == stage


CBIOPORTAL = (
    "#Patient Identifier\tOverall Survival Status\n#STRING\tSTRING\n"
    "PATIENT_ID\tOS_STATUS\tOS_MONTHS\tPFS_STATUS\tPFS_MONTHS\tAGE\tSEX\t"
    "AJCC_PATHOLOGIC_TUMOR_STAGE\n"
    "TCGA-A1-A0SB\t0:LIVING\t8.5\t0:CENSORED\t8.5\t70\tFemale\tSTAGE I\n"
    "TCGA-A1-A0SD\t1:DECEASED\t14.4\t1:PROGRESSION\t10\t59\tMale\tSTAGE IIA\n"
    "TCGA-A1-A0SE\t[Not Available]\t[Not Available]\t\t\tNA\t\t[Discrepancy]\n"
)


def test_cbioportal_by_file_and_by_its_download(tmp_path):
    path = tmp_path / "data_clinical_patient.txt"
    path.write_text(CBIOPORTAL)
    sheet = read_clinical(path)
    assert sheet["event"].tolist()[:2] == [0, 1]
    assert sheet["time"].tolist()[:2] == [8.5, 14.4]
    assert sheet.loc["TCGA-A1-A0SE", ["time", "event", "age"]].isna().all()
    assert sheet["stage"].tolist() == ["I", "II", ""]
    assert sheet["sex"].tolist() == ["Female", "Male", ""]
    assert read_clinical(path, endpoint="PFI")["time"].tolist()[1] == 10
    with pytest.raises(InputError, match=r"no columns of endpoint DSS, but those of OS, PFI"):
        read_clinical(path, endpoint="DSS")
    path.write_text(
        "Patient ID\tOverall Survival (Months)\tOverall Survival Status\tDiagnosis Age\n"
        "TCGA-A1-A0SB\t8.5\t0:LIVING\t70\n"
    )
    sheet = read_clinical(path)
    assert sheet.loc["TCGA-A1-A0SB", ["time", "event", "age"]].tolist() == [8.5, 0, 70]


def test_predictior_and_porpoise_tables(shared_data):
    hugo = read_clinical(shared_data / "icb/ICB_small_Hugo_clin.csv")
    assert (hugo["response"].sum(), hugo["response"].notna().sum(), hugo["event"].sum()) == (
        14, 27, 12,
    )  # fmt: skip
    imvigor = read_clinical(shared_data / "icb/ICB_small_Mariathasan_clin.csv")
    assert (imvigor["response"].sum(), (imvigor["response"] == 0).sum()) == (42, 91)
    brca = read_clinical(shared_data / "tcga/tcga_brca_all_clean.csv.zip")
    assert (len(brca), brca["event"].sum()) == (956, 130)
    assert (brca["sex"] == "female").sum() == 945


def test_an_own_sheet_stays_as_strict_as_it_is(tmp_path):
    path = tmp_path / "patients.tsv"
    path.write_text("patient\ttime\tevnt\nA\t1\t0\n")
    with pytest.raises(InputError, match="unknown column 'evnt'"):
        read_clinical(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case_id,OS,OS.time\nA,1,-3\nB,0,4\n", "negative times: A"),
        ("case_id,OS,OS.time\nA,2,3\n", "events other than 0 and 1: A"),
        ("case_id,OS,OS.time\nA,1,soon\n", r"column 'OS.time': \['soon'\] are no numbers"),
        ("case_id,response\nA,maybe\n", "neither R nor NR.*A 'maybe'"),
        ("case_id,OS,OS.time\nA,1,3\nA,0,3\n", "several rows with different outcomes: A"),
        ("id,OS,OS.time\nA,1,3\n", "no column of patients; known names"),
        ("", "is empty"),
    ],
)
def test_refusals(tmp_path, text, message):
    path = tmp_path / "clinical.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_clinical(path)


def test_no_workbook_and_an_archive_of_two_files_are_refused(tmp_path):
    import zipfile

    path = tmp_path / "clinical.xlsx"
    path.write_text("no workbook")
    with pytest.raises(InputError, match="is no table"):
        read_clinical(path)
    with zipfile.ZipFile(tmp_path / "two.csv.zip", "w") as archive:
        archive.writestr("a.csv", "patient\n")
        archive.writestr("b.csv", "patient\n")
    with pytest.raises(InputError, match="2 files in the archive"):
        read_clinical(tmp_path / "two.csv.zip")


def test_an_unreadable_sex_is_refused_when_the_table_is_read(tmp_path):
    path = tmp_path / "cdr.tsv"
    path.write_text(
        "bcr_patient_barcode\tOS\tOS.time\tgender\nTCGA-AA-0001\t1\t5\tMALE\nTCGA-AA-0002\t1\t5\t9\n"
    )
    with pytest.raises(InputError, match="patient TCGA-AA-0002: sex '9'"):
        read_clinical(path)
