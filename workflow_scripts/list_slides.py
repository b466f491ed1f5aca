"""List all slides of a study with their quality and whether they are used."""

from typing import TYPE_CHECKING

from histogep.files import files_of, write_tsv
from histogep.report.pages import Table, write_page
from histogep.slides.inventory import list_slides
from histogep.workflow.job import job_log

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
    )
    write_tsv(listed, snakemake.output.table)
    shares = ("share_pen", "share_blurred", "share_folded")
    n_used = (listed["status"] == "used").sum()
    shown = listed if n_used < len(listed) else listed.drop(columns="reason")
    write_page(
        snakemake.output.page,
        title=f"Slides: {n_used} of {len(listed)} are used",
        tables=[
            Table(
                shown,
                formats=dict.fromkeys(shares, "{:.1%}") | {"tissue_mm2": "{:.1f}"},
                bars=dict.fromkeys(shares, (0.0, 1.0)),
                bar_colours=dict.fromkeys(shares, "#f3c9a5"),
                headers={name: name.split("_")[-1] for name in shown}
                | {"mpp": "um/px", "tissue_mm2": "tissue, mm²"},
            )
        ],
        notes=[
            "A section has spots and trains the model, a slide is predicted. The share of pen is of "
            "pen and tissue together, those of blurred and folded tiles are of the tiles. Sharpness "
            "is the variance of the Laplacian of the median tile: compare it between slides of one "
            "scanner. results/slides.tsv has the same table."
        ],
    )
    log.info("%d of %d slides are used", n_used, len(listed))
