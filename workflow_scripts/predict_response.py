"""Score the response of the patients of a cohort."""

from typing import TYPE_CHECKING

from histogep.files import read_parquet, write_tsv
from histogep.outcome.response import predict_response
from histogep.report.figures.outcome import roc
from histogep.report.pages_outcome import write_response_page
from histogep.report.style import save
from histogep.warned import heard
from histogep.workflow.job import job_log
from histogep.workflow.warnings_of_jobs import deciding_warnings

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake), heard() as own:
    result = predict_response(
        read_parquet(snakemake.input.patients),
        settings=snakemake.params.response,
        seed=snakemake.params.seed,
        maps=snakemake.input.get("maps") or (),
    )
    write_tsv(result.performance, snakemake.output.performance)
    write_tsv(result.scores, snakemake.output.scores)
    write_tsv(result.genes, snakemake.output.genes)
    save(roc(result.scores, result.performance), snakemake.output.roc)
    write_response_page(
        result,
        snakemake.output.page,
        cohort=snakemake.wildcards.cohort,
        warnings=deciding_warnings([snakemake.input.patients], "response", own=own.warned),
    )
