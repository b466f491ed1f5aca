"""Encode the tiles of one slide."""

from pathlib import Path
from typing import TYPE_CHECKING

from histogep.encoders.encode import encode_slide, given_block, open_encoders
from histogep.encoders.given_features import read_given
from histogep.errors import BadSlide
from histogep.files import read_parquet
from histogep.lattice import Lattice
from histogep.models.devices import sees_gpu
from histogep.slides.reader import Slide
from histogep.slides.rejected import record_failure, refuse_failed, write_failed_features
from histogep.workflow.job import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake) as log:
    threads, cuda = snakemake.threads, sees_gpu(snakemake.resources.get("gpu"))
    lattice = Lattice.from_settings(snakemake.params.lattice)
    exported = {Path(path).stem: path for path in snakemake.input.get("exported", [])}
    opened = open_encoders(snakemake.params.encoders, exported=exported, threads=threads, cuda=cuda)
    computed = iter(opened)
    tiles = read_parquet(snakemake.input.tiles)
    try:
        refuse_failed(tiles.attrs)
        with Slide.from_json(snakemake.input.slide) as slide:
            encoders = []
            for settings in snakemake.params.encoders:
                if not settings.get("precomputed"):
                    encoders.append(next(computed))
                    continue
                given = read_given(snakemake.input.given, slide=slide, lattice=lattice)
                tiles, block = given_block(settings["name"], given, tiles, slide=slide)
                encoders.append(block)
            encode_slide(
                slide,
                tiles,
                snakemake.output.features,
                lattice=lattice,
                encoders=encoders,
                threads=threads,
                cuda=cuda,
            )
    except BadSlide as error:
        failed = record_failure(
            error, rule="encode_tiles", skip=snakemake.config.get("on_bad_slide") == "skip"
        )
        write_failed_features(
            snakemake.output.features, slide=snakemake.wildcards.slide, failed=failed
        )
