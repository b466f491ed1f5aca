"""All slides of a study in one table: what they are for, what they look like, whether they are used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from histogep.files import read_tsv

#: Metrics of a results/tiles/{slide}.quality.tsv that the table has, in its order.
METRICS = (
    *("mpp", "tissue_mm2", "n_fragments", "n_tiles", "share_pen", "share_blurred"),
    *("share_folded", "median_sharpness"),
)
COLUMNS = ("slide", "patient", "cohort", "role", "status", "reason", *METRICS)


def list_slides(
    quality: Sequence[str | Path],
    *,
    slides: Sequence[str],
    patients: Sequence[str],
    cohorts: Sequence[str],
    sections: Sequence[str],
    failed: str | Path | None = None,
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
                **{metric: measured.get(metric, float("nan")) for metric in METRICS},
            }
        )
    listed = pd.DataFrame(rows, columns=list(COLUMNS))
    counts = ["n_fragments", "n_tiles"]
    listed[counts] = listed[counts].astype("Int64")
    return listed
