"""Train one fold's CMU-Net from its sections: prepare, choose the epoch, train, record (torch)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from histogep.encoders.precision import precision_on
from histogep.lattice import Lattice
from histogep.models.folds import MIN_TRAINING_PATIENTS
from histogep.models.network.checkpoints import Checkpoint, digest
from histogep.models.network.data import NetworkSection
from histogep.models.network.network import count_parameters
from histogep.models.network.predict import NetworkModel, network_features, raw_features
from histogep.models.network.train import Trained, TrainingSettings, train_network
from histogep.models.preparation import Preparation
from histogep.models.sections import Section, both_classes
from histogep.models.selection import METRICS, inner_folds, tumour_threshold

LOG = logging.getLogger(__name__)
COMPONENTS = 64


def fit_network(
    train: list[Section],
    validation: list[Section],
    record: dict[str, Any],
    settings: Mapping[str, Any],
    lattice: Lattice,
    patient_cv: Sequence[Mapping[str, Any]],
    state: tuple[str | Path, Any] | None,
    device: str,
) -> tuple[dict[str, np.ndarray], pd.DataFrame, list[float]]:
    """Train a network on a fold and complete its record.

    Parameters
    ----------
    train, validation
        Sections that train, and those that choose the epoch.
    record
        settings.json so far; it is completed in place.
    settings
        Of the model.
    lattice
        Lattice of the sections.
    patient_cv
        For the fold `all`: the settings of this model in the patient_cv folds, which fix its epoch.
    state
        Folder of the checkpoints and the digest of code and settings, or None.
    device
        "cpu" or "cuda".

    Returns
    -------
    tuple
        Arrays for weights.safetensors, the history, and the seconds of its epochs.
    """
    options = training_settings(settings)
    # What "auto" was on this device is part of what was trained.
    options = replace(options, precision=precision_on(options.precision, device))
    paper = record["protocol"] == "published"
    if record["task"] == "tumour":
        train, validation = _labelled(train), _labelled(validation)
    common = {
        "record": record,
        "components": settings.get("components", COMPONENTS),
        "lattice": lattice,
        "options": options,
        "state": state,
        "device": device,
    }
    patients = list(dict.fromkeys(section.patient for section in train))
    stop_after, scores, fitted_on = None, {}, []
    maps: list[tuple[np.ndarray, np.ndarray]] = []
    threshold = None
    if record["protocol"] == "all":
        shares = [
            other["best_epoch"] / other["schedule_epochs"]
            for other in patient_cv
            if other["best_epoch"]
        ]
        if shares:
            stop_after = float(np.median(shares))
            scores = _mean_scores([other["scores"] for other in patient_cv if other.get("scores")])
            fitted_on = [section.slide for section in train]
        found = [other.get("threshold") for other in patient_cv]
        found = [value for value in found if value is not None]
        threshold = float(np.median(found)) if found else None
    elif not paper and not validation and 1 < len(patients) < MIN_TRAINING_PATIENTS:
        inner = []
        for out in inner_folds(patients):
            judges = [s for s in train if s.patient in out]
            rest = [s for s in train if s.patient not in out]
            if record["task"] == "tumour" and not both_classes(rest):
                LOG.warning("without %s the labels are of one class: no inner fold", out)
                continue
            inner_model, trained = _train(rest, judges, **common)
            inner.append(trained)
            maps += _tumour_maps(inner_model, judges, device)
        if inner:
            stop_after = float(
                np.median([trained.best_epoch / trained.passes for trained in inner])
            )
            scores = _mean_scores([trained.scores for trained in inner])
            fitted_on = [section.slide for section in train]
            LOG.info("inner folds chose %.2f of the schedule, scores %s", stop_after, scores)
    model, trained = _train(train, validation, stop_after=stop_after, **common)
    if validation:
        scores, fitted_on = trained.scores, [section.slide for section in validation]
        maps = _tumour_maps(model, validation, device)
    if maps:
        threshold = tumour_threshold(*(np.concatenate(parts) for parts in zip(*maps, strict=True)))
    slides = [section.slide for section in train]
    for what in ("scaler", "pca", "target"):
        record[f"{what}_fitted_on"] = slides
    counts = count_parameters(model.network)
    leading = "tumour" if record["task"] == "tumour" else "expression"
    record |= {
        "epoch_fitted_on": fitted_on,
        "alpha_fitted_on": [],
        "alpha": None,
        "threshold_fitted_on": [] if threshold is None else fitted_on,
        "threshold": threshold,
        "best_epoch": trained.best_epoch,
        "schedule_epochs": trained.passes,
        "validation_score": scores.get(leading),
        "validation_metric": METRICS[leading],
        "scores": scores,
        "architecture": model.network.architecture,
        "n_parameters": counts["total"],
        "parameters": counts,
        "training": {field.name: getattr(options, field.name) for field in fields(options)},
        "torch": torch.__version__,
    }
    return model.to_arrays(), trained.history, trained.seconds


def _train(
    train: list[Section],
    validation: list[Section],
    *,
    record: Mapping[str, Any],
    components: int,
    lattice: Lattice,
    options: TrainingSettings,
    state: tuple[str | Path, Any] | None,
    device: str,
    stop_after: float | None = None,
) -> tuple[NetworkModel, Trained]:
    """Fit the preparation on the training sections, then the network.

    `state` is the folder of the checkpoints and the digest of what all trainings of the job share.
    """
    paper = record["protocol"] == "published"
    preparation = Preparation.fit(
        [section.tiles for section in train],
        blocks=train[0].blocks,
        lattice=lattice,
        components=components,
    )

    def prepared(section: Section) -> NetworkSection:
        if paper:
            values, background = raw_features(preparation, section.tiles, section.white)
        else:
            values = network_features(preparation, section.tiles)
            background = np.zeros(values.shape[1], np.float32)
        return NetworkSection(
            section.patient, section.row, section.col, values, section.targets, background
        )

    trained = train_network(
        [prepared(section) for section in train],
        [prepared(section) for section in validation],
        task=record["task"],
        lattice=lattice,
        settings=options,
        seed=record["seed"],
        whole_grid=record["published_grid"] if paper else None,
        stop_after=stop_after,
        checkpoint=_checkpoint(state, train, validation, stop_after),
        device=device,
    )
    model = NetworkModel(
        network=trained.network,
        preparation=preparation,
        target_mean=trained.target_mean,
        target_sd=trained.target_sd,
        task=record["task"],
        raw=paper,
        absent_tumour=bool(record.get("absent_tumour")),
    )
    return model, trained


def _tumour_maps(
    model: NetworkModel, sections: Sequence[Section], device: str
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (probability, label) of the labelled spots of sections that the model did not see."""
    if model.task == "expression" or model.absent_tumour:
        return []
    maps = []
    for section in sections:
        known = np.isfinite(section.targets[:, -1])
        probability, _ = model.predict(section.tiles, device=device)
        maps.append((probability[known, -1], section.targets[known, -1] > 0.5))
    return maps


