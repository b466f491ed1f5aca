"""Tiles and features of one slide, against two plain ways to make them, in turns in one run.

The slide is a JPEG pyramid of 20,000 x 25,000 px, tiled from one image by mirroring; its cells are
80 rows of 64, 312.5 px each (--grid takes fewer of them, on a smaller slide). They are compared as
pixels and as features:

tiles     ours, against the paper's way: the whole of level 0 in memory, one JPEG file for each cell,
          all read back and resized. Before, sampled tiles must be OpenSlide's pixels to the last bit.
features  ours, against one OpenSlide call for each cell and the network in float32, one after the
          other on one thread. Before, the features must agree within 2 % (relative L2); with
          --her2st their ridge predictions of held-out sections must score alike within .005.
          "tissue" is ours for cells on tissue only, the search for tissue included.

Each variant runs in a process of its own, forked after the imports, so that CPU seconds and wall time
are those of the work. The peak of memory is that of the whole process, and given without what it held
at the start (imports, mainly torch, and weights).

    .venv/bin/python benchmarks_suite/tile_throughput.py her2st/images/C2.jpg --her2st her2st
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import openslide
import pandas as pd
import pyvips
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from histogep.encoders.encode import encode_slide, open_encoders
from histogep.encoders.exported import export_encoder
from histogep.encoders.load import load_encoder
from histogep.encoders.tile_pixels import TILE_PX, read_tiles
from histogep.lattice import Lattice
from histogep.slides.prepare import describe_slide
from histogep.slides.reader import Slide
from histogep.slides.tissue import tissue_mask

#: Rows and columns of cells, as in the paper, and the side of one in px.
GRID, SIDE = (80, 64), 312.5
MPP = 0.25
#: Least share of tissue in a cell, as the default of tissue.min_tissue.
MIN_TISSUE = 0.4
BATCH = 32
#: One section of each patient, and um per px of its image.
SECTIONS = {"A1": 3.19, "B4": 0.687, "C2": 0.687}
SIZE = (TILE_PX, TILE_PX)


def write_pyramid(image: str, path: Path, *, width: int, height: int) -> None:
    """Mirror an image until it fills a slide, and write that as a JPEG pyramid."""
    piece = pyvips.Image.new_from_file(image)
    pair = piece.join(piece.fliphor(), "horizontal")
    row = pair.replicate(-(-width // pair.width), 1)
    both = row.join(row.flipver(), "vertical")
    slide = both.replicate(1, -(-height // both.height)).crop(0, 0, width, height)
    slide.copy(xres=1000 / MPP, yres=1000 / MPP).tiffsave(
        str(path),
        tile=True,
        tile_width=256,
        tile_height=256,
        pyramid=True,
        compression="jpeg",
        Q=85,
        bigtiff=True,
        resunit="cm",
    )


def measured(work: Callable[..., Any], *arguments: Any) -> tuple[Any, dict[str, float]]:
    """Run a function in a forked process; return its result, CPU and wall seconds and peak in MB.

    Functions that begin with a generator's `next` do what is not timed before their first `yield`.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def run() -> None:
        steps = work(*arguments)
        next(steps)
        start = peak_mb()
        cpu, wall = time.process_time(), time.perf_counter()
        result = next(steps)
        cost = {
            "cpu": time.process_time() - cpu,
            "wall": time.perf_counter() - wall,
            "peak": peak_mb(),
            "beyond": peak_mb() - start,
        }
        sender.send((result, cost))

    process = context.Process(target=run)
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        raise SystemExit(f"{work.__name__} failed") from None
    process.join()
    return result


