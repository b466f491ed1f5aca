"""Sections in a SpatialData store, as spatialdata-io's visium and visium_hd write them.

Of a store its table, the shapes that the table annotates, and the transformations of shapes and images
are read; of images no pixel. The result is an AnnData as other files give it, with the places of the
spots in the pixels of the full image.

spatialdata-io names coordinate systems: `ID` (or `global`) is that of the full image,
`ID_downscaled_hires` and `ID_downscaled_lowres` those of Space Ranger's smaller ones. Where the store
has the full image, its own transformation says which pixel a place is.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd

from histogep.errors import InputError
from histogep.files import given_file
from histogep.inputs.zarr_guard import (
    check_zarr,
    incomplete,
    is_zarr,
    read_attributes,
    refuse_linked_parts,
)
from histogep.spots.matrices import check_compressed

log = logging.getLogger(__name__)

_BINS = re.compile(r"square_(\d+)um")
#: Ends of the names of coordinate systems that are smaller than the full image.
_SMALLER = {"downscaled_hires": "tissue_hires_scalef", "downscaled_lowres": "tissue_lowres_scalef"}
#: End of the name of the image that the positions were made on; others may be of any resolution.
_FULL_IMAGE = "full_image"
#: Columns of obs that are read: where a spot is, beside the two that join it to a shape.
_COLUMNS = (
    *("in_tissue", "array_row", "array_col", "row", "col"),
    *("pxl_col_in_fullres", "pxl_row_in_fullres", "library_id"),
)
#: Transformations of one coordinate system that differ by less than this many px are the same.
_SAME_PX = 0.5
#: Bytes of the shortest shape of a parquet file, packed.
_ROWS_PER_BYTE = 1000


def is_store(folder: str | Path) -> bool:
    """Return whether a folder is a SpatialData store."""
    parts = ("tables", "table", "shapes", "images", "points", "labels")
    return is_zarr(folder) and any((Path(folder) / part).is_dir() for part in parts)


def read_store(
    folder: str | Path, *, pitch_um: float | None = None
) -> tuple[anndata.AnnData, float | None, float]:
    """Return the spots of a SpatialData store.

    Parameters
    ----------
    folder
        The store (Zarr format 2 or 3).
    pitch_um
        Pitch of the study's lattice, which picks among the bin sizes of Visium HD.

    Returns
    -------
    data
        X, layers and raw as in the store; obs with the columns that say where a spot is; obsm spatial:
        x and y in pixels of the full image; uns spatial: scale factors of the smaller images.
    bin_um
        Side of the bins of Visium HD in um, else None.
    spot_px
        Diameter of a spot, or side of a bin, in pixels of the full image.

    Raises
    ------
    InputError
        Something is missing, damaged or unsafe, of another layout, or of several sections.
    """
    folder = Path(folder)
    refuse_linked_parts(folder)
    table, bin_um = _choose_table(folder, pitch_um)
    path = folder / "tables" / table
    with given_file(path, "a table of SpatialData"):
        data, keys = _read_table(path)
        region = _region(data, keys, path)
        shapes = folder / "shapes" / region
        if not shapes.is_dir():
            kind = "labels (an image)" if (folder / "labels" / region).is_dir() else "nothing"
            raise InputError(
                f"{path} annotates {region!r}, of which the store has {kind}, not shapes: write it again "
                "with the spots as shapes (spatialdata-io: annotate_table_by_labels=False)"
            )
    with given_file(shapes, "shapes of SpatialData"):
        centres, sizes = _read_shapes(shapes, data.obs[keys["instance_key"]], path)
        to_full, scales = _full_image(folder, shapes)
    data.obsm = {"spatial": centres @ to_full[:2, :2].T + to_full[:2, 2]}
    spot_px = float(np.median(sizes) * _scale(to_full))
    scales["spot_diameter_fullres"] = spot_px
    data.uns = {"spatial": {region: {"scalefactors": scales}}}
    data.obs = data.obs[[name for name in _COLUMNS if name in data.obs]]
    return data, bin_um, spot_px


def _choose_table(folder: Path, pitch_um: float | None) -> tuple[str, float | None]:
    """Return the name of the table of spots, and the side of its bins if it is of bins."""
    tables = folder / "tables"
    if not tables.is_dir():
        old = (folder / "table").is_dir()
        raise InputError(
            f"{folder} has no tables"
            + (
                ", only the `table` of an early version of spatialdata: read and write it again with a "
                "newer one"
                if old
                else ": give the store with the counts of the spots"
            )
        )
    names = sorted(path.name for path in tables.iterdir() if path.is_dir())
    bins = {int(found[1]): name for name in names if (found := _BINS.search(name))}
    if bins:
        if pitch_um in bins:
            return bins[int(pitch_um)], float(pitch_um)
        if len(bins) == 1:
            ((side, name),) = bins.items()
            return name, float(side)
        raise InputError(
            f"{folder} holds Visium HD bins of {', '.join(map(str, sorted(bins)))} um"
            + (f" but the lattice has a pitch of {pitch_um:g} um" if pitch_um else "")
            + "; set lattice.pitch_um to one of them"
        )
    spots = [name for name in names if (tables / name / "obs" / "array_row").is_dir()]
    if len(spots) == 1:
        return spots[0], None
    if spots:
        raise InputError(
            f"{folder} holds {len(spots)} tables of spots ({', '.join(spots[:4])}): give each section "
            "a store and a row of the slide sheet of its own"
        )
    raise InputError(
        f"{folder}: none of its tables ({', '.join(names[:4]) or 'there is none'}) has array_row and "
        "array_col in obs, the rows and columns of the array, as spatialdata-io's visium and visium_hd "
        "write them; cells and other segmentations lie on no lattice"
    )


def _read_table(path: Path) -> tuple[anndata.AnnData, dict[str, Any]]:
    """Return counts, obs and var of a table, and the keys that join it to its shapes."""
    import zarr
    from anndata.io import read_elem

    lacking = check_zarr(path)
    group: Any = zarr.open_group(path, mode="r", use_consolidated=False)
    for part in ("obs", "var", "uns"):
        if part not in group:
            raise InputError(f"{path} has no {part}: it is not a table of SpatialData")
    if "uns/spatialdata_attrs" not in group:
        raise InputError(
            f"{path} has no uns['spatialdata_attrs'], so it annotates no shapes: make it a table with "
            "spatialdata.models.TableModel.parse"
        )
    keys = read_elem(group["uns/spatialdata_attrs"])
    names = {key: str(keys.get(key)) for key in ("region_key", "instance_key")}
    wanted = [*_COLUMNS, *names.values()]
    needed = ("X", "layers/", "raw/", "var/", "obs/_index", "uns/spatialdata_attrs/")
    index = group["obs"].attrs.get("_index", "_index")
    for name in lacking:
        parts = name.split("/")
        used = name.startswith(needed) or (parts[0] == "obs" and parts[1] in (*wanted, index))
        if name == "raw" and group[name].attrs.get("encoding-type") == "null":
            continue
        # Of one category alone every code is 0, the fill value: nothing is lost.
        of_one = parts[-1] == "codes" and group[f"{name[:-6]}/categories"].shape == (1,)
        if used and not of_one:
            raise incomplete(path, name)
    _check_sparse(group, path)
    columns = {name: group[f"obs/{name}"] for name in wanted if name in group["obs"]}
    obs = pd.DataFrame(
        {name: _plain(read_elem(column)) for name, column in columns.items()},
        index=pd.Index(_plain(read_elem(group[f"obs/{index}"])).astype(object)),
    )
    parts = {"var": read_elem(group["var"]), "X": read_elem(group["X"]) if "X" in group else None}
    if "layers" in group:
        parts["layers"] = read_elem(group["layers"])
    raw = read_elem(group["raw"]) if "raw" in group else None
    if raw is not None:
        parts["raw"] = raw if isinstance(raw, Mapping) else {"X": raw.X, "var": raw.var}
    return anndata.AnnData(obs=obs, **parts), names | {"region": keys.get("region")}


def _plain(values: Any) -> np.ndarray:
    """Return a column as numbers, or as Python's own text."""
    values = np.asarray(values)
    return values if values.dtype.kind in "biuf" else values.astype(object)


