from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from histogep.files import read_json, read_tsv, write_json, write_tsv
from histogep.models.folds import split_folds
from histogep.models.network import train as training
from histogep.models.network.checkpoints import (
    Checkpoint,
    digest,
    restore_state,
    state_arrays,
    until_sigterm,
)
from histogep.models.network.network import CMUNet
from tests.model_study import GENES, LATTICE, make_study
from tests.models.network.test_train import train

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[3]
SETTINGS = {
    "kind": "cmunet", "task": "expression", "panel": "main", "channels": [8, 8, 12, 12, 16],
    "blocks": 1, "kernel": 3, "epochs": 12, "min_steps": 0, "batch": 1, "lr": 3e-3, "precision": "float32",
}  # fmt: skip
#: Runs the script as Snakemake does; at a given step it says so and waits for the signal.
DRIVER = """
import runpy, sys, time
from pathlib import Path
from types import SimpleNamespace
import json

sys.path.insert(0, {root!r})
from histogep.models.network import train as training
from tests.conftest import Items

job = json.loads(Path(sys.argv[1]).read_text())
marker, steps, assemble = Path(sys.argv[2]), [], training.assemble

def watched(*arguments):
    steps.append(1)
    if len(steps) == int(sys.argv[3]):
        marker.touch()
        time.sleep(2)
    return assemble(*arguments)

training.assemble = watched
names = ("input", "output", "params", "wildcards")
snakemake = SimpleNamespace(
    **{{name: Items(**job[name]) for name in names}}, resources={{}}, threads=1, rule="train_model",
    log=Items(job=job["log"], epochs=job["log"] + ".epochs.tsv"),
)
runpy.run_path({script!r}, {{"snakemake": snakemake}}, "__main__")
Path(sys.argv[2] + ".steps").write_text(str(len(steps)))
""".format(root=str(ROOT), script=str(ROOT / "workflow_scripts" / "train_model.py"))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("study"), patients=("P", "Q", "Q", "R"))


class Job:
    """One train_model job in processes of its own."""

    def __init__(self, study, folder, *, settings=SETTINGS, validation=1):
        folds = {"patient_cv": "patient", "published": "section", "validation": validation}
        table = split_folds(study.slides, study.patients, settings=folds, seed=1)
        folder.mkdir(exist_ok=True)
        write_tsv(table, folder / "folds.tsv")
        write_tsv(
            pd.DataFrame({"gene": GENES, "main": True, "extended": True}), folder / "panel.tsv"
        )
        self.folder, self.out = folder, folder / "model"
        self.out.mkdir(exist_ok=True)
        suffixes = {"weights": "safetensors", "settings": "json", "history": "tsv"}
        self.output = {name: str(self.out / f"{name}.{s}") for name, s in suffixes.items()}
        files = {kind: [str(path) for path in paths] for kind, paths in study.files.items()}
        tables = {name: str(folder / f"{name}.tsv") for name in ("folds", "panel")}
        self.content = {
            "input": files | tables,
            "output": self.output,
            "params": {
                "code": "0", "models": {"cmunet": settings}, "lattice": LATTICE, "published_grid": [32, 32],
                "seed": 3,
            },
            "wildcards": {"model": "cmunet", "fold": "patient_cv-1"},
            "log": str(folder / "job.log"),
        }  # fmt: skip

    def run(self, *, stop_at=0):
        """Run the job, sending SIGTERM at a step; return its status and how many steps it made."""
        write_json(self.content, self.folder / "given.json")
        marker = self.folder / "reached"
        marker.unlink(missing_ok=True)
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                DRIVER,
                str(self.folder / "given.json"),
                str(marker),
                str(stop_at),
            ],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        while stop_at and process.poll() is None and not marker.exists():
            time.sleep(0.01)
        if stop_at:
            process.send_signal(signal.SIGTERM)
        errors = process.communicate(timeout=300)[1]
        steps = Path(f"{marker}.steps")
        if process.returncode == 0:
            return 0, int(steps.read_text())
        assert "SystemExit" not in errors
        return process.returncode, None

    @property
    def checkpoints(self):
        return sorted(self.out.glob("checkpoints/*"))

    def files(self):
        return {name: Path(path).read_bytes() for name, path in self.output.items()}

    def log(self):
        return (self.folder / "job.log").read_text()


@pytest.mark.parametrize("inner_folds", [False, True])
def test_a_terminated_training_goes_on_and_ends_with_the_same_weights(study, tmp_path, inner_folds):
    # Without validation patient, two inner trainings come before the one that is kept.
    options = {"validation": 0 if inner_folds else 1}
    whole = Job(study, tmp_path / "whole", **options)
    status, all_steps = whole.run()
    assert status == 0
    job = Job(study, tmp_path / "stopped", **options)
    stop_at = 12 * 2 + 2 if inner_folds else 7
    status, _ = job.run(stop_at=stop_at)
    assert status == 128 + signal.SIGTERM
    assert not any(Path(path).exists() for path in job.output.values())
    assert len(job.checkpoints) == (2 if inner_folds else 1)
    assert "SIGTERM" in job.log()
    status, steps = job.run()
    assert status == 0
    assert "resumed in epoch" in job.log()
    assert steps == all_steps - stop_at
    assert job.files() == whole.files()
    assert not (job.out / "checkpoints").exists()
    history = read_tsv(job.output["history"])
    assert len(history) >= read_json(job.output["settings"])["best_epoch"]
    epochs = read_tsv(f"{job.content['log']}.epochs.tsv")
    assert list(epochs) == [*history, "seconds"]
    assert epochs[list(history)].equals(history)
    assert (epochs["seconds"] > 0).all()


