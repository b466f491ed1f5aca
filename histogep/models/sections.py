"""Sections as arrays: features and targets joined by barcode, and their positions on a grid."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd

from histogep.encoders.feature_file import Features, read_features
from histogep.errors import InputError
from histogep.files import read_labels
from histogep.lattice import Lattice
from histogep.models.preparation import Tiles
from histogep.spots.matrices import expression_of, read_h5ad

LOG = logging.getLogger(__name__)
TASKS = ("expression", "tumour", "both")
#: What the column of tumour labels and probabilities is called.
TUMOUR = "tumour"
#: Target value of each spot label; boundary and undetermined spots have no known truth.
TUMOUR_TARGETS = {"malignant": 1.0, "non-malignant": 0.0}


@dataclass
class Section:
    """One section: n spots with their features and targets.

    Attributes
    ----------
    slide, patient
        Ids.
    barcode
        Spot barcodes, (n,) of str.
    row, col
        Grid indices, int32.
    features
        Raw features, (n, d) float32.
    white
        Raw features of an all-white tile, (d,).
    targets
        (n, t) float32: log1p CP10k of the panel, the tumour label (1, 0, NaN where unknown), or
        both, the label last.
    blocks, encoders, lattice
        How the features were made.
    """

    slide: str
    patient: str
    barcode: np.ndarray
    row: np.ndarray
    col: np.ndarray
    features: np.ndarray
    white: np.ndarray
    targets: np.ndarray
    blocks: list[tuple[str, int]]
    encoders: list[dict[str, Any]]
    lattice: dict[str, Any]

    @property
    def tiles(self) -> Tiles:
        """The features with their places, as a `Preparation` reads them."""
        return Tiles(self.features, self.row, self.col)


def read_section(
    features: str | Path,
    spots: str | Path,
    labels: str | Path,
    *,
    slide: str,
    patient: str,
    task: str,
    genes: Sequence[str] = (),
) -> Section:
    """Return one section with the targets of a task.

    Parameters
    ----------
    features, spots, labels
        results/features/{slide}.h5, results/spots/{slide}.h5ad, results/labels/{slide}.tsv.
    slide, patient
        Ids; the feature file must be of this slide.
    task
        "expression" (log1p CP10k of `genes`, library size over all genes), "tumour", or "both"
        (the tumour label is the last column).
    genes
        The panel, in the order of the target columns. A gene that the table of this section lacks
        was not detected and counts as 0.

    Raises
    ------
    InputError
        Files of different slides, or spots without features.
    """
    encoded = read_features(features)
    if encoded.slide != slide:
        raise InputError(f"{features} is of slide {encoded.slide}, not {slide}: encode it again")
    table = read_h5ad(spots)
    place = pd.Series(np.arange(len(encoded.barcode)), index=encoded.barcode)
    place = place[place.index != ""]
    if place.index.has_duplicates:
        raise InputError(f"{features} lists a barcode twice: delete it, run encode_tiles again")
    barcode = table.obs_names.astype(str)
    found = place.reindex(barcode)
    missing = barcode[found.isna()]
    if len(missing):
        raise InputError(
            f"{features} has no features of {len(missing)} of the {len(barcode)} spots in {spots} "
            f"(first: {missing[0]}): run tile_slide and encode_tiles of {slide} again"
        )
    order = found.to_numpy(int)
    row, col = (table.obs[axis].to_numpy(np.int32) for axis in ("row", "col"))
    if not ((encoded.row[order] == row) & (encoded.col[order] == col)).all():
        raise InputError(
            f"{features} and {spots} place the same barcodes at different lattice positions: "
            f"run tile_slide and encode_tiles of {slide} again"
        )
    if task not in TASKS:
        raise InputError(f"task is {task!r}: it must be {', '.join(TASKS[:-1])} or {TASKS[-1]}")
    columns = []
    if task != "tumour":
        columns.append(panel_expression(table, genes, name=str(spots)))
    if task != "expression":
        columns.append(tumour_labels(labels, barcode))
    targets = np.hstack(columns)
    return Section(
        slide=slide,
        patient=patient,
        barcode=barcode.to_numpy(str),
        row=row,
        col=col,
        features=encoded.values[order],
        white=encoded.white,
        targets=targets,
        blocks=encoded.blocks,
        encoders=encoded.encoders,
        lattice=encoded.lattice,
    )


def read_sections(
    roles: dict[str, str],
    features: Sequence[str | Path],
    spots: Sequence[str | Path],
    labels: Sequence[str | Path],
    *,
    task: str,
    genes: Sequence[str] = (),
    lattice: dict[str, Any] | None = None,
) -> list[Section]:
    """Return the sections of one role; the files of all other sections are not opened.

    Parameters
    ----------
    roles
        {slide: patient} of the sections to read (`histogep.models.folds.fold_roles`).
    features, spots, labels
        Files over all sections, named {slide}.h5, .h5ad, .tsv, in any order.
    task, genes
        As for `read_section`.
    lattice
        Lattice settings that every feature file must have been made with.
    """
    paths = [{Path(path).stem: path for path in files} for files in (features, spots, labels)]
    sections = []
    for slide, patient in roles.items():
        if any(slide not in files for files in paths):
            raise InputError(f"section {slide} has no features, spots or labels among the inputs")
        section = read_section(
            *(files[slide] for files in paths), slide=slide, patient=patient, task=task, genes=genes
        )
        sections.append(section)
    check_alike(sections, lattice=lattice)
    return sections


def read_training(
    roles: Mapping[str, dict[str, str]],
    panel: pd.DataFrame,
    files: Any,
    *,
    settings: Mapping[str, Any],
    lattice: dict[str, Any] | None = None,
) -> tuple[dict[str, list[Section]], list[str]]:
    """Return the sections that a model learns from, by role, and the genes it learns.

    Parameters
    ----------
    roles
        Role -> {slide: patient} (`histogep.models.folds.fold_roles`); training and validation are read.
    panel
        gene, and a true or false column for each panel.
    files
        Has `features`, `spots` and `labels`, as `read_sections` takes them.
    settings
        Of the model: `task`, `panel`.
    lattice
        As for `read_sections`.
    """
    chosen = panel[settings["panel"]].astype(str).str.lower() == "true"
    genes = panel.loc[chosen, "gene"].tolist() if settings["task"] != "tumour" else []
    sections = {
        role: read_sections(
            roles[role],
            files.features,
            files.spots,
            files.labels,
            task=settings["task"],
            genes=genes,
            lattice=lattice,
        )
        for role in ("train", "validation")
    }
    LOG.info("%d sections train, %d validate", *map(len, sections.values()))
    return sections, genes


def check_alike(
    slides: Sequence[Section | Features], *, lattice: dict[str, Any] | None = None
) -> None:
    """Raise InputError unless all slides have the same encoders, blocks and lattice."""
    for slide in slides:
        for what in ("blocks", "encoders", "lattice"):
            mine, first = getattr(slide, what), getattr(slides[0], what)
            if mine != first:
                raise InputError(
                    f"features of {slide.slide} and of {slides[0].slide} differ in their {what} "
                    f"({mine} against {first}): run encode_tiles again for both, with `precision` "
                    "set in `encoders` if that is what differs (auto: not the same on GPU and CPU)"
                )
    if slides and lattice is not None:
        wanted = Lattice.from_settings(lattice)
        if Lattice.from_settings(slides[0].lattice) != wanted:
            raise InputError(
                f"features of {slides[0].slide} lie on the lattice {slides[0].lattice}, the study "
                f"has {wanted.to_settings()}: run tile_slide and encode_tiles again"
            )


def panel_expression(
    table: anndata.AnnData, genes: Sequence[str], *, name: str = "the section"
) -> np.ndarray:
    """Return log1p CP10k (n, len(genes)) float32 of a panel; genes not in the table are 0."""
    if not len(genes):
        raise InputError(f"the gene panel for {name} is empty: lower genes.min_moran")
    place = table.var_names.get_indexer(list(genes))
    absent = [gene for gene, at in zip(genes, place, strict=True) if at < 0]
    if len(absent) == len(genes):
        raise InputError(f"{name} has none of the {len(genes)} genes of the panel")
    if absent:
        LOG.warning(
            "%s lacks %d of %d panel genes (%s ...): they count as not detected",
            name,
            len(absent),
            len(genes),
            ", ".join(absent[:5]),
        )
    known = place >= 0
    targets = np.zeros((table.n_obs, len(genes)), np.float32)
    targets[:, known] = expression_of(table)[:, place[known]].toarray()
    return targets


def both_classes(sections: Sequence[Section]) -> bool:
    """Return whether spots labelled malignant and non-malignant are among those of sections."""
    classes = {float(c) for s in sections for c in np.unique(s.targets[:, -1]) if np.isfinite(c)}
    return classes == {0.0, 1.0}


def tumour_labels(labels: str | Path, barcode: Sequence[str]) -> np.ndarray:
    """Return the tumour target (n, 1) float32 of spots: 1 malignant, 0 non-malignant, else NaN."""
    table = read_labels(labels, barcode)
    label = table.drop_duplicates("barcode").set_index("barcode")["label"].reindex(list(barcode))
    return label.map(TUMOUR_TARGETS).to_numpy(np.float32)[:, None]


@dataclass(frozen=True)
class Grid:
    """Where n tiles lie on a grid: `index` (rows, cols) int64, n at a position without a tile."""

    index: np.ndarray
    n: int

    @property
    def tissue(self) -> np.ndarray:
        """Boolean (rows, cols): there is a tile at the position."""
        return self.index < self.n

    def lay(self, values: np.ndarray, background: np.ndarray | float = 0.0) -> np.ndarray:
        """Return values (n, c) as a grid (rows, cols, c), `background` where there is no tile."""
        values = np.asarray(values)
        last = np.broadcast_to(np.asarray(background, values.dtype), (1, values.shape[1]))
        return np.concatenate([values, last])[self.index]

    def take(self, grid: np.ndarray) -> np.ndarray:
        """Return the values (n, c) of a grid (rows, cols, c) in the order of the tiles."""
        row, col = np.nonzero(self.tissue)
        values = np.empty((self.n, grid.shape[-1]), grid.dtype)
        values[self.index[row, col]] = grid[row, col]
        return values


def grid_of(
    row: np.ndarray,
    col: np.ndarray,
    lattice: Lattice,
    *,
    shape: Sequence[int] | None = None,
    symmetry: np.ndarray | None = None,
) -> Grid:
    """Lay tiles on the smallest grid that holds them, or on one of a given shape.

    Parameters
    ----------
    row, col
        Grid indices of the tiles of one slide.
    lattice
        The lattice; on a hexagonal one the grid starts at an even row, since odd rows are shifted.
    shape
        (rows, cols) of the grid; the tiles keep their own indices when they fit, and else are
        moved to the upper left corner.
    symmetry
        One of `lattice.symmetries()`, applied first.

    Raises
    ------
    InputError
        The tiles do not fit in `shape`.
    """
    row, col = np.asarray(row, np.int64), np.asarray(col, np.int64)
    if symmetry is not None:
        row, col = (axis.astype(np.int64) for axis in lattice.transform(row, col, symmetry))
    if shape is None or row.max() >= shape[0] or col.max() >= shape[1]:
        first = row.min() - (row.min() % 2 if lattice.hexagonal else 0)
        row, col = row - first, col - col.min()
    needed = int(row.max()) + 1, int(col.max()) + 1
    shape = needed if shape is None else (int(shape[0]), int(shape[1]))
    if needed[0] > shape[0] or needed[1] > shape[1]:
        raise InputError(
            f"the spots cover {needed[0]} rows x {needed[1]} columns, more than the grid of "
            f"{shape[0]} x {shape[1]}: raise folds.published_grid"
        )
    index = np.full(shape, len(row), np.int64)
    index[row, col] = np.arange(len(row))
    if (index < len(row)).sum() != len(row):
        raise InputError("two tiles lie at the same position of the lattice: tile the slide again")
    return Grid(index, len(row))
