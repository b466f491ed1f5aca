"""What is found in a study's files before its first job."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest

from histogep.clinical import read_clinical
from histogep.jobs import BadSlide, InputError
from histogep.sheets import no_slides
from histogep.study_files import (
    CHECKS,
    StudyFiles,
    check_columns,
    check_study_files,
    collected_warnings,
    measured_patients,
)

SETTINGS = {"measured": {}, "labels": {}}


def test_all_files_are_read_whole_and_one_message_holds_what_is_wrong(tmp_path):
    sets = [f"SET{i}\td\tG{i}\tG{i + 1}" for i in range(20)]
    (tmp_path / "dup.gmt").write_text("\n".join([*sets, "SET3\td\tG1\tG2"]) + "\n")
    (tmp_path / "good.gmt").write_text("\n".join([*sets, sets[0], "EMPTY\td"]) + "\n")
    (tmp_path / "tpm.tsv").write_text("gene\tA\tB\nX\t1\t2\nY\t900\t1000\nZ\t1\t1,2,3\n")
    settings = {"measured": {"m": {"scale": "log2"}}, "labels": {}}
    files = StudyFiles(
        no_slides(),
        settings,
        gene_sets={"dup": str(tmp_path / "dup.gmt"), "good": str(tmp_path / "good.gmt")},
        measured={"m": str(tmp_path / "tpm.tsv")},
    )
    with pytest.raises(InputError) as caught:
        check_study_files(files)
    said = str(caught.value)
    assert "dup.gmt, line 21: gene set 'SET3' stands twice, with different genes" in said
    assert "tpm.tsv: line 4, column 'B': '1,2,3' is not a number" in said
    (tmp_path / "tpm.tsv").write_text("gene\tA\tB\nX\t1,5\t2\nY\t900\t1000\n")
    with pytest.raises(InputError, match="which are no log2 values: set scale: linear"):
        check_study_files(StudyFiles(no_slides(), settings, measured=files.measured))
    made = StudyFiles(no_slides(), settings, gene_sets={"x": "later.gmt"}, made=lambda file: True)
    check_study_files(made)


def test_a_check_is_a_function_in_one_place_and_bad_slides_can_be_skipped(monkeypatch, caplog):
    def reads(files):
        def read():
            raise BadSlide("slide S: bad")

        yield read

    monkeypatch.setattr("histogep.study_files.CHECKS", (*CHECKS, reads))
    with pytest.raises(InputError, match="slide S: bad"):
        check_study_files(StudyFiles(no_slides(), SETTINGS | {"on_bad_slide": "stop"}))
    check_study_files(StudyFiles(no_slides(), SETTINGS | {"on_bad_slide": "skip"}))
    assert "slide S: bad" in caplog.text


def clinical(tmp_path, names):
    path = tmp_path / "patients.tsv"
    path.write_text("patient\ttime\tevent\n" + "".join(f"{name}\t30\t1\n" for name in names))
    return read_clinical(path)


def test_samples_that_never_meet_their_patients_are_refused_while_planning(tmp_path, caplog):
    path = tmp_path / "bulk.tsv"
    pd.DataFrame(
        np.ones((2, 12)), index=["X", "Y"], columns=[f"P{i:02d}" for i in range(12)]
    ).to_csv(path, sep="\t")
    rows = measured_patients("m", str(path), clinical(tmp_path, [f"P{i:02d}" for i in range(30)]))
    assert (len(rows), rows.attrs["n_samples"]) == (12, 12)
    with pytest.raises(InputError, match="0 of 12 patients .* 11 more would match without zeros"):
        measured_patients("m", str(path), clinical(tmp_path, [f"P-{i}" for i in range(1, 30)]))
    half = [f"P{i:02d}" for i in range(4)] + [f"p{i:02d}" for i in range(4, 12)]
    assert len(measured_patients("m", str(path), clinical(tmp_path, half))) == 4
    assert "only 4 of 12 patients with a sample" in caplog.text
    assert "8 more would match without case" in caplog.text


def test_a_misspelt_name_of_a_column_is_refused(tmp_path):
    sheet = clinical(tmp_path, ["A"])
    check_columns({"event": "event"}, None, sheet)
    with pytest.raises(InputError, match="has the column of sex: sexe .they have event, patient, "):
        check_columns({"sex": "sexe"}, None, sheet)
    check_columns({}, None, sheet)


def test_warnings_are_collected_once_each_in_place_of_being_printed(caplog):
    with collected_warnings() as lines:
        for _ in range(2):
            logging.getLogger("histogep.clinical").warning("columns: %s", "x")
        logging.getLogger("histogep.clinical").info("no matter")
    assert lines == ["columns: x"]
    assert "columns" not in caplog.text


def test_bad_positions_cost_their_slide_and_not_the_study(tmp_path, caplog):
    path = tmp_path / "p.tsv"
    path.write_text("x\ty\tpixel_x\tpixel_y\n1\t2\tq\t4\n")
    slides = no_slides().reindex(["S1"]).fillna("")
    slides["positions"] = str(path)
    with pytest.raises(InputError, match=r"slide S1, positions: .*p\.tsv: line 2"):
        check_study_files(StudyFiles(slides, SETTINGS | {"on_bad_slide": "stop"}))
    check_study_files(StudyFiles(slides, SETTINGS | {"on_bad_slide": "skip"}))
    assert "slide S1, positions" in caplog.text
