"""Figures of predicted slides: the tumour map, the distance to training, a few genes."""

from __future__ import annotations

import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from histogep.deployment import Prediction
from histogep.plots import DIVERGING_MAP, EXPRESSION_MAP, figure

N_GENES = 4
_UM_PER_MM = 1000.0


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
    width_mm = 180.0
    panel_mm = np.clip((width_mm / columns - 16) * extent[1] / max(extent[0], 1e-9), 30, 120)
    fig = figure(width_mm=width_mm, height_mm=2 * (panel_mm + 12) + 8)
    axes = fig.subplots(2, columns, squeeze=False).ravel()
    panels = [
        ("tumour probability", prediction.tumour, DIVERGING_MAP, (0.0, 1.0)),
        ("distance to training tiles", prediction.distance, "Greys", None),
        *(
            (f"{gene} (log1p CP10k){'' if known else ', not predictable'}", prediction.of_gene(gene),
             EXPRESSION_MAP, None)
            for gene, known in genes
        ),
    ]  # fmt: skip
    side_mm = lattice["pitch_um"] / _UM_PER_MM
    for axis, (title, values, colours, limits) in zip(axes, panels, strict=False):
        if not np.isfinite(values).any():
            axis.text(0.5, 0.5, "no such model", ha="center", transform=axis.transAxes)
            axis.set_axis_off()
            continue
        draw_cells(axis, centres_mm, values, side_mm=side_mm, colours=colours, limits=limits)
        axis.set_title(title, fontsize=7)
        fig.colorbar(axis.collections[0], ax=axis, shrink=0.7, pad=0.02)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    flag = "; FAR FROM THE TRAINING SLIDES" if prediction.uns["out_of_distribution"] else ""
    fig.suptitle(
        f"{prediction.features.slide}: {len(centres_mm):,} tiles, model of study "
        f"{prediction.uns['study']} ({prediction.uns['model_digest'][:8]}){flag}",
        fontsize=8,
    )
    return fig


def draw_cells(
    axis,
    centres_mm: np.ndarray,
    values: np.ndarray,
    *,
    side_mm: float,
    colours: str,
    limits: tuple[float, float] | None = None,
) -> None:
    """Draw square cells of a lattice in mm, coloured by value; image orientation."""
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
