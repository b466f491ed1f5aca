"""Controls of copy number of a cohort as a page: what each profile may be called."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from histogep.report.pages import Table, write_page


def write_controls_page(
    controls: pd.DataFrame, path: str | Path, *, cohort: str, warnings: Sequence[str] = ()
) -> None:
    """Write results/cnv/{cohort}/controls.html: what each profile may be called, and why.

    Parameters
    ----------
    controls
        results/cnv/{cohort}/controls.tsv.
    path
        Where to write.
    cohort
        Its name, for the title.
    warnings
        Warnings of jobs that decide copy number.
    """
    # The controls of the cohort, under no slide, have no reference.
    of_slides = controls[controls["reference"].fillna("") != ""]
    names = of_slides.drop_duplicates("slide")[["slide", "name", "reference", "note"]]
    failed = of_slides[of_slides["verdict"] == "fail"].groupby("slide")["control"].agg(", ".join)
    names = names.assign(failed=names["slide"].map(failed).fillna(""))
    of_cohort = controls[(controls["reference"].fillna("") == "") & (controls["verdict"] == "fail")]
    write_page(
        path,
        title=f"Controls of copy number in cohort {cohort}",
        warnings=[
            *warnings,
            # What no slide fails by itself, and what the names of all predicted slides follow from.
            *(f"The cohort failed `{row.control}`: {row.note}" for row in of_cohort.itertuples()),
        ],
        tables=[
            Table(
                names,
                heading="What each profile may be called",
                notes=[
                    "`reference`: what the profile is relative to: spots that are labelled (labels), the "
                    "ends of the marker score where labels name none (ranked: low confidence), or the "
                    "predicted tumour map (prediction). `note`: whether expression was measured."
                ],
            ),
            Table(
                controls.drop(columns=["name", "reference", "note"]),
                heading="All controls",
                notes=["`value` beside its null; `controls.tsv` has the same."],
                group_by="slide",
            ),
        ],
    )
