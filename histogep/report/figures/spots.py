"""Figures of the spots of a section: where they lie, and what they are labelled."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import anndata
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from histogep.report import style as plots
from histogep.spots.quality import MEASURES


def draw_spots(spots: anndata.AnnData, *, mpp: float) -> Figure:
    """Return the slide beside the slide with its spots coloured by counts; those off tissue ringed.

    Parameters
    ----------
    spots
        What `histogep.spots.align.align_spots` returned.
    mpp
        um per level-0 px, for the scale bar.
    """
    counts = spots.obs["total_counts"].to_numpy(np.float64)
    off = ~spots.obs["on_tissue"].to_numpy(bool)
    fig = plots.figure(width_mm=180, height_mm=95)
    plain, marked = fig.subplots(1, 2)
    for axes in (plain, marked):
        _show_slide(axes, spots, mpp=mpp)
    drawn = _add_spots(
        marked,
        spots,
        array=np.log10(counts),
        cmap=plots.EXPRESSION_MAP,
        edgecolors=np.where(off[:, None], [[0.0, 0.62, 0.45, 1.0]], [[0.0, 0.0, 0.0, 0.0]]),
        linewidths=np.where(off, 0.9, 0.0),
    )
    bar = fig.colorbar(drawn, ax=marked, fraction=0.04, pad=0.02)
    bar.set_label("log10 counts of the spot")
    plain.set_title(spots.uns["slide"])
    marked.set_title(f"{spots.n_obs} spots, {1 - off.mean():.1%} on tissue")
    if off.any():
        _legend(marked, {"off tissue": "#009E73"}, hollow=True)
    if spots.uns.get("joins"):
        fig.supxlabel(textwrap.fill(spots.uns["joins"], 130), fontsize=6)
    return fig


def draw_quality(spots: anndata.AnnData) -> Figure:
    """Return counts, genes and mitochondrial share of the spots: how they are distributed, and where.

    Parameters
    ----------
    spots
        What `histogep.spots.align.align_spots` returned.
    """
    fig = plots.figure(width_mm=180, height_mm=115)
    above, below = fig.subplots(2, len(MEASURES), height_ratios=[1, 1.5])
    for spread, place, (column, label) in zip(above, below, MEASURES.items(), strict=True):
        values = spots.obs[column].to_numpy(np.float64)
        _show_slide(place, spots, mpp=float(spots.uns["mpp"]), alpha=0.45)
        if np.isnan(values).all():
            spread.set_axis_off()
            spread.text(0.5, 0.5, "no mitochondrial gene\nis measured", ha="center", va="center")
            continue
        spread.hist(values, bins=40, color=plots.CATEGORY_COLOURS[0])
        spread.axvline(np.median(values), color=plots.CEILING_COLOUR, linewidth=0.8)
        spread.set(xlabel=label, ylabel="spots", title=f"median {np.median(values):.4g}")
        drawn = _add_spots(
            place, spots, array=values, cmap=plots.EXPRESSION_MAP, linewidths=0,
            clim=np.quantile(values, [0.01, 0.99]),
        )  # fmt: skip
        fig.colorbar(drawn, ax=place, fraction=0.04, pad=0.02)
    slide = plots.as_drawn(spots.uns["slide"])
    fig.suptitle(f"{slide}: {spots.n_obs} spots, {spots.n_vars} genes", x=0.01, ha="left", size=9)
    return fig


def draw_labels(spots: anndata.AnnData, labels: pd.DataFrame) -> Figure:
    """Return the map of the tumour labels, faint where they are unsure, and the certainty beside.

    Parameters
    ----------
    spots
        Spots of one section.
    labels
        barcode, label, source, confidence; in the order of the spots.
    """
    mpp = float(spots.uns["mpp"])
    fig = plots.figure(width_mm=180, height_mm=95)
    left, right = fig.subplots(1, 2)
    certain = labels["confidence"].to_numpy(np.float64)
    colours = [
        to_rgba(plots.LABEL_COLOURS[label], 0.4 + 0.6 * share)
        for label, share in zip(labels["label"], certain, strict=True)
    ]
    for axes in (left, right):
        _show_slide(axes, spots, mpp=mpp, alpha=0.45)
    _add_spots(left, spots, facecolors=colours, linewidths=0)
    counts = labels["label"].value_counts()
    _legend(
        left,
        {
            f"{name} ({counts[name]})": colour
            for name, colour in plots.LABEL_COLOURS.items()
            if name in counts
        },
    )
    sources = ", ".join(sorted(set(labels["source"])))
    left.set_title(f"{spots.uns['slide']}: labels by {sources}")
    drawn = _add_spots(
        right,
        spots,
        array=certain,
        cmap="viridis",
        clim=(0, 1),
        linewidths=0,
    )
    right.set_title("Confidence of the label")
    fig.colorbar(drawn, ax=right, fraction=0.04, pad=0.02)
    if labels.attrs.get("join"):
        fig.supxlabel(textwrap.fill(labels.attrs["join"], 130), fontsize=6)
    return fig


def _image(spots: anndata.AnnData) -> Mapping[str, Any]:
    return spots.uns["spatial"][spots.uns["slide"]]


def _show_slide(axes: Axes, spots: anndata.AnnData, *, mpp: float, alpha: float = 1.0) -> None:
    """Draw the slide in level-0 px, with a bar of 1 mm, and all spots in view."""
    image = _image(spots)
    pixels = image["images"]["hires"]
    scale = float(image["scalefactors"]["tissue_hires_scalef"])
    width, height = pixels.shape[1] / scale, pixels.shape[0] / scale
    axes.imshow(pixels, extent=(0, width, height, 0), alpha=alpha)
    low = np.minimum(spots.obsm["spatial"].min(axis=0), 0)
    high = np.maximum(spots.obsm["spatial"].max(axis=0), [width, height])
    axes.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar_px = 1000 / mpp
    left, level = low[0] + 0.03 * (high[0] - low[0]), high[1] - 0.03 * (high[1] - low[1])
    axes.plot([left, left + bar_px], [level, level], color="black", linewidth=2)
    # Above the bar by its width and a little more.
    style = {"xytext": (0, 2), "textcoords": "offset points", "ha": "center", "va": "bottom"}
    axes.annotate("1 mm", (left + bar_px / 2, level), fontsize=7, **style)


def _add_spots(axes: Axes, spots: anndata.AnnData, **style: Any) -> EllipseCollection:
    diameter = float(_image(spots)["scalefactors"]["spot_diameter_fullres"])
    size = np.full(spots.n_obs, diameter)
    drawn = EllipseCollection(
        size,
        size,
        np.zeros(spots.n_obs),
        units="xy",
        offsets=spots.obsm["spatial"][:, :2],
        offset_transform=axes.transData,
        rasterized=True,
        **style,
    )
    axes.add_collection(drawn)
    return drawn


def _legend(axes: Axes, colours: Mapping[str, str], *, hollow: bool = False) -> None:
    handles = [
        Line2D(
            [],
            [],
            linestyle="",
            marker="o",
            markersize=5,
            markerfacecolor="none" if hollow else colour,
            markeredgecolor=colour,
            label=name,
        )
        for name, colour in colours.items()
    ]
    axes.legend(
        handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=min(4, len(handles))
    )
