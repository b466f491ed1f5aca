from __future__ import annotations

import shutil

from histogep.slide_images import training_section
from histogep.sources import source_sha256


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
