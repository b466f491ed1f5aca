"""List what lies beside what on the slides of a cohort, by slide and by patient."""

from typing import TYPE_CHECKING

from histogep.files import files_of, write_tsv
from histogep.neighbourhoods.measures import MEASURES, summarise_slides
from histogep.report.pages import Table, write_page
from histogep.workflow.job import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake):
    given = snakemake.params.patients
    slides, patients = summarise_slides(
        files_of(given, snakemake.input.tables, suffix=".tsv"),
        slides=list(given),
        slide_patients=list(given.values()),
        sample_types=snakemake.params.sample_types,
    )
    write_tsv(slides, snakemake.output.slides)
    write_tsv(patients, snakemake.output.patients)
    shares = [name for name in slides if name.startswith("share_")]
    write_page(
        snakemake.output.page,
        title=f"Neighbourhoods of cohort {snakemake.wildcards.cohort}",
        tables=[
            Table(patients, heading="Patients"),
            Table(slides, heading="Slides", formats=dict.fromkeys(shares, "{:.0%}")),
        ],
        notes=[
            f"Beside each of {', '.join(MEASURES)} stand mean and 95 % range (low, high) of its null: "
            "the same with the map of immune places or stroma turned, mirrored and shifted over "
            "the slide. Classes are relative to their slide. Formulas: docs/methods."
        ],
    )
