"""Layers of a slide as GeoJSON for QuPath: one file for each way to class its tiles.

QuPath's tiles have one class and any number of measurements, by which its measurement maps colour them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from histogep.export.layers import SlideLayers
from histogep.files import complete
from histogep.slides.geojson import OTHER_CLASS, TUMOUR_CLASS, write_squares

#: Okabe and Ito's colours, which colour-blind readers tell apart, for clones and kinds of tissue.
_COLOURS = (
    *([213, 94, 0], [0, 114, 178], [0, 158, 115], [240, 228, 66], [204, 121, 167]),
    *([86, 180, 233], [230, 159, 0], [120, 120, 120]),
)
_TISSUES = {
    "malignant": TUMOUR_CLASS,
    "immune": {"name": "Immune cells", "color": [0, 114, 178]},
    "stroma": {"name": "Stroma", "color": [0, 158, 115]},
    "other": {"name": "Other", "color": [120, 120, 120]},
}


def write_qupath(
    layers: SlideLayers, folder: str | Path, *, genes: Sequence[str] = (), threshold: float = 0.5
) -> list[str]:
    """Write the layers of a slide into a folder; complete or absent.

    Parameters
    ----------
    layers
        What is known of the slide.
    folder
        Gets tumour.geojson (classes Tumor and Other; measurements: tumour, the genes), tissue.geojson
        (kinds of tissue; their programmes and neighbours), and clones.geojson where clones are called
        (clones or groups; score and probability).
    genes
        Genes as measurements; empty for `SlideLayers.choose_genes`.
    threshold
        Tumour probability from which a tile is classed as tumour.

    Returns
    -------
    list of str
        The names of the files.

    Raises
    ------
    InputError
        The slide has none of the genes.
    """
    chosen = layers.gene_values(layers.choose_genes(genes))
    numbers = layers.tumour.select_dtypes(include=["number"])
    numbers = numbers.rename(
        columns={"tumour": "tumour probability", "ood_score": "out-of-distribution score"}
    )
    if layers.measured:
        numbers = numbers.rename(columns={"tumour probability": "malignant by label"})
    probability = layers.tumour["tumour"].to_numpy(float)
    classes = [
        None if np.isnan(p) else TUMOUR_CLASS if p >= threshold else OTHER_CLASS
        for p in probability
    ]
    files = {"tumour": (classes, pd.concat([numbers, chosen], axis=1))}
    files["tissue"] = (
        [_TISSUES.get(name) for name in layers.tissue["class"]],
        layers.tissue.drop(columns="class").rename(columns=_spaced),
    )
    if layers.cnv is not None:
        obs = layers.cnv.obs
        kind = "Clone" if str(layers.cnv.uns["name"]) == "CNV" else "Group"
        names = obs["clone"].astype(str)
        known = sorted(name for name in set(names) if name.isdigit())
        colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(known)}
        files["clones"] = (
            [
                {"name": f"{kind} {name}", "color": colours[name]} if name in colours else None
                for name in names
            ],
            obs[["cnv_score", "clone_probability"]].rename(columns=_spaced),
        )
    side_px = (layers.lattice.spot_um if layers.measured else layers.lattice.pitch_um) / layers.mpp
    with complete(folder) as temporary:
        temporary.mkdir()
        for name, (classes, measured) in files.items():
            write_squares(
                temporary / f"{name}.geojson",
                name=layers.slide,
                centres_px=layers.centres_px,
                side_px=side_px,
                classes=classes,
                measurements={str(column): measured[column].to_numpy(float) for column in measured},
            )
    return [f"{name}.geojson" for name in files]


def _spaced(name: str) -> str:
    """Return the name of a column as QuPath's own measurements are written."""
    return name.replace("_", " ")
