"""Tables of all slides of a study (use, quality, status) and of all predicted slides.

The second table gives the share of tumour, and the distance to what the model was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from histogep.files import read_tsv, readable
from histogep.slides.same_file import SECTION

#: Metrics of a results/tiles/{slide}.quality.tsv that the table has, in its order.
METRICS = (
    *("mpp", "tissue_mm2", "n_fragments", "n_tiles", "share_pen", "share_blurred"),
    *("share_folded", "median_sharpness", "mean_haematoxylin", "mean_eosin"),
)
#: A slide of which more than this is under pen, blurred or folded is flagged.
MOST = 0.5
_SHARES = {"share_pen": "under pen", "share_blurred": "blurred", "share_folded": "folded"}
#: How many warnings the jobs gave that read, tiled and labelled a slide, and the texts of deciding ones.
WARNED = ("warnings", "deciding")
COLUMNS = ("slide", "patient", "cohort", "role", "status", "reason", *WARNED, *METRICS)
#: Of a predicted slide.
PREDICTED = (
    *("slide", "patient", "cohort", "n_tiles", "tumour_fraction", "median_ood_score"),
    *("out_of_distribution_fraction", "out_of_distribution", SECTION),
)


def list_slides(
    quality: Sequence[str | Path],
    *,
    slides: Sequence[str],
    patients: Sequence[str],
    cohorts: Sequence[str],
    sections: Sequence[str],
    failed: str | Path | None = None,
    warned: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Return one row per slide.

    Parameters
    ----------
    quality
        results/tiles/{slide}.quality.tsv of every slide.
    slides, patients, cohorts
        Of each, in the same order.
    sections
        The ids of those with spots.
    failed
        results/failed_slides.tsv; None where a bad slide stops the study, so that there is none.
    warned
        What the jobs of the slides warned of: columns slide, decides ("" for nothing), n, warning.

    Returns
    -------
    DataFrame
        Columns `COLUMNS`: `role` is section (with spots) or slide; `status` is used or left out,
        then with the `reason`. The shares are of the tissue (pen) and of the tiles; a slide that
        could not be read has no metrics but `n_tiles`, which is 0.
    """
    with_spots = set(sections)
    reasons: dict[str, str] = {}
    if failed is not None:
        table = read_tsv(failed, dtype=str, keep_default_na=False)
        reasons = dict(zip(table["slide"], table["reason"], strict=True))
    if warned is None:
        warned = pd.DataFrame(columns=["slide", "decides", "n", "warning"])
    counts = warned.groupby("slide")["n"].sum()
    deciding = warned[warned["decides"] != ""].groupby("slide")["warning"].agg("; ".join)
    rows = []
    for path, slide, patient, cohort in zip(quality, slides, patients, cohorts, strict=True):
        measured = read_tsv(path).set_index("metric")["value"]
        rows.append(
            {
                "slide": slide,
                "patient": patient,
                "cohort": cohort,
                "role": "section" if slide in with_spots else "slide",
                "status": "left out" if slide in reasons else "used",
                "reason": reasons.get(slide, ""),
                "warnings": int(counts.get(slide, 0)),
                "deciding": deciding.get(slide, ""),
                **{metric: measured.get(metric, float("nan")) for metric in METRICS},
            }
        )
    listed = pd.DataFrame(rows, columns=list(COLUMNS))
    whole = ["n_fragments", "n_tiles"]
    listed[whole] = listed[whole].astype("Int64")
    return listed


def flag_slides(slides: pd.DataFrame, predicted: pd.DataFrame | None) -> dict[str, list[str]]:
    """Return what is wrong with each slide, in words; nothing for most.

    Parameters
    ----------
    slides
        From `list_slides`.
    predicted
        From `list_predicted`; None where no slide is predicted.
    """
    flags: dict[str, list[str]] = {slide: [] for slide in slides["slide"]}
    for row in slides.to_dict("records"):
        if row["status"] == "left out":
            flags[row["slide"]].append(f"left out: {row['reason']}")
        for column, what in _SHARES.items():
            if row[column] > MOST:
                flags[row["slide"]].append(f"{row[column]:.0%} {what}")
    for row in () if predicted is None else predicted.to_dict("records"):
        if row["out_of_distribution"]:
            flags[row["slide"]].append("out of distribution")
        if isinstance(row[SECTION], str) and row[SECTION]:
            flags[row["slide"]].append(f"image of the training section {row[SECTION]}")
    return flags


def list_predicted(
    expression: Sequence[str | Path],
    *,
    slides: Sequence[str],
    patients: Sequence[str],
    cohorts: Sequence[str],
    tumour_threshold: float,
) -> pd.DataFrame:
    """Return one row per predicted slide.

    Parameters
    ----------
    expression
        results/expression/{slide}.h5ad of every slide.
    slides, patients, cohorts
        Of each, in the same order.
    tumour_threshold
        Probability from which a tile is a tumour tile.

    Returns
    -------
    DataFrame
        Columns `PREDICTED`. tumour_fraction is NaN where the model has no tumour map.
        median_ood_score is the largest of the medians of its measures (above 1 the slide is out of
        distribution), out_of_distribution_fraction the share of tiles out of distribution, and
        out_of_distribution whether the model calls the whole slide so. The last column names the
        training section whose image the slide is.

    Raises
    ------
    InputError
        A file is absent, damaged, or of an earlier version.
    """
    rows = []
    for path, *ids in zip(expression, slides, patients, cohorts, strict=True):
        with readable(path), h5py.File(path) as file:
            tumour, out_of_distribution = (
                file["obs"][name][()] for name in ("tumour", "out_of_distribution")
            )
            told = file["uns"]
            median = float(told["median_ood_score"][()])
            out, section = bool(told["out_of_distribution"][()]), told[SECTION].asstr()[()]
        rows.append(
            (
                *(*ids, len(tumour)),
                np.mean(tumour >= tumour_threshold) if np.isfinite(tumour).all() else np.nan,
                *(median, np.mean(out_of_distribution), out, section),
            )
        )
    return pd.DataFrame(rows, columns=list(PREDICTED))
