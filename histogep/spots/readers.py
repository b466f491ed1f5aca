"""Read the measured counts of a section and where its spots lie, whatever tool wrote them.

Space Ranger folders of every generation (1: positions without a header; 2 to 4: with one; HD:
binned, parquet), AnnData files, and legacy Spatial Transcriptomics tables.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from histogep.errors import InputError
from histogep.files import given_file
from histogep.inputs.delimited import open_delimited
from histogep.inputs.gene_names import (
    Features,
    are_ensembl,
    are_gene_types,
    clean_names,
    keep_genes,
)
from histogep.inputs.hdf5_guard import open_given
from histogep.inputs.joins import HALF, explain_names, round_st_names
from histogep.inputs.sheet_ids import refuse_formulas
from histogep.inputs.zarr_guard import is_zarr
from histogep.spots import space_ranger as tenx
from histogep.spots.matrices import check_compressed, wrong_counts
from histogep.spots.space_ranger import CountMatrix
from histogep.spots.spatialdata_store import is_store, read_store

log = logging.getLogger(__name__)

#: Columns of Space Ranger's positions; version 1 wrote them without a header.
POSITION_COLUMNS = (
    *("barcode", "in_tissue", "array_row", "array_col"),
    *("pxl_row_in_fullres", "pxl_col_in_fullres"),
)
TABLE_COLUMNS = ("in_tissue", "array_row", "array_col", "x_px", "y_px")
_TABLE_SUFFIXES = (".tsv", ".csv", ".txt")
_HD_NAME = re.compile(r"s_(\d{3})um_")
_ST_NAME = re.compile(r"(\d+)x(\d+)")
#: Rows of a legacy table without a position that are dropped with a warning, not refused: the
#: positions of these arrays were picked by hand, and often leave out a spot at the rim.
MAX_UNPLACED = 0.05
#: Array coordinates that were refined on the image differ from whole numbers by less than this.
MAX_REFINEMENT = 0.3
#: Share of spots at a place that another has too, from which a file holds several sections.
_SHARED_PLACES = 0.1
#: Columns of obs that tell the sections of one AnnData apart; the first must have one value.
_SECTION_COLUMNS = (
    *("library_id", "library", "sample", "sample_id", "section", "section_id", "slide", "slide_id"),
    *("batch", "orig.ident", "capture_area"),
)
#: Columns of var: symbols beside Ensembl ids, ids beside symbols, types of feature, genomes.
_SYMBOL_COLUMNS = (
    *("feature_name", "gene_symbols", "gene_symbol", "real_gene_name", "gene_name", "gene_names"),
    *("symbol", "symbols", "Symbol", "SYMBOL", "hgnc_symbol", "gene_short_name", "gene", "name"),
)
_ID_COLUMNS = (
    "gene_id",
    "gene_ids",
    "ensembl_id",
    "feature_id",
    "ensembl",
    "ensembl_ids",
    "ENSEMBL",
)
_TYPE_COLUMNS = ("feature_types", "feature_type", "modality", "feature_biotype")
_GENOME_COLUMNS = ("genome", "genomes", "feature_reference")
_TRUE = ("1", "1.0", "true", "t", "yes", "y", "in tissue", "in_tissue")
_FALSE = ("0", "0.0", "false", "f", "no", "n", "off tissue", "out of tissue")
#: Columns of obs with x and y in level-0 pixels, and how a table in obsm names x and y.
_PIXEL_COLUMNS = ("pxl_col_in_fullres", "pxl_row_in_fullres")
_AXIS_NAMES = (
    _PIXEL_COLUMNS,
    *(("x_px", "y_px"), ("pixel_x", "pixel_y"), ("imagecol", "imagerow"), ("x", "y")),
    *(("col", "row"), ("x_centroid", "y_centroid")),
)
#: Layers that hold raw counts by their name, the likeliest first.
_COUNT_LAYERS = (
    *("counts", "raw_counts", "counts_raw", "raw_count", "count", "raw"),
    *("umi", "umis", "umi_counts", "unnormalized"),
)
#: What is commonly given for counts, and the way in.
_OTHER_FORMATS = {
    ".h5mu": "a MuData file: save its genes with mudata.read(path).mod['rna'].write_h5ad('x.h5ad')",
    ".loom": "a loom file: save it with anndata.io.read_loom(path).write_h5ad('x.h5ad')",
    ".rds": "an R object: save it as .h5ad, or its counts and positions as tables",
    ".rdata": "an R object: save it as .h5ad, or its counts and positions as tables",
    ".h5seurat": "a Seurat file: save it as .h5ad, or its counts and positions as tables",
    ".gef": "a Stereo-seq file: save its bins as .h5ad",
    ".mtx": "one file of a matrix folder: give the folder, with features and barcodes",
    ".zip": "an archive: unpack it",
    ".tar": "an archive: unpack it",
    ".tgz": "an archive: unpack it",
    ".xlsx": "a workbook: spreadsheets turn genes into dates; give the table of the tool that counted",
}


@dataclass(frozen=True)
class RawSection:
    """Counts of a section as some tool wrote them, joined to their places.

    Attributes
    ----------
    counts
        Raw counts, spots by genes, CSR.
    genes, gene_ids
        Symbol and Ensembl id ("" where unknown) of each column; symbols may repeat.
    table
        One row per spot, index barcode: in_tissue (bool), array_row, array_col (as the tool
        numbers them), x_px, y_px (level-0 pixels of the centre).
    kind
        Lattice that the tool implies ("visium", "st", "square"), or "" if it implies none.
    source
        What was read, for messages.
    bin_um
        Side in um of the bins of Visium HD, else None.
    spot_px
        Diameter in level-0 px of a spot, where the tool wrote it.
    grid
        Whether array_row and array_col are already grid indices (column not doubled).
    scales
        Scale factors that the tool wrote beside the positions ("tissue_hires_scalef": 0.08).
    notes
        What share of counts and positions matched, as sentences.
    """

    counts: sparse.csr_matrix
    genes: np.ndarray
    gene_ids: np.ndarray
    table: pd.DataFrame
    kind: str
    source: str
    bin_um: float | None = None
    spot_px: float | None = None
    grid: bool = False
    scales: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        refuse_formulas(map(str, self.genes), self.source)


def read_section(
    counts: str | Path,
    *,
    positions: str | Path | None = None,
    pitch_um: float | None = None,
    gene_positions: str | Path | None = None,
) -> RawSection:
    """Read the spots of a section.

    Parameters
    ----------
    counts
        A Space Ranger folder (its `outs` or the folder that holds it; of HD, the `binned_outputs`
        or one `square_*um` of them), a 10x `*_feature_bc_matrix.h5` beside its `spatial` folder,
        an `.h5ad`, a SpatialData store (Zarr), or a table of spots by genes.
    positions
        Positions, where they do not lie beside the counts; needed for a table.
    pitch_um
        Pitch of the study's lattice, which picks among the bin sizes of Visium HD.
    gene_positions
        File of gene positions, which may know the symbols of genes that go by Ensembl ids.

    Raises
    ------
    InputError
        If something is missing, is of no known layout, or counts and positions do not match.
    """
    counts = Path(counts)
    if not counts.exists():
        raise InputError(f"counts {counts} do not exist")
    name = counts.name.lower().removesuffix(".gz")
    if counts.is_dir():
        if is_store(counts):
            data, bin_um, spot_px = read_store(counts, pitch_um=pitch_um)
            section = _section_of(data, counts, gene_positions)
            return replace(section, kind="square" if bin_um else "", bin_um=bin_um, spot_px=spot_px)
        _refuse_zarr(counts)
        if tenx.find_one(counts, ("matrix.mtx", "matrix.mtx.gz")):
            return _read_space_ranger(counts.parent, positions, gene_positions, data=counts)
        return _read_space_ranger(tenx.bin_folder(counts, pitch_um), positions, gene_positions)
    if name.endswith((".h5ad", ".h5", ".hdf5")):
        if tenx.is_gzip(counts):
            raise InputError(f"counts {counts} are compressed with gzip: unpack them")
        if name.endswith(".h5ad"):
            return _read_h5ad(counts, gene_positions)
        return _read_space_ranger(counts.parent, positions, gene_positions, data=counts)
    if name.endswith(_TABLE_SUFFIXES):
        return _read_st(counts, positions, gene_positions)
    known = next((what for suffix, what in _OTHER_FORMATS.items() if name.endswith(suffix)), "")
    raise InputError(
        f"counts {counts}: neither a Space Ranger folder, a 10x .h5, an .h5ad nor a table "
        f"(.tsv, .csv, .txt, each also .gz){f'; it is {known}' if known else ''}"
    )


def _refuse_zarr(folder: Path) -> None:
    """Refuse a Zarr store of another kind than SpatialData with the way in."""
    if not is_zarr(folder):
        return
    raise InputError(
        f"{folder} is a Zarr store, which is not read: in Python, save it with "
        "anndata.io.read_zarr(path).write_h5ad('x.h5ad') and give that file"
    )


def read_positions(path: str | Path) -> pd.DataFrame:
    """Return the table of positions (`TABLE_COLUMNS`), index barcode.

    Understands Space Ranger's CSV with and without header, its parquet, and the tables of legacy
    ST arrays (x, y, pixel_x, pixel_y and perhaps selected), whose spots are called "XxY".
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"positions {path} do not exist")
    parquet = path.name.lower().endswith(".parquet")
    table = _read_parquet(path) if parquet else _read_text_positions(path)
    if set(POSITION_COLUMNS) <= set(table):
        result = table[list(POSITION_COLUMNS)].set_axis(
            ["barcode", "in_tissue", "array_row", "array_col", "y_px", "x_px"], axis=1
        )
        result["barcode"] = clean_names(result["barcode"])
    elif {"x", "y", "pixel_x", "pixel_y"} <= set(table):
        result = pd.DataFrame(
            {
                "barcode": "",
                "in_tissue": table.get("selected", "1"),
                **{"array_row": table["y"], "array_col": table["x"]},
                **{"x_px": table["pixel_x"], "y_px": table["pixel_y"]},
            },
            index=table.index,
        )
    else:
        raise InputError(
            f"{path}: columns {', '.join(map(str, table.columns[:8]))}; expected "
            f"{', '.join(POSITION_COLUMNS)} (Space Ranger) or x, y, pixel_x, pixel_y (legacy ST)"
        )
    if not len(result):
        raise InputError(f"{path}: the table of positions is empty")
    for column in ("array_row", "array_col"):
        result[column] = _whole(_numbers(result, column, path), column, path)
    for column in ("x_px", "y_px"):
        result[column] = _numbers(result, column, path)
    if (result["barcode"] == "").all():
        row, col = result["array_row"], result["array_col"]
        result["barcode"] = [f"{x}x{y}" for x, y in zip(col, row, strict=True)]
    if (result["barcode"] == "").any():
        raise InputError(f"{path}: {_place(result, result['barcode'] == '')} has no barcode")
    result["in_tissue"] = _flags(result["in_tissue"], path, "in_tissue")
    _refuse_repeated(result["barcode"], path)
    return result.set_index("barcode")[list(TABLE_COLUMNS)]


