"""Time and memory of predicting a whole slide, from the features in their file to the h5ad file.

A lattice of SIDE x SIDE tiles with 1,315 features (the default encoders), 346 genes and a tumour map:
a CMU-Net of the paper's width for both tasks (untrained: the cost does not depend on the weights),
or the light heads, fitted on noise.

    python benchmarks_suite/whole_slide.py [--side 200] [--kind cmunet] [--window 512] [--threads 1]

Prints seconds of wall and CPU, and the peak memory of the process before and after.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from histogep.deployment.model import DeployedModel
from histogep.deployment.out_of_distribution import FeatureDistance
from histogep.deployment.streaming import predict_into
from histogep.encoders.feature_file import FeatureWriter, tile_attributes
from histogep.lattice import Lattice
from histogep.models.neighbours import fit_neighbours
from histogep.models.preparation import Preparation, Tiles
from histogep.models.tumour_head import fit_tumour
from histogep.slides.thumbnail import THUMBNAIL_PX

BLOCKS = [("descriptors", 35), ("lite0", 1280)]
ENCODERS = [{"name": name, "sha256": "", "precision": "float32"} for name, _ in BLOCKS]
LATTICE = Lattice("visium")
N_GENES = 346


def noise_tiles(side: int, seed: int) -> Tiles:
    """Return a square of tiles with features of noise."""
    row, col = (axis.ravel().astype(np.int32) for axis in np.indices((side, side)))
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((len(row), sum(w for _, w in BLOCKS)), dtype=np.float32)
    return Tiles(values, row, col)


def write_slide(path: Path, side: int) -> None:
    """Write the features of a slide, some rows at a time."""
    row, col = (axis.ravel() for axis in np.indices((side, side)))
    rng = np.random.default_rng(0)
    attributes = tile_attributes(
        slide="S", mpp=0.5, tile_um=112, pitch_um=100, width_px=200 * side, height_px=200 * side
    )
    with FeatureWriter(
        path, slide="S", row=row, col=col, coords=np.column_stack([col * 200, row * 173]),
        barcode=[""] * len(row), blocks=BLOCKS, lattice=LATTICE.to_settings(), encoders=ENCODERS,
        attributes=attributes,
    ) as writer:  # fmt: skip
        for start in range(0, len(row), 4096):
            size = (min(4096, len(row) - start), 1315)
            writer.append(rng.standard_normal(size, dtype=np.float32))
        writer.set_white(np.zeros(1315))


def make_model(kind: str) -> DeployedModel:
    """Return a deployed model of a kind for both roles."""
    genes = [f"G{i}" for i in range(N_GENES)]
    tiles = [noise_tiles(24, seed) for seed in (1, 2)]
    options = {"blocks": BLOCKS, "lattice": LATTICE}
    if kind == "cmunet":
        from histogep.models.network.network import CMUNet
        from histogep.models.network.predict import NetworkModel

        preparation = Preparation.fit(tiles, components=64, **options)
        network = CMUNet(2 * preparation.width(), N_GENES + 1).eval()
        unit = np.ones(N_GENES + 1, np.float32)
        model = NetworkModel(network, preparation, unit, unit, "both")
        record = {"model": "cmunet", "task": "both", "genes": genes}
        records, models = {"expression": record, "tumour": record}, [model, model]
    else:
        rng = np.random.default_rng(3)
        targets = [rng.normal(size=(len(part.row), N_GENES)) for part in tiles]
        labels = [(part.values[:, 0] > 0).astype(float) for part in tiles]
        models = [
            fit_neighbours(tiles, targets, ["A", "B"], ranks=[5], alphas=[0.1], **options),
            fit_tumour(tiles, labels, ["A", "B"], alphas=[0.1], **options)[0],
        ]
        records = {
            "expression": {"model": "neighbours", "task": "expression", "genes": genes},
            "tumour": {"model": "tumour", "task": "tumour"},
        }
    settings = {
        "study": "benchmark", "digest": "", "lattice": LATTICE.to_settings(),
        "encoders": ENCODERS, "blocks": [list(block) for block in BLOCKS], "models": records,
    }  # fmt: skip
    table = pd.DataFrame({"predictable": True, "half_width": 1.0, "score": 0.0}, index=genes)
    distances = FeatureDistance.fit(
        [part.values for part in tiles], patients=list(map(str, range(len(tiles)))), blocks=BLOCKS
    )
    return DeployedModel(
        settings, dict(zip(("expression", "tumour"), models, strict=True)), table, distances
    )


def peak_mb() -> float:
    """Return the largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Predict a slide and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=200)
    parser.add_argument("--kind", choices=("cmunet", "neighbours"), default="cmunet")
    parser.add_argument("--window", type=int)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.kind == "cmunet":
        import torch

        from histogep.models.network.predict import NetworkModel

        torch.set_num_threads(arguments.threads)
        if arguments.window:
            NetworkModel.add_to.__kwdefaults__["window"] = arguments.window
    with tempfile.TemporaryDirectory() as folder:
        slide = Path(folder) / "S.h5"
        write_slide(slide, arguments.side)
        model = make_model(arguments.kind)
        before = peak_mb()
        picture = np.full((THUMBNAIL_PX, THUMBNAIL_PX, 3), 255, np.uint8)
        wall, cpu = time.monotonic(), time.process_time()
        answer = Path(folder) / "S.h5ad"
        with predict_into(answer, slide, model, thumbnail=picture) as prediction:
            shape = prediction.expression.shape
        wall, cpu = time.monotonic() - wall, time.process_time() - cpu
        sizes = [(Path(folder) / name).stat().st_size / 1e6 for name in ("S.h5", "S.h5ad")]
    print(
        f"{arguments.kind}, {arguments.side} x {arguments.side} tiles, {shape[1]} genes, "
        f"{arguments.threads} threads: {wall:.1f} s, {cpu:.1f} s of CPU; peak memory "
        f"{before:.0f} -> {peak_mb():.0f} MB; features {sizes[0]:.0f} MB, answer {sizes[1]:.0f} MB"
    )


if __name__ == "__main__":
    main()
