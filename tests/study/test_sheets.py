import os

import numpy as np
import pytest

from histogep.errors import InputError
from histogep.study.sheets import check_given_features, locate, read_patients, read_slides

HEADER = "slide\tpatient\tcohort\timage\tmpp\tcounts\tpositions\tlabels\n"


@pytest.fixture
def sheet(tmp_path):
    (tmp_path / "a.svs").write_text("")
    (tmp_path / "c.svs").write_text("")
    (tmp_path / "a.jpg").write_text("")
    (tmp_path / "counts.tsv.gz").write_text("")

    def write(*rows, header=HEADER):
        path = tmp_path / "slides.tsv"
        path.write_text(header + "".join(row.replace("DIR", str(tmp_path)) + "\n" for row in rows))
        return path

    return write


def test_rows_are_text_and_sorted(sheet):
    slides = read_slides(
        sheet("007\t01\tc\tDIR/a.svs\t0.25\t\t\t", "# a comment", "001\t1e3\tc\tDIR/c.svs")
    )
    assert list(slides.index) == ["001", "007"]
    assert list(slides["patient"]) == ["1e3", "01"]
    assert slides.loc["007", "mpp"] == 0.25
    assert slides.loc["001", "counts"] == ""


def test_every_problem_is_named_with_its_line(sheet):
    path = sheet(
        "a/b\tp\tc\tDIR/a.svs",
        "..\tp\tc\tDIR/a.svs",
        "x;touch pw\tp\tc\tDIR/a.svs",
        "S1\tp\tc\tDIR/none.svs",
        "S2\t\tc\tDIR/a.svs",
        "s1\tp\tc\tDIR/a.svs\tabc",
        "S3\tp\tc\tDIR/a.jpg",
        "S4\tp\tc\tDIR/a.svs\t\tDIR/counts.tsv.gz",
        "S5\tp\tc\t{data_root}/a.svs",
    )
    with pytest.raises(InputError) as caught:
        read_slides(path)
    message = str(caught.value)
    for expected in (
        "line 2: slide 'a/b' is not an id",
        "line 3: slide '..' is not an id",
        "line 4: slide 'x;touch pw'",
        "none.svs does not exist",
        "line 6: no patient",
        "slide 'S1' and 's1' appears on lines 5, 7, differing in case only",
        "mpp 'abc'",
        "a.jpg carries no pixel size",
        "give the spots' pixels in positions",
        "--config data_root=FOLDER",
    ):
        assert expected in message


@pytest.mark.parametrize("name", ["NA", "null", "None", "nan", "NaN"])
@pytest.mark.parametrize("column", ["slide", "patient", "cohort"])
def test_ids_that_readers_take_for_missing_are_refused(sheet, name, column):
    row = {"slide": "S1", "patient": "p", "cohort": "c", column: name}
    with pytest.raises(InputError, match=f"line 2: {column} '{name}' would be read as a missing"):
        read_slides(sheet(f"{row['slide']}\t{row['patient']}\t{row['cohort']}\tDIR/a.svs"))


def test_two_patients_share_neither_a_file_nor_an_id_but_for_its_case(sheet, tmp_path):
    (tmp_path / "b.svs").write_text("")
    (tmp_path / "link.gz").symlink_to(tmp_path / "counts.tsv.gz")
    with pytest.raises(InputError) as caught:
        read_slides(
            sheet(
                "S1\tp1\tc\tDIR/a.svs\t\tDIR/counts.tsv.gz\tDIR/b.svs",
                "S2\tp2\tc\tDIR/../" + tmp_path.name + "/a.svs\t\tDIR/link.gz\tDIR/b.svs",
                "S3\tP1\tc\tDIR/b.svs",
            )
        )
    message = str(caught.value)
    assert "3 problems" in message
    assert "lines 2, 4: patients 'P1', 'p1' differ in case only" in message
    assert "lines 2, 3: image" in message
    assert "lines 2, 3: counts" in message


def test_sections_of_one_patient_under_two_barcodes_are_refused(sheet, tmp_path):
    (tmp_path / "more.tsv.gz").write_text("")
    rows = [f"S{n}\tTCGA-AA-0001-01{n}\tc\tDIR/{n.lower()}.svs" for n in "AC"]
    assert len(read_slides(sheet(*rows))) == 2
    counts = ("counts", "more")
    with pytest.raises(InputError, match="lines 2, 3: .* are one by their barcodes"):
        read_slides(
            sheet(*(f"{r}\t\tDIR/{c}.tsv.gz\tDIR/a.svs" for r, c in zip(rows, counts, strict=True)))
        )


def test_two_slides_of_one_patient_may_share_an_image(sheet):
    assert len(read_slides(sheet("S1\tp\tc\tDIR/a.svs\t0.5", "S2\tp\tc\tDIR/a.svs\t0.25"))) == 2


def test_files_that_the_workflow_makes_may_be_absent(sheet):
    path = sheet("S1\tp\tc\tdata/simulated/S1.tiff")
    slides = read_slides(path, made=lambda file: file.startswith("data/simulated/"))
    assert slides.loc["S1", "image"] == "data/simulated/S1.tiff"


