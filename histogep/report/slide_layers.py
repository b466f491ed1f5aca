"""What the page of a slide can be coloured by: one layer per number or class of its places.

A layer has one array of values per map: of a section the measured and the predicted one (by the
deployed model's namesake that was trained without its patient), of other slides the predicted one.
Only what was computed is a layer: a study without a tumour model or without copy number has fewer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from histogep.cnv.names import subtypes_of
from histogep.errors import InputError
from histogep.evaluation.held_out import HeldOut, read_held_out
from histogep.files import read_json, read_labels, read_tsv, readable
from histogep.lattice import Lattice
from histogep.neighbourhoods.tissue_classes import (
    IMMUNE,
    MALIGNANT,
    measured_places,
    predicted_places,
    score_programmes,
)
from histogep.outcome.signatures import Signature, read_signatures, score_signatures
from histogep.report.style import CATEGORY_COLOURS, LABEL_COLOURS
from histogep.slides.rejected import refuse_failed_spots
from histogep.spots.matrices import expression_of, read_h5ad

log = logging.getLogger(__name__)

MEASURED, HELD_OUT, PREDICTED = "measured", "predicted, patient held out", "predicted"
EXPRESSION_UNIT = "log1p counts per 10,000"
#: Score above which at most 1 % of the tiles of a new patient lie.
_FAR = 1.0
_CLASS_COLOURS = {
    "malignant": "#D55E00",
    "immune": "#0072B2",
    "stroma": "#E69F00",
    "other": "#BBBBBB",
}
_REFERENCE_COLOUR = "#BBBBBB"


@dataclass(frozen=True)
class Layer:
    """One thing that the places can be coloured by.

    Attributes
    ----------
    name, group
        As the menu lists it.
    values
        One array (n,) per map, None where the map has none: numbers with NaN, or, of a layer of
        classes, their names with "" where there is none.
    unit
        Of the numbers.
    diverging
        Whether the colours run from blue over white to red.
    limits
        Ends of the colours; quantiles of the values unless given.
    half_width
        Of the interval about each predicted value; None where there is none.
    about
        What is known of the layer as a whole, such as its held-out score: name -> text.
    colours
        Class -> colour; of a layer of classes only.
    """

    name: str
    group: str
    values: tuple[np.ndarray | None, ...]
    unit: str = ""
    diverging: bool = False
    limits: tuple[float, float] | None = None
    half_width: float | None = None
    about: Mapping[str, str] = field(default_factory=dict)
    colours: Mapping[str, str] | None = None


@dataclass(frozen=True)
class SlideLayers:
    """The places of a slide with all their layers.

    Attributes
    ----------
    slide
        Its id.
    mpp
        um per level-0 px.
    names
        Barcodes of the spots, or row x column of the tiles.
    centres_px
        Level-0 px, (n, 2).
    size_px
        Width and height of a place, level-0 px.
    round
        Whether places are discs (spots) or rectangles (tiles).
    maps
        What each map shows.
    layers
        In the order of the menu.
    notes
        What must be known to read the page.
    warnings
        Why its predictions may not be trusted.
    """

    slide: str
    mpp: float
    names: Sequence[str]
    centres_px: np.ndarray
    size_px: tuple[float, float]
    round: bool
    maps: tuple[str, ...]
    layers: tuple[Layer, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scores:
    """How well the genes and the tumour map are predicted in held-out patients.

    Attributes
    ----------
    models
        Role (expression, tumour) -> name of the model that is deployed.
    genes
        Of each gene: predictable, score, null (its mean), null_upper (its 95 % quantile) and ceiling
        (NaN where they are not known), half_width, and whether the deployed model predicts it; best
        score first.
    tumour
        What is known of the tumour map: name -> text.
    coverage
        Of the intervals; None where the model was trained elsewhere.
    """

    models: Mapping[str, str]
    genes: pd.DataFrame
    tumour: Mapping[str, str]
    coverage: float | None

    def chosen(self, genes: int | Sequence[str]) -> list[str]:
        """Return genes that are named, or so many predictable ones, best score first.

        Where no gene is predictable, the best of all.
        """
        if not isinstance(genes, int):
            return list(dict.fromkeys(genes))
        deployed = self.genes[self.genes["deployed"]]
        reliable = deployed[deployed["predictable"].astype(bool)]
        return list((reliable if len(reliable) else deployed).index[:genes])

    def about(self, gene: str) -> dict[str, str]:
        """Return what is known of a gene's predictions."""
        if gene not in self.genes.index:
            return {"held-out r": "not known, no model predicts it"}
        row = self.genes.loc[gene]
        return {
            "held-out r": _number(row["score"]),
            "null, mean": _number(row["null"]),
            "null, 95 %": _number(row["null_upper"]),
            "ceiling": _number(row["ceiling"]),
            "predictable": "yes" if row["predictable"] else "no",
        }


