"""One row per patient: predicted expression, tissue composition, clinical covariates, outcome."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from histogep.errors import InputError
from histogep.files import read_tsv
from histogep.inputs.barcodes import PRIMARY, leave_out, patient_key, patient_of
from histogep.inputs.patient_joins import report_join
from histogep.neighbourhoods.measures import MEASURES, average_slides
from histogep.outcome.signatures import Signature, score_signatures
from histogep.slides.same_file import find_copies, image_of, section_of
from histogep.spots.matrices import read_h5ad
from histogep.study.covariates import STAGES, clinical_numbers, has_outcome
from histogep.warned import decides, of_slide

log = logging.getLogger(__name__)

GENE, UPPER, SIGNATURE, SHARE = "gene:", "upper:", "signature:", "share_"
NEIGHBOURHOOD = "neighbourhood:"
CLINICAL = ("age", "sex", "stage")
#: Strength of a patient's profile, as copy number and as an expression subtype.
BURDENS = ("cnv_burden", "expression_burden")
#: How unlike each other a patient's malignant places are: their profiles, under either of the names
#: that these may bear, and their expression (`histogep.cnv.heterogeneity`).
UNLIKE = ("ithcna", "ithprofile", "ithgex")
#: SHA-256 of the images of a patient's slides, with commas between them.
IMAGES_COLUMN = "images"
#: Why a patient was left out whose sections taught the model.
IN_TRAINING = "the model was trained on this patient's sections: not out of sample"
#: Why a slide was left out that is another slide's file.
SECOND_COPY = "the same image as another slide of the patient"
#: Columns that describe the image besides genes, signatures and subtype shares.
COMPOSITION = ("tumour_fraction", "heterogeneity", *BURDENS, *UNLIKE)


@dataclass
class _Sums:
    """Running sums over the tiles of one patient, and the tiles until their quantiles are taken."""

    n_genes: int
    tissue: np.ndarray = field(init=False)
    tumour: np.ndarray = field(init=False)
    tissue_scatter: np.ndarray = field(init=False)
    tumour_scatter: np.ndarray = field(init=False)
    tiles: int = 0
    tumour_tiles: int = 0
    out_of_distribution: float = 0.0
    mapped: bool = True
    slides: list[str] = field(default_factory=list)
    held: list[np.ndarray] = field(default_factory=list)
    held_tumour: list[np.ndarray] = field(default_factory=list)
    upper: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in ("tissue", "tumour", "tissue_scatter", "tumour_scatter"):
            setattr(self, name, np.zeros(self.n_genes))

    def close(self, *, quantile: float, min_tumour_tiles: int) -> None:
        """Take the upper quantile of every gene over all slides, and let the tiles go."""
        if self.tiles:
            values = np.concatenate(self.held)
            if not self.described_by_all(min_tumour_tiles):
                values = values[np.concatenate(self.held_tumour)]
            self.upper = np.quantile(values, quantile, axis=0)
        self.held, self.held_tumour = [], []

    def described_by_all(self, min_tumour_tiles: int) -> bool:
        """Return whether there are too few tumour tiles to describe the patient by."""
        return self.tumour_tiles < max(1, min_tumour_tiles)


def summarise_patients(
    expression: Sequence[str | Path],
    *,
    slides: Sequence[str],
    slide_patients: Sequence[str],
    patients: pd.DataFrame | None,
    signatures: dict[str, Signature],
    subtypes: str | Path | None = None,
    neighbourhoods: str | Path | None = None,
    tumour_threshold: float = 0.5,
    min_tumour_tiles: int = 5,
    upper_quantile: float = 0.9,
    max_out_of_distribution: float = 0.5,
    sample_types: Sequence[str] = PRIMARY,
    training: Collection[str] = (),
    training_patients: str = "exclude",
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return one row per patient, and the patients that were dropped with the reason.

    Parameters
    ----------
    expression
        Predicted slides of the cohort (`results/expression/{slide}.h5ad`).
    slides, slide_patients
        Their slides and patients, in the same order.
    patients
        The patient sheet (`histogep.study.sheets.read_patients`); None for a cohort without one.
    signatures
        From `histogep.outcome.signatures.read_signatures`.
    subtypes
        `results/cnv/{cohort}/patients.tsv`, where copy number was inferred.
    neighbourhoods
        `results/neighbourhoods/{cohort}/slides.tsv`, where neighbourhoods were described.
    tumour_threshold
        Tumour probability from which a tile is a tumour tile.
    min_tumour_tiles
        A patient with fewer tumour tiles is described by all tiles.
    upper_quantile
        What `upper:<SYMBOL>` is: how high a gene goes in a part of the tumour, whatever its mean.
    max_out_of_distribution
        A slide or patient with a larger share of tiles far from the training features is flagged.
    sample_types
        TCGA sample types that count; a slide of another type, and a frozen section of a patient
        who has a diagnostic slide, describes nobody (`histogep.inputs.barcodes.leave_out`).
    training
        Patients whose sections the model was trained on: what it predicts of their other slides is
        not out of sample. Ids count as one whatever their case. A patient with a slide that is the
        image of a training section (`histogep.slides.same_file`) is one of them under another id.
    training_patients
        `exclude` drops them, `keep` keeps them flagged in the column in_training.

    Returns
    -------
    table
        One row per patient, sorted by patient. Tiles of several slides are pooled, so that a
        large slide weighs more than a small one. Columns:

        - patient (12 characters of a TCGA barcode), n_slides, n_tiles, n_tumour_tiles;
        - all_tiles: genes are means over all tiles, as there are too few tumour tiles;
        - out_of_distribution_fraction: share of tiles far from the training features; out_of_distribution: above
          `max_out_of_distribution`;
        - in_training: the model was trained on sections of the patient;
        - images: SHA-256 of the images of the patient's slides, joined by commas;
        - tumour_fraction: share of tumour tiles; NaN without a tumour map;
        - heterogeneity: mean over genes of the standard deviation between the tumour tiles of a
          slide (predicted log1p CP10k);
        - cnv_burden and ithcna (expression_burden and ithprofile where the profiles are no copy
          number), ithgex and share_<subtype>, where `subtypes` has them;
        - neighbourhood:<measure>, where `neighbourhoods` has them
          (`histogep.neighbourhoods.measures.MEASURES`); NaN where a slide does not say;
        - time (months), event, response as in the sheet; age (years); sex (1 male, 0 female);
          stage (1 to 4); NaN for unknown;
        - gene:<SYMBOL>: mean predicted log1p CP10k in tumour tiles, predictable genes only;
        - upper:<SYMBOL>: its `upper_quantile` over the same tiles of all slides;
        - signature:<name>: scored on the mean over ALL tiles, since signatures were made for
          bulk tissue and immune cells stand beside the tumour as often as in it.
    dropped
        patient, slides, reason; of a patient whose other slides stay, the slides left out (such
        as a second copy of one image).

    Raises
    ------
    InputError
        No patient is left; slides predicted by different models; slides of two patients that are
        one image; a file without what it needs.
    """
    slide_patients = [patient_of(patient) for patient in slide_patients]
    left_out = leave_out(slides, slide_patients, sample_types=sample_types)
    dropped = [
        {"patient": patient, "slides": slide, "reason": left_out[slide]}
        for slide, patient in zip(slides, slide_patients, strict=True)
        if slide in left_out
    ]
    sections: dict[str, list[str]] = {}  # training sections whose image a slide is, left out or not
    for path, patient in zip(expression, slide_patients, strict=True):
        if section := section_of(path):
            sections.setdefault(patient, []).append(section)
    images = dict(zip(slides, map(image_of, expression), strict=True))
    if not all(images.values()):
        log.warning(
            "of %d slides no digest of the image is known, so copies of them are not found: predict "
            "them again",
            sum(not image for image in images.values()),
        )
    described = [(s, p) for s, p in zip(slides, slide_patients, strict=True) if s not in left_out]
    copies = find_copies(
        [images[slide] for slide, _ in described],
        slides=[slide for slide, _ in described],
        slide_patients=[patient for _, patient in described],
    )
    dropped += [
        {"patient": patient, "slides": slide, "reason": SECOND_COPY}
        for slide, patient in described
        if slide in copies
    ]
    left_out |= copies
    of_patient: dict[str, set[str]] = {}
    for slide, patient in zip(slides, slide_patients, strict=True):
        of_patient.setdefault(patient, set()).add(images[slide])
    used = [number for number, slide in enumerate(slides) if slide not in left_out]
    expression = [expression[number] for number in used]
    slides = [slides[number] for number in used]
    slide_patients = [slide_patients[number] for number in used]
    genes, sums = _pool_tiles(
        expression,
        slides,
        slide_patients,
        tumour_threshold,
        max_out_of_distribution,
        quantile=upper_quantile,
        min_tumour_tiles=min_tumour_tiles,
    )
    rows: list[dict[str, Any]] = []
    clinical = None if patients is None else clinical_numbers(patients)
    known = set() if clinical is None else set(clinical.index[has_outcome(clinical)])
    if clinical is not None:
        report_join(list(sums), clinical.index, "with a predicted slide")
    trained_on = set(map(patient_key, training))
    for patient, part in sorted(sums.items()):
        reason = ""
        own = sections.get(patient, [])
        seen = patient_key(patient) in trained_on or bool(own)
        if seen and training_patients == "exclude":
            reason = IN_TRAINING
            if own:
                reason += f" (its slides are the images of {', '.join(own)})"
        elif part.tiles == 0:
            reason = "no tile on any slide"
        elif clinical is not None and patient not in clinical.index:
            reason = "no row in the patient sheet"
        elif clinical is not None and patient not in known:
            reason = "neither time and event nor response in the patient sheet"
        if reason:
            dropped.append({"patient": patient, "slides": ",".join(part.slides), "reason": reason})
            continue
        row = _describe(part, min_tumour_tiles, max_out_of_distribution)
        row["patient"] = patient
        row["in_training"] = seen
        row[IMAGES_COLUMN] = ",".join(sorted(of_patient[patient] - {""}))
        row.update({} if clinical is None else clinical.loc[patient].to_dict())
        rows.append(row)
    if clinical is not None:
        told = {entry["patient"] for entry in dropped}
        dropped += [
            {"patient": patient, "slides": "", "reason": "no predicted slide in this cohort"}
            for patient in clinical.index
            if patient not in sums and patient not in told
        ]
    for entry in dropped:
        log.warning("patient %s dropped: %s", entry["patient"], entry["reason"])
    dropped_table = pd.DataFrame(dropped, columns=["patient", "slides", "reason"])
    if not rows:
        raise InputError(
            f"none of the {len(sums)} patients with predicted slides is left: "
            + "; ".join(f"{d['patient']}: {d['reason']}" for d in dropped[:5])
            + ". The ids in the slide sheet and in the patient sheet must be the same text"
        )
    table = pd.DataFrame([{k: v for k, v in r.items() if not k.startswith("_")} for r in rows])
    table = table[["patient", *[name for name in table if name != "patient"]]]
    if subtypes is not None:
        table = _with_subtypes(table, subtypes)
    if neighbourhoods is not None:
        table = _with_neighbourhoods(table, neighbourhoods, slides, slide_patients)
    tumour = pd.DataFrame([r["_genes"] for r in rows], columns=genes, dtype=np.float64)
    upper = pd.DataFrame([r["_upper"] for r in rows], columns=genes, dtype=np.float64)
    tissue = pd.DataFrame([r["_tissue"] for r in rows], columns=genes, dtype=np.float64)
    scores, _ = score_signatures(tissue, signatures)
    features = [scores.add_prefix(SIGNATURE), tumour.add_prefix(GENE), upper.add_prefix(UPPER)]
    table = pd.concat([table, *features], axis=1)
    _report(table, len(genes))
    return table, dropped_table


