from __future__ import annotations

import h5py
import numpy as np
import openslide
import pytest
import pyvips
import tifffile

from histogep.encoders.given_features import read_given
from histogep.errors import InputError
from histogep.files import write_json
from histogep.lattice import Lattice
from histogep.slides import reader as slides
from histogep.slides.prepare import describe_slide
from histogep.slides.reader import Slide


@pytest.fixture
def checked(tmp_path):
    """A pyramidal TIFF whose level 0 is smooth colour under a one-pixel checkerboard."""
    y, x = np.indices((1000, 1400))
    board = ((x + y) % 2 * 100).astype(np.uint8)
    pixels = np.stack([board + (x / 14).astype(np.uint8), board, board + 50], 2).astype(np.uint8)
    path = tmp_path / "checked.tiff"
    pyvips.Image.new_from_array(pixels).tiffsave(
        str(path), tile=True, tile_width=128, tile_height=128, pyramid=True, compression="none"
    )
    return pixels, Slide(slide="S1", image=path, mpp=0.5, width_px=1400, height_px=1000)


def test_level_0_pixels_are_openslides(shared_data):
    path = shared_data / "wsi" / "CMU-1-Small-Region.svs"
    with (
        openslide.OpenSlide(str(path)) as direct,
        Slide(slide="S1", image=path, mpp=0.499, width_px=2220, height_px=2967) as slide,
    ):
        for x, y in ((0, 0), (1017, 2003), (2220 - 300, 2967 - 200)):
            expected = np.asarray(direct.read_region((x, y), 0, (300, 200)).convert("RGB"))
            np.testing.assert_array_equal(slide.read(x, y, 300, 200), expected)


def test_dicom_is_read_as_the_svs_it_was_made_from(shared_data):
    size = {"mpp": 0.499, "width_px": 2220, "height_px": 2967}
    folder = shared_data / "wsi" / "CMU-1-Small-Region-dicom"
    images = [shared_data / "wsi" / "CMU-1-Small-Region.svs", min(folder.glob("*.dcm"))]
    first, second = (Slide(slide="S", image=image, **size).thumbnail(4) for image in images)
    assert first.shape == second.shape
    assert np.abs(first.astype(int) - second).mean() < 3


def test_outside_is_white_never_black(checked):
    pixels, slide = checked
    region = slide.read(-100, -50, 200, 100)
    assert (region[:50] == 255).all()
    assert (region[:, :100] == 255).all()
    np.testing.assert_array_equal(region[50:, 100:], pixels[:50, :100])
    assert (slide.read(5000, 5000, 64, 64, size=(32, 32)) == 255).all()


def test_fractions_of_a_pixel_count(checked):
    _, slide = checked
    x = np.arange(0, 1000, 100) + 0.25
    found = [slide.read(start, 100, 140, 140, size=(1, 1))[0, 0, 0] for start in x]
    # The red channel is 50 (the board's mean) + x / 14 on average.
    np.testing.assert_allclose(found, 50 + (x + 70) / 14, atol=1.5)


@pytest.mark.parametrize("size", [(1400, 1000), (700, 500), (500, 357), (97, 69), (10, 7)])
def test_pixels_are_averaged_not_picked(checked, size):
    pixels, slide = checked
    small = slide.read(0, 0, 1400, 1000, size=size)
    assert small.shape == (size[1], size[0], 3)
    np.testing.assert_allclose(small.mean((0, 1)), pixels.mean((0, 1)), atol=1.5)
    if size != (1400, 1000):
        assert small[..., 1].std() < 30  # a picked pixel would be 0 or 100: 50


def test_the_level_is_the_next_finer_one(shared_data):
    slide = Slide(
        slide="S1", image=shared_data / "wsi" / "boxes.tiff", mpp=1, width_px=300, height_px=250
    )
    # Levels 1, 2, 4.016, 8.086.
    assert [slide.level(scale) for scale in (0.5, 1, 1.9, 2, 3.9, 4.0, 5, 7.9, 8.05, 99)] == [
        *(0, 0, 0, 1, 1, 2, 2, 2, 3, 3)
    ]


def test_blocks_give_what_one_read_gives(checked, monkeypatch):
    _, slide = checked
    slide.handle  # noqa: B018
    monkeypatch.setattr(slide, "level", lambda scale: 0)
    whole = slide.read(3, 5, 1390, 990, size=(46, 33))
    monkeypatch.setattr(slides, "MAX_REGION_PX", 100_000)
    areas = []
    region = slide.region
    monkeypatch.setattr(slide, "region", lambda *a: areas.append(a[3] * a[4]) or region(*a))
    blocks = slide.read(3, 5, 1390, 990, size=(46, 33))
    assert len(areas) > 5
    assert max(areas) <= 100_000
    assert np.abs(whole.astype(int) - blocks).max() <= 3


def test_a_slide_is_opened_from_its_record(checked, tmp_path):
    _, slide = checked
    content = {"slide": "S1", "image": slide.image, "mpp": 0.5, "width": 1400, "height": 1000}
    write_json(content, tmp_path / "S1.json")
    assert Slide.from_json(tmp_path / "S1.json").thumbnail(5).shape == (100, 140, 3)


