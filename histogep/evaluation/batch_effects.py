"""What the variance of features and of measured expression goes with: patient, slide, stain, pixel size.

Places (tiles or spots) are drawn evenly from each slide, their columns are standardised, and of the
leading principal components the share of variance that a factor explains is taken: between its levels
(patient, slide, cohort), or along a line (stain, pixel size). Few slides explain much by chance, so
beside each share stands that of the same factor dealt to the slides at random.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.decomposition import PCA

from histogep.encoders.feature_file import open_features
from histogep.inputs.barcodes import patient_of
from histogep.spots.matrices import expression_of, read_h5ad

log = logging.getLogger(__name__)

COLUMNS = (
    "data",
    "factor",
    "n_levels",
    "share",
    "null",
    "null_upper",
    "n_places",
    "n_slides",
    "note",
)
#: A patient that explains more is warned of: little is left that patients have in common.
NEARLY_ALL = 0.8
#: Places in all, and of one slide.
_MOST_PLACES, _MOST_OF_SLIDE = 20_000, 200
_COMPONENTS = 20
_GENES = 1000
_DEALS = 199
#: Factor -> column of results/slides.tsv.
LEVELS = {"patient": "patient", "slide": "slide", "cohort": "cohort"}
LINES = {"haematoxylin": "mean_haematoxylin", "eosin": "mean_eosin", "um per px": "mpp"}


@dataclass(frozen=True)
class Components:
    """Principal components of places of some slides.

    Attributes
    ----------
    data
        "features" or "expression".
    scores
        Places by components, largest variance first.
    explained
        Share of the variance of all columns that each component has.
    slide
        Id of the slide of each place.
    """

    data: str
    scores: np.ndarray
    explained: np.ndarray
    slide: np.ndarray


def feature_components(paths: Mapping[str, str | Path], *, seed: int) -> Components:
    """Return the components of the features of tiles.

    Parameters
    ----------
    paths
        Slide -> results/features/{slide}.h5.
    seed
        Of the approximate decomposition.
    """
    parts, names = [], []
    for slide, path in paths.items():
        with open_features(path) as features:
            rows = _drawn(len(features.row), len(paths))
            parts.append(np.asarray(features.values[rows], np.float32))
        names += [slide] * len(rows)
    return _components("features", np.concatenate(parts), names, seed)


def expression_components(paths: Mapping[str, str | Path], *, seed: int) -> Components:
    """Return the components of the measured expression (log1p counts per 10,000) of spots.

    The most variable genes are taken of those that every section measures.

    Parameters
    ----------
    paths
        Section -> results/spots/{slide}.h5ad.
    seed
        As above.
    """
    shared: pd.Index | None = None
    parts, names = [], []
    for slide, path in paths.items():
        spots = read_h5ad(path)
        rows = _drawn(spots.n_obs, len(paths))
        genes = pd.Index(spots.var_names.astype(str))
        parts.append((sparse.csr_matrix(expression_of(spots)[rows]), genes))
        names += [slide] * len(rows)
        own = genes[~genes.duplicated(keep=False)]
        shared = own if shared is None else shared[shared.isin(own)]
    columns = [values[:, genes.get_indexer(shared)] for values, genes in parts]
    stacked = sparse.vstack(columns, format="csr")
    mean = np.asarray(stacked.mean(axis=0)).ravel()
    variance = np.asarray(stacked.multiply(stacked).mean(axis=0)).ravel() - mean**2
    chosen = np.sort(np.argsort(-variance, kind="stable")[:_GENES])
    return _components("expression", stacked[:, chosen].toarray(), names, seed)


def explain(components: Components, slides: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """Return the share of variance that each factor explains, beside its null.

    Parameters
    ----------
    components
        Of features or expression.
    slides
        results/slides.tsv.
    seed
        Of the deals of factors to slides.

    Returns
    -------
    pandas.DataFrame
        Columns `COLUMNS`; factors of one level, or that are the same as the slide, are noted.
    """
    table = slides.set_index("slide", drop=False)
    names = pd.Index(pd.unique(components.slide))
    place = names.get_indexer(components.slide)
    scores = components.scores - components.scores.mean(axis=0)
    total = float((scores**2).sum())
    n = np.bincount(place, minlength=len(names)).astype(float)
    sums = np.zeros((len(names), scores.shape[1]))
    np.add.at(sums, place, scores)
    rng = np.random.default_rng(seed)
    rows = []
    shared = {"data": components.data, "n_places": len(place), "n_slides": len(names)}
    for factor, column in LEVELS.items():
        values = table.loc[names, column].astype(str)
        codes = pd.factorize(values.map(patient_of) if factor == "patient" else values)[0]
        n_levels = int(codes.max()) + 1
        row = {**shared, "factor": factor, "n_levels": n_levels, "note": ""}
        if n_levels < 2:
            rows.append({**row, "note": "one level: nothing to compare"})
            continue
        row["share"] = _between(codes, n, sums) / total
        if n_levels == len(names):
            # Dealing single slides to levels of one slide each changes nothing.
            row["null"] = row["null_upper"] = (n_levels - 1) / max(len(place) - 1, 1)
            if factor != "slide":
                row["note"] = (
                    f"every {factor} has one slide: {factor} and slide cannot be told apart"
                )
        else:
            drawn = [_between(rng.permutation(codes), n, sums) / total for _ in range(_DEALS)]
            row["null"], row["null_upper"] = float(np.mean(drawn)), float(np.quantile(drawn, 0.95))
        rows.append(row)
    for factor, column in LINES.items():
        values = table.loc[names, column].to_numpy(float)
        known = np.isfinite(values)
        n_levels = len(np.unique(values[known]))
        row = {**shared, "factor": factor, "n_levels": n_levels, "note": ""}
        if not known.all() or n_levels < 2:
            rows.append(
                {
                    **row,
                    "note": "one level: nothing to compare"
                    if known.all()
                    else "not known of every slide",
                }
            )
            continue
        row["share"] = _along(values, n, sums) / total
        drawn = [_along(rng.permutation(values), n, sums) / total for _ in range(_DEALS)]
        row["null"], row["null_upper"] = float(np.mean(drawn)), float(np.quantile(drawn, 0.95))
        rows.append(row)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def warnings_of(shares: pd.DataFrame) -> list[str]:
    """Return what must be known of the shares, in words."""
    found = []
    for row in shares[shares["factor"] == "patient"].itertuples():
        if row.share > NEARLY_ALL:
            found.append(
                f"the patient explains {row.share:.0%} of the variance of {row.data}: models see patients "
                "rather than tissue, and differences between patients are differences between batches"
            )
    for row in shares[shares["factor"].isin(LINES)].itertuples():
        if row.share > 0.5 and row.share > row.null_upper:
            found.append(
                f"{row.factor} explains {row.share:.0%} of the variance of {row.data} "
                f"(by chance at most {row.null_upper:.0%}): slides differ by how they were made"
            )
    return found


def _drawn(n: int, n_slides: int) -> np.ndarray:
    """Return evenly spaced places of a slide, fewer of each where there are many slides."""
    most = int(np.clip(_MOST_PLACES // max(n_slides, 1), 4, _MOST_OF_SLIDE))
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))


def _components(data: str, values: np.ndarray, slide: Sequence[str], seed: int) -> Components:
    spread = values.std(axis=0)
    varies = spread > 1e-6
    standard = (values[:, varies] - values[:, varies].mean(axis=0)) / spread[varies]
    most = min(_COMPONENTS, *standard.shape)
    fitted = PCA(most, svd_solver="randomized", random_state=seed)
    scores = fitted.fit_transform(standard)
    return Components(data, scores, fitted.explained_variance_ratio_, np.asarray(slide, object))


def _between(codes: np.ndarray, n: np.ndarray, sums: np.ndarray) -> float:
    """Return the sum of squares between levels, from the sizes and sums of slides."""
    size = np.bincount(codes, weights=n)
    of_level = np.zeros((len(size), sums.shape[1]))
    np.add.at(of_level, codes, sums)
    return float((of_level**2 / size[:, None]).sum())


def _along(values: np.ndarray, n: np.ndarray, sums: np.ndarray) -> float:
    """Return the sum of squares along a line in a number that each slide has."""
    centred = values - (n * values).sum() / n.sum()
    return float(((centred @ sums) ** 2).sum() / (n * centred**2).sum())
