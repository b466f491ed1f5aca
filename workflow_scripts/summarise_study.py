"""Say what a study was asked, what may be relied on, and what its jobs warned of."""

from typing import TYPE_CHECKING

from histogep.evaluation.summary import summarise_study
from histogep.evaluation.verdicts import table_of
from histogep.files import write_json, write_tsv
from histogep.report.pages_summary import (
    write_summary_page,
    write_summary_text,
    write_warnings_page,
)
from histogep.warned import SUBJECTS
from histogep.workflow.job import job_log
from histogep.workflow.warnings_of_jobs import list_warnings, sentences

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake) as log:
    files, output = dict(snakemake.input.items()), snakemake.output
    warned = list_warnings(files["finished"], planned=snakemake.params.planned)
    # That a slide is unlike the training slides is a verdict of its own.
    others = warned[warned["rule"] != "predict_slide"]
    by_subject = {subject: sentences(others, subject) for subject in SUBJECTS}
    summary = summarise_study(snakemake.params.study, files, by_subject)
    write_tsv(table_of(summary.verdicts), output.table)
    write_json(summary.to_plain(), output.summary)
    write_summary_text(summary, warned, output.text)
    write_summary_page(summary, warned, output.page)
    write_tsv(warned, output.warnings)
    write_warnings_page(warned, output.warnings_page)
    for verdict in summary.verdicts:
        log.info("%s %s: %s", verdict.question, verdict.cohort, verdict.grade)
