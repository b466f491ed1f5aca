from __future__ import annotations

import shutil

import pydicom
import pytest

from histogep.errors import BadSlide
from histogep.slides.prepare import check_source
from histogep.slides.same_file import training_section
from histogep.slides.sources import source_sha256


def test_a_copied_file_is_found_under_any_name_and_a_changed_one_is_not(tmp_path):
    image = tmp_path / "S1.tiff"
    image.write_bytes(b"II*\0" + bytes(range(256)) * 40)
    settings = {"training_images": {"S0": "another", "S1": source_sha256(image)}}
    copy = tmp_path / "elsewhere" / "TCGA-AA-0001-01Z-00-DX1.tiff"
    copy.parent.mkdir()
    shutil.copy(image, copy)
    assert training_section(settings, source_sha256(copy)) == "S1"
    copy.write_bytes(copy.read_bytes() + b"\0")
    assert training_section(settings, source_sha256(copy)) == ""


def test_a_mirax_slide_is_found_under_another_name(tmp_path):
    """Its files lie in a folder that is called as the slide is."""
    digests = []
    for name in ("A", "B"):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.mrxs").write_bytes(b"\xff\xd8 the same")
        for number in range(3):
            (tmp_path / name / f"Data{number}.dat").write_bytes(bytes([number]) * 50)
        digests.append(source_sha256(tmp_path / f"{name}.mrxs"))
    assert digests[0] == digests[1]
    (tmp_path / "B/Data2.dat").write_bytes(b"other")
    assert source_sha256(tmp_path / "B.mrxs") != digests[0]


def test_two_dicom_slides_in_one_folder_are_two(shared_data, tmp_path):
    files = sorted((shared_data / "wsi/CMU-1-Small-Region-dicom").glob("*.dcm"))
    for file in files:
        shutil.copy(file, tmp_path / f"a-{file.name}")
        other = pydicom.dcmread(file)
        other.SeriesInstanceUID = "1.2.3.4"
        other.save_as(tmp_path / f"b-{file.name}")
    first, second = (tmp_path / f"{slide}-{files[0].name}" for slide in "ab")
    assert source_sha256(first) == source_sha256(files[0])
    assert source_sha256(first) != source_sha256(second)
    with pytest.raises(BadSlide, match="more than one DICOM series"):
        check_source("S1", tmp_path)
    assert check_source("S1", files[0].parent).suffix == ".dcm"
    assert source_sha256(files[0].parent) == source_sha256(files[0])