def image_columns(table: pd.DataFrame) -> tuple[list[str], list[str], list[str]]:
    """Return the columns that describe the image: means of genes, their upper quantiles, others."""
    genes = [name for name in table if name.startswith(GENE)]
    upper = [name for name in table if name.startswith(UPPER)]
    others = [name for name in table if name in COMPOSITION or name.startswith((SIGNATURE, SHARE))]
    return genes, upper, others


def image_blocks(table: pd.DataFrame, *, neighbourhoods: bool) -> tuple[np.ndarray, ...]:
    """Return the blocks of features of the image models, each patients x features.

    Means of genes, their upper quantiles, others (`image_columns`), and if asked for the
    neighbourhoods, which are a block of their own.
    """
    blocks = [*image_columns(table)]
    if neighbourhoods:
        blocks.append([name for name in table if name.startswith(NEIGHBOURHOOD)])
        if not blocks[-1]:
            log.warning("no neighbourhoods are known of these patients: their block is empty")
    return tuple(table[names].to_numpy(float) for names in blocks)


def _pool_tiles(
    expression: Sequence[str | Path],
    slides: Sequence[str],
    slide_patients: Sequence[str],
    threshold: float,
    max_out_of_distribution: float,
    *,
    quantile: float,
    min_tumour_tiles: int,
) -> tuple[list[str], dict[str, _Sums]]:
    """Read the slides one by one; return the predictable genes and the sums of each patient."""
    if not len(expression) == len(slides) == len(slide_patients):
        raise ValueError("expression, slides and slide_patients must be parallel")
    genes: list[str] | None = None
    reference, digest = "", None
    sums: dict[str, _Sums] = {}
    # Patient by patient, so that no more than one's tiles are held at a time.
    first: dict[str, int] = {}
    for at, patient in enumerate(slide_patients):
        first.setdefault(patient, at)
    order = sorted(range(len(slides)), key=lambda at: first[slide_patients[at]])
    for number, at in enumerate(order):
        path, slide, patient = expression[at], slides[at], slide_patients[at]
        data = read_h5ad(path)
        for column in ("tumour", "out_of_distribution"):
            if column not in data.obs:
                raise InputError(f"{path} has no obs column {column!r}; predict the slide again")
        if "predictable" not in data.var:
            raise InputError(f"{path} has no var column 'predictable'; predict the slide again")
        predictable = data.var["predictable"].to_numpy(bool)
        names = list(data.var_names[predictable])
        this = str(data.uns.get("model_digest", ""))
        if genes is None:
            genes, reference, digest = names, str(path), this
        elif names != genes or this != digest:
            raise InputError(
                f"{path} and {reference} were predicted by different models; predict both with one"
            )
        values = data.X.toarray() if hasattr(data.X, "toarray") else np.asarray(data.X)
        values = values[:, predictable].astype(np.float64)
        if not np.isfinite(values).all():
            raise InputError(f"{path} holds predictions that are not numbers; predict it again")
        part = sums.setdefault(str(patient), _Sums(len(names)))
        probability = data.obs["tumour"].to_numpy(float)
        part.mapped &= bool(np.isfinite(probability).all())  # a model folder may have no tumour map
        tumour = probability >= threshold
        part.slides.append(str(slide))
        part.held.append(values.astype(np.float32))
        part.held_tumour.append(tumour)
        part.tiles += len(values)
        part.tumour_tiles += int(tumour.sum())
        out_of_distribution = data.obs["out_of_distribution"].to_numpy(bool)
        part.out_of_distribution += float(out_of_distribution.sum())
        if len(out_of_distribution) and out_of_distribution.mean() > max_out_of_distribution:
            log.warning(
                "slide %s: %.0f %% of its tiles are far from the training features",
                slide,
                100 * out_of_distribution.mean(),
                **of_slide(slide),
            )
        for chosen, total, scatter in (
            (values, part.tissue, part.tissue_scatter),
            (values[tumour], part.tumour, part.tumour_scatter),
        ):
            if len(chosen):
                total += chosen.sum(axis=0)
                scatter += chosen.var(axis=0) * len(chosen)
        if number + 1 == len(order) or slide_patients[order[number + 1]] != patient:
            part.close(quantile=quantile, min_tumour_tiles=min_tumour_tiles)
    if genes is None:
        raise InputError("the cohort has no predicted slide; a patient needs one")
    if not genes:
        log.warning(
            "no gene of the panel is predictable on held-out patients: there are no gene columns "
            "and no signatures",
            **decides("expression", "survival", "response"),
        )
    return genes, sums


