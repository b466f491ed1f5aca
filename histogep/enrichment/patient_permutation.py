"""Enrichment of gene sets, compared with rankings under permuted outcomes of the patients.

Genes of one tissue are correlated, so that a set looks enriched by chance far more often than sets
of random genes do. Here the genes stay together: the outcomes are permuted over the patients, the
genes are ranked again, and the score of every set is compared with its own under those rankings
(the phenotype permutation of Subramanian et al., PNAS 2005).

The enrichment score has no scale: a set whose genes are correlated stands together at one end of
nearly every ranking of a small panel, and only its distance from the middle tells outcomes apart.
So the enrichment score is multiplied by the mean absolute statistic of the set's genes, which gives
the same running sum in units of the statistic.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from histogep.outcome.patients import GENE, SHARE
from histogep.stats.cox import permuted_score_z

log = logging.getLogger(__name__)

#: Columns that `against_permuted_patients` adds to the table of gene sets.
COLUMNS = ["nes_patients", "p_patients", "fdr_patients", "n_patients", "significant"]
#: FDR over patients below which a gene set is called significant.
LEVEL = 0.05
#: Rankings whose scores are held at a time.
_CHUNK = 100

#: Whose outcome each patient gets (D, n) -> the statistic of every gene (D, genes).
Statistic = Callable[[np.ndarray], np.ndarray]


def enrichment_scores(scores: np.ndarray, members: Sequence[np.ndarray]) -> np.ndarray:
    """Return GSEA's enrichment score of several sets in several rankings.

    Parameters
    ----------
    scores
        Rankings x genes, in any order of the genes; ties go by that order.
    members
        Columns of `scores` that belong to each set.

    Returns
    -------
    ndarray
        (rankings, sets): the furthest point from 0 of the running sum, weighted by the absolute
        score (Subramanian et al., PNAS 2005).
    """
    scores = np.asarray(scores, float)
    rankings, n = scores.shape
    order = np.argsort(-scores, axis=1, kind="stable")
    place = np.empty_like(order)
    np.put_along_axis(place, order, np.broadcast_to(np.arange(n), order.shape), axis=1)
    result = np.empty((rankings, len(members)))
    for number, columns in enumerate(members):
        columns = np.asarray(columns)
        at = place[:, columns]
        by_place = np.argsort(at, axis=1)
        at = np.take_along_axis(at, by_place, axis=1)
        weight = np.take_along_axis(np.abs(scores[:, columns]), by_place, axis=1)
        hits = np.cumsum(weight, axis=1)
        total = hits[:, -1:]
        missed = (at - np.arange(len(columns))) / (n - len(columns))
        with np.errstate(invalid="ignore", divide="ignore"):
            peaks = hits / total - missed  # just behind a member
            troughs = (hits - weight) / total - missed  # just before one
        highest = np.maximum(peaks.max(axis=1), 0)
        lowest = np.minimum(troughs.min(axis=1), 0)
        result[:, number] = np.where(highest > -lowest, highest, lowest)
    return result


def welch_t(values: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Return Welch's t of every gene (columns of `values`) under several labellings, (D, genes).

    Parameters
    ----------
    values
        Patients x genes.
    positive
        Labellings x patients.
    """
    values = values - values.mean(axis=0)
    labels = np.asarray(positive, float)
    means, errors = [], []
    for group in (labels, 1 - labels):
        count = group.sum(axis=1, keepdims=True)
        mean = group @ values / count
        spread = (group @ values**2 - count * mean**2) / (count - 1)
        means.append(mean)
        errors.append(np.clip(spread, 0, None) / count)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (means[0] - means[1]) / np.sqrt(errors[0] + errors[1])


def normalise_by_sign(scores: np.ndarray) -> np.ndarray:
    """Return enrichment scores over the mean size of those of their sign, column by column.

    The scores as observed count among them, so that all rankings are treated alike.
    """
    result = np.zeros_like(scores)
    for sign in (1, -1):
        alike = np.sign(scores) == sign
        size = np.where(alike, np.abs(scores), 0).sum(axis=0) / np.maximum(alike.sum(axis=0), 1)
        result += np.where(alike, scores / np.where(size > 0, size, 1), 0)
    return result


def outcome_statistic(
    table: pd.DataFrame, contrast: str, *, gene_scale: str, subtype: str | None = None
) -> tuple[list[str], Statistic, int]:
    """Return the genes, their statistic under permuted outcomes, and the number of patients.

    Parameters
    ----------
    table
        Patients of the cohort (`histogep.outcome.patients.summarise_patients`).
    contrast
        survival (score z of a Cox model for each gene), response (Welch's t of responders), or
        subtype (the same of the patients whose tumour is mostly of `subtype`).
    gene_scale
        survival: as for `histogep.stats.cox.scan_genes`.
    subtype
        Name of the subtype.
    """
    genes = [name for name in table if name.startswith(GENE)]
    if contrast == "survival":
        known = table["time"].notna() & table["event"].notna()
    elif contrast == "response":
        known = table["response"].notna()
    else:
        labels = subtype_labels(table, subtype)
        known = labels.notna()
    used = table[known]
    values = used[genes].to_numpy(float)
    if contrast == "survival":
        time, event = used["time"].to_numpy(float), used["event"].to_numpy(int)

        def statistic(outcome_of: np.ndarray) -> np.ndarray:
            return permuted_score_z(values, time, event, outcome_of=outcome_of, scale=gene_scale)
    else:
        positive = (used["response"] == 1) if contrast == "response" else labels[known] == 1
        flags = positive.to_numpy(bool)

        def statistic(outcome_of: np.ndarray) -> np.ndarray:
            return welch_t(values, flags[outcome_of])

    return [name.removeprefix(GENE) for name in genes], statistic, len(used)


