"""Find the gene sets at the ends of a ranking of genes."""

from itertools import compress
from typing import TYPE_CHECKING

import pandas as pd

from histogep.enrichment.gsea import enrich_contrast
from histogep.files import files_of, write_tsv
from histogep.inputs.gene_sets import read_gmt
from histogep.report.figures.enrichment import dot_plot, running_sums
from histogep.report.style import save
from histogep.slides.same_file import out_of_sample
from histogep.workflow.job import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake):
    collections = {name: read_gmt(path) for name, path in snakemake.params.collections.items()}
    names = ("cox", "response_genes", "spots", "labels", "expression", "patients")
    sources = {name: snakemake.input.get(name) for name in names if snakemake.input.get(name)}
    if "patients" in sources:
        sources["patients"] = pd.read_parquet(sources["patients"])
    if "expression" in sources:
        patients = snakemake.params.slide_patients
        expression = files_of(patients, sources["expression"], suffix=".h5ad")
        new = out_of_sample(
            expression,
            slides=list(patients),
            slide_patients=list(patients.values()),
            training_patients=snakemake.params.training_patients,
        )
        sources["expression"] = list(compress(expression, new))
    ranking, gsea, title, reason = enrich_contrast(
        snakemake.wildcards.contrast,
        sources,
        collections,
        settings=snakemake.params.enrichment,
        seed=snakemake.params.seed,
        **snakemake.params.ranking,
    )
    write_tsv(ranking, snakemake.output.ranking)
    write_tsv(gsea, snakemake.output.gsea)
    shown = {"title": title, "reason": reason}
    save(dot_plot(gsea, n_ranked=len(ranking), **shown), snakemake.output.dotplot)
    save(running_sums(ranking, gsea, collections, **shown), snakemake.output.running)
