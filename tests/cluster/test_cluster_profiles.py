"""Profiles that no test runs without a cluster: their rules exist, and they lose nothing of the default."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from snakemake.settings.types import MaxJobsPerTimespan, SchedulingSettings

from tests.small_study import PLUGINS

ROOT = Path(__file__).resolve().parents[2]
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
    # A group runs on one partition, so what shares a job with a network goes there too.
    groups = settings.get("groups", {})
    grouped = {rule for rule in groups if groups[rule] in {groups.get(name) for name in GPU_RULES}}
    assert on_gpus == GPU_RULES | grouped
    assert set(groups) <= set(RULES)
    assert set(settings.get("group-components", {})) == set(groups.values())
    # Memory is the rules' own affair.
    assert not any("mem_mb" in wanted for wanted in settings["set-resources"].values())
    default = profile("default")
    assert {key: settings[key] for key in default} == default
    # Software is the user's choice: conda is not there on every cluster.
    assert "software-deployment-method" not in settings


def test_a_second_attempt_gets_twice_of_what_a_rule_asks_for():
    """Of memory and time, which every rule asks for that is a cluster's job."""
    constraint = profile("slurm")["resources"]["mem_mb"]
    checked = 0
    for rule, body in RULES.items():
        for name in ("mem_mb", "runtime"):
            asked = re.search(rf"(?m)^ +{name}=lambda ([\w, ]+): (.+|\((?s:.+?)\n +\)),$", body)
            assert asked or "localrule: True" in body, f"{rule} asks for no {name}"
            if not asked:
                continue
            given = {"input": SimpleNamespace(size_mb=100, slides=["S1", "S2"])}
            first, second = (eval(asked[2], given | {"attempt": n}) for n in (1, 2))
            assert second == 2 * first > 0, (rule, name)
            assert name != "mem_mb" or second <= constraint, (
                f"{rule}: more than profiles/slurm gives"
            )
            checked += 1
    assert checked > 50


def test_no_group_waits_for_itself():
    """Groups are merged: what the training of a model stands between may not be in one."""
    groups = profile("slurm")["groups"]
    before = {"prepare_slide", "align_spots", "tile_slide", "encode_tiles"}
    assert {rule for rule, group in groups.items() if group == "slide"} == before
    assert {rule for rule, group in groups.items() if group == "prediction"} == {"predict_slide"}
    # Of a slide it needs compare_cnv, which needs that of the sections.
    assert "infer_cnv" not in groups


def test_short_jobs_stay_where_snakemake_runs():
    local = {rule for rule, body in RULES.items() if "localrule: True" in body}
    assert {"copy_resource", "record_software", "record_configuration", "check_slides"} <= local
    assert not local & (GPU_RULES | set(profile("slurm")["groups"]))
    assert not any("threads:" in RULES[rule] or "gpu=" in RULES[rule] for rule in local)


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


def lift_job_rate(function, settings):
    names = {"workflow": SimpleNamespace(scheduling_settings=settings)}
    exec(function, names)
    names["lift_job_rate"]()


def test_the_default_rate_limit_goes_and_one_that_the_user_chose_stays():
    """As Snakemake reads it: a workflow has its settings before its Snakefile is read."""
    text = (ROOT / "rules/common.smk").read_text()
    (function,) = re.findall(r"(?m)^def lift_job_rate\(\):\n(?: .*\n|\n)+", text)
    for given, left in (("100/1s", None), ("5/1s", (5, 1)), ("100/1m", (100, 60))):
        limit = MaxJobsPerTimespan.parse_choice(given)
        settings = SchedulingSettings(max_jobs_per_timespan=limit)
        lift_job_rate(function, settings)
        kept = settings.max_jobs_per_timespan
        assert (kept and (kept.max_jobs, kept.timespan)) == left
    lift_job_rate(function, None)


def test_the_plugins_are_found_by_jobs_that_run_elsewhere():
    """A job on a node runs in the folder of the results: a relative path leads nowhere there."""
    recipe = (ROOT / "Makefile").read_text().split("\n$(CLUSTER):")[1].split("\n\n")[0]
    (folder,) = re.findall(r"--target (\S+)", recipe)
    assert PLUGINS.is_absolute()
    assert ROOT / folder == PLUGINS