def read_scores(
    model: str | Path,
    *,
    genes: str | Path | None = None,
    scorecards: str | Path | None = None,
    coverage: float | None = None,
) -> Scores:
    """Return how well a model folder predicts, as far as it is known.

    Parameters
    ----------
    model
        Model folder.
    genes, scorecards
        results/evaluation/{study}/genes.tsv and scorecards.tsv of the study that trained it; None
        where another one did: then its folder says what it knows (no ceiling).
    coverage
        Of the intervals.
    """
    records = read_json(Path(model) / "settings.json")["models"]
    models = {role: str(record["model"]) for role, record in records.items()}
    table = read_tsv(Path(model) / "genes.tsv", dtype={"gene": str})
    table = table[table["main"]].set_index("gene")
    known = table[["predictable", "score", "null", "half_width"]]
    known = known.assign(null_upper=np.nan, ceiling=np.nan)
    deployed = set(known.index)
    tumour = {"held-out AUROC": "not known here, but in the study that trained the model"}
    if genes is not None:
        scored = read_tsv(genes, dtype={"gene": str, "model": str})
        mine = scored["model"] == models["expression"]
        scored = scored[mine & (scored["protocol"] == "patient_cv")].set_index("gene")
        # Genes of one fold's panel alone are predicted and scored there, and not deployed.
        rest = scored.loc[~scored.index.isin(known.index)].rename(columns={"pearson": "score"})
        known = pd.concat([known, rest[["predictable", "score", "null", "half_width"]]])
        known[["null_upper", "ceiling"]] = scored.reindex(known.index)[["null_upper", "ceiling"]]
    if scorecards is not None and "tumour" in models:
        cards = read_tsv(scorecards, dtype={"model": str})
        keys = ("protocol", "patient_cv"), ("model", models["tumour"]), ("metric", "auroc")
        for column, value in keys:
            cards = cards[cards[column] == value]
        for row in cards.itertuples():
            tumour = {
                "held-out AUROC": _number(row.value),
                "95 % interval": f"{_number(row.ci_low)} to {_number(row.ci_high)}",
                "null": _number(row.null),
            }
    order = known["score"].fillna(-np.inf).to_numpy()
    known = known.assign(deployed=known.index.isin(deployed))
    return Scores(models, known.iloc[np.argsort(-order, kind="stable")], tumour, coverage)


