from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import pyvips
from PIL import Image
from scipy import ndimage
from skimage.draw import disk

from histogep.errors import InputError
from histogep.slides import tissue as tissue_module
from histogep.slides.prepare import describe_slide
from histogep.slides.reader import Slide
from histogep.slides.tissue import TissueMask, find_pen, segment, tissue_mask


def _haze(height, width, seed=0):
    """Glass with JPEG-like noise and a smooth pink haze about the right side."""
    rng = np.random.default_rng(seed)
    glass = np.full((height, width, 3), (238, 236, 240), float)
    haze = np.exp(-(((np.arange(width) - 0.75 * width) / (0.2 * width)) ** 2))[None, :, None]
    glass -= haze * np.array([0, 55, 25])
    return glass + rng.normal(0, 1, glass.shape)


def _tissue(image, where, seed=1):
    rng = np.random.default_rng(seed)
    texture = ndimage.gaussian_filter(rng.normal(size=(*image.shape[:2], 1)), (1, 1, 0)) * 60
    stained = np.array([180, 110, 165]) + texture
    image[where] = stained[where]
    return image


def _image(pieces, height=300, width=400):
    image, where = _haze(height, width), np.zeros((height, width), bool)
    for y, x, radius in pieces:
        where[disk((y, x), radius, shape=where.shape)] = True
    return _tissue(image, where).clip(0, 255).astype(np.uint8), where


def _slide(tmp_path, rgb, mpp=8.0):
    path = tmp_path / "slide.tiff"
    height, width = rgb.shape[:2]
    image = pyvips.Image.new_from_array(rgb).resize(8, kernel="nearest")
    image.tiffsave(str(path), tile=True, pyramid=True, compression="deflate")
    return Slide(slide="S1", image=path, mpp=mpp / 8, width_px=8 * width, height_px=8 * height)


def _overlap(found, truth):
    return (found & truth).sum() / (found | truth).sum()


def test_all_fragments_are_found_and_the_haze_is_not():
    rgb, truth = _image([(120, 100, 60), (150, 300, 50), (240, 200, 20)])
    tissue, pen = segment(rgb, um_per_px=8, min_fragment_mm2=0.02)
    assert _overlap(tissue, truth) > 0.9
    assert ndimage.label(tissue)[1] == 3
    assert not pen.any()


def test_small_pieces_go_by_area():
    rgb, _ = _image([(120, 100, 60), (240, 300, 8)])  # 0.013 mm2, with a rim 0.02
    assert ndimage.label(segment(rgb, um_per_px=8, min_fragment_mm2=0.1)[0])[1] == 1
    assert ndimage.label(segment(rgb, um_per_px=8, min_fragment_mm2=0.005)[0])[1] == 2


def test_grey_dust_and_lines_are_no_tissue():
    rgb, truth = _image([(120, 100, 60)])
    rgb[:, 250:256] = 60
    rgb[200:230, 300:330] = np.random.default_rng(0).integers(90, 200, (30, 30, 1))
    tissue, _ = segment(rgb, um_per_px=8, min_fragment_mm2=0.005)
    assert _overlap(tissue, truth) > 0.9


def test_a_black_border_is_no_tissue():
    rgb, truth = _image([(150, 200, 80)])
    border = np.ones(truth.shape, bool)
    border[20:-20, 25:-25] = False
    rgb[border] = np.random.default_rng(0).integers(0, 12, (border.sum(), 1))
    tissue, pen = segment(rgb, um_per_px=8, min_fragment_mm2=0.02)
    assert _overlap(tissue, truth) > 0.9
    assert not (tissue & border).any()
    assert (pen & border).sum() > 0.9 * border.sum()


@pytest.mark.parametrize(
    ("colour", "is_pen"),
    [
        ((20, 140, 100), True),
        ((30, 90, 200), True),
        ((200, 20, 25), True),
        ((30, 30, 35), True),
        ((95, 70, 150), False),  # haematoxylin
        ((225, 120, 170), False),  # eosin
        ((180, 110, 165), False),
    ],
)
def test_pens_are_told_from_stains_by_hue(colour, is_pen):
    rgb, _ = _image([(120, 100, 60)])
    rgb[100:120, 20:380] = colour
    pen = find_pen(rgb, um_per_px=8)
    assert pen[102:118, 25:375].mean() == pytest.approx(float(is_pen), abs=0.01)
    assert pen[:90].sum() + pen[130:].sum() == 0
    assert not (segment(rgb, um_per_px=8, min_fragment_mm2=0.02)[0] & pen).any()


