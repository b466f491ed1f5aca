"""Which spots are malignant: from an annotation, or inferred from markers and copy number."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.mixture import GaussianMixture

from histogep.cnv.profiles import compare_genes
from histogep.errors import InputError
from histogep.inputs.delimited import open_delimited
from histogep.inputs.joins import HALF, explain_names, judge_join
from histogep.lattice import Lattice
from histogep.slides.annotation_fit import check_fit, points_within
from histogep.slides.geojson import Annotation, read_annotations
from histogep.spots.matrices import expression_of

log = logging.getLogger(__name__)

#: Labels, each with the key of the configuration that lists its texts.
LABELS = {
    "malignant": "malignant",
    "boundary": "boundary",
    "non-malignant": "non_malignant",
    "undetermined": "undetermined",
}
COLUMNS = ("barcode", "label", "source", "confidence", "original", "ranked")
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
#: Share of the spots at each end of the marker score that are marked in `ranked`.
RANKED_SHARE = 0.25
#: Share of the spots, most epithelial first, whose mean copy-number profile is the reference.
EPITHELIAL_SHARE = 0.2
_TEXT_COLUMNS = ("label", "annotation", "pathologist", "classification", "category", "location")
#: Other names of the column of barcodes.
_BARCODE_COLUMNS = (
    *("barcodes", "barcode_id", "spot_barcode", "spot_id", "spot", "spots", "spot_name"),
    *("cell_id", "cell", "cells", "index", "id"),
)
_CNV_OPTIONS = (*("exclude_chromosomes", "min_reference", "min_genes", "genome"),)


def label_annotated(
    spots: anndata.AnnData, path: str | Path, settings: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """Return the labels of spots that somebody annotated.

    Parameters
    ----------
    spots
        Spots of the section.
    path
        QuPath's polygons (.geojson, .json), or a table (tab, comma or semicolon) with a column of barcodes, or of
        array coordinates x and y, and one of texts; Loupe's category file is such a table, and so
        are the spots of Cottrazm as R writes them (barcodes as row names, texts in `Location`).
    settings
        Texts of each label: malignant, boundary, non_malignant, undetermined.

    Returns
    -------
    pandas.DataFrame
        barcode, label, source, confidence, original, ranked (empty: only inferred labels rank), in
        the order of the spots; those without an annotation are undetermined.

    Raises
    ------
    InputError
        If the file cannot be understood, holds a text that no label lists, or touches no spot.
    """
    path = Path(path)
    polygons = _has_polygons(path)
    texts = read_polygons(spots, path) if polygons else read_annotation(path)
    found = texts.index.isin(spots.obs_names)
    if not found.any():
        raise InputError(
            f"{path} annotates no spot of slide {spots.uns['slide']}: it names "
            f"{', '.join(texts.index[:3])}, the counts {', '.join(spots.obs_names[:3])}"
        )
    label = map_texts(texts, settings, path=path)
    barcodes = spots.obs_names.to_numpy(dtype=object)
    join = f"{found.sum()} of {len(barcodes)} spots are annotated by {path.name}"
    if polygons:
        log.info("%s", join)
    else:
        join = _judge_annotation(texts.index, barcodes, path)
    label = label.reindex(barcodes).fillna("undetermined").to_numpy(dtype=object)
    table = pd.DataFrame(
        {
            "barcode": barcodes,
            "label": label,
            "source": "polygon" if polygons else "annotation",
            "confidence": np.where(label == "undetermined", 0.0, 1.0),
            "original": texts.reindex(barcodes).fillna("").to_numpy(dtype=object),
            "ranked": "",
        }
    )
    # For the figure: the shares of the spots and of the file behind it.
    table.attrs["join"] = join
    return table


def _judge_annotation(given: pd.Index, barcodes: np.ndarray, path: Path) -> str:
    """Return what share of a table of annotated spots and of the spots matched; refuse hardly any.

    A table may name more spots than are left of a section, or only a part of them: the larger of
    the two shares shows whether both are of the same section.
    """
    n = int(given.isin(barcodes).sum())
    total, what = min(
        (len(given), f"spots of {path} are among the spots of the section"),
        (len(barcodes), f"spots of the section are annotated by {path}"),
    )
    said = judge_join(what, n, total, explain=lambda: explain_names(given, barcodes))
    if n < HALF * len(barcodes) and total != len(barcodes):
        log.warning(
            "%s annotates %d of %d spots: the others are undetermined", path, n, len(barcodes)
        )
    return said


def map_texts(
    texts: pd.Series, settings: Mapping[str, Sequence[str]], *, path: str | Path
) -> pd.Series:
    """Return the label of each text; case and outer blanks do not matter.

    Raises
    ------
    InputError
        If no label lists a text; `path` is named.
    """
    # What R and Python write for a missing text.
    meaning = dict.fromkeys(("", "na", "nan", "<na>", "n/a"), "undetermined")
    for label, key in LABELS.items():
        for text in settings.get(key, ()):
            meaning[str(text).strip().lower()] = label

    def mean(text: str) -> str | None:
        text = text.strip().lower()
        # QuPath marks the classes that it ignores with a *.
        return meaning.get(text, meaning.get(text.rstrip("*").strip()))

    label = texts.map(mean)
    unknown = sorted(set(texts[label.isna()]))
    if unknown:
        raise InputError(
            f"{path} holds annotations of unknown meaning: {', '.join(map(repr, unknown))}; add each "
            "to labels.malignant, labels.boundary, labels.non_malignant or labels.undetermined in "
            "the configuration"
        )
    return label


def read_label_texts(path: str | Path) -> set[str]:
    """Return the texts of an annotation, for any slide.

    Raises
    ------
    InputError
        If the file cannot be understood, or has no area with a class.
    """
    if _has_polygons(Path(path)):
        return {annotation.text for annotation in _classed(path)}
    return set(read_annotation(path))


def _has_polygons(path: Path) -> bool:
    return path.suffix.lower() in (".geojson", ".json")


def _classed(path: str | Path) -> list[Annotation]:
    """Return the annotated areas that have a class."""
    annotations = [one for one in read_annotations(path) if one.text]
    if not annotations:
        raise InputError(f"{path} holds no annotation with a class: set classes in QuPath")
    return annotations


def read_annotation(path: str | Path) -> pd.Series:
    """Return the text of each annotated spot (index barcode) of a table."""
    path = Path(path)
    read = open_delimited(path, what="a table of annotated spots", row_names=True)
    if len(read.columns) < 2:
        raise InputError(
            f"{path}, line {read.header_line}: {', '.join(map(repr, read.names))} has no tab, comma or "
            "semicolon, so no column of labels beside that of the spots; separate the columns by tabs"
        )
    table = read.text(strip=False).reset_index(drop=True)
    columns = {column.strip().lower(): column for column in table.columns}
    nameless = {"", "unnamed: 0"} & set(columns)  # row names of R's write.csv
    if not ({"barcode"} <= set(columns) or {"x", "y"} <= set(columns)):
        named = next((name for name in _BARCODE_COLUMNS if name in columns), None)
        named = named or (nameless.pop() if nameless else None)
        if named is not None:
            columns["barcode"] = columns.pop(named)
    if "barcode" in columns:
        barcode = table[columns["barcode"]].str.strip()
        others = [column for key, column in columns.items() if key != "barcode"]
    elif {"x", "y"} <= set(columns):
        x, y = (pd.to_numeric(table[columns[axis]], errors="coerce") for axis in ("x", "y"))
        if (x.isna() | y.isna()).any():
            raise InputError(
                f"{path}: x or y of row {int((x.isna() | y.isna()).argmax()) + 1} "
                "is not a number: they are the array coordinates of the spot"
            )
        barcode = x.round().astype(int).astype(str) + "x" + y.round().astype(int).astype(str)
        others = [column for key, column in columns.items() if key not in ("x", "y")]
    else:
        raise InputError(
            f"{path} has neither a column barcode nor x and y among {', '.join(table.columns[:8])}: "
            "name the spots"
        )
    known = [columns[key] for key in _TEXT_COLUMNS if columns.get(key) in others]
    # Cottrazm keeps the labels of its last but one round as `Label`: only `Location` is its verdict.
    if "cnvlabel" in columns:
        if "location" not in columns:
            raise InputError(
                f"{path} has Cottrazm's CNVLabel but not its Location, which BoundaryPlot adds: "
                "save the spots after that step"
            )
        known = [columns["location"]]
    chosen = known[:1] or (others if len(others) == 1 else [])
    if not chosen:
        raise InputError(
            f"{path}: which of its columns {', '.join(others) or '(none)'} is the annotation? "
            "Call it label"
        )
    texts = pd.Series(
        table[chosen[0]].to_numpy(dtype=object), index=pd.Index(barcode, dtype=object)
    )
    texts = texts[~pd.DataFrame({"b": texts.index, "t": texts.to_numpy()}).duplicated().to_numpy()]
    if not texts.index.is_unique:
        twice = texts.index[texts.index.duplicated()][0]
        raise InputError(f"{path} gives the spot {twice} two annotations: keep one")
    return texts


def read_polygons(spots: anndata.AnnData, path: str | Path) -> pd.Series:
    """Return the class of the annotated area (QuPath, level-0 px) that holds each spot's centre.

    Where areas overlap the smallest counts; those without a class are left out.

    Raises
    ------
    InputError
        If the file cannot be understood, has no area with a class, or hardly a spot lies in one.
    """
    annotations = _classed(path)
    centres = np.asarray(spots.obsm["spatial"], np.float64)
    parts = [(polygon, n) for n, one in enumerate(annotations) for polygon in one.polygons]
    polygons, owner = [polygon for polygon, _ in parts], np.array([n for _, n in parts])
    point, polygon = points_within(polygons, centres)
    inside = pd.DataFrame({"point": point, "owner": owner[polygon]})
    check_fit(
        f"{path}: slide {spots.uns['slide']}",
        polygons,
        centres,
        n_inside=inside["point"].nunique(),
        n_touching=inside["owner"].nunique(),
        n_areas=len(annotations),
        mpp=spots.uns.get("mpp"),
    )
    inside["area"] = [annotations[n].area_px2 for n in inside["owner"]]
    inside["text"] = [annotations[n].text for n in inside["owner"]]
    inside = inside.sort_values(["area", "text"], kind="stable").drop_duplicates("point")
    barcodes = spots.obs_names.to_numpy(dtype=object)[inside["point"].to_numpy()]
    return pd.Series(inside["text"].to_numpy(dtype=object), index=barcodes).sort_index()


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

    Both have one variance, so that the probability rises with the score.
    """
    values = score[:, np.newaxis]
    one, two = (
        GaussianMixture(k, covariance_type="tied", n_init=5, random_state=seed).fit(values)
        for k in (1, 2)
    )
    if two.bic(values) >= one.bic(values):
        log.warning("the spots do not fall into two groups: all are left undetermined")
        return np.full(len(score), np.nan)
    return two.predict_proba(values)[:, int(two.means_[:, 0].argmax())]


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