def section_layers(
    spots: str | Path,
    labels: str | Path,
    predictions: Sequence[str | Path],
    folds: str | Path,
    *,
    scores: Scores,
    genes: int | Sequence[str],
    markers: str | Path,
    signatures: str | Path,
    cnv: str | Path | None = None,
    subtypes: str | Path | None = None,
) -> SlideLayers:
    """Return the layers of a section: what was measured beside what was predicted.

    Parameters
    ----------
    spots, labels
        results/spots/{slide}.h5ad and results/labels/{slide}.tsv.
    predictions
        results/predictions/{study}/{fold}/{model}.h5ad of all folds and models; those of the fold
        that holds the section's patient out are read.
    folds
        results/folds/{study}.tsv.
    scores
        Of the deployed models (`read_scores`).
    genes
        How many genes become layers, the best predictable ones first, or which.
    markers, signatures
        histogep/resources/markers.tsv and signatures.yaml.
    cnv, subtypes
        results/cnv/{slide}.h5ad and results/cnv/{cohort}/subtypes.tsv, where there are any.

    Raises
    ------
    BadSlide
        The section was recorded as one that cannot be used.
    InputError
        The files do not belong together.
    """
    refuse_failed_spots(spots)
    data = read_h5ad(spots)
    slide = str(data.uns["slide"])
    places = pd.Index(data.obs_names.astype(str))
    fold = _fold_of(folds, slide)
    held = {
        role: _held_out(predictions, fold, model, slide, task=role)
        for role, model in scores.models.items()
        if role in ("expression", "tumour")
    }  # fmt: skip
    label = read_labels(labels, data.obs_names).set_index("barcode").loc[data.obs_names, "label"]
    probability = _of_places(held.get("tumour"), "tumour", places)
    label = label.to_numpy(object)
    layers = [_label_layer(label)]
    if probability is not None:
        # Beside the probability the label as a number, so that both maps have the same colours.
        truth = np.where(label == "malignant", 1.0, np.where(label == "non-malignant", 0.0, np.nan))
        name = "tumour: label as 0 or 1, and probability"
        layers.insert(0, _tumour_layer((truth, probability), scores, name=name))
    expression = expression_of(data)
    predicted = held["expression"]
    if predicted is None:
        raise InputError(
            f"{scores.models['expression']} did not predict section {slide} in fold {fold}: run predict_fold again"
        )
    layers += _gene_layers(
        scores.chosen(genes),
        lambda gene: (_column(expression, data.var_names, gene), _of_places(predicted, gene, places)),
        scores,
    )  # fmt: skip
    lineages = read_tsv(markers, dtype=str)
    known = read_signatures(signatures)
    reliable = [gene for gene in predicted.genes if _predictable(scores, gene)]
    columns = [_of_places(predicted, gene, places) for gene in reliable]
    found_there = [column for column in columns if column is not None]
    predictions = (np.column_stack(found_there), pd.Index(reliable)) if found_there else None
    layers += _programme_layers([(expression, data.var_names), predictions], lineages, known)
    found = measured_places(spots, labels, markers, cnv=cnv)
    layers += _neighbour_layers(found.table.reindex(places), found.lattice, n_maps=2)
    layers += list(_profile_layers(slide, places, cnv, subtypes, n_maps=2))
    image = data.uns["spatial"][slide]["scalefactors"]
    diameter = float(image["spot_diameter_fullres"])
    return SlideLayers(
        slide=slide,
        mpp=float(data.uns["mpp"]),
        names=list(places),
        centres_px=np.asarray(data.obsm["spatial"][:, :2], float),
        size_px=(diameter, diameter),
        round=True,
        maps=(MEASURED, HELD_OUT),
        layers=tuple(layers),
        notes=(
            f"Predicted in fold {fold}, by models that never saw the patient of this section: "
            f"{_models(scores)}.",
            _interval_note(scores),
        ),
    )


