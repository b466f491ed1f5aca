"""Which image of a file is the slide, and whether its colours are those that a viewer shows."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
import pyvips
import tifffile
from PIL import Image, ImageOps

from histogep.errors import BadSlide
from histogep.slides.prepare import describe_slide
from histogep.slides.reader import Slide

GLASS, TISSUE = [245, 245, 245], [200, 100, 170]
BLOCKS = pytest.mark.parametrize("tile", [None, (256, 256)], ids=["strips", "tiles"])


def _picture():
    rgb = np.full((600, 800, 3), GLASS, np.uint8)
    rgb[100:500, 100:700] = TISSUE
    return rgb


RGB = _picture()
PLANES = np.moveaxis(RGB, -1, 0)


def _pixels(path, **options):
    found = describe_slide(
        slide="S1", source=path, folder=path.parent / "S1", **{"mpp": 0.5, **options}
    )
    slide = Slide(
        slide="S1",
        image=found["image"],
        mpp=found["mpp"],
        width_px=found["width"],
        height_px=found["height"],
    )
    with slide:
        return slide.read(0, 0, slide.width_px, slide.height_px)


def _is_the_picture(path, expected=RGB, **options):
    found = _pixels(path, **options)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max(axis=2).mean() < 1.5
    for row, col in ((10, 10), (300, 300)):
        np.testing.assert_allclose(found[row, col], expected[row, col], atol=2)


@BLOCKS
@pytest.mark.parametrize(
    ("values", "options"),
    [
        (RGB, {}),
        (RGB.astype(np.uint16) * 257, {}),
        (RGB.astype(np.uint16), {}),
        (RGB.astype(np.int16), {}),
        (RGB.astype(np.uint32) * 16843009, {}),
        ((RGB / 255).astype(np.float32), {}),
        ((RGB / 255).astype(np.float16), {}),
        (RGB.astype(np.float32), {}),
        (RGB.astype(np.float32) * 257, {}),
        (RGB.astype(np.uint16) * 16, {"extratags": [(281, "H", 3, (4080,) * 3, True)]}),
        (RGB.astype(np.float32) * 16, {"extratags": [(341, "f", 3, (4080.0,) * 3, True)]}),
    ],
    ids=[
        "u8",
        "u16",
        "u16-as-8",
        "i16",
        "u32",
        "f01",
        "f16",
        "f255",
        "f65535",
        "u12-told",
        "f12-told",
    ],
)
def test_every_depth_ends_in_true_colours(tmp_path, values, options, tile):
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", tile=tile, **options)
    _is_the_picture(tmp_path / "a.tif")


@BLOCKS
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v * 4095, "values up to 39.*which value is white cannot be told"),
        (lambda v: v * 2 - 1, "not colours"),
        (lambda v: np.where(np.arange(800)[:, None] == 3, np.nan, v), "not finite"),
        (lambda v: np.where(np.arange(800)[:, None] == 3, np.inf, v), "not finite|up to inf"),
        (lambda v: v * 0, "not colours"),
    ],
    ids=["12-bit", "negative", "nan", "inf", "zero"],
)
def test_values_of_unknown_scale_are_refused(tmp_path, change, message, tile):
    values = change(RGB / 255).astype(np.float32)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", tile=tile)
    with pytest.raises(BadSlide, match=rf"slide S1: .*a\.tif.*({message})"):
        _pixels(tmp_path / "a.tif")


@BLOCKS
@pytest.mark.parametrize(
    ("values", "options"),
    [
        (PLANES, {"photometric": "rgb", "planarconfig": "separate"}),
        (PLANES, {"photometric": "minisblack"}),
        (RGB, {"photometric": "minisblack", "planarconfig": "contig"}),
    ],
    ids=["separate", "pages", "unnamed"],
)
def test_planes_are_one_colour_image(tmp_path, values, options, tile):
    tifffile.imwrite(tmp_path / "a.tif", values, tile=tile, **options)
    _is_the_picture(tmp_path / "a.tif")


@BLOCKS
@pytest.mark.parametrize(
    ("order", "names"),
    [
        ("RGB", None),
        ("RGB", ["Channel:0:0", "Channel:0:1", "Channel:0:2"]),
        ("RGB", ["Red", "Green", "Blue"]),
        ("BGR", ["Blue", "Green", "Red"]),
        ("GRB", ["g", "r", "b"]),
    ],
)
def test_channels_of_ome_are_ordered_by_their_names(tmp_path, order, names, tile):
    metadata = {"axes": "CYX", "PhysicalSizeX": 0.499, "PhysicalSizeY": 0.499}
    if names:
        metadata["Channel"] = {"Name": names}
    planes = PLANES[["RGB".index(letter) for letter in order]]
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, planes, photometric="minisblack", tile=tile, metadata=metadata)
    _is_the_picture(path, mpp=None)
    found = describe_slide(slide="S1", source=path, folder=tmp_path / "again")
    assert (found["mpp"], found["mpp_source"]) == (pytest.approx(0.499), "metadata")


@BLOCKS
def test_channels_of_ome_are_ordered_by_their_colours(tmp_path, tile):
    colours = {"R": -16776961, "G": 16711935, "B": 65535}
    metadata = {"axes": "CYX", "Channel": {"Color": [colours[c] for c in "BGR"]}}
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, PLANES[::-1], photometric="minisblack", tile=tile, metadata=metadata)
    _is_the_picture(path)


@BLOCKS
@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (
            PLANES,
            {"metadata": {"axes": "CYX", "Channel": {"Name": ["DAPI", "FITC", "Cy5"]}}},
            "channels DAPI, FITC, Cy5, not red",
        ),
        (PLANES, {"metadata": {"axes": "ZYX"}}, "3 images of 800 x 600 px .planes of a stack"),
        (PLANES, {"metadata": {"axes": "TYX"}}, "3 images of 800 x 600 px"),
        (np.stack([RGB] * 3), {"photometric": "rgb", "metadata": {"axes": "ZYXS"}}, "3 images"),
        (PLANES[:2], {}, "2 channels of grey"),
        (PLANES[0], {}, "1 channel of grey"),
        (PLANES[0], {"photometric": "miniswhite"}, "1 channel of grey"),
        (np.stack([RGB] * 2), {"photometric": "rgb"}, "2 images of 800 x 600 px"),
    ],
    ids=["fluorescence", "z", "time", "z-rgb", "two", "grey", "inverted", "two-slides"],
)
def test_what_is_no_single_colour_image_is_refused(tmp_path, values, options, message, tile):
    path = tmp_path / ("a.ome.tif" if "metadata" in options else "a.tif")
    tifffile.imwrite(path, values, tile=tile, **{"photometric": "minisblack", **options})
    with pytest.raises(BadSlide, match=message):
        _pixels(path)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_grey_picture_is_refused(tmp_path, suffix):
    Image.fromarray(RGB).convert("L").save(tmp_path / f"a.{suffix}")
    with pytest.raises(BadSlide, match="an H&E image has three"):
        _pixels(tmp_path / f"a.{suffix}")


@BLOCKS
@pytest.mark.parametrize("first", ["thumbnail", "macro", "label", "subifd"])
def test_the_slide_is_the_largest_image_that_is_no_overview(tmp_path, first, tile):
    path, other = tmp_path / "a.tif", np.zeros((1500, 1200, 3), np.uint8)
    options = {"photometric": "rgb", "tile": tile, "metadata": None}
    with tifffile.TiffWriter(path) as file:
        if first == "subifd":
            file.write(other[:90, :120], subifds=1, **options)
            file.write(RGB, **options)
        elif first == "thumbnail":
            file.write(other[:90, :120], **options)
            file.write(RGB, **options)
        else:
            file.write(RGB, **options)
            file.write(other, description=f"{first} 1200x1500", **options)
    _is_the_picture(path)


@BLOCKS
def test_the_series_of_an_ome_tiff_are_told_apart(tmp_path, tile):
    path = tmp_path / "a.ome.tif"
    options = {"photometric": "rgb", "tile": tile}
    named = {"axes": "YXS", "PhysicalSizeX": 8.0, "PhysicalSizeY": 8.0}
    slide = {"axes": "YXS", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25, "Name": "slide"}
    with tifffile.TiffWriter(path) as file:
        file.write(np.zeros((90, 120, 3), np.uint8), metadata={**named, "Name": "label"}, **options)
        file.write(RGB, metadata=slide, subifds=1, **options)
        file.write(RGB[::2, ::2], subfiletype=1, **options)
        file.write(np.zeros((900, 1000, 3), np.uint8), metadata={**named, "Name": "macro image"},
                   **options)  # fmt: skip
    _is_the_picture(path, mpp=None)
    assert describe_slide(slide="S1", source=path, folder=tmp_path)["mpp"] == 0.25


@BLOCKS
@pytest.mark.parametrize("extra", ["unassalpha", "assocalpha"])
def test_transparent_tiff_is_white(tmp_path, extra, tile):
    rgba = np.dstack([RGB, np.full(RGB.shape[:2], 255, np.uint8)])
    rgba[:50] = 0
    expected = RGB.copy()
    expected[:50] = 255
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, rgba, photometric="rgb", extrasamples=[extra], tile=tile)
    _is_the_picture(path, expected)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("CMYK", "tif"), ("CMYK", "jpg"), ("P", "tif"), ("P", "png"), ("RGBA", "png"), ("YCbCr", "tif"),
     ("YCbCr", "jpg")],
)  # fmt: skip
def test_colour_modes_are_those_that_pillow_shows(tmp_path, mode, suffix):
    path = tmp_path / f"a.{suffix}"
    options = {"palette": Image.Palette.ADAPTIVE} if mode == "P" else {}
    saved = {"quality": 97} if suffix == "jpg" else {}
    Image.fromarray(RGB).convert(mode, **options).save(path, **saved)
    _is_the_picture(path, np.asarray(Image.open(path).convert("RGB")))


def test_a_png_of_16_bits(tmp_path):
    picture = pyvips.Image.new_from_array(RGB.astype(np.uint16) * 257).copy(interpretation="rgb16")
    picture.pngsave(str(tmp_path / "a.png"))
    _is_the_picture(tmp_path / "a.png")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "tif", "tiled"])
def test_orientation_is_that_of_a_viewer(tmp_path, orientation, suffix):
    rgb = RGB.copy()
    rgb[20:80, 20:300] = [90, 40, 120]  # in one corner
    path = tmp_path / f"a.{suffix.replace('tiled', 'tif')}"
    if suffix == "jpg":
        exif = Image.Exif()
        exif[274] = orientation
        Image.fromarray(rgb).save(path, exif=exif, quality=97)
    else:
        tag = (274, "H", 1, orientation, True)
        tile = (256, 256) if suffix == "tiled" else None
        tifffile.imwrite(path, rgb, photometric="rgb", extratags=[tag], tile=tile)
    _is_the_picture(path, np.asarray(ImageOps.exif_transpose(Image.open(path))))


def test_dicom_is_known_by_its_content(tmp_path, shared_data):
    for n, file in enumerate(sorted((shared_data / "wsi/CMU-1-Small-Region-dicom").iterdir())):
        (tmp_path / f"instance{n}").write_bytes(file.read_bytes())
    (tmp_path / "README").write_text("not DICOM")
    whole = describe_slide(slide="S1", source=tmp_path, folder=tmp_path / "a")
    one = describe_slide(slide="S1", source=tmp_path / "instance0", folder=tmp_path / "b")
    original = shared_data / "wsi/CMU-1-Small-Region-dicom"
    known = describe_slide(slide="S1", source=original, folder=tmp_path / "c")
    assert whole["sha256"] == one["sha256"] == known["sha256"]
    assert whole["bytes"] == one["bytes"]
    assert (whole["width"], whole["vendor"]) == (2220, "dicom")


# ------------------------------------------------------------------- damaged and hostile files


def _entries(big, *entries):
    word, head = ("Q", "<Q") if big else ("I", "<H")
    body = b"".join(struct.pack(f"<HH{word}{word}", *entry) for entry in entries)
    start = b"II+\0\x08\0\0\0" + struct.pack("<Q", 16) if big else b"II*\0\x08\0\0\0"
    return start + struct.pack(head, len(entries)) + body + bytes(8)


@pytest.mark.parametrize(
    "content",
    [
        _entries(False, (256, 4, 1, 2**31), (257, 4, 1, 2**31), (258, 3, 1, 8),
                 (273, 4, 2**31 - 1, 8), (277, 3, 1, 3), (279, 4, 2**31 - 1, 8)),
        _entries(True, (256, 4, 2**62, 2**31), (273, 16, 2**61, 8), (279, 16, 2**63, 8)),
        _entries(True, (256, 16, 1, 2**63), (257, 16, 1, 2**63), (273, 16, 1, 8), (279, 16, 1, 8)),
        _entries(False, (256, 4, 1, 2**31), (257, 4, 1, 2**31), (322, 4, 1, 2**30),
                 (323, 4, 1, 2**30), (324, 4, 1, 8), (325, 4, 1, 8), (258, 3, 1, 8)),
        b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**63),
        b"II*\0\xff\xff\xff\xff",
        b"MM\0*",
    ],
    ids=["counts", "big-counts", "big-sizes", "tile", "entries", "offset", "header"],
)  # fmt: skip
def test_a_tiff_of_a_few_bytes_with_impossible_numbers(tmp_path, content):
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    with pytest.raises(BadSlide, match=r"slide S1: .*a\.tif"):
        _pixels(path)


def test_a_jpeg_or_png_that_claims_more_than_its_bytes_can_hold(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(RGB).save(path)
    content = bytearray(path.read_bytes())
    at = content.find(b"\xff\xc0")
    content[at + 5 : at + 9] = struct.pack(">HH", 65500, 65500)
    path.write_bytes(content)
    with pytest.raises(BadSlide, match="claims 65500 x 65500 px, more than its .* bytes can hold"):
        _pixels(path)
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 200_000, 200_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    with pytest.raises(BadSlide, match="claims 200000 x 200000 px"):
        _pixels(path)


@BLOCKS
def test_a_slide_of_300_mm_is_refused_unless_allowed(tmp_path, tile):
    path = tmp_path / "a.tif"
    options = {"tile": True, "tile_width": 256, "tile_height": 256} if tile else {}
    picture = pyvips.Image.black(600_000, 32, bands=3).copy(interpretation="srgb")
    picture.tiffsave(str(path), compression="deflate", **options)
    with pytest.raises(BadSlide, match="300 x 0 mm, more than the 120 mm of a slide"):
        describe_slide(slide="S1", source=path, folder=tmp_path / "S1", mpp=0.5)
    found = describe_slide(slide="S1", source=path, folder=tmp_path, mpp=0.5, most_mm=400)
    assert found["width"] == 600_000


@pytest.mark.parametrize("name", ["n.jpg", "progressive.jpg", "n.png", "lzw.tif", "deflate.tif",
                                  "jpeg.tif"])  # fmt: skip
@pytest.mark.parametrize("damage", ["zeros", "random", "cut"])
def test_damaged_pixels_are_named(tmp_path, name, damage, shared_data):
    """4 KB of zeros or noise in the middle, or a lost end, in what libvips decodes."""
    slide = Slide(
        slide="S", image=shared_data / "wsi/CMU-1-Small-Region.svs", mpp=0.499, width_px=2220,
        height_px=2967,
    )  # fmt: skip
    options = {
        "n.jpg": {"quality": 85},
        "progressive.jpg": {"quality": 85, "progressive": True},
        "n.png": {},
        "lzw.tif": {"compression": "tiff_lzw"},
        "deflate.tif": {"compression": "tiff_adobe_deflate"},
        "jpeg.tif": {"compression": "jpeg"},
    }[name]
    path = tmp_path / name
    Image.fromarray(slide.read(0, 600, 1200, 1200)).save(path, **options)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    if damage == "cut":
        content = content[:middle]
    else:
        noise = np.random.default_rng(1).bytes(4096)
        content[middle : middle + 4096] = noise if damage == "random" else bytes(4096)
    path.write_bytes(content)
    with pytest.raises(BadSlide, match=r"truncated|damaged|cannot be read"):
        _pixels(path)
    assert not list((tmp_path / "S1").glob("*"))


def test_a_warning_of_a_tag_is_no_damage(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", software="abc1", metadata=None)
    tag = tifffile.TiffFile(path).pages[0].tags[305]
    content = bytearray(path.read_bytes())
    # Text without its final NUL, as several scanners write it.
    content[tag.offset + 4 : tag.offset + 12] = struct.pack("<I", 4) + b"abcd"
    path.write_bytes(content)
    _is_the_picture(path)


@pytest.mark.parametrize("seed", range(8))
def test_a_bit_of_a_deflated_strip_is_noticed(tmp_path, seed):
    """libtiff does not look at the checksum of deflate."""
    rng = np.random.default_rng(seed)
    noisy = (RGB - rng.integers(0, 40, RGB.shape)).astype(np.uint8)
    path = tmp_path / "a.tif"
    Image.fromarray(noisy).save(path, compression="tiff_adobe_deflate")
    content = bytearray(path.read_bytes())
    content[int(rng.integers(len(content) // 5, len(content) * 4 // 5))] ^= 16
    path.write_bytes(content)
    with pytest.raises(BadSlide, match=r"truncated or damaged .strip"):
        _pixels(path)


def test_tiles_that_were_left_out_are_no_damage(tmp_path):
    path = tmp_path / "a.tif"
    blank = np.zeros_like(RGB)
    blank[:256, :256] = TISSUE
    tifffile.imwrite(path, blank, photometric="rgb", tile=(256, 256), compression="none")
    content = bytearray(path.read_bytes())
    page = tifffile.TiffFile(path).pages[0]
    for code in (324, 325):
        tag = page.tags[code]
        width = tag.valuebytecount // tag.count
        content[tag.valueoffset + width : tag.valueoffset + tag.valuebytecount] = bytes(
            tag.valuebytecount - width
        )
    first = page.dataoffsets[0] + page.databytecounts[0]
    path.write_bytes(content[:first])
    found = _pixels(path)
    assert found[10, 10].tolist() == TISSUE


def test_an_svs_that_begins_with_its_thumbnail(tmp_path):
    path = tmp_path / "a.svs"
    text = "Aperio Image Library v11\n133x100 |AppMag = 20|MPP = 0.5"
    with tifffile.TiffWriter(path) as file:
        options = {"photometric": "rgb", "metadata": None}
        file.write(np.zeros((100, 133, 3), np.uint8), tile=(64, 64), description=text, **options)
        file.write(RGB, tile=(256, 256), **options)
    _is_the_picture(path, mpp=None)


def test_a_damaged_svs_is_still_refused(tmp_path, shared_data):
    content = bytearray((shared_data / "wsi/CMU-1-Small-Region.svs").read_bytes())
    page = tifffile.TiffFile(shared_data / "wsi/CMU-1-Small-Region.svs").pages[0]
    tag = page.tags[322]  # the width of its tiles
    content[tag.offset + 8 : tag.offset + 12] = struct.pack("<I", 0)
    (tmp_path / "a.svs").write_bytes(content)
    with pytest.raises(BadSlide, match=r"a\.svs"):
        _pixels(tmp_path / "a.svs", mpp=None)


@BLOCKS
def test_a_compression_that_only_libvips_reads(tmp_path, tile):
    picture = pyvips.Image.new_from_array(RGB).copy(interpretation="srgb")
    picture.tiffsave(str(tmp_path / "a.tif"), compression="webp", Q=95, tile=tile is not None)
    _is_the_picture(tmp_path / "a.tif")


@BLOCKS
def test_a_form_of_storage_that_is_not_read_is_no_damage(tmp_path, tile):
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", compression="lzma", tile=tile)
    with pytest.raises(BadSlide, match="stored in a form that cannot be read here.*save it"):
        _pixels(tmp_path / "a.tif")


def test_planes_of_16_bits_in_tiles_are_no_damage(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif",
        PLANES.astype(np.uint16) * 257,
        photometric="rgb",
        planarconfig="separate",
        tile=(256, 256),
    )
    with pytest.raises(BadSlide, match="stored in a form that cannot be read here"):
        _pixels(tmp_path / "a.tif")