def test_white_dark_and_grey_slides_are_refused(tmp_path):
    white = np.full((200, 200, 3), 255, np.uint8)
    with pytest.raises(InputError, match="S1: no tissue"):
        tissue_mask(_slide(tmp_path, white), {})
    glass = _haze(200, 200).clip(0, 255).astype(np.uint8)
    with pytest.raises(InputError, match="no tissue"):
        tissue_mask(_slide(tmp_path, glass), {})
    with pytest.raises(InputError, match="not H&E"):
        tissue_mask(_slide(tmp_path, np.zeros((200, 200, 3), np.uint8)), {})
    rgb, _ = _image([(120, 100, 60)])
    grey = np.repeat(rgb.mean(2, keepdims=True).astype(np.uint8), 3, axis=2)
    with pytest.raises(InputError, match="no colour"):
        tissue_mask(_slide(tmp_path, grey), {})


def test_shares_and_points_are_exact():
    mask = np.zeros((100, 120), bool)
    mask[20:60, 30:80] = True
    overview = np.zeros((100, 120, 3), np.uint8)
    tissue = TissueMask(mask, ~mask, overview, 8.0, (10.0, 10.0), 1)
    # A square of 200 px is 20 mask px; centred on the corner, a quarter is tissue.
    share = tissue.share([500, 300, 300, 100, -500], [400, 200, 400, 900, -500], 200)
    np.testing.assert_allclose(share, [1, 0.25, 0.5, 0, 0], atol=1e-6)
    assert tissue.share([305], [400], 200)[0] == pytest.approx(0.525)
    # Outside the slide there is neither tissue nor pen.
    assert tissue.pen_share([0], [0], 200)[0] == pytest.approx(0.25)
    found = tissue.contains([300, 299.9, 799, 800, -5], [200, 200, 599, 300, 300])
    np.testing.assert_array_equal(found, [True, False, True, False, False])
    assert tissue.tissue_mm2 == pytest.approx(2000 * 64e-6)


def test_a_mask_lies_on_its_slide(tmp_path):
    rgb, truth = _image([(120, 100, 60), (150, 300, 50)])
    slide = _slide(tmp_path, rgb)
    mask = tissue_mask(slide, {"mask_um": 8, "min_fragment_mm2": 0.02})
    assert mask.mask.shape == truth.shape
    assert mask.overview.shape == (*truth.shape, 3)
    assert mask.px_per_px == (8, 8)
    assert mask.n_fragments == 2
    assert mask.um_per_px == pytest.approx(8)
    y, x = np.indices(truth.shape).reshape(2, -1)
    on = mask.contains(x * 8 + 4, y * 8 + 4).reshape(truth.shape)
    assert _overlap(on, truth) > 0.9


@pytest.fixture(scope="module")
def sections(shared_data, tmp_path_factory):
    """The six sections of her2st, reduced to 4 um per px to be quick."""
    folder = tmp_path_factory.mktemp("her2st")

    def section(name):
        own = 3.19 if name in ("A1", "A2") else 0.687
        source = shared_data / "her2st" / "images" / f"{name}.jpg"
        full = pyvips.Image.new_from_file(str(source)).width
        width = round(full * own / 4)
        small = folder / f"{name}.tif"
        pyvips.Image.thumbnail(str(source), width, height=10**6).tiffsave(str(small))
        mpp = own * full / width
        found = describe_slide(slide=name, source=small, folder=folder / name, mpp=mpp)
        spots = pd.read_csv(shared_data / "her2st" / "spots" / f"{name}.tsv", sep="\t")
        scale = own / mpp
        slide = Slide(
            slide=name,
            image=found["image"],
            mpp=mpp,
            width_px=found["width"],
            height_px=found["height"],
        )
        return slide, spots["pixel_x"] * scale, spots["pixel_y"] * scale

    return section


