from __future__ import annotations

import numpy as np
import openslide
import pytest
from PIL import Image
from scipy import ndimage
from scipy.spatial import cKDTree
from skimage.draw import disk

from histogep.slides.fiducials import APART_UM, find_fiducials
from histogep.slides.tissue import segment

#: Image of a Space Ranger run, and um of its pixels by the width of its spots (65 um).
FRAMED = {
    "scanpy_1.0.0/spatial": 65 / (89.4275 * 0.0450045),
    "spaceranger_v1_no_header/outs/spatial": 65 / (89.4448 * 0.0510334),
}


def _lowres(shared_data, folder):
    return np.asarray(Image.open(shared_data / "visium" / folder / "tissue_lowres_image.png"))


def _print_frame(rgb, um_per_px, *, inner=(60, 60), pitch_um=145.0):
    """Print three staggered rows of grey rings along the top and the left of an image."""
    image, centres = rgb.copy(), []
    step = pitch_um / um_per_px
    for row in range(3):
        along = np.arange(1 + row % 2 / 2, (max(rgb.shape[:2]) - 40) / step) * step + 20
        centres += [(12 + row * step * 0.87, x) for x in along if x < rgb.shape[1] - 12]
        centres += [(y, 12 + row * step * 0.87) for y in along if 80 < y < rgb.shape[0] - 12]
    for y, x in centres:
        rim = np.zeros(rgb.shape[:2], bool)
        rim[disk((y, x), 52.5 / um_per_px, shape=rim.shape)] = True
        core = ndimage.binary_erosion(rim, iterations=max(1, int(9 / um_per_px)))
        image[rim], image[core] = (95, 95, 98), (150, 150, 152)
    return image, np.array(centres)


@pytest.mark.parametrize("folder", FRAMED)
def test_the_frame_of_a_real_array_is_found_and_is_no_tissue(shared_data, folder):
    rgb, um = _lowres(shared_data, folder), FRAMED[folder]
    centres = find_fiducials(rgb, um_per_px=um)
    assert 400 < len(centres) < 700  # a frame has 4 strips and 4 corners
    apart = cKDTree(centres).query(centres, k=2)[0][:, 1] * um
    assert np.median(apart) == pytest.approx(143, abs=4)
    assert APART_UM[0] < np.quantile(apart, 0.02)
    assert np.quantile(apart, 0.98) < APART_UM[1]
    tissue, _ = segment(rgb, um_per_px=um, min_fragment_mm2=0.02)
    on_frame = tissue[tuple(np.rint(centres).astype(int).T)]
    # Tissue that lies on the frame stays; the rings beside it do not count (13 and 21 % did).
    assert on_frame.mean() < 0.06
    assert 0.3 < tissue.mean() < 0.5


def test_a_frame_that_is_printed_on_a_real_slide_is_left_out(shared_data):
    slide = openslide.OpenSlide(shared_data / "wsi" / "CMU-1-Small-Region.svs")
    shown = slide.get_thumbnail([side // 8 for side in slide.dimensions]).convert("RGB")
    um = 4.0
    # Twice the glass around it, for a strip of a useful length.
    rgb = np.full((shown.height + 160, shown.width + 200, 3), 243, np.uint8)
    rgb[120:-40, 120:-80] = np.asarray(shown)
    before, _ = segment(rgb, um_per_px=um, min_fragment_mm2=0.02)
    assert len(find_fiducials(rgb, um_per_px=um)) == 0
    printed, centres = _print_frame(rgb, um)
    found = find_fiducials(printed, um_per_px=um)
    assert len(centres) * 0.9 <= len(found) <= len(centres)
    after, _ = segment(printed, um_per_px=um, min_fragment_mm2=0.02)
    assert not after[tuple(np.rint(centres).astype(int).T)].any()
    assert (before & after).sum() > 0.97 * before.sum()


def test_no_other_image_has_a_frame(shared_data):
    images = {f"her2st/images/{name}.jpg": 3.19 for name in ("A1", "A2")}
    images |= {
        f"wsi/qc_tiles/{path.name}": 4.0 for path in (shared_data / "wsi/qc_tiles").iterdir()
    }
    for name, um in images.items():
        rgb = np.asarray(Image.open(shared_data / name).convert("RGB"))
        assert len(find_fiducials(rgb, um_per_px=um)) == 0, name


@pytest.mark.parametrize("shape", [(5, 5), (3, 4000), (300, 300)])
def test_small_and_blank_images_have_no_frame(shape):
    rng = np.random.default_rng(0)
    for rgb in (np.full((*shape, 3), 240), rng.integers(0, 256, (*shape, 3))):
        assert len(find_fiducials(rgb.astype(np.uint8), um_per_px=8.0)) == 0


def test_smooth_tissue_is_not_taken_for_the_glass(shared_data):
    # Neuropil of a mouse brain: most of the smooth bright ground is tissue, and .1 % was found.
    rgb = _lowres(shared_data, "visium_hd_binned_outputs/square_002um/spatial")
    tissue, _ = segment(rgb, um_per_px=10.9, min_fragment_mm2=0.02)
    assert 0.6 < tissue.mean() < 0.85
