"""Predict the sections that a fold holds out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata
import numpy as np

from histogep.deployment.folder import check_features
from histogep.errors import InputError
from histogep.evaluation.held_out import join_tables, table_of_section
from histogep.lattice import Lattice
from histogep.models.predict import Model, Plain, predict_tiles
from histogep.models.sections import Section, grid_of, read_sections


def predict_held_out(
    model: Model,
    settings: Mapping[str, Any],
    test: Mapping[str, str],
    features: Sequence[str | Path],
    spots: Sequence[str | Path],
    labels: Sequence[str | Path],
    *,
    device: str = "cpu",
) -> anndata.AnnData:
    """Return the table of results/predictions for the test sections of a fold.

    X is the prediction (log1p CP10k, not cut; or probability), layers["truth"] the measurement
    (NaN where a tumour label is unknown), layers["level"] the slide's level (linear models of
    expression), uns["threshold"] the tumour threshold chosen inside the fold, where one was. A model
    of both tasks has the tumour as its last column, a model that could not be trained NaN and
    uns["absent"], the reason. `patient_cv` folds have the in-tissue spots; `published` folds the whole grid,
    whose background has truth 0.

    Parameters
    ----------
    model, settings
        As `histogep.models.predict.read_model` gives them.
    test
        {slide: patient} of the sections to predict; other sections' files are not opened.
    features, spots, labels
        Files over all sections.
    device
        "cpu" or "cuda".

    Raises
    ------
    InputError
        No test section, or one that the model was trained on.
    """
    if not test:
        raise InputError(f"fold {settings['fold']} holds out no section: nothing to predict")
    seen = set(settings["train_slides"] + settings["validation_slides"]) & set(test)
    if seen:
        raise InputError(
            f"the model of {settings['fold']} was trained on its test sections "
            f"{', '.join(sorted(seen))}: the folds changed, train it again"
        )
    tables = []
    for slide, patient in test.items():
        (section,) = read_sections(
            {slide: patient},
            features,
            spots,
            labels,
            task=settings["task"],
            genes=settings["genes"],
            lattice=settings["lattice"],
        )
        check_features(section, settings)
        if settings["protocol"] == "published":
            tables.append(_whole_grid(model, settings, section, device))
        else:
            tables.append(_spots(model, section, device))
    return join_tables(tables, settings)


def _spots(model: Model, section: Section, device: str) -> anndata.AnnData:
    values, level = predict_tiles(model, section.tiles, device=device)
    layers = {"truth": section.targets}
    if level is not None:
        layers["level"] = np.broadcast_to(level, values.shape).copy()
    return table_of_section(
        section, values, layers, section.barcode, section.row, section.col, section.barcode != ""
    )


def _whole_grid(
    model: Any, settings: Mapping[str, Any], section: Section, device: str
) -> anndata.AnnData:
    """Return every position of the paper's grid; a linear model predicts 0 off the tissue."""
    shape = settings["published_grid"]
    if isinstance(model, Plain):
        lattice = Lattice.from_settings(settings["lattice"])
        grid = grid_of(section.row, section.col, lattice, shape=shape)
        values = grid.lay(model.predict(section.tiles)[0])
    else:
        values, grid = model.predict_grid(section.tiles, section.white, shape, device=device)
    tissue = grid.tissue.ravel()
    barcode = np.full(tissue.size, "", object)
    barcode[tissue] = section.barcode[grid.index.ravel()[tissue]]
    row, col = (axis.ravel().astype(np.int32) for axis in np.indices(grid.index.shape))
    n_targets = values.shape[-1]
    layers = {"truth": grid.lay(section.targets).reshape(-1, n_targets)}
    return table_of_section(
        section, values.reshape(-1, n_targets), layers, barcode, row, col, tissue
    )
