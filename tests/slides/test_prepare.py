from __future__ import annotations

import json
import logging
import struct

import numpy as np
import openslide
import pytest
import pyvips
import tifffile
from PIL import Image

from histogep.errors import BadSlide, InputError
from histogep.files import file_sha256
from histogep.slides.pixel_size import metadata_mpp
from histogep.slides.prepare import describe_slide, settle_mpp
from histogep.slides.tiff import MOST_PAGES, find_truncation, whole_levels


def _pixels(height=700, width=900):
    rng = np.random.default_rng(1)
    coarse = rng.integers(120, 255, (height // 50, width // 50, 3), dtype=np.uint8)
    return coarse.repeat(50, 0).repeat(50, 1)


def _describe(tmp_path, source, **options):
    return describe_slide(slide="S1", source=source, folder=tmp_path / "S1", **options)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_what_openslide_cannot_read_is_converted(tmp_path, suffix):
    pixels, source = _pixels(), tmp_path / f"image.{suffix}"
    Image.fromarray(pixels).save(source, **({"quality": 95} if suffix == "jpg" else {}))
    found = _describe(tmp_path, source, mpp=0.5)
    assert (found["width"], found["height"]) == (900, 700)
    assert found["mpp_source"] == "sheet"
    assert found["sha256"] == file_sha256(source)
    assert found["bytes"] == source.stat().st_size
    with openslide.OpenSlide(found["image"]) as slide:
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5, rel=1e-3)
        assert slide.level_count > 1
        region = np.asarray(slide.read_region((0, 0), 0, (900, 700)))[..., :3]
    assert np.abs(region.astype(int) - pixels).mean() < 3


def test_transparent_png_becomes_white(tmp_path):
    rgba = np.zeros((300, 300, 4), np.uint8)
    rgba[:, 150:] = (200, 100, 150, 255)
    Image.fromarray(rgba).save(tmp_path / "image.png")
    found = _describe(tmp_path, tmp_path / "image.png", mpp=0.5)
    with openslide.OpenSlide(found["image"]) as slide:
        region = np.asarray(slide.read_region((0, 0), 0, (300, 300)))
    assert region[:, :140, :3].min() > 250
    assert region[:, 160:, 1].max() < 120


def test_resolution_of_a_plain_tiff_is_used(tmp_path):
    source = tmp_path / "striped.tif"
    tifffile.imwrite(source, _pixels(), resolution=(40000, 40000), resolutionunit="CENTIMETER")
    found = _describe(tmp_path, source)
    assert found["mpp"] == pytest.approx(0.25)
    assert found["mpp_source"] == "tiff"


@pytest.mark.parametrize("tile", [(128, 128), None], ids=["tiled", "striped"])
@pytest.mark.parametrize("unit", ["\u00b5m", "nm"])
def test_ome_tiff_tells_its_pixel_size_in_xml(tmp_path, tile, unit):
    source, size = tmp_path / "slide.ome.tif", 0.25 if unit == "\u00b5m" else 250
    metadata = {"PhysicalSizeX": size, "PhysicalSizeY": size}
    metadata |= {f"PhysicalSize{axis}Unit": unit for axis in "XY"} | {"axes": "YXS"}
    tifffile.imwrite(source, _pixels(), tile=tile, photometric="rgb", metadata=metadata)
    found = _describe(tmp_path, source)
    assert (found["width"], found["height"]) == (900, 700)
    assert found["mpp"] == pytest.approx(0.25)
    assert found["mpp_source"] == "metadata"
    # The sheet goes before it, and is compared with it.
    told = _describe(tmp_path, source, mpp=0.5)
    assert (told["mpp"], told["mpp_estimates"]["metadata"]) == (0.5, pytest.approx(0.25))
    assert "metadata says 0.25" in told["mpp_warning"]


@pytest.mark.parametrize("tile", [(128, 128), None], ids=["tiled", "striped"])
def test_bigtiff_by_its_own_name(tmp_path, tile):
    source = tmp_path / "slide.btf"
    tifffile.imwrite(
        source,
        _pixels(),
        tile=tile,
        photometric="rgb",
        bigtiff=True,
        resolution=(20000, 20000),
        resolutionunit="CENTIMETER",
    )
    found = _describe(tmp_path, source)
    assert (found["width"], found["height"], found["mpp"]) == (900, 700, pytest.approx(0.5))
    assert found["vendor"] == ("generic-tiff" if tile else "converted")


def test_real_slides(tmp_path, shared_data):
    svs = _describe(tmp_path, shared_data / "wsi" / "CMU-1-Small-Region.svs")
    assert (svs["width"], svs["height"], svs["mpp"], svs["objective"]) == (2220, 2967, 0.499, 20)
    assert (svs["vendor"], svs["mpp_source"]) == ("aperio", "metadata")
    assert list((tmp_path / "S1").iterdir()) == []
    dicom = _describe(tmp_path, shared_data / "wsi" / "CMU-1-Small-Region-dicom")
    assert (dicom["vendor"], dicom["width"], dicom["mpp"]) == ("dicom", 2220, 0.499)
    small = _describe(tmp_path, shared_data / "wsi" / "openslide_python_small.svs")
    assert (small["width"], small["height"]) == (16, 16)


def test_impossible_pixel_sizes_are_refused(tmp_path, shared_data):
    boxes = shared_data / "wsi" / "boxes.tiff"
    with pytest.raises(InputError, match=r"S1.*352\.778.*`mpp` column"):
        _describe(tmp_path, boxes)
    found = _describe(tmp_path, boxes, mpp=0.5)
    assert found["mpp_refused"]["tiff"] == pytest.approx(352.78, rel=1e-4)
    with pytest.raises(InputError, match="between 0.05 and 5"):
        _describe(tmp_path, boxes, mpp=250)


def test_estimates_apart_are_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        found = settle_mpp("S1", {"sheet": 0.5, "metadata": 0.25, "tiff": 0.52})
    assert found["mpp"] == 0.5
    assert "metadata says 0.25" in found["mpp_warning"]
    assert "metadata says 0.25" in caplog.text
    assert "tiff" not in found["mpp_warning"]


def test_missing_empty_and_unsupported_files_are_told_apart(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        _describe(tmp_path, tmp_path / "none.svs")
    (tmp_path / "empty.svs").touch()
    with pytest.raises(InputError, match="zero bytes"):
        _describe(tmp_path, tmp_path / "empty.svs")
    (tmp_path / "text.svs").write_text("not a slide")
    with pytest.raises(InputError, match="unsupported type"):
        _describe(tmp_path, tmp_path / "text.svs")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="DICOM"):
        _describe(tmp_path, tmp_path / "folder")


@pytest.mark.parametrize("lost", [1, 100, 5000, 1_000_000])
def test_a_truncated_svs_is_refused_though_openslide_may_be_silent(tmp_path, shared_data, lost):
    whole = (shared_data / "wsi" / "CMU-1-Small-Region.svs").read_bytes()
    (tmp_path / "cut.svs").write_bytes(whole[:-lost])
    with pytest.raises(InputError, match="truncated"):
        _describe(tmp_path, tmp_path / "cut.svs")


@pytest.mark.parametrize("options", [{"bigtiff": True}, {"bigtiff": False}, {"subifd": True}])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_truncation_of_tiled_tiffs(tmp_path, options, byteorder):
    path = tmp_path / "tiled.tiff"
    if "subifd" in options:
        pyvips.Image.new_from_array(_pixels()).tiffsave(
            str(path), tile=True, pyramid=True, subifd=True, compression="jpeg"
        )
    else:
        tifffile.imwrite(path, _pixels(), tile=(256, 256), byteorder=byteorder, **options)
    whole = path.read_bytes()
    assert find_truncation(path) is None
    for lost in (1, len(whole) // 3):
        path.write_bytes(whole[:-lost])
        assert find_truncation(path) is not None


def test_truncated_jpeg_leaves_no_pyramid(tmp_path):
    source = tmp_path / "cut.jpg"
    Image.fromarray(_pixels()).save(source)
    source.write_bytes(source.read_bytes()[:-2000])
    with pytest.raises(InputError, match="truncated or damaged"):
        _describe(tmp_path, source, mpp=0.5)
    assert list((tmp_path / "S1").iterdir()) == []


def test_sound_slides_of_other_makers_pass(shared_data):
    for name in ("boxes.tiff", "test3-DAPI.ndpi", "openslide_python_small.svs"):
        assert find_truncation(shared_data / "wsi" / name) is None, name


def _chain(path, n, *, following):
    """Write a TIFF of n empty directories; after the last comes that at `following`."""
    entry = struct.pack("<HHII", 256, 4, 1, 0)
    content, bytes_each = b"II*\0" + struct.pack("<I", 8), 2 + len(entry) + 4
    for number in range(n):
        after = 8 + bytes_each * (number + 1) if number + 1 < n else following
        content += struct.pack("<H", 1) + entry + struct.pack("<I", after)
    path.write_bytes(content)


@pytest.mark.parametrize("n", [1, 2, 99, 100, 101, 250])
@pytest.mark.parametrize("back", [0, 1])
def test_directories_in_a_loop_are_seen_once(tmp_path, n, back):
    """tifffile alone follows a loop that begins after a hundred directories."""
    path = tmp_path / "loop.tiff"
    _chain(path, n, following=8 + 18 * max(0, n - 1 - back))
    assert find_truncation(path) is None
    assert whole_levels(path) == {}
    with pytest.raises(BadSlide, match="holds no image|not readable|damaged|unsupported"):
        _describe(tmp_path, path)


def test_a_file_of_many_images_is_refused_at_once(tmp_path):
    _chain(tmp_path / "many.tiff", 4 * MOST_PAGES, following=0)
    with pytest.raises(BadSlide, match="more than 4,096 pages"):
        _describe(tmp_path, tmp_path / "many.tiff")


def test_many_directories_that_name_the_same_tiles_are_refused(tmp_path):
    """A list of a million tiles that 4,000 directories share would take the memory of 4,000 lists."""
    n, path = 1_000_000, tmp_path / "shared.tiff"
    where = 8 + 2 + 2 * 12 + 4
    directories, lists = b"", 8 + 4000 * (where - 8)
    for number in range(4000):
        after = 8 + (where - 8) * (number + 1) if number < 3999 else 0
        entries = (324, 4, n, lists), (325, 4, n, lists)
        directories += struct.pack("<H", 2) + b"".join(struct.pack("<HHII", *e) for e in entries)
        directories += struct.pack("<I", after)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + directories + bytes(4 * n))
    assert "image directory 2 is damaged" in find_truncation(path)
    assert whole_levels(path) == {}


@pytest.mark.parametrize("bigtiff", [False, True])
def test_what_a_directory_names_beyond_the_end_is_found(tmp_path, bigtiff):
    path = tmp_path / "tagged.tiff"
    tag = (65000, 1, 5000, bytes(5000), False)
    options = {"tile": (256, 256), "bigtiff": bigtiff, "metadata": None}
    tifffile.imwrite(path, _pixels(), extratags=[tag], **options)
    whole = path.read_bytes()
    with tifffile.TiffFile(path) as file:
        page, tiff = file.pages[0], file.tiff
        entry = file.pages[0].tags[65000].offset
        after = page.offset + tiff.tagnosize + len(page.tags) * tiff.tagsize
        first_tile = page.tags[324].valueoffset
    size = struct.pack("<Q" if bigtiff else "<I", len(whole) - 10)
    patches = {
        "tag 65000 of image 1": (entry + (12 if bigtiff else 8), size),
        "directory after image 1": (after, struct.pack("<I", 2**31)),
        "1 tiles of image 1": (first_tile, size),
        # Whatever a count asks for is held against the file before it is read.
        "tag 324 of image 1": (
            tifffile.TiffFile(path).pages[0].tags[324].offset + 4,
            struct.pack("<I", 2**31),
        ),
    }
    for expected, (place, value) in patches.items():
        path.write_bytes(whole[:place] + value + whole[place + len(value) :])
        assert expected in find_truncation(path), expected
    # A directory of more tags than there are bytes, and of a kind of value that nobody knows.
    path.write_bytes(whole[: page.offset] + b"\xff\xff" + whole[page.offset + 2 :])
    assert "directory 1 is damaged" in find_truncation(path)
    path.write_bytes(whole[: entry + 2] + struct.pack("<H", 99) + whole[entry + 4 :])
    assert find_truncation(path) is None


# ------------------------------------------------------------------------- evidence on pixel size


def _tiff(path, *, tile=None, **options):
    tifffile.imwrite(path, _pixels(), photometric="rgb", tile=tile, **options)
    return path


@pytest.mark.parametrize("tile", [(128, 128), None], ids=["tiled", "striped"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": (300, 300), "resolutionunit": "NONE"}, "resolution of 300 has no unit"),
        ({"resolution": (2e4, 2e4), "resolutionunit": "NONE"}, "resolution of 20000 has no unit"),
        ({"resolution": (300, 300), "resolutionunit": "INCH"}, "tiff says 84.6667"),
        ({"resolution": (2e4, 1e4), "resolutionunit": "CENTIMETER"}, "0.5 along x but 1 along y"),
        ({"description": "Aperio|AppMag = 20|MPP = 4.99"}, "4.99, which its objective of 20x"),
        ({"description": "Aperio|AppMag = 40|MPP = 1.0"}, "1, which its objective of 40x"),
        ({}, "does not give the pixel size: fill in"),
    ],
)
def test_what_is_no_pixel_size_is_refused_in_strips_and_tiles(tmp_path, options, message, tile):
    path = _tiff(tmp_path / "a.tif", tile=tile, metadata=None, **options)
    with pytest.raises(BadSlide, match=message):
        _describe(tmp_path, path)
    found = _describe(tmp_path, path, mpp=0.5)
    assert (found["mpp"], found["mpp_source"]) == (0.5, "sheet")


@pytest.mark.parametrize("tile", [(128, 128), None], ids=["tiled", "striped"])
@pytest.mark.parametrize(
    ("options", "mpp", "source"),
    [
        ({"description": "Converted|AppMag = 20|MPP = 0,499"}, 0.499, "description"),
        ({"resolution": (50800, 50800), "resolutionunit": "INCH"}, 0.5, "tiff"),
        ({"resolution": (20000, 20400), "resolutionunit": "CENTIMETER"}, 0.495, "tiff"),
    ],
)
def test_pixel_sizes_of_tags_and_texts(tmp_path, options, mpp, source, tile):
    found = _describe(tmp_path, _tiff(tmp_path / "a.tif", tile=tile, metadata=None, **options))
    assert (found["mpp"], found["mpp_source"]) == (pytest.approx(mpp, rel=2e-3), source)


@pytest.mark.parametrize("unit", ["um", "micron", "\\u00B5m", "mm", "nm", "inch"])
def test_imagej_counts_px_in_a_unit_of_its_own(tmp_path, unit):
    um = {"mm": 1e3, "nm": 1e-3, "inch": 25400.0}.get(unit, 1.0)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, _pixels(), imagej=True, resolution=(um / 0.5, um / 0.5),
                     metadata={"unit": unit})  # fmt: skip
    found = _describe(tmp_path, path)
    assert (found["mpp"], found["mpp_source"]) == (pytest.approx(0.5, rel=1e-3), "imagej")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_density_of_pictures_counts_with_a_unit_if_it_is_possible(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    for dpi in (72, 96, 300):
        Image.fromarray(_pixels()).save(path, dpi=(dpi, dpi))
        with pytest.raises(BadSlide, match="density says"):
            _describe(tmp_path, path)
        assert _describe(tmp_path, path, mpp=0.5)["mpp_warning"] == ""
    Image.fromarray(_pixels()).save(path, dpi=(50800, 50800))
    found = _describe(tmp_path, path)
    assert (found["mpp"], found["mpp_source"]) == (pytest.approx(0.5, rel=1e-3), "density")
    content = path.read_bytes()
    if suffix == "jpg":  # the same numbers as a mere ratio
        path.write_bytes(content[:13] + b"\0" + content[14:])
        with pytest.raises(BadSlide, match="does not give the pixel size: fill in"):
            _describe(tmp_path, path)


@pytest.mark.parametrize(
    ("mpp", "objective", "warned"),
    [(0.5, 20, False), (0.25, 40, False), (0.2325, 20, False), (0.5, 40, True), (1.0, 20, True),
     (0.25, None, False), (0.11, 63, False)],
)  # fmt: skip
def test_the_objective_is_held_against_the_pixel_size(mpp, objective, warned):
    found = settle_mpp("S1", {"metadata": mpp}, objective=objective)
    assert ("objective" in found["mpp_warning"]) == warned


@pytest.mark.parametrize(("mpp", "objective"), [(4.99, 20), (1.0, 40), (0.06, 40), (0.1, 20)])
def test_an_objective_that_contradicts_is_refused_unless_the_sheet_decides(mpp, objective):
    with pytest.raises(BadSlide, match="contradicts.*`mpp` column"):
        settle_mpp("S1", {"metadata": mpp}, objective=objective)
    found = settle_mpp("S1", {"sheet": 10 / objective, "metadata": mpp}, objective=objective)
    assert "contradicts" in found["mpp_warning"]
    told = settle_mpp("S1", {"sheet": mpp}, objective=objective)
    assert "objective" in told["mpp_warning"]


def test_an_overview_is_warned_of_loudly(caplog):
    assert settle_mpp("S1", {"sheet": 2.0})["mpp_warning"] == ""
    with caplog.at_level(logging.WARNING):
        found = settle_mpp("S1", {"sheet": 3.19})
    assert "A PIXEL IS 3.19 UM WIDE" in found["mpp_warning"]
    assert "A PIXEL IS 3.19 UM WIDE" in caplog.text


def test_the_spots_say_what_they_imply(tmp_path, shared_data):
    scales = shared_data / "visium/spaceranger_v1_no_header/outs/spatial/scalefactors_json.json"
    width = json.loads(scales.read_text())["spot_diameter_fullres"]
    picture = _tiff(tmp_path / "a.tif", metadata=None)
    with pytest.raises(BadSlide, match=rf"its spots say {55 / width:.3g} to {65 / width:.3g}"):
        _describe(tmp_path, picture, scalefactors=scales)
    # Their distance is exact, and goes before the width of a spot.
    with pytest.raises(BadSlide, match=r"pixel size; .*its spots say 1\.29: fill in the `mpp`"):
        _describe(tmp_path, picture, scalefactors=scales, spots_mpp=1.29)
    told = _describe(tmp_path, picture, mpp=0.5, spots_mpp=1.29)
    assert "mpp 0.5 um per px (sheet) is used, but its spots say 1.29" in told["mpp_warning"]
    near, far = 60 / width, 180 / width
    assert _describe(tmp_path, picture, mpp=near, scalefactors=scales)["mpp_warning"] == ""
    told = _describe(tmp_path, picture, mpp=far, scalefactors=scales)
    assert "its spots say" in told["mpp_warning"]
    high = tmp_path / "hd.json"
    high.write_text('{"microns_per_pixel": 0.274, "spot_diameter_fullres": 7.3}')
    with pytest.raises(BadSlide, match=r"its scale factors say 0\.274"):
        _describe(tmp_path, picture, scalefactors=high)
    high.write_text("{")
    with pytest.raises(BadSlide, match="hd.json: not readable as Space Ranger's scale factors"):
        _describe(tmp_path, picture, scalefactors=high)


def test_numbers_of_every_vendor_are_compared():
    properties = {
        "openslide.vendor": "mirax",
        "openslide.mpp-x": "0.25",
        "openslide.mpp-y": "0.25",
        "mirax.LAYER_0_LEVEL_0_SECTION.MICROMETER_PER_PIXEL_X": "0.5",
        "mirax.LAYER_0_LEVEL_0_SECTION.MICROMETER_PER_PIXEL_Y": "0.5",
    }
    assert metadata_mpp(properties)[0] == {"metadata": (0.25, 0.25), "vendor": (0.5, 0.5)}
    properties = {"openslide.vendor": "aperio", "aperio.MPP": "0,2508"}
    assert metadata_mpp(properties)[0] == {"vendor": (0.2508, 0.2508)}
    properties = {
        "openslide.vendor": "hamamatsu",
        "tiff.XResolution": "43826",
        "tiff.YResolution": "43826",
        "tiff.ResolutionUnit": "centimeter",
    }
    assert metadata_mpp(properties)[0]["tiff"] == pytest.approx((0.2282, 0.2282), rel=1e-3)
    del properties["tiff.ResolutionUnit"]
    assert metadata_mpp(properties) == ({}, ["its TIFF resolution of 43826 has no unit"])
    spacing = "dicom.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing"
    properties = {
        "openslide.vendor": "dicom",
        f"{spacing}[0]": "0.00025",
        f"{spacing}[1]": "0.00025",
        "dicom.ImagedVolumeWidth": "1.0",
        "dicom.ImagedVolumeHeight": "1.0",
        "dicom.TotalPixelMatrixColumns": "2000",
        "dicom.TotalPixelMatrixRows": "2000",
    }
    estimates = metadata_mpp(properties)[0]
    assert estimates == {"vendor": (0.25, 0.25), "imaged volume": (0.5, 0.5)}
    assert "imaged volume says 0.5" in settle_mpp("S1", estimates)["mpp_warning"]
