"""Figures of copy number: spots by genome, and clones of a cohort by chromosome arm."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING

import anndata
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from histogep.cnv.clones import REFERENCE, UNASSIGNED
from histogep.cnv.controls import COPY_NUMBER, FAIL, PASS
from histogep.cnv.reference import RANKED
from histogep.cnv.slide import chromosome_starts
from histogep.inputs.genome import order_arms
from histogep.lattice import Lattice
from histogep.report.style import (
    CATEGORY_COLOURS,
    DIVERGING_MAP,
    LABEL_COLOURS,
    NULL_COLOUR,
    as_drawn,
    figure,
)

if TYPE_CHECKING:  # a slide's figure need not wait for scipy.stats
    from histogep.cnv.cohort import SlideProfile
    from histogep.cnv.subtypes import Subtypes

_REFERENCE_COLOUR = LABEL_COLOURS["non-malignant"]
_UNASSIGNED_COLOUR = LABEL_COLOURS["undetermined"]
#: Size of a slide's figure, and in it the left, bottom, width and height of strip, heatmap, colour
#: bar, map and calls.
_PROFILE_MM = (210.0, 105.0)
_BOXES_MM = (
    (7, 26, 3.5, 69), (12, 26, 119, 69), (50, 11, 42, 2.2), (139, 52, 36, 43), (139, 4, 68, 36),
)  # fmt: skip
#: Clones take the colours that the reference does not have.
_CLONE_COLOURS = [c for c in CATEGORY_COLOURS if c != _REFERENCE_COLOUR]

#: Slides whose subtypes are drawn on the tissue, and how many of them stand side by side.
_MOST_MAPS, _MAPS_A_ROW = 60, 6


def profile_figure(result: anndata.AnnData, arms: pd.DataFrame) -> Figure:
    """Return spots by genome, the reference on top and then clone by clone, beside their map.

    Parameters
    ----------
    result
        Copy number of a slide (`histogep.cnv.slide.profile_slide`).
    arms
        Its table of arms: what is gained or lost is written under the map.
    """
    lattice = Lattice.from_settings(result.uns["lattice"])
    slide, name = result.uns["slide"], result.uns["name"]
    kind = "measured" if result.uns["measured"] else "predicted"
    if result.uns["refused"]:
        fig = figure(width_mm=180, height_mm=45)
        text = fill(as_drawn(f"No profile: {result.uns['refused']}", most=600), 110)
        fig.text(0.02, 0.92, f"{slide}: {name}, {kind} expression", weight="bold", va="top")
        fig.text(0.02, 0.7, text, va="top")
        return fig
    clone = result.obs["clone"].astype(str).to_numpy()
    groups = [REFERENCE, *sorted(set(clone) - {REFERENCE, UNASSIGNED}, key=int)]
    colours = _group_colours(groups)
    word = _word(name)
    rows = np.concatenate([_ordered(result, np.flatnonzero(clone == group)) for group in groups])
    fig = figure(width_mm=_PROFILE_MM[0], height_mm=_PROFILE_MM[1], placed=True)
    strip, heat, below, tissue, told = (
        fig.add_axes(tuple(np.array(box) / (*_PROFILE_MM, *_PROFILE_MM))) for box in _BOXES_MM
    )
    code = np.concatenate([[i] * int((clone == g).sum()) for i, g in enumerate(groups)])
    strip.imshow(
        code[:, np.newaxis],
        aspect="auto",
        interpolation="nearest",
        cmap=ListedColormap([colours[g] for g in groups]),
        vmin=-0.5,
        vmax=len(groups) - 0.5,
    )
    strip.set_xticks([])
    edges = np.cumsum([0, *[(clone == group).sum() for group in groups]])
    # A name is as long as a fifth of the strip; those of narrower bands stand in the map's legend.
    wide = [i for i, rest in enumerate(np.diff(edges)) if rest >= 0.2 * edges[-1]]
    strip.set_yticks(
        [(edges[i] + edges[i + 1] - 1) / 2 for i in wide],
        [f"{_shown(groups[i], word)} ({np.diff(edges)[i]})" for i in wide],
        rotation=90,
        va="center",
    )
    strip.tick_params(length=0)
    values = np.asarray(result.obsm["X_cnv"])[rows]
    limit = _limit(values)
    image = heat.imshow(
        values, aspect="auto", interpolation="nearest", cmap=DIVERGING_MAP, vmin=-limit, vmax=limit
    )
    for edge in edges[1:-1]:
        heat.axhline(edge - 0.5, color="black", linewidth=0.6)
    starts = chromosome_starts(result)
    _chromosomes(heat, list(starts), [*starts.values(), values.shape[1]])
    title = _title(slide, name, kind)
    if result.uns["reference"] == RANKED:
        title += "\nlow confidence: the labels give no contrast, the ends of the marker score do"
    heat.set_title(title)
    bar = fig.colorbar(image, cax=below, orientation="horizontal")
    bar.set_label("log ratio to the reference spots, within the noise = 0")
    _map(tissue, result, clone, groups, colours, lattice, word)
    _calls(told, result, arms, word)
    return fig


def subtype_figure(subtypes: Subtypes, *, cohort: str) -> Figure:
    """Return the clones of a cohort by chromosome arm, grouped into subtypes.

    Parameters
    ----------
    subtypes
        Subtypes of the cohort.
    cohort
        Its name.
    """
    clones = subtypes.clones
    title = f"Cohort {cohort}: {'CNV' if subtypes.name == COPY_NUMBER else subtypes.name} profiles"
    if not len(clones):
        fig = figure(width_mm=180, height_mm=40)
        fig.text(0.02, 0.9, title, weight="bold", va="top")
        refused = subtypes.controls["note"].iloc[0] if len(subtypes.controls) else "no slides"
        fig.text(
            0.02,
            0.65,
            fill(as_drawn(f"No slide has a profile; the first: {refused}", most=600), 110),
            va="top",
        )
        return fig
    fixed = ("slide", "patient", "clone", "measured", "subtype", "n_spots")
    arms = order_arms([column for column in clones.columns if column not in fixed])
    values = clones[arms].to_numpy(np.float64)
    for kind in set(clones["measured"]):
        rows = (clones["measured"] == kind).to_numpy()
        values[rows] /= max(float(np.sqrt(np.mean(values[rows] ** 2))), 1e-12)
    height = float(np.clip(35 + 3.4 * len(clones), 60, 260))
    fig = figure(width_mm=200, height_mm=height)
    grid = fig.add_gridspec(1, 2, width_ratios=[0.02, 1])
    strip, heat = fig.add_subplot(grid[0, 0]), fig.add_subplot(grid[0, 1])
    names = sorted(set(clones["subtype"]))
    colours = _subtype_colours(names)
    code = clones["subtype"].map({name: i for i, name in enumerate(names)}).to_numpy()
    strip.imshow(
        code[:, np.newaxis],
        aspect="auto",
        interpolation="nearest",
        cmap=ListedColormap(list(colours.values())),
        vmin=-0.5,
        vmax=len(names) - 0.5,
    )
    strip.set_xticks([])
    strip.set_yticks(range(len(clones)))
    small = 7 if len(clones) <= 60 else 4
    strip.set_yticklabels(
        [
            f"{row.slide} {_word(subtypes.name)} {row.clone} ({row.n_spots})"
            for row in clones[["slide", "clone", "n_spots"]].itertuples()
        ],
        fontsize=small,
    )
    strip.tick_params(length=0)
    limit = _limit(values)
    image = heat.imshow(
        values, aspect="auto", interpolation="nearest", cmap=DIVERGING_MAP, vmin=-limit, vmax=limit
    )
    heat.set_yticks([])
    heat.set_xticks(range(len(arms)), arms, rotation=90, fontsize=7)
    chromosomes = [arm.rstrip("pq") for arm in arms]
    for i in range(1, len(arms)):
        if chromosomes[i] != chromosomes[i - 1]:
            heat.axvline(i - 0.5, color="#555555", linewidth=0.4)
    heat.set_title(title)
    handles = [Patch(color=colour, label=name) for name, colour in colours.items()]
    heat.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1), title="subtype")
    bar = fig.colorbar(image, ax=heat, location="bottom", shrink=0.4, aspect=40, pad=0.02)
    bar.set_label("mean log ratio by arm, in root mean squares of its kind (measured or predicted)")
    return fig


def subtype_maps(subtypes: Subtypes, profiles: Sequence[SlideProfile], *, cohort: str) -> Figure:
    """Return the spots of every slide on their places, in the colours of their subtypes.

    Parameters
    ----------
    subtypes
        Subtypes of the cohort.
    profiles
        Its slides; of more than 60 the first are drawn.
    cohort
        Its name.
    """
    shown = profiles[:_MOST_MAPS]
    n_cols = min(len(shown), _MAPS_A_ROW)
    n_rows = -(-len(shown) // n_cols)
    fig = figure(width_mm=200, height_mm=min(34 + 30 * n_rows, 280))
    title = f"Cohort {cohort}: {_kind(subtypes)} on the tissue"
    if len(shown) < len(profiles):
        title += f", {len(shown)} of {len(profiles)} slides"
    fig.suptitle(title, x=0.01, ha="left", weight="bold")
    colours = _subtype_colours(sorted(set(subtypes.clones["subtype"])))
    kinds = colours | {REFERENCE: _REFERENCE_COLOUR, UNASSIGNED: _UNASSIGNED_COLOUR}
    own = subtypes.spots.set_index(["slide", "spot"])["subtype"]
    for i, profile in enumerate(shown):
        axes = fig.add_subplot(n_rows, n_cols, i + 1)
        spots = profile.spots
        kind = np.where(spots["reference"].to_numpy(bool), REFERENCE, UNASSIGNED).astype(object)
        if profile.slide in own.index:
            mine = own.loc[profile.slide].reindex(spots.index.astype(str)).to_numpy(object)
            kind = np.where(pd.isna(mine), kind, mine)
        x_um, y_um = spots["x_um"].to_numpy(), spots["y_um"].to_numpy()
        span = max(np.ptp(x_um), np.ptp(y_um), profile.pitch_um) / profile.pitch_um
        axes.scatter(
            x_um,
            y_um,
            s=float(np.clip((60 / span) ** 2, 0.1, 20)),
            c=[kinds[k] for k in kind],
            lw=0,
        )
        axes.set_aspect("equal")
        axes.invert_yaxis()
        axes.axis("off")
        note = "\nno profile" if profile.refused else ""
        axes.set_title(f"{profile.slide} ({profile.patient}){note}", fontsize=6, weight="normal")
    handles = [Patch(color=colour, label=name) for name, colour in kinds.items()]
    fig.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=7)
    return fig


def agreement_figure(agreement: pd.DataFrame, arms: pd.DataFrame) -> Figure:
    """Return measured above predicted arms of each section, and their correlation with its nulls.

    Parameters
    ----------
    agreement, arms
        Tables of `histogep.evaluation.copy_number.compare_section` over all sections.
    """
    shown = agreement[agreement["r"].notna()].reset_index(drop=True)
    if not len(shown):
        fig = figure(width_mm=180, height_mm=40)
        fig.text(0.02, 0.9, "No section allows a comparison", weight="bold", va="top")
        fig.text(
            0.02,
            0.65,
            fill(as_drawn(f"The first: {agreement['note'].iloc[0]}", most=600), 110),
            va="top",
        )
        return fig
    names = [f"{row.slide} {row.contrast}" for row in shown.itertuples()]
    columns = order_arms(arms["arm"])
    wide = arms.pivot_table(
        index=["slide", "contrast"], columns="arm", values=["measured", "predicted"]
    )
    values = np.full((2 * len(shown), len(columns)), np.nan)
    for i, row in enumerate(shown.itertuples()):
        for j, kind in enumerate(("measured", "predicted")):
            own = wide.loc[(row.slide, row.contrast), kind].reindex(columns).to_numpy(np.float64)
            # What all arms share says how deep the genes of the panel were read, not where they lie.
            own -= np.nanmedian(own)
            values[2 * i + j] = own / max(float(np.sqrt(np.nanmean(own**2))), 1e-12)
    fig = figure(width_mm=200, height_mm=float(np.clip(40 + 6 * len(shown), 60, 260)))
    heat, dots = fig.subplots(1, 2, width_ratios=[1, 0.42])
    limit = _limit(values[~np.isnan(values)])
    image = heat.imshow(
        values, aspect="auto", interpolation="nearest", cmap=DIVERGING_MAP, vmin=-limit, vmax=limit
    )
    for i in range(1, len(shown)):
        heat.axhline(2 * i - 0.5, color="black", linewidth=0.6)
    heat.set_yticks([2 * i + 0.5 for i in range(len(shown))], names, fontsize=7)
    heat.set_xticks(range(len(columns)), columns, rotation=90, fontsize=6)
    heat.tick_params(length=0)
    heat.set_title("Arms: measured above predicted")
    bar = fig.colorbar(image, ax=heat, location="bottom", shrink=0.5, aspect=40, pad=0.02)
    bar.set_label("mean log ratio less the median arm, in root mean squares of the row")
    at = np.arange(len(shown))
    for null, colour, label in (
        ("arms", _UNASSIGNED_COLOUR, "arms shuffled, mean to 95 %"),
        ("genes", NULL_COLOUR, "genes shuffled, mean to 95 %"),
    ):
        low, high = (shown[f"null_{null}_{end}"].astype(float) for end in ("mean", "q95"))
        dots.hlines(at, low, high, color=colour, linewidth=5, label=label)
    passed = (shown["verdict"] == PASS).to_numpy()
    for mask, face, label in (
        (passed, "black", "above both"),
        (~passed, "white", "not above both"),
    ):
        if mask.any():
            r = shown.loc[mask, "r"].astype(float)
            dots.scatter(r, at[mask], s=22, color=face, edgecolors="black", label=label, zorder=3)
    dots.set_ylim(len(shown) - 0.5, -0.5)
    dots.set_xlim(min(-0.3, float(shown["r"].min()) - 0.1), 1.05)
    dots.set_yticks([])
    dots.axvline(0, color="#555555", linewidth=0.4)
    dots.set_xlabel("correlation over arms")
    dots.set_title("Agreement beside its nulls")
    fig.legend(loc="outside lower right", ncols=2, fontsize=6)
    return fig


def _title(slide: str, name: str, kind: str) -> str:
    if name == COPY_NUMBER:
        return f"{slide}: copy number (CNV) from {kind} expression"
    why = "no labels of tumour" if kind == "measured" else "controls failed"
    return f"{slide}: expression subtype from {kind} expression ({why}: not CNV)"


def _kind(subtypes: Subtypes) -> str:
    """Return what the subtypes of a cohort are called."""
    return "CNV subtypes" if subtypes.name == COPY_NUMBER else f"{subtypes.name}s"


def _subtype_colours(names: list[str]) -> dict[str, str]:
    """Return the colour of each subtype, none of them that of the reference."""
    return {name: _CLONE_COLOURS[i % len(_CLONE_COLOURS)] for i, name in enumerate(names)}


def _word(name: str) -> str:
    """Return what the groups of spots are called: clones only where the result is copy number."""
    return "clone" if name == COPY_NUMBER else "group"


def _shown(group: str, word: str) -> str:
    """Return the name of a group of spots as a figure shows it."""
    return f"{word} {group}" if group.isdigit() else group


def _group_colours(groups: list[str]) -> dict[str, str]:
    colours = {REFERENCE: _REFERENCE_COLOUR, UNASSIGNED: _UNASSIGNED_COLOUR}
    clones = [group for group in groups if group not in colours]
    return colours | {g: _CLONE_COLOURS[i % len(_CLONE_COLOURS)] for i, g in enumerate(clones)}


def _ordered(result: anndata.AnnData, rows: np.ndarray) -> np.ndarray:
    """Return rows by their score, so that like lies by like and the order is fixed."""
    score = result.obs["cnv_score"].to_numpy()[rows]
    return rows[np.argsort(-score, kind="stable")]


def _limit(values: np.ndarray) -> float:
    nonzero = np.abs(values[values != 0])
    return float(np.quantile(nonzero, 0.98)) if len(nonzero) else 1.0


def _chromosomes(axes: Axes, names: list[str], edges: list[int]) -> None:
    """Draw the boundaries of the chromosomes and name them in three staggered rows."""
    for edge in edges[1:-1]:
        axes.axvline(edge - 0.5, color="#555555", linewidth=0.4)
    middles = [(a + b - 1) / 2 for a, b in zip(edges, edges[1:], strict=False)]
    labels = [name.removeprefix("chr") for name in names]
    labels = ["\n" * (i % 3) + label for i, label in enumerate(labels)]
    axes.set_xticks(middles, labels, fontsize=6)
    axes.tick_params(length=0)
    axes.set_yticks([])


def _map(
    axes: Axes,
    result: anndata.AnnData,
    clone: np.ndarray,
    groups: list[str],
    colours: dict[str, str],
    lattice: Lattice,
    word: str,
) -> None:
    x_um, y_um = lattice.centres_um(result.obs["row"].to_numpy(), result.obs["col"].to_numpy())
    span = max(np.ptp(x_um), np.ptp(y_um), lattice.pitch_um) / lattice.pitch_um
    size = float(np.clip((110 / span) ** 2, 0.3, 30))
    present = [*groups, UNASSIGNED] if (clone == UNASSIGNED).any() else groups
    for group in present:
        spots = clone == group
        axes.scatter(
            x_um[spots] / 1000, y_um[spots] / 1000, s=size, color=colours[group], linewidths=0
        )
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.set_xlabel("mm")
    axes.set_title(f"{word.capitalize()}s on the tissue")
    handles = [
        Patch(color=colours[g], label=f"{_shown(g, word)} ({(clone == g).sum()})") for g in present
    ]
    axes.legend(handles=handles, fontsize=6, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _calls(axes: Axes, result: anndata.AnnData, arms: pd.DataFrame, word: str) -> None:
    """Write the arms that each clone gained and lost, and which controls failed."""
    axes.axis("off")
    lines = []
    # The table's words are those of its name, as this figure's are.
    calls = ("gain", "loss") if word == "clone" else ("higher", "lower")
    for clone, table in arms.groupby(word):
        for call, sign in zip(calls, "+-", strict=True):
            found = [f"{sign}{arm}" for arm in table.loc[table["call"] == call, "arm"]]
            if found:
                lines.append(fill(f"{word} {clone}: {' '.join(found)}", 44))
        if (table["call"] == "neutral").all():
            lines.append(f"{word} {clone}: no arm called")
    controls = result.uns["controls"]
    failed = controls.loc[controls["verdict"] == FAIL, "control"].tolist()
    lines.append(fill(f"controls failed: {', '.join(failed) or 'none'}", 44))
    axes.text(0, 1, "\n".join(lines), va="top", fontsize=6, transform=axes.transAxes)
