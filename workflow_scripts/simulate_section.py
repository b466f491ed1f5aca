"""Simulate one section: its image, counts, annotation and truth."""

from pathlib import Path
from typing import TYPE_CHECKING

from histogep.files import read_json
from histogep.inputs.genome import read_gene_positions
from histogep.simulate.cohort import Composition
from histogep.simulate.files import simulate_section
from histogep.workflow.job import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake):
    simulate_section(
        snakemake.wildcards.slide,
        snakemake.params.simulation,
        Composition(**snakemake.params.composition),
        positions=read_gene_positions(snakemake.input.gene_positions),
        truth=read_json(snakemake.input.truth),
        seed=snakemake.params.seed,
        image=snakemake.output.image,
        folder=Path(snakemake.output.counts).parent,
    )
