"""Record the versions of every package that the workflow imports."""

from typing import TYPE_CHECKING

from histogep.files import write_tsv
from histogep.report.pages import Table, write_page
from histogep.workflow.job import job_log
from histogep.workflow.software import installed_versions

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake) as log:
    versions = installed_versions()
    write_tsv(versions, snakemake.output.table)
    write_page(snakemake.output.versions, title="Software", tables=[Table(versions)])
    log.info("%d packages", len(versions))
