"""Train one model on one fold."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.numpy import save_file

from histogep.files import complete, read_json, read_tsv, write_json, write_tsv
from histogep.models.devices import choose_device, trains_in_torch
from histogep.models.ensemble import fit_ensemble
from histogep.models.fit import FittedModel, fit_model
from histogep.models.folds import fold_roles
from histogep.models.sections import read_training
from histogep.models.weights import read_arrays
from histogep.workflow.job import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake) as log:
    granted = {"gpu": snakemake.resources.get("gpu"), "threads": snakemake.threads}
    files, params, fold = snakemake.input, snakemake.params, snakemake.wildcards.fold
    settings = params.models[snakemake.wildcards.model]
    # Beside the outputs, of which Snakemake deletes those of a stopped job, but nothing else.
    checkpoints = Path(snakemake.output.weights).parent / "checkpoints"
    if settings["kind"] == "ensemble":
        records = [read_json(path) for path in files.member_settings]
        weights = [read_arrays(path) for path in files.members]
        model = FittedModel(*fit_ensemble(snakemake.wildcards.model, records, weights))
    else:
        folds = read_tsv(files.folds, dtype=str)
        panel = read_tsv(files.panel, dtype={"gene": str}, keep_default_na=False)
        roles = fold_roles(folds, fold)
        sections, genes = read_training(
            roles, panel, files, settings=settings, lattice=params.lattice
        )
        model = fit_model(
            sections,
            name=snakemake.wildcards.model,
            settings=settings,
            protocol=folds.loc[folds["fold"] == fold, "protocol"].iloc[0],
            fold=fold,
            genes=genes,
            seed=params.seed,
            published_grid=params.published_grid,
            test=roles["test"],
            patient_cv=[read_json(path) for path in files.get("fold_settings") or []],
            checkpoints=checkpoints,
            code=params.code,
            device=choose_device(trains_in_torch(settings), **granted),
        )
    with complete(snakemake.output.weights) as temporary:
        save_file(model.arrays, temporary)
    write_json(model.settings, snakemake.output.settings)
    write_tsv(model.history, snakemake.output.history)
    if model.epochs is not None:
        write_tsv(model.epochs, snakemake.log.epochs)
    shutil.rmtree(checkpoints, ignore_errors=True)
    log.info("%d parameters", model.settings["n_parameters"])
