"""Simulate one slide without spots."""

from typing import TYPE_CHECKING

from histogep.jobs import job_log
from histogep.simulate_cohort import Composition
from histogep.simulate_slides import simulate_slide

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake):
    simulate_slide(
        snakemake.wildcards.slide,
        snakemake.params.simulation,
        Composition(**snakemake.params.composition),
        seed=snakemake.params.seed,
        image=snakemake.output.image,
        truth=snakemake.output.truth,
    )
