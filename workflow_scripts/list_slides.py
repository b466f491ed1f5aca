"""List all slides of a study with their quality and whether they are used."""

from typing import TYPE_CHECKING

from histogep.files import files_of, write_tsv
from histogep.report.pages_summary import write_slides_page
from histogep.slides.inventory import list_slides
from histogep.workflow.job import job_log
from histogep.workflow.warnings_of_jobs import list_warnings

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake) as log:
    slides = snakemake.params.slides
    listed = list_slides(
        files_of(slides, snakemake.input.quality, suffix=".quality.tsv"),
        slides=list(slides),
        patients=[row["patient"] for row in slides.values()],
        cohorts=[row["cohort"] for row in slides.values()],
        sections=[slide for slide, row in slides.items() if row["role"] == "section"],
        failed=next(iter(snakemake.input.failed), None),
        warned=list_warnings([*snakemake.input.quality, *snakemake.input.get("labels", ())]),
    )
    write_tsv(listed, snakemake.output.table)
    write_slides_page(listed, snakemake.output.page)
    n_used = (listed["status"] == "used").sum()
    log.info("%d of %d slides are used", n_used, len(listed))
