"""Which slides have their figures in the report: a report of thousands would be gigabytes large."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

import pandas as pd

from histogep.slides.inventory import flag_slides

#: Figures that are drawn of every slide; those of spots are of sections only.
KINDS = ("tiles", "expression", "neighbourhoods", "cnv")


def choose_slides(slides: pd.DataFrame, predicted: pd.DataFrame | None, *, most: int) -> list[str]:
    """Return the slides whose figures are shown, in the order of the table.

    All sections, the first `most` other slides, and up to `most` flagged ones
    (`histogep.slides.inventory.flag_slides`): those that cannot be used, then those furthest from
    the training slides.

    Parameters
    ----------
    slides
        results/slides.tsv.
    predicted
        results/predicted_slides.tsv; None where no slide is predicted.
    most
        Of slides without spots.
    """
    sections = set(slides.loc[slides["role"] == "section", "slide"])
    others = [slide for slide in slides["slide"] if slide not in sections]
    far = pd.Series(float("inf"), index=pd.Index(others, dtype=object))
    if predicted is not None:
        known = predicted.set_index("slide")["median_ood_score"].astype(float)
        far.loc[far.index.isin(known.index)] = known.reindex(far.index).dropna()
    flags = flag_slides(slides, predicted)
    flagged = [slide for slide in others if flags[slide]]
    flagged.sort(key=lambda slide: -far[slide])
    chosen = sections | set(others[:most]) | set(flagged[:most])
    return [slide for slide in slides["slide"] if slide in chosen]


def copy_figures(chosen: Collection[str], figures: Iterable[str | Path], folder: str | Path) -> int:
    """Copy the figures of chosen slides into a folder; return how many.

    Parameters
    ----------
    chosen
        Their ids.
    figures
        {slide}.png of all slides.
    folder
        Where to write them; made if need be.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    wanted, copied = set(chosen), 0
    for figure in map(Path, figures):
        if figure.name.removesuffix(".png") in wanted:
            shutil.copyfile(figure, folder / figure.name)
            copied += 1
    return copied
