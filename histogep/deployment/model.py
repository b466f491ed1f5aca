"""The self-contained model folder: pack it, load it, predict any slide with it.

>>> from histogep.deployment.model import load_model
>>> model = load_model("results/model/demo")
>>> table = model.predict(read_features("results/features/T-01.h5")).to_anndata()
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd

from histogep.deployment.arrays import (
    check_predicted,
    folder_file,
    read_distance_arrays,
    read_genes,
    read_model_arrays,
)
from histogep.deployment.folder import (
    DISTANCE,
    GENES,
    KEYPOINTS,
    check_features,
    columns_of,
    read_settings,
    tiles_of,
    weights_file,
)
from histogep.deployment.out_of_distribution import FeatureDistance
from histogep.encoders.feature_file import Features
from histogep.errors import InputError
from histogep.models.predict import Model, build_model, network_shapes, predict_tiles
from histogep.slides.same_file import IMAGE, SECTION, training_section
from histogep.slides.same_tissue import Keypoints, read_keypoints, training_copy
from histogep.warned import decides

LOG = logging.getLogger(__name__)


@dataclass
class Prediction:
    """What a deployed model predicts for one slide's n tiles.

    Attributes
    ----------
    features
        The features predicted from: slide, places, coordinates.
    expression
        (n, g) float32 log1p CP10k, cut at 0, never shifted; an array, or an `h5py.Dataset`.
    genes
        Table of the g genes, index gene: predictable, half_width, score.
    tumour
        Probability, (n,) float32; NaN where the folder has no tumour model.
    ood_score
        To the training features, (n,) float32, in units of the limit of single tiles.
    out_of_distribution
        Beyond what nearly all tiles of left-out patients show, (n,) bool; in a slide that is out of
        distribution at least half of its tiles (`histogep.deployment.out_of_distribution.Judged`).
    uns
        Model digest, study, lattice, um per px, how far the slide as a whole lies from the training
        patients (`median_ood_score`), and whether it is out of distribution.
    """

    features: Features
    expression: np.ndarray
    genes: pd.DataFrame
    tumour: np.ndarray
    ood_score: np.ndarray
    out_of_distribution: np.ndarray
    uns: dict[str, Any] = field(default_factory=dict)

    @property
    def centres_px(self) -> np.ndarray:
        """Centres (x, y) of the tiles in level-0 px, (n, 2) float64."""
        side_px = self.uns["lattice"]["tile_um"] / self.uns["mpp"]
        return self.features.coords + side_px / 2

    def of_gene(self, gene: str) -> np.ndarray:
        """Return the expression (n,) of one gene."""
        return self.expression[:, self.genes.index.get_loc(gene)]

    def cells(self) -> pd.DataFrame:
        """Return one row per tile: its place, tumour probability and distance."""
        row, col = self.features.row, self.features.col
        return pd.DataFrame(
            {
                "row": row,
                "col": col,
                "tumour": self.tumour,
                "ood_score": self.ood_score,
                "out_of_distribution": self.out_of_distribution,
            },
            index=pd.Index([f"{r}x{c}" for r, c in zip(row, col, strict=True)], dtype=object),
        )

    def to_anndata(self) -> anndata.AnnData:
        """Return the table of results/expression/{slide}.h5ad."""
        table = anndata.AnnData(self.expression, obs=self.cells(), var=self.genes.copy())
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
    pictures: dict[str, Keypoints] = field(default_factory=dict)

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
        tiles, said = tiles_of(features), {}
        for role in ("expression", "tumour"):
            record = self.settings["models"].get(role)
            if record and record["model"] not in said:
                model = self.models[role]
                said[record["model"]] = predict_tiles(model, tiles, device=device)[0]
        record = self.settings["models"]["expression"]
        expression = said[record["model"]][:, columns_of(record, "expression")]
        self.check_expression(expression, np.arange(len(expression)), slide=features.slide)
        tumour = self.of_role(said, "tumour")
        return self.told(
            features,
            expression=np.maximum(expression, 0.0),
            tumour=np.full(len(features.row), np.nan, np.float32)
            if tumour is None
            else tumour[:, 0],
            measures=self.distances.measure(features.values),
        )

    def of_role(self, said: dict[str, np.ndarray], role: str) -> np.ndarray | None:
        """Return the columns of a role in the model's output, by name; None without a model."""
        record = self.settings["models"].get(role)
        return None if record is None else said[record["model"]][:, columns_of(record, role)]

    def told(
        self,
        features: Features,
        *,
        expression: np.ndarray,
        tumour: np.ndarray,
        measures: np.ndarray,
        image: str = "",
        picture: Keypoints | None = None,
    ) -> Prediction:
        """Return a prediction with what else is known of the slide; warn if it is out of distribution.

        `measures` are those of `FeatureDistance.measure`; `image` is the SHA-256 of the slide's image, "" where it is not known; `picture` has its
        keypoints.
        """
        # A value that is not a number would be written, and no later rule would check it.
        judged = self.distances.judge(measures)
        others = {"the distance to training": np.minimum(judged.ood_score, 1.0)}
        if "tumour" in self.settings["models"]:
            others["the tumour probability"] = tumour
        for name, values in others.items():
            told = {"slide": features.slide, "study": self.settings["study"], "names": [name]}
            check_predicted(values[:, None], rows=np.arange(len(values)), **told)
        share = float(judged.out_of_distribution.mean())
        if judged.out:
            LOG.warning(
                "slide %s: %.0f %% of the tiles lie far from the training features; its "
                "predictions are extrapolated (stain, scanner, tissue or pixel size?)",
                features.slide,
                100 * share,
                **decides("expression", "tumour"),
            )
        panel = self.settings["models"]["expression"]["genes"]
        return Prediction(
            features=features,
            expression=expression,
            genes=self.genes.loc[panel, ["predictable", "half_width", "score"]],
            tumour=tumour,
            ood_score=judged.ood_score,
            out_of_distribution=judged.out_of_distribution,
            uns={
                "slide": features.slide,
                "study": self.settings["study"],
                "model_digest": self.settings["digest"],
                "lattice": dict(self.settings["lattice"]),
                "mpp": _mpp(features),
                "out_of_distribution_share": share,
                "median_ood_score": judged.median,
                "out_of_distribution": judged.out,
                IMAGE: image,
                SECTION: (training_section(self.settings, image) if image else "")
                or training_copy(self.pictures, picture),
            },
        )

    def check_expression(self, values: np.ndarray, rows: np.ndarray, *, slide: str) -> None:
        """Raise InputError for expression, of some tiles and not yet cut at 0, that is not a number."""
        names, study = self.settings["models"]["expression"]["genes"], self.settings["study"]
        check_predicted(values, slide=slide, names=names, rows=rows, study=study)


def load_model(folder: str | Path) -> DeployedModel:
    """Return the model of a folder, after checking that its files are those that were packed."""
    folder = Path(folder)
    settings = read_settings(folder)
    models, loaded = {}, {}
    for role, record in settings["models"].items():
        file = weights_file(settings, role)
        if file not in loaded:
            arrays = read_model_arrays(folder, file, record, network_shapes=network_shapes)
            loaded[file] = build_model(arrays, record, name=f"{folder}/{file}")
        models[role] = loaded[file]
    return DeployedModel(
        settings=settings,
        models=models,
        genes=read_genes(folder, GENES, settings),
        distances=FeatureDistance.from_arrays(
            read_distance_arrays(folder, DISTANCE, settings), blocks=settings["blocks"]
        ),
        pictures=read_keypoints(folder_file(folder, KEYPOINTS)),
    )


def _mpp(features: Features) -> float:
    """Return the um per level-0 px that a slide was cut with."""
    mpp = features.attributes.get("mpp")
    if not mpp:
        raise InputError(f"the features of {features.slide} have no mpp: run encode_tiles again")
    return float(mpp)
