"""Predict the extended panel, on which copy number rests, with a model folder (no torch)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from histogep.deployment.arrays import check_predicted, read_model_arrays
from histogep.deployment.folder import check_features, read_settings, tiles_of, weights_file
from histogep.encoders.feature_file import Features
from histogep.errors import InputError
from histogep.models.ridge import RidgeModel


def predict_extended(features: Features, folder: str | Path) -> tuple[np.ndarray, list[str]]:
    """Return the extended panel's expression of a slide, and its genes, from a model folder.

    Needs neither torch nor Snakemake.

    Parameters
    ----------
    features
        Features of all tiles of the slide.
    folder
        Model folder (results/model/{study}).

    Returns
    -------
    tuple
        (n tiles, genes) float32 log1p CP10k, cut at 0, and the genes.

    Raises
    ------
    InputError
        The folder has no extended ridge, or the slide was encoded otherwise.
    """
    settings = read_settings(folder)
    extended = settings["models"].get("extended")
    if extended is None or extended["kind"] != "ridge":
        raise InputError(f"{folder} holds no ridge for the extended panel: see `deploy.extended`")
    check_features(features, settings)
    arrays = read_model_arrays(folder, weights_file(settings, "extended"), extended)
    values, _ = RidgeModel.from_arrays(arrays, extended).predict(tiles_of(features))
    check_predicted(
        values,
        rows=np.arange(len(values)),
        slide=features.slide,
        study=settings["study"],
        names=extended["genes"],
    )
    return np.maximum(values, 0.0, out=values), list(extended["genes"])
