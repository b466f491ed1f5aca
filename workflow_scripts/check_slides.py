"""List the slides of a study that cannot be used."""

from typing import TYPE_CHECKING

from histogep.files import files_of, write_tsv
from histogep.report.pages import Table, write_page
from histogep.slides.rejected import collect_failures
from histogep.workflow.job import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake) as log:
    slides = snakemake.params.slides
    failed = collect_failures(
        files_of(slides, snakemake.input.features, suffix=".h5"),
        slides=list(slides),
        patients=[row["patient"] for row in slides.values()],
        cohorts=[row["cohort"] for row in slides.values()],
    )
    write_tsv(failed, snakemake.output.failed)
    write_page(
        snakemake.output.page,
        title=f"Slides that cannot be used: {len(failed)} of {len(slides)}",
        tables=[Table(failed)],
        notes=["Each is left out of everything that follows, its patient too if it has no other."],
    )
    log.info("%d of %d slides cannot be used", len(failed), len(slides))
