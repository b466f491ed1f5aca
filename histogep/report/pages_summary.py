"""The first pages of a report: what the jobs warned of, and which slides there are."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from histogep.report.pages import Table, write_page


def write_warnings_page(warned: pd.DataFrame, path: str | Path) -> None:
    """Write results/warnings.html.

    Parameters
    ----------
    warned
        The table of `histogep.workflow.warnings_of_jobs.list_warnings`.
    path
        Where to write.
    """
    deciding = warned["decides"] != ""
    tables = []
    if deciding.any():
        shown = warned.loc[deciding, ["decides", "rule", "slide", "job", "warning", "n"]]
        tables.append(Table(shown, heading="What decides a result", headers={"n": "times"}))
    if not deciding.all():
        shown = warned.loc[~deciding, ["rule", "slide", "job", "warning", "n"]]
        tables.append(Table(shown, heading="All others", headers={"n": "times"}))
    total = int(warned["n"].sum())
    write_page(
        path,
        title=f"Warnings: {total}, of which {int(warned.loc[deciding, 'n'].sum())} decide a result",
        tables=tables,
        notes=[
            "A warning decides a result where a reader would otherwise take a number or a map for what "
            "it is not, or look for one that is not there. `results/warnings.tsv` has the same table."
            if total
            else "No job warned of anything."
        ],
    )


def write_slides_page(listed: pd.DataFrame, path: str | Path) -> None:
    """Write results/slides.html.

    Parameters
    ----------
    listed
        The table of `histogep.slides.inventory.list_slides`.
    path
        Where to write.
    """
    shares = ("share_pen", "share_blurred", "share_folded")
    n_used = int((listed["status"] == "used").sum())
    shown = listed if n_used < len(listed) else listed.drop(columns="reason")
    if not (listed["deciding"] != "").any():
        shown = shown.drop(columns="deciding")
    write_page(
        path,
        title=f"Slides: {n_used} of {len(listed)} are used",
        tables=[
            Table(
                shown,
                formats=dict.fromkeys(shares, "{:.1%}") | {"tissue_mm2": "{:.1f}"},
                bars=dict.fromkeys(shares, (0.0, 1.0)),
                bar_colours=dict.fromkeys(shares, "#f3c9a5"),
                headers={name: name.split("_")[-1] for name in shown}
                | {"mpp": "um/px", "tissue_mm2": "tissue, mm²"},
            )
        ],
        notes=[
            "A section has spots and trains the model, a slide is predicted. `warnings` are those of "
            "reading, tiling and labelling a slide, `deciding` the texts of those that decide a "
            "result; `results/warnings.tsv` has the warnings of all jobs. The share of pen is of "
            "pen and tissue together, those of blurred and folded tiles are of the tiles. Sharpness "
            "is the variance of the Laplacian of the median tile: compare it between slides of one "
            "scanner. `results/slides.tsv` has the same table."
        ],
    )
