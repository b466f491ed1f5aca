"""Figures of enrichment: gene sets by their normalised score, and their running sums."""

from __future__ import annotations

import textwrap

import anndata as ad
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from histogep.enrichment.gsea import running_sum
from histogep.report.style import CATEGORY_COLOURS, NULL_COLOUR, as_drawn, draw_discs, figure

#: What a reader must know of every p and FDR where patients are not permuted.
CAVEAT = "genes taken as independent: no evidence of an association across patients"
_PERMUTED = "FDR against outcomes permuted over {n:.0f} patients"
_MIN_FDR = 1e-10
_MAX_NAME, _MAX_TITLE, _MAX_TEXT = 46, 120, 600


def dot_plot(
    gsea: pd.DataFrame, *, title: str, n_ranked: int, n_sets: int = 12, reason: str = ""
) -> Figure:
    """Draw the gene sets with the smallest p of each collection.

    FDR is that over permuted patients where there is one, else that of gseapy.

    Parameters
    ----------
    gsea
        From `histogep.enrichment.gsea.enrich`; an empty table gives a figure that says so.
    title
        What the genes are ranked by.
    n_ranked
        How many genes the ranking has.
    n_sets
        Gene sets per collection, at most.
    reason
        Why nothing was ranked, where nothing was, or which collections have nothing left.
    """
    if gsea.empty:
        fig = figure(width_mm=120, height_mm=40)
        axes = fig.subplots()
        axes.set_axis_off()
        message = f"No gene set has enough of its genes\namong the {n_ranked} ranked ones."
        message = "\n".join(textwrap.wrap(as_drawn(reason, most=_MAX_TEXT), 60)) or message
        axes.text(0.5, 0.5, message, ha="center", va="center", transform=axes.transAxes)
        axes.set_title(as_drawn(title, most=_MAX_TITLE))
        return fig
    gsea, caveat = _with_fdr(gsea)
    parts = [part.head(n_sets) for _, part in gsea.groupby("collection", sort=False)]
    rows = sum(map(len, parts))
    fig = figure(width_mm=165, height_mm=32 + 5.5 * rows + 6 * len(parts))
    all_axes = fig.subplots(
        len(parts), 1, squeeze=False, sharex=True, gridspec_kw={"height_ratios": [*map(len, parts)]}
    )[:, 0]
    strongest = max(2.0, float(-np.log10(gsea["shown"].clip(lower=_MIN_FDR).min())))
    for axes, part in zip(all_axes, parts, strict=True):
        part = part.sort_values(["nes", "gene_set"], kind="stable")
        y = np.arange(len(part))
        strength = -np.log10(part["shown"].clip(lower=_MIN_FDR))
        dots = axes.scatter(
            part["nes"],
            y,
            s=12 + 60 * np.sqrt(part["n_genes"] / gsea["n_genes"].max()),
            c=strength,
            cmap="viridis_r",
            vmin=0,
            vmax=strongest,
            edgecolors=["#000000" if fdr < 0.05 else "none" for fdr in part["shown"]],
            linewidths=0.9,
            zorder=3,
        )
        axes.hlines(y, 0, part["nes"], color="#DDDDDD", lw=1, zorder=1)
        axes.axvline(0, color=NULL_COLOUR, lw=0.8)
        axes.set_yticks(y, [f"{_short(r.gene_set)} ({r.n_genes})" for r in part.itertuples()])
        axes.tick_params(axis="y", labelsize=7)
        axes.set_ylim(-0.8, len(part) - 0.2)
        axes.set_title(str(part["collection"].iloc[0]), fontsize=8)
    below = ["", *textwrap.wrap(as_drawn(reason, most=_MAX_TEXT), 90)] if reason else []
    label = f"normalised enrichment score (outlined: FDR < .05; {n_ranked} genes)"
    all_axes[-1].set_xlabel("\n".join([label, caveat, *below]))
    fig.colorbar(dots, ax=list(all_axes), label="-log10 FDR", shrink=0.6, aspect=15)
    fig.suptitle(as_drawn(title, most=_MAX_TITLE), fontsize=9, fontweight="bold")
    return fig


