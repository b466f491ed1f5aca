"""Scores of held-out sections, gene by gene, each with its nulls and its ceiling."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from histogep.evaluation.held_out import HeldOut
from histogep.evaluation.measured import Measured, training_mean
from histogep.stats.ceiling import KNOWN, Ceiling, noise_ceiling
from histogep.stats.nulls import (
    moved_null,
    permutation_null,
    shuffled_in_tissue_null,
    spectral_null,
    upper_p,
)
from histogep.stats.scores import false_discovery_rate, pearson, rmse, spearman

LOG = logging.getLogger(__name__)
#: Draws of the nulls that keep a map's pattern, per permutation asked for: they cost little, and p
#: must be small enough to survive the correction for all genes.
SPATIAL_DRAWS = 20
SECTION_COLUMNS = (
    "protocol",
    "model",
    "fold",
    "slide",
    "patient",
    "n_positions",
    "n_genes",
    "pearson",
    "spearman",
    "rmse",
    "tissue_mask_null",
    "permutation_null",
    "permutation_upper",
    "spatial_upper",
    "ceiling",
    "ceiling_spatial",
    "relative",
)
GENE_COLUMNS = (
    "protocol",
    "model",
    "gene",
    "n_sections",
    "n_patients",
    "pearson",
    "spearman",
    "rmse",
    "null",
    "null_upper",
    "permutation_p",
    "null_p",
    "fdr",
    "ceiling",
    "ceiling_spatial",
    "relative",
    "positive_patients",
    "predictable",
)
#: Nulls of unrelated maps; a gene must beat each.
UNRELATED = ("turned", "shifted", "spectral")
#: A gene is predictable below this false discovery rate.
FDR = 0.05


@dataclass(frozen=True)
class SectionScore:
    """One model's scores on one section; arrays are per gene, NaN where nothing can be scored.

    Attributes
    ----------
    protocol, fold, model, slide, patient
        Origin of the scores.
    genes
        Order of all arrays.
    n_positions
        Positions that were compared.
    pearson, spearman, rmse
        Scores.
    tissue_mask
        Pearson's r of a predictor that is constant in the tissue, by the same metric.
    ceiling, ceiling_spatial
        Noise ceilings by the same metric, of Poisson noise, and if only what neighbouring spots
        share is signal (patient_cv only).
    excess, excess_error
        How far the reliability exceeds that of a gene without signal (`histogep.stats.ceiling.Ceiling`).
    permutation, rank_permutation
        Shuffles by genes: correlations of predictions shuffled over the spots, and of their ranks
        (patient_cv only).
    turned, shifted, spectral
        Draws by genes: the three nulls of unrelated maps (`histogep.stats.nulls`); None under the
        whole-grid metric.
    predicted_level, measured_level
        Mean over the in-tissue spots.
    level_halves
        Measured means of the two halves of each thinning, thinnings by 2 by genes.
    """

    protocol: str
    fold: str
    model: str
    slide: str
    patient: str
    genes: tuple[str, ...]
    n_positions: int
    pearson: np.ndarray
    spearman: np.ndarray
    rmse: np.ndarray
    tissue_mask: np.ndarray
    ceiling: np.ndarray
    ceiling_spatial: np.ndarray
    excess: np.ndarray
    excess_error: np.ndarray
    permutation: np.ndarray
    rank_permutation: np.ndarray | None
    turned: np.ndarray | None
    shifted: np.ndarray | None
    spectral: np.ndarray | None
    predicted_level: np.ndarray
    measured_level: np.ndarray
    level_halves: np.ndarray


def section_ceilings(
    sections: Iterable[HeldOut], measured: Mapping[str, Measured], *, thinnings: int, seed: int
) -> dict[str, Ceiling]:
    """Return slide -> ceilings of all measured genes, for both metrics where a grid is predicted."""
    n_positions: dict[str, int | None] = {}
    for section in sections:
        if section.task == "expression":
            n_positions.setdefault(section.slide, None)
            if section.protocol == "published":
                n_positions[section.slide] = len(section.row)
    return {
        slide: noise_ceiling(
            measured[slide].counts,
            measured[slide].library_sizes,
            thinnings=thinnings,
            seed=section_seed(seed, slide, "ceiling"),
            n_positions=cells,
            adjacency=measured[slide].lattice.neighbours(measured[slide].row, measured[slide].col),
        )
        for slide, cells in n_positions.items()
    }


def baselines(
    sections: Sequence[HeldOut], measured: Mapping[str, Measured], folds: pd.DataFrame
) -> list[HeldOut]:
    """Return the two baselines that see no image, for every expression section.

    `tissue_mask` is 1 in the tissue and 0 outside; `training_mean` is each gene's mean over the
    training sections in the tissue and 0 outside. They are scored by the same code as the models.
    """
    made: dict[tuple[str, str], HeldOut] = {}
    for section in sections:
        if section.task == "expression":
            made.setdefault((section.protocol, section.slide), section)
    result = []
    for section in made.values():
        mask = np.repeat(section.in_tissue[:, None], len(section.genes), axis=1)
        result.append(section.instead("tissue_mask", mask))
        mean = training_mean(section, measured, folds)
        result.append(section.instead("training_mean", mean))
    return result


def score_section(
    section: HeldOut,
    measured: Measured,
    ceiling: Ceiling,
    *,
    permutations: int,
    seed: int,
) -> SectionScore:
    """Score one section: patient_cv ones over their in-tissue spots, published ones over the whole grid.

    The whole-grid metric is that of the paper: Pearson's r per gene over all positions of the grid,
    the zeros of the background included.

    Parameters
    ----------
    section
        What to score.
    measured
        Counts of the section.
    ceiling
        Noise ceilings of all genes of `measured`.
    permutations
        Shuffles of the permutation null; there are 20 times as many draws of the other nulls.
    seed
        Seed of the study.
    """
    whole_grid = section.protocol == "published"
    scored = section if whole_grid else section.tissue
    mask = np.repeat(scored.in_tissue[:, None].astype(float), len(scored.genes), axis=1)
    columns = measured.columns(section.genes)
    options = {
        "permutations": permutations,
        "seed": section_seed(seed, section.slide, section.model, "permutation"),
    }
    turned = shifted = spectral = ranks = None
    if whole_grid:
        permutation = shuffled_in_tissue_null(
            scored.predicted, scored.truth, scored.in_tissue, **options
        )
    else:
        permutation = permutation_null(scored.predicted, scored.truth, **options)
        ranked, true_ranks = (
            pd.DataFrame(values).rank().to_numpy() for values in (scored.predicted, scored.truth)
        )
        ranks = permutation_null(ranked, true_ranks, **options)
        maps = scored.predicted, scored.truth
        order, draws = measured.order(scored), permutations * SPATIAL_DRAWS
        own = section_seed(seed, section.slide, section.model, "spatial")
        turned, shifted = (
            moved_null(*maps, motions, draws=draws, seed=own)
            for motions in measured.motions_of(order)
        )
        spectral = spectral_null(*maps, measured.basis[order], draws=draws, seed=own)
    inside = section.in_tissue
    return SectionScore(
        protocol=section.protocol,
        fold=section.fold,
        model=section.model,
        slide=section.slide,
        patient=section.patient,
        genes=section.genes,
        n_positions=len(scored.row),
        pearson=pearson(scored.predicted, scored.truth),
        spearman=spearman(scored.predicted, scored.truth),
        rmse=rmse(scored.predicted, scored.truth),
        tissue_mask=pearson(mask, scored.truth),
        ceiling=(ceiling.whole_grid if whole_grid else ceiling.in_tissue)[columns],
        ceiling_spatial=np.full(len(columns), np.nan) if whole_grid else ceiling.spatial[columns],
        excess=ceiling.excess[columns],
        excess_error=ceiling.error[columns],
        permutation=permutation.astype(np.float32),
        rank_permutation=None if ranks is None else ranks.astype(np.float32),
        turned=turned,
        shifted=shifted,
        spectral=spectral,
        predicted_level=section.predicted[inside].mean(0, dtype=float),
        measured_level=section.truth[inside].mean(0, dtype=float),
        level_halves=ceiling.level_halves[..., columns],
    )


def section_table(scores: Sequence[SectionScore]) -> pd.DataFrame:
    """Return one row per model and section: means over the genes that vary there."""
    rows = []
    for score in scores:
        known = np.isfinite(score.pearson)
        value, ceiling = mean(score.pearson), mean(score.ceiling[known])
        shuffled = _over_genes(score.permutation)
        bounds = [
            _upper(_over_genes(draws))
            for draws in (score.turned, score.shifted)
            if draws is not None
        ]
        rows.append(
            {
                "protocol": score.protocol,
                "model": score.model,
                "fold": score.fold,
                "slide": score.slide,
                "patient": score.patient,
                "n_positions": score.n_positions,
                "n_genes": int(known.sum()),
                "pearson": value,
                "spearman": mean(score.spearman),
                "rmse": mean(score.rmse),
                "tissue_mask_null": mean(score.tissue_mask),
                "permutation_null": mean(shuffled),
                "permutation_upper": _upper(shuffled),
                "spatial_upper": max(bounds, default=np.nan),
                "ceiling": ceiling,
                "ceiling_spatial": mean(score.ceiling_spatial[known]),
                "relative": value / ceiling if ceiling > 0 else np.nan,
            }
        )
    return pd.DataFrame(rows, columns=list(SECTION_COLUMNS))


def gene_table(scores: Sequence[SectionScore]) -> pd.DataFrame:
    """Return one row per gene of ONE model under ONE protocol, over patients.

    Scores are means over patients of the means over their sections. `null` is the mean and
    `null_upper` the 95 % bound of the null: under the patient_cv protocol `null` comes from shuffled
    spots, `null_upper` and `null_p` are the largest of the three nulls of unrelated maps
    (`histogep.stats.nulls`); under published `null` is the outline's score, a fixed number without a bound,
    and both p come from predictions shuffled inside the tissue. Sections of one patient are not
    independent evidence: their draws are taken to rise and fall together, so that the mean of
    several spreads as far as one.

    `ceiling_spatial` is the ceiling if only what neighbouring spots share is signal (patient_cv only). A
    gene whose counts do not vary by more than their noise has no `relative` under patient_cv, as there
    is no explainable variation to compare with.

    A gene is `predictable` (patient_cv only) when fdr < 0.05 (Benjamini-Hochberg over the model's genes
    of `null_p`) and its score is above 0 in more than half of at least two patients.

    Parameters
    ----------
    scores
        Sections of one model and protocol.

    Returns
    -------
    pandas.DataFrame
        protocol, model, gene, n_sections, n_patients, pearson, spearman, rmse, null, null_upper,
        permutation_p, null_p, fdr, ceiling, ceiling_spatial, relative, positive_patients,
        predictable.
    """
    genes = list(dict.fromkeys(gene for score in scores for gene in score.genes))
    place = {gene: i for i, gene in enumerate(genes)}
    patient_cv = scores[0].protocol == "patient_cv"
    by_patient: dict[str, list[SectionScore]] = {}
    for score in scores:
        by_patient.setdefault(score.patient, []).append(score)

    def over_patients(name: str) -> np.ndarray:
        return np.stack(
            [
                _nanmean(np.stack([_spread(s, getattr(s, name), place) for s in sections]))
                for sections in by_patient.values()
            ]
        )

    def null(name: str) -> np.ndarray:
        return null_of_patients(
            [
                [_spread(s, getattr(s, name), place) for s in sections]
                for sections in by_patient.values()
            ]
        )

    per_patient = over_patients("pearson")
    score = _nanmean(per_patient)
    n_patients = np.isfinite(per_patient).sum(0)
    permuted = null("permutation")
    permutation_p = upper_p(score, permuted)
    nulls = [null(name) for name in UNRELATED] if patient_cv else [permuted]
    null_p = np.max([upper_p(score, draws) for draws in nulls], axis=0)
    fdr = false_discovery_rate(null_p)
    positive = (per_patient > 0).sum(0)
    ceiling = _nanmean(over_patients("ceiling"))
    excess, error = (
        np.stack([_spread(s, getattr(s, name), place) for s in scores])
        for name in ("excess", "excess_error")
    )
    told = np.nansum(excess, axis=0) > KNOWN * np.sqrt(np.nansum(error**2, axis=0))
    scored = np.isfinite(score)
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.where((ceiling > 0) & (told | (not patient_cv)), score / ceiling, np.nan)
        upper = np.max([np.quantile(np.nan_to_num(draws), 0.95, axis=0) for draws in nulls], axis=0)
        upper = np.where(scored & patient_cv, upper, np.nan)
    expected = _nanmean(permuted) if patient_cv else _nanmean(over_patients("tissue_mask"))
    return pd.DataFrame(
        {
            "protocol": scores[0].protocol,
            "model": scores[0].model,
            "gene": genes,
            "n_sections": sum(
                np.isfinite(_spread(s, s.pearson, place)).astype(int) for s in scores
            ),
            "n_patients": n_patients,
            "pearson": score,
            "spearman": _nanmean(over_patients("spearman")),
            "rmse": _nanmean(over_patients("rmse")),
            "null": expected,
            "null_upper": upper,
            "permutation_p": permutation_p,
            "null_p": null_p,
            "fdr": fdr,
            "ceiling": ceiling,
            "ceiling_spatial": _nanmean(over_patients("ceiling_spatial")),
            "relative": relative,
            "positive_patients": positive,
            "predictable": patient_cv
            & scored
            & (np.nan_to_num(fdr, nan=1.0) < FDR)
            & (n_patients >= 2)
            & (positive > n_patients / 2),
        }
    )


def null_of_patients(sections: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Return draws of the mean over patients of the means over their sections.

    Parameters
    ----------
    sections
        Per patient, per section: draws by genes; NaN for a gene that is not known there. The draws
        of different patients are independent. Those of one patient are sorted first, section by
        section: the mean then has the widest distribution that any dependence could give it.

    Returns
    -------
    numpy.ndarray
        Draws by genes, float32; NaN for a gene that no section knows.
    """
    total = count = 0
    for number, own in enumerate(sections):
        part = own[0]
        if len(own) > 1:
            part = _nanmean(np.stack([np.sort(draws, axis=0) for draws in own]))
            part = np.random.default_rng(number).permutation(part)
        known = np.isfinite(part).all(0)
        total = total + np.where(known, part, 0.0)
        count = count + known
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def section_seed(seed: int, *names: str) -> int:
    """Return a seed of its own for each section, model and purpose, the same in every run."""
    return zlib.crc32("\0".join([str(seed), *names]).encode())