def predicted_layers(
    expression: str | Path,
    *,
    scores: Scores,
    genes: int | Sequence[str],
    markers: str | Path,
    signatures: str | Path,
    tumour_threshold: float,
    cnv: str | Path | None = None,
    subtypes: str | Path | None = None,
) -> SlideLayers:
    """Return the layers of a slide without spots.

    Parameters
    ----------
    expression
        results/expression/{slide}.h5ad.
    tumour_threshold
        Probability from which a tile is malignant, for classes and neighbourhoods.
    scores, genes, markers, signatures, cnv, subtypes
        As for `section_layers`.

    Raises
    ------
    InputError
        The files do not belong together.
    """
    data = read_h5ad(expression)
    slide = str(data.uns["slide"])
    places = pd.Index(data.obs_names.astype(str))
    kept = {name: data.uns["lattice"][name] for name in ("kind", "pitch_um", "tile_um")}
    lattice = Lattice(str(kept["kind"]), float(kept["pitch_um"]), float(kept["tile_um"]))
    mpp = float(data.uns["mpp"])
    layers = []
    tumour = data.obs["tumour"].to_numpy(float)
    mapped = bool(np.isfinite(tumour).any())
    if mapped:
        layers.append(_tumour_layer((tumour,), scores))
    layers.append(_distance_layer(data))
    predictable = data.var["predictable"].to_numpy(bool)
    layers += _gene_layers(
        scores.chosen(genes), lambda gene: (_column(data.X, data.var_names, gene),), scores
    )
    lineages = read_tsv(markers, dtype=str)
    sources = [(data.X[:, predictable], data.var_names[predictable])]
    layers += _programme_layers(sources, lineages, read_signatures(signatures))
    if mapped:
        found = predicted_places(expression, markers, tumour_threshold=tumour_threshold, cnv=cnv)
        layers += _neighbour_layers(found.table.reindex(places), lattice, n_maps=1)
    layers += list(_profile_layers(slide, places, cnv, subtypes, n_maps=1))
    warnings = []
    if bool(data.uns["out_of_distribution"]):
        warnings.append(
            f"This slide is out of distribution: its median score is "
            f"{float(data.uns['median_ood_score']):.2f}, and at most 10 % of new patients would reach 1. "
            "What is predicted of it is extrapolated.",
        )
    if section := str(data.uns["training_section"]):
        warnings.append(f"This is the image of the training section {section}: not out of sample.")
    return SlideLayers(
        slide=slide,
        mpp=mpp,
        names=list(places),
        centres_px=np.asarray(data.obsm["spatial"][:, :2], float),
        size_px=(lattice.pitch_um / mpp, lattice.row_um / mpp),
        round=False,
        maps=(PREDICTED,),
        layers=tuple(layers),
        notes=(f"Predicted by {_models(scores)}.", _interval_note(scores)),
        warnings=tuple(warnings),
    )


# ---------------------------------------------------------------------------------- kinds of layers


def _label_layer(labels: np.ndarray) -> Layer:
    present = [name for name in LABEL_COLOURS if (labels == name).any()]
    colours = {name: LABEL_COLOURS[name] for name in present}
    return Layer("label", "Tumour", (labels, None), colours=colours)


def _tumour_layer(
    values: tuple[np.ndarray | None, ...], scores: Scores, *, name: str = "tumour probability"
) -> Layer:
    return Layer(
        name, "Tumour", values, unit="0 to 1", diverging=True,
        limits=(0.0, 1.0), about=scores.tumour,
    )  # fmt: skip


def _distance_layer(data: anndata.AnnData) -> Layer:
    values = data.obs["ood_score"].to_numpy(float)
    share = float(data.obs["out_of_distribution"].to_numpy(bool).mean())
    about = {
        "a tile is out of distribution": f"above {_FAR:g}, which 1 % of the tiles of new patients reach",
        "tiles out of distribution": f"{share:.1%}",
        "median of the slide": _number(float(data.uns["median_ood_score"])),
    }
    top = max(2 * _FAR, float(np.nanquantile(values, 0.99)) if len(values) else 0.0)
    unit = "score: 1 is the limit"
    return Layer("out-of-distribution score", "Reliability", (values,), unit=unit, limits=(0.0, top), about=about)  # fmt: skip


def _gene_layers(
    genes: Sequence[str],
    values_of: Callable[[str], tuple[np.ndarray | None, ...]],
    scores: Scores,
) -> list[Layer]:
    layers = []
    for gene in genes:
        values = values_of(gene)
        if all(part is None for part in values):
            log.warning("gene %s is neither measured nor predicted: it is not shown", gene)
            continue
        half = scores.genes["half_width"].get(gene, np.nan)
        layers.append(
            Layer(
                gene, "Genes", values, unit=EXPRESSION_UNIT,
                half_width=half if np.isfinite(half) else None, about=scores.about(gene),
            )
        )  # fmt: skip
    return layers


