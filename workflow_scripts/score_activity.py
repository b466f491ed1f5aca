"""Score gene sets in every tile of the slides of a cohort."""

from itertools import compress
from typing import TYPE_CHECKING

from histogep.enrichment.activity import score_activity
from histogep.files import complete, files_of, write_tsv
from histogep.inputs.gene_sets import read_gmt
from histogep.report.figures.enrichment import activity_maps
from histogep.report.style import save
from histogep.slides.same_file import out_of_sample
from histogep.workflow.job import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake):
    params = snakemake.params
    slides, patients = list(params.slide_patients), list(params.slide_patients.values())
    paths = files_of(slides, snakemake.input.slides, suffix=".h5ad")
    new = out_of_sample(
        paths,
        slides=slides,
        slide_patients=patients,
        training_patients=params.training_patients,
    )
    table, maps = score_activity(
        list(compress(paths, new)),
        slides=list(compress(slides, new)),
        slide_patients=list(compress(patients, new)),
        gene_sets={name: read_gmt(path) for name, path in params.collections.items()},
        min_size=params.enrichment["min_size"],
        max_size=params.enrichment["max_size"],
        tumour_threshold=params.tumour_threshold,
        seed=params.seed,
    )
    write_tsv(table, snakemake.output.table)
    with complete(snakemake.output.maps) as temporary:
        maps.write_h5ad(temporary)
    save(activity_maps(table, maps), snakemake.output.figure)