def _check_sparse(group: Any, path: Path) -> None:
    """Hold the arrays of the sparse matrices of a table against their shapes: compiled code does not."""
    places = ["X", "raw/X", *(f"layers/{name}" for name in group.get("layers", ()))]
    for name in places:
        if name not in group:
            continue
        attributes = group[name].attrs
        form = str(attributes.get("encoding-type", ""))[:3]
        if form not in ("csr", "csc"):
            continue
        shape = [int(side) for side in attributes.get("shape", ())]
        if len(shape) != 2:
            raise InputError(f"{path}: {name} is a sparse matrix without a shape")
        values, indices, indptr = (
            np.asarray(group[f"{name}/{part}"][:]) for part in ("data", "indices", "indptr")
        )
        n_lines, n_across = shape if form == "csr" else shape[::-1]
        check_compressed(values, indices, indptr, n_lines, n_across, name=f"{path}: {name}")


def _region(data: anndata.AnnData, keys: Mapping[str, Any], path: Path) -> str:
    """Return the one element that a table annotates."""
    for key in ("region_key", "instance_key"):
        if keys[key] not in data.obs:
            raise InputError(
                f"{path}: uns['spatialdata_attrs'] names the {key} {keys[key]!r}, which obs has not: "
                "write the store again"
            )
    regions = sorted(set(data.obs[keys["region_key"]].astype(str)))
    if len(regions) != 1 or regions[0] in ("", "nan"):
        raise InputError(
            f"{path} holds several sections ({', '.join(regions[:4])}): write each to a store of its own "
            "(sdata.filter_by_coordinate_system), with a row of the slide sheet"
        )
    if "/" in regions[0] or regions[0].startswith("."):
        raise InputError(f"{path} annotates {regions[0]!r}, which is no name of shapes")
    return regions[0]


