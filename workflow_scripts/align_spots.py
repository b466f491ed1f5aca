"""Put the measured spots of one section on its slide, and check that they belong there."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import anndata

from histogep.errors import BadSlide, InputError
from histogep.files import complete, write_tsv
from histogep.lattice import Lattice
from histogep.report import style
from histogep.report.figures.slides import draw_failure
from histogep.report.figures.spots import draw_quality, draw_spots
from histogep.slides.reader import Slide
from histogep.slides.rejected import record_failure
from histogep.slides.tissue import tissue_mask
from histogep.spots.align import align_spots, check_alignment
from histogep.spots.quality import quality_table
from histogep.spots.readers import read_section
from histogep.workflow.job import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake) as log:
    lattice, settings = Lattice.from_settings(snakemake.params.lattice), snakemake.params.spots
    # Snakemake deletes the outputs of a job that fails, not what is beside its log.
    beside_log = Path(snakemake.log[0]).with_suffix(".png")
    try:
        try:
            raw = read_section(
                snakemake.input.counts,
                positions=snakemake.input.get("positions"),
                pitch_um=lattice.pitch_um,
                gene_positions=snakemake.input.get("gene_positions"),
            )
        except InputError as error:  # counts and positions are of this slide alone
            raise BadSlide(f"slide {snakemake.wildcards.slide}: {error}") from error
        with Slide.from_json(snakemake.input.slide) as slide:
            mask = tissue_mask(slide, snakemake.params.tissue)
            spots = align_spots(raw, slide, mask, lattice=lattice, settings=settings)
        figure = draw_spots(spots, mpp=slide.mpp)
        try:
            check_alignment(spots, slide, mask, min_on_tissue=settings["min_on_tissue"])
        except BadSlide:
            style.save(figure, beside_log)
            raise
        quality = draw_quality(spots)
    except BadSlide as error:
        skip = snakemake.config.get("on_bad_slide") == "skip"
        failed = record_failure(error, rule="align_spots", skip=skip)
        spots = anndata.AnnData(uns={"failed": json.dumps(failed)})
        figure = quality = draw_failure(snakemake.wildcards.slide, failed["reason"])
    style.save(figure, snakemake.output.overlay)
    style.save(quality, snakemake.output.quality)
    write_tsv(quality_table(spots), snakemake.output.quality_table)
    with complete(snakemake.output.spots) as temporary:
        spots.write_h5ad(temporary, compression="gzip", convert_strings_to_categoricals=False)
    log.info("%d spots, %d genes", *spots.shape)
