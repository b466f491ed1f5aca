"""Say what a study was asked, what may be relied on, and what its jobs warned of."""

from typing import TYPE_CHECKING

from histogep.files import write_tsv
from histogep.report.pages_summary import write_warnings_page
from histogep.workflow.job import job_log
from histogep.workflow.warnings_of_jobs import list_warnings

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake) as log:
    output = snakemake.output
    warned = list_warnings(snakemake.input.finished, planned=snakemake.params.planned)
    write_tsv(warned, output.warnings)
    write_warnings_page(warned, output.warnings_page)
    log.info("%d warnings", warned["n"].sum())
