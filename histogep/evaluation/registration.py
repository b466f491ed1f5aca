"""Check that spots and image fit: score shifted and flipped predictions against the counts.

A model that sees the right tissue predicts best in place. When the predictions fit better one row
or column off, or mirrored, the section's positions were placed on the image wrongly (the paper's
own matrices are one grid row off), or the model predicts nothing local.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from histogep.stats.scores import unit_columns

FLIPS = ("none", "horizontal", "vertical", "both")
#: A comparison needs this many positions and this share of the section's positions.
MIN_CELLS, MIN_SHARE = 20, 0.4
#: Number of standard errors by which another place must be better before a section is marked.
SIGNIFICANT = 3.0
#: Level of the test against far places, which is valid for maps unrelated to the counts:
#: the jackknife alone marks 6 to 9 % of these.
LEVEL = 0.05
#: Rows and columns between the centres of the searches among far places.
_STEP = 3
_BLOCKS_PER_SIDE = 4


def registration_scores(
    predicted: np.ndarray,
    measured: np.ndarray,
    row: np.ndarray,
    col: np.ndarray,
    *,
    shifts: int = 1,
) -> pd.DataFrame:
    """Score one section at every shift and flip.

    The prediction at position (r + d_row, c + d_col) of the flipped section is compared with the
    counts at (r, c), where both are in the tissue; flips turn the bounding box of the tissue. On a
    hexagonal lattice odd row shifts and flips are accurate to half a pitch. The score is the mean
    over genes of Pearson's r.

    A section is not `ok` when another place is better by more than 3 standard errors of the
    difference, from a jackknife over 4 x 4 spatial blocks (neighbouring spots and correlated genes
    are not independent evidence), and is better than chance, `p` <= .05: the same search made about
    far places, where prediction and counts are unrelated, finds as good a place in a share p of
    them. A section whose prediction is unrelated to its counts is not ok in
    at most 5 % of cases; one too small for 19 far searches is always ok.

    Parameters
    ----------
    predicted, measured
        In-tissue positions by genes.
    row, col
        Grid indices of the positions.
    shifts
        Largest shift in rows and columns.

    Returns
    -------
    pandas.DataFrame
        flip, d_row, d_col, score (NaN for too small an overlap), n_spots, best, ok, p (NaN where
        no other place is better by more than the jackknife's noise).
    """
    row, col = np.asarray(row, int), np.asarray(col, int)
    places = [
        (flip, d_row, d_col)
        for flip in FLIPS
        for d_row in range(-shifts, shifts + 1)
        for d_col in range(-shifts, shifts + 1)
    ]
    pairs = {place: _pairs(row, col, *place, margin=shifts) for place in places}
    scores = {place: _score(predicted, measured, pair) for place, pair in pairs.items()}
    home = ("none", 0, 0)
    known = [place for place in places if np.isfinite(scores[place])]
    best = max(known, key=lambda place: (scores[place], place == home), default=home)
    p, ok = float("nan"), True
    if best != home and not _within_noise(
        predicted, measured, pairs[home], pairs[best], _blocks(row, col)
    ):
        p = _chance(predicted, measured, row, col, scores[best], shifts=shifts)
        ok = p > LEVEL
    rows = [
        (*place, scores[place], len(pairs[place][0]), place == best and bool(known), ok, p)
        for place in places
    ]
    columns = ["flip", "d_row", "d_col", "score", "n_spots", "best", "ok", "p"]
    return pd.DataFrame(rows, columns=columns)


def _chance(
    predicted: np.ndarray,
    measured: np.ndarray,
    row: np.ndarray,
    col: np.ndarray,
    score: float,
    *,
    shifts: int,
) -> float:
    """Return in what share of searches about far places the best score is at least this one.

    Far places are whole shifts beyond the reach of the search that keep enough positions; this
    one counts among them, so that p is exact where prediction and counts are unrelated.
    """
    reach = [int(np.ptp(axis)) // _STEP * _STEP for axis in (row, col)]
    margin = max(reach) + shifts
    near = range(-shifts, shifts + 1)
    found = []
    for at_row in range(-reach[0], reach[0] + 1, _STEP):
        for at_col in range(-reach[1], reach[1] + 1, _STEP):
            if max(abs(at_row), abs(at_col)) <= 2 * shifts:
                continue
            around = [
                _score(predicted, measured, _pairs(row, col, flip, r, c, margin=margin))
                for flip in FLIPS
                for r in (at_row + d for d in near)
                for c in (at_col + d for d in near)
            ]
            if np.isfinite(around).any():
                found.append(np.nanmax(around))
    return (1 + int(np.sum(np.array(found) >= score))) / (1 + len(found))


def _pairs(
    row: np.ndarray, col: np.ndarray, flip: str, d_row: int, d_col: int, *, margin: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions whose predictions, and those whose counts, meet at one place."""
    row, col = row - row.min() + margin, col - col.min() + margin
    shape = row.max() + 1 + margin, col.max() + 1 + margin
    cell = np.full(shape, -1)
    moved_row = row.max() + margin - row if flip in ("vertical", "both") else row
    moved_col = col.max() + margin - col if flip in ("horizontal", "both") else col
    cell[moved_row, moved_col] = np.arange(len(row))
    source = cell[row + d_row, col + d_col]
    target = np.flatnonzero(source >= 0)
    return source[target], target


def _score(predicted: np.ndarray, measured: np.ndarray, pair: tuple) -> float:
    source, target = pair
    if len(source) < max(MIN_CELLS, MIN_SHARE * len(measured)):
        return float("nan")
    ours, silent = unit_columns(predicted[source])
    theirs, constant = unit_columns(measured[target])
    # A gene that is constant on either side is not informative about the place.
    scored = ~(silent | constant)
    if not scored.any():
        return float("nan")
    return float(np.einsum("ng,ng->g", ours, theirs)[scored].mean())


def _within_noise(
    predicted: np.ndarray, measured: np.ndarray, home: tuple, best: tuple, block: np.ndarray
) -> bool:
    """Return whether `best` is ahead of `home` by no more than the jackknife's noise."""
    ahead = []
    for out in np.unique(block):
        scores = []
        for source, target in (home, best):
            keep = block[target] != out
            scores.append(_score_any(predicted[source[keep]], measured[target[keep]]))
        ahead.append(scores[1] - scores[0])
    ahead = np.array(ahead)
    ahead = ahead[np.isfinite(ahead)]
    if len(ahead) < 4:
        return True
    spread = np.sqrt((len(ahead) - 1) / len(ahead) * ((ahead - ahead.mean()) ** 2).sum())
    whole = _score_any(predicted[best[0]], measured[best[1]]) - _score_any(
        predicted[home[0]], measured[home[1]]
    )
    return bool(whole <= SIGNIFICANT * spread)


def _score_any(predicted: np.ndarray, measured: np.ndarray) -> float:
    every = np.arange(len(predicted))
    return _score(predicted, measured, (every, every))


def _blocks(row: np.ndarray, col: np.ndarray) -> np.ndarray:
    """Cut the section into 4 x 4 blocks of about equally many rows and columns of spots."""
    cut = np.linspace(0, 1, _BLOCKS_PER_SIDE + 1)[1:-1]
    return np.searchsorted(np.quantile(row, cut), row, side="right") * _BLOCKS_PER_SIDE + (
        np.searchsorted(np.quantile(col, cut), col, side="right")
    )
