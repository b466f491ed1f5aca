"""Write gene positions, gene sets and the planted truth of the simulated study."""

from typing import TYPE_CHECKING

from histogep.files import complete, write_json, write_tsv
from histogep.simulate.genes import bundled_positions, format_gmt, plant_truth
from histogep.workflow.job import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake) as log:
    positions = bundled_positions()
    truth = plant_truth(positions, seed=snakemake.params.seed)
    write_tsv(positions, snakemake.output.gene_positions)
    with complete(snakemake.output.gene_sets) as temporary:
        temporary.write_text(format_gmt(truth), encoding="utf-8")
    write_json(truth, snakemake.output.truth)
    log.info("%d genes, %d gene sets", len(positions), len(truth["gene_sets"]))
