"""A small study on a real SLURM, through what goes wrong on clusters: `make cluster-test`.

Off unless HISTOGEP_CLUSTER_TESTS is `all`; then root, Debian's SLURM packages and the executor plugins
are needed. The tests move one study on, each a part of the chain, so they run in this order. What
they did is written to HISTOGEP_CLUSTER_LOG (a TSV), if that is set.
"""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from histogep.files import read_tsv
from tests.slurm_cluster import MARKS, record, run, started, started_cluster, wait_for
from tests.small_study import LONGEST, REPOSITORY, Study, has_plugin

pytestmark = MARKS


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with started_cluster(tmp_path_factory.mktemp("slurm")) as made:
        yield made


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return Study(tmp_path_factory.mktemp("cluster") / "small", profile="profiles/slurm")


def test_a_controller_that_crashes_loses_no_result(cluster, study):
    """Its jobs end; where the executor has forgotten them, what docs/cluster.md says goes on."""
    call = study.start(*(f"results/spots/{slide}.h5ad" for slide in ("P01-1", "P02-1")))
    # A controller that dies within its saving interval of 5 s forgets the start of a job, and a step
    # that starts while it is away fails (and is sent again): so wait until the scripts run.
    logs = [study.folder / f"logs/simulate_section/{slide}.log" for slide in ("P01-1", "P02-1")]
    wait_for(
        lambda: all(log.exists() for log in logs), seconds=LONGEST, what="two scripts that run"
    )
    running = list(cluster.jobs("RUNNING"))
    assert running
    cluster.kill_controller()
    time.sleep(25)
    cluster.start_controller()
    made = [study.folder / f"data/simulated/{slide}/truth.tsv" for slide in ("P01-1", "P02-1")]
    wait_for(lambda: all(file.exists() for file in made), seconds=LONGEST, what="both sections")
    time.sleep(60)  # three looks of Snakemake at its jobs
    forgotten = not cluster.jobs("RUNNING", "PENDING") and call.process.poll() is None
    if forgotten:
        call.process.send_signal(signal.SIGKILL)
        call.process.wait()
        study.finish("--unlock")
        call = study.start(*(f"results/spots/{slide}.h5ad" for slide in ("P01-1", "P02-1")))
    assert call.wait() == 0, call.said[-6000:]
    how = "forgotten, started again" if forgotten else "none run twice"
    record("slurmctld killed with -9, away for 25 s", running, f"jobs ended well, {how}")


def test_a_job_over_its_memory_says_so_and_gets_more(cluster, study):
    call = study.finish(
        "results/features/H01-1.h5",
        "--set-resources",
        "encode_tiles:mem_mb=400 * attempt ** 3",
        "encode_tiles:slurm_partition=gpu",
    )
    first, second = call.jobs("encode_tiles")
    assert "exceeded memory limit" in study.slurm_log(first)
    assert "Trying to restart job" in call.said
    assert cluster.job(second)["JobState"] == "COMPLETED"
    assert cluster.job(second)["MinMemoryNode"] == "3200M"
    # A rule that asks for a GPU holds one, in the partition that has them.
    assert cluster.job(second)["TresPerJob"].startswith("gres:gpu")
    assert cluster.job(second)["Partition"] == "gpu"
    record("encode_tiles over its memory", [first, second], "killed and named; 8 x memory, done")


def test_a_drained_node_finishes_its_jobs_and_gets_no_more(cluster, study):
    call = study.start(f"results/genes/{study.name}/all.tsv")
    job = started(cluster, call, "rule_score_genes")
    node = cluster.job(job)["NodeList"]
    run("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")
    try:
        assert call.wait() == 0, call.said[-6000:]
    finally:
        run("scontrol", "update", f"NodeName={node}", "State=RESUME")
    assert cluster.job(job)["JobState"] == "COMPLETED"
    later = call.jobs("select_genes")
    assert {cluster.job(name)["NodeList"] for name in later} == {*cluster.nodes} - {node}
    record(
        "a node drained", [job, *later], "its jobs ended well, later ones went to the other node"
    )


