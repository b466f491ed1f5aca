"""Read the geometry of one slide, and convert it when it cannot be read by region."""

from typing import TYPE_CHECKING

from histogep.files import write_json
from histogep.geometry import describe_slide
from histogep.jobs import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0]) as log:
    geometry = describe_slide(
        slide=snakemake.wildcards.slide,
        source=snakemake.input.image,
        folder=snakemake.output.pyramid,
        mpp=snakemake.params.mpp,
    )
    write_json(geometry, snakemake.output.slide)
    log.info(
        "%d x %d px, %.4g um per px from the %s",
        geometry["width"],
        geometry["height"],
        geometry["mpp"],
        geometry["mpp_source"],
    )
