"""Simulate one slide without spots."""

from typing import TYPE_CHECKING

from histogep.simulate.cohort import Composition
from histogep.simulate.files import simulate_slide
from histogep.workflow.job import job_log

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
