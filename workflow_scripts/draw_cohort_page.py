"""Draw the page that lists all slides of a study."""

from pathlib import Path
from typing import TYPE_CHECKING

from histogep.files import files_of, read_tsv
from histogep.report.cohort_page import cohort_rows, risk_notes, write_cohort_page
from histogep.workflow.job import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake) as log:
    files, params = snakemake.input, snakemake.params
    text = dict.fromkeys(("slide", "patient", "cohort", "training_section"), str)
    slides = read_tsv(files.slides, dtype=text)
    predicted = next((read_tsv(path, dtype=text) for path in files.predicted), None)
    by_cohort = {Path(path).parent.name: path for path in files.risks}
    labels = {Path(path).name.removesuffix(".tsv"): path for path in files.labels}
    rows = cohort_rows(slides, predicted=predicted, labels=labels, risks=by_cohort)
    thumbnails = files_of(slides["slide"], files.thumbnails, suffix=".thumbnail.jpg")
    write_cohort_page(
        rows,
        snakemake.output.page,
        study=params.study,
        thumbnails=dict(zip(slides["slide"], thumbnails, strict=True)),
        pages=set(params.pages),
        notes=risk_notes({Path(path).parent.name: path for path in files.concordance}),
    )
    log.info("%d slides, %d with a page", len(rows), len(params.pages))
