from __future__ import annotations

import pytest

from histogep.inputs.barcodes import leave_out, patient_of, sample_type_of, slide_kind_of

DX = "TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF-D8FB-45CF-B4BD-C6B76294C291"
TS = "TCGA-3C-AALI-01A-01-TSA.11"
ONLY_BS = "TCGA-3C-AALJ-01A-01-BS1.22"
NORMAL = "TCGA-3C-AALI-11A-01-TS1.33"


@pytest.mark.parametrize(
    ("barcode", "patient", "sample", "kind"),
    [
        (DX, "TCGA-3C-AALI", "01", "DX"),
        (TS, "TCGA-3C-AALI", "01", "TS"),
        (ONLY_BS, "TCGA-3C-AALJ", "01", "BS"),
        (NORMAL, "TCGA-3C-AALI", "11", "TS"),
        ("TCGA-3C-AALI", "TCGA-3C-AALI", "", ""),
        ("TCGA-3C-AALI-06", "TCGA-3C-AALI", "06", ""),
        ("tcga-3c-aali-01a-11r-a41b-07", "TCGA-3C-AALI", "01", ""),
        ("TCGA.3C.AALI.11A.11R", "TCGA-3C-AALI", "11", ""),
        ("TCGA-3C.AALI", "TCGA-3C.AALI", "", ""),
        ("P10264", "P10264", "", ""),
        ("TCGA-LIKE", "TCGA-LIKE", "", ""),
        ("study-01-DX1", "study-01-DX1", "", ""),
    ],
)
def test_parts_of_a_barcode(barcode, patient, sample, kind):
    assert patient_of(barcode) == patient
    assert sample_type_of(barcode) == sample
    assert slide_kind_of(barcode) == kind


def test_every_slide_of_the_published_table_has_its_patient(shared_data):
    import pandas as pd

    table = pd.read_csv(
        shared_data / "tcga/tcga_brca_all_clean.csv.zip", usecols=["case_id", "slide_id"]
    )
    assert (table["slide_id"].map(patient_of) == table["case_id"]).all()
    assert set(table["slide_id"].map(slide_kind_of)) == {"DX"}
    assert set(table["slide_id"].map(sample_type_of)) == {"01"}


def test_normal_tissue_and_frozen_sections_beside_a_diagnostic_slide_are_left_out():
    slides = [DX, TS, ONLY_BS, NORMAL, "P1-1"]
    patients = [patient_of(slide) for slide in slides]
    assert leave_out(slides, patients) == {
        TS: "frozen section of a patient with a diagnostic slide",
        NORMAL: "sample type 11 (counted: 01)",
    }
    assert NORMAL not in leave_out([NORMAL], ["TCGA-3C-AALI"], sample_types=["01", "11"])
