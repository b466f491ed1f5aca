"""Train one fold's model from its sections: prepare, fit, and record on which slides."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from histogep.errors import InputError
from histogep.lattice import Lattice
from histogep.models import neighbours, tumour_head
from histogep.models.neighbours import fit_neighbours
from histogep.models.ridge import ALPHAS, fit_ridge
from histogep.models.sections import Section, both_classes
from histogep.models.selection import METRICS, tumour_threshold
from histogep.models.tumour_head import fit_tumour, probability_of
from histogep.warned import decides

LOG = logging.getLogger(__name__)
COMPONENTS = 64


@dataclass
class FittedModel:
    """What train_model writes: arrays (weights.safetensors), settings and history.

    `epochs` is a network's history with the seconds of each epoch, which no two runs share; None
    of a model that has no epochs.
    """

    arrays: dict[str, np.ndarray]
    settings: dict[str, Any]
    history: pd.DataFrame
    epochs: pd.DataFrame | None = None


def fit_model(
    sections: Mapping[str, Sequence[Section]],
    *,
    name: str,
    settings: Mapping[str, Any],
    protocol: str,
    fold: str,
    genes: Sequence[str],
    seed: int,
    published_grid: Sequence[int],
    test: Mapping[str, str],
    patient_cv: Sequence[Mapping[str, Any]] = (),
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
        patient_cv, published or all; fold id.
    genes
        Panel, in the order of the target columns (empty for the tumour task).
    seed
        Seed of everything random.
    published_grid
        (rows, cols) of the grid of the paper's protocol.
    test
        {slide: patient} held out; recorded only.
    patient_cv
        For the fold `all`: the settings of this model in the patient_cv folds, which fix its epoch.
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
        "genes": list(genes) if task != "tumour" else ["tumour"],
        "lattice": lattice.to_settings(),
        "encoders": train[0].encoders,
        "blocks": [[block, int(width)] for block, width in train[0].blocks],
        "published_grid": [int(side) for side in published_grid],
    }
    for role, members in (("train", train), ("validation", validation)):
        record |= _who(role, {section.slide: section.patient for section in members})
    record |= _who("test", test)
    reason = _unlabelled(train, validation, record) if task in ("tumour", "both") else ""
    if reason and task == "tumour":
        return _absent(record, reason)
    if kind == "cmunet":
        from histogep.models.network import fit as network_modelling  # torch: seconds in every job

        if reason:
            record["absent_tumour"] = reason
            LOG.warning("%s: only expression is learned", reason, **decides("tumour"))
        state = None
        if checkpoints is not None:
            state = (checkpoints, (record, dict(settings), code, device))
        arrays, history, seconds = network_modelling.fit_network(
            train, validation, record, settings, lattice, patient_cv, state, device
        )
        return FittedModel(arrays, record, history, history.assign(seconds=seconds))
    if kind == "neighbours" and task == "tumour":
        return _fit_tumour(train + validation, record, settings, lattice)
    if kind in ("ridge", "neighbours"):
        return _fit_linear(train + validation, record, settings, lattice)
    if kind in ("lattice", "blend"):
        if task != "expression":
            raise _wrong_task(record)
        from histogep.models.network.lattice_fit import fit_lattice  # torch: seconds in every job

        arrays, history = fit_lattice(train + validation, record, settings, lattice, device=device)
        return FittedModel(arrays, record, history)
    raise InputError(
        f"models.{name}.kind is {kind!r}: it must be cmunet, ridge, neighbours, lattice or blend"
    )


def _wrong_task(record: Mapping[str, Any]) -> InputError:
    return InputError(
        f"models.{record['model']}: {record['kind']} cannot predict {record['task']}; use "
        "cmunet, or neighbours for the tumour map alone"
    )


def _fit_linear(
    sections: list[Section], record: dict[str, Any], settings: Mapping[str, Any], lattice: Lattice
) -> FittedModel:
    if record["task"] != "expression":
        raise _wrong_task(record)
    by_section = record["protocol"] == "published"
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
        "validation_metric": f"{METRICS['expression']}, inner folds",
        "scores": {"expression": model.choice["score"]},
        "epoch_fitted_on": [],
        "best_epoch": None,
        "threshold_fitted_on": [],
        "threshold": None,
        "n_parameters": int(model.deviation.size + model.level.size),
    }
    return FittedModel(model.to_arrays(), record, pd.DataFrame(model.choice["candidates"]))


def _fit_tumour(
    sections: list[Section], record: dict[str, Any], settings: Mapping[str, Any], lattice: Lattice
) -> FittedModel:
    """Fit the light tumour map; cross-validation over patients chooses the threshold too."""
    options = {key: settings[key] for key in ("rings",) if key in settings}
    model, left_out = fit_tumour(
        [section.tiles for section in sections],
        [section.targets for section in sections],
        [section.patient for section in sections],
        blocks=sections[0].blocks,
        lattice=lattice,
        components=settings.get("components", COMPONENTS),
        alphas=settings.get("alphas") or tumour_head.ALPHAS,
        encoder_sets=settings.get("encoder_sets", ()),
        **options,
    )
    threshold = None
    if left_out is not None:
        odds = model.slope * left_out.discriminant + left_out.offset
        threshold = tumour_threshold(probability_of(odds), left_out.label > 0.5)
    slides = [section.slide for section in sections]
    # The probability is calibrated on cross-validated scores.
    for what in ("scaler", "pca", "target", "alpha", "calibration"):
        record[f"{what}_fitted_on"] = slides
    score = model.choice["score"]
    record |= {
        "choice": model.choice,
        "alpha": model.choice["alpha"],
        "validation_score": score,
        "validation_metric": f"{METRICS['tumour']}, inner folds",
        "scores": {} if score is None else {"tumour": score},
        "epoch_fitted_on": [],
        "best_epoch": None,
        "threshold_fitted_on": [] if threshold is None else slides,
        "threshold": threshold,
        "n_parameters": len(model.coefficients) + 2,
    }
    return FittedModel(model.to_arrays(), record, pd.DataFrame(model.choice["candidates"]))


def _unlabelled(
    train: Sequence[Section], validation: Sequence[Section], record: Mapping[str, Any]
) -> str:
    """Return why no tumour map can be learned from these sections, "" if one can."""
    # A network learns from the training sections alone, the light map from all of them.
    sections = list(train) + ([] if record["kind"] == "cmunet" else list(validation))
    if both_classes(sections):
        return ""
    label = np.concatenate([section.targets[:, -1] for section in sections])
    n_malignant, n_other = int((label == 1).sum()), int((label == 0).sum())
    return (
        f"fold {record['fold']}: its {len(sections)} training sections have {n_malignant} spots "
        f"labelled malignant and {n_other} non-malignant, so no tumour map can be learned; give "
        "labels (slides.tsv, column labels)"
    )


def _absent(record: dict[str, Any], reason: str) -> FittedModel:
    """Return a placeholder for a model that could not be trained, so that all else goes on."""
    LOG.warning("%s", reason, **decides("tumour"))
    for what in ("scaler", "pca", "target", "alpha", "epoch", "threshold", "calibration"):
        record[f"{what}_fitted_on"] = []
    record |= {
        "absent": reason,
        "alpha": None,
        "best_epoch": None,
        "threshold": None,
        "validation_score": None,
        "validation_metric": METRICS[record["task"]],
        "scores": {},
        "n_parameters": 0,
    }
    return FittedModel({}, record, pd.DataFrame({"absent": [reason]}))


def _who(role: str, members: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the slides and the patients of one role, as settings.json names them."""
    return {
        f"{role}_slides": list(members),
        f"{role}_patients": list(dict.fromkeys(members.values())),
    }
