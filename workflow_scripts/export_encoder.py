"""Write one encoder in the format that jobs on a CPU run."""

from typing import TYPE_CHECKING

from histogep.encoders.exported import export_encoder
from histogep.workflow.job import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake):
    export_encoder(snakemake.params.encoder, snakemake.output.description)
