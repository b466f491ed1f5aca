"""Draw the interactive page of one slide: its image, and what was computed of its places."""

from pathlib import Path
from typing import TYPE_CHECKING

from histogep.report.slide_layers import predicted_layers, read_scores, section_layers
from histogep.report.slide_page import IMAGE_PX, write_slide_page
from histogep.slides.reader import Slide
from histogep.workflow.job import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake) as log:
    files, params = snakemake.input, snakemake.params
    shared = {
        "scores": read_scores(
            files.model,
            genes=files.get("gene_scores"),
            scorecards=files.get("scorecards"),
            coverage=params.coverage,
        ),
        "genes": params.genes,
        "markers": files.markers,
        "signatures": files.signatures,
        "cnv": files.get("cnv"),
        "subtypes": files.get("subtypes"),
    }
    if files.get("spots") is not None:
        layers = section_layers(files.spots, files.labels, files.predictions, files.folds, **shared)
    else:
        threshold = params.tumour_threshold
        layers = predicted_layers(files.expression, tumour_threshold=threshold, **shared)
    with Slide.from_json(files.slide) as slide:
        size_px = slide.width_px, slide.height_px
        image = slide.thumbnail(slide.mpp * max(size_px) / IMAGE_PX)
    write_slide_page(layers, image, snakemake.output.page, size_px=size_px)
    size_mb = Path(snakemake.output.page).stat().st_size / 1e6
    log.info("%d layers of %d places, %.1f MB", len(layers.layers), len(layers.names), size_mb)
