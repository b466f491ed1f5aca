"""Enrichment: genes ranked by a contrast, and gene sets at the ends of the ranking (GSEA)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from histogep.enrichment.patient_permutation import (
    against_permuted_patients,
    not_tested,
    out_of_reach,
    outcome_statistic,
    subtype_labels,
    welch_t,
)
from histogep.errors import InputError
from histogep.files import read_labels, read_tsv
from histogep.outcome.patients import GENE, SHARE
from histogep.spots.matrices import expression_of, read_h5ad
from histogep.warned import decides

log = logging.getLogger(__name__)

DEFAULTS: dict[str, Any] = {
    "min_size": 5,
    "max_size": 500,
    "permutations": 1000,
    "patient_permutations": 1000,
    "subtype": None,
}
COLUMNS = ["collection", "gene_set", "es", "nes", "p", "fdr", "n_genes", "leading_edge"]
#: A subtype needs this many patients on either side.
MIN_PATIENTS = 3
#: A section (or slide) with fewer tiles on either side of the contrast says nothing about it.
MIN_SPOTS = 5


class NothingToRankError(InputError):
    """The data do not hold the contrast: something to be told, not a mistake to be mended."""


def rank_by_column(path: str | Path, column: str) -> pd.DataFrame:
    """Rank genes by a column of a table: `z` of cox.tsv, `t` of the response's genes.tsv.

    Returns
    -------
    DataFrame
        gene, score; the highest first. Genes without a score are left out.
    """
    table = read_tsv(path, dtype={"gene": str}, keep_default_na=False, na_values=[""])
    if "gene" not in table or column not in table:
        raise InputError(f"{path} needs the columns gene and {column}")
    return _ranking(table["gene"].to_numpy(str), pd.to_numeric(table[column]).to_numpy(float))


def rank_measured(
    spots: Sequence[str | Path],
    labels: Sequence[str | Path],
    *,
    min_detected: float = 0.02,
) -> pd.DataFrame:
    """Rank all measured genes by malignant against non-malignant spots.

    Within each section the score is the difference of the mean log1p CP10k between the two kinds
    of spots over the gene's standard deviation in the section; the ranking is by the mean over
    the sections that hold the gene, so that no section's depth decides it.

    Parameters
    ----------
    spots, labels
        Sections (`results/spots/*.h5ad`) and their labels (`results/labels/*.tsv`), parallel.
    min_detected
        Genes seen in a smaller share of a section's labelled spots have no score there.
    """
    scores: list[pd.Series] = []
    for path, label_path in zip(spots, labels, strict=True):
        data = read_h5ad(path)
        table = read_labels(label_path, data.obs_names).set_index("barcode")["label"]
        label = table.reindex(data.obs_names).to_numpy(object)
        malignant, other = label == "malignant", label == "non-malignant"
        if min(malignant.sum(), other.sum()) < MIN_SPOTS:
            log.warning(
                "%s has %d malignant and %d non-malignant spots, fewer than %d of each; left out",
                path,
                malignant.sum(),
                other.sum(),
                MIN_SPOTS,
            )
            continue
        values = expression_of(data)
        detected = np.asarray((values[malignant | other] > 0).mean(axis=0)).ravel()
        score = _difference(values, malignant, other)
        score[detected < min_detected] = np.nan
        scores.append(pd.Series(score, index=data.var_names.astype(str)))
    return _mean_ranking(scores, "no section has enough malignant and non-malignant spots")


def rank_predicted(
    expression: Sequence[str | Path], *, tumour_threshold: float = 0.5
) -> pd.DataFrame:
    """Rank the predictable genes by tumour against other tiles of predicted slides.

    As `rank_measured`, with the predicted tumour probability in place of labels.

    Parameters
    ----------
    expression
        `results/expression/*.h5ad`.
    tumour_threshold
        Probability from which a tile is a tumour tile.
    """
    scores: list[pd.Series] = []
    unmapped = 0
    for path in expression:
        data = read_h5ad(path)
        predictable = data.var["predictable"].to_numpy(bool)
        probability = data.obs["tumour"].to_numpy(float)
        unmapped += bool(np.isnan(probability).all())
        tumour = probability >= tumour_threshold
        if min(tumour.sum(), (~tumour).sum()) < MIN_SPOTS:
            log.info("%s has tiles of one kind only; left out", path)
            continue
        score = _difference(sp.csr_matrix(data.X)[:, predictable], tumour, ~tumour)
        scores.append(pd.Series(score, index=data.var_names[predictable].astype(str)))
    reason = "no slide has both tumour and other tiles"
    if unmapped == len(expression):
        reason = "no slide has a tumour map, as the model has none"
    return _mean_ranking(scores, reason)


def rank_by_subtype(table: pd.DataFrame, subtype: str) -> pd.DataFrame:
    """Rank the genes by Welch's t of the patients of a copy-number subtype against the others.

    A patient is of the subtype that most tumour spots with a clone have.

    Parameters
    ----------
    table
        Patients of the cohort, with the shares of `results/cnv/{cohort}/patients.tsv`.
    subtype
        Name of the subtype.

    Raises
    ------
    InputError
        No subtype of that name.
    NothingToRankError
        Fewer than `MIN_PATIENTS` patients with it or with another one.
    """
    names = [name.removeprefix(SHARE) for name in table if name.startswith(SHARE)]
    if subtype not in names:
        raise InputError(
            f"enrichment.subtype: no subtype is called {subtype!r}; this cohort has "
            f"{', '.join(names) or 'none'}"
        )
    labels = subtype_labels(table, subtype)
    known = labels.notna().to_numpy()
    flags = labels[known].to_numpy() == 1
    if min(flags.sum(), (~flags).sum()) < MIN_PATIENTS:
        raise NothingToRankError(
            f"{flags.sum()} patients of subtype {subtype} and {(~flags).sum()} of others: "
            f"{MIN_PATIENTS} of each are needed"
        )
    genes = [name for name in table if name.startswith(GENE)]
    t = welch_t(table.loc[known, genes].to_numpy(float), flags[None])[0]
    return _ranking(np.array([name.removeprefix(GENE) for name in genes], str), t)


def rank_contrast(
    *,
    cox: str | Path | None = None,
    response_genes: str | Path | None = None,
    spots: Sequence[str | Path] | None = None,
    labels: Sequence[str | Path] | None = None,
    expression: Sequence[str | Path] | None = None,
    patients: pd.DataFrame | None = None,
    subtype: str | None = None,
    tumour_threshold: float = 0.5,
) -> tuple[pd.DataFrame, str]:
    """Rank genes by whichever source is given; return the ranking and what it is ranked by."""
    if cox:
        return rank_by_column(cox, "z"), "Ranked by Cox z: right, higher with a higher hazard"
    if response_genes:
        return rank_by_column(response_genes, "t"), "Ranked by t: right, higher in responders"
    if spots and labels:
        title = "Measured sections: right, higher in malignant than in non-malignant spots"
        return rank_measured(spots, labels), title
    if expression:
        title = "Predicted slides: right, higher in tumour tiles than in others"
        return rank_predicted(expression, tumour_threshold=tumour_threshold), title
    if patients is not None and subtype is not None:
        # As the cohort's profiles are called: copy number only where every slide's is.
        kind = "copy-number" if "cnv_burden" in patients else "expression"
        title = f"Ranked by t: right, higher in patients of {kind} subtype {subtype} than in others"
        return rank_by_subtype(patients, subtype), title
    raise ValueError("no source of a ranking was given")


def enrich_contrast(
    contrast: str,
    sources: dict[str, Any],
    gene_sets: dict[str, dict[str, list[str]]],
    *,
    settings: dict[str, Any],
    seed: int,
    gene_scale: str = "normal_scores",
    tumour_threshold: float = 0.5,
) -> tuple[pd.DataFrame, pd.DataFrame, str, str]:
    """Rank, enrich, and compare with permuted patients where the contrast is one of patients.

    Parameters
    ----------
    contrast
        tumour, survival, response or subtype.
    sources
        Arguments of `rank_contrast`; `patients` is the table of the cohort's patients, without
        which nothing is permuted.
    gene_sets
        Collection -> gene set -> genes.
    settings
        Keys of `DEFAULTS`.
    seed
        Of all permutations.
    gene_scale
        survival: as for `histogep.stats.cox.scan_genes`.
    tumour_threshold
        tumour, predicted slides: probability from which a tile is a tumour tile.

    Returns
    -------
    ranking, gsea, title, reason
        `reason` says why there is nothing to rank, which collections have no set left among the
        ranked genes, and of which no single set can be significant with so few permutations; empty
        otherwise.
    """
    settings = DEFAULTS | settings
    patients, subtype = sources.get("patients"), settings.pop("subtype")
    permutations = settings.pop("patient_permutations")
    try:
        ranking, title = rank_contrast(
            **sources, subtype=subtype, tumour_threshold=tumour_threshold
        )
    except NothingToRankError as error:
        log.warning("contrast %s: %s", contrast, error, **decides("enrichment"))
        empty = pd.DataFrame(columns=["gene", "score"])
        return empty, not_tested(pd.DataFrame(columns=COLUMNS)), f"Contrast {contrast}", str(error)
    gsea = enrich(ranking, gene_sets, seed=seed, **settings)
    tested = set(gsea["collection"])
    reason = "; ".join(
        _none_left(name, sets, len(ranking), settings)
        for name, sets in gene_sets.items()
        if name not in tested
    )
    if patients is None or gsea.empty or not permutations:
        return ranking, not_tested(gsea), title, reason
    genes, statistic, n_patients = outcome_statistic(
        patients, contrast, gene_scale=gene_scale, subtype=subtype
    )
    gsea = against_permuted_patients(
        gsea,
        ranking,
        gene_sets,
        genes=genes,
        statistic=statistic,
        n_patients=n_patients,
        permutations=permutations,
        seed=seed,
    )
    if said := out_of_reach(gsea, permutations):
        log.warning("contrast %s: %s", contrast, said)
        reason = "; ".join(filter(None, (reason, said)))
    return ranking, gsea, title, reason


def enrich(
    ranking: pd.DataFrame,
    gene_sets: dict[str, dict[str, list[str]]],
    *,
    min_size: int,
    max_size: int,
    permutations: int,
    seed: int,
) -> pd.DataFrame:
    """Return the preranked GSEA of every collection; the ranked genes are the background.

    The test is competitive: a set is compared with random sets of the ranked genes. On a small
    panel, most of which follows the contrast one way, a set without any relation stands out by
    that. Sets of genes that follow each other also have smaller p than patients would support:
    `histogep.enrichment.patient_permutation` permutes the patients instead.

    Parameters
    ----------
    ranking
        gene, score, from one of the functions above.
    gene_sets
        Collection -> gene set -> genes.
    min_size, max_size
        Sizes of a gene set within the ranking that are tested.
    permutations
        For the normalisation of the enrichment score and as a first look at p; small p are
        found by multilevel sampling (Korotkevich et al., fgsea), so that they are not cut off.
    seed
        Of the permutations.

    Returns
    -------
    DataFrame
        collection, gene_set, es, nes (positive: at the high end of the ranking), p, fdr
        (Benjamini-Hochberg within the collection), n_genes (in the ranking), leading_edge;
        by collection, p and name. Empty when no set has enough of its genes in the ranking.
    """
    import gseapy

    tables = []
    ranked = ranking.set_index("gene")[["score"]]
    universe = set(ranked.index)
    flat = ranked["score"].nunique() < 2
    for collection, sets in gene_sets.items():
        kept = {name: [g for g in genes if g in universe] for name, genes in sets.items()}
        kept = {name: genes for name, genes in kept.items() if min_size <= len(genes) <= max_size}
        # A set that is the whole ranking has nothing to be compared with.
        kept = {name: genes for name, genes in sorted(kept.items()) if len(genes) < len(ranked)}
        if not kept or flat:
            sizes = {"min_size": min_size, "max_size": max_size}
            log.warning(_none_left(collection, sets, len(ranked), sizes), **decides("enrichment"))
            continue
        result = gseapy.prerank(
            rnk=ranked,
            gene_sets=kept,
            min_size=min_size,
            max_size=max_size,
            permutation_num=permutations,
            method="multilevel",
            seed=seed,
            threads=1,
            outdir=None,
            no_plot=True,
        ).res2d
        table = pd.DataFrame(
            {
                "collection": collection,
                "gene_set": result["Term"].astype(str),
                "es": result["ES"].astype(float),
                "nes": result["NES"].astype(float),
                "p": result["NOM p-val"].astype(float),
                "fdr": result["FDR q-val"].astype(float),
                "n_genes": [len(kept[name]) for name in result["Term"]],
                "leading_edge": result["Lead_genes"].astype(str).str.replace(";", ","),
            }
        )
        log.info(
            "%s: %d of %d sets tested, %d with FDR below .05",
            collection,
            len(table),
            len(sets),
            (table["fdr"] < 0.05).sum(),
        )
        tables.append(table.sort_values(["p", "gene_set"], kind="stable"))
    if not tables:
        return pd.DataFrame(columns=COLUMNS)
    return pd.concat(tables, ignore_index=True)[COLUMNS]


def _none_left(
    collection: str, sets: dict[str, list[str]], n_ranked: int, sizes: dict[str, Any]
) -> str:
    """Say that no set of a collection can be tested."""
    return (
        f"{collection}: none of its {len(sets)} gene sets has {sizes['min_size']} to "
        f"{sizes['max_size']} genes among the {n_ranked} ranked ones"
    )


def running_sum(scores: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Return GSEA's running sum down a ranking; its furthest point from 0 is the enrichment score.

    Subramanian et al., PNAS 2005: a member steps up by its share of the members' absolute scores,
    any other gene down by its share of the others.

    Parameters
    ----------
    scores
        Of the ranked genes, the highest first, (n,).
    members
        Which of them belong to the set, (n,).
    """
    weight = np.abs(scores) * members
    return np.cumsum(weight / weight.sum() - ~members / (~members).sum())


def _difference(values: sp.csr_matrix, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the difference of means of two groups of rows over the sd of both together."""
    both = values[first | second]
    mean = np.asarray(both.mean(axis=0)).ravel()
    variance = np.asarray(both.multiply(both).mean(axis=0)).ravel() - mean**2
    sd = np.sqrt(np.clip(variance, 0, None))
    gap = np.asarray(values[first].mean(axis=0) - values[second].mean(axis=0)).ravel()
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(sd > 1e-6, gap / sd, np.nan).astype(float)


def _mean_ranking(scores: list[pd.Series], nothing: str) -> pd.DataFrame:
    if not scores:
        raise NothingToRankError(f"{nothing}: {MIN_SPOTS} of each are needed")
    mean = pd.concat(scores, axis=1).mean(axis=1)
    return _ranking(mean.index.to_numpy(str), mean.to_numpy(float))


def _ranking(genes: np.ndarray, scores: np.ndarray) -> pd.DataFrame:
    """Return the genes with a score, the highest first, ties by name."""
    table = pd.DataFrame({"gene": genes, "score": scores})
    table = table[np.isfinite(table["score"])].drop_duplicates("gene")
    return table.sort_values(["score", "gene"], ascending=[False, True], ignore_index=True)