def mean(values: np.ndarray) -> float:
    """Return the mean of the finite values; NaN if there are none."""
    values = np.asarray(values, float)
    known = np.isfinite(values)
    return float(values[known].mean()) if known.any() else float("nan")


def card_null(scores: Sequence[SectionScore], name: str) -> tuple[float, float]:
    """Return mean and 95 % bound of a card's null: draw by draw, means over genes and sections.

    Parameters
    ----------
    scores
        Sections of one model and protocol.
    name
        "permutation", "rank_permutation", "turned" or "shifted".
    """
    draws = [_over_genes(getattr(score, name)) for score in scores]
    draws = [draw for draw in draws if np.isfinite(draw).all()]
    if not draws:
        return float("nan"), float("nan")
    together = np.mean(draws, axis=0)
    return float(together.mean()), float(np.quantile(together, 0.95))


def _spread(score: SectionScore, values: np.ndarray, place: Mapping[str, int]) -> np.ndarray:
    """Lay values of one section's genes (the last axis) into the places of all genes."""
    laid = np.full((*values.shape[:-1], len(place)), np.nan, values.dtype)
    laid[..., [place[gene] for gene in score.genes]] = values
    return laid


def _over_genes(draws: np.ndarray) -> np.ndarray:
    return _nanmean(np.asarray(draws, float).T)


def _upper(draws: np.ndarray) -> float:
    return float(np.quantile(draws, 0.95)) if np.isfinite(draws).all() else float("nan")


def _nanmean(values: np.ndarray) -> np.ndarray:
    """Return the mean over the first axis without NaN; NaN, and no warning, where all are."""
    known = np.isfinite(values)
    count = known.sum(0)
    total = np.where(known, values, 0.0).sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