def _describe(part: _Sums, min_tumour_tiles: int, max_out_of_distribution: float) -> dict[str, Any]:
    """Return the image columns of one patient; keys with an underscore are vectors by gene."""
    fallback = part.described_by_all(min_tumour_tiles)
    total = part.tissue if fallback else part.tumour
    scatter = part.tissue_scatter if fallback else part.tumour_scatter
    count = part.tiles if fallback else part.tumour_tiles
    return {
        "n_slides": len(part.slides),
        "n_tiles": part.tiles,
        "n_tumour_tiles": part.tumour_tiles,
        "all_tiles": fallback,
        "out_of_distribution_fraction": part.out_of_distribution / part.tiles,
        "out_of_distribution": part.out_of_distribution / part.tiles > max_out_of_distribution,
        "tumour_fraction": part.tumour_tiles / part.tiles if part.mapped else np.nan,
        "heterogeneity": float(np.sqrt(scatter / count).mean()) if len(scatter) else np.nan,
        "_genes": total / count,
        "_upper": part.upper,
        "_tissue": part.tissue / part.tiles,
    }


def source_name(table: pd.DataFrame) -> str:
    """Return what the genes of a patient table are called: measured `expression`, or `image`."""
    measured = "source" in table and (table["source"] == "measured").all()
    return "expression" if measured else "image"


