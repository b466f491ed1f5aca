"""What a cohort needs of the copy number of each of its slides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from histogep.cnv.clones import REFERENCE, UNASSIGNED
from histogep.cnv.slide import plain_lattice
from histogep.inputs.barcodes import patient_of
from histogep.lattice import Lattice
from histogep.spots.matrices import read_h5ad

#: Arms with fewer genes on a slide are no part of its profile.
_FEWEST_GENES = 15


@dataclass(frozen=True)
class SlideProfile:
    """What the cohort needs of one slide's copy number.

    Attributes
    ----------
    slide, patient
        Ids; of a TCGA barcode the patient's part, as in the table of patients.
    measured
        Whether the expression was measured.
    name
        "CNV" or "expression subtype".
    refused
        Why the slide has no profile; "" when it has one.
    reference
        What chose the reference spots: "labels", "ranked" or "prediction".
    spots
        Index: spot; clone, cnv_score, reference, x_um, y_um.
    clones
        Mean of each arm in each clone minus the reference's (clone by arm).
    genes
        The same of each gene (clone by gene).
    gene_arms
        Arm of each gene.
    gene_levels
        Mean log1p CP10k of each gene in the reference.
    heterogeneity
        ithcna, ithgex and n_places (`histogep.cnv.heterogeneity.measure_heterogeneity`); none of a
        refused slide.
    controls
        Controls of the slide.
    pitch_um
        Distance of neighbouring spots.
    """

    slide: str
    patient: str
    measured: bool
    name: str
    refused: str
    reference: str
    spots: pd.DataFrame
    clones: pd.DataFrame
    genes: pd.DataFrame
    gene_arms: pd.Series
    gene_levels: pd.Series
    heterogeneity: Mapping[str, float]
    controls: pd.DataFrame
    pitch_um: float


def read_profile(path: str | Path, *, slide: str, patient: str) -> SlideProfile:
    """Return what the cohort needs of a file of `histogep.cnv.slide.write_profile`."""
    result = read_h5ad(path)
    spots = result.obs[["clone", "cnv_score", "reference"]].copy()
    spots["clone"] = spots["clone"].astype(str)
    lattice = Lattice.from_settings(plain_lattice(result.uns["lattice"]))
    place = (result.obs[name].to_numpy() for name in ("row", "col"))
    spots["x_um"], spots["y_um"] = lattice.centres_um(*place)
    refused = str(result.uns["refused"])
    clones, genes, gene_arms = pd.DataFrame(), pd.DataFrame(), pd.Series(dtype=object)
    gene_levels, heterogeneity = pd.Series(dtype=np.float64), {}
    if not refused:
        table = result.uns["arms"]
        arms = pd.DataFrame(
            np.asarray(result.obsm["X_arms"], np.float64),
            index=spots["clone"].to_numpy(),
            columns=table["arm"].astype(str).to_numpy(),
        ).loc[:, table["n_genes"].to_numpy() >= _FEWEST_GENES]
        means = arms.groupby(level=0).mean()
        clones = means.drop(index=[REFERENCE, UNASSIGNED], errors="ignore") - means.loc[REFERENCE]
        table = result.uns["clone_genes"]
        gene_arms = table["arm"].astype(str)
        gene_levels = table[REFERENCE].astype(np.float64)
        genes = table.drop(columns=["arm", REFERENCE]).T.reindex(clones.index)
        heterogeneity = {name: float(value) for name, value in result.uns["heterogeneity"].items()}
    return SlideProfile(
        slide=slide,
        patient=patient_of(patient),
        measured=bool(result.uns["measured"]),
        name=str(result.uns["name"]),
        refused=refused,
        reference=str(result.uns["reference"]),
        spots=spots,
        clones=clones,
        genes=genes,
        gene_arms=gene_arms,
        gene_levels=gene_levels,
        heterogeneity=heterogeneity,
        controls=result.uns["controls"],
        pitch_um=lattice.pitch_um,
    )
