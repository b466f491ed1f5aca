"""Describe each patient of a cohort in one row."""

from typing import TYPE_CHECKING

from histogep.files import complete, files_of, write_tsv
from histogep.inputs.gene_names import gene_symbols
from histogep.outcome.bulk_patients import summarise_measured
from histogep.outcome.patients import count_patients, summarise_patients
from histogep.outcome.signatures import read_signatures
from histogep.report.pages import Table, write_page
from histogep.study.clinical import read_clinical
from histogep.workflow.job import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake):
    settings = dict(snakemake.params.summary)
    endpoint = settings.pop("endpoint")
    sheet, measured = snakemake.input.get("patients"), snakemake.input.get("measured")
    columns = snakemake.params.get("columns")
    patients = read_clinical(sheet, endpoint=endpoint, columns=columns) if sheet else None
    signatures = read_signatures(snakemake.input.signatures)
    if measured:
        table, dropped = summarise_measured(
            measured,
            scale=snakemake.params.scale,
            patients=patients,
            signatures=signatures,
            sample_types=settings["sample_types"],
            symbols=gene_symbols(snakemake.input.get("gene_positions")),
        )
    else:
        slides = snakemake.params.slide_patients
        table, dropped = summarise_patients(
            files_of(slides, snakemake.input.expression, suffix=".h5ad"),
            slides=list(slides),
            slide_patients=list(slides.values()),
            patients=patients,
            signatures=signatures,
            subtypes=snakemake.input.get("subtypes"),
            neighbourhoods=snakemake.input.get("neighbourhoods"),
            training=snakemake.params.training,
            **settings,
        )
    counts = count_patients(table, dropped)
    write_tsv(dropped, snakemake.output.dropped)
    write_tsv(counts, snakemake.output.counts)
    write_page(
        snakemake.output.page,
        title="Patients",
        tables=[Table(counts, group_by="part", formats={"n": "{:d}"})],
        notes=["Who was left out stands patient by patient in the .dropped.tsv beside this page."],
    )
    with complete(snakemake.output.patients) as temporary:
        table.to_parquet(temporary, index=False)