def test_files_that_changed_or_went_are_input_errors(checked, tmp_path):
    _, slide = checked
    changed = Slide(slide="S1", image=slide.image, mpp=0.5, width_px=1401, height_px=1000)
    with pytest.raises(InputError, match="prepare_slide"):
        changed.read(0, 0, 10, 10)
    gone = Slide(slide="S1", image=tmp_path / "gone.tiff", mpp=0.5, width_px=1, height_px=1)
    with pytest.raises(InputError, match=r"gone\.tiff"):
        gone.read(0, 0, 10, 10)


def test_a_damaged_tile_is_an_input_error_and_the_rest_stays_readable(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (512, 512, 3), dtype=np.uint8)
    path = tmp_path / "damaged.tiff"
    pyvips.Image.new_from_array(pixels).tiffsave(
        str(path), tile=True, tile_width=256, tile_height=256, compression="deflate"
    )
    content = bytearray(path.read_bytes())
    with pyvips_offsets(path) as offsets:
        start = offsets[3]
    content[start : start + 2000] = bytes(2000)
    path.write_bytes(content)
    slide = Slide(slide="S1", image=path, mpp=0.5, width_px=512, height_px=512)
    with pytest.raises(InputError, match="damaged"):
        slide.read(256, 256, 200, 200)
    np.testing.assert_array_equal(slide.read(0, 0, 200, 200), pixels[:200, :200])


def pyvips_offsets(path):
    import contextlib

    import tifffile

    with tifffile.TiffFile(path) as file:
        return contextlib.nullcontext(file.pages[0].dataoffsets)


def _write_scn(path, pixels, offset):
    """Write a Leica SCN whose only scan lies at an offset (px) on a slide that is empty otherwise."""
    height, width = pixels.shape[:2]
    nm, slide_px = 500, (width * 4, height * 4)

    def image(name, dims, size, place):
        levels = "".join(
            f'<dimension sizeX="{x}" sizeY="{y}" r="{r}" ifd="{ifd}"/>'
            for r, (x, y, ifd) in enumerate(dims)
        )
        return (
            f'<image name="{name}"><creationDate>2020-01-01T00:00:00Z</creationDate>'
            f'<device model="m" version="1"/><pixels sizeX="{dims[0][0]}" sizeY="{dims[0][1]}">'
            f'{levels}</pixels><view sizeX="{size[0]}" sizeY="{size[1]}" offsetX="{place[0]}" '
            f'offsetY="{place[1]}" spacingZ="0"/><scanSettings><objectiveSettings><objective>20'
            "</objective></objectiveSettings><illuminationSettings><numericalAperture>0.4"
            "</numericalAperture><illuminationSource>brightfield</illuminationSource>"
            "</illuminationSettings></scanSettings></image>"
        )

    whole = tuple(side * nm for side in slide_px)
    main = [(width, height, 1), (width // 4, height // 4, 2)]
    xml = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="u">'
        f'<collection name="c" uuid="u" sizeX="{whole[0]}" sizeY="{whole[1]}" type="slide">'
        f"<barcode>x</barcode>{image('macro', [(256, 192, 0)], whole, (0, 0))}"
        f"{image('main', main, (width * nm, height * nm), [side * nm for side in offset])}"
        "</collection></scn>"
    )
    options = {"tile": (256, 256), "photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        file.write(np.full((192, 256, 3), 230, np.uint8), description=xml, **options)
        file.write(pixels, **options)
        file.write(np.ascontiguousarray(pixels[::4, ::4]), **options)


def test_px_of_a_sparse_scan_begin_where_those_of_qupath_do(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 255, (1024, 1536, 3), np.uint8)
    _write_scn(tmp_path / "s.scn", pixels, (2048, 1024))
    found = describe_slide(slide="S", source=tmp_path / "s.scn", folder=tmp_path / "S", mpp=0.5)
    assert (found["width"], found["height"], found["origin_px"]) == (1536, 1024, [2048, 1024])
    slide = Slide(
        slide="S", image=found["image"], mpp=0.5, width_px=found["width"], height_px=found["height"]
    )
    np.testing.assert_array_equal(slide.read(0, 0, 1536, 1024), pixels)
    np.testing.assert_array_equal(slide.read(100, 300, 64, 32), pixels[300:332, 100:164])
    np.testing.assert_array_equal(slide.region(1, 25, 75, 16, 8), pixels[300:332:4, 100:164:4])
    assert (slide.read(-64, 0, 64, 64) == 255).all()
    assert slide.downsample(1) == (4, 4)
    # Patches that TRIDENT cut count px from OpenSlide's corner.
    lattice = Lattice("square", 56.0, 56.0)
    for size in ((6144, 4096), None, (1536, 1024)):
        corners = np.array([[0, 0], [112, 0], [0, 112]])
        with h5py.File(tmp_path / "f.h5", "w") as file:
            file["features"] = np.ones((3, 2), np.float32)
            file["coords"] = corners + (0 if size == (1536, 1024) else np.array([2048, 1024]))
            file["coords"].attrs["patch_size_level0"] = 112
            if size:
                file["coords"].attrs.update(level0_width=size[0], level0_height=size[1])
        given = read_given(tmp_path / "f.h5", slide=slide, lattice=lattice)
        np.testing.assert_array_equal(given.corners_px, corners)
