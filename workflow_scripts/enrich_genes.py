"""Find the gene sets at the ends of a ranking of genes."""

from typing import TYPE_CHECKING

from histogep.enrichment import DEFAULTS, enrich, rank_contrast, read_gmt
from histogep.files import write_tsv
from histogep.jobs import job_log
from histogep.plots import save
from histogep.plots_enrichment import dot_plot, running_sums

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0]):
    settings = DEFAULTS | snakemake.params.enrichment
    paths = snakemake.input.gene_sets
    names = snakemake.params.collections
    collections = dict(zip(names, map(read_gmt, paths), strict=True))
    ranking, title = rank_contrast(
        cox=snakemake.input.get("cox"),
        response_genes=snakemake.input.get("response_genes"),
        spots=snakemake.input.get("spots"),
        labels=snakemake.input.get("labels"),
        expression=snakemake.input.get("expression"),
    )
    gsea = enrich(ranking, collections, seed=snakemake.params.seed, **settings)
    write_tsv(ranking, snakemake.output.ranking)
    write_tsv(gsea, snakemake.output.gsea)
    save(dot_plot(gsea, title=title, n_ranked=len(ranking)), snakemake.output.dotplot)
    save(running_sums(ranking, gsea, collections, title=title), snakemake.output.running)
