"""Row 4: the out-of-distribution gate, its level and what it flags.

First the level: simulated patients with shifts of their own, weak to strong, along few or many
directions, normal or heavy-tailed, two slides each; how many slides of exchangeable new patients are
flagged (at most 10 % of patients), and how many of their tiles (1 %). Then, with `--data`, models of her2st sections against
foreign material: white, noise, fluorescence, other stains, another organ, other pixel sizes. With
`--study`, the predicted slides of a finished study, as they are and at half and twice their pixel size.

    python benchmarks_suite/claims.py --row 4 [--seed 11] [--studies 30] [--data FOLDER] [--study FOLDER]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from histogep.deployment.out_of_distribution import FeatureDistance

BLOCKS = [("descriptors", 35), ("encoder", 120)]
#: Size of the shift of a patient in units of the noise, its directions, whether it is heavy-tailed.
SHIFTS = [(0.5, 3), (3.0, 1), (3.0, 3), (10.0, 3), (10.0, 20)]
MODELS = [["A1", "A2", "B4", "C2", "C3", "C4"], ["B4", "C2", "C3", "C4"]]
PATIENT = {"A1": "A", "A2": "A", "B4": "B", "C2": "C", "C3": "C", "C4": "C"}
HIDDEN, TILES = 12, 60


def simulate_study(
    rng: np.random.Generator, n: int, shift: float, rank: int, *, heavy: bool, new: int = 5
) -> np.ndarray:
    """Return which slides (new patients, 2) of exchangeable new patients are out of distribution.

    Beside it the share of distant tiles of each slide: (new patients, 2 slides, 2).
    """
    scales = np.linspace(2, 0.3, HIDDEN)
    texture = [rng.normal(size=(HIDDEN, d)) * scales[:, None] for _, d in BLOCKS]
    turn = [rng.normal(size=(rank, d)) * shift / np.sqrt(rank) for _, d in BLOCKS]

    def patient() -> list[np.ndarray]:
        own = rng.standard_t(4, size=rank) if heavy else rng.normal(size=rank)
        slides = []
        for _ in range(2):
            place = own + 0.3 * rng.normal(size=rank)
            hidden = rng.normal(size=(TILES, HIDDEN))
            parts = [
                hidden @ a + place @ b + rng.normal(size=(TILES, a.shape[1]))
                for a, b in zip(texture, turn, strict=True)
            ]
            slides.append(np.hstack(parts))
        return slides

    training = [(slide, str(number)) for number in range(n) for slide in patient()]
    fitted = FeatureDistance.fit(
        [slide for slide, _ in training], patients=[name for _, name in training], blocks=BLOCKS
    )
    return np.array([[_called(fitted, slide) for slide in patient()] for _ in range(new)])


def _called(fitted: FeatureDistance, values: np.ndarray) -> tuple[float, float]:
    judged = fitted.judge(fitted.measure(values))
    return float(judged.out), float(judged.out_of_distribution.mean())


def show_level(seed: int, studies: int, patients: list[int]) -> None:
    """Print the share of new patients with a slide out of distribution."""
    print(f"seed {seed}, {studies} studies of 5 new patients, two slides each")
    print("patients\tshift\tdirections\ttails\tslides out\tpatients out\tdistant tiles of others")
    for n in patients:
        for shift, rank in SHIFTS:
            for heavy in (False, True):
                rng = np.random.default_rng([seed, n, rank, int(10 * shift), heavy])
                called = np.concatenate(
                    [simulate_study(rng, n, shift, rank, heavy=heavy) for _ in range(studies)]
                )
                out, tiles = called[..., 0] > 0, called[..., 1]
                shares = f"{out.mean():.3f}\t{out.any(1).mean():.3f}\t{tiles[~out].mean():.4f}"
                tails = "t4" if heavy else "normal"
                print(f"{n}\t{shift:g}\t{rank}\t{tails}\t{shares}", flush=True)


def read_tiles(path: Path, um: float, mpp: float, spots: pd.DataFrame) -> np.ndarray:
    """Return tiles of a her2st image about spots, resampled to 224 px."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    half = um / mpp / 2
    with Image.open(path) as image:
        image = image.convert("RGB")
        boxes = [
            tuple(round(v) for v in (x - half, y - half, x + half, y + half))
            for x, y in zip(spots["pixel_x"], spots["pixel_y"], strict=True)
        ]
        return np.stack([np.asarray(image.crop(box).resize((224, 224))) for box in boxes])


