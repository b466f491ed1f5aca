"""Activity of gene sets tile by tile: single-sample GSEA, as maps and as a table over slides.

The score of a set in a tile is gseapy's ssGSEA (Barbie et al., Nature 2009): genes are ranked within
the tile, and the running sums of the set's genes (weighted by rank to the power .25) and of all
others are compared over the whole ranking. It says how high the set's genes stand in this tile.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import anndata as ad
import gseapy
import numpy as np
import pandas as pd
from scipy import sparse

from histogep.errors import InputError
from histogep.lattice import Lattice
from histogep.spots.matrices import expression_of, read_h5ad
from histogep.spots.variable_genes import morans_i
from histogep.warned import decides

log = logging.getLogger(__name__)

COLUMNS = [
    "slide", "patient", "collection", "gene_set", "n_genes", "mean", "tumour", "elsewhere",
    "difference", "difference_null", "moran_i", "moran_null",
]  # fmt: skip
#: Sets of random genes, of each size, that say how much of a map any genes would show.
_RANDOM_SETS = 20
#: Sizes of random sets, of which a set is compared with the nearest: gseapy's time goes by sets.
_RANDOM_SIZES = np.array([3, 5, 8, 12, 18, 27, 40, 60, 90, 135, 200, 300, 450, 700, 1000])
#: Scores (tiles x sets) that gseapy gives at a time: its table has a row of text for each.
_CHUNK_SCORES = 100_000
#: A slide with fewer tiles on either side of the tumour's edge has no difference.
_MIN_TILES = 5


def single_sample_scores(
    values: np.ndarray, genes: Sequence[str], sets: Mapping[str, Sequence[str]], *, seed: int
) -> np.ndarray:
    """Return gseapy's ssGSEA score of every set in every tile, (tiles, sets).

    Its `ES` over the number of genes, the mean over the ranking of the difference of both running
    sums, so that panels of different size are on one scale; near 0 for genes like all others.

    Genes with the same value (most of a spot's counts are 0) are ranked at random: gseapy ranks
    them by their place in the table, which an alphabet decides, and a set at its beginning scores
    high where nothing was counted.

    Parameters
    ----------
    values
        Tiles x genes.
    genes
        Names of the columns.
    sets
        Set -> its genes, some of them and not all.
    seed
        Of the order of equal values.
    """
    values = np.asarray(values, float)
    tiles, n = values.shape
    if not sets:
        return np.zeros((tiles, 0))
    by_chance = np.random.default_rng([seed, tiles, n]).random(values.shape)
    order = np.lexsort((by_chance, values), axis=-1)
    ranks = np.empty((tiles, n))
    np.put_along_axis(ranks, order, np.broadcast_to(np.arange(1.0, n + 1), values.shape), axis=-1)
    scores = []
    for part in np.array_split(np.arange(tiles), 1 + tiles * len(sets) // _CHUNK_SCORES):
        result = gseapy.ssgsea(
            pd.DataFrame(ranks[part].T, index=genes, columns=part.astype(str)),
            {name: list(found) for name, found in sets.items()},
            sample_norm_method="rank",
            correl_norm_type="rank",
            min_size=1,
            max_size=n,
            threads=1,
            outdir=None,
            no_plot=True,
        ).res2d
        table = result.pivot(index="Name", columns="Term", values="ES")
        scores.append(table.loc[part.astype(str), list(sets)].to_numpy(float))
    return np.concatenate(scores) / n


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
        Of the random sets, and of the order of genes with the same value.

    Returns
    -------
    table
        slide, patient, collection, gene_set, n_genes, mean, tumour and elsewhere (means over the
        tiles of either kind; NaN for sections and without a tumour map), difference, moran_i, and of
        random sets of about as many genes (the nearest of a series of sizes) difference_null (the
        mean size of their differences) and moran_null (their mean Moran's I): what a map of any
        genes of this slide shows.
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
        known = set(genes)
        sets = [sorted(known & set(found)) for _, _, found in chosen]
        scored = [k for k, own in enumerate(sets) if min_size <= len(own) < len(genes)]
        sizes = _nearest_sizes([len(sets[k]) for k in scored], len(genes))
        random, of_size = _random_sets(sizes, genes, seed)
        named = {f"set {k}": sets[k] for k in scored} | random
        found = single_sample_scores(values, genes, named, seed=seed)
        settings = {name: data.uns["lattice"][name] for name in ("kind", "pitch_um", "tile_um")}
        lattice = Lattice(
            str(settings["kind"]), float(settings["pitch_um"]), float(settings["tile_um"])
        )
        row, col = data.obs["row"].to_numpy(), data.obs["col"].to_numpy()
        neighbours = lattice.neighbours(row, col)
        moran = morans_i(found, neighbours)[0]
        null = pd.Series(moran[len(scored) :]).groupby(of_size).mean()
        tumour = np.full(len(found), np.nan)
        if "tumour" in data.obs and not measured:
            tumour = data.obs["tumour"].to_numpy(float)
        inside, outside = tumour >= tumour_threshold, tumour < tumour_threshold
        both = min(inside.sum(), outside.sum()) >= _MIN_TILES
        apart = np.full(found.shape[1], np.nan)
        if both:
            apart = found[inside].mean(axis=0) - found[outside].mean(axis=0)
        apart_null = pd.Series(np.abs(apart[len(scored) :])).groupby(of_size).mean()
        scores = np.full((len(found), len(chosen)), np.nan)
        scores[:, scored] = found[:, : len(scored)]
        for place, (k, size) in enumerate(zip(scored, sizes, strict=True)):
            collection, name, _ = chosen[k]
            score = found[:, place]
            means = [score[side].mean() if both else np.nan for side in (inside, outside)]
            tables.append(
                (slide, patient, collection, name, len(sets[k]), score.mean(), *means,
                 apart[place], apart_null[size], moran[place], null[size])
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
        log.warning(
            "no gene set has %d to %d genes among those of the slides",
            *(min_size, max_size),
            **decides("enrichment"),
        )
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


def _nearest_sizes(sizes: Sequence[int], n_genes: int) -> np.ndarray:
    """Return the nearest of the sizes of random sets (by ratio) that are smaller than the panel."""
    possible = np.append(_RANDOM_SIZES[n_genes > _RANDOM_SIZES], max(n_genes // 2, 1))
    distance = np.abs(np.log(np.asarray(sizes, float)[:, None] / possible))
    return possible[distance.argmin(axis=1)] if len(sizes) else np.zeros(0, int)


def _random_sets(
    sizes: np.ndarray, genes: pd.Index, seed: int
) -> tuple[dict[str, list[str]], np.ndarray]:
    """Return random sets of every size, and the size of each."""
    rng = np.random.default_rng([seed, len(genes), 41])
    of_size = np.repeat(np.unique(sizes), _RANDOM_SETS).astype(int)
    sets = {
        f"random {number}": list(rng.choice(genes, size, replace=False))
        for number, size in enumerate(of_size)
    }
    return sets, of_size
