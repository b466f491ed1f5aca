"""A small study with a planted truth, in the files that the model scripts read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from scipy import ndimage, sparse

from histogep.encoders.feature_file import Features, tile_attributes, write_features
from histogep.files import write_tsv
from histogep.slides.same_tissue import Keypoints
from histogep.slides.thumbnail import spatial_entry
from histogep.spots.normalise import add_expression

LATTICE = {"kind": "visium", "pitch_um": 100.0, "tile_um": 112.0}
BLOCKS = [("descriptors", 12), ("lite0", 96)]
ENCODERS = [
    {"name": "descriptors", "sha256": "d0", "dim": 12, "precision": "float32"},
    {"name": "lite0", "sha256": "e0", "dim": 96, "precision": "float32"},
]
GENES = [f"G{i}" for i in range(24)]
#: The first genes follow the tumour, the next the second field, the rest nothing.
TUMOUR_GENES, IMMUNE_GENES = GENES[:6], GENES[6:12]
SIDE = 18


@dataclass
class Study:
    folder: Path
    slides: list[str]
    patients: list[str]
    files: dict[str, list[Path]] = field(default_factory=dict)

    def roles(self) -> dict[str, str]:
        return dict(zip(self.slides, self.patients, strict=True))


def smooth_field(rng: np.random.Generator) -> np.ndarray:
    values = ndimage.gaussian_filter(rng.normal(size=(SIDE, SIDE)), 2.5)
    return (values - values.mean()) / values.std()


def make_features(slide: str, rng: np.random.Generator, shape=(SIDE, SIDE)):
    """Return features of a slide, and the planted fields at its tiles."""
    fields = np.stack([smooth_field(rng).ravel() for _ in range(2)], axis=1)
    row, col = (axis.ravel().astype(np.int32) for axis in np.indices(shape))
    mixing = np.random.default_rng(99).normal(size=(2, 108))  # the same in every slide
    stain = rng.normal(size=108) * 0.7
    values = fields @ mixing + stain + rng.normal(size=(len(row), 108)) * 2.0
    x_px, y_px = 200.0 * (col + 0.5 * (row % 2)), 173.2 * row
    features = Features(
        slide=slide,
        values=values.astype(np.float32),
        row=row,
        col=col,
        coords=np.column_stack([x_px, y_px]).astype(np.int64),
        barcode=np.array([f"{slide}-{r}x{c}" for r, c in zip(row, col, strict=True)], object),
        white=np.full(108, -3.0, np.float32),
        blocks=list(BLOCKS),
        lattice=dict(LATTICE),
        encoders=[dict(encoder) for encoder in ENCODERS],
        attributes=tile_attributes(
            slide=slide, mpp=0.5, tile_um=112, pitch_um=100, width_px=9000, height_px=9000
        ),
    )
    return features, fields


def make_study(folder: Path, *, patients=("P", "P", "Q", "R", "S"), seed: int = 0) -> Study:
    """Write features, spots and labels of one section per entry of `patients`."""
    rng = np.random.default_rng(seed)
    study = Study(folder, [f"S{i}" for i in range(len(patients))], list(patients))
    effect = np.zeros((2, len(GENES)))
    effect[0, :6] = [0.9, 0.8, 0.7, 0.6, -0.7, -0.8]
    effect[1, 6:12] = 0.8
    for kind, suffix in (("features", "h5"), ("spots", "h5ad"), ("labels", "tsv")):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        study.files[kind] = [folder / kind / f"{slide}.{suffix}" for slide in study.slides]
    for i, slide in enumerate(study.slides):
        features, fields = make_features(slide, rng)
        write_features(features, study.files["features"][i])
        # A tenth of the cells is no spot; the spots file has an order of its own.
        kept = rng.permutation(len(fields))[: int(0.9 * len(fields))]
        rate = np.exp(1.5 + rng.normal(size=len(GENES)) * 0.2 + fields[kept] @ effect)
        other = np.full((len(kept), 1), 400.0)  # a gene outside the panel carries the library
        counts = rng.poisson(np.hstack([rate, other])).astype(np.float32)
        obs = pd.DataFrame(
            {"row": features.row[kept], "col": features.col[kept], "in_tissue": True},
            index=features.barcode[kept].astype(str),
        )
        var = pd.DataFrame(index=[*GENES, "BULK"])
        section = anndata.AnnData(sparse.csr_matrix(counts), obs=obs, var=var)
        section.obsm["spatial"] = features.coords[kept] + 112.0
        picture = rng.integers(0, 255, (180, 180, 3), dtype=np.uint8)
        section.uns = {
            "lattice": dict(LATTICE),
            "spatial": spatial_entry(picture, slide=slide, width_px=9000, spot_px=110.0),
        }
        add_expression(section).write_h5ad(study.files["spots"][i])
        tumour = fields[kept, 0]
        label = np.where(tumour > 0.2, "malignant", "non-malignant").astype(object)
        label[np.abs(tumour - 0.2) < 0.1] = "boundary"
        labels = pd.DataFrame({"barcode": obs.index, "label": label})
        write_tsv(labels.assign(source="annotation", confidence=1.0), study.files["labels"][i])
    return study


def random_keypoints(seed):
    """Return keypoints of a picture that shows nothing."""
    rng = np.random.default_rng(seed)
    descriptors = rng.integers(0, 128, (40, 128)).astype(np.float32)
    return Keypoints(rng.uniform(0, 500, (40, 2)), descriptors)
