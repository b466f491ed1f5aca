"""Read the geometry of one slide, and convert it when it cannot be read by region."""

from pathlib import Path
from typing import TYPE_CHECKING

from histogep.errors import BadSlide
from histogep.files import write_json
from histogep.slides.prepare import MOST_MM, describe_slide
from histogep.slides.rejected import record_failure
from histogep.workflow.job import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake) as log:
    name, image = snakemake.wildcards.slide, snakemake.input.image
    try:
        geometry = describe_slide(
            slide=name,
            source=image,
            folder=snakemake.output.pyramid,
            mpp=snakemake.params.mpp,
            spots_mpp=snakemake.params.get("spots_mpp"),
            most_mm=snakemake.params.get("most_mm") or MOST_MM,
            scalefactors=snakemake.input.get("scalefactors"),
        )
        log.info(
            "%d x %d px, %.4g um per px from the %s",
            geometry["width"],
            geometry["height"],
            geometry["mpp"],
            geometry["mpp_source"],
        )
    except BadSlide as error:
        failed = record_failure(
            error, rule="prepare_slide", skip=snakemake.config.get("on_bad_slide") == "skip"
        )
        Path(snakemake.output.pyramid).mkdir(parents=True, exist_ok=True)
        geometry = {"slide": name, "source": image, "failed": failed}
    write_json(geometry, snakemake.output.slide)
