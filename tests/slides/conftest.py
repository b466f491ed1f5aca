import numpy as np
import pytest
import pyvips
from scipy import ndimage

from histogep.slides.reader import Slide
from histogep.slides.tissue import TissueMask


@pytest.fixture
def made(tmp_path):
    """A slide of 4 x 3 mm at 2 um per px, tissue on two rectangles, the second sharp by half."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (1500, 2000, 3), dtype=np.uint8)
    blurred = ndimage.gaussian_filter(noise.astype(float), (6, 6, 0)).astype(np.uint8)
    noise[:, 1000:] = blurred[:, 1000:]
    path = tmp_path / "slide.tiff"
    pyvips.Image.new_from_array(noise).tiffsave(str(path), tile=True, compression="deflate")
    slide = Slide(slide="S1", image=path, mpp=2.0, width_px=2000, height_px=1500)
    tissue = np.zeros((375, 500), bool)
    tissue[50:150, 50:200] = tissue[200:350, 300:450] = True
    pen = np.zeros_like(tissue)
    pen[50:150, 50:100] = True
    rgb = np.full((375, 500, 3), 230, np.uint8)
    masks = tissue & ~pen, pen
    # The overview of 375 x 500 mask pixels is every second of them (histogep.slides.tissue).
    return slide, TissueMask(*masks, rgb[::2, ::2].copy(), 8.0, (4.0, 4.0), 2)
