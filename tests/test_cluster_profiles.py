"""Profiles that no test runs without a cluster: their rules exist, and they lose nothing of the default."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import yaml

from histogep.clusters import drop_timers, mend_at_start, remember_job_age
from tests.small_study import PLUGINS

ROOT = Path(__file__).resolve().parents[1]
RULES = {
    name: body
    for path in ROOT.glob("rules/*.smk")
    for name, body in re.findall(
        r"^(?:rule|checkpoint) (\w+):\n(.*?)(?=^\S|\Z)", path.read_text(), re.MULTILINE | re.DOTALL
    )
}
GPU_RULES = {name for name, body in RULES.items() if "gpu=1" in body}


@cache
def profile(name):
    return yaml.safe_load((ROOT / f"profiles/{name}/profile.yaml").read_text())


def test_the_guide_names_the_rules_that_ask_for_a_gpu():
    text = (ROOT / "docs/cluster.md").read_text()
    named = re.search(r"## GPUs\n\n(.*?) ask for `gpu=1`", text, re.DOTALL)[1]
    assert set(re.findall(r"`(\w+)`", named)) == GPU_RULES


@pytest.mark.parametrize("name", ["slurm", "cluster-generic"])
def test_a_profile_names_rules_that_are_there_and_sends_gpu_rules_to_gpus(name):
    settings = profile(name)
    assert len(GPU_RULES) == 5
    for key in ("set-resources", "set-threads"):
        assert set(settings[key]) <= set(RULES), key
    on_gpus = {
        rule
        for rule, wanted in settings["set-resources"].items()
        if "gpu" in str(wanted.get("slurm_partition", wanted.get("partition", "")))
    }
    assert on_gpus == GPU_RULES
    default = profile("default")
    assert {key: settings[key] for key in default} == default
    # Software is the user's choice: conda is not there on every cluster.
    assert "software-deployment-method" not in settings


def test_a_second_attempt_gets_more_than_the_rule_asks_for():
    """Of memory and time, for every rule that asks for some; the first attempt gets no less."""
    # What a rule asks for itself wins over default-resources, so each has to be named.
    wanted = profile("slurm")["set-resources"]
    for rule, body in RULES.items():
        for name, asked in re.findall(r"^\s+(mem_mb|runtime)=(\d+),$", body, re.MULTILINE):
            assert rule in wanted, f"profiles/slurm: {rule} gets no more at a second attempt"
            first, second = (eval(wanted[rule][name], {"attempt": n}) for n in (1, 2))
            assert first >= int(asked), (rule, name)
            assert second == 2 * first, (rule, name)


def test_the_plugins_are_an_extra():
    """With the SLURM plugin and a slurm.conf every start of Snakemake takes seconds longer."""
    for name in ("requirements.txt", "requirements-dev.txt"):
        assert "executor-plugin" not in (ROOT / name).read_text()
    pinned = (ROOT / "constraints.txt").read_text()
    for name in ("slurm", "slurm-jobstep", "cluster-generic"):
        assert f"snakemake-executor-plugin-{name}==" in pinned


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ("COMPLETED", "success"),
        ("TIMEOUT", "failed"),
        ("OUT_OF_MEMORY", "failed"),
        ("PENDING", "running"),
        ("slurm_load_jobs error: Invalid job id specified", "failed"),
        ("slurm_load_jobs error: Unable to contact slurm controller", "running"),
        ("", "running"),
    ],
)
def test_the_status_of_a_job_while_the_controller_is_away_is_running(tmp_path, answer, status):
    squeue = tmp_path / "squeue"
    squeue.write_text(f"#!/bin/sh\necho '{answer}'\n")
    squeue.chmod(0o755)
    done = subprocess.run(
        [ROOT / "profiles/cluster-generic/status.sh", "7"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [status]


def test_the_slurm_executor_stays_with_squeue_while_the_controller_is_away():
    plugin = ModuleType("snakemake_executor_plugin_slurm")
    answers = iter([300, None, None, 600, None])
    plugin.get_min_job_age = lambda: next(answers)
    remember_job_age(plugin)
    assert [plugin.get_min_job_age() for _ in range(4)] == [300, 300, 600, 600]


def test_other_executors_are_left_alone():
    remember_job_age(None)
    plugin = ModuleType("another")
    remember_job_age(plugin)
    assert not hasattr(plugin, "get_min_job_age")


def test_a_rate_limit_that_the_user_chose_stays():
    for chosen, left in (((100, 1), False), ((5, 1), True)):
        limiter = SimpleNamespace(max_jobs=chosen[0], timespan=chosen[1])
        scheduler = SimpleNamespace(job_rate_limiter=limiter)
        drop_timers(scheduler)
        assert (scheduler.job_rate_limiter is limiter) == left
    drop_timers(SimpleNamespace())  # of another version, without a limiter


def test_a_mend_that_fails_does_not_stop_the_run(capsys):
    """A plugin whose question raises, and a limiter of another shape; the other mend is made."""

    def no_scontrol():
        raise FileNotFoundError("scontrol")

    plugin = ModuleType("snakemake_executor_plugin_slurm")
    plugin.get_min_job_age = no_scontrol
    scheduler = SimpleNamespace(job_rate_limiter=SimpleNamespace(max_jobs=100, timespan=1))
    mend_at_start(scheduler, plugin)
    assert scheduler.job_rate_limiter is None
    assert plugin.get_min_job_age is no_scontrol
    said = capsys.readouterr().err
    assert said == "The run goes on without remember_job_age (FileNotFoundError: scontrol)\n"

    plugin.get_min_job_age = lambda: 300
    mend_at_start(SimpleNamespace(job_rate_limiter=object()), plugin)
    assert "without drop_timers (AttributeError" in capsys.readouterr().err
    assert plugin.get_min_job_age.__name__ == "last_answer"


def test_the_workflow_starts_with_the_guarded_mends_only():
    start = (ROOT / "Snakefile").read_text().split("onstart:\n")[1].split("\n\n\n")[0]
    assert re.findall(r"clusters\.(\w+)", start) == ["mend_at_start"]


def test_the_plugins_are_found_by_jobs_that_run_elsewhere():
    """A job on a node runs in the folder of the results: a relative path leads nowhere there."""
    recipe = (ROOT / "Makefile").read_text().split("\n$(CLUSTER):")[1].split("\n\n")[0]
    (folder,) = re.findall(r"--target (\S+)", recipe)
    assert PLUGINS.is_absolute()
    assert ROOT / folder == PLUGINS
