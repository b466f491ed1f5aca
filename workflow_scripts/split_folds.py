"""Split the patients of a study into folds."""

from typing import TYPE_CHECKING

from histogep.files import write_tsv
from histogep.models.folds import split_folds
from histogep.workflow.job import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake) as log:
    patients = snakemake.params.patients
    folds = split_folds(
        list(patients),
        list(patients.values()),
        settings=snakemake.params.folds,
        seed=snakemake.params.seed,
    )
    write_tsv(folds, snakemake.output.folds)
    for fold, table in folds.groupby("fold", sort=False):
        held_out = table.loc[table["role"] == "test", "slide"]
        log.info("%s holds out %s", fold, ", ".join(held_out) or "nothing")
