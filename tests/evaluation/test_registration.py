from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from histogep.evaluation.registration import registration_scores

SIDE, MARGIN = 18, 3


def section(rng, *, d_row=0, d_col=0, quality=0.8, noise=1.0, keep=None):
    """Predictions that are displaced against the counts by whole cells."""
    big = gaussian_filter(rng.normal(size=(5, SIDE + 2 * MARGIN, SIDE + 2 * MARGIN)), (0, 1.5, 1.5))
    big /= big.std()
    other = gaussian_filter(rng.normal(size=big.shape), (0, 1.5, 1.5))
    other /= other.std()
    weights = rng.normal(size=(5, 30))

    def window(field, dr, dc):
        part = field[:, MARGIN + dr : MARGIN + dr + SIDE, MARGIN + dc : MARGIN + dc + SIDE]
        return part.reshape(5, -1).T @ weights

    measured = window(big, 0, 0)
    measured = measured + noise * rng.normal(size=measured.shape)
    predicted = quality * window(big, d_row, d_col) + (1 - quality) * window(other, 0, 0)
    row, col = np.divmod(np.arange(SIDE * SIDE), SIDE)
    keep = np.ones(len(row), bool) if keep is None else keep(row, col)
    return predicted[keep], measured[keep], row[keep] + 11, col[keep] + 4


def best(table):
    return tuple(table.loc[table["best"], ["flip", "d_row", "d_col"]].iloc[0])


def test_in_place_is_best_and_ok():
    table = registration_scores(*section(np.random.default_rng(0)))
    assert len(table) == 36
    assert best(table) == ("none", 0, 0)
    assert table["ok"].all()


@pytest.mark.parametrize(("d_row", "d_col"), [(1, 0), (-1, 0), (0, 1), (1, -1)])
def test_a_shift_of_one_cell_is_found_with_its_direction(d_row, d_col):
    data = section(np.random.default_rng(1), d_row=d_row, d_col=d_col)
    table = registration_scores(*data)
    # The prediction of cell (r, c) shows what is measured at (r + d_row, c + d_col).
    assert best(table) == ("none", -d_row, -d_col)
    assert not table["ok"].any()


@pytest.mark.parametrize("flip", ["horizontal", "vertical", "both"])
def test_a_mirrored_section_is_found_in_tissue_of_any_outline(flip):
    predicted, measured, row, col = section(
        np.random.default_rng(2), keep=lambda r, c: (r - 9) ** 2 + (c - 9) ** 2 < 81
    )
    cell = {(r, c): i for i, (r, c) in enumerate(zip(row, col, strict=True))}
    r_sum, c_sum = row.min() + row.max(), col.min() + col.max()
    turned = [
        cell.get((r_sum - r if flip != "horizontal" else r, c_sum - c if flip != "vertical" else c))
        for r, c in zip(row, col, strict=True)
    ]
    assert None not in turned
    table = registration_scores(predicted[turned], measured, row, col)
    assert best(table) == (flip, 0, 0)
    assert not table["ok"].any()


def test_a_model_that_works_weakly_raises_no_alarm():
    rng = np.random.default_rng(3)
    verdicts = [
        registration_scores(*section(rng, quality=0.4, noise=4))["ok"].all() for _ in range(15)
    ]
    assert np.mean(verdicts) > 0.9


def test_wider_shifts_and_too_few_cells():
    data = section(np.random.default_rng(4), d_row=2)
    table = registration_scores(*data, shifts=2)
    assert len(table) == 4 * 25
    assert best(table) == ("none", -2, 0)
    few = registration_scores(*(part[:12] for part in data))
    assert few["score"].isna().all()
    assert few["ok"].all()
    assert not few["best"].any()


@pytest.mark.parametrize("sigma", [0.0, 1.5])
def test_sections_that_have_nothing_to_do_with_their_counts_are_rarely_marked(sigma):
    """The jackknife alone marks 6 to 9 % of them; the level is 5 %."""
    rng = np.random.default_rng(21)
    row, col = np.divmod(np.arange(16 * 16), 16)

    def maps():
        field = gaussian_filter(rng.normal(size=(5, 16, 16)), (0, sigma, sigma))
        return field.reshape(5, -1).T @ rng.normal(size=(5, 12))

    marked = [
        not registration_scores(maps(), maps() + 0.1 * rng.normal(size=(256, 12)), row, col)[
            "ok"
        ].all()
        for _ in range(25)
    ]
    assert np.mean(marked) <= 0.08
