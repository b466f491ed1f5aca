"""Prediction of a whole slide into its file, a piece at a time.

Features are read band by band or window by window and the expression is written row by row, so that
neither is ever in memory as a whole: only the position, barcode and three numbers of every tile
are. The values written are those of `DeployedModel.predict`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd

from histogep.deployment.folder import check_features, columns_of
from histogep.deployment.model import DeployedModel, Prediction
from histogep.encoders.feature_file import open_features
from histogep.files import complete
from histogep.lattice import Lattice
from histogep.models.predict import add_predictions
from histogep.models.tile_source import TileSource, runs
from histogep.models.tumour_head import probability_of
from histogep.slides.same_tissue import Keypoints
from histogep.slides.thumbnail import spatial_entry

#: Rows of the table that are in memory at a time.
ROWS = 4096


@contextlib.contextmanager
def predict_into(
    path: str | Path,
    features: str | Path,
    model: DeployedModel,
    *,
    image: str = "",
    picture: Keypoints | None = None,
    thumbnail: np.ndarray,
    device: str = "cpu",
) -> Iterator[Prediction]:
    """Write results/expression/{slide}.h5ad; yield the prediction, with its expression in the file.

    Parameters
    ----------
    path
        File to write; complete, once the context ends, or absent.
    features
        results/features/{slide}.h5.
    model
        A loaded model folder.
    image
        SHA-256 of the slide's image: shows whether the model was trained on it, and is kept.
    picture
        Keypoints of the slide's image: show whether the model was trained on a changed copy of it.
    thumbnail
        The slide as a small image, uint8 RGB, which squidpy draws under the tiles.
    device
        "cpu" or "cuda".

    Raises
    ------
    InputError
        As for `DeployedModel.predict`.
    """
    with open_features(features) as slide, complete(path) as temporary:
        check_features(slide, model.settings)
        source = TileSource(slide.values, slide.row, slide.col)
        genes = model.settings["models"]["expression"]["genes"]
        with h5py.File(temporary, "w") as file:
            table = file.create_dataset(
                "X", shape=(len(source), len(genes)), dtype=np.float32, track_times=False
            )
            table.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
            odds = _fill(table, source, model, device, slide.slide)
            measures = np.empty((len(source), model.distances.n_measures), np.float32)
            for part, values in source.chunks():
                measures[part] = model.distances.measure(values)
            prediction = model.told(
                slide,
                expression=table,
                tumour=probability_of(odds),
                measures=measures,
                image=image,
                picture=picture,
            )
            prediction.uns["spatial"] = spatial_entry(
                thumbnail,
                slide=slide.slide,
                width_px=slide.attributes["level0_width"],
                spot_px=Lattice.from_settings(slide.lattice).spot_um / prediction.uns["mpp"],
            )
            _write_rest(file, prediction)
            yield prediction


def _fill(
    table: h5py.Dataset, source: TileSource, model: DeployedModel, device: str, slide: str
) -> np.ndarray:
    """Write the expression; return the tumour's log odds (n,), NaN without a tumour model."""
    odds = np.full(len(source), np.nan)
    records = model.settings["models"]
    shared = "tumour" in records and records["tumour"]["model"] == records["expression"]["model"]
    if "tumour" in records:
        odds[:] = 0.0

    def add_odds(tiles: np.ndarray, values: np.ndarray) -> None:
        odds[tiles] += values[:, -1]

    def add(tiles: np.ndarray, values: np.ndarray) -> None:
        if shared:
            add_odds(tiles, values)
        values = values[:, columns_of(records["expression"], "expression")]
        order = np.argsort(tiles, kind="stable")
        for place, rows in runs(tiles[order]):
            table[rows] = table[rows] + values[order[place]]

    add_predictions(model.models["expression"], source, add, device=device)
    if "tumour" in records and not shared:
        add_predictions(model.models["tumour"], source, add_odds, device=device)
    for start in range(0, len(source), ROWS):
        rows = slice(start, min(start + ROWS, len(source)))
        values = table[rows]
        model.check_expression(values, np.arange(rows.start, rows.stop), slide=slide)
        table[rows] = np.maximum(values, 0.0)
    return odds


def _write_rest(file: h5py.File, prediction: Prediction) -> None:
    """Write all of the table but X, as anndata does."""
    places = {"spatial": prediction.centres_px}
    rest = anndata.AnnData(
        obs=prediction.cells(), var=prediction.genes.copy(), obsm=places, uns=prediction.uns
    )
    file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    for name in ("obs", "var", "obsm", "varm", "obsp", "varp", "layers", "uns"):
        value = getattr(rest, name)
        frame = isinstance(value, pd.DataFrame)
        # The image of the slide is half as large with gzip; tables are small.
        options = {"dataset_kwargs": {"compression": "gzip"}} if name == "uns" else {}
        anndata.io.write_elem(file, name, value if frame else dict(value), **options)