def test_a_job_over_its_time_says_so_and_gets_more(cluster, study):
    call = study.start(
        f"results/models/{study.name}/patient_cv-1/ridge/weights.safetensors",
        "--set-resources",
        "train_model:runtime=1 + 20 * (attempt - 1)",
        "train_model:slurm_partition=gpu",
    )
    first = started(cluster, call, "rule_train_model")
    for pid in cluster.pids(first):
        if b"python" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGSTOP)  # It hangs, as on a file system that is away.
    assert call.wait() == 0, call.said[-6000:]
    first, second = call.jobs("train_model")
    assert cluster.job(first)["JobState"] == "TIMEOUT"
    assert "DUE TO TIME LIMIT" in study.slurm_log(first)
    assert cluster.job(second)["JobState"] == "COMPLETED"
    record("train_model hangs over its time", [first, second], "TIMEOUT and named; more time, done")


def test_a_killed_snakemake_is_started_again_and_computes_nothing_twice(cluster, study):
    call = study.start()
    predicted = f"results/predictions/{study.name}/*/*.h5ad"
    wait_for(
        lambda: len(list(study.folder.glob(predicted))) >= 2 or call.process.poll() is not None,
        seconds=LONGEST,
        what="two predictions",
    )
    call.process.send_signal(signal.SIGKILL)
    call.process.wait()
    # The jobs go on without it, and would be a second writer of what is started again.
    run("scancel", "--name", call.run_id)
    wait_for(lambda: not cluster.jobs("RUNNING", "COMPLETING"), seconds=60, what="no job")
    before = study.results()

    assert study.start().wait() == 1  # the lock of the dead call stands
    study.finish("--unlock")
    again = study.finish()
    after = study.results()
    written_at_the_end_of_each_run = "results/provenance/lineage.tsv"
    before.pop(written_at_the_end_of_each_run, None)
    rewritten = [name for name, when in before.items() if after[name] != when]
    # A job may have written its result when the end was no longer noticed.
    made_by = read_tsv(study.folder / written_at_the_end_of_each_run).set_index("file")["rule"]
    for name in rewritten:
        own = {*Path(name).parts, Path(name).stem}
        assert any(
            rule == made_by[name] and own.issuperset(filter(None, wildcards.split("_")))
            for rule, _, wildcards in (job.partition("/") for job in call.unfinished())
        ), (name, call.unfinished())
    assert not list(study.folder.glob("results/**/.*.*"))
    scorecards = study.folder / f"results/evaluation/{study.name}/scorecards.tsv"
    assert scorecards.stat().st_size > 0
    assert (study.folder / "results/expression/H01-1.h5ad").is_file()
    assert "Nothing to be done" in study.finish("--dry-run", profile=None).said
    record(
        "snakemake killed with -9, jobs cancelled, started again",
        f"{call.jobs()[0]} to {again.jobs()[-1]}",
        f"{len(before) - len(rewritten)} results of {len(before)} kept as they were; ran to the end",
    )


def test_per_slide_rules_go_as_job_arrays(cluster, study):
    for name in ("H01-1", "P01-1", "P02-1"):
        (study.folder / f"results/slides/{name}.json").unlink(missing_ok=True)
    call = study.finish(
        *(f"results/slides/{name}.json" for name in ("H01-1", "P01-1", "P02-1")),
        "--slurm-array-jobs",
        "prepare_slide",
    )
    array = re.search(r"SLURM job ID (\d+)\. The individual task IDs are 1-3", call.said)
    assert array, call.said[-4000:]
    record(
        "prepare_slide of three slides as a job array", array[1], "one sbatch, three tasks, done"
    )


def test_another_scheduler_through_its_three_commands(cluster, study):
    if not has_plugin("cluster_generic"):
        pytest.skip("snakemake-executor-plugin-cluster-generic is not installed")
    (study.folder / "results/features/H01-1.h5").unlink(missing_ok=True)
    call = study.start(
        "results/features/H01-1.h5",
        "--cluster-generic-status-cmd",
        str(REPOSITORY / "profiles/cluster-generic/status.sh"),
        profile="profiles/cluster-generic",
    )
    assert call.wait() == 0, call.said[-6000:]
    # The test before has taken geometries away, so the slide is tiled again first.
    job = re.findall(r"external jobid '(\d+)'", call.said)[-1]
    assert cluster.job(job)["JobName"] == "encode_tiles"
    assert cluster.job(job)["JobState"] == "COMPLETED"
    assert cluster.job(job)["Partition"] == "gpu"
    record("cluster-generic: encode_tiles through sbatch, squeue, scancel", job, "done")
