"""Files of 10x Space Ranger: matrices, and where a folder keeps its parts."""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import math
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from scipy import io, sparse

from histogep.errors import InputError
from histogep.files import given_file
from histogep.inputs.delimited import open_delimited
from histogep.inputs.gene_names import Features, keep_genes
from histogep.inputs.hdf5_guard import open_given
from histogep.spots.matrices import check_compressed, wrong_counts

log = logging.getLogger(__name__)

_BIN_FOLDER = re.compile(r"square_(\d+)um")
#: Bytes of the shortest entry of a Matrix Market file ("1 1 1" and its line end).
_LEAST_ENTRY = 6
#: Bytes of one byte of gzip at most.
_MOST_EXPANSION = 1032
#: Bytes of the header and the comments of a Matrix Market file.
_MOST_HEADER = 1 << 20
#: Datasets of a 10x HDF5 matrix beside those of its features.
_PARTS = ("data", "indices", "indptr", "shape", "barcodes")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class CountMatrix:
    """Raw counts with the names of their rows and columns."""

    counts: sparse.csr_matrix
    barcodes: np.ndarray
    genes: np.ndarray
    gene_ids: np.ndarray


def read_10x_h5(path: str | Path, *, gene_positions: str | Path | None = None) -> CountMatrix:
    """Return the gene expression of a 10x HDF5 matrix (Cell/Space Ranger 3 and later, or 2).

    scanpy reads it, once its parts are known to fit each other: scanpy believes them, and compiled
    code then reads foreign memory.

    Parameters
    ----------
    path
        The file.
    gene_positions
        File of gene positions, which may know the symbols of Ensembl ids.

    Raises
    ------
    InputError
        The file is no such matrix, or its parts do not fit each other.
    """
    # Seconds, and every plan reads positions by way of this module.
    import scanpy as sc

    path = Path(path)
    with open_given(path, "a 10x matrix") as file:
        genome = None
        if not isinstance(file.get("matrix"), h5py.Group):
            genome = _only_genome(file, path)
        _check_10x_h5(file, genome, path)
        with warnings.catch_warnings():
            # Of two Ensembl ids with one symbol the counts are added up later.
            warnings.filterwarnings("ignore", message="Variable names are not unique")
            # Of another type, or of another genome, are more than scanpy knows: `keep_genes` sorts
            # them out, and says what it leaves out.
            table = sc.read_10x_h5(path, genome=genome, gex_only=False)
    features = Features(
        sparse.csr_matrix(table.X),
        table.var_names.to_numpy(object),
        table.var["gene_ids"].to_numpy(object),
        *(
            table.var[name].to_numpy(object) if name in table.var else None
            for name in ("feature_types", "genome")
        ),
    )
    barcodes = table.obs_names.to_numpy(object)
    return _finish(features, barcodes, source=str(path), gene_positions=gene_positions)


def _check_10x_h5(file: h5py.File, genome: str | None, path: Path) -> None:
    """Refuse a 10x matrix whose parts are missing, do not fit each other, or are no raw counts."""
    group = file[genome or "matrix"]
    names = {"gene_names": group, "genes": group}
    if genome is None:
        features = group.get("features")
        if not isinstance(features, h5py.Group):
            raise InputError(f"{path}: not a 10x matrix (no group /matrix/features)")
        names = dict.fromkeys(("name", "id", "feature_type"), features)
        names |= {key: features for key in ("genome", "gene_id") if key in features}
    _refuse_namesakes(group, {**names, **dict.fromkeys(_PARTS, group)}, path)
    arrays = {key: _dataset(group, key, path) for key in ("data", "indices", "indptr")}
    shape = _dataset(group, "shape", path)
    if shape.shape != (2,) or shape.dtype.kind not in "iu":
        raise InputError(
            f"{path}: /matrix/shape is {shape.tolist()}, not a number of genes and spots"
        )
    n_genes, n_spots = (int(size) for size in shape)
    for key, place, size in (
        *((key, place, n_genes) for key, place in names.items()),
        ("barcodes", group, n_spots),
    ):
        n_names = _count_names(place, key, path)
        if n_names != size:
            what = key if place is group else f"features/{key}"
            raise InputError(
                f"{path}: the matrix is {n_genes} genes x {n_spots} spots, but {what} has "
                f"{n_names} entries; the file is damaged or cut short"
            )
    # Stored genes by spots in compressed columns, that is spots by genes in rows.
    check_compressed(**arrays, n_major=n_spots, n_minor=n_genes, name=str(path))
    # Before scanpy makes them float32, in which large or fractional values may become whole ones.
    if wrong := wrong_counts(arrays["data"]):
        raise InputError(f"{path}: {wrong}; give raw counts, not normalised ones")