def slide_tiles(path: Path, n: int, rng: np.random.Generator, *, least_sd: float) -> np.ndarray:
    """Return tiles of 112 um of a whole-slide image where there is something to see."""
    import openslide
    from PIL import Image

    tiles: list[np.ndarray] = []
    with openslide.OpenSlide(str(path)) as slide:
        side = int(112 / float(slide.properties["openslide.mpp-x"]))
        for _ in range(50 * n):
            x, y = (int(rng.integers(0, size - side)) for size in slide.dimensions)
            pixels = slide.read_region((x, y), 0, (side, side)).convert("RGB")
            if np.asarray(pixels).std() > least_sd:
                tiles.append(np.asarray(pixels.resize((224, 224), Image.LANCZOS)))
            if len(tiles) == n:
                break
    return np.stack(tiles)


def other_stains(tiles: np.ndarray) -> dict[str, np.ndarray]:
    """Return tiles as if stained otherwise, by colour deconvolution, and as negatives."""
    from skimage.color import hed2rgb, rgb2hed

    hed = rgb2hed(tiles)
    nothing = np.zeros_like(hed[..., 0])

    def paint(h: np.ndarray, e: np.ndarray, d: np.ndarray) -> np.ndarray:
        return (hed2rgb(np.stack([h, e, d], -1)) * 255).clip(0, 255).astype(np.uint8)

    return {
        "DAB for eosin": paint(hed[..., 0], nothing, hed[..., 1]),
        "DAB on nuclei": paint(hed[..., 1] * 0.5, nothing, hed[..., 0]),
        "one pink dye": paint(nothing, hed[..., 0] + hed[..., 1], nothing),
        "negative": 255 - tiles,
    }


def foreign_features(data: Path, n: int, seed: int) -> tuple[dict[str, np.ndarray], list]:
    """Return features by what they are of, with the blocks of their columns."""
    from histogep.encoders.encode import encode_batch, open_encoders

    rng = np.random.default_rng(seed)
    settings = [{"name": name, "precision": "float32"} for name in ("descriptors", "lite0")]
    encoders = open_encoders(settings, exported={}, threads=1, cuda=False)

    def encode(tiles: np.ndarray) -> np.ndarray:
        parts = [tiles[at : at + 8] for at in range(0, len(tiles), 8)]
        return np.concatenate([encode_batch(part, encoders) for part in parts])

    found = {}
    for name in PATIENT:
        spots = pd.read_csv(data / f"her2st/spots/{name}.tsv", sep="\t")
        spots = spots.iloc[np.sort(rng.permutation(len(spots))[: 2 * n])]
        image, mpp = data / f"her2st/images/{name}.jpg", 3.19 if name[0] == "A" else 0.687
        tiles = read_tiles(image, 112, mpp, spots)
        found[name] = encode(tiles)
        for um in (56, 224):
            what = f"{name}, pixel size wrong by {112 / um:g}"
            found[what] = encode(read_tiles(image, um, mpp, spots[:n]))
        for stain, pixels in other_stains(tiles[:n]).items():
            found[f"{name}, {stain}"] = encode(pixels)
    flat = {"white": 255, "near white": 240, "black": 0}
    for name, value in flat.items():
        found[name] = encode(np.full((1, 224, 224, 3), value, np.uint8))
    found["noise"] = encode(rng.integers(0, 256, (n, 224, 224, 3), dtype=np.uint8))
    wsi = data / "wsi"
    organ = slide_tiles(wsi / "CMU-1-Small-Region.svs", n, rng, least_sd=8)
    found["another organ"] = encode(organ)
    found["fluorescence"] = encode(slide_tiles(wsi / "test3-DAPI.ndpi", n, rng, least_sd=3))
    return found, [(encoder.name, encoder.dim) for encoder in encoders]