def _programme_layers(
    sources: Sequence[tuple[np.ndarray | sparse.spmatrix, pd.Index] | None],
    lineages: pd.DataFrame,
    signatures: Mapping[str, Signature],
) -> list[Layer]:
    """Return programmes and signatures that at least one of the maps has the genes for."""
    programmes: dict[str, list[np.ndarray | None]] = {}
    signature_values: dict[str, list[np.ndarray | None]] = {}
    for number, source in enumerate(sources):
        if source is None:
            continue
        values, genes = source
        scored, _ = score_programmes(np.nan_to_num(values) if not sparse.issparse(values) else values, genes, lineages)  # fmt: skip
        for name in scored:
            column = scored[name].to_numpy(float)
            if np.isfinite(column).any():
                programmes.setdefault(name, [None] * len(sources))[number] = column
        wanted = {gene for one in signatures.values()
                  for gene in (*one.weights, *one.subtract, *one.aliases.values())}  # fmt: skip
        columns = np.flatnonzero(genes.isin(wanted))
        table = pd.DataFrame(_dense(values[:, columns]), columns=genes[columns])
        table = table.loc[:, ~table.columns.duplicated()]
        for name, column in score_signatures(table, dict(signatures))[0].items():
            signature_values.setdefault(name, [None] * len(sources))[number] = column.to_numpy(
                float
            )
    layers = [
        Layer(name, "Marker programmes", tuple(values), unit="mean of standardised genes", diverging=True)
        for name, values in programmes.items()
    ]  # fmt: skip
    layers += [
        Layer(
            name.replace("_", " "), "Signatures", tuple(values), unit="score",
            about={"is": signatures[name].description, "from": signatures[name].reference},
        )
        for name, values in signature_values.items()
    ]  # fmt: skip
    return layers


def _neighbour_layers(table: pd.DataFrame, lattice: Lattice, *, n_maps: int) -> list[Layer]:
    """Return the class of each place, and what share of its neighbours is malignant or immune."""
    known = table["class"].notna().to_numpy()
    if not known.any():
        return []
    rest = (None,) * (n_maps - 1)
    kind = table["class"].fillna("").to_numpy(object)
    colours = {name: colour for name, colour in _CLASS_COLOURS.items() if (kind == name).any()}
    layers = [Layer("tissue class", "Neighbourhoods", (kind, *rest), colours=colours)]
    row, col = (table.loc[known, name].to_numpy(int) for name in ("row", "col"))
    touches = lattice.neighbours(row, col).astype(float)
    n = np.asarray(touches.sum(axis=1)).ravel()
    for name in (MALIGNANT, IMMUNE):
        is_class = (kind[known] == name).astype(float)
        if not is_class.any():
            continue
        share = np.full(len(table), np.nan)
        share[known] = np.where(n > 0, (touches @ is_class) / np.maximum(n, 1), np.nan)
        layers.append(
            Layer(f"{name} share of the neighbours", "Neighbourhoods", (share, *rest), unit="share",
                  limits=(0.0, 1.0))
        )  # fmt: skip
    return layers