def peak_mb() -> float:
    """Return the peak resident memory of this process in MB, imports and weights included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def open_slide(path: Path, mpp: float = MPP) -> Slide:
    """Return a slide of this benchmark."""
    with openslide.OpenSlide(str(path)) as handle:
        width, height = handle.dimensions
    return Slide(slide=path.stem, image=path, mpp=mpp, width_px=width, height_px=height)


def our_tiles(path: Path, corners: np.ndarray, side: float) -> Iterator[float]:
    """Read all cells batch by batch; give the sum of sampled pixels."""
    yield 0.0
    slide, total = open_slide(path), 0.0
    for start in range(0, len(corners), BATCH):
        tiles = read_tiles(slide, corners[start : start + BATCH], side, size=TILE_PX)
        total += tiles[:, ::32, ::32].sum()
    yield total / (3 * 7 * 7 * len(corners))


def papers_tiles(path: Path, grid: tuple[int, int], folder: str) -> Iterator[float]:
    """Hold level 0, write each cell as a JPEG file, read all back; give the sum of sampled pixels."""
    yield 0.0
    with openslide.OpenSlide(str(path)) as handle:
        picture = handle.read_region((0, 0), 0, handle.dimensions).convert("RGB")
    whole = np.asarray(picture)
    del picture
    tops, lefts = (
        np.linspace(0, size, n + 1).round().astype(int)
        for size, n in zip(whole.shape[:2], grid, strict=True)
    )
    total = 0.0
    with tempfile.TemporaryDirectory(dir=folder) as name:
        files = []
        for row in range(grid[0]):
            for col in range(grid[1]):
                cell = whole[tops[row] : tops[row + 1], lefts[col] : lefts[col + 1]]
                files.append(f"{name}/{row}_{col}.jpg")
                Image.fromarray(cell).save(files[-1])
        del whole
        for file in files:
            tile = Image.open(file).convert("RGB").resize(SIZE, Image.Resampling.BILINEAR)
            total += np.asarray(tile)[::32, ::32].sum()
    yield total / (3 * 7 * 7 * len(files))


def on_white(region: Image.Image) -> Image.Image:
    """Return a region as RGB, white where the slide has no pixels (a plain convert makes it black)."""
    white = Image.new("RGB", region.size, "white")
    white.paste(region, mask=region.getchannel("A"))
    return white


def check_tiles(path: Path, corners: np.ndarray, side: float) -> None:
    """Raise AssertionError unless tiles are OpenSlide's pixels after the same resize."""
    ours = read_tiles(open_slide(path), corners, side, size=TILE_PX)
    n = math.ceil(side)
    with openslide.OpenSlide(str(path)) as handle:
        for tile, corner in zip(ours, corners.round().astype(int), strict=True):
            region = np.asarray(on_white(handle.read_region(tuple(corner.tolist()), 0, (n, n))))
            box = (0, 0, side / (1 + 1e-6), side / (1 + 1e-6))
            resized = Image.fromarray(region).resize(SIZE, Image.Resampling.BILINEAR, box=box)
            np.testing.assert_array_equal(tile, np.asarray(resized))


def our_features(
    path: Path,
    corners: np.ndarray,
    side: float,
    mpp: float,
    threads: int,
    precision: str,
    exported: Path,
) -> Iterator[np.ndarray | None]:
    """Encode cells with `encode_slide`; give their features."""
    settings = [{"name": "lite0", "precision": precision}]
    known = {} if precision == "bfloat16" else {"lite0": exported}
    (encoder,) = open_encoders(settings, exported=known, threads=threads, cuda=False)
    slide, order = open_slide(path, mpp), np.arange(len(corners))
    centres = corners + side / 2
    tiles = pd.DataFrame({"row": order, "col": order, "barcode": ""})
    tiles["x_px"], tiles["y_px"] = centres.T
    lattice = Lattice("square", pitch_um=side * mpp, tile_um=side * mpp)
    yield None
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "features.h5"
        encode_slide(slide, tiles, file, lattice=lattice, encoders=[encoder], threads=threads)
        with h5py.File(file) as content:
            yield content["features"][()]


def plain_features(path: Path, corners: np.ndarray, side: float) -> Iterator[np.ndarray | None]:
    """Encode cells by one OpenSlide call each and the float32 network, on one thread, in turns."""
    torch.set_num_threads(1)
    network = load_encoder({"name": "lite0", "precision": "float32"}).network.network
    yield None
    features = []
    with openslide.OpenSlide(str(path)) as handle, torch.inference_mode():
        for start in range(0, len(corners), BATCH):
            tiles = []
            for x, y in corners[start : start + BATCH]:
                left, top = math.floor(x), math.floor(y)
                size = math.ceil(x + side) - left, math.ceil(y + side) - top
                region = on_white(handle.read_region((left, top), 0, size))
                box = (x - left, y - top, x - left + side, y - top + side)
                tiles.append(np.asarray(region.resize(SIZE, Image.Resampling.BILINEAR, box=box)))
            pixels = torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2).float() / 255
            features.append(network((pixels - 0.5) / 0.5).numpy())
    yield np.concatenate(features)


