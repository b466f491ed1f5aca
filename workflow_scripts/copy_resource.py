"""Copy a reference that the project ships into the results, where the other rules read it."""

from typing import TYPE_CHECKING

from histogep.inputs.resources import copy_resource
from histogep.workflow.job import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake):
    copy_resource(snakemake.wildcards.name, snakemake.output.reference)
