"""One slide from its file to its features through SLURM: what `make test` has time for in CI.

Off unless HISTOGEP_CLUSTER_TESTS is set (`.ci/run` sets it); skipped without root or SLURM.
"""

from __future__ import annotations

import pytest

from histogep.encoders.feature_file import read_features
from tests.slurm_cluster import WANTED, started_cluster
from tests.small_study import Study

pytestmark = [
    pytest.mark.workflow,
    pytest.mark.cluster,
    pytest.mark.skipif(not WANTED, reason="HISTOGEP_CLUSTER_TESTS is not set"),
]


def test_slides_go_through_slurm_to_their_features_in_one_job(tmp_path):
    """A slide and a section, as groups of profiles/slurm: what makes them is one job for both."""
    with started_cluster(tmp_path / "slurm") as cluster:
        study = Study(tmp_path / "small", profile="profiles/slurm", grouped=True)
        features = [f"results/features/{slide}.h5" for slide in ("H01-1", "P01-1")]
        call = study.finish(*features, "--slurm-init-seconds-before-status-checks", "2")
        jobs = call.jobs()
        assert len(jobs) == len(call.submitted())  # none twice
        assert "10 of 10 steps (100%) done" in call.said
        assert all(cluster.job(job)["JobState"] == "COMPLETED" for job in jobs)
        # What is simulated is no part of a slide's way: one job for each.
        kinds = sorted(name.split("/")[0] for name in call.submitted().values())
        assert kinds[:3] == ["simulate_references", "simulate_section", "simulate_slide"]
        assert kinds[3:] == ["slide_align_spots_encode_tiles_prepare_slide_tile_slide"]
        (chain,) = call.jobs(group="slide")
        asked = cluster.job(chain)
        assert asked["TresPerJob"].startswith("gres:gpu")
        assert asked["Partition"] == "gpu"
    for path in features:
        assert len(read_features(study.folder / path).values)
