import json
import os

import numpy as np
import pandas as pd
import pytest

from histogep.files import complete, file_sha256, given_file, read_tsv, write_json, write_tsv
from histogep.jobs import BadSlide, InputError


def test_a_failed_writer_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "table.tsv"
    path.write_text("old")

    def fail():
        with complete(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["table.tsv"]


def test_nothing_is_seen_under_the_name_before_the_end(tmp_path):
    path = tmp_path / "deep" / "image.png"
    with complete(path) as temporary:
        temporary.write_bytes(b"whole")
        assert temporary.suffix == ".png"
        assert not path.exists()
    assert path.read_bytes() == b"whole"


def test_a_folder_is_replaced_whole(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "stale").write_text("")
    with complete(path) as temporary:
        temporary.mkdir()
        (temporary / "weights").write_text("new")
    assert os.listdir(path) == ["weights"]


def test_json_holds_plain_sorted_values_and_no_nan(tmp_path):
    path = tmp_path / "a.json"
    write_json({"b": np.float64(0.5), "a": np.arange(2), "c": tmp_path}, path)
    assert list(json.loads(path.read_text())) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="JSON"):
        write_json({"x": float("nan")}, path)


def test_tables_come_back(tmp_path):
    frame = pd.DataFrame({"slide": ["001", "x"], "value": [1 / 3, np.nan]})
    write_tsv(frame, tmp_path / "t.tsv")
    back = read_tsv(tmp_path / "t.tsv", dtype={"slide": str})
    assert list(back["slide"]) == ["001", "x"]
    assert back["value"][0] == pytest.approx(1 / 3, abs=1e-6)


def test_only_an_empty_cell_of_a_table_is_missing(tmp_path):
    path = tmp_path / "table.tsv"
    table = pd.DataFrame({"id": ["NA", "None", "nan", "null"], "x": [1.0, np.nan, 2.0, 3.0]})
    write_tsv(table, path)
    pd.testing.assert_frame_equal(read_tsv(path, dtype={"id": str}), table)


def test_sha256_is_of_the_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert file_sha256(tmp_path / "x").startswith("ba7816bf8f01cfea")


@pytest.mark.parametrize(
    "raised", [KeyError("x"), RuntimeError("a\nb"), UnicodeError(), IndexError()]
)
def test_whatever_a_reader_raises_names_the_file_that_was_given(raised):
    refused = pytest.raises(BadSlide, match=r"slide\.svs: not readable as a slide")
    with refused, given_file("slide.svs", "a slide", error=BadSlide):
        raise raised


@pytest.mark.parametrize("raised", [InputError("row 3"), MemoryError(), KeyboardInterrupt()])
def test_what_names_its_cause_already_goes_through(raised):
    with pytest.raises(type(raised)) as caught, given_file("table.tsv"):
        raise raised
    assert caught.value is raised
