"""Show what the variance of features and of expression goes with: patient, slide, stain, pixel size."""

from typing import TYPE_CHECKING

import pandas as pd

from histogep.evaluation.batch_effects import (
    explain,
    expression_components,
    feature_components,
    warnings_of,
)
from histogep.files import files_of, read_tsv, write_tsv
from histogep.report.figures.batch_effects import plot_batches
from histogep.report.pages_batch_effects import write_batch_page
from histogep.report.style import save
from histogep.workflow.job import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake) as log:
    files, params = snakemake.input, snakemake.params
    slides = read_tsv(files.slides, dtype=dict.fromkeys(("slide", "patient", "cohort"), str))
    features = files_of(params.slides, files.features, suffix=".h5")
    spots = files_of(params.sections, files.spots, suffix=".h5ad")
    seed = params.seed
    found = [feature_components(dict(zip(params.slides, features, strict=True)), seed=seed)]
    if len(spots) > 1:
        measured = dict(zip(params.sections, spots, strict=True))
        found.append(expression_components(measured, seed=seed))
    shares = pd.concat([explain(part, slides, seed=seed) for part in found], ignore_index=True)
    for line in warnings_of(shares):
        log.warning(line)
    write_tsv(shares, snakemake.output.table)
    write_batch_page(shares, snakemake.output.page)
    save(plot_batches(found, slides, shares), snakemake.output.figure)
