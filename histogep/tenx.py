"""Files of 10x Space Ranger: matrices, and where a folder keeps its parts."""

from __future__ import annotations

import gzip
import json
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from scipy import io, sparse

from histogep.hdf5_guard import open_given
from histogep.jobs import InputError

log = logging.getLogger(__name__)

_BIN_FOLDER = re.compile(r"square_(\d+)um")


@dataclass(frozen=True)
class CountMatrix:
    """Raw counts with the names of their rows and columns."""

    counts: sparse.csr_matrix
    barcodes: np.ndarray
    genes: np.ndarray
    gene_ids: np.ndarray


def read_10x_h5(path: str | Path) -> CountMatrix:
    """Return the gene expression of a 10x HDF5 matrix (Cell/Space Ranger 3 and later, or 2)."""
    path = Path(path)
    with open_given(path, "a 10x matrix") as file:
        if "matrix" in file:
            group, features = file["matrix"], file["matrix/features"]
            symbols, ids = features["name"][()], features["id"][()]
            kinds = _text(features["feature_type"][()]) if "feature_type" in features else None
        else:
            genomes = [key for key in file if isinstance(file[key], h5py.Group)]
            if len(genomes) != 1 or "gene_names" not in file[genomes[0]]:
                raise InputError(
                    f"{path}: not a 10x matrix (no group 'matrix'; groups: "
                    f"{', '.join(genomes) or 'none'})"
                )
            group, kinds = file[genomes[0]], None
            symbols, ids = group["gene_names"][()], group["genes"][()]
        n_genes, n_spots = (int(size) for size in group["shape"][()])
        # Stored genes by spots in compressed columns, that is spots by genes in rows.
        matrix = sparse.csr_matrix(
            (group["data"][()], group["indices"][()], group["indptr"][()]),
            shape=(n_spots, n_genes),
        )
        barcodes = _text(group["barcodes"][()])
    return _expression_only(CountMatrix(matrix, barcodes, _text(symbols), _text(ids)), kinds)


def read_10x_mtx(folder: str | Path) -> CountMatrix:
    """Return the gene expression of a 10x matrix folder: matrix, features (or genes), barcodes."""
    folder = Path(folder)
    paths = {}
    for part, names in {
        "matrix": ("matrix.mtx",),
        "features": ("features.tsv", "genes.tsv"),
        "barcodes": ("barcodes.tsv",),
    }.items():
        found = [
            folder / f"{n}{z}" for n in names for z in (".gz", "") if (folder / f"{n}{z}").is_file()
        ]
        if not found:
            raise InputError(f"{folder}: no {names[0]} or {names[0]}.gz")
        paths[part] = found[0]
    try:
        with open_file(paths["matrix"], "rb") as handle:
            matrix = sparse.csr_matrix(io.mmread(handle).T)
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{paths['matrix']}: not a readable matrix ({error})") from error
    names = {"sep": "\t", "header": None, "dtype": str, "keep_default_na": False}
    features = read_delimited(paths["features"], **names)
    barcodes = read_delimited(paths["barcodes"], **names)[0].to_numpy(object)
    if matrix.shape != (len(barcodes), len(features)):
        raise InputError(
            f"{folder}: the matrix is {matrix.shape[1]} genes x {matrix.shape[0]} spots, but "
            f"{len(features)} features and {len(barcodes)} barcodes are named; a file is cut short"
        )
    symbols = features[1 if features.shape[1] > 1 else 0].to_numpy(object)
    kinds = features[2].to_numpy(object) if features.shape[1] > 2 else None
    ids = features[0].to_numpy(object)
    return _expression_only(CountMatrix(matrix, barcodes, symbols, ids), kinds)


