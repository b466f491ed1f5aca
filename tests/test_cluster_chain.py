"""One slide from its file to its features through SLURM: what `make test` has time for in CI.

Off unless HISTOGEP_CLUSTER_TESTS is set (`.ci/run` sets it); skipped without root or SLURM.
"""

from __future__ import annotations

import pytest

from histogep.features import read_features
from tests.slurm_cluster import WANTED, started_cluster
from tests.small_study import Study

pytestmark = [
    pytest.mark.workflow,
    pytest.mark.cluster,
    pytest.mark.skipif(not WANTED, reason="HISTOGEP_CLUSTER_TESTS is not set"),
]


def test_a_slide_goes_through_slurm_to_its_features(tmp_path):
    with started_cluster(tmp_path / "slurm") as cluster:
        study = Study(tmp_path / "small", profile="profiles/slurm")
        call = study.finish(
            "results/features/H01-1.h5", "--set-resources", "encode_tiles:slurm_partition=gpu"
        )
        jobs = call.jobs()
        assert len(jobs) == len(call.submitted())  # none twice
        assert not call.unfinished()
        assert all(cluster.job(job)["JobState"] == "COMPLETED" for job in jobs)
        (encoding,) = call.jobs("encode_tiles")
        assert cluster.job(encoding)["TresPerJob"].startswith("gres:gpu")
        assert cluster.job(encoding)["Partition"] == "gpu"
    assert len(read_features(study.folder / "results/features/H01-1.h5").values)