def running_sums(
    ranking: pd.DataFrame,
    gsea: pd.DataFrame,
    gene_sets: dict[str, dict[str, list[str]]],
    *,
    title: str,
    n_sets: int = 6,
    reason: str = "",
) -> Figure:
    """Draw the running sums of the gene sets with the smallest p, their genes as ticks below.

    Parameters
    ----------
    ranking
        gene, score; the highest first.
    gsea
        From `histogep.enrichment.gsea.enrich` on that ranking.
    gene_sets
        Collection -> gene set -> genes.
    title
        What the genes are ranked by, as over the dot plot: what lies right there lies left here,
        where the highest rank stands.
    n_sets
        Gene sets over all collections, at most.
    reason
        As for `dot_plot`.
    """
    if gsea.empty:
        return dot_plot(gsea, title=title, n_ranked=len(ranking), reason=reason)
    gsea, caveat = _with_fdr(gsea)
    strongest = gsea.sort_values(["shown", "p", "gene_set"], kind="stable").head(n_sets)
    columns = min(3, len(strongest))
    lines = -(-len(strongest) // columns)
    fig = figure(width_mm=60 * columns, height_mm=14 + 46 * lines)
    cells = fig.add_gridspec(lines, columns)
    genes, scores = ranking["gene"].to_numpy(str), ranking["score"].to_numpy(float)
    place = np.arange(1, len(genes) + 1)
    for number, row in enumerate(strongest.itertuples()):
        grid = cells[divmod(number, columns)].subgridspec(2, 1, height_ratios=[5, 1], hspace=0)
        axes = fig.add_subplot(grid[0])
        ticks = fig.add_subplot(grid[1], sharex=axes)
        members = np.isin(genes, gene_sets[row.collection][row.gene_set])
        path = running_sum(scores, members)
        colour = CATEGORY_COLOURS[1] if row.nes > 0 else CATEGORY_COLOURS[0]
        axes.plot(place, path, color=colour, lw=1.2)
        axes.axhline(0, color=NULL_COLOUR, lw=0.8)
        axes.set_title(
            f"{_short(row.gene_set)}\nNES {row.nes:.2f}, FDR {row.shown:.2g}", fontsize=7
        )
        axes.tick_params(labelbottom=False, labelsize=6)
        ticks.vlines(place[members], 0, 1, color=colour, lw=0.5)
        ticks.set_yticks([])
        ticks.tick_params(labelsize=6)
    fdr = caveat if caveat != CAVEAT else f"FDR: {CAVEAT}"
    fig.supxlabel(f"rank of {len(genes)} genes\n{fdr}", fontsize=7)
    fig.suptitle(
        as_drawn(title.replace(": right,", ": left,"), most=_MAX_TITLE),
        fontsize=9,
        fontweight="bold",
    )
    return fig


def activity_maps(
    table: pd.DataFrame, maps: ad.AnnData, *, n_sets: int = 4, n_slides: int = 3
) -> Figure:
    """Draw the sets whose maps have most structure beyond that of random genes, on a few slides.

    Parameters
    ----------
    table, maps
        From `histogep.enrichment.activity.score_activity`; empty ones give a figure that says so.
    n_sets, n_slides
        Rows and columns at most; the slides are those with most tiles.
    """
    if table.empty:
        return dot_plot(table, title="Activity", n_ranked=0, reason="no gene set could be scored")
    mean = table.groupby(["collection", "gene_set"], sort=False)[["moran_i", "moran_null"]].mean()
    excess = (mean["moran_i"] - mean["moran_null"]).sort_values(ascending=False, kind="stable")
    sets = list(excess.index[:n_sets])
    slides = list(
        maps.obs["slide"].astype(str).value_counts().sort_index().nlargest(n_slides).index
    )
    fig = figure(width_mm=38 + 46 * len(slides), height_mm=10 + 44 * len(sets))
    cells = fig.subplots(len(sets), len(slides), squeeze=False)
    for number, (line, (collection, name)) in enumerate(zip(cells, sets, strict=True)):
        scores = maps[:, f"{collection}:{name}"].X.ravel()
        low, high = np.nanquantile(scores, [0.01, 0.99])
        for axes, slide in zip(line, slides, strict=True):
            here = (maps.obs["slide"] == slide).to_numpy()
            obs = maps.obs[here]
            discs = draw_discs(
                axes,
                obs["x_um"].to_numpy(),
                obs["y_um"].to_numpy(),
                size_um=float(obs["pitch_um"].iloc[0]),
                values=scores[here],
                limits=(low, high),
            )
            if number == 0:
                axes.set_title(slide)
        own, null = mean.loc[(collection, name)]
        words = [*textwrap.wrap(_short(name), 26), f"I {own:.2f}, random sets {null:.2f}"]
        line[0].set_ylabel("\n".join(words), fontsize=7)
        bar = fig.colorbar(discs, ax=list(line), shrink=0.7, label="score", pad=0.02)
        bar.ax.tick_params(labelsize=6)
    return fig


def _with_fdr(gsea: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Return the table with the FDR to show as `shown`, and what must be said of it."""
    tested = "fdr_patients" in gsea and gsea["fdr_patients"].notna().all()
    if not tested:
        return gsea.assign(shown=gsea["fdr"]), CAVEAT
    shown = gsea["fdr_patients"].astype(float)
    return gsea.assign(shown=shown), _PERMUTED.format(n=gsea["n_patients"].iloc[0])


def _short(name: str) -> str:
    name = name.removeprefix("HALLMARK_").replace("_", " ")
    return as_drawn(name, most=_MAX_NAME)
