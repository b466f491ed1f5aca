import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from histogep import files
from histogep.errors import BadSlide, InputError
from histogep.files import (
    complete,
    file_sha256,
    given_file,
    read_tsv,
    write_json,
    write_tsv,
)


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


@pytest.mark.parametrize("there", ["folder", "full folder", "file", "link", "nothing"])
@pytest.mark.parametrize("new", ["folder", "file"])
def test_whatever_stands_under_the_name_gives_way(tmp_path, there, new):
    path, elsewhere = tmp_path / "model", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    if "folder" in there:
        path.mkdir()
        if there == "full folder":
            (path / "stale").touch()
    elif there == "file":
        path.write_text("old")
    elif there == "link":
        path.symlink_to(elsewhere)
    with complete(path) as temporary:
        if new == "folder":
            temporary.mkdir()
            (temporary / "weights").write_text("new")
        else:
            temporary.write_text("new")
    assert (path / "weights" if new == "folder" else path).read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "model"]
    assert os.listdir(elsewhere) == ["kept"]


def test_a_folder_that_cannot_be_renamed_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "model"
    path.mkdir()
    (path / "weights").write_text("old")
    replace, calls = os.replace, []

    def fail_the_second_time(*names):
        calls.append(names)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        replace(*names)

    monkeypatch.setattr(os, "replace", fail_the_second_time)

    def write():
        with complete(path) as temporary:
            temporary.mkdir()
            (temporary / "weights").write_text("new")

    with pytest.raises(OSError, match="Input/output"):
        write()
    assert (path / "weights").read_text() == "old"
    assert os.listdir(tmp_path) == ["model"]


WRITER = """
import sys
from pathlib import Path
from histogep.files import complete
sys.stdin.readline()
for number in range(int(sys.argv[3])):
    with complete(sys.argv[1]) as temporary:
        temporary.mkdir()
        for part in "ab":
            (temporary / part).write_text(f"{sys.argv[2]} {number}")
"""


def test_two_writers_of_a_folder_never_fail_and_a_reader_never_sees_a_half(tmp_path):
    """Each write fails in one of three where the old folder is removed under its name."""
    path, n = tmp_path / "model", 150
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), name, str(n)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(files.__file__).parents[1],
        )
        for name in ("one", "two")
    ]
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    looks = 0
    while any(writer.poll() is None for writer in writers):
        try:
            inside = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue  # between two renames, or not yet
        looks += 1
        try:
            # A folder that is open stays the one it is until it is removed.
            listed = sorted(os.listdir(inside))
            assert listed == ["a", "b"] or not os.path.samestat(os.fstat(inside), stat_of(path))
        finally:
            os.close(inside)
        time.sleep(0.0005)
    assert [(writer.wait(), writer.communicate()[1]) for writer in writers] == [(0, "")] * 2
    parts = {(path / part).read_text() for part in "ab"}
    assert len(parts) == 1
    assert parts.pop().split()[1] == str(n - 1)
    assert os.listdir(tmp_path) == ["model"]
    assert looks > 0


def stat_of(path):
    try:
        return os.stat(path)
    except FileNotFoundError:
        return os.stat("/")


@pytest.fixture
def umask():
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mask", [0o002, 0o022, 0o027, 0o077])
@pytest.mark.parametrize("ask", ["proc", "call"])
def test_files_and_folders_get_what_the_umask_allows(tmp_path, umask, mask, ask, monkeypatch):
    """Newer safetensors write mode 0600 whatever the umask: colleagues could not read a model."""
    if ask == "call":
        monkeypatch.setattr(files, "Path", _no_proc)
    umask(mask)
    with complete(tmp_path / "weights.safetensors") as temporary:
        save_file({"a": np.zeros(3)}, temporary)
        temporary.chmod(0o600)
    with complete(tmp_path / "model") as temporary:
        temporary.mkdir(0o700)
        (temporary / "deep").mkdir(0o700)
        for name in ("weights", "deep/weights"):
            (temporary / name).touch(0o600)
        (temporary / "link").symlink_to("/nowhere")
    for name in (
        "weights.safetensors",
        "model",
        "model/deep",
        "model/weights",
        "model/deep/weights",
    ):
        made = (tmp_path / name).stat().st_mode
        assert stat.S_IMODE(made) == (0o777 if stat.S_ISDIR(made) else 0o666) & ~mask, name
    assert os.umask(mask) == mask


def _no_proc(path):
    """Stand for a system without /proc."""
    return Path(path if str(path) != "/proc/self/status" else "/nowhere/status")


def test_a_name_as_long_as_a_file_system_allows_is_written(tmp_path):
    path = tmp_path / ("é" * 120 + ".tsv")
    with complete(path) as temporary:
        temporary.write_text("whole")
    assert path.read_text() == "whole"


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
