"""Describe each patient of a cohort in one row."""

from typing import TYPE_CHECKING

from histogep.files import complete, write_tsv
from histogep.jobs import job_log
from histogep.patients import summarise_patients
from histogep.sheets import read_patients
from histogep.signatures import read_signatures

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0]):
    sheet = snakemake.input.get("patients")
    table, dropped = summarise_patients(
        snakemake.input.expression,
        slides=snakemake.params.slides,
        slide_patients=snakemake.params.slide_patients,
        patients=read_patients(sheet) if sheet else None,
        signatures=read_signatures(snakemake.input.signatures),
        subtypes=snakemake.input.get("subtypes"),
        **snakemake.params.settings,
    )
    write_tsv(dropped, snakemake.output.dropped)
    with complete(snakemake.output.patients) as temporary:
        table.to_parquet(temporary, index=False)
