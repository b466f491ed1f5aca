"""Which spots are malignant, inferred from markers and copy number."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import anndata
import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.mixture import GaussianMixture

from histogep.cnv.profiles import compare_genes
from histogep.errors import InputError
from histogep.lattice import Lattice
from histogep.spots.matrices import expression_of
from histogep.warned import decides

log = logging.getLogger(__name__)
#: Lineages of histogep/resources/markers.tsv that carcinoma cells express, and those of the other cells.
EPITHELIAL = ("epithelial",)
OTHERS = (
    "t_cell",
    "nk_cell",
    "b_cell",
    "plasma_cell",
    "macrophage",
    "dendritic",
    "mast_cell",
    "endothelial",
    "fibroblast",
    "smooth_muscle",
    "adipocyte",
)
#: Posterior above which a spot is malignant, and below which it is not.
MALIGNANT_P, NON_MALIGNANT_P = 0.8, 0.2
#: A spot lies on the boundary if the share of malignant spots about it is between these.
MIXED = (0.4, 0.6)
#: Weight of a spot against the mean of its neighbours.
OWN_WEIGHT = 0.5
#: Share of the spots, least epithelial first, that copy number is compared with: few and pure, since
#: a section may be nearly all tumour.
REFERENCE_SHARE = 0.1
#: Spots below which a section is not divided into malignant and other spots.
MIN_SPOTS = 30
#: Share of the spots at each end of the marker score that are marked in `ranked`.
RANKED_SHARE = 0.25
#: Share of the spots, most epithelial first, whose mean copy-number profile is the reference.
EPITHELIAL_SHARE = 0.2
_GROUPED_BY = {"markers": "their markers", "cnv": "markers and copy number"}
_CNV_OPTIONS = (*("exclude_chromosomes", "min_reference", "min_genes", "genome"),)


def infer_labels(
    spots: anndata.AnnData,
    markers: pd.DataFrame,
    *,
    positions: pd.DataFrame | None = None,
    cnv: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the labels of spots without an annotation.

    Epithelial against other markers, and with gene positions the copy-number signal against the
    least epithelial spots, are standardised, added and smoothed over neighbours; a mixture of two
    Gaussians gives the probability of malignancy. Normal epithelium counts as malignant wherever
    copy number cannot tell them apart. Where one Gaussian is enough all spots stay undetermined;
    the ends of the smoothed marker score are marked all the same, for uses that need a contrast
    and not the truth.

    Parameters
    ----------
    spots
        Spots of one section, raw counts.
    markers
        lineage, gene.
    positions
        Table of `histogep.inputs.genome.read_gene_positions`, if known.
    cnv
        Settings of `histogep.cnv.profiles.compare_genes`; other keys are ignored.
    seed
        Of the mixture.

    Returns
    -------
    pandas.DataFrame
        barcode, label, source ("cnv" or "markers"), confidence (|2p - 1|), original (empty), ranked
        ("low" or "high" for the least and the most epithelial quarter of the spots, else empty),
        and the probability.
    """
    lattice = Lattice.from_settings(dict(spots.uns["lattice"]))
    adjacency = lattice.neighbours(spots.obs["row"].to_numpy(), spots.obs["col"].to_numpy())
    expression = expression_of(spots)
    epithelial = contrast_lineages(expression, spots.var_names, markers)
    score, source = _standardise(_smooth(epithelial, adjacency)), "markers"
    # Of the markers alone: copy number must not choose the spots between which it is measured.
    ranked = _ends(score)
    if positions is not None:
        try:
            burden = _copy_number(expression, spots, epithelial, positions, cnv or {}, adjacency)
        except InputError as error:
            log.warning("copy number is left out of the labels: %s", error)
        else:
            score, source = _standardise(score + burden), "cnv"
    probability = _mixture(score, seed=seed)
    label = np.full(len(score), "boundary", dtype=object)
    if np.isnan(probability).all():
        _warn_undetermined(str(spots.uns.get("slide", "")), len(score), source)
        label[:] = "undetermined"
        probability = np.full(len(score), 0.5)
    else:
        around = _around((probability > 0.5).astype(float), adjacency)
        mixed = (around >= MIXED[0]) & (around <= MIXED[1])
        label[(probability > MALIGNANT_P) & ~mixed] = "malignant"
        label[(probability < NON_MALIGNANT_P) & ~mixed] = "non-malignant"
    return pd.DataFrame(
        {
            "barcode": spots.obs_names.to_numpy(dtype=object),
            "label": label,
            "source": source,
            "confidence": np.abs(2 * probability - 1),
            "original": "",
            "ranked": ranked,
            "probability": probability,
        }
    )


def contrast_lineages(expression: Any, genes: Sequence[str], markers: pd.DataFrame) -> np.ndarray:
    """Return how epithelial each spot is against all other lineages, standardised.

    Parameters
    ----------
    expression
        log1p CP10k, spots x genes.
    genes
        Their symbols.
    markers
        lineage, gene.

    Raises
    ------
    InputError
        If the counts hold markers of one side only.
    """
    spots = anndata.AnnData(sparse.csr_matrix(expression), var=pd.DataFrame(index=list(genes)))
    varying = np.ptp(spots.X.toarray(), axis=0) > 0
    known = set(spots.var_names[varying])
    sides = []
    for lineages in (EPITHELIAL, OTHERS):
        programmes = []
        for lineage in lineages:
            chosen = markers.loc[markers["lineage"] == lineage, "gene"]
            chosen = [gene for gene in dict.fromkeys(chosen) if gene in known]
            if chosen:
                programmes.append(_score_programme(spots, chosen))
        if not programmes:
            raise InputError(
                f"the counts hold no marker of {', '.join(lineages)}: tumour labels cannot be "
                "inferred; give an annotation in the column `labels` of the slides sheet"
            )
        sides.append(_standardise(np.mean(programmes, axis=0)))
    return _standardise(sides[0] - sides[1])


