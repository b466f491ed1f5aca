"""Read the measured counts of a section and where its spots lie, whatever tool wrote them.

Space Ranger folders of every generation (1: positions without a header; 2 to 4: with one; HD:
binned, parquet), AnnData files, and legacy Spatial Transcriptomics tables.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from histogep import tenx
from histogep.hdf5_guard import open_given
from histogep.jobs import InputError
from histogep.tenx import CountMatrix

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


def read_section(
    counts: str | Path,
    *,
    positions: str | Path | None = None,
    pitch_um: float | None = None,
) -> RawSection:
    """Read the spots of a section.

    Parameters
    ----------
    counts
        A Space Ranger folder (its `outs` or the folder that holds it; of HD, the `binned_outputs`
        or one `square_*um` of them), a 10x `*_feature_bc_matrix.h5` beside its `spatial` folder,
        an `.h5ad`, or a table of spots by genes.
    positions
        Positions, where they do not lie beside the counts; needed for a table.
    pitch_um
        Pitch of the study's lattice, which picks among the bin sizes of Visium HD.

    Raises
    ------
    InputError
        If something is missing, is of no known layout, or counts and positions do not match.
    """
    counts = Path(counts)
    if not counts.exists():
        raise InputError(f"counts {counts} do not exist")
    name = counts.name.lower()
    if counts.is_dir() and list(counts.glob("matrix.mtx*")):
        return _read_space_ranger(counts.parent, positions, data=counts)
    if counts.is_dir():
        return _read_space_ranger(tenx.bin_folder(counts, pitch_um), positions)
    if name.endswith(".h5ad"):
        return _read_h5ad(counts)
    if name.endswith((".h5", ".hdf5")):
        return _read_space_ranger(counts.parent, positions, data=counts)
    if name.removesuffix(".gz").endswith(_TABLE_SUFFIXES):
        return _read_st(counts, positions)
    raise InputError(
        f"counts {counts}: neither a Space Ranger folder, a 10x .h5, an .h5ad nor a table "
        "(.tsv, .csv, .txt, each also .gz)"
    )


def read_positions(path: str | Path) -> pd.DataFrame:
    """Return the table of positions (`TABLE_COLUMNS`), index barcode.

    Understands Space Ranger's CSV with and without header, its parquet, and the tables of legacy
    ST arrays (x, y, pixel_x, pixel_y and perhaps selected), whose spots are called "XxY".
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"positions {path} do not exist")
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else _read_delimited(path)
    except InputError:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: not a readable table of positions ({error})") from error
    if set(POSITION_COLUMNS) <= set(table):
        result = table[list(POSITION_COLUMNS)].set_axis(
            ["barcode", "in_tissue", "array_row", "array_col", "y_px", "x_px"], axis=1
        )
    elif {"x", "y", "pixel_x", "pixel_y"} <= set(table):
        x, y = (_numbers(table, axis, path).round().astype(int) for axis in ("x", "y"))
        result = pd.DataFrame(
            {
                "barcode": [f"{i}x{j}" for i, j in zip(x, y, strict=True)],
                "in_tissue": table.get("selected", 1),
                **{"array_row": y, "array_col": x},
                **{"x_px": table["pixel_x"], "y_px": table["pixel_y"]},
            }
        )
    else:
        raise InputError(
            f"{path}: columns {', '.join(map(str, table.columns[:8]))}; expected "
            f"{', '.join(POSITION_COLUMNS)} (Space Ranger) or x, y, pixel_x, pixel_y (legacy ST)"
        )
    for column in TABLE_COLUMNS:
        result[column] = _numbers(result, column, path)
    result["barcode"] = result["barcode"].astype(str)
    _refuse_repeated(result["barcode"], path)
    result["in_tissue"] = result["in_tissue"] == 1
    for axis in ("array_row", "array_col"):
        result[axis] = result[axis].astype(np.int64)
    return result.set_index("barcode")[list(TABLE_COLUMNS)]


