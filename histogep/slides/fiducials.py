"""The printed frame of a spatial array on its image: discs that are no tissue.

The slides of Visium carry a frame of printed rings around each capture area (about 105 um wide, 145 um
apart, in three staggered rows), by which Space Ranger finds the array. Scanned at full field they are
as rough as tissue. They are found as what tissue is not: grey discs of one size at one distance, in
strips of dozens.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from skimage.feature import match_template, peak_local_max
from skimage.measure import block_reduce

#: Radius in um of a printed ring, its rim included.
RADIUS_UM = 56.0
#: Distance in um of neighbouring rings: from, to.
APART_UM = (110.0, 175.0)
#: A strip of the frame has at least this many rings; a corner beside a strip at least so many.
MIN_STRIP, MIN_CORNER = 30, 4
#: How far in um a corner lies from a strip at most.
CORNER_UM = 1500.0
#: Share of the rings whose nearest neighbour is as far as the median one, to `_EVEN`.
MIN_EVEN = 0.9
_EVEN = 0.15
#: Least correlation with a dark disc on a bright ground.
_MATCH = 0.5
#: Rings are searched at no more than this many um per px: at 16 they are 7 px wide.
_LOOK_UM = 16.5
#: The rings are grey: chroma (largest minus smallest channel) of most of them, at most.
MAX_CHROMA = 40.0
#: Coarser images do not show them.
MOST_UM = 22.0


def find_fiducials(rgb: np.ndarray, *, um_per_px: float) -> np.ndarray:
    """Return the centres of the printed rings of array frames, (n, 2) in px (row, column).

    Parameters
    ----------
    rgb
        uint8 RGB.
    um_per_px
        Size of a pixel; with more than `MOST_UM` none are found.

    Returns
    -------
    numpy.ndarray
        Empty without a frame: at least `MIN_STRIP` rings in one strip.
    """
    none = np.zeros((0, 2))
    block = max(1, int(_LOOK_UM // um_per_px))
    um = um_per_px * block
    reach = int(np.ceil(1.35 * RADIUS_UM / um))
    if um_per_px > MOST_UM or min(rgb.shape[:2]) // block <= 2 * reach:
        return none
    grey, chroma = _look(rgb, block)
    away = np.hypot(*np.mgrid[-reach : reach + 1, -reach : reach + 1]) * um
    disc = -np.clip((RADIUS_UM - away) / um + 0.5, 0, 1).astype(np.float32)
    match = match_template(grey, disc, pad_input=True, mode="edge")
    centres = peak_local_max(
        match, min_distance=max(1, int(100 / um)), threshold_abs=_MATCH, exclude_border=False
    )
    if len(centres) < MIN_STRIP:
        return none
    tree = cKDTree(centres)
    pairs = tree.query_pairs(APART_UM[1] / um, output_type="ndarray")
    length = np.linalg.norm(centres[pairs[:, 0]] - centres[pairs[:, 1]], axis=1) * um
    pairs = pairs[length >= APART_UM[0]]
    n = len(centres)
    links = sparse.coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    _, group = connected_components(links, directed=False)
    nearest = tree.query(centres, k=2)[0][:, 1]
    sizes = np.bincount(group)

    def printed(number: int) -> bool:
        mine = group == number
        even = np.abs(nearest[mine] / np.median(nearest[mine]) - 1) < _EVEN
        return bool(
            even.mean() >= MIN_EVEN and np.median(chroma[tuple(centres[mine].T)]) <= MAX_CHROMA
        )

    strips = [number for number in np.flatnonzero(sizes >= MIN_STRIP).tolist() if printed(number)]
    if not strips:
        return none
    strip = np.isin(group, strips)
    near = cKDTree(centres[strip]).query(centres)[0] * um <= CORNER_UM
    corners = [
        number
        for number in np.unique(group[near & ~strip])
        if sizes[number] >= MIN_CORNER and printed(number)
    ]
    found = centres[strip | np.isin(group, corners)]
    return (found + 0.5) * block - 0.5


def _look(rgb: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Return grey level and chroma of an image, each the mean of square blocks; float32."""
    height, width = (side // block * block for side in rgb.shape[:2])
    channels = [
        block_reduce(rgb[:height, :width, c], (block, block), np.mean).astype(np.float32)
        for c in range(3)
    ]
    lowest = np.minimum(np.minimum(channels[0], channels[1]), channels[2])
    highest = np.maximum(np.maximum(channels[0], channels[1]), channels[2])
    return sum(channels[1:], channels[0]) / 3, highest - lowest
