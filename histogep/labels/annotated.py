"""Which spots are malignant by an annotation: polygons, or a table of spots."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

from histogep.errors import InputError
from histogep.inputs.delimited import open_delimited
from histogep.inputs.joins import HALF, explain_names, judge_join
from histogep.slides.annotation_fit import check_fit, points_within
from histogep.slides.geojson import Annotation, read_annotations
from histogep.warned import decides

log = logging.getLogger(__name__)
#: Labels, each with the key of the configuration that lists its texts.
LABELS = {
    "malignant": "malignant",
    "boundary": "boundary",
    "non-malignant": "non_malignant",
    "undetermined": "undetermined",
}
COLUMNS = ("barcode", "label", "source", "confidence", "original", "ranked")
_TEXT_COLUMNS = ("label", "annotation", "pathologist", "classification", "category", "location")
#: Other names of the column of barcodes.
_BARCODE_COLUMNS = (
    *("barcodes", "barcode_id", "spot_barcode", "spot_id", "spot", "spots", "spot_name"),
    *("cell_id", "cell", "cells", "index", "id"),
)


def label_annotated(
    spots: anndata.AnnData, path: str | Path, settings: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """Return the labels of spots that somebody annotated.

    Parameters
    ----------
    spots
        Spots of the section.
    path
        QuPath's polygons (.geojson, .json), or a table (tab, comma or semicolon) with a column of barcodes, or of
        array coordinates x and y, and one of texts; Loupe's category file is such a table, and so
        are the spots of Cottrazm as R writes them (barcodes as row names, texts in `Location`).
    settings
        Texts of each label: malignant, boundary, non_malignant, undetermined.

    Returns
    -------
    pandas.DataFrame
        barcode, label, source, confidence, original, ranked (empty: only inferred labels rank), in
        the order of the spots; those without an annotation are undetermined.

    Raises
    ------
    InputError
        If the file cannot be understood, holds a text that no label lists, or touches no spot.
    """
    path = Path(path)
    polygons = _has_polygons(path)
    texts = read_polygons(spots, path) if polygons else read_annotation(path)
    found = texts.index.isin(spots.obs_names)
    if not found.any():
        raise InputError(
            f"{path} annotates no spot of slide {spots.uns['slide']}: it names "
            f"{', '.join(texts.index[:3])}, the counts {', '.join(spots.obs_names[:3])}"
        )
    label = map_texts(texts, settings, path=path)
    barcodes = spots.obs_names.to_numpy(dtype=object)
    join = f"{found.sum()} of {len(barcodes)} spots are annotated by {path.name}"
    if polygons:
        log.info("%s", join)
    else:
        join = _judge_annotation(texts.index, barcodes, path)
    label = label.reindex(barcodes).fillna("undetermined").to_numpy(dtype=object)
    if (label == "undetermined").all():
        log.warning(
            "slide %s: all spots that %s annotates are undetermined, so no tumour map is learned or "
            "tested on this section",
            *(spots.uns["slide"], path),
            **decides("tumour"),
        )
    table = pd.DataFrame(
        {
            "barcode": barcodes,
            "label": label,
            "source": "polygon" if polygons else "annotation",
            "confidence": np.where(label == "undetermined", 0.0, 1.0),
            "original": texts.reindex(barcodes).fillna("").to_numpy(dtype=object),
            "ranked": "",
        }
    )
    # For the figure: the shares of the spots and of the file behind it.
    table.attrs["join"] = join
    return table


def _judge_annotation(given: pd.Index, barcodes: np.ndarray, path: Path) -> str:
    """Return what share of a table of annotated spots and of the spots matched; refuse hardly any.

    A table may name more spots than are left of a section, or only a part of them: the larger of
    the two shares shows whether both are of the same section.
    """
    n = int(given.isin(barcodes).sum())
    total, what = min(
        (len(given), f"spots of {path} are among the spots of the section"),
        (len(barcodes), f"spots of the section are annotated by {path}"),
    )
    said = judge_join(what, n, total, explain=lambda: explain_names(given, barcodes))
    if n < HALF * len(barcodes) and total != len(barcodes):
        log.warning(
            "%s annotates %d of %d spots: the others are undetermined", path, n, len(barcodes)
        )
    return said


def map_texts(
    texts: pd.Series, settings: Mapping[str, Sequence[str]], *, path: str | Path
) -> pd.Series:
    """Return the label of each text; case and outer blanks do not matter.

    Raises
    ------
    InputError
        If no label lists a text; `path` is named.
    """
    # What R and Python write for a missing text.
    meaning = dict.fromkeys(("", "na", "nan", "<na>", "n/a"), "undetermined")
    for label, key in LABELS.items():
        for text in settings.get(key, ()):
            meaning[str(text).strip().lower()] = label

    def mean(text: str) -> str | None:
        text = text.strip().lower()
        # QuPath marks the classes that it ignores with a *.
        return meaning.get(text, meaning.get(text.rstrip("*").strip()))

    label = texts.map(mean)
    unknown = sorted(set(texts[label.isna()]))
    if unknown:
        raise InputError(
            f"{path} holds annotations of unknown meaning: {', '.join(map(repr, unknown))}; add each "
            "to labels.malignant, labels.boundary, labels.non_malignant or labels.undetermined in "
            "the configuration"
        )
    return label


def read_label_texts(path: str | Path) -> set[str]:
    """Return the texts of an annotation, for any slide.

    Raises
    ------
    InputError
        If the file cannot be understood, or has no area with a class.
    """
    if _has_polygons(Path(path)):
        return {annotation.text for annotation in _classed(path)}
    return set(read_annotation(path))


def _has_polygons(path: Path) -> bool:
    return path.suffix.lower() in (".geojson", ".json")


def _classed(path: str | Path) -> list[Annotation]:
    """Return the annotated areas that have a class."""
    annotations = [one for one in read_annotations(path) if one.text]
    if not annotations:
        raise InputError(f"{path} holds no annotation with a class: set classes in QuPath")
    return annotations


def read_annotation(path: str | Path) -> pd.Series:
    """Return the text of each annotated spot (index barcode) of a table."""
    path = Path(path)
    read = open_delimited(path, what="a table of annotated spots", row_names=True)
    if len(read.columns) < 2:
        raise InputError(
            f"{path}, line {read.header_line}: {', '.join(map(repr, read.names))} has no tab, comma or "
            "semicolon, so no column of labels beside that of the spots; separate the columns by tabs"
        )
    table = read.text(strip=False).reset_index(drop=True)
    columns = {column.strip().lower(): column for column in table.columns}
    nameless = {"", "unnamed: 0"} & set(columns)  # row names of R's write.csv
    if not ({"barcode"} <= set(columns) or {"x", "y"} <= set(columns)):
        named = next((name for name in _BARCODE_COLUMNS if name in columns), None)
        named = named or (nameless.pop() if nameless else None)
        if named is not None:
            columns["barcode"] = columns.pop(named)
    if "barcode" in columns:
        barcode = table[columns["barcode"]].str.strip()
        others = [column for key, column in columns.items() if key != "barcode"]
    elif {"x", "y"} <= set(columns):
        x, y = (pd.to_numeric(table[columns[axis]], errors="coerce") for axis in ("x", "y"))
        if (x.isna() | y.isna()).any():
            raise InputError(
                f"{path}: x or y of row {int((x.isna() | y.isna()).argmax()) + 1} "
                "is not a number: they are the array coordinates of the spot"
            )
        barcode = x.round().astype(int).astype(str) + "x" + y.round().astype(int).astype(str)
        others = [column for key, column in columns.items() if key not in ("x", "y")]
    else:
        raise InputError(
            f"{path} has neither a column barcode nor x and y among {', '.join(table.columns[:8])}: "
            "name the spots"
        )
    known = [columns[key] for key in _TEXT_COLUMNS if columns.get(key) in others]
    # Cottrazm keeps the labels of its last but one round as `Label`: only `Location` is its verdict.
    if "cnvlabel" in columns:
        if "location" not in columns:
            raise InputError(
                f"{path} has Cottrazm's CNVLabel but not its Location, which BoundaryPlot adds: "
                "save the spots after that step"
            )
        known = [columns["location"]]
    chosen = known[:1] or (others if len(others) == 1 else [])
    if not chosen:
        raise InputError(
            f"{path}: which of its columns {', '.join(others) or '(none)'} is the annotation? "
            "Call it label"
        )
    texts = pd.Series(
        table[chosen[0]].to_numpy(dtype=object), index=pd.Index(barcode, dtype=object)
    )
    texts = texts[~pd.DataFrame({"b": texts.index, "t": texts.to_numpy()}).duplicated().to_numpy()]
    if not texts.index.is_unique:
        twice = texts.index[texts.index.duplicated()][0]
        raise InputError(f"{path} gives the spot {twice} two annotations: keep one")
    return texts


def read_polygons(spots: anndata.AnnData, path: str | Path) -> pd.Series:
    """Return the class of the annotated area (QuPath, level-0 px) that holds each spot's centre.

    Where areas overlap the smallest counts; those without a class are left out.

    Raises
    ------
    InputError
        If the file cannot be understood, has no area with a class, or hardly a spot lies in one.
    """
    annotations = _classed(path)
    centres = np.asarray(spots.obsm["spatial"], np.float64)
    parts = [(polygon, n) for n, one in enumerate(annotations) for polygon in one.polygons]
    polygons, owner = [polygon for polygon, _ in parts], np.array([n for _, n in parts])
    point, polygon = points_within(polygons, centres)
    inside = pd.DataFrame({"point": point, "owner": owner[polygon]})
    check_fit(
        f"{path}: slide {spots.uns['slide']}",
        polygons,
        centres,
        n_inside=inside["point"].nunique(),
        n_touching=inside["owner"].nunique(),
        n_areas=len(annotations),
        mpp=spots.uns.get("mpp"),
    )
    inside["area"] = [annotations[n].area_px2 for n in inside["owner"]]
    inside["text"] = [annotations[n].text for n in inside["owner"]]
    inside = inside.sort_values(["area", "text"], kind="stable").drop_duplicates("point")
    barcodes = spots.obs_names.to_numpy(dtype=object)[inside["point"].to_numpy()]
    return pd.Series(inside["text"].to_numpy(dtype=object), index=barcodes).sort_index()
