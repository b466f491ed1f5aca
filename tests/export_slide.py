"""One slide with everything that is known of its places, in the files that the exports read."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import tifffile
from scipy import sparse

from histogep.export.layers import SlideLayers, read_layers
from histogep.files import write_tsv
from histogep.inputs.resources import FOLDER
from histogep.lattice import Lattice
from histogep.slides.reader import Slide
from histogep.slides.thumbnail import spatial_entry
from histogep.spots.normalise import add_expression

LATTICE = Lattice("visium", 100.0, 112.0)
MPP, WIDTH_PX, HEIGHT_PX = 0.5, 2900, 2100
MARKERS = FOLDER / "markers.tsv"
GENES = ["CD3D", "CD3E", "MS4A1", "COL1A1", "COL3A1", "DCN", "EPCAM", "KRT19"]
ROW, COL = (axis.ravel() for axis in np.indices((10, 12)))
X_PX, Y_PX = (np.asarray(axis) / MPP for axis in LATTICE.centres_um(ROW, COL))
TUMOUR = COL < 6


def write_slide(folder: Path) -> Slide:
    """Write an image that is dark red where the tumour is, blue elsewhere, white beyond x 2400."""
    pixels = np.full((HEIGHT_PX, WIDTH_PX, 3), 255, np.uint8)
    pixels[:, :1200], pixels[:, 1200:2400] = (150, 30, 60), (60, 60, 160)
    pixels[::7] = pixels[::7] // 2
    path = folder / "S.tiff"
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", compression="zlib")
    return Slide(slide="S", image=path, mpp=MPP, width_px=WIDTH_PX, height_px=HEIGHT_PX)


def _values() -> np.ndarray:
    rng = np.random.default_rng(0)
    values = rng.gamma(2, 0.2, (len(ROW), len(GENES)))
    values[:, 6] += 2 * TUMOUR
    values[:, :3] += 2 * (COL > 9)[:, None]
    return values


def _uns() -> dict:
    picture = np.full((420, 580, 3), 200, np.uint8)
    entry = spatial_entry(picture, slide="S", width_px=WIDTH_PX, spot_px=110)
    return {"slide": "S", "mpp": MPP, "lattice": LATTICE.to_settings(), "spatial": entry}


def write_predicted(folder: Path) -> Path:
    """Write results/expression of the slide."""
    obs = pd.DataFrame(
        {
            "row": ROW, "col": COL, "tumour": np.where(TUMOUR, 0.9, 0.1).astype(np.float32),
            "ood_score": np.linspace(0, 1, len(ROW)), "out_of_distribution": False,
        },
        index=[f"{r}x{c}" for r, c in zip(ROW, COL, strict=True)],
    )  # fmt: skip
    obs.loc[obs.index[5], "tumour"] = np.nan
    score = np.linspace(0.1, 0.8, len(GENES))
    var = pd.DataFrame({"predictable": True, "score": score}, index=GENES)
    var.loc["KRT19", "predictable"] = False
    data = anndata.AnnData(_values().astype(np.float32), obs=obs, var=var)
    data.obsm["spatial"] = np.c_[X_PX, Y_PX]
    data.uns = _uns()
    data.write_h5ad(folder / "expression.h5ad")
    return folder / "expression.h5ad"


def write_section(folder: Path) -> dict[str, Path]:
    """Write results/spots and results/labels of the slide, as a section."""
    counts = np.round(_values() * 20)
    names = [f"B{i}" for i in range(len(ROW))]
    obs = pd.DataFrame({"row": ROW, "col": COL}, index=names)
    data = anndata.AnnData(
        sparse.csr_matrix(counts.astype(np.float32)), obs=obs, var=pd.DataFrame(index=GENES)
    )
    data.obsm["spatial"] = np.c_[X_PX, Y_PX]
    data.uns = _uns()
    add_expression(data).write_h5ad(folder / "spots.h5ad")
    label = np.where(TUMOUR, "malignant", "non-malignant").astype(object)
    label[3] = "undetermined"
    table = pd.DataFrame({"barcode": names, "label": label, "source": "annotation"})
    write_tsv(table.assign(confidence=0.8).iloc[::-1], folder / "labels.tsv")
    return {"spots": folder / "spots.h5ad", "labels": folder / "labels.tsv"}


def write_cnv(folder: Path, names, *, name: str = "CNV", refused: str = "") -> Path:
    """Write results/cnv of the slide, its rows in another order."""
    clone = np.where(TUMOUR, np.where(ROW < 5, "0", "1"), "reference")
    obs = pd.DataFrame(
        {"clone": clone, "cnv_score": 0.1 * TUMOUR, "clone_probability": 0.9}, index=list(names)
    )
    data = anndata.AnnData(obs=obs)
    data.obsm["X_cnv"] = np.outer(np.arange(len(ROW)), np.ones(7)).astype(np.float32)
    data.uns = {
        "cnv": {"chr_pos": {"chr2": 4, "chr1": 0}},
        "name": name, "refused": refused, "measured": True, "reference": "labels",
    }  # fmt: skip
    data[::-1].copy().write_h5ad(folder / "cnv.h5ad")
    return folder / "cnv.h5ad"


def predicted_layers(folder: Path, *, subtypes=None, **cnv) -> SlideLayers:
    """Return the layers of the predicted slide."""
    expression = write_predicted(folder)
    names = anndata.read_h5ad(expression).obs_names
    profile = write_cnv(folder, names, **cnv)
    files = {"expression": expression, "cnv": profile, "subtypes": subtypes}
    return read_layers(**files, markers=MARKERS, tumour_threshold=0.5)


def measured_layers(folder: Path) -> SlideLayers:
    """Return the layers of the section."""
    return read_layers(**write_section(folder), markers=MARKERS, tumour_threshold=None)