def _read_space_ranger(
    folder: Path,
    positions: str | Path | None,
    gene_positions: str | Path | None,
    *,
    data: Path | None = None,
) -> RawSection:
    data = data or tenx.find_matrix(folder)
    read = tenx.read_10x_mtx if data.is_dir() else tenx.read_10x_h5
    counts = read(data, gene_positions=gene_positions)
    place = Path(positions) if positions else tenx.find_positions(folder, matrix=data)
    table = read_positions(place)
    matrix, table, notes = _join(counts, table, counts_name=data, positions_name=place)
    scales = tenx.read_scalefactors(folder, place, prefix=tenx.sample_prefix(data))
    bin_um = scales.get("bin_size_um") or _bin_of(table)
    return RawSection(
        counts=matrix,
        genes=counts.genes,
        gene_ids=counts.gene_ids,
        table=table,
        kind="square" if bin_um else _kind(table),
        source=str(data),
        bin_um=bin_um,
        spot_px=scales.get("spot_diameter_fullres"),
        scales=scales,
        notes=notes,
    )


def _read_st(
    counts: Path, positions: str | Path | None, gene_positions: str | Path | None
) -> RawSection:
    if not positions:
        raise InputError(
            f"counts {counts} are a table: give the file of the spots' pixels in `positions`"
        )
    place = Path(positions)
    table = read_positions(place)
    values, rows, columns = _read_counts_table(counts)
    known = set(table.index)
    if sum(name in known for name in columns) > sum(name in known for name in rows):
        log.info("%s has spots as columns: turned", counts)
        values, rows, columns = values.T, columns, rows
    if wrong := wrong_counts(values):
        raise InputError(f"{counts}: {wrong}; give raw counts, not normalised ones")
    _refuse_repeated(pd.Series(rows), counts)
    rounded = round_st_names(rows)
    if rounded is not None and (rounded != rows).any():
        log.info("%s: refined coordinates in the names of spots are rounded", counts)
        rows = rounded
    ids = np.where(are_ensembl(columns), columns, "").astype(object)
    genes = keep_genes(
        Features(sparse.csr_matrix(values, dtype=np.float32), columns, ids),
        source=str(counts),
        gene_positions=gene_positions,
    )
    matrix = CountMatrix(genes.counts, rows, genes.names, genes.ids)
    kept, table, notes = _join(
        matrix, table, counts_name=counts, positions_name=place, max_unplaced=MAX_UNPLACED
    )
    return RawSection(
        counts=kept,
        genes=matrix.genes,
        gene_ids=matrix.gene_ids,
        table=table,
        kind=_kind(table),
        source=str(counts),
        notes=notes,
    )


