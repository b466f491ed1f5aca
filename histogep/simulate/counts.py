"""Counts of simulated spots: programmes of tissue states, copy number, negative binomial noise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from histogep.files import complete
from histogep.inputs.genome import assign_arms
from histogep.simulate.cohort import stream

#: What a spot can consist of; a tumour state carries its clone's copy number.
STATES = ("tumour_a", "tumour_b", "stroma", "fat", "t_cell", "b_cell", "endothelial")
#: Counts per spot of each state, relative to the mean depth.
RELATIVE_DEPTH = dict(zip(STATES, (1.3, 1.45, 0.7, 0.35, 1.0, 1.0, 0.8), strict=True))
#: Programme that a smooth field outside `STATES` drives: highest over lowest expression.
FIELD_FACTORS = {"hypoxia": 6.0, "stress": 6.0}
_BASE_SIGMA, _STATE_SIGMA, _SECTION_SIGMA, _DEPTH_SIGMA = 1.3, 0.12, 0.08, 0.3
_DISPERSION = 0.06


@dataclass(frozen=True)
class Expression:
    """Mean expression of every tissue state, the same for all sections of a study.

    Attributes
    ----------
    genes
        Gene symbols.
    profiles
        (state, gene) shares of counts, copy number included; rows sum to about 1.
    fields
        Genes (indices) of each programme that a field drives.
    """

    genes: np.ndarray
    profiles: np.ndarray
    fields: dict[str, np.ndarray]

    @classmethod
    def from_truth(cls, positions: pd.DataFrame, truth: dict[str, Any]) -> Expression:
        """Return the expression that a planted truth implies.

        Parameters
        ----------
        positions
            gene, chromosome, start, end.
        truth
            As `histogep.simulate.genes.plant_truth` gives it.
        """
        genes = positions["gene"].to_numpy(dtype=object)
        rng = stream(truth["seed"], "expression")
        place = {gene: index for index, gene in enumerate(genes)}
        base = np.exp(rng.normal(0.0, _BASE_SIGMA, len(genes)))
        # The tail is cut: no single gene outweighs the rest.
        base = np.minimum(base, np.quantile(base, 0.999))
        base /= base.sum()
        profiles = base * np.exp(rng.normal(0.0, _STATE_SIGMA, (len(STATES), len(genes))))
        fields = {}
        for name, programme in sorted(truth["programmes"].items()):
            index = np.array([place[gene] for gene in programme["genes"]])
            high = programme["share"] * np.exp(rng.normal(0.0, 0.35, len(index)))
            if name in FIELD_FACTORS:
                # Geometric middle of the range that the field spans.
                profiles[:, index] = high / np.sqrt(FIELD_FACTORS[name])
                fields[name] = index
                continue
            top = max(programme["states"].values())
            for row, state in enumerate(STATES):
                profiles[row, index] = high * programme["states"].get(state, 1.0) / top
        arms = assign_arms(positions)
        for clone, factors in truth["arms"].items():
            row = STATES.index(f"tumour_{clone.lower()}")
            for arm, factor in factors.items():
                profiles[row, arms == arm] *= factor
        return cls(genes=genes, profiles=profiles, fields=fields)


def simulate_counts(
    expression: Expression,
    weights: np.ndarray,
    fields: dict[str, np.ndarray],
    *,
    depth: float,
    rng: np.random.Generator,
) -> sparse.csr_matrix:
    """Return negative binomial counts of spots.

    Parameters
    ----------
    expression
        Mean expression of the states.
    weights
        (spot, state) shares of the states; rows sum to 1.
    fields
        (spot,) values 0..1 of each programme that a field drives.
    depth
        Mean counts per spot.
    rng
        Random stream of the section.

    Returns
    -------
    scipy.sparse.csr_matrix
        (spot, gene) int32.
    """
    n_spots, n_genes = len(weights), len(expression.genes)
    relative = np.array([RELATIVE_DEPTH[state] for state in STATES])
    mean = (weights * relative) @ expression.profiles
    for name, index in expression.fields.items():
        mean[:, index] *= FIELD_FACTORS[name] ** (fields[name][:, None] - 0.5)
    mean *= np.exp(rng.normal(0.0, _SECTION_SIGMA, n_genes))
    size = np.exp(rng.normal(-(_DEPTH_SIGMA**2) / 2, _DEPTH_SIGMA, n_spots))
    mean *= depth * size[:, None]
    spread = rng.standard_gamma(1 / _DISPERSION, mean.shape) * _DISPERSION
    return sparse.csr_matrix(rng.poisson(mean * spread).astype(np.int32))


def write_10x_h5(
    counts: sparse.csr_matrix, genes: np.ndarray, barcodes: np.ndarray, path: str | Path
) -> None:
    """Write counts as Space Ranger's `filtered_feature_bc_matrix.h5`, the same bytes each time.

    Parameters
    ----------
    counts
        (spot, gene) integers.
    genes, barcodes
        Names of the columns and rows; as ids the genes carry `SIM-<symbol>`, not Ensembl's.
    path
        The file to write.
    """
    counts = sparse.csr_matrix(counts)
    counts.sort_indices()
    n_spots, n_genes = counts.shape
    columns = {
        "id": [f"SIM-{gene}" for gene in genes],
        "name": list(genes),
        "feature_type": ["Gene Expression"] * n_genes,
        "genome": ["simulated"] * n_genes,
    }
    with complete(path) as temporary, h5py.File(temporary, "w", track_order=False) as file:
        file.attrs["filetype"] = "matrix"
        file.attrs["version"] = 2
        file.attrs["software_version"] = "histogep simulation"
        matrix = file.create_group("matrix")

        def put(group: h5py.Group, name: str, values: np.ndarray) -> None:
            group.create_dataset(
                name, data=values, compression="gzip", compression_opts=4, track_times=False
            )

        put(matrix, "barcodes", _ascii(barcodes))
        put(matrix, "data", counts.data.astype(np.int32))
        put(matrix, "indices", counts.indices.astype(np.int64))
        put(matrix, "indptr", counts.indptr.astype(np.int64))
        put(matrix, "shape", np.array([n_genes, n_spots], np.int32))
        features = matrix.create_group("features")
        for name, values in columns.items():
            put(features, name, _ascii(values))
        put(features, "_all_tag_keys", _ascii(["genome"]))


def _ascii(values: Any) -> np.ndarray:
    return np.array([str(value).encode("ascii") for value in values])
