"""Faults injected into jobs that Snakemake runs on a small study: `make fault-test`.

The study is finished once as far as the predictions of a fold. Each test takes a result away, has it
made again, and disturbs that.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from histogep.deployment.folder import FORMAT, folder_digest
from histogep.files import read_tsv
from tests.slurm_cluster import wait_for
from tests.small_study import LONGEST, Call, Study

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(
        not os.environ.get("HISTOGEP_FAULT_TESTS"), reason="HISTOGEP_FAULT_TESTS is not set"
    ),
]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return Study(tmp_path_factory.mktemp("faults") / "small")


@pytest.fixture
def study(small):
    """The study with all results that a test may take away, whatever the test before has left."""
    wanted = [*targets(small).values(), "results/features/H01-1.h5"]
    small.settle()
    if not all((small.folder / name).exists() for name in wanted):
        small.finish("--unlock")
        small.finish(*wanted)
    return small


def targets(study: Study) -> dict[str, str]:
    fold = f"{study.name}/patient_cv-1"
    return {
        "encode_tiles": "results/features/P01-1.h5",
        "train_model": f"results/models/{fold}/cmunet/weights.safetensors",
        "predict_fold": f"results/predictions/{fold}/ridge.h5ad",
    }


def script_processes(study: Study, rule: str) -> list[int]:
    """Return the processes that run the script of a rule, one for each job."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            told = path.read_bytes().split(b"\0")
            if any(word.endswith(f".{rule}.py".encode()) for word in told):
                pid = int(path.parent.name)
                folder = Path(os.readlink(f"/proc/{pid}/cwd"))
                stat = path.with_name("stat").read_text()
            else:
                continue
        except OSError:
            continue
        if folder == study.folder.resolve():
            found[pid] = int(stat.rpartition(")")[2].split()[1])
    # A child that is about to become another program still has the command line of its parent.
    return [pid for pid, parent in found.items() if parent not in found]


def during(study: Study, call: Call, rule: str) -> int:
    """Wait until the script of a rule works, which its log tells; return its process."""

    def working():
        assert call.process.poll() is None, call.said[-3000:]
        pids = script_processes(study, rule)
        begun = any(map(written, study.folder.glob(f"logs/{rule}/**/*.log")))
        return pids[0] if pids and begun else None

    def written(log):
        # Snakemake takes the log of an earlier attempt away at any moment.
        with contextlib.suppress(FileNotFoundError):
            return log.stat().st_mtime > call.began

    # On an idle machine a job works for less than a second.
    return wait_for(working, seconds=LONGEST, what=rule, every=0.01)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
@pytest.mark.parametrize("rule", ["encode_tiles", "train_model", "predict_fold"])
def test_a_killed_job_leaves_no_result_and_is_made_again_alike(study, rule, how):
    target = study.folder / targets(study)[rule]
    whole = target.read_bytes()
    target.unlink()
    # What SIGKILL has left, in the test before, stays.
    left = set(target.parent.glob(".*"))
    call = study.start(targets(study)[rule])
    os.kill(during(study, call, rule), how)
    assert call.wait() == 1
    assert not target.exists()
    assert f"Error in rule {rule}" in call.said
    if how == signal.SIGTERM:
        assert "SIGTERM" in call.said
        assert set(target.parent.glob(".*")) == left
    study.finish(targets(study)[rule])
    assert target.read_bytes() == whole


@pytest.mark.parametrize(("gpus", "most"), [(1, 1), (0, 3)])
def test_one_gpu_is_never_used_by_two_jobs(study, gpus, most):
    """With `--resources gpu=1` whatever the number of cores; without GPU jobs share nothing."""
    features = [f"results/features/{name}.h5" for name in ("H01-1", "P01-1", "P02-1")]
    for name in features:
        (study.folder / name).unlink()
    call = study.start(*features, "--cores", "3", "--resources", f"gpu={gpus}")
    at_once = 0
    while call.process.poll() is None:
        at_once = max(at_once, len(script_processes(study, "encode_tiles")))
        time.sleep(0.05)
    assert call.wait() == 0, call.said[-3000:]
    assert 1 <= at_once <= most


def test_a_second_snakemake_on_the_same_results_is_turned_away(study):
    target = targets(study)["encode_tiles"]
    (study.folder / target).unlink()
    first = study.start(target)
    pid = during(study, first, "encode_tiles")
    os.kill(pid, signal.SIGSTOP)
    try:
        second = study.start(target)
        assert second.wait() == 1
        assert "LockException" in second.said or "locked" in second.said
    finally:
        os.kill(pid, signal.SIGCONT)
    assert first.wait() == 0, first.said[-3000:]


def test_the_lock_of_a_dead_snakemake_is_named_and_taken_away(study):
    target = targets(study)["encode_tiles"]
    (study.folder / target).unlink()
    first = study.start(target)
    pid = during(study, first, "encode_tiles")
    first.process.kill()
    first.process.wait()
    os.kill(pid, signal.SIGKILL)
    again = study.start(target)
    assert again.wait() == 1
    assert "--unlock" in again.said
    study.finish("--unlock")
    study.finish(target)