def test_data_root_is_filled_in(sheet, tmp_path):
    slides = read_slides(sheet("S1\tp\tc\t{data_root}/a.svs"), data_root=str(tmp_path))
    assert slides.loc["S1", "image"] == f"{tmp_path}/a.svs"


def test_files_are_looked_for_in_the_working_directory_then_beside_the_sheet(
    sheet, tmp_path, monkeypatch
):
    (tmp_path / "work").mkdir()
    (tmp_path / "work/b.svs").write_text("")
    (tmp_path / "b.svs").write_text("")
    path = sheet("S1\tp\tc\ta.svs", "S2\tp\tc\tb.svs")
    monkeypatch.chdir(tmp_path / "work")
    assert list(read_slides(path)["image"]) == [str(tmp_path / "a.svs"), "b.svs"]


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        ("slide,patient,cohort,image\n", "separated by tabs"),
        ("slide\tpatient\tcohort\tpath\n", "no column 'image'"),
        ("slide\tpatient\tcohort\timage\tnote\n", r"unknown column 'note' \(known: slide, "),
        ("Slide\tpatient_id\tcohort\timage\n", "unknown column 'Slide', did you mean 'slide'"),
        ("slide\tpatient_id\tcohort\timage\n", "'patient_id', did you mean 'patient'"),
        ("slide\tpatient\tcohort\timage\tcount\n", "'count', did you mean 'counts'"),
        ('"slide"\t"patient"\t"cohort"\t"image"\n', "cells are in quotes: save the sheet as"),
    ],
)
def test_a_wrong_header_is_refused(sheet, header, complaint):
    with pytest.raises(InputError, match=complaint):
        read_slides(sheet("S1\tp\tc\tDIR/a.svs", header=header))


def test_patients_keep_text_ids_and_unknowns(tmp_path):
    path = tmp_path / "patients.tsv"
    path.write_text(
        "patient\ttime\tevent\tage\tsex\tstage\n010\t12.5\t1\t60\tfemale\tII\n002\t\t\t\t\t\n"
    )
    patients = read_patients(path)
    assert list(patients.index) == ["002", "010"]
    assert patients.loc["010", "time"] == 12.5
    assert patients.loc["002"].isna()["time"]
    assert "response" not in patients


def test_impossible_outcomes_are_refused(tmp_path):
    path = tmp_path / "patients.tsv"
    path.write_text(
        "patient\ttime\tevent\tresponse\nA\t-1\t1\t0\nB\t3\t2\tperhaps\nC\t3\t\t\na\t1\t1\t1\n"
    )
    with pytest.raises(InputError) as caught:
        read_patients(path)
    message = str(caught.value)
    for expected in (
        "time '-1'",
        "event '2'",
        "response 'perhaps'",
        "line 4: time and event",
        "lines 2, 5",
    ):
        assert expected in message
    path.write_text("patient\ttime\tevent\nA\t3\tgone\n")
    with pytest.raises(InputError, match=r"event 'gone' is not 0 \(censored\)") as caught:
        read_patients(path)
    assert "one of them is empty" not in str(caught.value)


def test_unreadable_covariates_are_missing_and_counted_and_block_nobody(tmp_path, caplog):
    path = tmp_path / "patients.tsv"
    path.write_text(
        "patient\ttime\tevent\tage\tsex\tstage\n"
        "A\t1\t1\tsixty\tF\tIIA\nB\t2\t1\t>89\tdiverse\tT2N0\nC\t1\t0\t60,5\tna\t\n"
    )
    patients = read_patients(path)
    assert patients["sex"].tolist() == ["F", "", ""]
    assert patients["stage"].tolist() == ["II", "", ""]
    assert patients["age"].tolist()[1:] == [90, 60.5]
    assert np.isnan(patients.loc["A", "age"])
    for told in (
        "'age': 1 of 3 cells cannot be read and count as missing: 'sixty' (1)",
        "'sex': 1 of 3 cells cannot be read and count as missing: 'diverse' (1)",
        "stages other than I to IV count as missing: T2N0 (1)",
    ):
        assert told in caplog.text


def test_a_path_that_snakemake_would_take_for_a_wildcard_is_refused_with_its_line(sheet, tmp_path):
    for folder in ("batch {2}", "scans {5F3C-11}", "a<b>c"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "T1.svs").write_text("")
        with pytest.raises(InputError, match="line 3: image .* which Snakemake reads as the"):
            read_slides(sheet("S1\tp\tc\tDIR/a.svs", f"S2\tp\tc\tDIR/{folder}/T1.svs"))
    (tmp_path / "a [1] $x").mkdir()
    (tmp_path / "a [1] $x/T1.svs").write_text("")
    assert len(read_slides(sheet("S2\tp\tc\tDIR/a [1] $x/T1.svs"))) == 1
    with pytest.raises(InputError, match="line 2: image .* control character"):
        read_slides(sheet("S2\tp\tc\tDIR/a\x01.svs"))
    with pytest.raises(InputError, match="line 2: image .* is longer than"):
        read_slides(sheet(f"S2\tp\tc\tDIR/{'a' * 300}.svs"))
    (tmp_path / "{x}.yaml").write_text("")
    with pytest.raises(InputError, match=r"signatures: '\{x\}\.yaml' holds '\{'"):
        locate("{x}.yaml", folders=(tmp_path,), key="signatures")


