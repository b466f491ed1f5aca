"""Scores against log1p of raw counts, the target of HEST-Benchmark, beside depth alone.

HEST-Benchmark (Jaume et al., NeurIPS 2024) correlates predictions with log1p of RAW counts, gene by
gene over the spots of a held-out section. There every gene rises and falls with the depth of its
spot, which cell density shows, so that scores are several times those against log1p of counts per
10,000, and a predictor that only knows each spot's total reaches most of them. The metric is here
for comparison with published figures, and nothing is chosen by it.

The models predict log1p of counts per 10,000. Raw counts are derived from their predictions by a
ridge regression on other held-out sections, whose counts are known: of other patients under the
patient_cv protocol, of other sections under published. No image is read and no model is trained again. A
model trained on raw counts uses more of the image than its predictions of normalised expression
show; compared with such published scores these are conservative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from histogep.evaluation.held_out import HeldOut
from histogep.evaluation.measured import Measured
from histogep.stats.scores import pearson

#: Penalty on standardised columns, per spot.
_PENALTY = 0.1


def raw_table(
    sections: Sequence[HeldOut], measured: Mapping[str, Measured], *, fitted: bool
) -> pd.DataFrame:
    """Return the scores against log1p of raw counts of one model under one protocol.

    Parameters
    ----------
    sections
        Its held-out sections.
    measured
        Counts of all sections.
    fitted
        Whether the predictions are turned into raw counts first; those of a predictor that is
        constant in the tissue are not.

    Returns
    -------
    pandas.DataFrame
        One row per section: slide, patient, value (mean over genes; NaN where no other section can
        relate raw counts to predictions), outline and depth (what the outline of the tissue, and
        the counts of each spot, score in its place), n_genes.
    """
    patient_cv = sections[0].protocol == "patient_cv"
    shared = sorted(set.intersection(*(set(section.genes) for section in sections)))
    rows = []
    for section in sections:
        counts = measured[section.slide]
        order = counts.order(section)
        truth = _on_grid(section, _log_raw(counts, order, section.genes), patient_cv=patient_cv)
        predicted = section.predicted[section.in_tissue] if not fitted else None
        if fitted and shared:
            others = [
                other
                for other in sections
                if (
                    other.patient != section.patient if patient_cv else other.slide != section.slide
                )
            ]
            predicted = _as_raw(section, others, measured, shared)
        candidates = {
            "value": predicted,
            "tissue_mask": np.ones((len(order), 1)),
            "depth": np.log1p(counts.library_sizes[order])[:, None],
        }
        row: dict[str, Any] = {"slide": section.slide, "patient": section.patient}
        for name, values in candidates.items():
            row[name] = np.nan
            if values is not None:
                values = np.broadcast_to(values, (len(order), truth.shape[1]))
                row[name] = _mean(pearson(_on_grid(section, values, patient_cv=patient_cv), truth))
        row["n_genes"] = int((truth.std(0) > 0).sum())
        rows.append(row)
    return pd.DataFrame(rows)


def _log_raw(counts: Measured, order: np.ndarray, genes: Sequence[str]) -> np.ndarray:
    """Return log1p of the raw counts of some genes, in the order of a prediction's positions."""
    return np.log1p(counts.counts[order][:, counts.columns(genes)].toarray().astype(float))


def _on_grid(section: HeldOut, values: np.ndarray, *, patient_cv: bool) -> np.ndarray:
    """Return in-tissue values as the card compares them: under published with zeros around."""
    if patient_cv:
        return values
    laid = np.zeros((len(section.in_tissue), values.shape[1]))
    laid[section.in_tissue] = values
    return laid


def _as_raw(
    section: HeldOut,
    others: Sequence[HeldOut],
    measured: Mapping[str, Measured],
    shared: Sequence[str],
) -> np.ndarray | None:
    """Return log1p of raw counts from predictions, by a regression fitted on other sections.

    The regression is on deviations from the section's mean, which is what differs within a section;
    the mean is that of the other sections.
    """
    if not others:
        return None
    targets, inputs, levels = [], [], []
    for other in others:
        counts = measured[other.slide]
        target = _log_raw(counts, counts.order(other), section.genes)
        own = _shared_predictions(other, shared)
        levels.append(target.mean(0))
        targets.append(target - target.mean(0))
        inputs.append(own - own.mean(0))
    x, y = np.concatenate(inputs), np.concatenate(targets)
    spread = np.sqrt((x**2).mean(0))
    spread = np.where(spread > 1e-9, spread, np.inf)
    x = x / spread
    gram = x.T @ x + _PENALTY * len(x) * np.eye(x.shape[1])
    coefficients = np.linalg.solve(gram, x.T @ y)
    own = _shared_predictions(section, shared)
    return np.mean(levels, axis=0) + ((own - own.mean(0)) / spread) @ coefficients


def _shared_predictions(section: HeldOut, shared: Sequence[str]) -> np.ndarray:
    columns = pd.Index(section.genes).get_indexer(pd.Index(shared))
    return section.predicted[section.in_tissue][:, columns].astype(float)


def _mean(values: np.ndarray) -> float:
    known = np.isfinite(values)
    return float(values[known].mean()) if known.any() else float("nan")
