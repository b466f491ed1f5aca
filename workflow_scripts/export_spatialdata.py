"""Write one slide as a SpatialData store."""

from typing import TYPE_CHECKING

from histogep.export.layers import layers_of
from histogep.export.spatialdata_store import write_store
from histogep.slides.reader import Slide
from histogep.workflow.job import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake) as log:
    layers = layers_of(snakemake.input, tumour_threshold=snakemake.params.tumour_threshold)
    with Slide.from_json(snakemake.input.slide) as slide:
        write_store(layers, slide, snakemake.output.store, image_um=snakemake.params.image_um)
    log.info("%d places, %d genes", *layers.data.shape)
