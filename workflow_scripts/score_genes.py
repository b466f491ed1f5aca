"""Score how spatially variable every gene of one section is."""

from typing import TYPE_CHECKING

from histogep.files import write_tsv
from histogep.slides.rejected import refuse_failed_spots
from histogep.spots.matrices import expression_of, read_h5ad
from histogep.spots.variable_genes import score_genes
from histogep.workflow.job import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake) as log:
    refuse_failed_spots(snakemake.input.spots)
    spots = read_h5ad(snakemake.input.spots)
    settings = snakemake.params.genes
    scores = score_genes(
        expression_of(spots),
        spots.var_names,
        x=spots.obsm["spatial"][:, 0],
        y=spots.obsm["spatial"][:, 1],
        row=spots.obs["row"].to_numpy(),
        col=spots.obs["col"].to_numpy(),
        neighbours=settings["neighbours"],
    )
    write_tsv(scores, snakemake.output.genes)
    passing = (scores["moran_i"] > settings["min_moran"]) & (scores["p"] < settings["p"])
    log.info("%d spots, %d genes, %d pass", spots.n_obs, spots.n_vars, passing.sum())
