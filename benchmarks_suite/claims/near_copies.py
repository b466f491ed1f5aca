"""Row 3: near copies of a section against the leak audit, on the sections of her2st.

Every section is compared with changed copies of itself and of all sections of other patients: the
image turned, mirrored, cropped, rescaled, saved again, stained otherwise; the counts with a spot left
out, one count changed, thinned, permuted. A copy must be called `copy`, no pair of different patients
anything. Sections of one patient are shown as serial sections under two ids. `--slides N` adds the
cost of comparing N slides of as many patients, and the pairs among them that are called alike.

    python benchmarks_suite/claims.py --row 3 --data FOLDER_WITH_her2st [--sections A1 C2] [--seed 7]
"""

from __future__ import annotations

import argparse
import io
import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from PIL import Image, ImageEnhance, ImageOps
from scipy import sparse

from histogep.evaluation.copies import read_profiles, similar_counts, similar_ids, twin_share
from histogep.slides.same_tissue import (
    KEYPOINTS,
    Keypoints,
    judge_images,
    keypoints_of,
    similar_images,
)
from histogep.spots.normalise import add_expression

SECTIONS = ("A1", "A2", "B4", "C2", "C3", "C4")
#: Side in px at which images are changed, before their thumbnails are made.
SIDE_PX = 1200
GLASS = (240, 240, 240)


def read_image(path: Path) -> Image.Image:
    """Return an image of her2st at a longest side of `SIDE_PX`."""
    Image.MAX_IMAGE_PIXELS = None
    with Image.open(path) as file:
        file.draft("RGB", (SIDE_PX, SIDE_PX))
        image = file.convert("RGB")
    image.thumbnail((SIDE_PX, SIDE_PX), Image.LANCZOS)
    return image


def picture_of(image: Image.Image) -> Keypoints:
    """Return the keypoints of an image's thumbnail."""
    image = image.copy()
    image.thumbnail((512, 512), Image.LANCZOS)
    found = keypoints_of(np.asarray(image))
    return Keypoints(found.places[:KEYPOINTS], found.descriptors[:KEYPOINTS])


def changed_images(image: Image.Image, rng: np.random.Generator) -> dict[str, Image.Image]:
    """Return changed copies of an image, by what was done."""
    width, height = image.size
    angle = float(rng.uniform(10, 80))
    saved = io.BytesIO()
    image.save(saved, "JPEG", quality=40)
    noise = rng.normal(0, 12, (height, width, 3))
    shift = rng.uniform(0.8, 1.2, 3)
    left, top = (int(rng.uniform(0, 0.45) * side) for side in (width, height))
    pixels = np.asarray(image, float)
    return {
        "saved again, JPEG 40": Image.open(saved).convert("RGB"),
        "turned by 90": image.rotate(90, expand=True),
        "turned by 180": image.rotate(180),
        f"turned by {angle:.0f}": image.rotate(angle, expand=True, fillcolor=GLASS),
        "mirrored": ImageOps.mirror(image),
        "mirrored and turned": ImageOps.flip(image).rotate(90, expand=True),
        "rescaled to .45": image.resize((int(width * 0.45), int(height * 0.45))),
        "stretched by 1.1": image.resize((int(width * 1.1), height)),
        "a quarter": image.crop((left, top, left + int(width * 0.55), top + int(height * 0.55))),
        "half": image.crop((0, 0, width // 2, height)),
        "darker": ImageEnhance.Brightness(image).enhance(0.8),
        "gamma 1.4": image.point(lambda value: int(255 * (value / 255) ** 1.4)),
        "stained otherwise": Image.fromarray((255 * (pixels / 255) ** shift).astype(np.uint8)),
        "noise of 12": Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8)),
    }


def read_counts(path: Path) -> anndata.AnnData:
    """Return the counts of a section of her2st: spots with at least 100."""
    table = pd.read_csv(path, sep="\t", index_col=0)
    table = table[table.sum(axis=1) >= 100]
    spots = anndata.AnnData(
        sparse.csr_matrix(table.to_numpy(np.float32)),
        obs=pd.DataFrame(index=table.index.astype(str)),
        var=pd.DataFrame(index=table.columns.astype(str)),
    )
    return add_expression(spots)


