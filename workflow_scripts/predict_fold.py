"""Predict the held-out sections of one fold."""

from typing import TYPE_CHECKING

from histogep.evaluation.predictions import predict_held_out
from histogep.files import complete, read_tsv
from histogep.models.devices import choose_device, needs_torch
from histogep.models.folds import fold_roles
from histogep.models.predict import read_model
from histogep.spots.places import place_on_slides
from histogep.workflow.job import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake) as log:
    granted = {"gpu": snakemake.resources.get("gpu"), "threads": snakemake.threads}
    files = snakemake.input
    model, settings = read_model(files.weights, files.settings)
    roles = fold_roles(read_tsv(files.folds, dtype=str), snakemake.wildcards.fold)
    table = predict_held_out(
        model,
        settings,
        roles["test"],
        files.features,
        files.spots,
        files.labels,
        device=choose_device(needs_torch(settings), **granted),
    )
    place_on_slides(table, files.spots)
    with complete(snakemake.output.predictions) as temporary:
        table.write_h5ad(temporary, compression="gzip")
    log.info("%d cells of %d sections, %d targets", table.n_obs, len(roles["test"]), table.n_vars)
