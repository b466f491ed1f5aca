"""Train one model on one fold."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.numpy import load_file, save_file

from histogep.datasets import read_sections
from histogep.ensembles import fit_ensemble
from histogep.files import complete, read_json, read_tsv, write_json, write_tsv
from histogep.folds import fold_roles
from histogep.jobs import job_log
from histogep.modelling import fit_model

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def fit(snakemake, log, checkpoints):
    """Return the model of a fold as it is written: arrays, settings and history."""
    files, settings = snakemake.input, snakemake.params.settings
    name, fold = snakemake.wildcards.model, snakemake.wildcards.fold
    if settings["kind"] == "ensemble":
        records = [read_json(path) for path in files.member_settings]
        return fit_ensemble(name, records, [load_file(path) for path in files.members])
    granted = snakemake.resources.get("gpu") and torch.cuda.is_available()
    folds = read_tsv(files.folds, dtype=str)
    roles = fold_roles(folds, fold)
    panel = read_tsv(files.panel, dtype={"gene": str}, keep_default_na=False)
    chosen = panel[settings["panel"]].astype(str).str.lower() == "true"
    genes = panel.loc[chosen, "gene"].tolist() if settings["task"] == "expression" else []
    sections = {
        role: read_sections(
            roles[role],
            files.features,
            files.spots,
            files.labels,
            task=settings["task"],
            genes=genes,
            lattice=snakemake.params.lattice,
        )
        for role in ("train", "validation")
    }
    log.info("%d sections train, %d validate", *map(len, sections.values()))
    model = fit_model(
        sections,
        name=name,
        settings=settings,
        protocol=folds.loc[folds["fold"] == fold, "protocol"].iloc[0],
        fold=fold,
        genes=genes,
        seed=snakemake.params.seed,
        hist_grid=snakemake.params.hist_grid,
        test=roles["test"],
        honest=[read_json(path) for path in files.get("fold_settings") or []],
        checkpoints=checkpoints,
        code=snakemake.params.code,
        device="cuda" if granted else "cpu",
    )
    return model.arrays, model.settings, model.history


with job_log(snakemake.log[0]) as log:
    torch.set_num_threads(snakemake.threads)
    # Beside the outputs, of which Snakemake deletes those of a stopped job, but nothing else.
    checkpoints = Path(snakemake.output.weights).parent / "checkpoints"
    arrays, settings, history = fit(snakemake, log, checkpoints)
    with complete(snakemake.output.weights) as temporary:
        save_file(arrays, temporary)
    write_json(settings, snakemake.output.settings)
    write_tsv(history, snakemake.output.history)
    shutil.rmtree(checkpoints, ignore_errors=True)
    log.info("%d parameters", settings["n_parameters"])
