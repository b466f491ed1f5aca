"""Figures of predicted slides: the tumour map, the out-of-distribution score, a few genes."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from histogep.deployment.model import Prediction
from histogep.report.style import DIVERGING_MAP, EXPRESSION_MAP, as_drawn, figure

N_GENES = 4
_UM_PER_MM = 1000.0
_WIDTH_MM, _HEAD_MM = 180.0, 7.0
#: Around a map, left, right, top and bottom: ticks, colour bar, title, label.
_MARGINS_MM = (8.0, 13.0, 5.0, 9.0)


def plot_prediction(prediction: Prediction, *, n_genes: int = N_GENES) -> Figure:
    """Return maps of one slide: tumour probability, distance, and the most predictable genes.

    Genes are the predictable ones with the best held-out score (those of the best score at all
    where none is predictable, and the title says so).
    """
    genes = top_genes(prediction, n_genes)
    columns = max(2, -(-(2 + len(genes)) // 2))
    lattice, mpp = prediction.uns["lattice"], prediction.uns["mpp"]
    centres_mm = prediction.centres_px * mpp / _UM_PER_MM
    extent = np.ptp(centres_mm, axis=0) + lattice["pitch_um"] / _UM_PER_MM
    left, right, top, bottom = _MARGINS_MM
    panel_mm = _WIDTH_MM / columns - left - right
    height_mm = float(np.clip(panel_mm * extent[1] / max(extent[0], 1e-9), 30, 120))
    row_mm = top + height_mm + bottom
    size_mm = np.array([_WIDTH_MM, _HEAD_MM + 2 * row_mm])
    fig = figure(width_mm=size_mm[0], height_mm=size_mm[1], placed=True)

    def place(number: int, box_mm: tuple[float, float, float, float]) -> Axes:
        """Return axes at (left, below the panel's top, width, height) in mm of a panel."""
        row, column = divmod(number, columns)
        x = column * _WIDTH_MM / columns + box_mm[0]
        y = size_mm[1] - _HEAD_MM - row * row_mm - box_mm[1] - box_mm[3]
        return fig.add_axes((*np.array([x, y]) / size_mm, *np.array(box_mm[2:]) / size_mm))

    panels = [
        ("tumour probability", prediction.tumour, DIVERGING_MAP, (0.0, 1.0)),
        ("out-of-distribution score", prediction.ood_score, "Greys", None),
        *(
            (f"{as_drawn(gene, most=24)} (log1p CP10k){'' if known else ', not predictable'}", prediction.of_gene(gene),
             EXPRESSION_MAP, None)
            for gene, known in genes
        ),
    ]  # fmt: skip
    side_mm = lattice["pitch_um"] / _UM_PER_MM
    for number, (title, values, colours, limits) in enumerate(panels):
        axis = place(number, (left, top, panel_mm, height_mm))
        if not np.isfinite(values).any():
            axis.text(0.5, 0.5, "no such model", ha="center", transform=axis.transAxes)
            axis.set_axis_off()
            continue
        draw_cells(axis, centres_mm, values, side_mm=side_mm, colours=colours, limits=limits)
        axis.set_title(title, fontsize=7)
        beside = place(number, (left + panel_mm + 1.5, top + 0.15 * height_mm, 2, 0.7 * height_mm))
        fig.colorbar(axis.collections[0], cax=beside).ax.tick_params(labelsize=6)
    flag = "; FAR FROM THE TRAINING SLIDES" if prediction.uns["out_of_distribution"] else ""
    fig.suptitle(
        f"{prediction.features.slide}: {len(centres_mm):,} tiles, model of study "
        f"{prediction.uns['study']} ({prediction.uns['model_digest'][:8]}){flag}",
        fontsize=8,
        y=1 - 2.5 / size_mm[1],
        va="top",
    )
    return fig


def draw_cells(
    axis: Axes,
    centres_mm: np.ndarray,
    values: np.ndarray,
    *,
    side_mm: float,
    colours: str,
    limits: tuple[float, float] | None = None,
) -> None:
    """Draw square positions of a lattice in mm, coloured by value; image orientation."""
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * side_mm / 2
    cells = PolyCollection(
        centres_mm[:, None, :] + corners, array=np.asarray(values, float), cmap=colours,
        edgecolors="none", rasterized=True,
    )  # fmt: skip
    low, high = limits or np.nanquantile(values, [0.01, 0.99])
    cells.set_clim(low, high if high > low else low + 1e-6)
    axis.add_collection(cells)
    axis.set_xlim(centres_mm[:, 0].min() - side_mm, centres_mm[:, 0].max() + side_mm)
    axis.set_ylim(centres_mm[:, 1].max() + side_mm, centres_mm[:, 1].min() - side_mm)
    axis.set_aspect("equal")
    axis.set_xlabel("mm", fontsize=6)
    axis.tick_params(labelsize=6)


def top_genes(prediction: Prediction, n: int) -> list[tuple[str, bool]]:
    """Return the n genes to show and whether each is predictable, best held-out score first."""
    genes = prediction.genes
    chosen = genes[genes["predictable"]] if genes["predictable"].any() else genes
    order = chosen["score"].fillna(-np.inf).to_numpy()
    ranked = chosen.index[np.argsort(-order, kind="stable")][:n]
    return [(gene, bool(genes.loc[gene, "predictable"])) for gene in ranked]
