"""Write the tiles of one slide as images."""

from typing import TYPE_CHECKING

from histogep.export.tile_images import write_tile_images
from histogep.files import read_parquet, write_tsv
from histogep.lattice import Lattice
from histogep.slides.reader import Slide
from histogep.workflow.job import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake) as log:
    lattice = Lattice.from_settings(snakemake.params.lattice)
    tiles = read_parquet(snakemake.input.tiles)
    with Slide.from_json(snakemake.input.slide) as slide:
        index = write_tile_images(slide, tiles, snakemake.output.images, lattice=lattice)
    write_tsv(index, snakemake.output.index)
    log.info("%d tiles", len(index))
