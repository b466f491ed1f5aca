"""Figures of the evaluation: genes against null and ceiling, maps beside truth, tumour maps."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from histogep.evaluation.held_out import HeldOut
from histogep.evaluation.measured import Measured
from histogep.evaluation.scorecards import Evaluation
from histogep.evaluation.tumour_scores import known_cells
from histogep.report.style import (
    CATEGORY_COLOURS,
    CEILING_COLOUR,
    LABEL_COLOURS,
    NULL_COLOUR,
    as_drawn,
    draw_discs,
    figure,
)
from histogep.stats.scores import pearson

_MOST_SECTIONS = 6
#: Sentences in place of a figure, and the letters of the usual font that an inch holds.
_MOST_SENTENCES, _LETTERS_PER_INCH = 4, 13
_TITLES = {
    "patient_cv": "patient_cv: tissue only, new patients",
    "published": "published: whole grid, new sections",
}


def plot_genes(evaluation: Evaluation) -> Figure:
    """Draw the held-out correlation of every gene beside its null and its ceiling, per card.

    Violins over genes of every model, of the noise ceiling and of the null: under published the outline's
    score, under patient_cv the 95 % bound of unrelated maps. The lines are medians.
    """
    table = evaluation.genes
    protocols = [p for p in _TITLES if len(table) and (table["protocol"] == p).any()]
    fig = figure(width_mm=180, height_mm=95)
    if not protocols:
        return _say(fig, "No expression model was evaluated.")
    counts = [table.loc[table["protocol"] == p, "model"].nunique() + 2 for p in protocols]
    axes = fig.subplots(1, len(protocols), sharey=True, squeeze=False, width_ratios=counts)[0]
    for ax, protocol in zip(axes, protocols, strict=True):
        part = table[table["protocol"] == protocol]
        order = part.groupby("model")["pearson"].mean().sort_values(ascending=False).index
        reference = part[part["model"] == order[0]]
        groups = [("ceiling", reference["ceiling"], CEILING_COLOUR)]
        groups += [
            (model, part.loc[part["model"] == model, "pearson"], CATEGORY_COLOURS[i % 8])
            for i, model in enumerate(order)
        ]
        name = "null,\n95 %\nbound" if protocol == "patient_cv" else "null:\ntissue\nmask"
        null = "null_upper" if protocol == "patient_cv" else "null"
        groups.append((name, reference[null], NULL_COLOUR))
        for place, (_, values, colour) in enumerate(groups):
            _violin(ax, place, values.dropna().to_numpy(), colour)
        labels = []
        for label, _, _ in groups:
            flags = part.loc[part["model"] == label, "predictable"]
            told = f"{label}\n{int(flags.sum())} of {len(flags)}\npredictable"
            labels.append(told if len(flags) and protocol == "patient_cv" else label)
        ax.set_xticks(range(len(groups)), labels, fontsize=7 if len(groups) < 6 else 5.5)
        ax.axhline(0, color="#BBBBBB", lw=0.7, zorder=0)
        ax.set_title(_TITLES[protocol], fontsize=8)
    axes[0].set_ylabel("Pearson r per gene (mean over patients)")
    return fig


def plot_maps(
    evaluation: Evaluation, sections: Sequence[HeldOut], measured: Mapping[str, Measured]
) -> Figure:
    """Draw measured beside predicted expression of one held-out section, in place on the lattice.

    The section is the one whose score is the median of all, the genes are the best, the median and
    the worst by held-out correlation over all sections: none was picked by eye.
    """
    fig = figure(width_mm=180, height_mm=115)
    genes = evaluation.genes
    held_out = [s for s in sections if s.protocol == "patient_cv" and s.model == evaluation.best]
    if evaluation.best is None or not held_out:
        return _say(fig, "No expression model was evaluated on held-out patients.")
    table = evaluation.sections
    table = table[(table["protocol"] == "patient_cv") & (table["model"] == evaluation.best)]
    ranked_sections = table.sort_values(["pearson", "slide"])["slide"].tolist()
    slide = ranked_sections[len(ranked_sections) // 2]
    section = next(s for s in held_out if s.slide == slide).tissue
    scores = genes[(genes["protocol"] == "patient_cv") & (genes["model"] == evaluation.best)]
    scores = scores[scores["gene"].isin(section.genes)].dropna(subset="pearson")
    ranked = scores.sort_values(["pearson", "gene"], ascending=[False, True])
    if ranked.empty:
        return _say(fig, "No gene varies in the held-out sections.")
    last = len(ranked) - 1
    here = pearson(section.predicted, section.truth)
    axes = fig.subplots(2, 3, squeeze=False)
    for column, (word, rank) in enumerate((("best", 0), ("median", last // 2), ("worst", last))):
        gene = ranked["gene"].iloc[rank]
        at = section.genes.index(gene)
        overall = ranked["pearson"].iloc[rank]
        for ax, values, told in (
            (axes[0, column], section.truth[:, at], "measured"),
            (axes[1, column], section.predicted[:, at], "predicted"),
        ):
            drawn = _cells(ax, section, measured[slide], values)
            bar = fig.colorbar(drawn, ax=ax, shrink=0.75, pad=0.02)
            bar.ax.tick_params(labelsize=6)
            ax.set_ylabel(told if column == 0 else "")
        axes[0, column].set_title(f"{word}: {as_drawn(gene, most=30)}")
        axes[1, column].set_title(
            f"r here {here[at]:.2f}, over patients {overall:.2f}", fontsize=7, fontweight="normal"
        )
    fig.suptitle(
        f"{evaluation.best}, section {slide} of held-out patient {section.patient} "
        "(log1p counts per 10,000; each map on its own scale)",
        fontsize=8,
    )
    return fig


def plot_tumour(
    sections: Sequence[HeldOut],
    measured: Mapping[str, Measured],
    tumour: pd.DataFrame,
    *,
    labels: str = "",
    warnings: Sequence[str] = (),
) -> Figure:
    """Draw labels and predicted tumour probability of held-out sections, and their ROC curves.

    Parameters
    ----------
    sections, measured
        Held-out predictions, and what was measured there.
    tumour
        The table of an `Evaluation`.
    labels
        Whose labels they are, in words.
    warnings
        Warnings of jobs that decide the tumour map.
    """
    told = [*([f"Labels: {labels}."] if labels else []), *warnings]
    maps = [s.tissue for s in sections if s.task == "tumour" and s.protocol == "patient_cv"]
    absent = sorted({s.absent for s in maps if s.absent})
    maps = [s for s in maps if not s.absent]
    if not maps:
        lines = [*(absent or ["No tumour model was evaluated."]), *told]
        return _say(figure(width_mm=180, height_mm=70), "\n".join(lines))
    patient_cv = tumour[tumour["protocol"] == "patient_cv"]
    means = patient_cv.groupby("model")["auroc"].mean().reindex(sorted({s.model for s in maps}))
    model = means.index[means.fillna(-1).argmax()]
    maps = sorted((s for s in maps if s.model == model), key=lambda section: section.slide)
    rows = patient_cv[patient_cv["model"] == model]
    area = rows.set_index("slide")["auroc"]
    shown = maps[:_MOST_SECTIONS]
    width = max(110, 33 * len(shown) + 62)
    lines = [
        part for line in told[:_MOST_SENTENCES] for part in textwrap.wrap(line, int(0.8 * width))
    ]
    fig = figure(width_mm=width, height_mm=82 + 4 * len(lines))
    if lines:
        fig.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=6.5)
    left, right = fig.subfigures(1, 2, width_ratios=[max(1.6, 0.55 * len(shown)), 1])
    axes = left.subplots(2, len(shown), squeeze=False)
    drawn = None
    for column, section in enumerate(shown):
        truth = section.truth[:, 0]
        names = np.where(
            np.isnan(truth), "undetermined", np.where(truth > 0.5, "malignant", "non-malignant")
        )
        colours = [LABEL_COLOURS[name] for name in names]
        _cells(axes[0, column], section, measured[section.slide], colours=colours)
        drawn = _cells(
            axes[1, column],
            section,
            measured[section.slide],
            section.predicted[:, 0],
            limits=(0, 1),
        )
        axes[0, column].set_title(section.slide)
        axes[1, column].set_title(
            f"AUROC {area[section.slide]:.2f}"
            if area[section.slide] == area[section.slide]
            else "no label"
            if np.isnan(truth).all()
            else "one class",
            fontsize=7,
            fontweight="normal",
        )
    axes[0, 0].set_ylabel("label")
    axes[1, 0].set_ylabel("probability")
    bar = left.colorbar(drawn, ax=axes[1, :], shrink=0.7, pad=0.02)
    bar.ax.tick_params(labelsize=6)
    for name in ("malignant", "non-malignant", "undetermined"):
        axes[0, 0].plot([], [], "o", ms=4, color=LABEL_COLOURS[name], label=name)
    left.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    _roc(right.subplots(), maps, area)
    return fig


def _roc(ax: Axes, maps: Sequence[HeldOut], area: pd.Series) -> None:
    ax.plot([0, 1], [0, 1], "--", color=NULL_COLOUR, lw=0.8)
    patients = sorted({section.patient for section in maps})
    told = set()
    for section in maps:
        scored, truth = known_cells(section)
        if not 0 < (truth > 0.5).sum() < len(truth):
            continue
        wrong, right, _ = roc_curve(truth > 0.5, scored.predicted[:, 0])
        ax.plot(
            wrong,
            right,
            lw=1.1,
            color=CATEGORY_COLOURS[patients.index(section.patient) % 8],
            label=None if section.patient in told or len(patients) > 8 else section.patient,
        )
        told.add(section.patient)
    ax.set(
        xlabel="false positive rate",
        ylabel="true positive rate",
        aspect="equal",
        # In two lines: the panel is narrow.
        title=f"{maps[0].model}\nmean AUROC {area.mean():.3f}",
    )
    if ax.get_legend_handles_labels()[0]:
        # Below the panel, where no curve runs, and few to a line, as it is narrow.
        ax.figure.legend(
            title="patient", loc="outside lower center", ncols=3, handlelength=1.2, columnspacing=1
        )


def _violin(ax: Axes, place: int, values: np.ndarray, colour: str) -> None:
    if len(values) == 0:
        return
    # A density needs spread; equal values are a line.
    if len(values) > 2 and np.ptp(values) > 1e-6:
        body = ax.violinplot(values, [place], widths=0.8, showextrema=False)["bodies"][0]
        body.set(facecolor=colour, edgecolor="none", alpha=0.35)
    offset = 0.16 * np.sin(np.arange(len(values)) * 2.399)
    ax.plot(place + offset, values, ".", ms=1.6, color=colour, alpha=0.7, mew=0)
    middle = float(np.median(values))
    ax.plot([place - 0.3, place + 0.3], [middle, middle], color=colour, lw=1.6)
    ax.annotate(f"{middle:.2f}", (place + 0.32, middle), fontsize=6.5, color=colour, va="center")


def _cells(
    ax: Axes,
    section: HeldOut,
    measured: Measured,
    values: np.ndarray | None = None,
    *,
    colours: Sequence[str] | None = None,
    limits: tuple[float, float] | None = None,
) -> EllipseCollection:
    """Draw positions as discs in place on the lattice."""
    x_um, y_um = measured.lattice.centres_um(section.row, section.col)
    size_um = measured.lattice.pitch_um
    return draw_discs(
        ax, x_um, y_um, size_um=size_um, values=values, colours=colours, limits=limits
    )


def _say(fig: Figure, text: str) -> Figure:
    """Write sentences, one a line, in lines that the figure holds; the first ones of many."""
    lines = text.split("\n")
    if len(lines) > _MOST_SENTENCES:
        lines[_MOST_SENTENCES:] = [f"and {len(lines) - _MOST_SENTENCES} more like these"]
    width = int(fig.get_figwidth() * _LETTERS_PER_INCH)
    fig.text(
        0.5,
        0.5,
        "\n".join(textwrap.fill(line, width, break_on_hyphens=False) for line in lines),
        ha="center",
        va="center",
    )
    return fig