def show_foreign(data: Path, n: int, seed: int) -> None:
    """Print the share of distant tiles of foreign material, by model."""
    features, blocks = foreign_features(data, n, seed)
    rng = np.random.default_rng(seed)
    for training in MODELS:
        slides = [features[name] for name in training]
        fitted = FeatureDistance.fit(
            slides,
            patients=[PATIENT[name] for name in training],
            blocks=blocks,
            white=features["white"][0],
        )
        pooled = np.concatenate(slides)
        drawn = rng.normal(size=(n, pooled.shape[1]))
        noise = {
            "noise features, standard": drawn,
            "noise features, as scattered": pooled.mean(0) + pooled.std(0) * drawn,
            "features permuted": np.column_stack([rng.permutation(c)[:n] for c in pooled.T]),
        }
        print(
            f"\nmodel of {' '.join(training)}\ncase\tbeyond the limit of tiles\tmedian distance\tout"
        )
        for name, values in (features | noise).items():
            judged = fitted.judge(fitted.measure(values))
            single = (judged.ood_score > 1).mean()
            print(f"{name}\t{single:.2f}\t{judged.median:.2f}\t{judged.out}", flush=True)


def show_study(study: Path, n: int) -> None:
    """Print how far the slides of a finished study lie, as they are and at a wrong pixel size."""
    from histogep.encoders.encode import encode_batch, open_encoders
    from histogep.encoders.feature_file import read_features
    from histogep.files import read_json, read_tsv

    (model,) = (study / "results" / "model").iterdir()
    training = read_json(model / "settings.json")["training_slides"]
    patients = read_tsv(study / "results" / "slides.tsv", dtype=str).set_index("slide")["patient"]
    features = {p.stem: read_features(p) for p in (study / "results" / "features").glob("*.h5")}
    first = features[training[0]]
    fitted = FeatureDistance.fit(
        [features[name].values for name in training],
        patients=[patients[name] for name in training],
        blocks=first.blocks,
        white=first.white,
    )
    settings = [{"name": name, "precision": "float32"} for name, _ in first.blocks]
    encoders = open_encoders(settings, exported={}, threads=1, cuda=False)
    others = sorted(set(features) - set(training))
    judged = [fitted.judge(fitted.measure(features[name].values)) for name in others]
    out = sum(each.out for each in judged)
    share = np.median([each.out_of_distribution.mean() for each in judged])
    print(f"{out} of {len(others)} slides out; distant tiles of a slide (median): {share:.3f}")
    print("slide\tum read as 112\tmedian distance\tout")
    for name in others[:: max(1, len(others) // 3)][:3]:
        slide = read_json(study / "results" / "slides" / f"{name}.json")
        coords, mpp = features[name].coords.astype(float), slide["mpp"]
        centres = coords[_evenly(len(coords), n)] + 56 / mpp
        spots = pd.DataFrame(centres, columns=["pixel_x", "pixel_y"])
        for um in (112, 56, 224):
            tiles = read_tiles(study / slide["image"], um, mpp, spots)
            values = [encode_batch(tiles[at : at + 8], encoders) for at in range(0, len(tiles), 8)]
            found = fitted.judge(fitted.measure(np.concatenate(values)))
            print(f"{name}\t{um}\t{found.median:.2f}\t{found.out}", flush=True)


def _evenly(length: int, n: int) -> np.ndarray:
    return np.unique(np.linspace(0, length - 1, min(n, length)).astype(int))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with her2st/ and wsi/")
    parser.add_argument("--study", type=Path, help="folder of a finished study, such as the demo")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--studies", type=int, default=30)
    parser.add_argument("--patients", type=int, nargs="+", default=[2, 3, 5, 10, 20])
    parser.add_argument("--tiles", type=int, default=60)
    chosen = parser.parse_args()
    if chosen.studies:
        show_level(chosen.seed, chosen.studies, chosen.patients)
    if chosen.study:
        show_study(chosen.study, chosen.tiles)
    if chosen.data:
        show_foreign(chosen.data, chosen.tiles, chosen.seed)


if __name__ == "__main__":
    main()
