"""List all predicted slides with their tumour and their distance to the training features."""

from typing import TYPE_CHECKING

from histogep.files import files_of, write_tsv
from histogep.report.pages import Table, write_page
from histogep.slides.inventory import list_predicted
from histogep.workflow.job import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake) as log:
    slides = snakemake.params.slides
    listed = list_predicted(
        files_of(slides, snakemake.input.expression, suffix=".h5ad"),
        slides=list(slides),
        patients=[row["patient"] for row in slides.values()],
        cohorts=[row["cohort"] for row in slides.values()],
        tumour_threshold=snakemake.params.tumour_threshold,
    )
    write_tsv(listed, snakemake.output.table)
    n_out = int(listed["out_of_distribution"].sum())
    shares = ("tumour_fraction", "out_of_distribution_fraction")
    write_page(
        snakemake.output.page,
        title=f"Predicted slides: {n_out} of {len(listed)} are unlike the training slides",
        tables=[
            Table(
                listed.sort_values("median_ood_score", ascending=False, kind="stable"),
                formats=dict.fromkeys(shares, "{:.1%}") | {"median_ood_score": "{:.2f}"},
                bars=dict.fromkeys(shares, (0.0, 1.0)),
                bar_colours={"out_of_distribution_fraction": "#f3c9a5"},
                headers={name: name.replace("_", " ") for name in listed},
            )
        ],
        notes=[
            "The slides furthest from the training features stand first. Above a median distance of 1 "
            "a slide is out of distribution: at most 10 % of new patients would reach that, estimated "
            "from training patients that were left out. What is predicted of it is extrapolated: look "
            "at its stain, scanner, tissue and pixel size. In other slides a tile is out of distribution where at "
            "most 1 % of a new patient's tiles would lie as far. results/predicted_slides.tsv has the "
            "same table in the order of the sheet."
        ],
    )
    log.info("%d of %d slides are out of distribution", n_out, len(listed))