def test_a_form_feed_ends_no_line_of_a_sheet(sheet):
    with pytest.raises(InputError, match=r"line 2: slide 'S1\\x0cS2' is not an id"):
        read_slides(sheet("S1\x0cS2\tp\tc\tDIR/a.svs"))


def test_columns_are_called_as_the_configuration_says(sheet):
    header = "slide\tpatient\tcentre\tscan\n"
    path = sheet("S1\tp\tc\tDIR/a.svs", header=header)
    slides = read_slides(path, columns={"cohort": "centre", "image": "scan", "sex": "sexe"})
    assert slides.loc["S1", "cohort"] == "c"


def test_a_pipe_as_a_sheet_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "slides.tsv")
    with pytest.raises(InputError, match=r"slides\.tsv is a pipe"):
        read_slides(tmp_path / "slides.tsv")


def test_locate_prefers_the_first_folder_and_says_where_it_looked(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    (tmp_path / "two/x.tsv").write_text("")
    folders = (tmp_path / "one", tmp_path / "two")
    assert locate("x.tsv", folders=folders) == str(tmp_path / "two/x.tsv")
    with pytest.raises(InputError, match=r"slides: y\.tsv does not exist \(looked in .*one"):
        locate("y.tsv", folders=folders, key="slides")
    with pytest.raises(InputError) as caught:  # the working directory is that of the configuration
        locate("y.tsv", folders=(*folders, tmp_path / "one"))
    assert str(caught.value).count(str(tmp_path / "one")) == 1
    with pytest.raises(InputError, match="model: .* needs data_root: call with --config data_root"):
        locate("{data_root}/model", folders=folders, key="model")


def test_features_and_a_precomputed_encoder_belong_together(sheet):
    header = HEADER.replace("labels", "labels\tfeatures")
    given = sheet("S1\tp\tc\tDIR/a.svs\t\t\t\t\tDIR/a.svs", "S2\tp\tc\tDIR/a.svs", header=header)
    slides = read_slides(given)
    uni, lite0 = {"name": "uni", "precomputed": True}, {"name": "lite0", "precomputed": False}
    check_given_features(slides.loc[["S1"]], [lite0, uni])
    check_given_features(slides.loc[["S2"]], [lite0])
    with pytest.raises(InputError, match="no `features` of S2"):
        check_given_features(slides, [uni])
    with pytest.raises(InputError, match="no encoder is `precomputed: true`"):
        check_given_features(slides, [lite0])
    with pytest.raises(InputError, match="one file of features"):
        check_given_features(slides, [uni, uni])
    with pytest.raises(InputError, match=r"features .*none\.h5 does not exist"):
        read_slides(sheet("S1\tp\tc\tDIR/a.svs\t\t\t\t\tDIR/none.h5", header=header))


def test_regions_of_a_section_are_refused(sheet):
    header = HEADER.replace("labels", "regions")
    row = "S1\tp\tc\tDIR/a.svs\t\tDIR/counts.tsv.gz\tDIR/a.svs\tDIR/a.svs"
    with pytest.raises(InputError, match="line 2: regions apply to slides without spots"):
        read_slides(sheet(row, header=header))


@pytest.mark.parametrize("separator", [",", "   "])
def test_columns_that_no_tab_separates_are_said_so_and_nothing_else(tmp_path, separator):
    path = tmp_path / "slides.tsv"
    path.write_text(separator.join(("slide", "patient", "cohort", "image")) + "\n")
    with pytest.raises(InputError, match="line 1: the columns are separated by tabs") as caught:
        read_slides(path)
    assert "unknown column" not in str(caught.value)


def test_problems_stand_in_the_order_of_the_lines(tmp_path):
    path = tmp_path / "slides.tsv"
    path.write_text("slide\tpatient\tcohort\timage\tcounts\nA\tp\tc\t\tX\nB\tq\tc\tno.tiff\t\n")
    with pytest.raises(InputError) as caught:
        read_slides(path)
    lines = [said.split(":")[0].strip() for said in str(caught.value).splitlines()[1:]]
    assert lines == ["line 2", "line 2", "line 3"]
    assert "looked in" in str(caught.value)


def test_the_largest_side_of_a_slide_may_be_given(tmp_path):
    (tmp_path / "a.svs").touch()
    rows = [["slide", "patient", "cohort", "image", "max_mm"], ["S1", "P1", "c", "a.svs", "200"]]
    path = tmp_path / "slides.tsv"
    path.write_text("\n".join("\t".join(row) for row in rows) + "\n")
    assert read_slides(path)["max_mm"].tolist() == [200]
    for wrong in ("big", "0", "nan", "inf", "-3", "5000"):
        path.write_text("\n".join("\t".join(row) for row in rows).replace("200", wrong) + "\n")
        with pytest.raises(InputError, match=f"line 2: max_mm '{wrong}' is not a largest side"):
            read_slides(path)
