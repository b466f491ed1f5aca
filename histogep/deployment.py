"""The self-contained model folder: pack it, load it, predict any slide with it.

>>> from histogep.deployment import load_model
>>> model = load_model("results/model/demo")
>>> table = model.predict(read_features("results/features/T-01.h5")).to_anndata()
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save_file

from histogep.datasets import check_alike
from histogep.distance import FeatureDistance
from histogep.features import Features, read_features
from histogep.files import complete, read_json, read_tsv, write_json, write_tsv
from histogep.inference import Model, build_model, predict_tiles
from histogep.jobs import InputError
from histogep.lattice import Lattice
from histogep.model_card import model_card
from histogep.model_folder import (
    DISTANCE,
    FORMAT,
    GENES,
    SETTINGS,
    check_features,
    folder_digest,
    read_settings,
    tiles_of,
)

LOG = logging.getLogger(__name__)
ROLES = ("expression", "tumour", "wide")
#: A slide with a larger share of distant tiles is flagged as a whole.
DISTANT_SHARE = 0.5


@dataclass
class Prediction:
    """What a deployed model says of one slide's n tiles.

    Attributes
    ----------
    features
        The features predicted from: slide, places, coordinates.
    expression
        (n, g) float32 log1p CP10k, cut at 0, never shifted.
    genes
        Table of the g genes, index gene: predictable, half_width, score.
    tumour
        Probability, (n,) float32; NaN where the folder has no tumour model.
    distance
        To the training features, (n,) float32; 1 is typical.
    distant
        Beyond what left-out training slides show, (n,) bool.
    uns
        Model digest, study, lattice, um per px, and whether the slide as a whole is distant.
    """

    features: Features
    expression: np.ndarray
    genes: pd.DataFrame
    tumour: np.ndarray
    distance: np.ndarray
    distant: np.ndarray
    uns: dict[str, Any] = field(default_factory=dict)

    @property
    def centres_px(self) -> np.ndarray:
        """Centres (x, y) of the tiles in level-0 px, (n, 2) float64."""
        side_px = self.uns["lattice"]["tile_um"] / self.uns["mpp"]
        return self.features.coords + side_px / 2

    def to_anndata(self) -> anndata.AnnData:
        """Return the table of results/expression/{slide}.h5ad."""
        row, col = self.features.row, self.features.col
        cells = pd.Index([f"{r}x{c}" for r, c in zip(row, col, strict=True)], dtype=object)
        obs = pd.DataFrame(
            {
                "row": row,
                "col": col,
                "tumour": self.tumour,
                "distance": self.distance,
                "distant": self.distant,
            },
            index=cells,
        )
        table = anndata.AnnData(self.expression, obs=obs, var=self.genes.copy())
        table.obsm["spatial"] = self.centres_px
        table.uns.update(self.uns)
        return table


@dataclass
class DeployedModel:
    """A loaded model folder; `predict` applies it to the features of a slide."""

    settings: dict[str, Any]
    models: dict[str, Model]
    genes: pd.DataFrame
    distances: FeatureDistance

    def predict(self, features: Features, *, device: str = "cpu") -> Prediction:
        """Return expression, tumour map and distance of all tiles of a slide.

        Parameters
        ----------
        features
            Made with the encoders and on the lattice of the model.
        device
            "cpu" or "cuda".

        Raises
        ------
        InputError
            Other encoders, other weights, or another lattice than the model's.
        """
        check_features(features, self.settings)
        tiles = tiles_of(features)
        panel = self.settings["models"]["expression"]["genes"]
        expression = predict_tiles(self.models["expression"], tiles, device=device)[0]
        tumour = np.full(len(features.row), np.nan, np.float32)
        if "tumour" in self.models:
            tumour = predict_tiles(self.models["tumour"], tiles, device=device)[0][:, 0]
        distance = self.distances.distance(features.values)
        distant = distance > self.distances.threshold
        share = float(distant.mean())
        if share > DISTANT_SHARE:
            LOG.warning(
                "slide %s: %.0f %% of the tiles lie far from the training features; its "
                "predictions are extrapolated (stain, scanner, tissue or pixel size?)",
                features.slide,
                100 * share,
            )
        return Prediction(
            features=features,
            expression=np.maximum(expression, 0.0, out=expression),
            genes=self.genes.loc[panel, ["predictable", "half_width", "score"]],
            tumour=tumour,
            distance=distance.astype(np.float32),
            distant=distant,
            uns={
                "slide": features.slide,
                "study": self.settings["study"],
                "model_digest": self.settings["digest"],
                "lattice": dict(self.settings["lattice"]),
                "mpp": _mpp(features),
                "distant_share": share,
                "out_of_distribution": share > DISTANT_SHARE,
            },
        )


def load_model(folder: str | Path) -> DeployedModel:
    """Return the model of a folder, after checking that its files are those that were packed."""
    folder = Path(folder)
    settings = read_settings(folder)
    models = {
        role: build_model(
            load_file(folder / f"{role}.safetensors"), record, name=f"{folder}/{role}"
        )
        for role, record in settings["models"].items()
    }
    genes = read_tsv(
        folder / GENES, dtype={"gene": str}, keep_default_na=False, na_values=["", "nan"]
    )
    return DeployedModel(
        settings=settings,
        models=models,
        genes=genes.set_index("gene"),
        distances=FeatureDistance.from_arrays(load_file(folder / DISTANCE)),
    )


def package_model(
    folder: str | Path,
    *,
    study: str,
    weights: Sequence[str | Path],
    settings: Sequence[str | Path],
    fold_settings: Sequence[str | Path],
    features: Sequence[str | Path],
    calibration: str | Path,
    scorecards: str | Path,
    deploy: Mapping[str, str | None],
    lattice: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the model folder of a study; return its settings.

    Parameters
    ----------
    folder
        Folder to write; complete or absent.
    study
        Name of the study.
    weights, settings
        Files of the models trained on all sections, in the same order.
    fold_settings
        Settings of the models of all folds that hold something out.
    features
        Features of all training sections.
    calibration, scorecards
        Tables of results/evaluation/{study}.
    deploy
        `expression` (a model name, or "auto": the best by the inner folds of the honest folds),
        `tumour`, `wide` (model names).
    lattice
        Lattice settings of the study.
    """
    records = [read_json(path) for path in settings]
    trained = {r["model"]: (r, path) for r, path in zip(records, weights, strict=True)}
    honest = [r for r in map(read_json, fold_settings) if r["protocol"] == "honest"]
    names, scores = choose_models(records, honest, deploy)
    slides = [read_features(path) for path in features]
    check_alike(slides, lattice=dict(lattice))
    distances = FeatureDistance.fit([s.values for s in slides], blocks=slides[0].blocks)
    chosen = {role: trained[name][0] for role, name in names.items()}
    genes = gene_table(chosen, read_tsv(calibration, dtype={"gene": str, "model": str}))
    record = {
        "format": FORMAT,
        "study": study,
        "lattice": Lattice.from_settings(lattice).to_settings(),
        "encoders": slides[0].encoders,
        "blocks": [[name, int(width)] for name, width in slides[0].blocks],
        "training_slides": [s.slide for s in slides],
        "validation_scores": scores,
        "distant_threshold": distances.threshold,
        "models": chosen,
    }
    with complete(folder) as temporary:
        temporary.mkdir()
        for role, name in names.items():
            shutil.copyfile(trained[name][1], temporary / f"{role}.safetensors")
        save_file(distances.to_arrays(), temporary / DISTANCE)
        write_tsv(genes, temporary / GENES)
        card = model_card(record, genes, read_tsv(scorecards))
        (temporary / "README.md").write_text(card, encoding="utf-8")
        record["digest"] = folder_digest(temporary, record)
        write_json(record, temporary / SETTINGS)
    LOG.info("packed %s", ", ".join(f"{role}: {name}" for role, name in names.items()))
    return record