def _profile_layers(
    slide: str,
    places: pd.Index,
    cnv: str | Path | None,
    subtypes: str | Path | None,
    *,
    n_maps: int,
) -> Iterator[Layer]:
    """Yield clones and subtypes, under the name that the controls leave them."""
    rest = (None,) * (n_maps - 1)
    table = pd.DataFrame() if subtypes is None else subtypes_of(subtypes, slide)
    if cnv is not None:
        with readable(cnv), h5py.File(cnv) as file:
            obs = anndata.io.read_elem(file["obs"])
            given = {
                name: str(anndata.io.read_elem(file["uns"][name]))
                for name in ("name", "refused", "slide")
            }
        if given["slide"] != slide or not places.isin(obs.index).all():
            raise InputError(
                f"{cnv} is not of the places of slide {slide}: infer its copy number again"
            )
        clone = obs.loc[places, "clone"].astype(str).replace({"nan": "", "none": ""})
        called = str(table["name"].iloc[0]) if len(table) else given["name"]
        what = "clone" if called == "CNV" else "group"
        named = clone.where(~clone.str.isdigit(), what + " " + clone).to_numpy(object)
        if not given["refused"] and (named != "").any():
            yield Layer(
                f"{what}s of this slide ({called})", "Copy number", (named, *rest),
                colours=_category_colours(named), about={"name after its controls": called},
            )  # fmt: skip
    if len(table):
        named = table.set_index("spot")["subtype"].reindex(places).fillna("").to_numpy(object)
        name = str(table["name"].iloc[0])
        yield Layer(
            f"subtypes of the cohort ({name})", "Copy number", (named, *rest),
            colours=_category_colours(named), about={"name after its controls": name},
        )  # fmt: skip


def _category_colours(named: np.ndarray) -> dict[str, str]:
    names = sorted(set(named) - {"", "reference"})
    colours = {
        name: CATEGORY_COLOURS[number % len(CATEGORY_COLOURS)] for number, name in enumerate(names)
    }
    return colours | ({"reference": _REFERENCE_COLOUR} if (named == "reference").any() else {})


# ---------------------------------------------------------------------------------- parts


def _fold_of(folds: str | Path, slide: str) -> str:
    """Return the patient_cv fold that holds a section out."""
    table = read_tsv(folds, dtype=str, keep_default_na=False)
    mine = (table["slide"] == slide) & (table["role"] == "test")
    found = table.loc[mine & (table["protocol"] == "patient_cv"), "fold"]
    if len(found) != 1:
        raise InputError(f"{folds}: section {slide} is held out in {len(found)} patient_cv folds")
    return str(found.iloc[0])


def _held_out(
    predictions: Sequence[str | Path], fold: str, model: str, slide: str, *, task: str
) -> HeldOut | None:
    """Return the prediction of a section by a model of the fold that holds it out.

    A network of both tasks has one of expression and one of tumour.
    """
    paths = [path for path in map(Path, predictions) if (path.parent.name, path.stem) == (fold, model)]  # fmt: skip
    return next((one for one in read_held_out(paths) if (one.slide, one.task) == (slide, task)), None)  # fmt: skip


def _of_places(held: HeldOut | None, gene: str, places: pd.Index) -> np.ndarray | None:
    """Return a column of a prediction in the order of the spots; NaN for those not predicted."""
    if held is None or gene not in held.genes or held.absent:
        return None
    column = held.predicted[:, held.genes.index(gene)]
    place = pd.Index(held.barcode.astype(str)).get_indexer(places)
    return np.where(place >= 0, column[place], np.nan).astype(float)


def _column(values: np.ndarray | sparse.spmatrix, genes: pd.Index, gene: str) -> np.ndarray | None:
    """Return a gene of a matrix; None where it has none."""
    place = genes.get_indexer([gene])[0] if genes.is_unique else -1
    if place < 0:
        return None
    return _dense(values[:, [place]]).ravel()


def _dense(values: Any) -> np.ndarray:
    return np.asarray(values.toarray() if sparse.issparse(values) else values, float)


def _predictable(scores: Scores, gene: str) -> bool:
    return gene in scores.genes.index and bool(scores.genes.loc[gene, "predictable"])


def _models(scores: Scores) -> str:
    return ", ".join(
        f"{role}: {scores.models[role]}" for role in ("expression", "tumour") if role in scores.models
    )  # fmt: skip


def _interval_note(scores: Scores) -> str:
    share = "" if scores.coverage is None else f"{scores.coverage:.0%} "
    return (
        f"Intervals are the {share}conformal intervals of held-out patients. A gene's null is what "
        "unrelated maps of the same patterns reach in one of 20 cases, its ceiling what a perfect "
        "predictor would score against counts as noisy as these."
    )


def _number(value: float) -> str:
    return "not known" if not np.isfinite(value) else f"{value:.2f}"
