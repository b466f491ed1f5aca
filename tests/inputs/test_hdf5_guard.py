"""HDF5 files from elsewhere: nothing outside of them is read, and nothing that they do not hold."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from histogep.encoders.given_features import read_given
from histogep.errors import BadSlide, InputError
from histogep.inputs import hdf5_guard
from histogep.inputs.hdf5_guard import check_hdf5, open_given
from histogep.lattice import Lattice
from histogep.spots.readers import read_section

ROOT = Path(__file__).resolve().parents[2]
SLIDE = SimpleNamespace(slide="S1", mpp=0.5, width_px=8000, height_px=6000)
LATTICE = Lattice("square", 112, 112)
VISIUM = ROOT.parent / "shared" / "data" / "visium"


def _plain(path):
    with h5py.File(path, "w") as file:
        file["values"] = np.arange(10)
        file["group/names"] = np.array(["a", "b"], dtype=h5py.string_dtype())
    return path


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret.txt"
    path.write_bytes(b"PRIVATE KEY 12345678901234567890123456789012345678901234567890")
    return path


def _external_storage(file, secret):
    file.create_dataset("group/x", (50,), "S1", external=[(str(secret), 0, 50)])


def _external_link(file, secret):
    file["group/x"] = h5py.ExternalLink(str(secret.with_name("other.h5")), "/values")


def _soft_link(file, secret):
    file["group/x"] = h5py.SoftLink("/values")


def _dangling_link(file, secret):
    file["group/x"] = h5py.SoftLink("/nowhere")


def _virtual(file, secret):
    layout = h5py.VirtualLayout((10,), "i8")
    layout[:] = h5py.VirtualSource(str(secret.with_name("other.h5")), "values", (10,))
    file.create_virtual_dataset("group/x", layout)


def _virtual_unlimited(file, secret):
    other = str(secret.with_name("other.h5"))
    layout = h5py.VirtualLayout((10,), "i8", maxshape=(None,))
    source = h5py.VirtualSource(other, "values", (10,), maxshape=(None,))
    layout[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
    file.create_virtual_dataset("group/x", layout)


def _loop(file, secret):
    file["group/x"] = file["group"]


def _loop_of_root(file, secret):
    file["group/x"] = file["/"]


def _two_names(file, secret):
    file["group/x"] = file.create_group("other")


def _not_utf8(file, secret):
    file["group"][b"x\xff\xfe"] = 1


def _region(file, secret):
    reference = file["values"].regionref[:3]
    file.create_dataset("group/x", data=np.array([reference], h5py.regionref_dtype))


def _region_attribute(file, secret):
    file["values"].attrs["x"] = file["values"].regionref[:3]


def _too_large(file, secret):
    file.create_dataset("group/x", (10**11,), "i8", chunks=(1000,), compression="gzip")


def _too_large_late(file, secret):
    dataset = file.create_dataset("group/x", (10**9,), "i8", chunks=(1000,), compression="gzip")
    dataset[:1000] = 1


def _too_large_together(file, secret):
    for index in range(20):
        file.create_dataset(f"group/x{index}", (7_000_000,), "i8", chunks=(1000,))


def _many_names_of_one_array(file, secret):
    array = file.create_dataset("group/y", (7_000_000,), "i8", chunks=(1000,))
    for index in range(20):
        file[f"group/x{index}"] = array


def _strange_filter(file, secret):
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk((10,))
    plan.set_filter(32_111, h5py.h5z.FLAG_OPTIONAL, (1,))
    space = h5py.h5s.create_simple((10,))
    h5py.h5d.create(file["group"].id, b"x", h5py.h5t.STD_I32LE, space, plan)


ATTACKS = {
    _external_storage: "external storage",
    _external_link: "external link",
    _soft_link: "soft link",
    _dangling_link: "soft link",
    _virtual: "virtual dataset",
    _virtual_unlimited: "virtual dataset",
    _loop: "has another name too",
    _loop_of_root: "has another name too",
    _two_names: "has another name too",
    _not_utf8: "not UTF-8",
    _region: "references that may lead",
    _region_attribute: "reference that may lead",
    _too_large: "made to fill the memory",
    _too_large_late: "made to fill the memory",
    _too_large_together: "made to fill the memory",
    _many_names_of_one_array: "made to fill the memory",
    _strange_filter: "filter 32111",
}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_what_reaches_out_of_a_file_or_is_not_in_it_is_refused_by_name(tmp_path, secret, attack):
    path = _plain(tmp_path / "given.h5")
    _plain(secret.with_name("other.h5"))
    check_hdf5(path)
    with h5py.File(path, "a") as file:
        attack(file, secret)
    with pytest.raises(InputError, match=ATTACKS[attack]) as caught:
        check_hdf5(path)
    assert str(path) in str(caught.value)
    assert "/" in str(caught.value).removeprefix(str(path)) or "other" in str(caught.value)


def test_the_source_of_a_virtual_dataset_is_not_opened(tmp_path):
    """A source that is a pipe would keep whoever opens it waiting for ever."""
    pipe = tmp_path / "other.h5"
    os.mkfifo(pipe)
    path = tmp_path / "given.h5"
    with h5py.File(path, "w") as file:
        layout = h5py.VirtualLayout((10,), "i8", maxshape=(None,))
        source = h5py.VirtualSource(str(pipe), "values", (10,), maxshape=(None,))
        layout[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
        file.create_virtual_dataset("x", layout)
    code = (
        "import sys; from histogep.inputs.hdf5_guard import check_hdf5; "
        "from histogep.workflow.job import InputError\n"
        "try: check_hdf5(sys.argv[1])\n"
        "except InputError as error: print(error)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
    assert "virtual dataset" in run.stdout


def test_a_text_with_many_owners_is_no_memory_bomb(tmp_path):
    path = tmp_path / "given.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.array(["a" * 500_000] + [""] * 199, dtype=h5py.string_dtype())
    # All entries of the table point to the one long text.
    content = bytearray(path.read_bytes())
    with h5py.File(path, "r") as file:
        offset = file["x"].id.get_offset()
    content[offset : offset + 3200] = content[offset : offset + 16] * 200
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match="more text than"):
        check_hdf5(path)


def test_errors_of_the_reader_name_the_file_and_are_of_the_kind_wanted(tmp_path):
    path = _plain(tmp_path / "given.h5")
    with (
        pytest.raises(BadSlide, match=r"given.h5: not readable as features"),
        open_given(path, "features", error=BadSlide) as file,
    ):
        file["absent"]
    for content in (b"", b"\x89HDF\r\n\x1a\n" + bytes(40), b"<html>", path.read_bytes()[:700]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"given\.h5: not readable"):
            check_hdf5(path)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("kill -SEGV $$", "the HDF5 library crashes on it, SIGSEGV: it is damaged"),
        ("exec sleep 30", "reading does not end within 1 s: it is damaged"),
    ],
)
def test_a_file_on_which_the_library_crashes_or_hangs_is_refused(
    tmp_path, monkeypatch, command, message
):
    """As it does on some damaged heaps of names; here what reads the file is replaced."""
    path = _plain(tmp_path / "given.h5")
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/bash\n{command}\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    monkeypatch.setattr(hdf5_guard, "_LEAST_SECONDS", 1)
    with pytest.raises(InputError, match=rf"given\.h5: not readable as x \({message}"):
        check_hdf5(path, "x")


def test_damaged_attributes_and_values_are_found_before_anything_is_read(tmp_path):
    path = tmp_path / "given.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=np.arange(10_000), chunks=(1000,), compression="gzip")
        offset = file["x"].id.get_chunk_info(3).byte_offset
    content = bytearray(path.read_bytes())
    content[offset + 10 : offset + 60] = bytes(50)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"given\.h5: not readable"):
        check_hdf5(path)


def test_pipes_and_folders_are_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.h5")
    for path, message in ((tmp_path / "x.h5", "is a pipe"), (tmp_path, "is a folder")):
        with pytest.raises(InputError, match=message):
            check_hdf5(path)


@pytest.mark.parametrize("value", ["extended", [1, 2], np.nan, h5py.Empty("f4")])
@pytest.mark.parametrize("name", ["level0_width", "patch_size_level0", "patch_size"])
def test_strange_attributes_of_features_are_refused_with_the_file(tmp_path, name, value):
    path = tmp_path / "given.h5"
    with h5py.File(path, "w") as file:
        file["features"], file["coords"] = np.ones((5, 8)), np.arange(10.0).reshape(5, 2)
        file["coords"].attrs.update({"patch_size": 224, name: value})
    with pytest.raises(InputError, match=r"given\.h5"):
        read_given(path, slide=SLIDE, lattice=LATTICE)


def test_what_tools_write_is_let_through(tmp_path):
    """AnnData in all of its shapes, also as version 0.7 wrote categories: by object references."""
    rng = np.random.default_rng(0)
    table = anndata.AnnData(
        sparse.csr_matrix(rng.poisson(1, (30, 20)).astype(np.float32)),
        obs=pd.DataFrame(
            {"a": pd.Categorical(list("xyz") * 10), "b": True, "c": ["é", "", "m"] * 10},
            index=[f"s{i}" for i in range(30)],
        ),
        layers={"dense": np.zeros((30, 20))},
        uns={"empty": np.array([]), "text": "é", "none": np.zeros((0, 5)), "deep": {"a": {"b": 1}}},
    )
    table.raw = table
    for compression in (None, "gzip", "lzf"):
        table.write_h5ad(tmp_path / "a.h5ad", compression=compression)
        check_hdf5(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "a") as file:
        file["obs"].create_group("__categories")["a"] = np.array(["x"], "S")
        file["obs/b"].attrs["categories"] = file["obs/__categories/a"].ref
        file["kind"] = np.dtype("i4")
        file.create_dataset("nothing", data=h5py.Empty("f4"))
        file.create_dataset("zeros", data=np.zeros(10**6), compression="gzip")
        file.create_dataset(
            "rows", data=np.array([(1, "a")], [("n", "i4"), ("t", h5py.string_dtype())])
        )
    check_hdf5(tmp_path / "a.h5ad")


@pytest.mark.skipif(not VISIUM.is_dir(), reason="real data not here")
def test_files_of_space_ranger_are_let_through():
    found = list(VISIUM.rglob("*.h5"))
    assert len(found) >= 3
    for path in found:
        check_hdf5(path)


def _secret_names(n, secret):
    """Return what makes a dataset of n names whose letters lie in another file."""
    return {"shape": (n,), "dtype": "S10", "external": [(str(secret), 0, 10 * n)]}


def _tenx(path, secret, attacked):
    counts = sparse.csc_matrix(np.ones((5, 4), np.int32))
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        parts = {
            "data": counts.data,
            "indices": counts.indices,
            "indptr": counts.indptr,
            "shape": np.array([5, 4]),
            "barcodes": np.array([f"b{i}" for i in range(4)], "S"),
            "features/name": np.array([f"G{i}" for i in range(5)], "S"),
            "features/id": np.array([f"ENSG{i}" for i in range(5)], "S"),
            "features/feature_type": np.array(["Gene Expression"] * 5, "S"),
        }
        for name, values in parts.items():
            if name == attacked:
                group.create_dataset(name, **_secret_names(len(values), secret))
            else:
                group[name] = values


@pytest.mark.parametrize("attacked", ["barcodes", "features/name", "features/id"])
def test_names_of_a_10x_matrix_do_not_come_from_another_file(tmp_path, secret, attacked):
    _tenx(tmp_path / "filtered_feature_bc_matrix.h5", secret, attacked)
    with pytest.raises(InputError, match=f"/matrix/{attacked} takes its values from another file"):
        read_section(tmp_path / "filtered_feature_bc_matrix.h5", positions=tmp_path / "none.csv")


@pytest.mark.parametrize("name", ["var/_index", "obs/_index", "X/data", "obsm/spatial"])
def test_nothing_of_an_h5ad_comes_from_another_file(tmp_path, secret, name):
    path = tmp_path / "x.h5ad"
    anndata.AnnData(
        sparse.csr_matrix(np.ones((4, 5), np.float32)), obsm={"spatial": np.zeros((4, 2))}
    ).write_h5ad(path)
    with h5py.File(path, "a") as file:
        attributes = dict(file[name].attrs)
        del file[name]
        file.create_dataset(name, **_secret_names(4, secret)).attrs.update(attributes)
    with pytest.raises(InputError, match=f"/{name} takes its values from another file"):
        read_section(path)


@pytest.mark.parametrize("name", ["features", "coords"])
def test_features_of_others_do_not_come_from_another_file(tmp_path, name):
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["features"], file["coords"] = np.ones((5, 8)), np.zeros((5, 2))
    path = tmp_path / "given.h5"
    with h5py.File(path, "w") as file:
        file["features"], file["coords"] = np.ones((5, 8)), np.zeros((5, 2))
        del file[name]
        file[name] = h5py.ExternalLink(str(other), name)
    with pytest.raises(InputError, match=f"/{name} is a link to another file"):
        read_given(path, slide=None, lattice=None)