def subtype_labels(table: pd.DataFrame, subtype: str | None) -> pd.Series:
    """Return 1 for patients whose tumour is mostly of a subtype, 0 for others, NaN for unknown."""
    shares = table.filter(regex=f"^{SHARE}")
    most = shares.fillna(0).to_numpy(float).max(axis=1, initial=0)
    mine = shares.get(f"{SHARE}{subtype}", pd.Series(np.nan, index=table.index))
    return pd.Series(np.where(most > 0, (mine.fillna(0) == most) * 1.0, np.nan), index=table.index)


def against_permuted_patients(
    gsea: pd.DataFrame,
    ranking: pd.DataFrame,
    gene_sets: Mapping[str, Mapping[str, Sequence[str]]],
    *,
    genes: Sequence[str],
    statistic: Statistic,
    n_patients: int,
    permutations: int,
    seed: int,
) -> pd.DataFrame:
    """Add to every tested gene set what it scores against permuted patients.

    Parameters
    ----------
    gsea, ranking
        From `histogep.enrichment.gsea.enrich` and the ranking it was given: its genes are the universe.
    gene_sets
        Collection -> gene set -> genes.
    genes, statistic, n_patients
        From `outcome_statistic`.
    permutations
        Rankings under permuted patients.
    seed
        Of the permutations.

    Returns
    -------
    DataFrame
        `gsea` with nes_patients (enrichment score in units of `statistic`, over the mean size of
        those of its sign under permuted patients), p_patients (share of the permutations, the
        identity counted in, that are as far from 0), fdr_patients (Benjamini-Hochberg within the
        collection), n_patients, significant (fdr_patients below .05); by collection, p_patients,
        p and name.
    """
    place = {gene: number for number, gene in enumerate(genes)}
    universe = sorted(ranking["gene"])
    columns = np.array([place[gene] for gene in universe], int)
    index = {gene: number for number, gene in enumerate(universe)}
    members = [
        np.array([index[gene] for gene in gene_sets[row.collection][row.gene_set] if gene in index])
        for row in gsea.itertuples()
    ]
    rng = np.random.default_rng([seed, n_patients, 17])
    order = np.arange(n_patients)
    outcome_of = np.array([order, *(rng.permutation(n_patients) for _ in range(permutations))])
    scores = []
    for part in np.array_split(outcome_of, 1 + len(outcome_of) // _CHUNK):
        values = np.nan_to_num(statistic(part)[:, columns])
        size = np.stack([np.abs(values[:, own]).mean(axis=1) for own in members], axis=1)
        scores.append(enrichment_scores(values, members) * size)
    nes = normalise_by_sign(np.concatenate(scores))
    beyond = (np.abs(nes[1:]) >= np.abs(nes[0]) - 1e-12).sum(axis=0)
    table = gsea.assign(
        nes_patients=nes[0],
        p_patients=(1 + beyond) / (1 + permutations),
        n_patients=n_patients,
    )
    table["fdr_patients"] = table.groupby("collection")["p_patients"].transform(
        lambda p: stats.false_discovery_control(p.to_numpy())
    )
    table["significant"] = table["fdr_patients"] < LEVEL
    log.info(
        "%d of %d gene sets hold against %d permutations of %d patients",
        table["significant"].sum(),
        len(table),
        permutations,
        n_patients,
    )
    # Stable: the order of the collections and, among equals, of the table stay.
    first = {name: number for number, name in enumerate(dict.fromkeys(table["collection"]))}
    table["_first"] = table["collection"].map(first)
    table = table.sort_values(["_first", "p_patients", "p", "gene_set"], kind="stable")
    return table[[*gsea.columns, *COLUMNS]].reset_index(drop=True)


def out_of_reach(gsea: pd.DataFrame, permutations: int) -> str:
    """Say of which collections a single set cannot be significant, whatever its score; "" of none.

    The smallest p of so many permutations, times the number of sets, is the least `fdr_patients`
    of a set that is alone in reaching it.

    Parameters
    ----------
    gsea
        Sets that were tested.
    permutations
        Rankings under permuted patients.
    """
    said = []
    for collection, n in gsea.groupby("collection", sort=False).size().items():
        if n / (1 + permutations) < LEVEL:
            continue
        least = int(np.floor(n / (1 + permutations) / LEVEL)) + 1
        said.append(
            f"{collection}: of {n} sets at least {least} must beat all {permutations} permutations of "
            "the patients for any to be significant; set enrichment.patient_permutations to "
            f"{round(n / LEVEL)} or more, or give fewer sets"
        )
    return "; ".join(said)


def not_tested(gsea: pd.DataFrame) -> pd.DataFrame:
    """Return the table with empty columns of the patient permutation."""
    return gsea.assign(**dict.fromkeys(COLUMNS, None))
