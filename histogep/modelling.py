"""One fold's model from its sections: prepare, fit, and record on whom everything was fitted."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from histogep import neighbours
from histogep.checkpoints import Checkpoint, digest
from histogep.datasets import Section
from histogep.folds import MIN_TRAINING_PATIENTS
from histogep.inference import NetworkModel, network_features, raw_features
from histogep.jobs import InputError
from histogep.lattice import Lattice
from histogep.metrics import best_dice_threshold
from histogep.neighbours import fit_neighbours
from histogep.networks import count_parameters
from histogep.preparation import Preparation
from histogep.ridge import ALPHAS, fit_ridge
from histogep.selection import inner_folds
from histogep.training import NetworkSection, Trained, TrainingSettings, train_network

LOG = logging.getLogger(__name__)
COMPONENTS = 64


@dataclass
class FittedModel:
    """What train_model writes: arrays (weights.safetensors), settings and history."""

    arrays: dict[str, np.ndarray]
    settings: dict[str, Any]
    history: pd.DataFrame


def fit_model(
    sections: Mapping[str, Sequence[Section]],
    *,
    name: str,
    settings: Mapping[str, Any],
    protocol: str,
    fold: str,
    genes: Sequence[str],
    seed: int,
    hist_grid: Sequence[int],
    test: Mapping[str, str],
    honest: Sequence[Mapping[str, Any]] = (),
    checkpoints: str | Path | None = None,
    code: str = "",
    device: str = "cpu",
) -> FittedModel:
    """Train one model on one fold.

    Parameters
    ----------
    sections
        "train" and "validation" sections; those held out are not given.
    name, settings
        Name of the model and its settings (kind, task, panel and those of its kind).
    protocol, fold
        honest, hist or all; fold id.
    genes
        Panel, in the order of the target columns (empty for the tumour task).
    seed
        Seed of everything random.
    hist_grid
        (rows, cols) of the grid of the paper's protocol.
    test
        {slide: patient} held out; recorded only.
    honest
        For the fold `all`: the settings of this model in the honest folds, which fix its epoch.
    checkpoints, code
        Folder in which a network's training keeps its state, and the digest of the code; a state
        of other settings, data or code is not used. None: nothing is kept.
    device
        "cpu" or "cuda".
    """
    train, validation = list(sections["train"]), list(sections.get("validation", ()))
    task, kind = settings["task"], settings["kind"]
    if not train:
        raise InputError(f"fold {fold} has no training section: see its rows in the folds table")
    lattice = Lattice.from_settings(train[0].lattice)
    record = {
        "model": name,
        "kind": kind,
        "task": task,
        "panel": settings["panel"],
        "protocol": protocol,
        "fold": fold,
        "seed": int(seed),
        "genes": list(genes) if task == "expression" else ["tumour"],
        "lattice": lattice.to_settings(),
        "encoders": train[0].encoders,
        "blocks": [[block, int(width)] for block, width in train[0].blocks],
        "hist_grid": [int(side) for side in hist_grid],
    }
    for role, members in (("train", train), ("validation", validation)):
        record |= _who(role, {section.slide: section.patient for section in members})
    record |= _who("test", test)
    if kind in ("ridge", "neighbours"):
        return _fit_linear(train + validation, record, settings, lattice)
    if kind == "cmunet":
        state = None
        if checkpoints is not None:
            state = (checkpoints, digest(record, dict(settings), code, device, torch.__version__))
        return _fit_network(train, validation, record, settings, lattice, honest, state, device)
    raise InputError(f"models.{name}.kind is {kind!r}: it must be cmunet, ridge or neighbours")


def _fit_linear(
    sections: list[Section], record: dict[str, Any], settings: Mapping[str, Any], lattice: Lattice
) -> FittedModel:
    if record["task"] != "expression":
        raise InputError(
            f"models.{record['model']}: {record['kind']} predicts expression, not the tumour map"
        )
    by_section = record["protocol"] == "hist"
    fit, alphas, options = fit_ridge, ALPHAS, {}
    if record["kind"] == "neighbours":
        fit, alphas = fit_neighbours, neighbours.ALPHAS
        options = {key: settings[key] for key in ("ranks", "rings") if key in settings}
    model = fit(
        [section.tiles for section in sections],
        [section.targets for section in sections],
        [section.slide if by_section else section.patient for section in sections],
        blocks=sections[0].blocks,
        lattice=lattice,
        components=settings.get("components", COMPONENTS),
        alphas=settings.get("alphas") or alphas,
        encoder_sets=settings.get("encoder_sets", ()),
        **options,
    )
    slides = [section.slide for section in sections]
    for what in ("scaler", "pca", "target", "alpha"):
        record[f"{what}_fitted_on"] = slides
    record |= {
        "choice": model.choice,
        "alpha": model.choice["alpha"],
        "validation_score": model.choice["score"],
        "validation_metric": "in-section Pearson, inner folds",
        "epoch_fitted_on": [],
        "best_epoch": None,
        "threshold_fitted_on": [],
        "threshold": None,
        "n_parameters": int(model.deviation.size + model.level.size),
    }
    return FittedModel(model.to_arrays(), record, pd.DataFrame(model.choice["candidates"]))


def _fit_network(
    train: list[Section],
    validation: list[Section],
    record: dict[str, Any],
    settings: Mapping[str, Any],
    lattice: Lattice,
    honest: Sequence[Mapping[str, Any]],
    state: tuple[str | Path, str] | None,
    device: str,
) -> FittedModel:
    options = training_settings(settings)
    paper = record["protocol"] == "hist"
    if record["task"] == "tumour":
        train, validation = _labelled(train), _labelled(validation)
        if not train:
            raise InputError(
                f"fold {record['fold']}: no training section has labelled spots; give labels "
                "(slides.tsv, column labels) or leave the tumour model out"
            )
    common = {
        "record": record,
        "components": settings.get("components", COMPONENTS),
        "lattice": lattice,
        "options": options,
        "state": state,
        "device": device,
    }
    patients = list(dict.fromkeys(section.patient for section in train))
    stop_after, score, fitted_on = None, None, []
    maps: list[tuple[np.ndarray, np.ndarray]] = []
    threshold = None
    if record["protocol"] == "all":
        epochs = [int(other["best_epoch"]) for other in honest if other["best_epoch"]]
        if epochs:
            stop_after = int(np.median(epochs))
            scores = [other["validation_score"] for other in honest]
            score = float(np.mean([s for s in scores if s is not None] or [np.nan]))
            fitted_on = [section.slide for section in train]
        found = [other.get("threshold") for other in honest]
        found = [value for value in found if value is not None]
        threshold = float(np.median(found)) if found else None
    elif not paper and not validation and 1 < len(patients) < MIN_TRAINING_PATIENTS:
        inner = []
        for out in inner_folds(patients):
            judges = [s for s in train if s.patient in out]
            inner_model, trained = _train(
                [s for s in train if s.patient not in out], judges, **common
            )
            inner.append(trained)
            maps += _tumour_maps(inner_model, judges, device)
        stop_after = int(np.median([trained.best_epoch for trained in inner]))
        score = float(np.mean([trained.score for trained in inner]))
        fitted_on = [section.slide for section in train]
        LOG.info("inner folds chose epoch %d, score %.4f", stop_after, score)
    model, trained = _train(train, validation, stop_after=stop_after, **common)
    if validation:
        score, fitted_on = trained.score, [section.slide for section in validation]
        maps = _tumour_maps(model, validation, device)
    if maps:
        threshold = _tumour_threshold(maps)
    slides = [section.slide for section in train]
    for what in ("scaler", "pca", "target"):
        record[f"{what}_fitted_on"] = slides
    counts = count_parameters(model.network)
    expression = record["task"] == "expression"
    record |= {
        "epoch_fitted_on": fitted_on,
        "alpha_fitted_on": [],
        "alpha": None,
        "threshold_fitted_on": [] if threshold is None else fitted_on,
        "threshold": threshold,
        "best_epoch": trained.best_epoch,
        "validation_score": None if score is None or not np.isfinite(score) else score,
        "validation_metric": "in-section Pearson" if expression else "in-section AUROC",
        "architecture": model.network.architecture,
        "n_parameters": counts["total"],
        "parameters": counts,
        "training": {field.name: getattr(options, field.name) for field in fields(options)},
        "torch": torch.__version__,
    }
    return FittedModel(model.to_arrays(), record, trained.history)


def _train(
    train: list[Section],
    validation: list[Section],
    *,
    record: Mapping[str, Any],
    components: int,
    lattice: Lattice,
    options: TrainingSettings,
    state: tuple[str | Path, str] | None,
    device: str,
    stop_after: int | None = None,
) -> tuple[NetworkModel, Trained]:
    """Fit the preparation on the training sections, then the network.

    `state` is the folder of the checkpoints and the digest of what all trainings of the job share.
    """
    paper = record["protocol"] == "hist"
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
        whole_grid=record["hist_grid"] if paper else None,
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
    )
    return model, trained


def _tumour_maps(
    model: NetworkModel, sections: Sequence[Section], device: str
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (probability, label) of the labelled spots of sections that the model did not see."""
    if model.task != "tumour":
        return []
    maps = []
    for section in sections:
        known = np.isfinite(section.targets[:, 0])
        probability, _ = model.predict(section.tiles, device=device)
        maps.append((probability[known, 0], section.targets[known, 0] > 0.5))
    return maps


def _tumour_threshold(maps: Sequence[tuple[np.ndarray, np.ndarray]]) -> float | None:
    """Return the probability of the best Dice over the spots of all maps; None with one class."""
    probability, label = (np.concatenate(parts) for parts in zip(*maps, strict=True))
    if label.all() or not label.any():
        LOG.warning("the sections to choose the tumour threshold on have one class: there is none")
        return None
    threshold = best_dice_threshold(probability, label)
    LOG.info("tumour threshold %.3f, from %d spots", threshold, len(label))
    return threshold


def _checkpoint(
    state: tuple[str | Path, str] | None,
    train: Sequence[Section],
    validation: Sequence[Section],
    stop_after: int | None,
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
    return Checkpoint(folder, identity=digest(shared, len(train), stop_after, *data))


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


def _who(role: str, members: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the slides and the patients of one role, as settings.json names them."""
    return {
        f"{role}_slides": list(members),
        f"{role}_patients": list(dict.fromkeys(members.values())),
    }
