"""Whose labels a study's tumour map was trained and tested on: a pathologist's, or inferred ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from histogep.files import read_tsv

#: `source` of labels that somebody drew or wrote; all others are inferred from the counts.
ANNOTATED = "annotation"
COLUMNS = ("slide", "source", "n_spots", "n_malignant", "n_non_malignant", "n_undetermined")
_NAMED = 4


def read_label_sources(paths: Sequence[str | Path]) -> pd.DataFrame:
    """Return one row per section: what its labels come from, and how many spots have each.

    Parameters
    ----------
    paths
        results/labels/{slide}.tsv of every section.

    Returns
    -------
    DataFrame
        `COLUMNS`; `source` is "annotation", or what the labels were inferred from.
    """
    rows = []
    for path in paths:
        labels = read_tsv(path, dtype=str, keep_default_na=False)
        count = labels["label"].value_counts()
        rows.append(
            (
                Path(path).stem,
                ", ".join(sorted(set(labels["source"]))),
                len(labels),
                *(int(count.get(k, 0)) for k in ("malignant", "non-malignant", "undetermined")),
            )
        )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def describe_sources(sources: pd.DataFrame) -> str:
    """Return in words whose labels those of some sections are; "" where there are none.

    Parameters
    ----------
    sources
        Of `read_label_sources`.
    """
    if sources.empty:
        return ""
    n = len(sources)
    annotated = sources["source"] == ANNOTATED
    undetermined = sources["n_undetermined"] == sources["n_spots"]
    parts = []
    if annotated.any():
        parts.append(f"annotated (given in the slide sheet) in {annotated.sum()} of {n} sections")
    inferred = ~annotated & ~undetermined
    if inferred.any():
        what = " and ".join(sorted(set(sources.loc[inferred, "source"]))).replace(
            "cnv", "copy number with markers"
        )
        parts.append(
            f"inferred from {what}, by no pathologist, in {inferred.sum()} of {n} "
            f"({_some(sources.loc[inferred, 'slide'])})"
        )
    if undetermined.any():
        parts.append(
            f"undetermined in all spots of {undetermined.sum()} of {n} "
            f"({_some(sources.loc[undetermined, 'slide'])})"
        )
    return "; ".join(parts)


def _some(slides: pd.Series) -> str:
    more = f" and {len(slides) - _NAMED} more" if len(slides) > _NAMED else ""
    return ", ".join(slides[:_NAMED]) + more
