"""Rows of the scorecards: one metric of one model, with its interval, its null and its ceiling."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from histogep.evaluation.held_out import HeldOut
from histogep.evaluation.section_scores import SectionScore, card_null, mean
from histogep.stats.ceiling import ceiling_of_halves
from histogep.stats.conformal import half_widths, held_out_coverage
from histogep.stats.scores import bootstrap_patients, pearson

#: A correlation of slide means over fewer patients is not informative.
_MIN_LEVEL_PATIENTS = 3
_LEVEL_SHUFFLES = 1000


def expression_cards(
    scores: Sequence[SectionScore],
    table: pd.DataFrame,
    *,
    base_rmse: float | None,
    settings: Mapping[str, Any],
    seed: int,
) -> list[dict[str, Any]]:
    """Return the scorecard rows of one expression model under one protocol.

    `pearson` is the mean over sections of the mean over genes; `pearson_patients` the mean over
    patients of their sections' mean; `pearson_within` is `pearson` under the name it has in the
    decomposition (r over the spots of a section does not change when the section's mean is taken
    from both sides), beside `pearson_between`, r over patients of the means of their spots, mean over
    genes. `null` is the score expected of a predictor that knows nothing: shuffled spots (patient_cv),
    the tissue's outline (published), the training mean (rmse), shuffled patients (level).
    """
    first = scores[0]
    options = {"bootstraps": int(settings["bootstraps"]), "seed": seed}
    patients = table["patient"].to_numpy()
    n_genes = len({g for s in scores for g, r in zip(s.genes, s.pearson, strict=True) if r == r})
    patient_cv = first.protocol == "patient_cv"

    def row(
        metric: str,
        value: float,
        interval: tuple[float, float],
        null: float,
        ceiling: float,
        **rest: float,
    ) -> dict[str, Any]:
        return {
            "protocol": first.protocol,
            "task": "expression",
            "model": first.model,
            "metric": metric,
            "value": value,
            "ci_low": interval[0],
            "ci_high": interval[1],
            "null": null,
            "null_upper": rest.get("null_upper", np.nan),
            "ceiling": ceiling,
            "ceiling_spatial": rest.get("ceiling_spatial", np.nan),
            "n_sections": int(table["pearson"].notna().sum()),
            "n_patients": rest.get("n_patients", table["patient"].nunique()),
            "n_genes": rest.get("n_genes", n_genes),
        }

    of_patients = table.groupby("patient", sort=True)[
        ["pearson", "tissue_mask_null", "ceiling", "ceiling_spatial"]
    ].mean()
    shuffled = card_null(scores, "permutation")[0]
    smooth_upper = np.nan
    if patient_cv:
        smooth_upper = max(card_null(scores, name)[1] for name in ("turned", "shifted"))
    pearson_null = shuffled if patient_cv else mean(table["tissue_mask_null"])
    interval = bootstrap_patients(table["pearson"].to_numpy(), patients, **options)
    overall = (mean(table["pearson"]), interval, pearson_null, mean(table["ceiling"]))
    rows = [
        row(
            "pearson",
            *overall,
            null_upper=smooth_upper,
            ceiling_spatial=mean(table["ceiling_spatial"]),
        ),
        row(
            "pearson_patients",
            mean(of_patients["pearson"]),
            bootstrap_patients(
                of_patients["pearson"].to_numpy(), of_patients.index.to_numpy(), **options
            ),
            shuffled if patient_cv else mean(of_patients["tissue_mask_null"]),
            mean(of_patients["ceiling"]),
            null_upper=smooth_upper,
            ceiling_spatial=mean(of_patients["ceiling_spatial"]),
        ),
    ]
    if first.model == "tissue_mask":
        return rows
    if patient_cv:
        rows.append(rows[0] | {"metric": "pearson_within"})
        level = level_score(scores, settings=settings, seed=seed)
        if level is not None:
            value, interval, null, upper, ceiling, n, n_level_genes = level
            rows.append(
                row(
                    "pearson_between",
                    value,
                    interval,
                    null,
                    ceiling,
                    null_upper=upper,
                    n_patients=n,
                    n_genes=n_level_genes,
                )
            )
        ranks, ranks_upper = card_null(scores, "rank_permutation")
        rows.append(
            row(
                "spearman",
                mean(table["spearman"]),
                bootstrap_patients(table["spearman"].to_numpy(), patients, **options),
                ranks,
                np.nan,
                null_upper=ranks_upper,
            )
        )
    rows.append(
        row(
            "rmse",
            mean(table["rmse"]),
            bootstrap_patients(table["rmse"].to_numpy(), patients, **options),
            np.nan if base_rmse is None else base_rmse,
            np.nan,
        )
    )
    return rows


def raw_cards(
    table: pd.DataFrame, *, protocol: str, model: str, settings: Mapping[str, Any], seed: int
) -> list[dict[str, Any]]:
    """Return the row `pearson_raw`, against log1p of raw counts (`histogep.evaluation.raw_counts`).

    Its null is what knowing each spot's counts, all genes together, gives: `depth`, which stands as
    a predictor of its own beside `tissue_mask`. Baselines that know neither have the outline's score as
    their null. There is no ceiling.

    Parameters
    ----------
    table
        From `histogep.evaluation.raw_counts.raw_table`.
    protocol, model
        Protocol and model of the row.
    settings, seed
        As for the other rows.
    """
    rows = []
    shown = {
        "tissue_mask": ("tissue_mask", "tissue_mask"),
        "training_mean": ("value", "tissue_mask"),
    }
    value, null = shown.get(model, ("value", "depth"))
    names = [(model, value, null)]
    if model == "tissue_mask":
        names.append(("depth", "depth", "tissue_mask"))
    for name, column, beside in names:
        interval = bootstrap_patients(
            table[column].to_numpy(),
            table["patient"].to_numpy(),
            bootstraps=int(settings["bootstraps"]),
            seed=seed,
        )
        rows.append(
            {
                "protocol": protocol,
                "task": "expression",
                "model": name,
                "metric": "pearson_raw",
                "value": mean(table[column]),
                "ci_low": interval[0],
                "ci_high": interval[1],
                "null": mean(table[beside]),
                "null_upper": np.nan,
                "ceiling": np.nan,
                "ceiling_spatial": np.nan,
                "n_sections": int(table[column].notna().sum()),
                "n_patients": table["patient"].nunique(),
                "n_genes": int(table["n_genes"].max()),
            }
        )
    return rows


def level_score(
    scores: Sequence[SectionScore], *, settings: Mapping[str, Any], seed: int
) -> tuple[float, tuple[float, float], float, float, float, int, int] | None:
    """Score the differences between patients: r over patients of mean expression, mean over genes.

    A gene counts when it was held out in at least three patients. Each patient's prediction comes
    from another fold's model; a model that knows only its training mean scores about -1 here (the
    mean of the others is low where the held-out patient is high), which is why the row of
    `training_mean` is worth a look. The null shuffles the patients, all genes alike.

    Returns
    -------
    tuple or None
        Value, bootstrap interval over patients (NaN below five), mean and 95 % bound of the null,
        ceiling (the correlation over patients of the means of thinned halves, at full depth),
        patients, genes; None with fewer than three patients.
    """
    names = sorted({score.patient for score in scores})
    if len(names) < _MIN_LEVEL_PATIENTS:
        return None
    long = pd.concat(
        [
            pd.DataFrame(
                {
                    "gene": score.genes,
                    "patient": score.patient,
                    "ours": score.predicted_level,
                    "theirs": score.measured_level,
                }
            )
            for score in scores
        ]
    )
    means = long.groupby(["patient", "gene"])[["ours", "theirs"]].mean().unstack("gene")
    means = means.loc[names]
    ours, theirs = means["ours"].to_numpy(), means["theirs"].to_numpy()
    known = np.isfinite(ours) & np.isfinite(theirs)
    # Genes of the same patients are scored together.
    patterns, owner = np.unique(known, axis=1, return_inverse=True)
    blocks, blocks_at = [], []
    for index in range(patterns.shape[1]):
        rows, columns = np.flatnonzero(patterns[:, index]), owner.ravel() == index
        if len(rows) >= _MIN_LEVEL_PATIENTS:
            blocks.append((rows, ours[np.ix_(rows, columns)], theirs[np.ix_(rows, columns)]))
            blocks_at.append((rows, np.flatnonzero(columns)))
    if not blocks:
        return None
    rng = np.random.default_rng(seed)

    def over_genes(pick: Callable[..., tuple[np.ndarray, np.ndarray]]) -> float:
        return mean(np.concatenate([pearson(*pick(*block)) for block in blocks]))

    value = over_genes(lambda rows, a, b: (a, b))
    null = []
    for _ in range(_LEVEL_SHUFFLES):
        rank = rng.random(len(names))
        null.append(over_genes(lambda rows, a, b, rank=rank: (a[np.argsort(rank[rows])], b)))
    interval = (np.nan, np.nan)
    if len(names) >= 5:
        drawn = []
        for _ in range(int(settings["bootstraps"])):
            sample = np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names))

            def pick(
                rows: np.ndarray, a: np.ndarray, b: np.ndarray, sample: np.ndarray = sample
            ) -> tuple[np.ndarray, np.ndarray]:
                times = np.repeat(np.arange(len(rows)), sample[rows])
                return a[times], b[times]

            drawn.append(over_genes(pick))
        drawn = np.array(drawn)[np.isfinite(drawn)]
        if len(drawn):
            low, high = np.quantile(drawn, [0.025, 0.975])
            interval = float(low), float(high)
    n_genes = sum(block[1].shape[1] for block in blocks)
    ceiling = _level_ceiling(scores, names, list(means["theirs"].columns), blocks_at)
    upper = float(np.quantile(null, 0.95))
    return value, interval, mean(np.array(null)), upper, ceiling, len(names), n_genes


def _level_ceiling(
    scores: Sequence[SectionScore],
    patients: list[str],
    genes: list[str],
    blocks: Sequence[tuple[np.ndarray, np.ndarray]],
) -> float:
    """Return the mean over genes of the ceiling of r over patients, from thinned halves.

    `blocks` are (patients, genes) that are scored together.
    """
    place = {gene: i for i, gene in enumerate(genes)}
    halves = np.full((len(patients), *scores[0].level_halves.shape[:2], len(genes)), np.nan)
    for row, patient in enumerate(patients):
        own = [score for score in scores if score.patient == patient]
        laid = np.full((len(own), *halves.shape[1:]), np.nan)
        for i, score in enumerate(own):
            laid[i][..., [place[gene] for gene in score.genes]] = score.level_halves
        count = np.isfinite(laid).sum(0)
        halves[row] = np.where(count > 0, np.nansum(laid, 0) / np.maximum(count, 1), np.nan)
    ceilings = []
    for rows, columns in blocks:
        part = halves[rows][..., columns]
        r = [pearson(part[:, t, 0], part[:, t, 1]) for t in range(part.shape[1])]
        ceilings.append(ceiling_of_halves(np.mean(r, axis=0)))
    return max(mean(np.concatenate(ceilings)), 0.0)


def calibrate(sections: Sequence[HeldOut], *, coverage: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return half-widths and coverage per gene of one model, and coverage per patient and gene.

    Genes differ between folds; each is calibrated on the patients it was held out in.

    Returns
    -------
    tuple of pandas.DataFrame
        Indexed by gene: half_width, coverage; and patients by genes.
    """
    folds = sorted({section.fold for section in sections})
    of_fold = {fold: [s for s in sections if s.fold == fold] for fold in folds}
    genes = {fold: of_fold[fold][0].genes for fold in folds}
    where: dict[tuple[str, ...], list[str]] = {}
    for gene in dict.fromkeys(itertools.chain(*genes.values())):
        where.setdefault(tuple(fold for fold in folds if gene in set(genes[fold])), []).append(gene)
    tables, patients = [], []
    for shared, names in where.items():
        residuals, owners = [], []
        for section in (s for fold in shared for s in of_fold[fold]):
            tissue = section.tissue
            columns = pd.Index(section.genes).get_indexer(names)
            residuals.append((tissue.truth - tissue.predicted)[:, columns])
            owners.append(np.repeat(section.patient, len(tissue.row)))
        stacked, owner = np.concatenate(residuals), np.concatenate(owners)
        width = half_widths(stacked, owner, coverage=coverage)
        who, covered = held_out_coverage(stacked, owner, coverage=coverage)
        tables.append(pd.DataFrame({"half_width": width, "coverage": covered.mean(0)}, index=names))
        patients.append(pd.DataFrame(covered, index=who, columns=names))
    return pd.concat(tables), pd.concat(patients, axis=1).sort_index()


