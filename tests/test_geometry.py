from __future__ import annotations

import logging

import numpy as np
import openslide
import pytest
import pyvips
import tifffile
from PIL import Image

from histogep.files import file_sha256
from histogep.geometry import describe_slide, find_truncation, settle_mpp
from histogep.jobs import InputError


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
    with open(path, "rb") as handle:
        assert find_truncation(handle) is None
    for lost in (1, len(whole) // 3):
        path.write_bytes(whole[:-lost])
        with open(path, "rb") as handle:
            assert find_truncation(handle) is not None


def test_truncated_jpeg_leaves_no_pyramid(tmp_path):
    source = tmp_path / "cut.jpg"
    Image.fromarray(_pixels()).save(source)
    source.write_bytes(source.read_bytes()[:-2000])
    with pytest.raises(InputError, match="truncated or damaged"):
        _describe(tmp_path, source, mpp=0.5)
    assert list((tmp_path / "S1").iterdir()) == []


def test_sound_slides_of_other_makers_pass(shared_data):
    for name in ("boxes.tiff", "test3-DAPI.ndpi", "openslide_python_small.svs"):
        with open(shared_data / "wsi" / name, "rb") as handle:
            assert find_truncation(handle) is None, name
