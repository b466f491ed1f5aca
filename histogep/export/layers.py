"""All that is known of the places of one slide, side by side, for other programs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd

from histogep.cnv.names import subtypes_of
from histogep.errors import InputError
from histogep.files import read_labels
from histogep.lattice import Lattice
from histogep.neighbourhoods.tissue_classes import CLASSES, measured_places, predicted_places
from histogep.spots.matrices import EXPRESSION, read_h5ad

log = logging.getLogger(__name__)

#: Genes that are exported where none are named.
N_GENES = 50


@dataclass(frozen=True)
class SlideLayers:
    """One slide's places and what was measured or predicted there.

    Attributes
    ----------
    slide
        Its id.
    measured
        Whether the places are measured spots, or tiles of a slide without spots.
    data
        The table of the places (results/spots or results/expression).
    lattice, mpp
        On which they lie, and um per level-0 px.
    tumour
        One row per place: `tumour` (probability; of a section 1, 0, or NaN by its label), and the
        columns of the labels or of the prediction.
    cnv
        results/cnv/{slide}.h5ad, or None where no copy number is inferred or none could be.
    tissue
        One row per place: class ("" where unknown), the score of each programme, and the share of the
        neighbours of each class.
    """

    slide: str
    measured: bool
    data: anndata.AnnData
    lattice: Lattice
    mpp: float
    tumour: pd.DataFrame
    cnv: anndata.AnnData | None
    tissue: pd.DataFrame

    @property
    def centres_px(self) -> np.ndarray:
        """Centres (x, y) in level-0 px, (n, 2)."""
        return np.asarray(self.data.obsm["spatial"], np.float64)

    @property
    def expression(self) -> Any:
        """log1p CP10k, (n, genes)."""
        return self.data.layers[EXPRESSION] if self.measured else self.data.X

    def gene_values(self, genes: Sequence[str]) -> pd.DataFrame:
        """Return the expression of genes, one column each, float64."""
        chosen = self.expression[:, self.data.var_names.get_indexer(list(genes))]
        chosen = chosen.toarray() if hasattr(chosen, "toarray") else np.asarray(chosen)
        return pd.DataFrame(chosen.astype(np.float64), self.data.obs_names, list(genes))

    def choose_genes(self, wanted: Sequence[str]) -> list[str]:
        """Return the genes that are exported: those named that the slide has, else `N_GENES` of it.

        Of a predicted slide these are the predictable ones of the highest held-out score, of a section
        those whose log expression varies most.

        Raises
        ------
        InputError
            It has none of the named ones.
        """
        if wanted:
            found = [gene for gene in dict.fromkeys(wanted) if gene in self.data.var_names]
            absent = [gene for gene in dict.fromkeys(wanted) if gene not in found]
            if not found:
                raise InputError(
                    f"export.genes: slide {self.slide} has none of {', '.join(absent[:5])}; its "
                    f"{self.data.n_vars} genes begin with {', '.join(self.data.var_names[:3])}"
                )
            if absent:
                log.warning("slide %s has not: %s", self.slide, ", ".join(absent))
            return found
        if self.measured:
            squares = self.expression.multiply(self.expression).mean(axis=0)
            means = np.asarray(self.expression.mean(axis=0)).ravel()
            rank = np.asarray(squares).ravel() - means**2
        else:
            rank = np.nan_to_num(self.data.var["score"].to_numpy(float), nan=-np.inf)
            rank = np.where(self.data.var["predictable"].to_numpy(bool), rank, -np.inf)
        order = np.argsort(-rank, kind="stable")[:N_GENES]
        return list(self.data.var_names[order[np.isfinite(rank[order])]])


def read_layers(
    *,
    markers: str | Path,
    tumour_threshold: float | None,
    spots: str | Path | None = None,
    labels: str | Path | None = None,
    expression: str | Path | None = None,
    cnv: str | Path | None = None,
    subtypes: str | Path | None = None,
) -> SlideLayers:
    """Return the layers of a section (`spots`, `labels`) or of a predicted slide (`expression`).

    Parameters
    ----------
    markers
        histogep/resources/markers.tsv.
    tumour_threshold
        Tumour probability from which a tile is malignant; None for a section.
    spots, labels, expression, cnv
        Files of the slide's results.
    subtypes
        results/cnv/{cohort}/subtypes.tsv, which knows what the profile may be called.
    """
    if spots is not None and labels is not None:
        places = measured_places(spots, labels, markers)
        data = read_h5ad(spots)
        table = read_labels(labels, data.obs_names).set_index("barcode").loc[data.obs_names]
        known = table["label"].map({"malignant": 1.0, "non-malignant": 0.0}).astype(float)
        tumour = table[["label", "source"]].assign(
            tumour=known, confidence=pd.to_numeric(table["confidence"], errors="coerce")
        )
    elif expression is not None and tumour_threshold is not None:
        data = read_h5ad(expression)
        places = predicted_places(expression, markers, tumour_threshold=tumour_threshold)
        tumour = data.obs[["tumour", "ood_score", "out_of_distribution"]].copy()
    else:
        raise ValueError("either spots and labels, or expression and its threshold are needed")
    profile = None if cnv is None else read_h5ad(cnv)
    if profile is not None:
        if not data.obs_names.isin(profile.obs_names).all():
            raise InputError(
                f"{cnv} is not of the places of slide {data.uns['slide']}: make it again"
            )
        refused = str(profile.uns.get("refused", ""))
        profile = None if refused else profile[data.obs_names].copy()
    if profile is not None and subtypes is not None:
        own = subtypes_of(subtypes, str(data.uns["slide"]))
        if len(own):
            profile.uns["name"] = str(own["name"].iloc[0])
    kept = {name: data.uns["lattice"][name] for name in ("kind", "pitch_um", "tile_um")}
    lattice = Lattice(str(kept["kind"]), float(kept["pitch_um"]), float(kept["tile_um"]))
    return SlideLayers(
        slide=str(data.uns["slide"]),
        measured=spots is not None,
        data=data,
        lattice=lattice,
        mpp=float(data.uns["mpp"]),
        tumour=tumour,
        cnv=profile,
        tissue=_tissue(places.table, data, lattice),
    )


def _tissue(table: pd.DataFrame, data: anndata.AnnData, lattice: Lattice) -> pd.DataFrame:
    """Return class, programmes and neighbours of all places; of those left out they are unknown."""
    names = data.obs_names.astype(str)
    kinds = table["class"].reindex(names).fillna("").to_numpy(object)
    tissue = pd.DataFrame({"class": kinds}, index=names)
    programmes = ("immune", "stroma", "adipose")
    for name in programmes:
        tissue[f"{name}_programme"] = table[name].reindex(names).to_numpy(float)
    touching = lattice.neighbours(*(data.obs[axis].to_numpy() for axis in ("row", "col")))
    touching = touching.astype(np.float64)
    counted = touching @ (kinds != "").astype(np.float64)
    for name in CLASSES:
        if name != "boundary":  # a class by its neighbours, which are what is counted here
            with np.errstate(invalid="ignore"):
                tissue[f"neighbours_{name}"] = (touching @ (kinds == name).astype(float)) / counted
    return tissue


def layers_of(files: Any, **options: Any) -> SlideLayers:
    """Return `read_layers` of the inputs of a rule, of which `get` gives a file by its name."""
    names = ("spots", "labels", "expression", "cnv", "subtypes", "markers")
    given: dict[str, Any] = {name: files.get(name) for name in names}
    return read_layers(**{name: path for name, path in given.items() if path}, **options)
