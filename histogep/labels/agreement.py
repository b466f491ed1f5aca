"""Agreement of inferred tumour labels with drawn ones, where a section has both."""

from __future__ import annotations

import numpy as np
import pandas as pd

from histogep.stats.scores import auroc, dice

COLUMNS = [
    *("slide", "source", "n", "n_malignant", "auroc", "auroc_depth", "dice", "dice_null"),
    *("share_right", "share_decided"),
]
CONFUSION_COLUMNS = ["slide", "annotated", "inferred", "n_spots"]
_ORDER = ("malignant", "boundary", "non-malignant", "undetermined")


def compare_labels(
    annotated: pd.DataFrame, inferred: pd.DataFrame, depth: np.ndarray, *, slide: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the agreement of inferred with annotated labels, and their confusion table.

    Scored are the spots annotated as malignant or as non-malignant. AUROC is of the inferred
    probability, beside that of the counts of the spots alone, since tumour is often the deepest
    tissue. Dice is of the spots labelled malignant, beside that of calling every spot malignant.

    Parameters
    ----------
    annotated, inferred
        Tables of `histogep.labels.annotated` and `histogep.labels.inferred`, of the same spots in the same order.
    depth
        Counts of each spot.
    slide
        Id of the section.

    Returns
    -------
    tuple
        One row (`COLUMNS`): slide, source of the inferred labels, spots scored, those of them that
        are annotated as malignant, scores, share_right (of the spots that were decided either way)
        and share_decided; AUROC is NaN where the annotation knows one kind only. And the confusion
        table (`CONFUSION_COLUMNS`), of all spots.
    """
    if annotated["barcode"].tolist() != inferred["barcode"].tolist():
        raise ValueError("annotated and inferred labels are not of the same spots")
    truth, found = annotated["label"].to_numpy(object), inferred["label"].to_numpy(object)
    known = np.isin(truth, ["malignant", "non-malignant"])
    malignant = truth[known] == "malignant"
    called = found[known] == "malignant"
    decided = np.isin(found[known], ["malignant", "non-malignant"])
    right = found[known] == truth[known]
    scores = {
        "auroc": auroc(inferred["probability"].to_numpy(np.float64)[known], malignant),
        "auroc_depth": auroc(np.asarray(depth, np.float64)[known], malignant),
        "dice": dice(called, malignant),
        "dice_null": dice(np.ones(len(malignant), bool), malignant),
        "share_right": float(right[decided].mean()) if decided.any() else np.nan,
        "share_decided": float(decided.mean()) if len(decided) else np.nan,
    }
    row = {"slide": slide, "source": inferred["source"].iloc[0], "n": int(known.sum())}
    row["n_malignant"] = int(malignant.sum())
    table = pd.crosstab(pd.Series(truth, name="annotated"), pd.Series(found, name="inferred"))
    table = table.reindex(
        index=[name for name in _ORDER if name in table.index],
        columns=[name for name in _ORDER if name in table.columns],
    )
    confusion = table.stack().rename("n_spots").reset_index().assign(slide=slide)
    return pd.DataFrame([row | scores])[COLUMNS], confusion[CONFUSION_COLUMNS]