def bin_folder(folder: Path, pitch_um: float | None) -> Path:
    """Return the folder of matrix and `spatial` under what the user named."""
    if (folder / "outs").is_dir():
        folder = folder / "outs"
    if (folder / "binned_outputs").is_dir():
        folder = folder / "binned_outputs"
    bins = {
        int(match[1]): child
        for child in sorted(folder.iterdir())
        if child.is_dir() and (match := _BIN_FOLDER.fullmatch(child.name))
    }
    if not bins:
        return folder
    if pitch_um in bins:
        return bins[int(pitch_um)]
    if len(bins) == 1:
        return next(iter(bins.values()))
    raise InputError(
        f"{folder} holds Visium HD bins of {', '.join(map(str, sorted(bins)))} um but the "
        f"lattice has a pitch of {pitch_um:g} um; set lattice.pitch_um to one of them"
        if pitch_um
        else f"{folder} holds bins of several sizes: name one of its square_*um folders"
    )


def find_matrix(folder: Path) -> Path:
    """Return the filtered matrix of a Space Ranger folder, or the raw one if there is no other."""
    for stage in ("filtered", "raw"):
        stem = f"{stage}_feature_bc_matrix"
        for name in (f"{stem}.h5", stem):
            if (folder / name).exists():
                return folder / name
        # Files of GEO carry the sample's name in front.
        named = sorted(folder.glob(f"*{stem}.h5"))
        if len(named) > 1:
            raise InputError(
                f"{folder} holds {len(named)} matrices ({named[0].name}, {named[1].name}...): name "
                "one of the files in `counts`"
            )
        if named:
            return named[0]
    raise InputError(
        f"{folder} holds no filtered_feature_bc_matrix.h5 (nor the folder of that name, nor a raw "
        "one): `counts` must be Space Ranger's `outs` folder or the folder above it"
    )


def find_positions(folder: Path) -> Path:
    """Return the positions that lie in, or beside, a folder of Space Ranger."""
    names = ("tissue_positions.parquet", "tissue_positions.csv", "tissue_positions_list.csv")
    for parent in (folder / "spatial", folder, folder.parent / "spatial"):
        for name in names:
            if (parent / name).is_file():
                return parent / name
    raise InputError(f"{folder} holds none of spatial/{', spatial/'.join(names)}")


def read_scalefactors(folder: Path, positions: Path) -> dict[str, float]:
    """Return the scale factors beside the positions or in the folder; empty if there are none."""
    for parent in (positions.parent, folder / "spatial"):
        path = parent / "scalefactors_json.json"
        if path.is_file():
            try:
                return {k: float(v) for k, v in json.loads(path.read_text()).items()}
            except (ValueError, TypeError, AttributeError) as error:
                raise InputError(f"{path}: no JSON of numbers ({error})") from error
    return {}


def open_file(path: Path, mode: str) -> Any:
    """Open a file that may be compressed with gzip, whatever its name says."""
    with open(path, "rb") as handle:
        zipped = handle.read(2) == b"\x1f\x8b"
    return gzip.open(path, mode) if zipped else open(path, mode)


def read_delimited(path: Path, **options: Any) -> pd.DataFrame:
    """Return a table of text, compressed or not; without `sep` tabs if there are any, else commas."""
    if "sep" not in options:
        with open_file(path, "rt") as handle:
            options["sep"] = "\t" if "\t" in handle.readline() else ","
    with open_file(path, "rb") as handle:
        return pd.read_csv(handle, **options)


def _expression_only(matrix: CountMatrix, kinds: np.ndarray | None) -> CountMatrix:
    """Leave out antibodies and whatever else was counted beside genes."""
    if kinds is None or (kinds == "Gene Expression").all():
        return matrix
    genes = kinds == "Gene Expression"
    log.info("%d features that are not gene expression left out", int((~genes).sum()))
    return CountMatrix(
        sparse.csr_matrix(matrix.counts[:, np.flatnonzero(genes)]),
        matrix.barcodes,
        matrix.genes[genes],
        matrix.gene_ids[genes],
    )


def _text(values: Iterable[Any]) -> np.ndarray:
    return np.array(
        [v.decode("utf-8") if isinstance(v, bytes) else str(v) for v in values], dtype=object
    )