def _mean_scores(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each score over the folds that have it."""
    tasks = dict.fromkeys(task for found in scores for task in found)
    return {t: float(np.mean([found[t] for found in scores if t in found])) for t in tasks}


def _checkpoint(
    state: tuple[str | Path, Any] | None,
    train: Sequence[Section],
    validation: Sequence[Section],
    stop_after: float | None,
) -> Checkpoint | None:
    """Return where one training keeps its state; raw data are digested, so nodes may differ."""
    if state is None:
        return None
    data = [
        part
        for section in (*train, *validation)
        for part in (section.slide, section.row, section.col, section.features, section.targets)
    ]
    folder, shared = state
    return Checkpoint(
        folder, identity=digest(shared, torch.__version__, len(train), stop_after, *data)
    )


def training_settings(settings: Mapping[str, Any]) -> TrainingSettings:
    """Return the training settings among a model's settings; those of other kinds are ignored."""
    known = {field.name for field in fields(TrainingSettings)}
    chosen = {key: value for key, value in settings.items() if key in known and value is not None}
    if "channels" in chosen:
        chosen["channels"] = tuple(int(width) for width in chosen["channels"])
    return TrainingSettings(**chosen)


def _labelled(sections: Sequence[Section]) -> list[Section]:
    """Return the sections that have labelled spots, naming those that have none."""
    kept = [section for section in sections if np.isfinite(section.targets).any()]
    for section in sections:
        if not np.isfinite(section.targets).any():
            LOG.warning("section %s has no labelled spot: not used", section.slide)
    return kept
