"""What a full disk, a crash or a hand in the results leaves behind is noticed, and said with its name.

Cheap faults, on files that the library itself wrote. Those that need whole jobs of Snakemake are in
`test_faults_workflow.py`.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from histogep import files
from histogep.encoders import feature_file as features
from histogep.encoders.given_features import read_given
from histogep.enrichment.gsea import rank_measured
from histogep.errors import InputError
from histogep.lattice import Lattice
from histogep.models import weights
from histogep.models.sections import read_section, tumour_labels
from histogep.slides import rejected
from histogep.slides.sources import refuse_replaced, source_sha256
from histogep.spots import matrices
from tests.model_study import GENES, LATTICE, make_features, make_study

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("study"), patients=("P", "Q"))


def results(folder, study):
    """Copy or write one file of each format that rules hand to each other."""
    made = {}
    for kind in ("features", "spots", "labels"):
        made[kind] = shutil.copy(study.files[kind][0], folder)
    made["tiles"] = folder / "S0.parquet"
    pd.DataFrame(
        {"row": np.arange(5000), "x_px": np.random.default_rng(0).normal(size=5000)}
    ).to_parquet(made["tiles"])
    made["weights"] = folder / "weights.safetensors"
    save_file({"beta": np.ones((40, 50), np.float32)}, made["weights"])
    made["settings"] = folder / "settings.json"
    files.write_json({"kind": "ridge", "genes": GENES}, made["settings"])
    return made


READERS = {
    "features": features.read_features,
    "spots": matrices.read_h5ad,
    "labels": files.read_tsv,
    "tiles": files.read_parquet,
    "weights": weights.read_arrays,
    "settings": files.read_json,
}


# -------------------------------------------------------------- files that an earlier run left


@pytest.mark.parametrize("keep", [0, 100, -3])
@pytest.mark.parametrize("kind", READERS)
def test_a_file_that_is_cut_short_is_named_with_the_remedy(study, tmp_path, kind, keep):
    path = Path(results(tmp_path, study)[kind])
    READERS[kind](path)
    whole = path.read_bytes()
    path.write_bytes(whole[:keep])
    with pytest.raises(InputError, match="delete it") as caught:
        READERS[kind](path)
    assert str(path) in str(caught.value)


def test_spots_that_are_cut_short_are_named_before_their_failure_is_looked_for(study, tmp_path):
    path = Path(results(tmp_path, study)["spots"])
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match="S0.h5ad is damaged"):
        rejected.refuse_failed_spots(path)


def test_zeroed_bytes_in_features_are_no_features(study, tmp_path):
    path = Path(results(tmp_path, study)["features"])
    with h5py.File(path) as file:
        chunk = file["features"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    middle = chunk.byte_offset + chunk.size // 2
    content[middle : middle + 64] = bytes(64)
    path.write_bytes(content)
    with pytest.raises(InputError, match="delete it"):
        features.read_features(path)


def test_a_writer_that_dies_after_a_flush_leaves_no_features(tmp_path):
    """Killed as SIGKILL does it: no exception, no clean-up; what was flushed is on the disk."""
    made, _ = make_features("S0", np.random.default_rng(0))
    np.save(tmp_path / "values.npy", made.values)
    dies = f"""
import os, sys
import numpy as np
sys.path.insert(0, {str(ROOT)!r})
from histogep.encoders.feature_file import FeatureWriter
values = np.load("values.npy")
n = len(values)
writer = FeatureWriter("S0.h5", slide="S0", row=np.arange(n), col=np.arange(n),
    coords=np.zeros((n, 2)), barcode=[""] * n, blocks=[("d", values.shape[1])], lattice={{}},
    encoders=[], attributes={{}})