def _read_space_ranger(
    folder: Path, positions: str | Path | None, *, data: Path | None = None
) -> RawSection:
    data = data or tenx.find_matrix(folder)
    counts = tenx.read_10x_mtx(data) if data.is_dir() else tenx.read_10x_h5(data)
    place = Path(positions) if positions else tenx.find_positions(folder)
    table = read_positions(place)
    matrix, table = _join(counts, table, counts_name=data, positions_name=place)
    scales = tenx.read_scalefactors(folder, place)
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
    )


def _read_st(counts: Path, positions: str | Path | None) -> RawSection:
    if not positions:
        raise InputError(
            f"counts {counts} are a table: give the file of the spots' pixels in `positions`"
        )
    place = Path(positions)
    table = read_positions(place)
    values = _read_counts_table(counts)
    if not set(values.index) & set(table.index) and set(values.columns) & set(table.index):
        log.info("%s has spots as columns: turned", counts)
        values = values.T
    matrix = CountMatrix(
        sparse.csr_matrix(values.to_numpy(np.float32)),
        values.index.to_numpy(object),
        values.columns.to_numpy(object),
        np.array(
            [g if g.startswith("ENS") else "" for g in values.columns.astype(str)], dtype=object
        ),
    )
    kept, table = _join(
        matrix, table, counts_name=counts, positions_name=place, max_unplaced=MAX_UNPLACED
    )
    return RawSection(
        counts=kept,
        genes=matrix.genes,
        gene_ids=matrix.gene_ids,
        table=table,
        kind=_kind(table),
        source=str(counts),
    )


def _read_counts_table(path: Path) -> pd.DataFrame:
    """Return a table of spots by genes, numbers only."""
    try:
        table = tenx.read_delimited(path, index_col=0)
        # pandas renames columns of one name; they are one gene.
        header = tenx.read_delimited(path, header=None, nrows=1, dtype=str).iloc[0]
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{path}: not a readable table of counts ({error})") from error
    table.index = table.index.astype(str)
    text = table.columns[[dtype.kind not in "iufb" for dtype in table.dtypes]]
    if len(text):
        raise InputError(f"{path}: column {text[0]} is not all numbers; rows must be spots")
    if table.isna().any(axis=None):
        spot = table.index[table.isna().any(axis=1)][0]
        raise InputError(f"{path}: row {spot} has empty cells; the file may be cut short")
    _refuse_repeated(table.index.to_series(), path)
    return table.set_axis(header.to_numpy(object)[-table.shape[1] :], axis=1)


def _read_h5ad(path: Path) -> RawSection:
    import anndata

    with open_given(path, "an .h5ad"):
        data = anndata.read_h5ad(path)
    obs = data.obs
    grid = not {"array_row", "array_col"} <= set(obs)
    axes = ("row", "col") if grid else ("array_row", "array_col")
    missing = [axis for axis in axes if axis not in obs]
    if missing or "spatial" not in data.obsm:
        raise InputError(
            f"{path}: needs obs array_row and array_col (or row and col) and obsm['spatial'] in "
            f"level-0 pixels; obs has {', '.join(map(str, obs.columns)) or 'nothing'}, obsm has "
            f"{', '.join(data.obsm) or 'nothing'}"
        )
    matrix, var = _raw_counts(data, path)
    id_column = next(
        (c for c in ("gene_id", "gene_ids", "ensembl_id", "feature_id") if c in var), ""
    )
    table = pd.DataFrame(
        {
            "in_tissue": obs["in_tissue"].astype(int) == 1 if "in_tissue" in obs else True,
            "array_row": _numbers(obs, axes[0], path).astype(np.int64),
            "array_col": _numbers(obs, axes[1], path).astype(np.int64),
            "x_px": np.asarray(data.obsm["spatial"], np.float64)[:, 0],
            "y_px": np.asarray(data.obsm["spatial"], np.float64)[:, 1],
        },
        index=pd.Index(obs.index.astype(str), name="barcode"),
    )
    if not np.isfinite(table[["x_px", "y_px"]].to_numpy()).all():
        raise InputError(f"{path}: obsm['spatial'] holds values that are not numbers")
    _refuse_repeated(table.index.to_series(), path)
    return RawSection(
        counts=matrix,
        genes=var.index.to_numpy(object),
        gene_ids=var[id_column].astype(str).to_numpy(object)
        if id_column
        else np.full(len(var), "", dtype=object),
        table=table,
        kind="",
        source=str(path),
        grid=grid,
    )