def read_10x_mtx(folder: str | Path, *, gene_positions: str | Path | None = None) -> CountMatrix:
    """Return the gene expression of a 10x matrix folder: matrix, features (or genes), barcodes.

    `scanpy.read_10x_mtx` reads two of the ways in which tools write these folders (all of it gzip with
    three columns of features, or none of it and two), goes by the ends of the names alone, takes a
    gene called NA for a missing one and a quote in a name for the start of a longer one, and adds up
    a place that is given twice. So the names are read here, and the matrix by the function of scipy
    that scanpy calls.

    Files of GEO carry the sample's name in front of all three.

    Parameters
    ----------
    folder
        The folder.
    gene_positions
        As of `read_10x_h5`.

    Raises
    ------
    InputError
        A file is missing or damaged, or they do not fit each other.
    """
    folder = Path(folder)
    matrix_path = find_one(folder, ("matrix.mtx", "matrix.mtx.gz"))
    if matrix_path is None:
        raise InputError(f"{folder}: no matrix.mtx or matrix.mtx.gz")
    prefix = re.sub(r"matrix\.mtx(\.gz)?$", "", matrix_path.name)
    paths = {}
    for part, names in {
        "features": ("features.tsv", "genes.tsv"),
        "barcodes": ("barcodes.tsv",),
    }.items():
        wanted = [folder / f"{prefix}{name}{zipped}" for name in names for zipped in (".gz", "")]
        found = [path for path in wanted if path.is_file()]
        if not found:
            raise InputError(f"{folder}: no {prefix}{names[0]} or {prefix}{names[0]}.gz")
        paths[part] = found[0]
    features = _read_names(paths["features"], "a table of features")
    barcodes = _read_names(paths["barcodes"], "a list of barcodes")[0].to_numpy(object)
    matrix = _read_matrix_market(matrix_path, len(features), len(barcodes), folder)
    columns = features.shape[1]
    if columns == 1 and features[0].str.contains("[,;]|\\s", regex=True).mean() > 0.5:
        raise InputError(
            f"{paths['features']}: line 1 ({features[0].iloc[0][:60]!r}) is not separated by tabs: "
            "give the file as the tool wrote it (id, symbol, type)"
        )
    return _finish(
        Features(
            matrix,
            features[1 if columns > 1 else 0].to_numpy(object),
            features[0].to_numpy(object),
            features[2].to_numpy(object) if columns > 2 else None,
        ),
        barcodes,
        source=str(folder),
        gene_positions=gene_positions,
    )


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
        if (folder / f"{stem}.h5").is_file():
            return folder / f"{stem}.h5"
        if (folder / stem).is_dir():
            return folder / stem
        # Files of GEO carry the sample's name in front.
        named = sorted(folder.glob(f"*{stem}.h5"))
        if len(named) > 1:
            raise InputError(
                f"{folder} holds {len(named)} matrices ({named[0].name}, {named[1].name}...): name "
                "one of the files in `counts`"
            )
        if named:
            return named[0]
    for place in (folder, folder / "segmented_outputs"):
        if (place / "filtered_feature_cell_matrix.h5").is_file():
            raise InputError(
                f"{place} holds the counts of segmented cells, which lie on no lattice: give the "
                "`binned_outputs` of the same run"
            )
    raise InputError(
        f"{folder} holds no filtered_feature_bc_matrix.h5 (nor the folder of that name, nor a raw "
        "one): `counts` must be Space Ranger's `outs` folder or the folder above it"
    )