writer.__enter__()
writer.set_white(np.ones(values.shape[1]))
writer.append(values[: n // 2])
writer._file.flush()
os._exit(9)
"""
    done = subprocess.run([sys.executable, "-c", dies], cwd=tmp_path)
    assert done.returncode == 9
    assert not (tmp_path / "S0.h5").exists()
    # Even under its final name it would not pass: HDF5 reads what was never written as zeros.
    (left,) = tmp_path.glob(".S0.*.h5")
    with h5py.File(left) as file:
        assert file["features"].shape == made.values.shape
    left.rename(tmp_path / "S0.h5")
    with pytest.raises(InputError, match="its writer was stopped"):
        features.read_features(tmp_path / "S0.h5")


def test_given_features_of_a_writer_that_died_are_refused(tmp_path):
    values = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    with h5py.File(tmp_path / "given.h5", "w") as file:
        file["features"] = np.vstack([values, np.zeros_like(values)])
        file["coords"] = np.indices((10, 10)).reshape(2, -1).T * 224

    class Anywhere:
        slide, width_px, height_px, mpp = "S0", 2240, 2240, 0.5

    with pytest.raises(InputError, match="after number 50 of 100"):
        read_given(tmp_path / "given.h5", slide=Anywhere(), lattice=Lattice.from_settings(LATTICE))


def test_rows_that_labels_lost_are_missed(study, tmp_path):
    """A table that was cut at the end of a line reads like any other."""
    path = Path(results(tmp_path, study)["labels"])
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: len(lines) // 2]))
    barcodes = files.read_tsv(study.files["labels"][0])["barcode"]
    with pytest.raises(InputError, match=rf"{path.name} has no label of \d+ of the \d+ spots"):
        tumour_labels(path, barcodes)
    with pytest.raises(InputError, match="has no label"):
        rank_measured(study.files["spots"][:1], [path])
    with pytest.raises(InputError, match="has no label"):
        read_section(
            study.files["features"][0],
            study.files["spots"][0],
            path,
            slide="S0",
            patient="P",
            task="tumour",
            genes=[],
        )


# ------------------------------------------------------------------- disks, clocks and memory


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() or libc.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, b"size=64k"):
        pytest.skip("mounting a small file system needs root")
    yield folder
    libc.umount2(bytes(folder), 2)


def test_a_full_disk_leaves_nothing_under_the_name_of_a_result(small_disk):
    frame = pd.DataFrame({"x": np.random.default_rng(0).normal(size=30_000)})
    with pytest.raises(OSError, match="No space left"):
        files.write_tsv(frame, small_disk / "t.tsv")
    with (
        pytest.raises(OSError, match="No space left"),
        files.complete(small_disk / "t.parquet") as t,
    ):
        frame.to_parquet(t)
    assert list(small_disk.iterdir()) == []


def test_features_that_find_the_disk_full_leave_nothing_but_the_reason(small_disk, tmp_path):
    """In a process of its own: HDF5 may crash one in which it could not write."""
    job = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import numpy as np
from histogep.encoders.feature_file import write_features
from histogep.workflow.job import job_log
from tests.model_study import make_features
made, _ = make_features("S0", np.random.default_rng(0))
with job_log("job.log"):
    write_features(made, {str(small_disk / "S0.h5")!r})
"""
    done = subprocess.run([sys.executable, "-c", job], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert list(small_disk.iterdir()) == []
    assert "the disk is full: make room" in (tmp_path / "job.log").read_text()


def test_a_read_only_disk_says_so(small_disk):
    files.write_json({}, small_disk / "a.json")
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mount(None, bytes(small_disk), None, 32 | 1, None) == 0  # remount, read-only
    with pytest.raises(OSError, match="Read-only file system"):
        files.write_json({"new": 1}, small_disk / "a.json")
    assert files.read_json(small_disk / "a.json") == {}


def test_out_of_memory_leaves_no_file_and_is_in_the_log(tmp_path):
    """The job's own limit, as `ulimit -v` and many schedulers set it."""
    job = f"""
import resource, sys
sys.path.insert(0, {str(ROOT)!r})
import numpy as np
from histogep.files import complete
from histogep.workflow.job import job_log
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
with job_log("job.log"), complete("out.npy") as temporary:
    temporary.write_bytes(b"half")
    np.ones(2**30)
"""
    done = subprocess.run([sys.executable, "-c", job], cwd=tmp_path, stderr=subprocess.DEVNULL)
    assert done.returncode == 1
    assert [path.name for path in tmp_path.iterdir()] == ["job.log"]
    said = (tmp_path / "job.log").read_text()
    assert "MemoryError" in said
    assert "out of memory" in said


# ------------------------------------------------------------------ inputs that change, or lie


@pytest.fixture
def described(tmp_path):
    """A slide, a link to it, and its description."""
    (tmp_path / "store").mkdir()
    slide = tmp_path / "store" / "Schnitt 1 – größer.svs"
    slide.write_bytes(b"pixels of one slide")
    link = tmp_path / "S1.svs"
    link.symlink_to(slide)
    time.sleep(0.02)
    content = {"slide": "S1", "source": str(link), "sha256": source_sha256(link), "bytes": 19}
    files.write_json(content, tmp_path / "S1.json")
    return link, slide, tmp_path / "S1.json"


def refuse(described):
    refuse_replaced(json.loads(described[2].read_text()), described[2])


def test_a_slide_that_stays_is_taken(described, monkeypatch):
    monkeypatch.setattr("histogep.slides.sources.file_sha256", lambda path: pytest.fail("was read"))
    refuse(described)


def test_a_slide_that_is_touched_is_compared_and_taken(described):
    time.sleep(0.02)
    described[1].touch()
    refuse(described)


def replace_in_place(link, slide):
    slide.write_bytes(b"pixels of an other!")


def replace_keeping_its_time(link, slide):
    other = slide.with_suffix(".new")
    other.write_bytes(b"pixels of an other!")
    os.utime(other, ns=(0, slide.stat().st_mtime_ns))
    other.replace(slide)


def point_the_link_elsewhere(link, slide):
    other = slide.with_name("other.svs")
    other.write_bytes(b"pixels of an other!")
    os.utime(other, (0, 0))
    link.unlink()
    link.symlink_to(other)


def cut_it_short(link, slide):
    slide.write_bytes(b"pixels")
    os.utime(slide, (0, 0))


@pytest.mark.parametrize(
    "change",
    [replace_in_place, replace_keeping_its_time, point_the_link_elsewhere, cut_it_short],
)
def test_a_slide_that_is_replaced_during_the_run_is_refused(described, change):
    time.sleep(0.02)
    change(*described[:2])
    with pytest.raises(InputError, match="was replaced while the study ran"):
        refuse(described)


# --------------------------------------------------------------------------- jobs that are stopped


def test_a_job_that_is_told_to_stop_takes_its_half_file_with_it(tmp_path):
    job = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from histogep.files import complete
from histogep.workflow.job import job_log
with job_log("job.log"), complete("out.h5") as temporary:
    temporary.write_bytes(b"half")
    open("ready", "w").close()
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", job], cwd=tmp_path, stderr=subprocess.DEVNULL)
    while not (tmp_path / "ready").exists():
        time.sleep(0.05)
    process.terminate()
    assert process.wait(30) == 143
    assert {path.name for path in tmp_path.iterdir()} == {"job.log", "ready"}
    assert "SIGTERM: the job was cancelled" in (tmp_path / "job.log").read_text()


def test_a_reader_that_dies_while_it_reads_ahead_fails_the_job(tmp_path):
    """Tiles are read by threads ahead of the encoder: an error there must not be lost, or hang."""
    from histogep.encoders.descriptors import DescriptorEncoder
    from histogep.encoders.encode import encode_slide

    class Breaks:
        slide, mpp, width_px, height_px, objective, handle = "S0", 0.5, 9000, 9000, None, None

        def level(self, scale):
            return 0

        def downsample(self, level):
            return 1.0, 1.0

        def region(self, level, left, top, width, height):
            if left > 3000:
                raise MemoryError("the reader died")
            return np.full((height, width, 3), 200, np.uint8)

    n = 100
    tiles = pd.DataFrame({"row": 0, "col": range(n), "x_px": np.arange(n) * 60.0, "y_px": 500.0})
    tiles["barcode"] = ""
    with pytest.raises(MemoryError, match="the reader died"):
        encode_slide(
            Breaks(),
            tiles,
            tmp_path / "S0.h5",
            lattice=Lattice.from_settings(LATTICE),
            encoders=[DescriptorEncoder()],
            batch_size=8,
        )
    assert list(tmp_path.iterdir()) == []
