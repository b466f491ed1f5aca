"""Copy a reference that the project ships into the results, where the other rules read it."""

from typing import TYPE_CHECKING

from histogep.jobs import job_log
from histogep.resources import copy_resource

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake):
    copy_resource(snakemake.wildcards.name, snakemake.output.reference)