def _score_programme(spots: anndata.AnnData, genes: Sequence[str]) -> np.ndarray:
    """Return the mean of genes less that of all genes of a like mean (scanpy's score_genes).

    All of them and not a sample: of 50 drawn at random, as is scanpy's default, the AUROC of the
    labels of a real section depended on the seed (.69 to .91).
    """
    import scanpy as sc  # seconds, and every plan reads annotations by this module

    # At least 50 genes of a like mean, where so many are measured.
    n_bins = int(np.clip(spots.n_vars // 50, 2, 25))
    options = {"ctrl_size": spots.n_vars, "n_bins": n_bins, "random_state": None}
    try:
        sc.tl.score_genes(spots, genes, score_name="programme", **options)
    except RuntimeError:  # no other gene has a like mean
        return np.asarray(spots[:, genes].X.mean(axis=1), np.float64).ravel()
    return spots.obs["programme"].to_numpy(np.float64)


def _copy_number(
    expression: Any,
    spots: anndata.AnnData,
    epithelial: np.ndarray,
    positions: pd.DataFrame,
    settings: Mapping[str, Any],
    adjacency: Any,
) -> np.ndarray:
    """Return the standardised copy-number signal of spots against the least epithelial ones."""
    options = {name: settings[name] for name in _CNV_OPTIONS if name in settings}
    n = max(int(options.get("min_reference", 20)), round(REFERENCE_SHARE * len(epithelial)))
    reference = np.zeros(len(epithelial), bool)
    reference[np.argsort(epithelial, kind="stable")[:n]] = True
    ratios = compare_genes(
        expression,
        positions,
        reference,
        genes=list(spots.var_names),
        gene_ids=list(spots.var["gene_id"].astype(str)),
        **options,
    )
    # The mean profile of the most epithelial spots defines the signal. The cosine with it does not
    # grow with the noise of shallow spots, as the mean absolute value does.
    epithelial_spots = epithelial >= np.quantile(epithelial, 1 - EPITHELIAL_SHARE)
    pattern = ratios.bins[epithelial_spots].mean(axis=0) - ratios.bins[reference].mean(axis=0)
    smoothed = _smooth(ratios.bins, adjacency)
    length = np.linalg.norm(smoothed, axis=1) * np.linalg.norm(pattern)
    return _standardise(smoothed @ pattern / np.where(length > 0, length, 1.0))


def _mixture(score: np.ndarray, *, seed: int) -> np.ndarray:
    """Return the probability of the upper of two Gaussians; NaN if one Gaussian is enough (BIC).

    Both have one variance, so that the probability rises with the score. Few spots fall into two
    groups by chance: spots of one Gaussian do in 9 % of sections of 20, 42 % of 5 and always of 2.
    """
    if len(score) < MIN_SPOTS:
        return np.full(len(score), np.nan)
    values = score[:, np.newaxis]
    one, two = (
        GaussianMixture(k, covariance_type="tied", n_init=5, random_state=seed).fit(values)
        for k in (1, 2)
    )
    if two.bic(values) >= one.bic(values):
        return np.full(len(score), np.nan)
    return two.predict_proba(values)[:, int(two.means_[:, 0].argmax())]


def _warn_undetermined(slide: str, n_spots: int, source: str) -> None:
    """Say why no spot of a section is labelled, and what follows."""
    what = (
        "all are left undetermined, so no tumour map is learned or tested on this section; give labels "
        "(column labels of the sheet)"
    )
    if n_spots < MIN_SPOTS:
        log.warning(
            "slide %s: %d spots are too few to tell two groups apart (%d are needed): %s",
            *(slide, n_spots, MIN_SPOTS, what),
            **decides("tumour"),
        )
    else:
        log.warning(
            "slide %s: the spots do not fall into two groups by %s: %s",
            *(slide, _GROUPED_BY[source], what),
            **decides("tumour"),
        )


def _ends(score: np.ndarray) -> np.ndarray:
    """Return "low" and "high" for the ends of a score; none where they cannot be told apart."""
    low, high = np.quantile(score, [RANKED_SHARE, 1 - RANKED_SHARE])
    ranked = np.full(len(score), "", dtype=object)
    if low < high:
        ranked[score <= low] = "low"
        ranked[score >= high] = "high"
    return ranked


def _smooth(values: np.ndarray, adjacency: Any) -> np.ndarray:
    return OWN_WEIGHT * values + (1 - OWN_WEIGHT) * _around(values, adjacency)


def _around(values: np.ndarray, adjacency: Any) -> np.ndarray:
    """Return the mean over the neighbours of each spot; its own value if it has none."""
    count = np.asarray(adjacency.sum(axis=1)).reshape(-1, *[1] * (values.ndim - 1))
    return np.where(count > 0, adjacency @ values / np.maximum(count, 1), values)


def _standardise(values: np.ndarray) -> np.ndarray:
    spread = values.std(axis=0)
    return (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