def choose_models(
    records: Sequence[Mapping[str, Any]],
    honest: Sequence[Mapping[str, Any]],
    deploy: Mapping[str, str | None],
) -> tuple[dict[str, str], dict[str, float]]:
    """Return role -> model name, and the mean inner-fold score of each expression model.

    The scores come from inside the training patients of the honest folds: the held-out patients
    have no say in which model is deployed.
    """
    by_name = {record["model"]: record for record in records}
    candidates = [r["model"] for r in records if r["task"] == "expression" and r["panel"] == "main"]
    scores = {}
    for name in candidates:
        found = [
            r["validation_score"]
            for r in honest
            if r["model"] == name and r["validation_score"] is not None
        ]
        if found:
            scores[name] = float(np.mean(found))
    wanted = dict(deploy)
    if wanted.get("expression", "auto") == "auto":
        if not candidates:
            raise InputError("no model predicts the main panel: add one under `models`")
        wanted["expression"] = max(candidates, key=lambda name: scores.get(name, -np.inf))
    names = {}
    for role in ROLES:
        name = wanted.get(role)
        if not name:
            continue
        if name not in by_name:
            if role == "expression":
                known = ", ".join(by_name)
                raise InputError(f"deploy.expression names {name!r}; the models are {known}")
            LOG.warning("deploy.%s: there is no model %r, so the folder has none", role, name)
            continue
        expected = ("tumour",) if role == "tumour" else ("expression",)
        if by_name[name]["task"] not in expected:
            raise InputError(f"deploy.{role}: model {name!r} is of task {by_name[name]['task']}")
        names[role] = name
    return names, scores


def gene_table(models: Mapping[str, Mapping[str, Any]], calibration: pd.DataFrame) -> pd.DataFrame:
    """Return gene, main, wide, predictable, score, null, half_width of the deployed panels.

    Each gene's figures are those of the model that predicts it; a gene that no honest fold
    evaluated is not predictable.
    """
    main = list(models["expression"]["genes"])
    wide = list(models["wide"]["genes"]) if "wide" in models else []
    genes = list(dict.fromkeys(main + wide))
    table = pd.DataFrame({"gene": genes})
    table["main"], table["wide"] = table["gene"].isin(main), table["gene"].isin(wide)
    columns = ["predictable", "score", "null", "half_width"]
    figures = pd.DataFrame(index=genes, columns=columns, dtype=object)
    for role, members in (("wide", wide), ("expression", main)):
        if role in models:
            mine = calibration[calibration["model"] == models[role]["model"]]
            mine = mine.drop_duplicates("gene").set_index("gene").reindex(columns=columns)
            shared = [gene for gene in members if gene in mine.index]
            figures.loc[shared] = mine.loc[shared].astype(object)
    flags = figures["predictable"].map(lambda value: str(value).lower() in ("true", "1", "1.0"))
    table["predictable"] = flags.to_numpy(bool)
    for column in columns[1:]:
        table[column] = pd.to_numeric(figures[column], errors="coerce").to_numpy(float)
    return table


def _mpp(features: Features) -> float:
    """Return the um per level-0 px that a slide was cut with."""
    mpp = features.attributes.get("mpp")
    if not mpp:
        raise InputError(f"the features of {features.slide} have no mpp: run encode_tiles again")
    return float(mpp)