def interval_cards(
    genes: pd.DataFrame,
    calibrated: pd.DataFrame,
    per_patient: pd.DataFrame,
    *,
    baseline: pd.Series | None,
    settings: Mapping[str, Any],
    seed: int,
) -> list[dict[str, Any]]:
    """Return the rows `coverage` (null: the nominal one) and `half_width` (the training mean's).

    An interval with the right coverage is informative only if it is narrower than the one around
    the training mean.
    """
    of_patients = per_patient.mean(axis=1)
    shared = {
        "protocol": "patient_cv",
        "task": "expression",
        "model": genes["model"].iloc[0],
        "null_upper": np.nan,
        "ceiling": np.nan,
        "n_sections": int(genes["n_sections"].max()),
        "n_patients": len(per_patient),
        "n_genes": len(calibrated),
    }
    low, high = bootstrap_patients(
        of_patients.to_numpy(),
        of_patients.index.to_numpy(),
        bootstraps=int(settings["bootstraps"]),
        seed=seed,
    )
    reference = np.nan if baseline is None else mean(baseline.reindex(calibrated.index))
    return [
        shared
        | {
            "metric": "coverage",
            "value": mean(of_patients),
            "ci_low": low,
            "ci_high": high,
            "null": float(settings["coverage"]),
        },
        shared
        | {
            "metric": "half_width",
            "value": mean(calibrated["half_width"]),
            "ci_low": np.nan,
            "ci_high": np.nan,
            "null": reference,
        },
    ]


