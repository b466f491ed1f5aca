"""Find slides that show one tissue under two names, though their files differ.

A copy that was saved again, rescaled, turned, mirrored or cropped has another SHA-256 and the same
picture. A slide is kept as SIFT keypoints of its tissue at low resolution (Lowe, Int J Comput Vis
2004; scikit-image): points that survive all of these. Two slides are compared by the keypoints that
one similarity transform maps onto each other (RANSAC); on unrelated tissue a handful agree by
chance. Serial sections share the outline of the tissue and its large vessels, and lie in between.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from histogep.errors import InputError
from histogep.files import complete, read_parquet
from histogep.inputs.barcodes import patient_key
from histogep.warned import decides

if TYPE_CHECKING:
    from histogep.slides.reader import Slide
    from histogep.slides.tissue import TissueMask

LOG = logging.getLogger(__name__)
#: Longest side in px of the thumbnail of the tissue, and the keypoints kept of it (the coarsest).
THUMBNAIL_PX, KEYPOINTS = 512, 200
#: Keypoints of each slide that all slides are screened with, and what makes two of them alike: the
#: cosine of their descriptors. Pairs with fewer alike are not looked at further.
SCREENED, ALIKE, FEWEST = 64, 0.97, 5
#: Up to so many pairs each is compared, without a screen.
ALL_PAIRS = 5000
#: A match must be better than the second best by this ratio of distances (Lowe's test).
RATIO = 0.8
#: A keypoint lies where the transform says within this many px of the thumbnail.
TOLERANCE_PX = 6.0
#: Keypoints in agreement from which two images are alike, and the share of the keypoints where both
#: show tissue that makes one a copy of the other. Of unrelated slides at most 8 agree, of serial
#: sections a tenth, of copies a third and more (benchmarks_suite/claims/near_copies.py).
ALIKE_POINTS, COPY_POINTS, COPY_SHARE = 12, 12, 0.25
#: Largest change of scale between two images of one tissue.
LARGEST_SCALE = 4.0
_TRIALS = 300
#: How the log describes a slide relative to a training section.
_SAYS = {"copy": "a changed copy of", "alike": "much like (a serial section of one block?)"}
_WIDTH = 128
#: Columns of a table of pairs that are alike.
COLUMNS = ("slide", "patient", "other", "other_patient", "what", "score", "verdict", "detail")


@dataclass(frozen=True)
class Keypoints:
    """Keypoints of one slide: places (n, 2) in px of the thumbnail, descriptors (n, 128) float32."""

    places: np.ndarray
    descriptors: np.ndarray

    def __len__(self) -> int:
        return len(self.places)

    def mirrored(self) -> Keypoints:
        """Return the keypoints of the mirrored picture.

        A descriptor holds 4 x 4 histograms of 8 gradient directions: mirroring reverses the second
        axis and the sense of the directions.
        """
        histograms = self.descriptors.reshape(-1, 4, 4, 8)[:, :, ::-1][..., -np.arange(8) % 8]
        return Keypoints(self.places * [1, -1], histograms.reshape(-1, _WIDTH))


def find_keypoints(
    slide: Slide, mask: TissueMask, tiles: pd.DataFrame, *, tile_um: float
) -> Keypoints:
    """Return the keypoints of a slide's tissue.

    Parameters
    ----------
    slide
        The slide.
    mask
        Its tissue: keypoints elsewhere (glass, pen, labels, which slides of one scanner share) are
        left out.
    tiles
        x_px and y_px of its tiles: their bounding box is looked at.
    tile_um
        Side of a tile in um.
    """
    if not len(tiles):
        return Keypoints(np.zeros((0, 2)), np.zeros((0, _WIDTH), np.float32))
    margin = tile_um / slide.mpp / 2
    place = tiles[["x_px", "y_px"]].to_numpy(float)
    left_top, right_bottom = place.min(0) - margin, place.max(0) + margin
    sides = right_bottom - left_top
    scale = max(sides.max() / THUMBNAIL_PX, 1.0)
    size = tuple(max(1, round(side / scale)) for side in sides)
    picture = slide.read(*left_top, *sides, size=size)
    found = keypoints_of(picture)
    x_px = left_top[0] + found.places[:, 1] * sides[0] / size[0]
    y_px = left_top[1] + found.places[:, 0] * sides[1] / size[1]
    kept = mask.contains(x_px, y_px)
    return Keypoints(found.places[kept][:KEYPOINTS], found.descriptors[kept][:KEYPOINTS])


def keypoints_of(picture: np.ndarray) -> Keypoints:
    """Return all keypoints of an RGB picture, the coarsest first."""
    from skimage.color import rgb2gray
    from skimage.feature import SIFT

    finder = SIFT()
    try:
        finder.detect_and_extract(rgb2gray(picture))
    except RuntimeError:  # what scikit-image raises where a picture has no keypoint
        return Keypoints(np.zeros((0, 2)), np.zeros((0, _WIDTH), np.float32))
    order = np.argsort(-finder.sigmas, kind="stable")
    return Keypoints(
        finder.keypoints[order].astype(float), finder.descriptors[order].astype(np.float32)
    )


def write_keypoints(keypoints: Mapping[str, Keypoints], path: str | Path) -> None:
    """Write the keypoints of slides as a table: slide, row, col, descriptor (128 bytes)."""
    rows = [
        (slide, *place, descriptor.astype(np.uint8).tobytes())
        for slide, found in keypoints.items()
        for place, descriptor in zip(found.places, found.descriptors, strict=True)
    ]
    table = pd.DataFrame(rows, columns=["slide", "row", "col", "descriptor"])
    table = table.astype({"slide": str, "row": np.float32, "col": np.float32})
    with complete(path) as temporary:
        table.to_parquet(temporary, index=False)


def read_keypoints(*paths: str | Path) -> dict[str, Keypoints]:
    """Return the keypoints of each slide in the files that `write_keypoints` wrote.

    A slide without a keypoint is in no file.

    Raises
    ------
    InputError
        A file is damaged or holds something else.
    """
    keypoints: dict[str, Keypoints] = {}
    for path in paths:
        table = read_parquet(path)
        try:
            widths = set(table["descriptor"].map(len))
            if widths - {_WIDTH}:
                raise ValueError(f"descriptors of {widths} bytes")
            for slide, rows in table.groupby("slide", sort=False):
                values = np.frombuffer(b"".join(rows["descriptor"]), np.uint8)
                keypoints[str(slide)] = Keypoints(
                    rows[["row", "col"]].to_numpy(float),
                    values.reshape(-1, _WIDTH).astype(np.float32),
                )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path} cannot be read as keypoints ({error}): delete it and run tile_slide again"
            ) from error
    return keypoints


def compare_images(one: Keypoints, two: Keypoints) -> tuple[int, float]:
    """Return how many keypoints of two slides agree, and their share of those that could.

    The second slide is looked at as it is and mirrored. Those that could agree are the keypoints
    that the transform lays on the part that both slides show, of the slide that has fewer there.
    """
    best = (0, 0.0)
    for other in (two, two.mirrored()):
        best = max(best, _agreement(one, other))
    return best


def judge_images(one: Keypoints, two: Keypoints) -> tuple[str, str, int]:
    """Return `copy`, `alike` (as serial sections are) or "" for two slides, the reason, the score."""
    n, share = compare_images(one, two)
    if n < ALIKE_POINTS:
        return "", "", n
    verdict = "copy" if n >= COPY_POINTS and share >= COPY_SHARE else "alike"
    return verdict, f"{n} keypoints agree, {share:.0%} of those that could", n


def training_copy(pictures: Mapping[str, Keypoints], picture: Keypoints | None) -> str:
    """Return the training section that a slide is a changed copy of, by keypoints; "" for none.

    `pictures` has the keypoints of the training sections, `picture` those of the slide. A slide that
    looks like a serial section is named in the log, and counts as none.
    """
    if picture is None:
        return ""
    for section, known in pictures.items():
        verdict, detail, _ = judge_images(known, picture)
        if verdict:
            LOG.warning(
                "the image is %s the training section %s: %s",
                *(_SAYS[verdict], section, detail),
                **decides("expression", "tumour"),
            )
        if verdict == "copy":
            return section
    return ""


def _agreement(one: Keypoints, two: Keypoints) -> tuple[int, float]:
    from skimage.feature import match_descriptors
    from skimage.measure import ransac
    from skimage.transform import SimilarityTransform

    if min(len(one), len(two)) < ALIKE_POINTS:
        return 0, 0.0
    pairs = match_descriptors(
        one.descriptors, two.descriptors, cross_check=True, max_ratio=RATIO, metric="euclidean"
    )
    if len(pairs) < ALIKE_POINTS:  # no more than these can agree
        return 0, 0.0
    here, there = one.places[pairs[:, 0]], two.places[pairs[:, 1]]

    def sensible(model: SimilarityTransform, *_: np.ndarray) -> bool:
        return 1 / LARGEST_SCALE < model.scale < LARGEST_SCALE

    with np.errstate(all="ignore"):
        model, agree = ransac(
            (here, there),
            SimilarityTransform,
            min_samples=2,
            residual_threshold=TOLERANCE_PX,
            max_trials=_TRIALS,
            stop_probability=0.9999,
            is_model_valid=sensible,
            rng=0,
        )
    if agree is None:
        return 0, 0.0
    could = min(
        _within(model(one.places), two.places), _within(model.inverse(two.places), one.places)
    )
    # Matches at one place are one piece of evidence: a keypoint may have several directions.
    n = len(np.unique(np.round(here[agree] / TOLERANCE_PX), axis=0))
    return n, min(1.0, n / max(could, 1))


def _within(moved: np.ndarray, places: np.ndarray) -> int:
    """Return how many places (each counted once) lie in the bounding box of others."""
    inside = ((moved >= places.min(0)) & (moved <= places.max(0))).all(1)
    return len(np.unique(np.round(moved[inside] / TOLERANCE_PX), axis=0))


def similar_images(
    keypoints: Mapping[str, Keypoints],
    patients: Mapping[str, str],
    *,
    others: Mapping[str, Keypoints] | None = None,
) -> pd.DataFrame:
    """Return the slides of different patients that show the same or neighbouring tissue.

    Parameters
    ----------
    keypoints
        Of each slide that has any.
    patients
        Of each slide (and of each of `others`); slides of one patient are not compared.
    others
        Slides to compare these with; by default they are compared among themselves.

    Returns
    -------
    DataFrame
        `COLUMNS`, one row per pair: what is `image`, score the number of keypoints that agree,
        verdict `copy` or `alike`.
    """
    ours = list(keypoints)
    theirs = ours if others is None else list(others)
    among = keypoints if others is None else others
    rows = []
    for one, two in _screen(keypoints, among, same=others is None):
        slide, other = ours[one], theirs[two]
        if patient_key(patients[slide]) == patient_key(patients[other]):
            continue
        verdict, detail, n = judge_images(keypoints[slide], among[other])
        if verdict:
            ids = (slide, patients[slide], other, patients[other])
            rows.append((*ids, "image", float(n), verdict, detail))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _screen(
    keypoints: Mapping[str, Keypoints], others: Mapping[str, Keypoints], *, same: bool
) -> Sequence[tuple[int, int]]:
    """Return the pairs (places in the two mappings) with enough keypoints alike, in order."""
    if len(keypoints) * len(others) <= ALL_PAIRS:
        n, m = len(keypoints), len(others)
        return [(one, two) for one in range(n) for two in range(one + 1 if same else 0, m)]
    flat = [_unit(found.descriptors[:SCREENED]) for found in others.values()]
    owner = np.repeat(np.arange(len(flat)), [len(part) for part in flat])
    if not len(owner):
        return []
    stacked = np.concatenate(flat)
    starts = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]])
    present = owner[starts]
    pairs = []
    for one, found in enumerate(keypoints.values()):
        best = np.zeros(len(flat), int)
        for view in (found, found.mirrored()):
            alike = _unit(view.descriptors[:SCREENED]) @ stacked.T
            if len(alike):
                nearest = np.maximum.reduceat(alike, starts, axis=1)
                best[present] = np.maximum(best[present], (nearest >= ALIKE).sum(0))
        wanted = np.flatnonzero(best >= FEWEST)
        pairs += [(one, int(two)) for two in wanted if not same or two > one]
    return pairs


def _unit(descriptors: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(descriptors, axis=1, keepdims=True)
    return (descriptors / np.maximum(norm, 1e-9)).astype(np.float32)
