"""Figure of the neighbourhoods of one slide: its classes, what lies beside what, and how far."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from histogep.neighbourhoods.describe import Neighbourhoods
from histogep.neighbourhoods.tissue_classes import (
    BOUNDARY,
    CLASSES,
    IMMUNE,
    MALIGNANT,
    OTHER,
    STROMA,
)
from histogep.report.style import DIVERGING_MAP, NULL_COLOUR, as_drawn, draw_discs, figure

#: Colours of the classes of tissue (a colour-blind safe set after Okabe and Ito, 2008).
CLASS_COLOURS = {
    MALIGNANT: "#D55E00",
    BOUNDARY: "#E69F00",
    IMMUNE: "#0072B2",
    STROMA: "#009E73",
    OTHER: "#BBBBBB",
}


def neighbourhood_figure(found: Neighbourhoods) -> Figure:
    """Return classes on the tissue, enrichment beside its null, and co-occurrence by distance.

    Where nothing could be compared the figure says why.
    """
    table = found.table[found.table["partition"] == "tissue"]
    fig = figure(width_mm=200, height_mm=70)
    tissue, observed, null, curves = fig.subplots(1, 4, width_ratios=[1.2, 1, 1, 1.1])
    _draw_classes(tissue, found)
    enriched = table[table["statistic"] == "enrichment"]
    for axis, column, title in (
        (observed, "value", "enrichment (z)"),
        (null, "null_mean", "its null: 95 % range"),
    ):
        _draw_pairs(axis, enriched, column, title)
    if len(enriched):
        null.set_yticks([])
    _draw_curves(curves, table[table["statistic"] == "co_occurrence"])
    if found.note:
        observed.set_title(as_drawn(found.note), fontsize=6)
    fig.suptitle(f"{as_drawn(found.slide)}: what lies beside what", fontsize=8)
    return fig


def _draw_classes(axis: Axes, found: Neighbourhoods) -> None:
    places = found.places
    axis.set_title("classes", fontsize=7)
    if not len(places):
        axis.set_axis_off()
        return
    draw_discs(
        axis,
        places["x_um"].to_numpy(),
        places["y_um"].to_numpy(),
        size_um=found.lattice.pitch_um,
        colours=[CLASS_COLOURS[name] for name in places["class"]],
    )
    counts = places["class"].value_counts()
    for name in CLASSES:
        axis.plot(
            [], [], "o", ms=4, color=CLASS_COLOURS[name], label=f"{name} {counts.get(name, 0)}"
        )
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2, fontsize=6, handletextpad=0.1)


def _draw_pairs(axis: Axes, enriched: pd.DataFrame, column: str, title: str) -> None:
    names = [name for name in CLASSES if name in set(enriched["of"])]
    axis.set_title(title, fontsize=7)
    if not names:
        axis.set_axis_off()
        return
    grid = pd.DataFrame(np.nan, index=names, columns=names)
    for row in enriched.itertuples():
        value = getattr(row, column)
        grid.loc[row.of, row.beside] = grid.loc[row.beside, row.of] = value
    axis.imshow(grid.to_numpy(float), cmap=DIVERGING_MAP, vmin=-10, vmax=10)
    beyond = {
        (row.of, row.beside)
        for row in enriched.itertuples()
        if column == "value"
        and not row.null_low <= row.value <= row.null_high
        and np.isfinite(row.null_low)
    }
    ranges = {(row.of, row.beside): (row.null_low, row.null_high) for row in enriched.itertuples()}
    for i, of in enumerate(names):
        for j, beside in enumerate(names):
            value = grid.iloc[i, j]
            low, high = ranges.get((of, beside), ranges.get((beside, of), (np.nan, np.nan)))
            star = "*" if {(of, beside), (beside, of)} & beyond else ""
            text = f"{value:.1f}{star}" if column == "value" else f"{low:.1f}\nto {high:.1f}"
            text = text if np.isfinite(value) else ""
            colour = "white" if abs(value) > 7 else "black"
            axis.text(j, i, text, ha="center", va="center", fontsize=5, color=colour)
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
    axis.set_yticks(range(len(names)), names, fontsize=6)
    axis.tick_params(length=0)


def _draw_curves(axis: Axes, table: pd.DataFrame) -> None:
    axis.set_title("beside the boundary", fontsize=7)
    drawn = False
    for name in (IMMUNE, STROMA):
        pair = table[(table["of"] == BOUNDARY) & (table["beside"] == name)]
        if not len(pair):
            continue
        drawn = True
        axis.plot(
            pair["distance_um"], pair["value"], "o-", ms=3, color=CLASS_COLOURS[name], label=name
        )
        axis.fill_between(
            pair["distance_um"], pair["null_low"], pair["null_high"],
            color=CLASS_COLOURS[name], alpha=0.15, linewidth=0,
        )  # fmt: skip
    if not drawn:
        axis.set_axis_off()
        return
    axis.axhline(1, color=NULL_COLOUR, linewidth=0.8, linestyle="--")
    axis.set_xlabel("within (um)", fontsize=6)
    axis.set_ylabel("co-occurrence", fontsize=6)
    axis.tick_params(labelsize=6)
    axis.legend(fontsize=6, title="shaded: maps moved", title_fontsize=6)
