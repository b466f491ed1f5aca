"""Peak memory of tile_slide, encode_tiles and predict_slide on a small and on a large slide.

Both slides hold the same 2 mm x 2 mm piece of tissue on an empty background, so that what grows is
the slide and not the work. The rules themselves run, one after the other; the figure is the peak
of the largest process of each call.

    .venv/bin/python benchmarks_suite/slide_memory.py --model results/model/demo --sizes 5000 30000
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyvips

ROOT = Path(__file__).resolve().parents[1]
RULES = {
    "prepare_slide": "results/slides/S.json",
    "tile_slide": "results/tiles/S.parquet",
    "encode_tiles": "results/features/S.h5",
    "predict_slide": "results/expression/S.h5ad",
}
_RUN = (
    "import resource, subprocess, sys; rc = subprocess.call(sys.argv[1:], stdout=2);"
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(rc)"
)


def write_slide(path: Path, side_px: int) -> None:
    """Write a square white slide of 0.5 um/px with 4,000 x 4,000 px of pink and purple texture."""
    rng = np.random.default_rng(1)
    coarse = rng.random((250, 250, 1))
    tissue = np.array([225, 165, 200]) * (1 - coarse) + np.array([120, 70, 150]) * coarse
    tissue = np.kron(tissue, np.ones((16, 16, 1))) + rng.normal(0, 6, (4000, 4000, 1))
    piece = pyvips.Image.new_from_array(tissue.clip(0, 255).astype(np.uint8), interpretation="srgb")
    white = pyvips.Image.black(side_px, side_px, bands=3).linear(1, 245).cast("uchar")
    slide = white.copy(interpretation="srgb").insert(piece, 500, 500).copy(xres=2000, yres=2000)
    slide.tiffsave(
        str(path), tile=True, pyramid=True, compression="jpeg", Q=85, bigtiff=True, resunit="cm"
    )


def peak_mb(folder: Path, model: Path, target: str) -> float:
    """Return the peak resident memory in MB of the largest process that makes a target."""
    command = [
        *(sys.executable, "-m", "snakemake", target, "--snakefile", ROOT / "Snakefile"),
        *("--directory", folder, "--cores", "2", "--configfile", folder / "study.yaml"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", _RUN, *map(str, command)],
        text=True,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    if done.returncode:
        raise SystemExit(f"{target} failed: see {folder}/logs")
    return int(done.stdout.split()[-1]) / 1024


def main() -> None:
    """Measure and print a table: rule by slide size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="a trained model folder")
    parser.add_argument("--sizes", type=int, nargs="+", default=[5000, 30000], help="sides in px")
    options = parser.parse_args()
    print("rule", *(f"{size}x{size} (MB)" for size in options.sizes), "ratio", sep="\t")
    peaks: dict[str, list[float]] = {rule: [] for rule in RULES}
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_slide(folder / "S.tiff", size)
            (folder / "slides.tsv").write_text("slide\tpatient\tcohort\timage\nS\tp\tc\tS.tiff\n")
            (folder / "study.yaml").write_text(
                f"study: memory\nslides: slides.tsv\nmodel: {options.model.resolve()}\n"
            )
            for rule, target in RULES.items():
                peaks[rule].append(peak_mb(folder, options.model, target))
    for rule, values in peaks.items():
        print(
            rule, *(f"{value:.0f}" for value in values), f"{values[-1] / values[0]:.2f}", sep="\t"
        )


if __name__ == "__main__":
    main()
