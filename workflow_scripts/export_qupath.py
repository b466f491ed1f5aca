"""Write the layers of one slide as GeoJSON for QuPath."""

from typing import TYPE_CHECKING

from histogep.export.layers import layers_of
from histogep.export.qupath import write_qupath
from histogep.workflow.job import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake) as log:
    threshold = snakemake.params.tumour_threshold
    layers = layers_of(snakemake.input, tumour_threshold=threshold)
    written = write_qupath(
        layers,
        snakemake.output.layers,
        genes=snakemake.params.genes,
        threshold=0.5 if threshold is None else threshold,
    )
    log.info("%d places: %s", layers.data.n_obs, ", ".join(written))