def find_positions(folder: Path, *, matrix: Path) -> Path:
    """Return the positions that lie in, or beside, a folder of Space Ranger or of GEO.

    Parameters
    ----------
    folder
        The folder with the matrix.
    matrix
        The matrix. What stands before its usual name names the sample: positions with another
        sample's name in front are not taken, for barcodes are the same in all sections.
    """
    names = [
        f"{stem}{suffix}"
        for stem, suffix in (
            ("tissue_positions", ".parquet"),
            *(("tissue_positions", end) for end in (".csv", ".csv.gz")),
            *(("tissue_positions_list", end) for end in (".csv", ".csv.gz", ".txt", ".txt.gz")),
        )
    ]
    inside = [matrix] if matrix.is_dir() else []
    for parent in (folder / "spatial", folder, folder.parent / "spatial", *inside):
        if parent.is_dir() and (found := find_one(parent, names, prefix=sample_prefix(matrix))):
            return found
    others = sorted(
        path.name
        for parent in (folder / "spatial", folder, *inside)
        if parent.is_dir()
        for name in names
        for path in parent.glob(f"*{name}")
    )
    hint = (
        f"; {others[0]} is of another sample by its name: if it is not, name it in `positions`"
        if others
        else ""
    )
    raise InputError(
        f"{(matrix if inside else folder)} holds none of spatial/{', spatial/'.join(names)}{hint}"
    )


def sample_prefix(matrix: Path) -> str:
    """Return what stands before the usual name of a matrix, as GEO names its files: "GSM1_"."""
    if matrix.is_dir():
        found = find_one(matrix, ("matrix.mtx", "matrix.mtx.gz"))
        return re.sub(r"matrix\.mtx(\.gz)?$", "", found.name) if found else ""
    return matrix.name.split("filtered_feature_bc_matrix")[0].split("raw_feature_bc_matrix")[0] * (
        "feature_bc_matrix" in matrix.name
    )


def read_scalefactors(folder: Path, positions: Path, *, prefix: str = "") -> dict[str, float]:
    """Return the scale factors beside the positions or in the folder; empty if there are none.

    What is not a number above 0 is left out.
    """
    for parent in (positions.parent, folder / "spatial", folder):
        names = ("scalefactors_json.json", "scalefactors_json.json.gz")
        path = find_one(parent, names, prefix=prefix) if parent.is_dir() else None
        if path is None:
            continue
        if path.stat().st_size > _MOST_HEADER:
            raise InputError(f"{path}: {path.stat().st_size} bytes are not a list of scale factors")
        with given_file(path, "a JSON file of numbers"), open_file(path, "rb") as handle:
            content = json.loads(handle.read(_MOST_HEADER))
        if not isinstance(content, dict):
            raise InputError(f"{path}: no JSON of named numbers")
        return usable_scalefactors(content)
    return {}


def usable_scalefactors(content: Mapping[str, Any]) -> dict[str, float]:
    """Return the scale factors that are numbers above 0."""
    found = {}
    for key, value in content.items():
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            number = float(value)
            if math.isfinite(number) and number > 0 and not isinstance(value, bool):
                found[str(key)] = number
    return found


def is_gzip(path: Path) -> bool:
    """Return whether a file is compressed with gzip, whatever its name says."""
    with open(path, "rb") as handle:
        return handle.read(2) == b"\x1f\x8b"


def open_file(path: Path, mode: str) -> Any:
    """Open a file that may be compressed with gzip."""
    return gzip.open(path, mode) if is_gzip(path) else open(path, mode)


