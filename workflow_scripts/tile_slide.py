"""Lay the lattice over the tissue of one slide, or take the spots of a section as its tiles."""

from typing import TYPE_CHECKING

import numpy as np

from histogep.errors import BadSlide
from histogep.files import complete, write_tsv
from histogep.lattice import Lattice
from histogep.report import style
from histogep.report.figures.slides import draw_failure, draw_tiles
from histogep.slides import tiles
from histogep.slides.geojson import write_outlines
from histogep.slides.quality import measure_quality, no_quality, summarise_quality
from histogep.slides.reader import Slide
from histogep.slides.regions import read_regions
from histogep.slides.rejected import record_failure, refuse_failed_spots
from histogep.slides.same_tissue import find_keypoints, write_keypoints
from histogep.slides.thumbnail import THUMBNAIL_PX, write_thumbnail
from histogep.slides.tissue import tissue_mask
from histogep.workflow.job import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake) as log:
    lattice, settings = Lattice.from_settings(snakemake.params.lattice), snakemake.params.tissue
    name, outlines = snakemake.wildcards.slide, snakemake.output.outlines
    spots, drawn = snakemake.input.get("spots"), snakemake.input.get("regions")
    regions = read_regions(drawn) if drawn else None
    try:
        if spots:
            refuse_failed_spots(spots)
        with Slide.from_json(snakemake.input.slide) as slide:
            mask = tissue_mask(slide, settings, regions=regions)
            if spots:
                table = tiles.spot_tiles(slide, mask, lattice=lattice, spots=spots)
            else:
                table = tiles.lattice_tiles(slide, mask, lattice=lattice, settings=settings)
            table = table.assign(**measure_quality(slide, table, tile_um=lattice.tile_um))
            quality = summarise_quality(slide, mask, table, lattice=lattice)
            keypoints = {name: find_keypoints(slide, mask, table, tile_um=lattice.tile_um)}
            thumbnail = slide.picture(THUMBNAIL_PX)
        overview = draw_tiles(mask, table, slide=name)
        write_outlines(outlines, name=name, mask=mask.mask, px_per_px=mask.px_per_px)
        log.info("%d tiles on %.2f mm2 of tissue", len(table), mask.tissue_mm2)
        mask = None  # drawing takes the most memory of all
    except BadSlide as error:
        skip = snakemake.config.get("on_bad_slide") == "skip"
        table, keypoints, thumbnail = tiles.no_tiles(), {}, np.full((1, 1, 3), 255, np.uint8)
        table.attrs["failed"] = failed = record_failure(error, rule="tile_slide", skip=skip)
        write_outlines(outlines, name=name, mask=np.zeros((1, 1), bool), px_per_px=(1.0, 1.0))
        quality = no_quality()
        overview = draw_failure(name, failed["reason"])
    with complete(snakemake.output.tiles) as temporary:
        table.to_parquet(temporary, index=False)
    write_tsv(quality, snakemake.output.quality)
    write_keypoints(keypoints, snakemake.output.keypoints)
    write_thumbnail(thumbnail, snakemake.output.thumbnail)
    style.save(overview, snakemake.output.overview)
