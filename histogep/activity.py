"""Activity of gene sets tile by tile: single-sample GSEA, as maps and as a table over slides.

The score of a set in a tile is that of Barbie et al., Nature 2009 (ssGSEA): genes are ranked within
the tile, and the running sums of the set's genes (weighted by rank to the power .25) and of all
others are compared over the whole ranking. It says how high the set's genes stand in this tile.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from histogep.jobs import InputError
from histogep.lattice import Lattice
from histogep.matrices import expression_of, read_h5ad
from histogep.variable_genes import morans_i

log = logging.getLogger(__name__)

COLUMNS = [
    "slide", "patient", "collection", "gene_set", "n_genes", "mean", "tumour", "elsewhere",
    "difference", "difference_null", "moran_i", "moran_null",
]  # fmt: skip
#: Power of the rank that weighs a set's genes (Barbie et al.).
_POWER = 0.25
#: Sets of random genes, of each size, that say how much of a map any genes would show.
_RANDOM_SETS = 20
#: Tiles x genes scored at a time.
_CHUNK_FLOATS = 4_000_000
#: A slide with fewer tiles on either side of the tumour's edge has no difference.
_MIN_TILES = 5


def single_sample_scores(values: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Return the ssGSEA score of every set in every tile, (tiles, sets).

    The mean over the ranking of the difference of both running sums: gseapy's `ES` over the
    number of genes, so that panels of different size are on one scale. 0: as all other genes.

    Parameters
    ----------
    values
        Tiles x genes.
    members
        Genes x sets, 1 for a gene of the set.
    """
    values, members = np.asarray(values, float), np.asarray(members, float)
    n = values.shape[1]
    size = members.sum(axis=0)
    scores = np.empty((len(values), members.shape[1]))
    chunk = max(1, _CHUNK_FLOATS // n)
    for start in range(0, len(values), chunk):
        part = values[start : start + chunk]
        order = np.argsort(-part, axis=1, kind="stable")
        left = np.empty(part.shape)  # places of the ranking from the gene's own to the last
        np.put_along_axis(left, order, np.broadcast_to(np.arange(n, 0, -1.0), part.shape), axis=1)
        weight = left**_POWER  # the highest gene has rank n
        hits = ((weight * left) @ members) / (weight @ members)
        misses = (n * (n + 1) / 2 - left @ members) / (n - size)
        scores[start : start + chunk] = (hits - misses) / n
    return scores


def score_activity(
    paths: Sequence[str | Path],
    *,
    slides: Sequence[str],
    slide_patients: Sequence[str],
    gene_sets: Mapping[str, Mapping[str, Sequence[str]]],
    min_size: int,
    max_size: int,
    tumour_threshold: float,
    seed: int,
) -> tuple[pd.DataFrame, ad.AnnData]:
    """Score the gene sets in every tile of a cohort.

    Parameters
    ----------
    paths, slides, slide_patients
        Predicted slides (`results/expression/*.h5ad`: their predictable genes), or sections
        (`results/spots/*.h5ad`: all genes), with ids and patients, parallel.
    gene_sets
        Collection -> gene set -> genes.
    min_size, max_size
        Genes of a set among those of the first slide.
    tumour_threshold
        Probability from which a tile of a predicted slide is a tumour tile.
    seed
        Of the random sets.

    Returns
    -------
    table
        slide, patient, collection, gene_set, n_genes, mean, tumour and elsewhere (means over the
        tiles of either kind; NaN for sections and without a tumour map), difference, moran_i, and of
        random sets of as many genes difference_null (the mean size of their differences) and
        moran_null (their mean Moran's I): what a map of any genes of this slide shows.
    maps
        Tiles of all slides x sets; obs slide, patient, row, col, x_um and y_um (centre), pitch_um,
        tumour.

    Raises
    ------
    InputError
        Slides of different models.
    """
    tables, maps, first = [], [], None
    for path, slide, patient in zip(paths, slides, slide_patients, strict=True):
        data = read_h5ad(path)
        measured = "predictable" not in data.var
        if not measured:
            data = data[:, data.var["predictable"].to_numpy(bool)]
        genes = data.var_names.astype(str)
        if first is None:
            first = genes
            chosen = _testable(gene_sets, genes, min_size, max_size)
        if not measured and list(genes) != list(first):
            raise InputError(f"{path} and {paths[0]} were predicted by different models")
        matrix = expression_of(data) if measured else data.X
        values = matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix)
        if not chosen or values.shape[0] < _MIN_TILES:
            continue
        members = np.stack([genes.isin(list(found)) for _, _, found in chosen], axis=1)
        enough = members.sum(axis=0) >= min_size
        sizes = np.where(enough, members.sum(axis=0), min_size)
        random, of_size = _random_sets(sizes, len(genes), seed)
        scores = single_sample_scores(values, np.concatenate([members, random], axis=1))
        settings = {name: data.uns["lattice"][name] for name in ("kind", "pitch_um", "tile_um")}
        lattice = Lattice(
            str(settings["kind"]), float(settings["pitch_um"]), float(settings["tile_um"])
        )
        row, col = data.obs["row"].to_numpy(), data.obs["col"].to_numpy()
        neighbours = lattice.neighbours(row, col)
        moran = morans_i(scores, neighbours)[0]
        null = pd.Series(moran[len(chosen) :]).groupby(of_size).mean()
        tumour = np.full(len(scores), np.nan)
        if "tumour" in data.obs and not measured:
            tumour = data.obs["tumour"].to_numpy(float)
        inside, outside = tumour >= tumour_threshold, tumour < tumour_threshold
        both = min(inside.sum(), outside.sum()) >= _MIN_TILES
        apart = np.full(scores.shape[1], np.nan)
        if both:
            apart = scores[inside].mean(axis=0) - scores[outside].mean(axis=0)
        apart_null = pd.Series(np.abs(apart[len(chosen) :])).groupby(of_size).mean()
        scores = np.where(enough, scores[:, : len(chosen)], np.nan)
        for number in np.flatnonzero(enough):
            collection, name, _ = chosen[number]
            score = scores[:, number]
            means = [score[side].mean() if both else np.nan for side in (inside, outside)]
            tables.append(
                (slide, patient, collection, name, int(sizes[number]), score.mean(), *means,
                 apart[number], apart_null[sizes[number]], moran[number], null[sizes[number]])
            )  # fmt: skip
        x_um, y_um = lattice.centres_um(row, col)
        obs = pd.DataFrame(
            {
                "slide": slide, "patient": patient, "row": row, "col": col, "x_um": x_um,
                "y_um": y_um, "pitch_um": lattice.pitch_um, "tumour": tumour,
            },
            index=[f"{slide}:{cell}" for cell in data.obs_names],
        )  # fmt: skip
        maps.append((scores.astype(np.float32), obs))
    table = pd.DataFrame(tables, columns=COLUMNS)
    if not maps:
        log.warning("no gene set has %d to %d genes among those of the slides", min_size, max_size)
        return table, ad.AnnData(np.zeros((0, 0), np.float32))
    var = pd.DataFrame(
        {"collection": [c for c, _, _ in chosen], "gene_set": [name for _, name, _ in chosen]},
        index=[f"{collection}:{name}" for collection, name, _ in chosen],
    )
    values = np.concatenate([scores for scores, _ in maps])
    return table, ad.AnnData(values, obs=pd.concat([obs for _, obs in maps]), var=var)


def _testable(
    gene_sets: Mapping[str, Mapping[str, Sequence[str]]],
    genes: pd.Index,
    min_size: int,
    max_size: int,
) -> list[tuple[str, str, Sequence[str]]]:
    """Return collection, name and genes of the sets with enough genes, and fewer than all."""
    known = set(genes)
    return [
        (collection, name, found)
        for collection, sets in gene_sets.items()
        for name, found in sorted(sets.items())
        if min_size <= len(known & set(found)) <= min(max_size, len(known) - 1)
    ]


def _random_sets(sizes: np.ndarray, n_genes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random sets of every size (genes x sets), and the size of each."""
    rng = np.random.default_rng([seed, n_genes, 41])
    of_size = np.repeat(np.unique(sizes), _RANDOM_SETS)
    members = np.zeros((n_genes, len(of_size)), bool)
    for number, size in enumerate(of_size):
        members[rng.choice(n_genes, size, replace=False), number] = True
    return members, of_size
