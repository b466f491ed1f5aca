"""Pack the models of a study into a folder that other studies can name."""

from typing import TYPE_CHECKING

from histogep.deployment.pack import package_model
from histogep.files import read_json
from histogep.labels.sources import describe_sources, read_label_sources
from histogep.slides.same_tissue import read_keypoints
from histogep.workflow.job import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake) as log:
    files = snakemake.input
    settings = package_model(
        snakemake.output.model,
        study=snakemake.wildcards.study,
        weights=files.weights,
        settings=files.settings,
        fold_settings=files.fold_settings,
        features=files.features,
        images={record["slide"]: record["sha256"] for record in map(read_json, files.slides)},
        patients=snakemake.params.patients,
        keypoints=read_keypoints(*files.keypoints),
        calibration=files.calibration,
        scorecards=files.scorecards,
        deploy=snakemake.params.deploy,
        lattice=snakemake.params.lattice,
        labels=describe_sources(read_label_sources(files.labels)),
    )
    log.info("model %s", settings["digest"])