def _read_shapes(shapes: Path, instances: pd.Series, table: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return centres (n, 2) and sizes (n,) of the shapes of a table's rows, in the shapes' own units."""
    import geopandas
    import pyarrow.parquet
    import shapely

    check_zarr(shapes)  # links
    path = shapes / "shapes.parquet"
    if not path.is_file():
        raise InputError(
            f"{shapes} has no shapes.parquet: an early version of spatialdata wrote it; read and write "
            "the store again with a newer one"
        )
    n_rows = pyarrow.parquet.read_metadata(path).num_rows
    if n_rows > _ROWS_PER_BYTE * path.stat().st_size:
        raise InputError(f"{path} declares {n_rows} rows, more than its bytes can hold")
    frame = geopandas.read_parquet(path)
    if not frame.index.is_unique:
        raise InputError(f"{path} lists a shape twice: write the store again")
    if instances.duplicated().any():
        raise InputError(
            f"{table}: {instances.name} {instances[instances.duplicated()].iloc[0]} of obs occurs twice: "
            "each spot needs a shape of its own"
        )
    at = frame.index.get_indexer(pd.Index(instances.to_numpy()))
    if not (at >= 0).any() and len(at):
        at = frame.index.astype(str).get_indexer(pd.Index(instances.astype(str).to_numpy()))
    if (at < 0).any():
        raise InputError(
            f"{(at < 0).sum()} of {len(at)} spots of {table} have no shape in {shapes} (such as "
            f"{instances.iloc[int((at < 0).argmax())]}): table and shapes are of different sections, or "
            "the store is incomplete"
        )
    geometry = frame.geometry.iloc[at]
    kinds = set(geometry.geom_type)
    if kinds == {"Point"}:
        if "radius" not in frame:
            raise InputError(f"{shapes} are points without a radius, so they are not spots")
        sizes = 2 * frame["radius"].to_numpy(np.float64)[at]
    elif kinds <= {"Polygon", "MultiPolygon"}:
        sizes = np.sqrt(shapely.area(geometry.to_numpy()))
    else:
        raise InputError(
            f"{shapes} are {', '.join(sorted(map(str, kinds)))}, not circles or squares"
        )
    centres = shapely.get_coordinates(shapely.centroid(geometry.to_numpy()))
    if len(centres) != len(at) or not np.isfinite(centres).all() or not (sizes > 0).all():
        raise InputError(f"{shapes} holds shapes that are empty or not finite: write them again")
    return centres, sizes


def _full_image(folder: Path, shapes: Path) -> tuple[np.ndarray, dict[str, float]]:
    """Return the affine matrix (3, 3) from shapes to pixels of the full image, and the scale factors.

    Where the store holds the full image, its own transformation counts; else the coordinate system that
    is not called down-scaled has the full image's pixels as its units.
    """
    systems = _transformations(read_attributes(shapes), shapes)
    smaller = {
        factor: systems[name]
        for end, factor in _SMALLER.items()
        for name in systems
        if name.endswith(end)
    }
    full = {n: m for n, m in systems.items() if not n.endswith(tuple(_SMALLER))}
    if not full:
        raise InputError(
            f"{shapes} lies in the coordinate systems {', '.join(systems) or '(none)'}, of which none is "
            "of the full image: write the store again with spatialdata-io, or add the transformation to "
            "its pixels as 'global'"
        )
    images = folder / "images"
    names = sorted(p.name for p in images.iterdir() if p.is_dir()) if images.is_dir() else []
    names = [name for name in names if name.endswith(_FULL_IMAGE)]
    found = {}
    for name in names:
        own = _transformations(_image_attributes(images / name), images / name)
        for system in sorted(set(own) & set(full)):
            if abs(np.linalg.det(own[system])) < 1e-12:
                raise InputError(f"{images / name} has a transformation that cannot be inverted")
            found[f"image {name} in {system}"] = np.linalg.inv(own[system]) @ full[system]
    found = found or {f"coordinate system {name}": matrix for name, matrix in full.items()}
    chosen, matrix = next(iter(found.items()))
    corners = np.array([[0, 0, 1], [1e4, 0, 1], [0, 1e4, 1]])
    unlike = [
        name
        for name, other in found.items()
        if np.abs(corners @ (other - matrix).T).max() > _SAME_PX
    ]
    if unlike:
        raise InputError(
            f"{shapes} lies differently in {chosen} and in {unlike[0]}: which of them has the pixels of "
            "the full image is unknown; remove the others (spatialdata.transformations."
            "remove_transformation) and write the store again"
        )
    log.info("%s: pixels of the full image are those of %s", shapes, chosen)
    if abs(np.linalg.det(matrix)) < 1e-12:
        raise InputError(f"{shapes} has a transformation that cannot be inverted")
    scales = {factor: _scale(small) / _scale(matrix) for factor, small in smaller.items()}
    return matrix, scales


def _image_attributes(image: Path) -> Mapping[str, Any]:
    """Return what holds an image's transformations, in OME-Zarr 0.4 or 0.5."""
    found = read_attributes(image)
    ome = found.get("ome", found)
    scales = ome.get("multiscales") if isinstance(ome, Mapping) else None
    if not isinstance(scales, list) or not scales or not isinstance(scales[0], Mapping):
        raise InputError(f"{image} has no multiscales: it is no image of SpatialData")
    return scales[0]


def _transformations(attributes: Mapping[str, Any], path: Path) -> dict[str, np.ndarray]:
    """Return coordinate system -> affine matrix (3, 3) of x and y, of a shape or an image."""
    from spatialdata.transformations import BaseTransformation
    from spatialdata.transformations.ngff.ngff_transformations import NgffBaseTransformation

    systems = {}
    for one in attributes.get("coordinateTransformations") or []:
        told = NgffBaseTransformation.from_dict(one)
        matrix = BaseTransformation.from_ngff(told).to_affine_matrix(("x", "y"), ("x", "y"))
        matrix = np.asarray(matrix, np.float64)
        if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
            raise InputError(f"{path} has a transformation that is not of x and y: write it again")
        systems[str(told.output_coordinate_system.name)] = matrix
    return systems


def _scale(matrix: np.ndarray) -> float:
    """Return by how much lengths grow, the mean of both axes."""
    return float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))