def test_a_state_of_other_settings_is_not_used(study, tmp_path):
    job = Job(study, tmp_path / "job")
    assert job.run(stop_at=7)[0] == 143
    changed = SETTINGS | {"lr": 1e-3}
    job = Job(study, tmp_path / "job", settings=changed)
    assert job.run()[0] == 0
    assert "training starts from the beginning" in job.log()
    assert not (job.out / "checkpoints").exists()
    fresh = Job(study, tmp_path / "fresh", settings=changed)
    fresh.run()
    assert job.files() == fresh.files()


def stopped_after(monkeypatch, n_steps, **options):
    """Train and send this process SIGTERM at a step."""
    assemble, steps = training.assemble, []

    def watched(*arguments):
        steps.append(1)
        if len(steps) == n_steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return assemble(*arguments)

    monkeypatch.setattr(training, "assemble", watched)
    try:
        return train(**options), steps
    finally:
        monkeypatch.setattr(training, "assemble", assemble)


def same(first, second):
    pairs = zip(
        first.network.state_dict().values(), second.network.state_dict().values(), strict=True
    )
    return all(torch.equal(a, b) for a, b in pairs) and first.history.equals(second.history)


@pytest.mark.parametrize("step", [1, 2, 3, 24])
def test_any_step_will_do_and_a_finished_training_is_not_done_again(tmp_path, monkeypatch, step):
    expected = train()
    with pytest.raises(SystemExit, match="143"):
        stopped_after(monkeypatch, step, checkpoint=Checkpoint(tmp_path, identity="a"))
    kept = Checkpoint(tmp_path, identity="a").load()[1]
    resumed, steps = stopped_after(monkeypatch, 0, checkpoint=Checkpoint(tmp_path, identity="a"))
    assert len(steps) == 24 - step
    # Seconds before the stop still count, those of an epoch cut in two as well.
    done = len(kept["rows"])
    assert done == (step // 2 if step < 24 else 12)
    assert resumed.seconds[:done] == kept["seconds"]
    assert (kept["spent"] > 0) == (step % 2 == 1)
    assert all(seconds > kept["spent"] for seconds in resumed.seconds[done : done + 1])
    assert len(resumed.seconds) == len(resumed.history) == 12
    assert same(resumed, expected)
    assert (resumed.best_epoch, resumed.score) == (expected.best_epoch, expected.score)
    again, steps = stopped_after(monkeypatch, 0, checkpoint=Checkpoint(tmp_path, identity="a"))
    assert not steps
    assert same(again, expected)


def test_states_are_written_now_and_then_without_a_signal(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr("histogep.models.network.checkpoints.SAVE_SECONDS", 0.0)
    monkeypatch.setattr(Checkpoint, "save", lambda self, arrays, record: written.append(record))
    train(checkpoint=Checkpoint(tmp_path, identity="a"))
    assert [record["epoch"] for record in written] == list(range(2, 14))
    assert [record["finished"] for record in written] == [False] * 11 + [True]


def test_a_damaged_file_is_passed_over(tmp_path, monkeypatch, caplog):
    kept = Checkpoint(tmp_path, identity="a")
    with pytest.raises(SystemExit):
        stopped_after(monkeypatch, 5, checkpoint=kept)
    content = kept.path.read_bytes()
    kept.path.write_bytes(content[: len(content) // 2])
    trained, steps = stopped_after(monkeypatch, 0, checkpoint=kept)
    assert len(steps) == 24
    assert "training starts from the beginning" in caplog.text
    assert same(trained, train())


def test_nothing_of_a_killed_write_is_taken_for_a_state(tmp_path, monkeypatch):
    kept = Checkpoint(tmp_path, identity="a")
    kept.save({"x": torch.ones(2)}, {"n": 1})

    def dies(arrays, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("histogep.models.network.checkpoints.save_file", dies)
    with pytest.raises(OSError, match="disk full"):
        kept.save({"x": torch.zeros(2)}, {"n": 2})
    arrays, record = kept.load()
    assert record == {"n": 1}
    assert torch.equal(arrays["x"], torch.ones(2))
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("fused", [False, True])
def test_moments_lie_in_memory_as_their_parameters(fused):
    """Fused kernels read a parameter and its moments side by side, as they lie."""
    torch.manual_seed(0)
    network = CMUNet(3, 2, channels=[4] * 5, blocks=1, kernel=3)
    network = network.to(memory_format=torch.channels_last)
    twin = copy.deepcopy(network)
    first, second = (torch.optim.Adam(n.parameters(), lr=0.1, fused=fused) for n in (network, twin))
    grid = torch.randn(2, 3, 32, 32)
    network(grid).square().mean().backward()
    first.step()
    arrays = {k: t.contiguous().clone() for k, t in state_arrays(network, first, None).items()}
    assert restore_state(arrays, twin, second) is None
    for mine, theirs in zip(network.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        for name in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(first.state[mine][name], second.state[theirs][name])
            assert second.state[theirs][name].stride() == theirs.stride()
        assert second.state[theirs]["step"] == 1
    for n, optimiser in ((network, first), (twin, second)):
        optimiser.zero_grad()
        n(grid).square().mean().backward()
        optimiser.step()
    for mine, theirs in zip(network.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_digest_sees_values_types_and_shapes():
    array = np.arange(6, dtype=np.float32)
    different = [
        array, array.reshape(2, 3), array.astype(np.float64), array[::-1], {"a": 1}, {"a": 2}, "ab",
        ["a", "b"], np.array(["ab"], object),
    ]  # fmt: skip
    assert len({digest(part) for part in different}) == len(different)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest("a", "b") != digest("ab")


def test_the_signal_has_its_effect_again_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    with until_sigterm() as stopped:
        assert not stopped()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopped()
    assert signal.getsignal(signal.SIGTERM) == before
