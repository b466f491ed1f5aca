"""Score the response of each cohort with a model of each other one."""

from pathlib import Path
from typing import TYPE_CHECKING

from histogep.files import read_parquet, write_tsv
from histogep.outcome.transfer import transfer_response
from histogep.report.figures.outcome import transfer_matrix
from histogep.report.style import save
from histogep.workflow.job import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake):
    result = transfer_response(
        {Path(path).stem: read_parquet(path) for path in snakemake.input.patients},
        settings=snakemake.params.response,
        seed=snakemake.params.seed,
    )
    write_tsv(result.performance, snakemake.output.performance)
    write_tsv(result.scores, snakemake.output.scores)
    save(transfer_matrix(result.performance), snakemake.output.figure)
