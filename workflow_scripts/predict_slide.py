"""Predict the expression profile and the tumour map of one slide."""

from typing import TYPE_CHECKING

from histogep.deployment.model import load_model
from histogep.deployment.streaming import predict_into
from histogep.errors import InputError
from histogep.files import read_json
from histogep.models.devices import choose_device, needs_torch
from histogep.report.figures.expression import plot_prediction
from histogep.report.style import save
from histogep.slides.geojson import write_tiles
from histogep.slides.rejected import refuse_failed
from histogep.slides.same_tissue import read_keypoints
from histogep.slides.thumbnail import read_thumbnail
from histogep.workflow.job import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake) as log:
    files, output = snakemake.input, snakemake.output
    granted = {"gpu": snakemake.resources.get("gpu"), "threads": snakemake.threads}
    model = load_model(files.model)
    torch = any(needs_torch(record) for record in model.settings["models"].values())
    device = choose_device(torch, **granted)
    record = read_json(files.slide)
    refuse_failed(record)
    picture = read_keypoints(files.keypoints).get(record["slide"])
    options = {"device": device, "image": record["sha256"], "picture": picture}
    options["thumbnail"] = read_thumbnail(files.thumbnail)
    with predict_into(output.expression, files.features, model, **options) as prediction:
        slide = prediction.features.slide
        if slide != record["slide"]:
            raise InputError(f"{files.features} is of slide {slide}")
        write_tiles(
            output.geojson,
            name=slide,
            centres_px=prediction.centres_px,
            side_px=prediction.uns["lattice"]["pitch_um"] / prediction.uns["mpp"],
            tumour=prediction.tumour,
            measurements={"out-of-distribution score": prediction.ood_score},
        )
        save(plot_prediction(prediction), output.map)
        log.info(
            "%d tiles, %d genes, %.1f %% out of distribution",
            *prediction.expression.shape,
            100 * prediction.uns["out_of_distribution_share"],
        )
