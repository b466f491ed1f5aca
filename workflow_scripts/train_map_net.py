"""Train the network on the maps of a cohort's slides, patients held out."""

from typing import TYPE_CHECKING

import pandas as pd
import torch

from histogep.files import files_of
from histogep.outcome.known_outcomes import with_outcome
from histogep.outcome.maps.models import score_cohort
from histogep.outcome.maps.slide_maps import read_slide_maps
from histogep.outcome.response import with_response
from histogep.workflow.job import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake):
    torch.set_num_threads(snakemake.threads)
    granted = snakemake.resources.get("gpu") and torch.cuda.is_available()
    params, outcome = snakemake.params, snakemake.wildcards.outcome
    table = pd.read_parquet(snakemake.input.patients)
    if outcome == "survival":
        table = with_outcome(table, params.outcome_settings["folds"])
    else:
        table = with_response(table)
    patients = list(table["patient"].astype(str))
    slides = params.slide_patients
    maps = read_slide_maps(
        files_of(slides, snakemake.input.expression, suffix=".h5ad"),
        slides=list(slides),
        slide_patients=list(slides.values()),
        patients=patients,
        side=params.maps["side"],
        sample_types=params.sample_types,
    )
    patient_cv, published = score_cohort(
        table,
        maps,
        outcome=outcome,
        settings=params.maps,
        outcome_settings=params.outcome_settings,
        seed=params.seed,
        device="cuda" if granted else "cpu",
    )
    patient_cv.write(snakemake.output.scores, patients)
    published.write(snakemake.output.published, patients)
