"""Peak memory of tile_slide, encode_tiles and predict_slide on slides of very different size.

All slides hold the same 2 mm x 2 mm piece of tissue on an empty background, so that what grows is
the slide and not the work. The rules themselves run, one after the other; the figure is the peak
of the largest process of each call.

    .venv/bin/python benchmarks_suite/slide_memory.py --model results/model/demo --sizes 5000 30000 100000
"""

from __future__ import annotations

import argparse
import io
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyvips
import tifffile

#: Side of the pyramid that holds the tissue, and of a tile.
CORNER_PX, TILE_PX = 8192, 256
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
    """Write a square white slide of 0.5 um/px with 4,000 x 4,000 px of pink and purple texture.

    A pyramid of the corner with the tissue is made by libvips. The slide takes its tiles from there,
    and all its other tiles are one and the same white tile, so that a slide of 100,000 x 100,000 px
    is a file of some MB, made in seconds, and read like any other.
    """
    rng = np.random.default_rng(1)
    coarse = rng.random((250, 250, 1))
    tissue = np.array([225, 165, 200]) * (1 - coarse) + np.array([120, 70, 150]) * coarse
    tissue = np.kron(tissue, np.ones((16, 16, 1))) + rng.normal(0, 6, (4000, 4000, 1))
    piece = pyvips.Image.new_from_array(tissue.clip(0, 255).astype(np.uint8), interpretation="srgb")
    white = pyvips.Image.black(CORNER_PX, CORNER_PX, bands=3).linear(1, 245).cast("uchar")
    corner = white.copy(interpretation="srgb").insert(piece, 500, 500)
    content = corner.tiffsave_buffer(
        tile=True, tile_width=TILE_PX, tile_height=TILE_PX, pyramid=True, compression="jpeg", Q=85
    )
    with tifffile.TiffFile(io.BytesIO(content)) as pyramid, open(path, "wb") as file:
        file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0))
        link = 8  # where the offset of the next directory is to be written
        blank = pyramid.pages[0]
        place = blank.dataoffsets[-1], blank.databytecounts[-1]
        white_tile = content[place[0] : sum(place)]
        for number, page in enumerate(pyramid.pages):
            link = _write_level(
                file, page, content, white_tile, side_px >> number, first=number == 0, link=link
            )


def _write_level(
    file: BinaryIO,
    page: tifffile.TiffPage,
    content: bytes,
    white_tile: bytes,
    side_px: int,
    *,
    first: bool,
    link: int,
) -> int:
    """Write one level with the tiles of `page` in its corner; return where the next is linked."""
    n_corner, n = page.imagewidth // TILE_PX, -(-side_px // TILE_PX)
    tiles = []
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        tiles.append((file.tell(), count))
        file.write(content[offset : offset + count])
    places = np.empty((n, n, 2), np.uint64)
    places[:] = file.tell(), len(white_tile)
    file.write(white_tile)
    m = min(n, n_corner)
    places[:m, :m] = np.array(tiles, np.uint64).reshape(n_corner, n_corner, 2)[:m, :m]

    def block(values: bytes) -> int:
        file.write(b"\0" * (-file.tell() % 8))
        place = file.tell()
        file.write(values)
        return place

    offsets, counts = (block(places[..., k].tobytes()) for k in (0, 1))
    tables = page.jpegtables
    short, long, undefined, rational, wide = 3, 4, 7, 5, 16
    resolution = struct.unpack("<Q", struct.pack("<II", 20000, 1))[0]  # 20,000 px per cm
    entries = [
        (254, long, 1, 0 if first else 1),
        (256, long, 1, side_px),
        (257, long, 1, side_px),
        (258, short, 3, 0x0000_0008_0008_0008),
        (259, short, 1, 7),
        (262, short, 1, page.photometric.value),
        (277, short, 1, 3),
        (282, rational, 1, resolution),
        (283, rational, 1, resolution),
        (284, short, 1, 1),
        (296, short, 1, 3),
        (322, long, 1, TILE_PX),
        (323, long, 1, TILE_PX),
        (324, wide, n * n, offsets if n > 1 else int(places[0, 0, 0])),
        (325, wide, n * n, counts if n > 1 else int(places[0, 0, 1])),
        (347, undefined, len(tables), block(tables)),
    ]
    packed = b"".join(struct.pack("<HHQQ", *entry) for entry in entries)
    directory = block(struct.pack("<Q", len(entries)) + packed + struct.pack("<Q", 0))
    end = file.tell()
    file.seek(link)
    file.write(struct.pack("<Q", directory))
    file.seek(end)
    return end - 8


def peak_mb(folder: Path, target: str) -> float:
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
    parser.add_argument(
        "--rules",
        nargs="+",
        choices=list(RULES),
        default=list(RULES),
        help="rules to run, in order",
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[5000, 30000, 100000], help="sides in px"
    )
    options = parser.parse_args()
    print("rule", *(f"{size}x{size} (MB)" for size in options.sizes), "ratio", sep="\t")
    peaks: dict[str, list[float]] = {rule: [] for rule in options.rules}
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_slide(folder / "S.tiff", size)
            (folder / "slides.tsv").write_text("slide\tpatient\tcohort\timage\nS\tp\tc\tS.tiff\n")
            (folder / "study.yaml").write_text(
                f"study: memory\nslides: slides.tsv\nmodel: {options.model.resolve()}\n"
            )
            for rule in options.rules:
                peaks[rule].append(peak_mb(folder, RULES[rule]))
    for rule, values in peaks.items():
        print(
            rule,
            *(f"{value:.0f}" for value in values),
            f"{max(values) / min(values):.2f}",
            sep="\t",
        )


if __name__ == "__main__":
    main()
