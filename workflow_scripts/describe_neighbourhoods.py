"""Describe what lies beside what on one slide, measured or predicted."""

from typing import TYPE_CHECKING

from histogep.files import write_tsv
from histogep.neighbourhoods.describe import describe_neighbourhoods
from histogep.neighbourhoods.tissue_classes import measured_places, predicted_places
from histogep.report.figures.neighbourhoods import neighbourhood_figure
from histogep.report.style import save
from histogep.workflow.job import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake):
    files, params = snakemake.input, snakemake.params
    cnv = files.get("cnv")
    if files.get("spots") is not None:
        places = measured_places(files.spots, files.labels, files.markers, cnv=cnv)
    else:
        threshold = params.tumour_threshold
        places = predicted_places(
            files.expression, files.markers, tumour_threshold=threshold, cnv=cnv
        )
    found = describe_neighbourhoods(places, seed=params.seed, **params.neighbourhoods)
    write_tsv(found.table, snakemake.output.table)
    save(neighbourhood_figure(found), snakemake.output.figure)
