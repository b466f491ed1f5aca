"""Figures of slides: tissue and tiles."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from histogep.report.style import as_drawn, figure
from histogep.slides.quality import BLURRED, FOLDED
from histogep.slides.tissue import TissueMask

_OUTLINE, _TILE, _BLURRED, _PEN = "#009E73", "#0072B2", "#D55E00", "#F0E442"
_WIDTH_MM = 150.0
#: Around the slide, left, right, top and bottom: ticks, title, label and legend.
_MARGINS_MM = (13.0, 5.0, 11.0, 17.0)


def draw_tiles(mask: TissueMask, tiles: pd.DataFrame, *, slide: str) -> Figure:
    """Draw a slide with its tissue's outline, the centres of its tiles, and pen marks.

    A line above it gives the shares that are blurred, folded or under pen.

    Parameters
    ----------
    mask
        Tissue, pen marks and overview.
    tiles
        x_px and y_px (level-0 centres), blur and fold.
    slide
        Its id, for the title.
    """
    step = mask.overview_step
    overview = mask.overview.copy()
    height, width = overview.shape[:2]
    left, right, top, bottom = _MARGINS_MM
    inside = _WIDTH_MM - left - right
    inside = np.array([inside, np.clip(inside * height / width, 40, 195)])
    size_mm = inside + (left + right, top + bottom)
    fig = figure(width_mm=size_mm[0], height_mm=size_mm[1], placed=True)
    axes = fig.add_axes((*np.array([left, bottom]) / size_mm, *inside / size_mm))
    pen = mask.pen[::step, ::step]
    overview[pen] = [int(_PEN[place : place + 2], 16) for place in (1, 3, 5)]
    scale_um = mask.um_per_px / 1000
    extent = (0, mask.mask.shape[1] * scale_um, mask.mask.shape[0] * scale_um, 0)
    axes.imshow(overview, extent=extent, interpolation="antialiased")
    tissue = mask.mask[::step, ::step]
    if tissue.any() and not tissue.all():
        outline = np.pad(tissue.astype(np.float32), 1)
        x_mm, y_mm = ((np.arange(-1, size + 1) + 0.5) * step * scale_um for size in (width, height))
        axes.contour(x_mm, y_mm, outline, levels=[0.5], colors=_OUTLINE, linewidths=0.8)
    x_mm = tiles["x_px"] / mask.px_per_px[0] * scale_um
    y_mm = tiles["y_px"] / mask.px_per_px[1] * scale_um
    blurred = (tiles["blur"] < BLURRED).to_numpy()
    size = float(np.clip(4e4 / max(len(tiles), 1) / 10, 0.3, 6))
    for chosen, colour in ((~blurred, _TILE), (blurred, _BLURRED)):
        axes.scatter(x_mm[chosen], y_mm[chosen], s=size, c=colour, linewidths=0)
    axes.set(xlabel="mm", ylabel="mm", xlim=extent[:2], ylim=extent[2:])
    folded, n_pen = (tiles["tissue_fold"] > FOLDED).mean(), np.count_nonzero(mask.pen)
    marked = n_pen / max(1, int(n_pen + np.count_nonzero(mask.mask)))
    quality = f"{blurred.mean():.1%} of tiles blurred, {folded:.1%} folded, {marked:.1%} under pen"
    pieces = "1 piece" if mask.n_fragments == 1 else f"{mask.n_fragments} pieces"
    axes.set_title(f"{slide}: {mask.tissue_mm2:.1f} mm² tissue, {pieces}\n{quality}")
    axes.set_aspect("equal")
    entries = [
        Line2D([], [], color=_OUTLINE, lw=1, label="tissue"),
        *(
            Line2D([], [], color=colour, marker="o", ms=3, lw=0, label=f"{n} {what}")
            for colour, n, what in (
                (_TILE, (~blurred).sum(), "tiles"),
                (_BLURRED, blurred.sum(), "out of focus"),
            )
        ),
    ]
    if pen.any():
        entries.append(Line2D([], [], color=_PEN, marker="s", ms=4, lw=0, label="pen"))
    fig.legend(handles=entries, loc="lower center", ncols=len(entries))
    return fig


def draw_failure(slide: str, reason: str) -> Figure:
    """Return a figure with the reason why a slide cannot be used, in place of its image."""
    fig = figure(width_mm=150, height_mm=50)
    fig.text(0.03, 0.85, f"{slide}: not used", weight="bold", size=9, va="top")
    fig.text(0.03, 0.68, textwrap.fill(as_drawn(reason, most=800), 95), size=8, va="top")
    return fig