def find_one(folder: Path, names: Sequence[str], *, prefix: str = "") -> Path | None:
    """Return the file of a folder with one of the names, or with a sample's name before it (GEO).

    Parameters
    ----------
    folder
        Where to look.
    names
        The likeliest first.
    prefix
        How the name of a file with a sample's name must begin.

    Raises
    ------
    InputError
        Files of several samples lie there.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    for name in names:
        named = sorted(
            path
            for path in folder.glob(f"*[_.-]{name}")
            if path.is_file() and path.name.startswith(prefix)
        )
        if len(named) > 1:
            raise InputError(
                f"{folder} holds {len(named)} files of this kind ({named[0].name}, "
                f"{named[1].name}...): put each sample into a folder of its own"
            )
        if named:
            return named[0]
    return None


def _finish(
    features: Features,
    barcodes: np.ndarray,
    *,
    source: str,
    gene_positions: str | Path | None,
) -> CountMatrix:
    if wrong := wrong_counts(features.counts.data):
        raise InputError(f"{source}: {wrong}; give raw counts, not normalised ones")
    genes = keep_genes(features, source=source, gene_positions=gene_positions)
    return CountMatrix(genes.counts, barcodes, genes.names, genes.ids)


def _dataset(group: h5py.Group, key: str, path: Path) -> np.ndarray:
    if not isinstance(group.get(key), h5py.Dataset):
        raise InputError(f"{path}: not a 10x matrix (no dataset {group.name}/{key})")
    return np.asarray(group[key][()])


def _refuse_namesakes(group: h5py.Group, parts: Mapping[str, h5py.Group], path: Path) -> None:
    """Refuse a second dataset with the name of a part: scanpy takes whichever it meets last."""
    known = {f"{place.name}/{key}" for key, place in parts.items()}

    def check(name: str, found: h5py.Group | h5py.Dataset) -> None:
        inside = f"{group.name}/{name}"
        if isinstance(found, h5py.Dataset) and name.split("/")[-1] in parts and inside not in known:
            raise InputError(
                f"{path}: {inside} has the name of another part of the matrix, so which of them counts "
                "is unclear: give the file as Space Ranger wrote it"
            )

    group.visititems(check)


def _count_names(group: h5py.Group, key: str, path: Path) -> int:
    """Return how long a list of names is; those that scanpy cannot read or a line cannot hold are refused."""
    values = _dataset(group, key, path)
    if values.ndim != 1:
        raise InputError(f"{path}: {group.name}/{key} is no list of names")
    for place, value in enumerate(values):
        try:
            name = value.decode("utf-8") if isinstance(value, bytes) else str(value)
        except UnicodeDecodeError:
            raise InputError(
                f"{path}: entry {place + 1} of {group.name}/{key} is not UTF-8 ({value!r}): the "
                "file is damaged, or was written with another encoding"
            ) from None
        if _CONTROL.search(name):
            raise InputError(
                f"{path}: entry {place + 1} of {group.name}/{key} holds a control character "
                f"({name[:60]!r}): the file is damaged"
            )
        if not name.isascii():
            raise InputError(
                f"{path}: entry {place + 1} of {group.name}/{key} ({name[:60]!r}) is not ASCII, as "
                "Space Ranger writes and scanpy reads all names: rename it"
            )
    return len(values)


def _only_genome(file: h5py.File, path: Path) -> str:
    """Return the group of the genome of a matrix of Cell Ranger 2, the human one of several."""
    genomes = [
        key for key in file if isinstance(file[key], h5py.Group) and "gene_names" in file[key]
    ]
    if not genomes:
        if "obs" in file and "var" in file:
            raise InputError(
                f"{path} is an AnnData, not a matrix of 10x: give it a name that ends in .h5ad"
            )
        groups = [key for key in file if isinstance(file[key], h5py.Group)]
        raise InputError(
            f"{path}: not a 10x matrix (no group 'matrix'; groups: {', '.join(groups) or 'none'})"
        )
    if len(genomes) == 1:
        return genomes[0]
    human = [key for key in genomes if re.match(r"GRCh|hg\d", key)]
    if len(human) != 1:
        raise InputError(
            f"{path} holds the genomes {', '.join(genomes)}: give a matrix of one of them"
        )
    totals = {key: float(file[key]["data"][()].sum()) for key in genomes}
    log.warning(
        "%s: counts of several genomes; %s is analysed, left out: %s",
        *(path, human[0]),
        ", ".join(
            f"{key} ({100 * totals[key] / max(sum(totals.values()), 1):.1f} % of all counts)"
            for key in genomes
            if key != human[0]
        ),
    )
    return human[0]


def _read_names(path: Path, what: str) -> pd.DataFrame:
    """Return a table of names without a header, separated by tabs, all of it UTF-8."""
    table = open_delimited(path, what=what, header=False, separators=("\t",), comments="none")
    # Tools write UTF-8: what is none is damage, and no other encoding.
    with open_file(path, "rb") as handle:
        for number, line in enumerate(handle, start=1):
            try:
                line.decode("utf-8-sig")
            except UnicodeDecodeError:
                raise InputError(
                    f"{path}, line {number}: {line.strip()[:60]!r} is not UTF-8: the file is damaged, "
                    "or was written with another encoding"
                ) from None
    return table.text().reset_index(drop=True)


def _read_matrix_market(
    path: Path, n_features: int, n_barcodes: int, folder: Path
) -> sparse.csr_matrix:
    """Return a Matrix Market file as spots x features; its header is held against names and bytes."""
    with given_file(path, "a Matrix Market file"):
        with open_file(path, "rb") as handle:
            n_rows, n_columns, n_entries = _matrix_market_header(path, handle.readline)
        if (n_rows, n_columns) != (n_features, n_barcodes):
            turned = " (rows and columns are turned: transpose it)" * (
                (n_columns, n_rows) == (n_features, n_barcodes)
            )
            raise InputError(
                f"{folder}: the matrix is {n_rows} genes x {n_columns} spots, but {n_features} "
                f"features and {n_barcodes} barcodes are named; a file is cut short{turned}"
            )
        n_bytes = os.path.getsize(path) * (_MOST_EXPANSION if is_gzip(path) else 1)
        if n_entries > n_rows * n_columns or n_entries * _LEAST_ENTRY > n_bytes + 16:
            raise InputError(
                f"{path}: its header declares {n_entries} entries, more than the matrix of {n_rows} x "
                f"{n_columns} or the file of {os.path.getsize(path)} bytes can hold; it is damaged"
            )
        with open_file(path, "rb") as handle:
            entries = sparse.coo_matrix(io.mmread(handle))
    if entries.nnz != n_entries:
        raise InputError(f"{path}: {entries.nnz} entries, but its header declares {n_entries}")
    place = entries.row.astype(np.int64) * n_columns + entries.col
    if len(np.unique(place)) < len(place):
        raise InputError(f"{path}: one place of the matrix is given twice; the file is damaged")
    matrix = sparse.csr_matrix(entries.T)
    matrix.check_format(full_check=True)
    return matrix


def _matrix_market_header(path: Path, readline: Callable[[int], bytes]) -> tuple[int, int, int]:
    """Return rows, columns and entries of a matrix of counts."""
    words = readline(_MOST_HEADER).decode("latin-1").lower().split()
    if words[:2] != ["%%matrixmarket", "matrix"] or len(words) != 5:
        raise InputError(f"{path}: no Matrix Market file (line 1 must begin with %%MatrixMarket)")
    read = len(" ".join(words))
    line = b"%"
    while line.startswith(b"%") or (line and not line.strip()):
        line = readline(_MOST_HEADER)
        read += len(line)
        if read > _MOST_HEADER:
            raise InputError(f"{path}: more than {_MOST_HEADER} bytes of comments; it is damaged")
    sizes = line.split()
    if len(sizes) != 3 or not all(size.isdigit() for size in sizes):
        raise InputError(
            f"{path}: {line.strip()[:60]!r} is no size of a matrix (rows columns entries)"
        )
    n_rows, n_columns, n_entries = (int(size) for size in sizes)
    # R writes a matrix without entries as pattern symmetric.
    form, kind, symmetry = words[2:]
    if form != "coordinate" or (
        n_entries and (kind not in ("integer", "real") or symmetry != "general")
    ):
        raise InputError(
            f"{path}: a matrix of {form} {kind} {symmetry}; counts must be coordinate integer general"
        )
    return n_rows, n_columns, n_entries
