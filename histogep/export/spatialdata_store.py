"""One slide as a SpatialData store: its image, its tiles or spots, and tables of what is known there."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import anndata
import dask
import dask.array as da
import geopandas
import numpy as np
import pandas as pd
import shapely
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Identity, Scale

from histogep.export.layers import SlideLayers
from histogep.files import complete
from histogep.slides.reader import Slide

log = logging.getLogger(__name__)

#: Side in px of the blocks in which an image is read and written.
BLOCK_PX = 1024
#: The coarsest level of an image has at most about this many px a side.
_COARSEST_PX = 1024
REGION, INSTANCE = "region", "instance"


def write_store(layers: SlideLayers, slide: Slide, path: str | Path, *, image_um: float) -> None:
    """Write the store; complete or absent. All of it lies in `global`, in level-0 px of the slide.

    Parameters
    ----------
    layers
        What is known of the slide: the tables `expression` (of a section raw counts, and the layer
        log1p_cp10k), `tumour`, and `copy_number` where there are profiles.
    slide
        Its image, which is read block by block.
    path
        Folder to write, `*.zarr`.
    image_um
        um per px of the finest level of the image; never finer than the slide's own pixels.
    """
    name = layers.slide
    region = f"{name}_{'spots' if layers.measured else 'tiles'}"
    tables = {"expression": layers.data.copy(), "tumour": _tumour(layers)}
    if layers.cnv is not None:
        tables["copy_number"] = _copy_number(layers.cnv)
    store = SpatialData(
        images={f"{name}_image": _image(slide, image_um)},
        shapes={region: _shapes(layers)},
        tables={key: _annotate(table, region) for key, table in tables.items()},
    )
    # One block at a time: with threads there are as many blocks in memory as cores.
    with complete(path) as temporary, dask.config.set(scheduler="synchronous"):
        store.write(temporary)


def _image(slide: Slide, image_um: float) -> Any:
    scale = max(1.0, image_um / slide.mpp)
    width, height = (max(1, round(side / scale)) for side in (slide.width_px, slide.height_px))
    step_x, step_y = slide.width_px / width, slide.height_px / height

    def read(block_info: Any = None) -> np.ndarray:
        (_, _), (top, bottom), (left, right) = block_info[None]["array-location"]
        pixels = slide.read(
            left * step_x,
            top * step_y,
            (right - left) * step_x,
            (bottom - top) * step_y,
            size=(right - left, bottom - top),
        )
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    chunks = (3,), _blocks(height), _blocks(width)
    pixels = da.map_blocks(read, chunks=chunks, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))
    levels = max(0, int(np.ceil(np.log2(max(width, height) / _COARSEST_PX))))
    return Image2DModel.parse(
        pixels,
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        scale_factors=[2] * levels or None,
        chunks=(3, BLOCK_PX, BLOCK_PX),
        transformations={"global": Scale([step_x, step_y], axes=("x", "y"))},
    )


def _blocks(side: int) -> tuple[int, ...]:
    whole, rest = divmod(side, BLOCK_PX)
    return (BLOCK_PX,) * whole + ((rest,) if rest else ())


def _shapes(layers: SlideLayers) -> geopandas.GeoDataFrame:
    """Return spots as circles, tiles as squares of the lattice's pitch (of a hexagonal one, touching)."""
    x_px, y_px = layers.centres_px.T
    index = np.arange(len(x_px))
    if layers.measured:
        ((_, entry),) = layers.data.uns["spatial"].items()
        radius = float(entry["scalefactors"]["spot_diameter_fullres"]) / 2
        frame = {"geometry": shapely.points(x_px, y_px), "radius": radius}
    else:
        half = layers.lattice.pitch_um / layers.mpp / 2
        frame = {"geometry": shapely.box(x_px - half, y_px - half, x_px + half, y_px + half)}
    shapes = geopandas.GeoDataFrame(frame, index=index)
    return ShapesModel.parse(shapes, transformations={"global": Identity()})


def _tumour(layers: SlideLayers) -> anndata.AnnData:
    """Return the tumour map, and what each place is, as a table."""
    obs = pd.concat([layers.tumour.drop(columns="tumour"), layers.tissue], axis=1)
    values = layers.tumour[["tumour"]].to_numpy(np.float32)
    return anndata.AnnData(values, obs=obs, var=pd.DataFrame(index=["tumour"]))


def _copy_number(profile: anndata.AnnData) -> anndata.AnnData:
    """Return the profiles as a table, a column for each window of the genome."""
    windows = np.asarray(profile.obsm["X_cnv"].toarray() if hasattr(profile.obsm["X_cnv"], "toarray") else profile.obsm["X_cnv"], np.float32)  # fmt: skip
    starts = sorted((int(at), str(name)) for name, at in profile.uns["cnv"]["chr_pos"].items())
    places = np.array([at for at, _ in starts])
    at = np.searchsorted(places, np.arange(windows.shape[1]), side="right") - 1
    chromosome = [starts[i][1] for i in at]
    names = [f"{c}:{w - starts[i][0]}" for w, (i, c) in enumerate(zip(at, chromosome, strict=True))]
    var = pd.DataFrame({"chromosome": pd.Categorical(chromosome)}, index=names)
    table = anndata.AnnData(windows, obs=profile.obs.copy(), var=var)
    table.uns = {name: profile.uns[name] for name in ("name", "measured", "reference")}
    return table


def _annotate(table: anndata.AnnData, region: str) -> anndata.AnnData:
    """Return a table that annotates the shapes, row by row."""
    # Each table would carry the image that the store has already.
    table.uns.pop("spatial", None)
    table.obs = table.obs.drop(columns=[c for c in (REGION, INSTANCE) if c in table.obs])
    table.obs[REGION] = pd.Categorical([region] * table.n_obs)
    table.obs[INSTANCE] = np.arange(table.n_obs)
    for name in table.obs:
        if table.obs[name].dtype == object:
            table.obs[name] = pd.Categorical(table.obs[name].astype(str))
    return TableModel.parse(table, region=region, region_key=REGION, instance_key=INSTANCE)
