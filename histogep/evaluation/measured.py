"""Counts of the sections as the evaluation reads them, joined to predictions by barcode."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from histogep.errors import InputError
from histogep.evaluation.held_out import HeldOut
from histogep.lattice import Lattice
from histogep.spots.matrices import expression_of, read_h5ad
from histogep.stats.nulls import map_motions, spatial_basis

#: Most that a truth stored with predictions may differ from the counts' own log1p CP10k.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Measured:
    """The counts of one section, of the genes that any model predicts.

    Attributes
    ----------
    slide
        Section that was measured.
    barcode, row, col
        The spots.
    genes
        Columns of `counts`; genes the section lacks are columns of zeros.
    counts
        Raw counts, CSR.
    library_sizes
        Counts of all genes per spot.
    expression
        log1p CP10k of `genes`, dense float32.
    lattice
        How the spots lie.
    """

    slide: str
    barcode: pd.Index
    row: np.ndarray
    col: np.ndarray
    genes: pd.Index
    counts: sparse.csr_matrix
    library_sizes: np.ndarray
    expression: np.ndarray
    lattice: Lattice

    @cached_property
    def basis(self) -> np.ndarray:
        """Harmonics of the section's shape, for the spectral null."""
        centres = self.lattice.centres_um(self.row, self.col)
        return spatial_basis(*centres, self.lattice.neighbours(self.row, self.col))

    @cached_property
    def motions(self) -> np.ndarray:
        """Rows of the spots after turns and after shifts, for the nulls that move a map."""
        return map_motions(*self.lattice.centres_um(self.row, self.col))

    def motions_of(self, order: np.ndarray) -> np.ndarray:
        """Return the motions of the same spots in another order, each of them once."""
        place = np.empty(len(order), np.int32)
        place[order] = np.arange(len(order))
        return place[self.motions[..., order]]

    def columns(self, genes: Sequence[str]) -> np.ndarray:
        """Return the places of genes in `counts` and `expression`."""
        return self.genes.get_indexer(pd.Index(genes))

    def order(self, section: HeldOut) -> np.ndarray:
        """Return the row of each in-tissue position of a prediction, found by barcode."""
        barcode = section.barcode[section.in_tissue]
        place = self.barcode.get_indexer(pd.Index(barcode))
        if (place < 0).any():
            raise InputError(
                f"{(place < 0).sum()} spots that {section.model} predicts in fold {section.fold} "
                f"are not among the spots of section {self.slide} (first: "
                f"{barcode[place < 0][0]}): run predict_fold again"
            )
        return place


def read_measured(paths: Iterable[str | Path], sections: Sequence[HeldOut]) -> dict[str, Measured]:
    """Return slide -> counts of every gene that any expression model predicts.

    Parameters
    ----------
    paths
        results/spots/{slide}.h5ad of every section of the study.
    sections
        Held-out predictions; they say which genes are needed, and each must have its counts.

    Raises
    ------
    InputError
        For predictions of a section without counts.
    """
    names = {gene for s in sections if s.task == "expression" for gene in s.genes}
    genes = pd.Index(sorted(names), dtype=object)
    measured = {}
    for path in paths:
        spots = read_h5ad(path)
        slide = str(spots.uns.get("slide", Path(path).stem))
        known = spots.var_names.get_indexer(genes)
        present = np.flatnonzero(known >= 0)
        pick = sparse.csr_matrix(
            (np.ones(len(present)), (known[present], present)), shape=(spots.n_vars, len(genes))
        )
        counts = sparse.csr_matrix(spots.X)
        measured[slide] = Measured(
            slide=slide,
            barcode=pd.Index(spots.obs_names.astype(str)),
            row=spots.obs["row"].to_numpy(np.int32),
            col=spots.obs["col"].to_numpy(np.int32),
            genes=genes,
            counts=sparse.csr_matrix(counts @ pick),
            library_sizes=np.asarray(counts.sum(1), float).ravel(),
            expression=(expression_of(spots) @ pick).toarray().astype(np.float32),
            lattice=_lattice(spots.uns, path),
        )
    missing = sorted({section.slide for section in sections} - set(measured))
    if missing:
        raise InputError(f"there are predictions but no counts of the sections {missing}")
    return measured


def check_truth(section: HeldOut, measured: Measured) -> None:
    """Refuse predictions whose truth is not what the counts say, or that leave spots out.

    Raises
    ------
    InputError
        Naming the section, the fold and the gene.
    """
    if section.task != "expression":
        return
    n_predicted = int(section.in_tissue.sum())
    if n_predicted != len(measured.barcode):
        raise InputError(
            f"{section.model} predicts {n_predicted} of the {len(measured.barcode)} spots of "
            f"section {section.slide} in fold {section.fold}; a score must rest on all of them: "
            "run predict_fold again"
        )
    ours = measured.expression[measured.order(section)][:, measured.columns(section.genes)]
    off = np.abs(section.truth[section.in_tissue] - ours).max(0, initial=0)
    if off.max(initial=0) > _TOLERANCE:
        gene = section.genes[int(off.argmax())]
        raise InputError(
            f"the truth of section {section.slide} in results/predictions/.../{section.fold}/"
            f"{section.model}.h5ad differs from the log1p CP10k of its counts (gene {gene}, by up "
            f"to {off.max():.3g}): spots or genes were mixed up; run predict_fold again"
        )


def training_mean(
    section: HeldOut, measured: Mapping[str, Measured], folds: pd.DataFrame
) -> np.ndarray:
    """Return the mean of each gene over the fold's training sections, laid on the tissue.

    A baseline that does not look at the image. Sections count alike; background positions get 0,
    which is their measured value.

    Parameters
    ----------
    section
        A held-out section.
    measured
        Counts of all sections.
    folds
        The folds table; sections that train or validate are averaged.
    """
    table = folds[(folds["fold"] == section.fold) & folds["role"].isin(["train", "validation"])]
    if table.empty:
        raise InputError(f"the folds table has no training section for the fold {section.fold}")
    means = [
        measured[slide].expression[:, measured[slide].columns(section.genes)].mean(0)
        for slide in table["slide"].astype(str)
    ]
    return np.where(section.in_tissue[:, None], np.mean(means, axis=0), 0.0)


def _lattice(uns: Mapping[str, Any], path: str | Path) -> Lattice:
    if "lattice" not in uns:
        raise InputError(f"{path} lacks its lattice (uns['lattice']): run align_spots again")
    settings = uns["lattice"]
    return Lattice(
        kind=str(settings["kind"]),
        pitch_um=float(settings["pitch_um"]),
        tile_um=float(settings["tile_um"]),
    )
