"""Put the measured spots of one section on its slide, and check that they belong there."""

from pathlib import Path
from typing import TYPE_CHECKING

from histogep import plots
from histogep.files import complete
from histogep.jobs import InputError, job_log
from histogep.lattice import Lattice
from histogep.plots_spots import draw_spots
from histogep.slides import Slide
from histogep.spot_readers import read_section
from histogep.spots import align_spots, check_alignment
from histogep.tissue import tissue_mask

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0]) as log:
    lattice = Lattice.from_settings(snakemake.params.lattice)
    settings = snakemake.params.spots
    raw = read_section(
        snakemake.input.counts,
        positions=snakemake.input.get("positions"),
        pitch_um=lattice.pitch_um,
    )
    with Slide.from_json(snakemake.input.slide) as slide:
        mask = tissue_mask(slide, snakemake.params.tissue)
        spots = align_spots(raw, slide, mask, lattice=lattice, settings=settings)
    figure = draw_spots(spots, mpp=slide.mpp)
    try:
        check_alignment(spots, slide, mask, min_on_tissue=settings["min_on_tissue"])
    except InputError:
        # Snakemake deletes the outputs of a job that fails, but not what lies beside its log.
        plots.save(figure, Path(snakemake.log[0]).with_suffix(".png"))
        raise
    plots.save(figure, snakemake.output.overlay)
    with complete(snakemake.output.spots) as temporary:
        spots.write_h5ad(temporary, compression="gzip", convert_strings_to_categoricals=False)
    log.info("%d spots, %d genes", *spots.shape)
