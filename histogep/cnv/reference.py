"""Which spots of a slide are the reference of its copy number, and which are tumour."""

from __future__ import annotations

import numpy as np
import pandas as pd

from histogep.errors import InputError

MALIGNANT, NON_MALIGNANT, UNDETERMINED = "malignant", "non-malignant", "undetermined"
#: What told malignant spots from the reference: labels; where these name one kind at most, the ends
#: of the marker score (low confidence); on a slide without spots the predicted tumour map.
LABELS, RANKED, PREDICTION = "labels", "ranked", "prediction"
#: How far a reference can be relied on.
CONFIDENCE = {LABELS: "", RANKED: "low", PREDICTION: ""}


def tile_labels(tumour: np.ndarray, *, threshold: float) -> np.ndarray:
    """Return malignant for tiles whose tumour probability reaches the threshold, else not."""
    tumour = np.asarray(tumour, np.float64)
    labels = np.where(tumour >= threshold, MALIGNANT, NON_MALIGNANT).astype(object)
    labels[np.isnan(tumour)] = UNDETERMINED
    return labels


def choose_spots(
    labels: np.ndarray, ranked: np.ndarray | None, *, measured: bool
) -> tuple[np.ndarray, np.ndarray, str]:
    """Return the masks of the reference and of the malignant spots, and what chose them.

    Labels choose. Where they name no spot of one kind (all may be undetermined) the end of the
    marker score stands in for it, which says how spots differ along that score and no more.

    Parameters
    ----------
    labels
        malignant, boundary, non-malignant or undetermined.
    ranked
        "low" and "high" for the least and most epithelial spots, else ""; None where nobody ranked.
    measured
        Whether the labels are of measured spots.
    """
    reference, malignant = labels == NON_MALIGNANT, labels == MALIGNANT
    if not measured:
        return reference, malignant, PREDICTION
    low, high = (np.asarray(ranked) == end for end in ("low", "high"))
    if (reference.any() and malignant.any()) or not np.any(low | high):
        return reference, malignant, LABELS
    if not reference.any():
        reference = low & ~malignant
    if not malignant.any():
        malignant = high & ~reference
    return reference, malignant, RANKED


def check_reference(labels: np.ndarray, reference: np.ndarray, *, measured: bool) -> None:
    """Refuse a slide of which no spot is reference, in words that say what to do.

    Parameters
    ----------
    labels
        malignant, boundary, non-malignant or undetermined.
    reference
        Mask of the reference spots (`choose_spots`).
    measured
        Whether the labels are of measured spots.
    """
    if reference.any():
        return
    if not measured:
        raise InputError(
            "the predicted tumour map calls every tile tumour, so none is a reference; raise "
            "cnv.tumour_threshold, or leave the slide out"
        )
    counts = pd.Series(labels).value_counts()
    found = ", ".join(f"{n} {label}" for label, n in counts.items())
    if set(labels) <= {UNDETERMINED}:
        raise InputError(
            f"the label of all {len(labels)} spots is undetermined, so none is a reference; "
            "annotate the section, or map its texts in the section labels of the configuration"
        )
    raise InputError(
        f"no spot is labelled non-malignant ({found}), so none is a reference; annotate normal "
        "tissue of the section, or map its texts in labels.non_malignant of the configuration"
    )


def join_labels(
    barcodes: pd.Index,
    table: pd.DataFrame,
    source: str,
    *,
    column: str = "label",
    missing: str = UNDETERMINED,
) -> np.ndarray:
    """Return the label of each spot, found by its barcode.

    Parameters
    ----------
    barcodes
        Spots of the section.
    table
        barcode and label (or another column).
    source
        Name of the table's file, for the message.
    column
        What is returned.
    missing
        What a spot has that the table does not name.
    """
    label = table.drop_duplicates("barcode").set_index("barcode")[column].reindex(barcodes)
    if label.notna().sum() == 0:
        raise InputError(f"{source}: none of its barcodes is a spot of the section")
    return label.fillna(missing).to_numpy(dtype=object)