def count_patients(table: pd.DataFrame, dropped: pd.DataFrame) -> pd.DataFrame:
    """Count who is in a cohort, what is known of them, and who was left out for which reason.

    Returns
    -------
    DataFrame
        part (patients, stage, left out), what, n.
    """
    rows = [("patients", "in the table", len(table))]
    if "in_training" in table and table["in_training"].any():
        told = "that the model was trained on (kept: not out of sample)"
        rows.append(("patients", told, int(table["in_training"].sum())))
    if {"time", "event"} <= set(table):
        known = table["time"].notna() & table["event"].notna()
        rows.append(("patients", "with a survival time", int(known.sum())))
        rows.append(("patients", "with an event", int(table.loc[known, "event"].sum())))
    if "response" in table:
        rows.append(("patients", "with a response known", int(table["response"].notna().sum())))
        rows.append(("patients", "responders", int((table["response"] == 1).sum())))
    for name in ("age", "sex"):
        if name in table:
            rows.append(("patients", f"with {name} known", int(table[name].notna().sum())))
    if "stage" in table:
        for name, number in STAGES.items():
            rows.append(("stage", name, int((table["stage"] == number).sum())))
        rows.append(("stage", "missing (a level of its own)", int(table["stage"].isna().sum())))
    counts = dropped.groupby("reason", sort=True).size()
    rows += [("left out", str(reason), int(count)) for reason, count in counts.items()]
    return pd.DataFrame(rows, columns=["part", "what", "n"])