def tumour_cards(
    table: pd.DataFrame, *, settings: Mapping[str, Any], seed: int
) -> list[dict[str, Any]]:
    """Return the rows auroc, auprc and dice of every tumour model: means over sections.

    All three use only sections with both classes. The null is the score of a map that calls all
    tissue tumour. There is no ceiling, as the labels' own error is unknown.
    """
    rows = []
    for (protocol, model), whole in table.groupby(["protocol", "model"], sort=True):
        group = whole[whole["auroc"].notna()]
        for metric in ("auroc", "auprc", "dice"):
            low, high = bootstrap_patients(
                group[metric].to_numpy(),
                group["patient"].to_numpy(),
                bootstraps=int(settings["bootstraps"]),
                seed=seed,
            )
            upper = mean(group["auroc_upper"]) if metric == "auroc" else np.nan
            rows.append(
                {
                    "protocol": protocol,
                    "task": "tumour",
                    "model": model,
                    "metric": metric,
                    "value": mean(group[metric]),
                    "ci_low": low,
                    "ci_high": high,
                    "null": mean(group[f"{metric}_null"]),
                    "null_upper": upper,
                    "ceiling": np.nan,
                    "n_sections": len(group),
                    "n_patients": group["patient"].nunique(),
                    "n_genes": 0,
                }
            )
    return rows
