"""The same study on a SLURM that keeps accounts: `make cluster-test`.

Beside what `test_cluster` needs, Debian's slurmdbd and MariaDB are needed.
"""

from __future__ import annotations

import time

import pytest

from tests.slurm_cluster import ACCOUNT, MARKS, record, started, started_cluster
from tests.small_study import Study

pytestmark = MARKS


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with started_cluster(tmp_path_factory.mktemp("slurm"), accounting=True) as made:
        yield made


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return Study(tmp_path_factory.mktemp("cluster") / "small", profile="profiles/slurm")


def test_jobs_are_watched_by_sacct(cluster, study):
    """A site may ask for sacct: `squeue` is dear there, or forgets jobs too soon."""
    call = study.finish(
        "results/features/H01-1.h5",
        "--slurm-status-command",
        "sacct",
        "--set-resources",
        "encode_tiles:mem_mb=400 * attempt ** 3",
        "encode_tiles:slurm_partition=gpu",
        f"encode_tiles:slurm_account={ACCOUNT}",
    )
    assert "sacct" in call.said
    first, second = call.jobs("encode_tiles")
    assert "exceeded memory limit" in study.slurm_log(first)
    assert cluster.account_of(first)["State"] in ("FAILED", "OUT_OF_MEMORY")
    assert cluster.account_of(second) == {
        "State": "COMPLETED",
        "Account": ACCOUNT,
        "ReqMem": "3200M",
    }
    record(
        "sacct watches: encode_tiles over its memory", [first, second], "killed, more memory, done"
    )


def test_the_account_may_be_away_while_squeue_watches(cluster, study):
    call = study.start("results/slides/P01-1.json")
    job = started(cluster, call, "rule_simulate_section")
    cluster.kill_accounting()
    time.sleep(25)
    cluster.start_accounting()
    assert call.wait() == 0, call.said[-6000:]
    assert cluster.job(job)["JobState"] == "COMPLETED"
    assert not call.unfinished()  # and none was submitted twice
    record("slurmdbd killed with -9, away for 25 s", job, "jobs ended well, none run twice")