@pytest.fixture
def mounted():
    """Return a function that mounts a small file system on a folder, or skip."""
    libc = ctypes.CDLL(None, use_errno=True)
    folders = []

    def mount(folder: Path, options: bytes, flags: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if os.geteuid() or libc.mount(b"tmpfs", bytes(folder), b"tmpfs", flags, options):
            pytest.skip("mounting a small file system needs root")
        folders.append(folder)

    yield mount
    for folder in folders:
        libc.umount2(bytes(folder), 2)


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_disk_that_takes_no_more_is_named_and_costs_nothing_else(study, mounted, fault):
    folder = study.folder / "results/features"
    kept = folder.with_name("features-kept")
    before = study.results()
    folder.rename(kept)
    try:
        mounted(folder, b"size=20k", 1 if fault == "read-only" else 0)
        call = study.start("results/features/H01-1.h5")
        assert call.wait() == 1
        assert ("disk is full" if fault == "full" else "Read-only file system") in call.said
        assert not list(folder.iterdir())
    finally:
        ctypes.CDLL(None).umount2(bytes(folder), 2)
        folder.rmdir()
        kept.rename(folder)
    study.finish("results/features/H01-1.h5")
    assert study.results() == before


def test_out_of_memory_says_so(study):
    """The limit of the shell, which schedulers without a better one set."""
    target = targets(study)["train_model"]
    whole = (study.folder / target).read_bytes()
    (study.folder / target).unlink()
    call = study.start(target)
    pid = during(study, call, "train_model")
    used = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    subprocess.run(["prlimit", "--pid", str(pid), f"--as={used}"], check=True)
    assert call.wait() == 1
    assert "out of memory" in call.said
    study.finish(target)
    assert (study.folder / target).read_bytes() == whole


def test_a_truncated_result_of_an_earlier_run_is_named(study):
    """Snakemake itself takes it for a good one: its name and its time are right."""
    roles = read_tsv(study.folder / f"results/folds/{study.name}.tsv")
    slide = roles.query("fold == 'patient_cv-1' and role == 'train'")["slide"].iloc[0]
    path = study.folder / f"results/features/{slide}.h5"
    whole, times = path.read_bytes(), path.stat()
    path.write_bytes(whole[: len(whole) // 2])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    target = study.folder / targets(study)["train_model"]
    target.unlink()
    call = study.start(targets(study)["train_model"])
    assert call.wait() == 1
    assert f"results/features/{slide}.h5 cannot be read as features" in call.said
    assert "delete it" in call.said
    path.unlink()
    study.finish(targets(study)["train_model"])
    assert path.read_bytes() == whole


@pytest.fixture
def own(study, tmp_path):
    """A study of one's own: a slide behind a link, on paths with spaces and letters of all kinds."""
    folder = tmp_path / "mein Ordner – 数据"
    store = tmp_path / "Ablage ü"
    folder.mkdir()
    store.mkdir()
    shutil.copy(study.folder / "data/simulated/H01-1.tiff", store / "Schnitt 1 é.tiff")
    (folder / "Glas 1.tiff").symlink_to(store / "Schnitt 1 é.tiff")
    model = folder / "model"
    model.mkdir()
    lattice = {"kind": "visium", "pitch_um": 100, "tile_um": 112}
    encoders = [{"name": "descriptors", "sha256": "", "precision": "float32"}]
    settings = {"format": FORMAT, "lattice": lattice, "encoders": encoders, "models": {}}
    settings["digest"] = folder_digest(model, settings)
    (model / "settings.json").write_text(json.dumps(settings))
    (folder / "slides.tsv").write_text("slide\tpatient\tcohort\timage\nS1\tp1\tc\tGlas 1.tiff\n")
    (folder / "study.yaml").write_text(
        "study: own\nslides: slides.tsv\nmodel: model\nencoders: [{name: descriptors}]\n"
    )
    made = Study.__new__(Study)
    made.folder, made.profile, made.calls, made.name = folder, None, 0, "own"
    made.started = []
    (folder / "config.yaml").symlink_to("study.yaml")
    return made


def test_paths_with_spaces_links_and_unicode(own):
    own.finish("results/features/S1.h5")
    assert "Nothing to be done" in own.finish("results/features/S1.h5", "--dry-run").said
    # What stands behind the link counts.
    os.utime(own.folder / "Glas 1.tiff")
    assert "prepare_slide" in own.finish("results/features/S1.h5", "--dry-run").said


def test_a_slide_that_is_replaced_during_the_run_stops_it(own):
    own.finish("results/slides/S1.json")
    image = (own.folder / "Glas 1.tiff").resolve()
    call = own.start("results/features/S1.h5")
    # After Snakemake has compared the times, before the next rule reads the slide.
    wait_for(lambda: "Select jobs to execute" in call.said, seconds=LONGEST, what="a plan")
    other = image.with_name("other.tiff")
    content = bytearray(image.read_bytes())
    content[len(content) // 2] ^= 0xFF
    other.write_bytes(content)
    os.utime(other, ns=(0, image.stat().st_mtime_ns))
    other.replace(image)
    assert call.wait() == 1
    assert "was replaced while the study ran" in call.said


def test_a_clock_that_is_ahead_makes_nothing_twice_for_ever(own):
    """A file server an hour ahead: the slide is younger than anything made of it."""
    image = (own.folder / "Glas 1.tiff").resolve()
    os.utime(image, (time.time() + 3600, time.time() + 3600))
    own.finish("results/tiles/S1.parquet")
    again = own.finish("results/tiles/S1.parquet", "--dry-run").said
    assert "Nothing to be done" in again or "Updated input files: " in again


def test_the_chain_runs_without_a_network(own):
    unshare = shutil.which("unshare")
    if not unshare or subprocess.run([unshare, "--net", "true"], capture_output=True).returncode:
        pytest.skip("a namespace without network needs unshare and the right to use it")
    call = own.start("results/features/S1.h5", wrapper=[unshare, "--net"])
    assert call.wait() == 0, call.said[-3000:]
    assert (own.folder / "results/features/S1.h5").stat().st_size > 0
