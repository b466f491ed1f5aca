"""What each place of a slide is: malignant, boundary, immune, stroma or other, and of which clone.

Measured sections say it by their labels and counts, predicted slides by the predicted tumour map and
expression. Programmes are the lineages of histogep/resources/markers.tsv; what they say is relative to the
slide: a slide where a programme is low everywhere still has a part where it is highest.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from histogep.errors import InputError
from histogep.files import read_labels, read_tsv
from histogep.lattice import Lattice
from histogep.slides.rejected import refuse_failed_spots
from histogep.spots.matrices import expression_of, read_h5ad

log = logging.getLogger(__name__)

MALIGNANT, BOUNDARY, IMMUNE, STROMA, OTHER = "malignant", "boundary", "immune", "stroma", "other"
#: Classes of the places, those of the tumour first.
CLASSES = (MALIGNANT, BOUNDARY, IMMUNE, STROMA, OTHER)
#: Lineages of histogep/resources/markers.tsv that make a programme. A place of the last one is `other`: fat is
#: told apart so that it does not pass for stroma.
PROGRAMMES = {
    IMMUNE: (
        *("t_cell", "nk_cell", "b_cell", "plasma_cell", "macrophage", "dendritic", "mast_cell"),
    ),
    STROMA: ("fibroblast", "smooth_muscle", "endothelial"),
    "adipose": ("adipocyte",),
}
#: A programme of fewer genes that vary is not read.
MIN_GENES = 3
#: One-sided 5 % of a normal law: how high a place must be in a programme, in standard errors of
#: the mean of as many genes that have nothing to do with each other.
_STANDARD_ERRORS = 1.645


@dataclass(frozen=True)
class Places:
    """The places of one slide whose class is known.

    Attributes
    ----------
    slide
        Its id.
    measured
        Whether labels and expression were measured, or predicted from the image.
    lattice
        On which the places lie.
    table
        One row per place: row, col (of the lattice), x_um, y_um (its ideal centre), tumour
        (boolean), uncertain (labelled boundary), class (one of `CLASSES` but boundary, which
        depends on the neighbours), clone ("" for none), and the score of each programme (mean over
        its genes of the standardised log expression; NaN where too few genes vary).
    undetermined
        Number of places left out, as nothing says whether they are malignant.
    notes
        What could not be read, in words.
    """

    slide: str
    measured: bool
    lattice: Lattice
    table: pd.DataFrame
    undetermined: int
    notes: tuple[str, ...]


def measured_places(
    spots: str | Path, labels: str | Path, markers: str | Path, *, cnv: str | Path | None = None
) -> Places:
    """Return the places of a section, from its counts and the labels of its spots.

    Parameters
    ----------
    spots, labels
        `results/spots/{slide}.h5ad` and `results/labels/{slide}.tsv`.
    markers
        histogep/resources/markers.tsv.
    cnv
        `results/cnv/{slide}.h5ad`, where clones were called.

    Raises
    ------
    BadSlide
        The section was recorded as one that cannot be used.
    InputError
        The files do not belong together.
    """
    refuse_failed_spots(spots)
    data = read_h5ad(spots)
    label = read_labels(labels, data.obs_names).set_index("barcode").loc[data.obs_names, "label"]
    label = label.to_numpy(dtype=object)
    tumour = np.isin(label, (MALIGNANT, BOUNDARY))
    return _places(
        data,
        expression_of(data),
        data.var_names,
        tumour=tumour,
        uncertain=label == BOUNDARY,
        known=tumour | (label == "non-malignant"),
        markers=markers,
        cnv=cnv,
        measured=True,
    )


def predicted_places(
    expression: str | Path,
    markers: str | Path,
    *,
    tumour_threshold: float,
    cnv: str | Path | None = None,
) -> Places:
    """Return the places of a predicted slide, from its tumour map and its predictable genes.

    Parameters
    ----------
    expression
        `results/expression/{slide}.h5ad`.
    markers, cnv
        As for `measured_places`.
    tumour_threshold
        Tumour probability from which a place is malignant.

    Raises
    ------
    InputError
        The file is of another version, or not of the same slide as `cnv`.
    """
    data = read_h5ad(expression)
    if "tumour" not in data.obs or "predictable" not in data.var:
        raise InputError(
            f"{expression} has no tumour map or does not say which genes are predictable; predict the slide again"
        )
    predictable = data.var["predictable"].to_numpy(bool)
    probability = data.obs["tumour"].to_numpy(float)
    return _places(
        data,
        data.X[:, predictable],
        data.var_names[predictable],
        tumour=probability >= tumour_threshold,
        uncertain=np.zeros(data.n_obs, bool),
        known=np.isfinite(probability),
        markers=markers,
        cnv=cnv,
        measured=False,
    )


def _places(
    data: anndata.AnnData,
    values: sparse.spmatrix | np.ndarray,
    genes: pd.Index,
    *,
    tumour: np.ndarray,
    uncertain: np.ndarray,
    known: np.ndarray,
    markers: str | Path,
    cnv: str | Path | None,
    measured: bool,
) -> Places:
    slide = str(data.uns["slide"])
    kept = {name: data.uns["lattice"][name] for name in ("kind", "pitch_um", "tile_um")}
    lattice = Lattice(str(kept["kind"]), float(kept["pitch_um"]), float(kept["tile_um"]))
    row, col = data.obs["row"].to_numpy(int), data.obs["col"].to_numpy(int)
    x_um, y_um = lattice.centres_um(row, col)
    table = pd.DataFrame(
        {
            "row": row,
            "col": col,
            "x_um": x_um,
            "y_um": y_um,
            "tumour": tumour,
            "uncertain": uncertain,
        },
        index=data.obs_names.astype(str),
    )
    lineages = read_tsv(markers, dtype=str)
    scores, notes = score_programmes(values, genes, lineages)
    table["class"] = np.where(tumour, MALIGNANT, classify(scores))
    table["clone"] = "" if cnv is None else _clones(cnv, slide, table.index)
    table.loc[~table["tumour"], "clone"] = ""
    table = pd.concat([table, scores.set_axis(table.index)], axis=1)
    for note in notes:
        log.warning("slide %s: %s", slide, note)
    return Places(slide, measured, lattice, table[known], int((~known).sum()), tuple(notes))


def score_programmes(
    values: sparse.spmatrix | np.ndarray, genes: pd.Index, lineages: pd.DataFrame
) -> tuple[pd.DataFrame, list[str]]:
    """Return how high each place of a slide is in each programme.

    Parameters
    ----------
    values
        Places x genes, log expression.
    genes
        Names of the columns.
    lineages
        Columns lineage and gene.

    Returns
    -------
    scores
        Places x `PROGRAMMES`: the mean over the programme's genes of their expression, standardised
        over the places of the slide; NaN where fewer than `MIN_GENES` of its genes vary. `attrs`
        has the score from which a place belongs to the programme (see `classify`).
    notes
        Programmes that could not be read, in words.
    """
    n = values.shape[0]
    scores = pd.DataFrame(np.nan, index=range(n), columns=list(PROGRAMMES), dtype=float)
    least, notes = {}, []
    for programme, members in PROGRAMMES.items():
        wanted = lineages.loc[lineages["lineage"].isin(members), "gene"]
        columns = np.flatnonzero(genes.isin(wanted))
        chosen = values[:, columns]
        chosen = np.asarray(chosen.toarray() if hasattr(chosen, "toarray") else chosen)
        chosen = chosen.astype(np.float64)
        spread = chosen.std(axis=0) if n else np.zeros(len(columns))
        varies = spread > 1e-6
        least[programme] = _STANDARD_ERRORS / np.sqrt(max(int(varies.sum()), 1))
        if varies.sum() < MIN_GENES:
            notes.append(
                f"{int(varies.sum())} genes of the {programme} programme vary over the places, "
                f"{MIN_GENES} are needed: no place is {programme if programme != 'adipose' else 'told apart as fat'}"
            )
            continue
        chosen, spread = chosen[:, varies], spread[varies]
        scores[programme] = ((chosen - chosen.mean(axis=0)) / spread).mean(axis=1)
    scores.attrs["least"] = least
    return scores, notes


def classify(scores: pd.DataFrame) -> np.ndarray:
    """Return immune, stroma or other for each place, as if none were malignant.

    A place belongs to the programme that it is highest in, of those in which it is higher than 95 %
    of places would be if the programme's genes had nothing to do with each other.

    Parameters
    ----------
    scores
        From `score_programmes`.
    """
    reached = pd.DataFrame(
        {name: scores[name] >= least for name, least in scores.attrs["least"].items()}
    )
    held = scores[list(reached)].where(reached).fillna(-np.inf).to_numpy()
    names = np.array([name if name in CLASSES else OTHER for name in reached], dtype=object)
    return np.where(reached.any(axis=1), names[held.argmax(axis=1)], OTHER)


def _clones(path: str | Path, slide: str, places: pd.Index) -> np.ndarray:
    """Return the clone of each place, "" for none; nothing where no profile was made."""
    profile = read_h5ad(path)
    if str(profile.uns.get("slide", slide)) != slide or not places.isin(profile.obs_names).all():
        raise InputError(
            f"{path} is not of the places of slide {slide}: infer its copy number again"
        )
    if str(profile.uns.get("refused", "")):
        return np.full(len(places), "", dtype=object)
    clone = profile.obs.loc[places, "clone"].astype(str)
    return np.where(clone.str.isdigit(), clone, "").astype(object)