def _raw_counts(data: Any, path: Path) -> tuple[sparse.csr_matrix, pd.DataFrame]:
    """Return the counts of an AnnData: X, else the layer `counts`, else raw."""
    places = [(data.layers.get("counts"), data.var), (data.X, data.var)]
    if data.raw is not None:
        places.append((data.raw.X, data.raw.var))
    for matrix, var in places:
        if matrix is not None:
            matrix = sparse.csr_matrix(matrix)
            values = matrix.data
            if (values >= 0).all() and (values == np.floor(values)).all():
                return matrix, var
    raise InputError(
        f"{path}: neither layers['counts'], X nor raw hold whole numbers; raw counts are needed"
    )


def _join(
    counts: CountMatrix,
    table: pd.DataFrame,
    *,
    counts_name: Path,
    positions_name: Path,
    max_unplaced: float = 0.0,
) -> tuple[sparse.csr_matrix, pd.DataFrame]:
    """Join counts to positions by barcode; counts without a place are an error beyond a share."""
    barcodes = pd.Index(counts.barcodes.astype(str))
    _refuse_repeated(barcodes.to_series(), counts_name)
    placed = barcodes.isin(table.index)
    lost = barcodes[~placed]
    if len(lost):
        problem = (
            f"{len(lost)} of {len(barcodes)} spots of {counts_name} ({placed.sum()} match) have no "
            f"position in {positions_name}: counts name {', '.join(lost[:3])}, positions name "
            f"{', '.join(table.index[:3])}"
        )
        if len(lost) > max_unplaced * len(barcodes):
            raise InputError(f"{problem}; both files must be of the same section")
        log.warning("%s; these spots are dropped", problem)
    return sparse.csr_matrix(counts.counts[placed]), table.loc[barcodes[placed]]


def _bin_of(table: pd.DataFrame) -> float | None:
    """Return the bin size in um that barcodes of Visium HD ("s_008um_00001_00002-1") carry."""
    match = _HD_NAME.match(table.index[0]) if len(table) else None
    return float(match[1]) if match else None


def _kind(table: pd.DataFrame) -> str:
    """Return the lattice that the names of the spots tell of: "XxY" are of legacy ST."""
    return "st" if all(_ST_NAME.fullmatch(name) for name in table.index[:10]) else "visium"


def _read_delimited(path: Path) -> pd.DataFrame:
    with tenx.open_file(path, "rt") as handle:
        first = handle.readline().rstrip("\n")
    if not first:
        raise InputError(f"{path}: the table of positions is empty")
    separator = "\t" if "\t" in first else ","
    cells = first.split(separator)
    if len(cells) == len(POSITION_COLUMNS) and all(map(_is_number, cells[1:])):
        return tenx.read_delimited(path, header=None, names=list(POSITION_COLUMNS))
    return tenx.read_delimited(path)


def _numbers(table: pd.DataFrame, column: str, path: Path) -> pd.Series:
    number = pd.to_numeric(table[column], errors="coerce")
    wrong = np.flatnonzero(~np.isfinite(number.to_numpy(np.float64)))
    if len(wrong):
        raise InputError(
            f"{path}: row {wrong[0] + 1}, column {column} holds "
            f"{table[column].iloc[wrong[0]]!r}, not a number"
        )
    return number


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
