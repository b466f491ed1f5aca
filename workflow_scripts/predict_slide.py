"""Predict the expression profile and the tumour map of one slide."""

from typing import TYPE_CHECKING

import torch

from histogep.deployment import load_model
from histogep.features import read_features
from histogep.files import complete, read_json
from histogep.jobs import InputError, job_log
from histogep.plots import save
from histogep.plots_expression import plot_prediction
from histogep.qupath import write_tiles

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0]) as log:
    torch.set_num_threads(snakemake.threads)
    granted = snakemake.resources.get("gpu") and torch.cuda.is_available()
    slide = read_json(snakemake.input.slide)
    features = read_features(snakemake.input.features)
    if features.slide != slide["slide"]:
        raise InputError(f"{snakemake.input.features} is of slide {features.slide}")
    model = load_model(snakemake.input.model)
    prediction = model.predict(features, device="cuda" if granted else "cpu")
    with complete(snakemake.output.expression) as temporary:
        prediction.to_anndata().write_h5ad(temporary)
    write_tiles(
        snakemake.output.geojson,
        name=features.slide,
        centres_px=prediction.centres_px,
        side_px=prediction.uns["lattice"]["pitch_um"] / prediction.uns["mpp"],
        tumour=prediction.tumour,
        measurements={"distance to training": prediction.distance},
    )
    save(plot_prediction(prediction), snakemake.output.map)
    log.info(
        "%d tiles, %d genes, %.1f %% distant",
        *prediction.expression.shape,
        100 * prediction.uns["distant_share"],
    )
