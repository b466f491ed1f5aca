"""Whether whole chromosome arms moved: what tells copy number from an expression programme.

A gain or a loss shifts most genes of an arm a little, all along it. An expression programme moves
few genes far; some of them are neighbours (chemokines on 17q, apolipoproteins on 19q, keratins on
12q and 17q, zinc fingers on 19), so that means of neighbouring genes differ more than in a
shuffled order of single genes, and more than any copy number need be there. Three measures against
that: genes are compared by rank among genes of like expression, so that no gene counts for more
than its place; of each arm the strongest quarter of its pieces is left out; and the null deals
whole runs of neighbours over the genome, so that co-expressed clusters stay together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import ndtri
from scipy.stats import rankdata

from histogep.inputs.genome import order_arms

#: Genes of a piece of an arm: what is left out as one.
PIECE_GENES = 10
#: Most neighbouring pieces that the null keeps together: correlation of neighbouring genes in
#: contrasts of normal tissue fades within about as many genes. No more than a quarter of most arms:
#: a run as long as an arm would carry the arm's copy number into the null.
_MOST_RUN_PIECES = 3
#: Share of an arm's pieces, the strongest, that its score does without.
_LEFT_OUT = 0.25
#: Least score of an altered arm: the shift of its genes, without the strongest, in standard
#: deviations of genes of like expression. Arms of normal tissue reach .2.
MIN_SHIFT = 0.25
#: Largest family-wise p of an altered arm.
_LEVEL = 0.01
#: Fewest pieces of an arm that can show a shift along it.
_FEWEST_PIECES = 4
#: Genes of like expression that are ranked together.
_STRATUM_GENES, _MOST_STRATA = 100, 20


@dataclass(frozen=True)
class ArmScores:
    """Shifts of chromosome arms in one or several contrasts.

    Attributes
    ----------
    table
        contrast (its number), arm, n_genes, score (shift without the strongest quarter of the
        pieces; 0 where nothing is left of it), z (against runs of neighbours dealt over the
        genome), p (of the largest z among all arms and contrasts: family-wise), altered.
    null
        Largest absolute z among all arms and contrasts, of each dealing.
    """

    table: pd.DataFrame
    null: np.ndarray

    @property
    def strongest(self) -> float:
        """Largest absolute z."""
        return float(self.table["z"].abs().max())


def rank_genes(contrast: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Return a contrast of genes as normal scores of its ranks among genes of like expression.

    Arms differ in how strongly their genes are expressed, and log ratios in mean and spread with
    expression: what that does to an arm is no shift of it.

    Parameters
    ----------
    contrast
        Difference of each gene between two groups of spots, (genes,).
    level
        Mean expression of each gene, (genes,).
    """
    n = len(contrast)
    n_strata = int(np.clip(n // _STRATUM_GENES, 1, _MOST_STRATA))
    stratum = np.empty(n, int)
    stratum[np.argsort(level, kind="stable")] = np.arange(n) * n_strata // max(n, 1)
    scores = np.empty(n)
    for number in range(n_strata):
        own = stratum == number
        scores[own] = ndtri((rankdata(contrast[own]) - 0.5) / own.sum())
    return scores


def shuffle_runs(n: int, rng: np.random.Generator, *, length: int) -> np.ndarray:
    """Return the order of n things when runs of neighbours change places, each kept as it is.

    Parameters
    ----------
    n
        Number of things, in their order.
    rng
        Draws where the first run begins, and the order of the runs.
    length
        Things in a run.
    """
    order = np.roll(np.arange(n), int(rng.integers(n)))
    runs = np.array_split(order, max(1, round(n / length)))
    return np.concatenate([runs[i] for i in rng.permutation(len(runs))])


def score_arms(
    contrasts: np.ndarray,
    level: np.ndarray,
    arms: Sequence[str],
    *,
    min_arm_genes: int = 15,
    permutations: int = 499,
    seed: int = 0,
) -> ArmScores:
    """Return how far the arms are shifted in contrasts of genes, beside the null of dealt runs.

    An arm is cut into pieces of about 10 neighbouring genes, each with the mean of its genes'
    scores (`rank_genes`). The arm's score is the mean of its pieces without the quarter that moves
    it most. In the null runs of one to three pieces are dealt over the genome: clusters
    of co-expressed genes stay together, and no arm is moved as a whole. `altered` is an arm of at least four
    pieces whose z is beyond 99 % of the largest of all arms in the null, and whose score is at
    least `MIN_SHIFT`.

    Parameters
    ----------
    contrasts
        Difference of each gene between two groups of spots (contrasts by genes), genes in the
        order of the genome.
    level
        Mean expression of each gene.
    arms
        Arm of each gene.
    min_arm_genes
        Arms with fewer genes are left out.
    permutations
        Number of dealings.
    seed
        Seed of the dealings.
    """
    contrasts = np.atleast_2d(np.asarray(contrasts, np.float64))
    arms = np.asarray(arms, dtype=object)
    names = [arm for arm in order_arms(arms) if (arms == arm).sum() >= min_arm_genes]
    columns = ["contrast", "arm", "n_genes", "score", "z", "p", "altered"]
    if not names:
        return ArmScores(pd.DataFrame(columns=columns), np.zeros(permutations))
    size = [int((arms == arm).sum()) for arm in names]
    pieces = [max(1, round(n / PIECE_GENES)) for n in size]
    bounds = np.concatenate([[0], np.cumsum(pieces)])
    means = []
    for contrast in contrasts:
        scores = rank_genes(contrast, level)
        parts = [
            part.mean()
            for arm, n in zip(names, pieces, strict=True)
            for part in np.array_split(scores[arms == arm], n)
        ]
        # The genome's middle need not be 0 once arms with few genes are left out.
        means.append(np.array(parts) - np.median(parts))
    means = np.array(means)
    rng = np.random.default_rng(seed)
    length = int(np.clip(round(np.median(pieces) / 4), 1, _MOST_RUN_PIECES))
    orders = [shuffle_runs(bounds[-1], rng, length=length) for _ in range(permutations)]
    tables, largest = [], np.zeros(permutations)
    for number, values in enumerate(means):
        dealt = _trimmed(values[np.array(orders)], bounds)
        middle, spread = dealt.mean(axis=1), np.maximum(dealt.std(axis=1), 1e-12)
        found = _trimmed(values[np.newaxis], bounds)[:, 0]
        null = (dealt - middle[:, np.newaxis]) / spread[:, np.newaxis]
        largest = np.maximum(largest, null.max(axis=(0, 2)))
        z = (found - middle) / spread
        up = z[0] >= z[1]
        shift = np.maximum(np.where(up, found[0], found[1]), 0.0)
        sign = np.where(up, 1.0, -1.0)
        table = pd.DataFrame({"contrast": number, "arm": names, "n_genes": size})
        table["score"] = sign * shift
        table["z"] = sign * np.where(up, z[0], z[1])
        tables.append(table)
    table = pd.concat(tables, ignore_index=True)
    above = (largest[:, np.newaxis] >= table["z"].abs().to_numpy()).sum(axis=0)
    table["p"] = (1 + above) / (1 + permutations)
    table["altered"] = (
        (table["p"] <= _LEVEL)
        & (table["score"].abs() >= MIN_SHIFT)
        & (np.tile(pieces, len(means)) >= _FEWEST_PIECES)
    )
    return ArmScores(table[columns], largest)


def _trimmed(values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Return the arms' means without the highest pieces, and minus those without the lowest.

    Parameters
    ----------
    values
        Pieces in order (dealings by pieces).
    bounds
        First piece of each arm, and the end.

    Returns
    -------
    numpy.ndarray
        2 (up, down) by dealings by arms.
    """
    found = np.empty((2, len(values), len(bounds) - 1))
    for arm, (start, stop) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        own = np.sort(values[:, start:stop], axis=1)
        n = own.shape[1]
        out = int(np.ceil(_LEFT_OUT * n)) if n > 1 else 0
        found[0, :, arm] = own[:, : n - out].mean(axis=1)
        found[1, :, arm] = -own[:, out:].mean(axis=1)
    return found