def changed_counts(table: anndata.AnnData, rng: np.random.Generator) -> dict[str, anndata.AnnData]:
    """Return changed copies of the counts of a section, by what was done."""

    def thinned(share: float) -> anndata.AnnData:
        copy = table.copy()
        copy.X.data = rng.binomial(copy.X.data.astype(int), share).astype(np.float32)
        return copy

    one = table.copy()
    one.X.data[0] += 1
    order = rng.permutation(table.n_obs)
    renamed = table[order].copy()
    renamed.obs_names = [f"spot{i}" for i in range(table.n_obs)]
    copies = {
        "one spot left out": table[1:].copy(),
        "one count changed": one,
        "thinned to 90 %": thinned(0.9),
        "thinned to 50 %": thinned(0.5),
        "thinned to 25 %": thinned(0.25),
        "other barcodes and places": renamed,
        "half of the spots": table[np.sort(order[: table.n_obs // 2])].copy(),
        "half of the genes": table[:, np.sort(rng.permutation(table.n_vars)[::2])].copy(),
    }
    return {name: add_expression(copy) for name, copy in copies.items()}


def show_images(images: dict[str, Image.Image], rng: np.random.Generator) -> pd.DataFrame:
    """Return what was done, how often it was called a copy, and the least score and share."""
    pictures = {name: picture_of(image) for name, image in images.items()}
    rows = []
    for name, image in images.items():
        for what, copy in changed_images(image, rng).items():
            verdict, detail, score = judge_images(pictures[name], picture_of(copy))
            kind = what if "turned by" not in what or "0" in what[-2:] else "turned by any angle"
            rows.append(("image", kind, name, verdict, score, detail))
    names = list(images)
    for i, one in enumerate(names):
        for two in names[i + 1 :]:
            verdict, detail, score = judge_images(pictures[one], pictures[two])
            kind = "serial sections" if one[0] == two[0] else "different patients"
            rows.append(("image", kind, f"{one} {two}", verdict, score, detail))
    return pd.DataFrame(rows, columns=["by", "case", "sections", "verdict", "score", "detail"])


def show_counts(tables: dict[str, anndata.AnnData], rng: np.random.Generator) -> pd.DataFrame:
    """Return the same for counts; the score is the share of spots with a twin."""
    rows = []
    seed = int(rng.integers(1 << 30))
    for name, table in tables.items():
        for what, copy in changed_counts(table, rng).items():
            spots = {name: table, "copy": copy}
            found = similar_counts(read_profiles(spots), {name: "P", "copy": "Q"}, seed=seed)
            verdict = found["verdict"].iloc[0] if len(found) else ""
            rows.append(("counts", what, name, verdict, _score(found), ""))
    profiles = read_profiles(tables)
    # Every section under an id of its own: sections of one patient are then serial sections.
    found = similar_counts(profiles, {name: name for name in tables}, seed=seed)
    verdicts = {(row.slide, row.other): row.verdict for row in found.itertuples()}
    names = list(tables)
    for i, one in enumerate(names):
        for two in names[i + 1 :]:
            kind = "serial sections" if one[0] == two[0] else "different patients"
            share = twin_share(profiles[one], profiles[two], seed=seed)
            rows.append(("counts", kind, f"{one} {two}", verdicts.get((one, two), ""), share, ""))
    return pd.DataFrame(rows, columns=["by", "case", "sections", "verdict", "score", "detail"])


def _score(found: pd.DataFrame) -> float:
    return float(found["score"].iloc[0]) if len(found) else float("nan")


def show_cost(pictures: list[Keypoints], n: int, rng: np.random.Generator) -> None:
    """Compare n slides of as many patients, made of keypoints mixed at random."""
    pool = np.concatenate([found.descriptors for found in pictures])
    slides = {}
    for number in range(n):
        # Means of two keypoints: of their kind, and new in every slide.
        one, two = (pool[rng.integers(0, len(pool), 150)] for _ in range(2))
        noise = rng.normal(0, 8, one.shape)
        values = np.clip((one + two) / 2 + noise, 0, 255).astype(np.float32)
        slides[f"S{number}"] = Keypoints(rng.uniform(0, 512, (150, 2)), values)
    started = time.perf_counter()
    found = similar_images(slides, {name: name for name in slides})
    seconds = time.perf_counter() - started
    print(f"\n{n} slides of {n} patients: {seconds:.0f} s, {len(found)} pairs called alike")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with her2st/")
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS))
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--slides", type=int, default=0, help="also the cost for so many slides")
    chosen = parser.parse_args()
    rng = np.random.default_rng(chosen.seed)
    folder = chosen.data / "her2st"
    images = {s: read_image(folder / "images" / f"{s}.jpg") for s in chosen.sections}
    tables = {s: read_counts(folder / "counts" / f"{s}.tsv.gz") for s in chosen.sections}
    rows = pd.concat([show_images(images, rng), show_counts(tables, rng)])
    summary = rows.groupby(["by", "case"], sort=False).agg(
        pairs=("verdict", "size"),
        copy=("verdict", lambda part: int((part == "copy").sum())),
        alike=("verdict", lambda part: int((part == "alike").sum())),
        least=("score", "min"),
        most=("score", "max"),
    )
    print(f"seed {chosen.seed}, sections {' '.join(chosen.sections)}")
    print(summary.round(2).to_string(), flush=True)
    print(rows[rows["verdict"].eq("alike")].to_string(index=False), flush=True)
    ids = {"s1": "P01", "s2": "P-01", "s3": "p1", "s4": "P11", "s5": "P-1-1", "s6": "Q01"}
    print("ids:", [tuple(row) for row in similar_ids(ids)[["patient", "other_patient"]].values])
    if chosen.slides:
        show_cost([picture_of(image) for image in images.values()], chosen.slides, rng)


if __name__ == "__main__":
    main()