def find_tissue(path: Path, corners: np.ndarray, side: float) -> Iterator[np.ndarray | None]:
    """Give which cells lie on tissue."""
    slide = open_slide(path)
    yield None
    centres = corners + side / 2
    yield tissue_mask(slide, {}).share(*centres.T, side) >= MIN_TISSUE


def score_sections(features: dict[str, np.ndarray], counts: dict[str, np.ndarray]) -> float:
    """Return the mean in-section correlation of a ridge that never saw the section."""
    scores = []
    for test in features:
        x, y = (
            {name: (v - v.mean(0)) / (v.std(0) + 1e-6) for name, v in values.items()}
            for values in (features, counts)
        )
        train = [name for name in features if name != test]
        inputs, targets = (np.concatenate([v[name] for name in train]) for v in (x, y))
        kernel = inputs @ inputs.T
        weights = np.linalg.solve(kernel + 3000 * np.eye(len(kernel)), targets)
        predicted = x[test] @ inputs.T @ weights
        predicted = (predicted - predicted.mean(0)) / (predicted.std(0) + 1e-12)
        scores.append((predicted * y[test]).mean(0).mean())
    return float(np.mean(scores))


def compare_downstream(
    data: Path, folder: Path, *, spots: int, threads: int, precision: str
) -> tuple[float, float]:
    """Return the ridge scores of our and of plain features on real spots."""
    ours, plain, tables = {}, {}, {}
    for name, mpp in SECTIONS.items():
        image = describe_slide(
            slide=name, source=data / "images" / f"{name}.jpg", folder=folder / name, mpp=mpp
        )["image"]
        table = pd.read_csv(data / "counts" / f"{name}.tsv.gz", sep="\t", index_col=0)
        places = pd.read_csv(data / "spots" / f"{name}.tsv", sep="\t")
        places.index = [f"{x}x{y}" for x, y in zip(places["x"], places["y"], strict=True)]
        both = table.index.intersection(places.index)
        both = both[:: max(1, len(both) // spots)]
        tables[name] = table.loc[both]
        side = 112 / mpp
        corners = places.loc[both, ["pixel_x", "pixel_y"]].to_numpy() - side / 2
        path = Path(image)
        ours[name], _ = measured(
            our_features, path, corners, side, mpp, threads, precision, folder / "lite0.json"
        )
        plain[name], _ = measured(plain_features, path, corners, side)
    genes = sorted(set.intersection(*(set(table.columns) for table in tables.values())))
    log = {
        name: np.log1p(table[genes].div(table.sum(1), axis=0).to_numpy() * 1e4)
        for name, table in tables.items()
    }
    chosen = np.argsort(-sum(values.var(0) for values in log.values()))[:250]
    counts = {name: values[:, chosen] for name, values in log.items()}
    return score_sections(ours, counts), score_sections(plain, counts)


def report(name: str, costs: dict[str, list[dict[str, float]]], *, ours: str, other: str) -> None:
    """Print the medians of two variants, and the median of their ratios round by round."""
    units = {"cpu": "s CPU", "wall": "s", "peak": "MB", "beyond": "MB beyond imports and weights"}
    for what, unit in units.items():
        mine, theirs = ([cost[what] for cost in costs[variant]] for variant in (ours, other))
        ratios = [b / max(a, 1e-9) for a, b in zip(mine, theirs, strict=True)]
        print(
            f"{name}\t{unit}\t{ours} {statistics.median(mine):.2f}\t"
            f"{other} {statistics.median(theirs):.2f}\tratio {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )


def in_turns(
    rounds: int, variants: dict[str, tuple[Any, ...]]
) -> dict[str, list[dict[str, float]]]:
    """Measure the variants in turns, in the other order every second round."""
    costs: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    for number in range(rounds):
        order = list(variants)[:: 1 if number % 2 == 0 else -1]
        for name in order:
            cost = measured(*variants[name])[1]
            costs[name].append(cost)
            figures = "\t".join(f"{what} {value:.2f}" for what, value in cost.items())
            print(f"  round {number + 1}\t{name}\t{figures}", flush=True)
    return costs


def main() -> None:
    """Build the slide, assert that both ways give the same, measure them in turns."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("image", help="an H&E image that libvips reads")
    parser.add_argument("--her2st", type=Path, help="folder of her2st, for the downstream score")
    parser.add_argument("--parts", nargs="+", default=["tiles", "features"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cells", type=int, help="cells that are encoded, evenly spread (all)")
    parser.add_argument("--grid", type=int, nargs=2, default=GRID, help="rows and columns of cells")
    parser.add_argument("--spots", type=int, default=120, help="spots of each her2st section")
    parser.add_argument("--threads", type=int, default=2, help="threads of our encoding")
    parser.add_argument("--precision", default="auto", help="of our encoding")
    parser.add_argument("--folder", help="for the slide and the paper's tiles")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        run(options, Path(name))


def run(options: argparse.Namespace, folder: Path) -> None:
    """Do all parts in a folder."""
    path = folder / "slide.tiff"
    side, grid = SIDE, tuple(options.grid)
    height, width = (round(n * side) for n in grid)
    build = multiprocessing.get_context("fork").Process(
        target=write_pyramid, args=(options.image, path), kwargs={"width": width, "height": height}
    )
    build.start()
    build.join()
    export = multiprocessing.get_context("fork").Process(
        target=export_encoder, args=({"name": "lite0"}, folder / "lite0.json")
    )
    export.start()
    export.join()
    rows, cols = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    corners = np.column_stack([cols, rows]) * side
    print(
        f"slide {width} x {height} px, {len(corners)} cells of {side:g} px, {options.rounds} rounds"
    )
    if "tiles" in options.parts:
        check = multiprocessing.get_context("fork").Process(
            target=check_tiles, args=(path, corners[::37], side)
        )
        check.start()
        check.join()
        if check.exitcode:
            raise SystemExit("tiles differ from OpenSlide's")
        print(f"tiles\t{len(corners[::37])} sampled tiles are OpenSlide's after the same resize")
        costs = in_turns(
            options.rounds,
            {
                "ours": (our_tiles, path, corners, side),
                "paper": (papers_tiles, path, grid, str(folder)),
            },
        )
        report("tiles", costs, ours="ours", other="paper")
    if "features" not in options.parts:
        return
    # Whole pixels, which is where the features say that their tiles lie.
    chosen = corners.round()
    if options.cells:
        chosen = chosen[np.linspace(0, len(chosen) - 1, options.cells).astype(int)]
    common = (MPP, options.threads, options.precision, folder / "lite0.json")
    ours, _ = measured(our_features, path, chosen[::8], side, *common)
    plain, _ = measured(plain_features, path, chosen[::8], side)
    distance = np.linalg.norm(ours - plain) / np.linalg.norm(plain)
    print(f"features\trelative L2 of {len(ours)} cells {100 * distance:.2f} %", flush=True)
    assert distance < 0.02, "the features differ"
    if options.her2st:
        mine, theirs = compare_downstream(
            options.her2st,
            folder,
            spots=options.spots,
            threads=options.threads,
            precision=options.precision,
        )
        print(f"features\tdownstream score ours {mine:.4f}, plain {theirs:.4f}", flush=True)
        assert abs(mine - theirs) < 0.005, "the features predict differently"
    tissue, found = measured(find_tissue, path, chosen, side)
    print(
        f"features\t{tissue.sum()} of {len(chosen)} cells on tissue, found in {found['cpu']:.1f} s CPU"
    )
    costs = in_turns(
        options.rounds,
        {
            "ours": (our_features, path, chosen, side, *common),
            "plain": (plain_features, path, chosen, side),
            "tissue": (our_features, path, chosen[tissue], side, *common),
        },
    )
    # Of the search for tissue on the whole slide, the share of the cells that are encoded.
    for cost in costs["tissue"]:
        for what in ("cpu", "wall"):
            cost[what] += found[what] * len(chosen) / len(corners)
    report(f"features, {len(chosen)} cells", costs, ours="ours", other="plain")
    report("features, tissue only", costs, ours="tissue", other="plain")


if __name__ == "__main__":
    main()
