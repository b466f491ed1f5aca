"""Score every held-out prediction, beside its nulls and its ceiling."""

from typing import TYPE_CHECKING

from histogep.evaluation.held_out import read_held_out
from histogep.evaluation.measured import read_measured
from histogep.evaluation.scorecards import COLUMNS, evaluate
from histogep.files import read_json, read_tsv, write_tsv
from histogep.labels.sources import describe_sources, read_label_sources
from histogep.models.selection import deployed_expression
from histogep.report.figures.evaluation import plot_genes, plot_maps, plot_tumour
from histogep.report.pages_evaluation import write_genes_page, write_scorecards_page
from histogep.report.style import save
from histogep.warned import heard
from histogep.workflow.job import job_log
from histogep.workflow.warnings_of_jobs import deciding_warnings

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake) as log, heard() as own:
    settings, output = snakemake.params.evaluation, snakemake.output
    behind = [*snakemake.input.predictions, *snakemake.input.labels]
    labels = describe_sources(read_label_sources(snakemake.input.labels))
    sections = read_held_out(snakemake.input.predictions)
    measured = read_measured(snakemake.input.spots, sections)
    folds = read_tsv(snakemake.input.folds, dtype=str, keep_default_na=False)
    evaluation = evaluate(sections, measured, folds, settings=settings, seed=snakemake.params.seed)
    write_tsv(evaluation.scorecards[list(COLUMNS)], output.scorecards)
    for name in ("genes", "sections", "tumour", "calibration", "registration"):
        write_tsv(getattr(evaluation, name), getattr(output, name))
    write_scorecards_page(
        evaluation,
        output.scorecards_page,
        study=snakemake.wildcards.study,
        settings=settings,
        alike=read_json(snakemake.input.verdict).get("notices", []),
        labels=labels,
        warnings=deciding_warnings(behind, "slide", "expression", "tumour", own=own.warned),
    )
    panels = [read_json(path) for path in snakemake.input.panels]
    trained = [read_json(path) for path in snakemake.input.settings]
    write_genes_page(
        evaluation.genes,
        output.genes_page,
        study=snakemake.wildcards.study,
        first=deployed_expression(snakemake.params.deploy["expression"], trained),
        panels={record["fold"]: record["limits"]["sentence"] for record in panels},
    )
    save(plot_genes(evaluation), output.genes_plot)
    save(plot_maps(evaluation, sections, measured), output.maps)
    warned = deciding_warnings(behind, "tumour", own=own.warned)
    tumour = plot_tumour(sections, measured, evaluation.tumour, labels=labels, warnings=warned)
    save(tumour, output.tumour_plot)
    for row in evaluation.scorecards.itertuples():
        log.info(
            "%s %s %s %s: %.3f (%.3f to %.3f), null %.3f, ceiling %.3f",
            *(row.protocol, row.task, row.model, row.metric),
            *(row.value, row.ci_low, row.ci_high, row.null, row.ceiling),
        )
