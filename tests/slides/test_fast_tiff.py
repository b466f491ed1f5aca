from __future__ import annotations

import numpy as np
import openslide
import pytest
import pyvips
import tifffile
from scipy import ndimage

from histogep.slides.fast_tiff import FastTiff
from histogep.slides.reader import Slide
from histogep.slides.tiff import whole_levels


def _picture(height, width):
    rng = np.random.default_rng(0)
    rough = rng.random((height, width, 3)).astype(np.float32)
    smooth = ndimage.gaussian_filter(rough, (4, 4, 0))
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    return (smooth * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory):
    """A pyramid of odd size, so that its levels are no whole fractions of level 0."""
    path = tmp_path_factory.mktemp("pyramid") / "S.tiff"
    pyvips.Image.new_from_array(_picture(1503, 1013)).tiffsave(
        str(path), tile=True, tile_width=128, tile_height=128, pyramid=True, compression="deflate"
    )
    return path


def test_pixels_of_a_real_slide_are_openslides(shared_data):
    path = str(shared_data / "wsi" / "CMU-1-Small-Region.svs")
    with openslide.OpenSlide(path) as handle, openslide.OpenSlide(path) as other:
        fast = FastTiff(handle, path)
        rng = np.random.default_rng(0)
        for _ in range(20):
            width, height = (int(side) for side in rng.integers(1, 400, 2))
            left, top = int(rng.integers(0, 2220 - width)), int(rng.integers(0, 2967 - height))
            expected = np.asarray(other.read_region((left, top), 0, (width, height)))[..., :3]
            np.testing.assert_array_equal(fast.read(0, left, top, width, height), expected)


def test_all_levels_are_those_of_the_file(pyramid):
    with openslide.OpenSlide(str(pyramid)) as handle, tifffile.TiffFile(pyramid) as file:
        assert any(downsample % 1 for downsample in handle.level_downsamples)
        fast = FastTiff(handle, str(pyramid))
        for level, (width, height) in enumerate(handle.level_dimensions):
            pixels = fast.read(level, 0, 0, width, height)
            np.testing.assert_array_equal(pixels, file.pages[level].asarray())
        assert fast.read(0, -1, 0, 10, 10) is None
        assert fast.read(0, 1000, 0, 20, 10) is None


def test_a_level_with_other_pixels_is_left_to_openslide(pyramid, monkeypatch):
    from histogep.slides import fast_tiff

    fetch = fast_tiff._fetch
    monkeypatch.setattr(fast_tiff, "_fetch", lambda *place: fetch(*place) // 2)
    with openslide.OpenSlide(str(pyramid)) as handle:
        fast = FastTiff(handle, str(pyramid))
        assert all(fast.read(level, 0, 0, 10, 10) is None for level in range(handle.level_count))


def test_tiles_that_were_never_written_are_white(tmp_path):
    path, pixels = tmp_path / "sparse.tiff", _picture(512, 512)

    def tiles():
        yield from (pixels[:256, :256], None, pixels[256:, :256], pixels[256:, 256:])

    tifffile.imwrite(
        path, tiles(), shape=(512, 512, 3), dtype=np.uint8, tile=(256, 256), photometric="rgb"
    )
    assert whole_levels(path) == {}
    slide = Slide(slide="S1", image=path, mpp=0.5, width_px=512, height_px=512)
    read = slide.read(0, 0, 512, 512)
    assert (read[:256, 256:] == 255).all()
    np.testing.assert_array_equal(read[256:], pixels[256:])


def test_other_formats_are_left_to_openslide(tmp_path, shared_data):
    image = str(min((shared_data / "wsi" / "CMU-1-Small-Region-dicom").glob("*.dcm")))
    with openslide.OpenSlide(image) as handle:
        assert FastTiff(handle, image).read(0, 0, 0, 10, 10) is None
    assert whole_levels(image) == {}
    assert whole_levels(tmp_path / "none.tiff") == {}