def _read_counts_table(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the numbers of a table of counts, and the names of its rows and of its columns."""
    table = open_delimited(path, what="a table of counts", row_names=True, repeated=True)
    if len(table.columns) < 2 or not len(table):
        raise InputError(
            f"{path}: {len(table)} rows of {len(table.columns)} columns; a table of counts has the "
            "names of the spots in the first column and one more for each gene"
        )
    values = table.numbers(labels=[table.columns[0]])
    return (
        values.iloc[:, 1:].to_numpy(np.float64),
        clean_names(values.iloc[:, 0]),
        clean_names(table.names[1:]),
    )


def _read_h5ad(path: Path, gene_positions: str | Path | None) -> RawSection:
    import anndata

    with open_given(path, "an .h5ad") as file:
        if "matrix" in file and "obs" not in file:
            raise InputError(
                f"{path} is a matrix of 10x, not an AnnData: give it a name that ends in .h5"
            )
        _check_sparse_groups(file, path)
        return _section_of(anndata.read_h5ad(path), path, gene_positions)


def _section_of(data: Any, path: Path, gene_positions: str | Path | None) -> RawSection:
    """Return the section of an AnnData, whatever file it was read from."""
    obs = data.obs
    grid = not {"array_row", "array_col"} <= set(obs)
    axes = ("row", "col") if grid else ("array_row", "array_col")
    missing = [axis for axis in axes if axis not in obs]
    pixels = _pixels(data, path)
    if missing or pixels is None:
        raise InputError(
            f"{path}: needs obs array_row and array_col (or row and col) and obsm['spatial'] in "
            f"level-0 pixels; obs has {', '.join(map(str, obs.columns)) or 'nothing'}, obsm has "
            f"{', '.join(data.obsm) or 'nothing'}"
        )
    names = pd.Series(clean_names(obs.index), index=obs.index)
    if (names == "").any():
        raise InputError(f"{path}: spot {int((names == '').argmax()) + 1} of obs has no name")
    _refuse_repeated(names, path)
    table = pd.DataFrame(
        {
            "in_tissue": _flags(obs["in_tissue"], path, "obs in_tissue")
            if "in_tissue" in obs
            else True,
            "array_row": _whole(_numbers(obs, axes[0], path), f"obs {axes[0]}", path),
            "array_col": _whole(_numbers(obs, axes[1], path), f"obs {axes[1]}", path),
            "x_px": pixels[:, 0],
            "y_px": pixels[:, 1],
        },
    ).set_axis(pd.Index(names.to_numpy(object), name="barcode"))
    _refuse_several_sections(data, table, path)
    matrix, var = _raw_counts(data, path)
    genes = keep_genes(_describe(matrix, var), source=str(path), gene_positions=gene_positions)
    scales = _scales_of(data)
    return RawSection(
        counts=genes.counts,
        genes=genes.names,
        gene_ids=genes.ids,
        table=table,
        kind="",
        source=str(path),
        grid=grid,
        scales=scales,
    )


def _pixels(data: Any, path: Path) -> np.ndarray | None:
    """Return x and y of the spots of an AnnData; None if it holds no pixels.

    `pxl_col_in_fullres` and `pxl_row_in_fullres` of obs say by their name which axis and which image
    they are of; `obsm["spatial"]` is x, y of the full image by convention only.
    """
    named = None
    if set(_PIXEL_COLUMNS) <= set(data.obs):
        named = np.column_stack([_numbers(data.obs, name, path) for name in _PIXEL_COLUMNS])
    place = next((key for key in ("spatial", "X_spatial") if key in data.obsm), "")
    if not place:
        return named
    values = data.obsm[place]
    if isinstance(values, pd.DataFrame):
        lower = {str(column).strip().lower(): column for column in values.columns}
        axes = next((pair for pair in _AXIS_NAMES if set(pair) <= set(lower)), None)
        if axes is not None:
            values = values[[lower[axis] for axis in axes]]
        elif values.shape[1] != 2:
            raise InputError(
                f"{path}: obsm['{place}'] has the columns {', '.join(map(str, lower))}: which are x "
                "and y is unknown; name them x and y"
            )
    try:
        pixels = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{path}: obsm['{place}'] holds values that are not numbers") from None
    if pixels.ndim != 2 or pixels.shape[1] < 2:
        raise InputError(f"{path}: obsm['{place}'] is of shape {pixels.shape}, not n x 2")
    pixels = pixels[:, :2]
    if not np.isfinite(pixels).all():
        raise InputError(f"{path}: obsm['{place}'] holds values that are not numbers")
    if named is not None and np.abs(named - pixels).max(initial=0) > 1:
        swapped = np.abs(named - pixels[:, ::-1]).max(initial=0) <= 1
        log.warning(
            "%s: obsm['%s'] differs from %s of obs, by %.4g px%s; those of obs are used",
            *(path, place, " and ".join(_PIXEL_COLUMNS), np.abs(named - pixels).max()),
            " (its x and y are exchanged)" if swapped else "",
        )
        return named
    return pixels


def _check_sparse_groups(file: h5py.File, path: Path) -> None:
    """Hold the arrays of every sparse matrix of an AnnData file against its shape."""

    def check(name: str, group: h5py.Group | h5py.Dataset) -> None:
        parts = ("data", "indices", "indptr")
        if not isinstance(group, h5py.Group) or not all(
            isinstance(group.get(part), h5py.Dataset) for part in parts
        ):
            return
        form = str(group.attrs.get("encoding-type", group.attrs.get("h5sparse_format", "")))
        shape = np.ravel(group.attrs.get("shape", group.attrs.get("h5sparse_shape", ())))
        if form[:3] not in ("csr", "csc"):
            return
        if len(shape) != 2 or shape.dtype.kind not in "iu":
            raise InputError(f"{path}: {name} is a sparse matrix without a shape")
        major, minor = (int(size) for size in (shape if form[:3] == "csr" else shape[::-1]))
        data, indices, indptr = (group[part][()] for part in parts)
        check_compressed(data, indices, indptr, major, minor, f"{path}: {name}")

    file.visititems(check)


def _describe(matrix: sparse.csr_matrix, var: pd.DataFrame) -> Features:
    """Return what the columns of var tell of each feature: symbol, id, type, genome."""

    def column(names: Sequence[str]) -> np.ndarray | None:
        found = next((name for name in names if name in var), None)
        return None if found is None else clean_names(var[found].astype(object))

    index = clean_names(var.index)
    symbols, ids = column(_SYMBOL_COLUMNS), column(_ID_COLUMNS)
    by_id = are_ensembl(index)
    numbered = np.array([name.isdigit() for name in index], dtype=bool)
    names = index.copy()
    if symbols is not None:
        replaced = (by_id | (numbered & (numbered.mean() > 0.5))) & (symbols != "")
        names[replaced] = symbols[replaced]
    ids = np.full(len(index), "", dtype=object) if ids is None else ids
    if symbols is not None or (ids == "").mean() > 0.5:
        ids = np.where(by_id & ~are_ensembl(ids), index, ids).astype(object)
    kinds = None
    for found in (part for c in _TYPE_COLUMNS if (part := column([c])) is not None):
        # A feature is a gene if all columns say so: CELLxGENE has the biotype in one, spike-ins in another.
        other = ~are_gene_types(found) & (found != "")
        kinds = found if kinds is None else np.where(other, found, kinds).astype(object)
    return Features(matrix, names, ids, kinds, column(_GENOME_COLUMNS))


def _scales_of(data: Any) -> dict[str, float]:
    """Return the scale factors in `uns["spatial"]` of one section; empty if there are none."""
    libraries = data.uns.get("spatial")
    if not isinstance(libraries, Mapping):
        return {}
    if len(libraries) > 1:
        # Those of other sections stay behind when one is cut out.
        used = {str(v) for c in _SECTION_COLUMNS if c in data.obs for v in data.obs[c].unique()}
        libraries = {key: value for key, value in libraries.items() if str(key) in used}
    if len(libraries) != 1:
        return {}
    library = next(iter(libraries.values()))
    scales = library.get("scalefactors") if isinstance(library, Mapping) else None
    return tenx.usable_scalefactors(scales) if isinstance(scales, Mapping) else {}


def _refuse_several_sections(data: Any, table: pd.DataFrame, path: Path) -> None:
    """Refuse an AnnData of several sections, and say how to split it."""
    obs = data.obs
    n_values = {
        name: obs[name].astype(object).nunique() for name in _SECTION_COLUMNS if name in obs
    }
    libraries = data.uns.get("spatial")
    keys = list(libraries) if isinstance(libraries, Mapping) else []
    inside = table[table["in_tissue"]]
    shared = inside.duplicated(["array_row", "array_col"], keep=False)
    reason = ""
    if n_values.get("library_id", 1) > 1:
        reason = f"obs library_id has {n_values['library_id']} values"
    elif len(shared) and shared.mean() > _SHARED_PLACES:
        reason = f"{shared.sum()} of its {len(shared)} spots lie at a place that another has too"
    elif len(keys) > 1 and 1 not in n_values.values():
        reason = f"uns['spatial'] has {len(keys)} sections ({', '.join(map(str, keys[:4]))})"
    if reason:
        column = next((name for name, n in n_values.items() if n > 1), "library_id")
        raise InputError(
            f"{path} holds several sections: {reason}. Give each a file and a row of the slide sheet "
            f"of its own: for s in adata.obs[{column!r}].unique(): "
            f"adata[adata.obs[{column!r}] == s].write_h5ad(f'{{s}}.h5ad'), each with its own key of "
            "uns['spatial']"
        )


def _raw_counts(data: Any, path: Path) -> tuple[sparse.csr_matrix, pd.DataFrame]:
    """Return the counts of an AnnData: a layer named for them, else raw, else X.

    Of several places with whole numbers the first counts, unless raw has genes that it has not: X and
    layers often keep the most variable genes only. That raw goes before X is by its convention: it is
    what was before X was changed, as by rounding or to yes and no.
    """
    layers = {str(name).lower(): name for name in data.layers}
    chosen = [layers[name] for name in _COUNT_LAYERS if name in layers]
    places = [(f"layers[{name!r}]", data.layers[name], data.var) for name in chosen]
    if data.raw is not None:
        # raw keeps a table of its own, often with less in it than var.
        var = data.raw.var.copy()
        for name in data.var.columns.difference(var.columns):
            var[name] = data.var[name].reindex(var.index) if data.var.index.is_unique else None
        places.append(("raw", data.raw.X, var.dropna(axis=1, how="all")))
    places.append(("X", data.X, data.var))
    problems, found = [], []
    for name, matrix, var in places:
        if matrix is None:
            continue
        if not sparse.issparse(matrix):
            matrix = np.asarray(matrix)
        if matrix.dtype.kind not in "iuf":
            problems.append(f"{name} holds values that are not numbers")
            continue
        matrix = sparse.csr_matrix(matrix)
        if wrong := wrong_counts(matrix.data):
            problems.append(f"{name} holds {wrong}")
            continue
        matrix.check_format(full_check=True)
        found.append((name, matrix, var))
    if not found:
        others = [repr(str(name)) for name in data.layers if name not in chosen]
        if others:
            problems.append(
                f"the layers {', '.join(others)} are not tried: name the one with counts 'counts'"
            )
        raise InputError(
            f"{path}: neither layers['counts'], X nor raw hold whole numbers; raw counts are needed "
            f"({'; '.join(problems) or 'there is none of them'})"
        )
    name, matrix, var = found[0]
    for other, values, table in found[1:]:
        if other == "raw" and values.shape[1] > matrix.shape[1]:
            name, matrix, var = other, values, table
    log.info("%s: counts of %d genes are taken from %s", path, matrix.shape[1], name)
    unlike = [
        other
        for other, values, _ in found
        if values.shape == matrix.shape and (values != matrix).nnz
    ]
    if unlike:
        log.warning(
            "%s: %s holds whole numbers too, but others: check that those of %s are the raw counts",
            *(path, " and ".join(unlike), name),
        )
    return matrix, var


def _join(
    counts: CountMatrix,
    table: pd.DataFrame,
    *,
    counts_name: Path,
    positions_name: Path,
    max_unplaced: float = 0.0,
) -> tuple[sparse.csr_matrix, pd.DataFrame, tuple[str, ...]]:
    """Join counts to positions by barcode; counts without a place are an error beyond a share."""
    barcodes = pd.Index(clean_names(counts.barcodes))
    if (barcodes == "").any():
        raise InputError(f"{counts_name}: spot {int((barcodes == '').argmax()) + 1} has no name")
    _refuse_repeated(barcodes.to_series(), counts_name)
    placed = barcodes.isin(table.index)
    lost = barcodes[~placed]
    if len(lost):
        problem = (
            f"{len(lost)} of {len(barcodes)} spots of {counts_name} ({placed.sum()} match) have no "
            f"position in {positions_name}"
        )
        if len(lost) > max_unplaced * len(barcodes):
            raise InputError(f"{problem}: {explain_names(lost, table.index)}")
        log.warning("%s: %s; these spots are dropped", problem, ", ".join(lost[:3]))
    inside = table.index[table["in_tissue"]]
    counted = int(inside.isin(barcodes).sum())
    notes = (
        f"{placed.sum()} of {len(barcodes)} spots with counts have a position",
        f"{counted} of {len(inside)} positions in tissue have counts",
    )
    level = logging.WARNING if counted < HALF * len(inside) else logging.INFO
    log.log(level, "%s: %s", counts_name, "; ".join(notes))
    return sparse.csr_matrix(counts.counts[placed]), table.loc[barcodes[placed]], notes


def _bin_of(table: pd.DataFrame) -> float | None:
    """Return the bin size in um that barcodes of Visium HD ("s_008um_00001_00002-1") carry."""
    match = _HD_NAME.match(table.index[0]) if len(table) else None
    return float(match[1]) if match else None


def is_legacy(table: pd.DataFrame) -> bool:
    """Whether a table of positions is of a legacy ST array: its spots are called "XxY"."""
    return bool(len(table)) and all(_ST_NAME.fullmatch(name) for name in table.index[:10])


def _kind(table: pd.DataFrame) -> str:
    return "st" if is_legacy(table) else "visium"


def _read_text_positions(path: Path) -> pd.DataFrame:
    """Return a table of positions as text, index line number; version 1 wrote no header."""

    def headed(cells: list[str]) -> bool:
        return len(cells) != len(POSITION_COLUMNS) or not all(map(_is_number, cells[1:]))

    table = open_delimited(path, what="a table of positions", header=headed, row_names=True)
    text = table.text()
    if not table.names:
        return text.set_axis(list(POSITION_COLUMNS), axis=1)
    names = [str(name).strip().lower() for name in text.columns]
    # The row names of pandas and R: the barcodes, where no column is called so.
    if "barcode" not in names and names[0] in ("", "unnamed: 0", "barcodes", "index"):
        names[0] = "barcode"
    return text.set_axis(names, axis=1)


def _read_parquet(path: Path) -> pd.DataFrame:
    """Return a table of positions of Visium HD; its number of rows is held against its bytes."""
    import pyarrow.parquet

    with given_file(path, "a table of positions"):
        n_rows = pyarrow.parquet.read_metadata(path).num_rows
        if n_rows > 1000 * os.path.getsize(path):
            raise InputError(f"{path} declares {n_rows} rows, more than its bytes can hold")
        table = pd.read_parquet(path)
    if "barcode" not in table and not pd.api.types.is_numeric_dtype(table.index):
        # The row names of pandas and R, whatever they are called.
        table = table.rename_axis("barcode").reset_index()
    table.index = pd.RangeIndex(1, len(table) + 1, name="row")
    return table


def _numbers(table: pd.DataFrame, column: str, path: Path) -> pd.Series:
    number = pd.to_numeric(table[column].astype(object), errors="coerce").astype(np.float64)
    wrong = ~np.isfinite(number.to_numpy())
    if wrong.any():
        raise InputError(
            f"{path}: {_place(table, wrong)}, column {column} holds "
            f"{table[column].iloc[int(wrong.argmax())]!r}, not a number"
        )
    return number


def _place(table: pd.DataFrame, wrong: Any) -> str:
    """Return where the first wrong row is: its line, its row, or its name."""
    at = int(np.asarray(wrong).argmax())
    kind = table.index.name if table.index.name in ("line", "row") else "spot"
    return f"{kind} {table.index[at]}"


def _whole(values: pd.Series, column: str, path: Path) -> pd.Series:
    """Return array coordinates as whole numbers; those refined on the image are near to one."""
    if np.abs(values).max() > 2**31:
        raise InputError(f"{path}: {column} {values.abs().max():g} is no place of an array")
    rounded = values.round()
    off = (values - rounded).abs()
    if (off > MAX_REFINEMENT).any():
        at = int(off.to_numpy().argmax())
        raise InputError(
            f"{path}: {column} {values.iloc[at]:g} ({_place(values.to_frame(), off == off.max())}) is "
            "not a row or column of an array: they are whole numbers, or nearly so where they were "
            "refined on the image"
        )
    if (off > 0).any():
        log.info("%s: %s is rounded to whole numbers (by %.2g at most)", path, column, off.max())
    return rounded.astype(np.int64)


def _flags(values: pd.Series, path: Path, column: str) -> np.ndarray:
    """Return a column of yes and no, in any of the ways that tools write it.

    A missing value is no: the spot is left out, with a warning.
    """
    text = np.array([name.lower() for name in clean_names(values.astype(object))], dtype=object)
    yes, no, missing = np.isin(text, _TRUE), np.isin(text, _FALSE), text == ""
    odd = ~(yes | no | missing)
    if odd.any():
        raise InputError(
            f"{path}: {_place(values.to_frame(), odd)}: {column} is "
            f"{values.iloc[int(odd.argmax())]!r}; it must be 1 or 0 (or true, false)"
        )
    if missing.all():
        raise InputError(f"{path}: {column} is empty for every spot: fill it, or leave it out")
    if missing.any():
        log.warning(
            "%s: %s is missing for %d of %d spots (such as %s), which are left out",
            *(path, column, missing.sum(), len(text), _place(values.to_frame(), missing)),
        )
    return yes


def _refuse_repeated(names: pd.Series, path: Path) -> None:
    repeated = names[names.duplicated()]
    if len(repeated):
        raise InputError(f"{path}: spot {repeated.iloc[0]} is listed more than once")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