@pytest.mark.parametrize("name", ["A1", "A2", "B4", "C2", "C3", "C4"])
def test_spots_of_her2st_are_on_tissue_and_the_haze_is_not(sections, name):
    slide, x_px, y_px = sections(name)
    mask = tissue_mask(slide, {"mask_um": 8, "min_fragment_mm2": 0.02})
    assert mask.contains(x_px, y_px).mean() >= 0.95
    # Every spot of the array that lies on tissue was kept: 0.04 mm2 of a 200-um lattice each.
    assert mask.tissue_mm2 < 1.25 * len(x_px) * 0.04


def test_qc_tiles(shared_data):
    def shares(name):
        image = Image.open(shared_data / "wsi" / "qc_tiles" / f"{name}.png").convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        rgb = np.asarray(white.convert("RGB"))
        return [mask.mean() for mask in segment(rgb, um_per_px=8, min_fragment_mm2=0.02)]

    for name in ("almost-white-1", "no-tissue", "no-tissue-line"):
        assert shares(name) == [0, 0], name
    for name in ("tcga-lung-rgb", "tissue-level0-4302-10273-4814-10785"):
        tissue, pen = shares(name)
        assert tissue > 0.85, name
        assert pen < 0.01, name
    assert shares("no-tissue-green-pen")[0] == 0
    assert shares("no-tissue-green-pen")[1] > 0.6
    for name in ("tcga-green-pen", "tcga-red-pen", "medium-nuclei-score-green-pen-level1"):
        assert 0.08 < shares(name)[1] < 0.5, name
    fat, pen = shares("low-nuclei-score-level1")
    assert fat > 0.4
    assert pen == 0


def test_fluorescence_is_refused(shared_data):
    path = shared_data / "wsi" / "test3-DAPI.ndpi"
    slide = Slide(slide="S1", image=path, mpp=0.228175, width_px=3968, height_px=4864)
    with pytest.raises(InputError, match="not H&E"):
        tissue_mask(slide, {})


@pytest.mark.parametrize("name", ["drawn", "fat"])
def test_windows_find_what_one_look_finds(name, request, monkeypatch):
    if name == "drawn":
        rgb, _ = _image([(120, 100, 60), (150, 300, 50), (290, 395, 40)], height=301, width=403)
        rgb[100:112, 20:380] = (20, 140, 100)
    else:
        folder = request.getfixturevalue("shared_data") / "wsi" / "qc_tiles"
        rgb = np.asarray(Image.open(folder / "low-nuclei-score-level1.png").convert("RGB"))
    whole = segment(rgb, um_per_px=8, min_fragment_mm2=0.02)
    monkeypatch.setattr(tissue_module, "BAND_PX", 64)
    parts = segment(rgb, um_per_px=8, min_fragment_mm2=0.02)
    assert whole[0].any()
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one, other)


def test_windows_of_a_slide_are_read_where_they_lie(tmp_path, monkeypatch):
    rgb, _ = _image([(120, 100, 60), (150, 300, 50), (290, 395, 40)], height=301, width=403)
    slide = _slide(tmp_path, rgb)
    whole = tissue_mask(slide, {"mask_um": 11, "min_fragment_mm2": 0.02})
    monkeypatch.setattr(tissue_module, "BAND_PX", 64)
    parts = tissue_mask(slide, {"mask_um": 11, "min_fragment_mm2": 0.02})
    assert parts.n_fragments == whole.n_fragments == 3
    one, other = whole.mask, parts.mask
    # The pixels at the rim of a margin are averaged over a little less.
    assert (one != other).mean() < 1e-3
    np.testing.assert_allclose(whole.overview, parts.overview, atol=2)


def test_all_spots_of_a_band_and_over_its_edge_are_counted():
    rng = np.random.default_rng(3)
    mask = ndimage.gaussian_filter(rng.normal(size=(400, 250)), 6) > 0
    overview = np.zeros((1, 1, 3), np.uint8)
    tissue = TissueMask(mask, ~mask, overview, 8.0, (16.0, 16.0), 1)
    y, x = rng.integers(20, 380, 300), rng.integers(20, 230, 300)
    found = tissue.share(x * 16, y * 16, 10 * 16)
    expected = [mask[b - 5 : b + 5, a - 5 : a + 5].mean() for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-6)
