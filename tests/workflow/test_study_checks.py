"""What is found in a study's files before its first job."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from histogep.errors import BadSlide, InputError
from histogep.lattice import Lattice
from histogep.study.clinical import read_clinical
from histogep.study.sheets import no_slides
from histogep.workflow.study_checks import (
    CHECKS,
    StudyFiles,
    check_columns,
    check_study_files,
    collected_warnings,
    measured_patients,
)

LATTICE = {"kind": "st", "pitch_um": 200, "tile_um": 112}
SETTINGS = {"measured": {}, "labels": {}, "lattice": LATTICE}
HER2ST = Path(__file__).parents[2] / "../shared/data/her2st/spots"


def test_all_files_are_read_whole_and_one_message_holds_what_is_wrong(tmp_path):
    sets = [f"SET{i}\td\tG{i}\tG{i + 1}" for i in range(20)]
    (tmp_path / "dup.gmt").write_text("\n".join([*sets, "SET3\td\tG1\tG2"]) + "\n")
    (tmp_path / "good.gmt").write_text("\n".join([*sets, sets[0], "EMPTY\td"]) + "\n")
    (tmp_path / "tpm.tsv").write_text("gene\tA\tB\nX\t1\t2\nY\t900\t1000\nZ\t1\t1,2,3\n")
    settings = SETTINGS | {"measured": {"m": {"scale": "log2"}}}
    files = StudyFiles(
        no_slides(),
        settings,
        gene_sets={"dup": str(tmp_path / "dup.gmt"), "good": str(tmp_path / "good.gmt")},
        measured={"m": str(tmp_path / "tpm.tsv")},
    )
    with pytest.raises(InputError) as caught:
        check_study_files(files)
    said = str(caught.value)
    assert "dup.gmt, line 21: gene set 'SET3' appears twice, with different genes" in said
    assert "tpm.tsv: line 4, column 'B': '1,2,3' is not a number" in said
    (tmp_path / "tpm.tsv").write_text("gene\tA\tB\nX\t1,5\t2\nY\t900\t1000\n")
    with pytest.raises(InputError, match="which are not log2 values: set scale: linear"):
        check_study_files(StudyFiles(no_slides(), settings, measured=files.measured))
    made = StudyFiles(no_slides(), settings, gene_sets={"x": "later.gmt"}, made=lambda file: True)
    check_study_files(made)


def test_a_check_is_a_function_in_one_place_and_bad_slides_can_be_skipped(monkeypatch, caplog):
    def reads(files):
        def read():
            raise BadSlide("slide S: bad")

        yield read

    monkeypatch.setattr("histogep.workflow.study_checks.CHECKS", (*CHECKS, reads))
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
    with pytest.raises(
        InputError, match="0 of 12 patients .* 11 more would match without leading zeros"
    ):
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
            logging.getLogger("histogep.study.clinical").warning("columns: %s", "x")
        logging.getLogger("histogep.study.clinical").info("no matter")
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


def positions(tmp_path, names, *, px, kind="st"):
    """Write a table of positions with a pitch of `px`; return a sheet of one slide with it."""
    row, col = np.divmod(np.arange(60), 10)
    if kind == "st":
        table = pd.DataFrame({"x": col, "y": row, "pixel_x": col * px, "pixel_y": row * px})
        path = tmp_path / "p.tsv"
        table.to_csv(path, sep="\t", index=False)
    else:
        x_um, y_um = Lattice().centres_um(row, col)
        table = pd.DataFrame(
            {"barcode": names, "in_tissue": 1, "array_row": row, "array_col": 2 * col + row % 2}
        ).assign(pxl_row_in_fullres=y_um * px / 100, pxl_col_in_fullres=x_um * px / 100)
        path = tmp_path / "tissue_positions.csv"
        table.to_csv(path, index=False)
    slides = no_slides().reindex(["S1"]).fillna("")
    slides["positions"] = str(path)
    return slides


@pytest.mark.parametrize("mpp", [0.34, 1.38, 0.9])
def test_a_stated_pixel_size_that_the_pitch_denies_is_refused_while_planning(tmp_path, mpp):
    slides = positions(tmp_path, None, px=200 / 0.69)
    stop = SETTINGS | {"on_bad_slide": "stop"}
    if mpp == 0.9:  # a difference that align_spots warns of
        return check_study_files(StudyFiles(slides.assign(mpp=mpp), stop))
    with pytest.raises(
        InputError, match=r"slide S1: it has .* um per px, but by lattice.pitch_um 200"
    ):
        check_study_files(StudyFiles(slides.assign(mpp=mpp), stop))
    check_study_files(StudyFiles(slides.assign(mpp=mpp), SETTINGS | {"on_bad_slide": "skip"}))
    for right in (0.69, np.nan):
        check_study_files(StudyFiles(slides.assign(mpp=right), stop))


def test_a_coarser_image_of_space_ranger_is_left_to_the_slide(tmp_path):
    """The image may be its hires one: the positions are in full pixels and tell .5 um, it has 3.3."""
    names = [f"AAACAAGTATCTCCCA{i:02d}-1" for i in range(60)]
    slides = positions(tmp_path, names, px=200, kind="visium")
    visium = {"lattice": {"kind": "visium", "pitch_um": 100, "tile_um": 112}}
    check_study_files(StudyFiles(slides.assign(mpp=3.3), SETTINGS | visium))
    check_study_files(StudyFiles(slides.assign(mpp=0.5), SETTINGS | visium))
    with pytest.raises(InputError, match=r"it has 0.25 um per px, but by lattice.pitch_um 100"):
        check_study_files(StudyFiles(slides.assign(mpp=0.25), SETTINGS | visium))


@pytest.mark.skipif(not HER2ST.is_dir(), reason="the real data are not here")
@pytest.mark.parametrize(("section", "mpp"), [("A1", 3.19), ("B4", 0.687), ("C2", 0.687)])
def test_real_sections_pass_with_their_pixel_size_and_not_with_twice_that(section, mpp):
    slides = no_slides().reindex(["S1"]).fillna("")
    slides["positions"] = str(HER2ST / f"{section}.tsv")
    check_study_files(StudyFiles(slides.assign(mpp=mpp), SETTINGS))
    for factor in (0.5, 2):
        with pytest.raises(InputError, match="and the distance of its spots it has"):
            check_study_files(StudyFiles(slides.assign(mpp=factor * mpp), SETTINGS))