def _with_subtypes(table: pd.DataFrame, path: str | Path) -> pd.DataFrame:
    """Add burden and heterogeneity, under the names they bear, and share_* of the subtypes."""
    subtypes = read_tsv(path, dtype={"patient": str})
    if "patient" not in subtypes or subtypes["patient"].duplicated().any():
        raise InputError(f"{path} needs one row per patient, named in the column patient")
    wanted = [c for c in subtypes if c in (*BURDENS, *UNLIKE) or c.startswith(SHARE)]
    absent = sorted(set(table["patient"]) - set(subtypes["patient"]))
    if absent:
        log.info("%d patients have no copy-number profile: %s", len(absent), ", ".join(absent[:10]))
    return table.merge(subtypes[["patient", *wanted]], on="patient", how="left", validate="1:1")


def _with_neighbourhoods(
    table: pd.DataFrame, path: str | Path, slides: Sequence[str], slide_patients: Sequence[str]
) -> pd.DataFrame:
    """Add what lies beside what on those slides that describe the patients."""
    described = read_tsv(path, dtype={"slide": str, "patient": str}).set_index("slide")
    if absent := sorted(set(slides) - set(described.index)):
        raise InputError(f"{path} has no row of {', '.join(absent[:5])}: describe its slides again")
    of_patients = average_slides(described.loc[list(slides)].assign(patient=list(slide_patients)))
    named = of_patients[["patient", *MEASURES]].set_index("patient").add_prefix(NEIGHBOURHOOD)
    return table.merge(named, left_on="patient", right_index=True, how="left", validate="1:1")


def _report(table: pd.DataFrame, n_genes: int) -> None:
    log.info("%d patients, %d predictable genes", len(table), n_genes)
    if table["all_tiles"].any():
        log.warning(
            "too few tumour tiles, described by all tiles: %s",
            ", ".join(table.loc[table["all_tiles"], "patient"]),
        )
    if table["in_training"].any():
        log.warning(
            "the model was trained on these patients, who stay in as summary.training_patients is "
            "keep; what follows is not out of sample for them: %s",
            ", ".join(table.loc[table["in_training"], "patient"]),
            **decides("survival", "response"),
        )
    if table["out_of_distribution"].any():
        log.warning(
            "mostly far from the training features: %s",
            ", ".join(table.loc[table["out_of_distribution"], "patient"]),
            **decides("survival", "response"),
        )
