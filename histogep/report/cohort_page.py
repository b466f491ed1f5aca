"""The page that lists all slides: thumbnail, tumour, flags and risk, to sort, search and open."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from histogep.files import read_tsv
from histogep.inputs.barcodes import patient_of
from histogep.inputs.resources import FOLDER
from histogep.report.self_contained import as_json, write_filled
from histogep.slides.inventory import flag_slides
from histogep.slides.thumbnail import read_thumbnail

#: Column of the page -> its header; those of numbers.
HEADERS = {
    "slide": "slide",
    "patient": "patient",
    "cohort": "cohort",
    "role": "role",
    "n_tiles": "tiles",
    "tumour": "tumour share",
    "ood_score": "out-of-distribution score",
    "risk": "risk, out of fold",
    "group": "risk group",
    "flags": "flags",
}
#: Longest side in px, and quality, of a picture: some 1 kB a slide, so that 5,000 fit into one page.
_PICTURE_PX, _QUALITY = 72, 60
_NUMBERS = ("n_tiles", "tumour", "ood_score", "risk")
_DIGITS = {"tumour": 3, "ood_score": 2, "risk": 2}


def cohort_rows(
    slides: pd.DataFrame,
    *,
    predicted: pd.DataFrame | None = None,
    labels: Mapping[str, str | Path] | None = None,
    risks: Mapping[str, str | Path] | None = None,
) -> pd.DataFrame:
    """Return one row per slide, columns as in `HEADERS`; NaN and "" for what is not known.

    Parameters
    ----------
    slides
        results/slides.tsv.
    predicted
        results/predicted_slides.tsv, if any slide is predicted.
    labels
        Section -> results/labels/{slide}.tsv: the tumour share of a section is that of its spots
        which are known to be malignant or not.
    risks
        Cohort -> results/survival/{cohort}/risk.tsv; `risk` and `group` are those of the image alone,
        of a patient's slides the same.
    """
    table = slides.set_index("slide", drop=False)
    rows = table[["slide", "patient", "cohort", "role", "n_tiles"]].copy()
    for column in ("tumour", "ood_score", "risk"):
        rows[column] = np.nan
    rows["group"] = ""
    if predicted is not None:
        mine = predicted.set_index("slide")
        rows.loc[mine.index, "tumour"] = mine["tumour_fraction"].astype(float)
        rows.loc[mine.index, "ood_score"] = mine["median_ood_score"].astype(float)
    for slide, path in (labels or {}).items():
        label = read_tsv(path, dtype=str, keep_default_na=False)["label"]
        known = label.isin(["malignant", "boundary", "non-malignant"])
        if known.any():
            rows.loc[slide, "tumour"] = (label[known] != "non-malignant").mean()
    for cohort, path in (risks or {}).items():
        risk = read_tsv(path, dtype={"patient": str}).set_index("patient")
        of = rows["patient"].map(patient_of).where(rows["cohort"] == cohort)
        found = of.isin(risk.index) & (rows["role"] == "slide")
        rows.loc[found, "risk"] = risk["risk_image"].reindex(of[found]).to_numpy(float)
        rows.loc[found, "group"] = (
            risk["group_image"].reindex(of[found]).fillna("").astype(str).to_numpy()
        )
    flags = flag_slides(slides, predicted)
    rows["flags"] = ["; ".join(flags[slide]) for slide in rows["slide"]]
    return rows[list(HEADERS)].reset_index(drop=True)


def risk_notes(concordance: Mapping[str, str | Path]) -> list[str]:
    """Return what is known of the risks, one sentence per cohort: a risk without it means nothing.

    Parameters
    ----------
    concordance
        Cohort -> results/survival/{cohort}/concordance.tsv.
    """
    notes = []
    for cohort, path in concordance.items():
        table = read_tsv(path, dtype={"model": str})
        chosen = (table["model"] == "image") & (table["protocol"] == "patient_cv")
        notes += [
            f"Risk in {cohort}: from the image alone, of patients left out when it was fitted; "
            f"C-index {row.c_index:.2f} ({row.ci_low:.2f} to {row.ci_high:.2f}), null {row.null:.2f}, "
            f"{row.n} patients, {row.events} events."
            for row in table[chosen].itertuples()
        ]
    return notes


def write_cohort_page(
    rows: pd.DataFrame,
    path: str | Path,
    *,
    study: str,
    thumbnails: Mapping[str, str | Path],
    pages: Collection[str],
    notes: Collection[str] = (),
) -> None:
    """Write the page.

    Parameters
    ----------
    rows
        From `cohort_rows`.
    path
        Where to write it; the pages of slides lie beside it.
    study
        Its name, for the title.
    thumbnails
        Slide -> results/tiles/{slide}.thumbnail.jpg.
    pages
        Slides that have a page, {slide}.html.
    notes
        Sentences above the table.
    """
    columns = [column for column in HEADERS if _is_known(rows[column])]
    content = {
        "columns": [[column, HEADERS[column], column in _NUMBERS] for column in columns],
        "rows": [[_plain(row[column], column) for column in columns] for row in rows.to_dict("records")],
        "thumbnails": [
            base64.b64encode(_small(thumbnails[slide])).decode("ascii") for slide in rows["slide"]
        ],
        "pages": [int(slide in pages) for slide in rows["slide"]],
    }  # fmt: skip
    parts = {
        "TITLE": html.escape(f"Slides of {study}"),
        "NOTES": "".join(f"<p>{html.escape(note)}</p>" for note in notes),
        "CONTENT": as_json(content),
    }
    write_filled(FOLDER / "cohort_page.html", path, parts)


def _small(path: str | Path) -> bytes:
    """Return the thumbnail of a slide as a smaller WebP; the same one gives the same bytes."""
    picture, file = Image.fromarray(read_thumbnail(path)), io.BytesIO()
    picture.thumbnail((_PICTURE_PX, _PICTURE_PX), Image.Resampling.LANCZOS)
    picture.save(file, format="WEBP", quality=_QUALITY, method=6)
    return file.getvalue()


def _is_known(column: pd.Series) -> bool:
    return bool((column.notna() & (column.astype(str) != "")).any())


def _plain(value: Any, column: str) -> Any:
    """Return a cell as JSON has it; None where nothing is known."""
    if pd.isna(value) or value == "":
        return None
    if column in _NUMBERS:
        return round(float(value), _DIGITS[column]) if column in _DIGITS else int(value)
    return str(value)
