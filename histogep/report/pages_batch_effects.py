"""What features and expression go with, as a page: patient, slide, cohort, stain and pixel size."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from histogep.evaluation.batch_effects import NEARLY_ALL, warnings_of
from histogep.report.pages import Table, write_page


def write_batch_page(shares: pd.DataFrame, path: str | Path) -> None:
    """Write the page.

    Parameters
    ----------
    shares
        From `histogep.evaluation.batch_effects.explain`.
    path
        Where to write it.
    """
    warned = warnings_of(shares)
    part = ["share", "null", "null_upper"]
    write_page(
        path,
        title="What features and expression go with",
        notes=[
            *(f"Warning: {line}." for line in warned),
            "Share of the variance of the leading principal components that lies between patients, "
            "slides and cohorts, or along a line in the mean density of haematoxylin and eosin and in the "
            "pixel size. `null` and `null, 95 %`: what the same factor explains when it is dealt to the "
            "slides at random; where every level has one slide, what places dealt at random give. Factors "
            "overlap: a patient has his own stain, and shares do not add up. Patients differ in biology "
            f"too: only above {NEARLY_ALL:.0%} is the patient warned of.",
        ],
        tables=[
            Table(
                shares,
                formats=dict.fromkeys(part, "{:.1%}"),
                bars=dict.fromkeys(part, (0.0, 1.0)),
                bar_colours={"null": "#d9d9d9", "null_upper": "#d9d9d9"},
                headers={"n_levels": "levels", "null_upper": "null, 95 %", "n_places": "places",
                         "n_slides": "slides"},
                group_by="data",
            )
        ],
    )  # fmt: skip
