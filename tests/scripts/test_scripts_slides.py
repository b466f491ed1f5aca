from __future__ import annotations

import json
import re
import shutil

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import pyvips
from PIL import Image
from scipy import ndimage

from histogep.encoders.descriptors import describe_tiles
from histogep.encoders.feature_file import read_features
from histogep.errors import BadSlide, InputError
from histogep.files import read_json, read_tsv
from histogep.lattice import Lattice
from histogep.slides.reader import Slide
from histogep.study.encoder_choices import exported_encoders

LATTICE = {"kind": "visium", "pitch_um": 100, "tile_um": 112}
TISSUE = {"min_tissue": 0.4, "mask_um": 8, "min_fragment_mm2": 0.02, "max_pen": 0.2}


def _write_image(path, mpp=1.0):
    """Two pieces of tissue on glass: 1.2 x 1.6 mm."""
    rng = np.random.default_rng(0)
    texture = ndimage.gaussian_filter(rng.normal(size=(1200, 1600, 1)), (3, 3, 0)) * 300
    rgb = np.full((1200, 1600, 3), 240.0)
    for rows, cols in ((slice(100, 700), slice(100, 800)), (slice(500, 1100), slice(1000, 1500))):
        rgb[rows, cols] = (np.array([180, 110, 165]) + texture)[rows, cols]
    image = pyvips.Image.new_from_array(rgb.clip(0, 255).astype(np.uint8))
    if path.suffix == ".tiff":
        resolution = {"xres": 1000 / mpp, "yres": 1000 / mpp, "resunit": "cm"}
        image.tiffsave(str(path), tile=True, pyramid=True, compression="deflate", **resolution)
    else:
        image.write_to_file(str(path))
    return path


@pytest.fixture
def prepare(run_script, tmp_path):
    def prepare(image, mpp=None, skip=False):
        output = {"slide": tmp_path / "slides/S1.json", "pyramid": tmp_path / "slides/S1"}
        log = run_script(
            "prepare_slide.py",
            input={"image": image},
            output=output,
            params={"mpp": mpp},
            wildcards={"slide": "S1"},
            config={"on_bad_slide": "skip" if skip else "stop"},
        )
        return output["slide"], log

    return prepare


@pytest.fixture
def tile(run_script, tmp_path):
    def tile(slide, skip=False, **inputs):
        output = {
            "tiles": tmp_path / "tiles/S1.parquet",
            "outlines": tmp_path / "tiles/S1.geojson",
            "quality": tmp_path / "tiles/S1.quality.tsv",
            "keypoints": tmp_path / "keypoints/S1.parquet",
            "thumbnail": tmp_path / "tiles/S1.thumbnail.jpg",
            "overview": tmp_path / "tiles/S1.png",
        }
        log = run_script(
            "tile_slide.py",
            input={"slide": slide, **inputs},
            output=output,
            params={"lattice": LATTICE, "tissue": TISSUE},
            wildcards={"slide": "S1"},
            config={"on_bad_slide": "skip" if skip else "stop"},
        )
        return output, log

    return tile


@pytest.fixture
def encode(run_script, tmp_path):
    def encode(slide, tiles, encoders, threads=1, skip=False, **inputs):
        path = tmp_path / "features/S1.h5"
        exported = []
        for name, settings in exported_encoders(encoders).items():
            exported.append(tmp_path / f"encoders/{name}.json")
            if not exported[-1].exists():
                run_script(
                    "export_encoder.py",
                    input={},
                    output={"description": exported[-1]},
                    params={"encoder": settings},
                )
        log = run_script(
            "encode_tiles.py",
            input={"slide": slide, "tiles": tiles, "exported": exported, **inputs},
            output={"features": path},
            params={"lattice": LATTICE, "encoders": encoders},
            wildcards={"slide": "S1"},
            resources={"gpu": 1},
            config={"on_bad_slide": "skip" if skip else "stop"},
            threads=threads,
        )
        return path, log

    return encode


def test_a_slide_without_spots_goes_from_image_to_features(tmp_path, prepare, tile, encode):
    slide, log = prepare(_write_image(tmp_path / "image.tiff"))
    assert "1600 x 1200 px, 1 um per px from the tiff" in log
    assert list((tmp_path / "slides/S1").iterdir()) == []
    output, log = tile(slide)
    tiles = pd.read_parquet(output["tiles"])
    assert {"row", "col", "x_px", "y_px", "tissue", "blur", "tissue_fold", "pen", "barcode"} == set(
        tiles
    )
    quality = read_tsv(output["quality"]).set_index("metric")["value"]
    assert quality["n_fragments"] == 2
    assert quality["n_tiles"] == len(tiles)
    # 0.72 mm2 of tissue on cells of 0.00866 mm2.
    assert 70 < len(tiles) < 110
    assert Image.open(output["overview"]).size[0] > 500
    assert Image.open(output["thumbnail"]).size == (600, 450)
    path, log = encode(slide, output["tiles"], [{"name": "descriptors"}])
    assert "tiles/s" in log
    features = read_features(path)
    np.testing.assert_array_equal(features.row, tiles["row"])
    np.testing.assert_array_equal(
        features.coords, np.round(tiles[["x_px", "y_px"]].to_numpy() - 56).astype(int)
    )
    assert features.lattice == Lattice.from_settings(LATTICE).to_settings()
    # The rows are the descriptors of the tiles at these centres, read here by ourselves.
    reader = Slide.from_json(slide)
    for place in (0, 40, len(tiles) - 1):
        x, y = tiles.loc[place, ["x_px", "y_px"]]
        pixels = reader.read(x - 56, y - 56, 112, 112, size=(224, 224))[None]
        np.testing.assert_allclose(features.values[place], describe_tiles(pixels)[0], rtol=1e-4)
    white = describe_tiles(np.full((1, 224, 224, 3), 255, np.uint8))[0]
    np.testing.assert_array_equal(features.white, white)
    with h5py.File(path) as file:
        assert file["coords"].attrs["patch_size_level0"] == 112


def test_the_tiles_of_a_section_are_its_spots(tmp_path, prepare, tile, encode):
    slide, _ = prepare(_write_image(tmp_path / "image.png"), mpp=1.0)
    assert read_json(slide)["image"].endswith("pyramid.tiff")
    obs = pd.DataFrame({"row": [3, 2, 5], "col": [4, 5, 1]}, index=["c", "a", "b"])
    spots = anndata.AnnData(np.zeros((3, 1), np.float32), obs=obs)
    spots.obsm["spatial"] = np.array([[400.0, 300], [500, 400], [20, 1190]])
    spots.write_h5ad(tmp_path / "S1.h5ad")
    output, _ = tile(slide, spots=tmp_path / "S1.h5ad")
    assert pd.read_parquet(output["tiles"])["barcode"].tolist() == ["c", "a", "b"]
    encoders = [{"name": "descriptors"}, {"name": "lite0", "weights": None}]
    path, _ = encode(slide, output["tiles"], encoders)
    features = read_features(path)
    assert features.barcode.tolist() == ["c", "a", "b"]
    assert features.blocks == [("descriptors", 35), ("lite0", 1280)]
    assert features.values.shape == (3, 1315)
    assert features.white.shape == (1315,)
    assert len(features.encoders[1]["sha256"]) == 64
    assert features.encoders[1]["mpp"] == 0.5
    first = path.read_bytes()
    assert encode(slide, output["tiles"], encoders)[0].read_bytes() == first


def test_outputs_are_the_same_byte_for_byte(tmp_path, prepare, tile):
    slide, _ = prepare(_write_image(tmp_path / "image.tiff"))
    output, _ = tile(slide)
    first = {name: path.read_bytes() for name, path in output.items()}
    tile(slide)
    assert {name: path.read_bytes() for name, path in output.items()} == first


def test_errors_name_the_slide_and_leave_no_output(tmp_path, prepare, tile, encode):
    image = _write_image(tmp_path / "image.png")
    with pytest.raises(InputError, match="slide S1.*`mpp`"):
        prepare(image)
    assert not (tmp_path / "slides/S1.json").exists()
    Image.new("RGB", (900, 900), "white").save(tmp_path / "white.png")
    slide, _ = prepare(tmp_path / "white.png", mpp=1.0)
    with pytest.raises(InputError, match="slide S1: no tissue"):
        tile(slide)
    assert list((tmp_path / "tiles").iterdir()) == []
    assert "Traceback" not in (tmp_path / "job.log").read_text()
    with pytest.raises(InputError, match="uni.*MahmoodLab"):
        encode(slide, tmp_path / "tiles/S1.parquet", [{"name": "uni"}])


def test_fluorescence_is_refused(shared_data, prepare, tile):
    slide, _ = prepare(shared_data / "wsi" / "test3-DAPI.ndpi")
    with pytest.raises(InputError, match="not H&E"):
        tile(slide)


def test_real_slides(shared_data, prepare, tile, encode):
    found = {}
    for name in ("CMU-1-Small-Region.svs", "CMU-1-Small-Region-dicom"):
        slide, _ = prepare(shared_data / "wsi" / name)
        output, _ = tile(slide)
        path, _ = encode(slide, output["tiles"], [{"name": "descriptors"}])
        found[name] = read_features(path)
    svs, dicom = found.values()
    np.testing.assert_array_equal(svs.coords, dicom.coords)
    correlation = [
        np.corrcoef(a, b)[0, 1] for a, b in zip(svs.values.T, dicom.values.T, strict=True)
    ]
    assert np.median(correlation) > 0.99
    assert svs.attributes["level0_magnification"] == 20


def _write_bad(kind, folder, shared_data):
    """Write a slide that cannot be used; return its path, and the rule and words of its refusal."""
    path = folder / "bad.svs"
    scan = {"tile": True, "compression": "jpeg", "resunit": "cm", "xres": 2000, "yres": 2000}
    glass = pyvips.Image.black(1500, 1500, bands=3).linear(1, 250).cast("uchar")
    small_region = shared_data / "wsi" / "CMU-1-Small-Region.svs"
    if kind == "truncated":
        path.write_bytes(small_region.read_bytes()[:-1000])
        return path, "prepare_slide", "truncated"
    if kind == "beheaded":
        path.write_bytes(small_region.read_bytes()[:5])
        return path, "prepare_slide", "unsupported|truncated"
    if kind == "zero bytes":
        path.write_bytes(b"")
        return path, "prepare_slide", "zero bytes"
    if kind == "wrong extension":
        path.write_text("slide,patient\n")
        return path, "prepare_slide", "unsupported type"
    if kind == "no mpp":
        glass.tiffsave(str(path), tile=True, xres=1, yres=1)
        return path, "prepare_slide", "`mpp` column"
    if kind == "DICOM":
        path = folder / "series"
        path.mkdir()
        (path / "1.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 64)
        return path, "prepare_slide", "DICOM"
    if kind == "cut DICOM":
        path = folder / "series"
        shutil.copytree(small_region.with_name("CMU-1-Small-Region-dicom"), path)
        for file in path.glob("*.dcm"):
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])
        return path, "tile_slide", "damaged"
    if kind == "white":
        glass.tiffsave(str(path), **scan)
        return path, "tile_slide", "no tissue"
    if kind == "16 x 16 px":
        (found,) = (file for file in small_region.parent.glob("*.svs") if file != small_region)
        return found, "tile_slide", "no tissue|dark|colour|cells"
    if kind == "fluorescence":
        return shared_data / "wsi" / "test3-DAPI.ndpi", "tile_slide", "not H&E"
    # A damaged JPEG tile in the middle of the tissue: the directory is whole, the pixels are not.
    content = bytearray(small_region.read_bytes())
    content[len(content) // 4 : len(content) // 2] = b"\xff" * (
        len(content) // 2 - len(content) // 4
    )
    path.write_bytes(content)
    return path, "tile_slide", "damaged|no tissue"


@pytest.mark.parametrize(
    "kind",
    ["truncated", "beheaded", "zero bytes", "wrong extension", "no mpp", "DICOM", "cut DICOM",
     "white", "16 x 16 px", "fluorescence", "damaged tiles"],
)  # fmt: skip
def test_a_bad_slide_hands_its_reason_on_to_the_list(
    kind, tmp_path, shared_data, prepare, tile, encode, run_script
):
    image, rule, complaint = _write_bad(kind, tmp_path, shared_data)
    mpp = 0.5 if kind == "16 x 16 px" else None
    slide, _ = prepare(image, mpp=mpp, skip=True)
    output, log = tile(slide, skip=True)
    assert "ERROR slide S1" in log
    assert pd.read_parquet(output["tiles"]).shape == (0, 9)
    assert Image.open(output["overview"]).size[0] > 500
    assert Image.open(output["thumbnail"]).size == (1, 1)
    path, _ = encode(slide, output["tiles"], [{"name": "descriptors"}], skip=True)
    with pytest.raises(BadSlide, match=complaint):
        read_features(path)
    with h5py.File(path) as file:
        assert file["features"].shape[0] == file["coords"].shape[0] == 0
    # A good slide beside it: with none there is nothing to go on with.
    good = tmp_path / "S0.h5"
    with h5py.File(good, "w") as file:
        file.attrs["slide"] = "S0"
    listed = {"failed": tmp_path / "failed.tsv", "page": tmp_path / "failed.html"}
    run_script(
        "check_slides.py",
        input={"features": [good, path]},
        output=listed,
        params={"slides": rows(S0="p0 c slide", S1="p1 c slide")},
    )
    (row,) = read_tsv(listed["failed"]).to_dict("records")
    assert (row["slide"], row["patient"], row["cohort"], row["rule"]) == ("S1", "p1", "c", rule)
    assert re.search(complaint, row["reason"])
    assert "slide S1" in listed["page"].read_text()
    with pytest.raises(InputError, match="none of the 1 slides"):
        run_script(
            "check_slides.py",
            input={"features": [path]},
            output=listed,
            params={"slides": rows(S1="p1 c slide")},
        )


def rows(**slides):
    """Return patient, cohort and role by slide."""
    return {
        slide: dict(zip(("patient", "cohort", "role"), row.split(), strict=True))
        for slide, row in slides.items()
    }


def test_all_slides_are_listed_with_quality_and_status(tmp_path, prepare, tile, encode, run_script):
    """A section, a slide, and one that is left out with the reason that check_slides found."""
    good, _ = prepare(_write_image(tmp_path / "image.tiff"))
    kept, _ = tile(good)
    quality = [tmp_path / f"{slide}.quality.tsv" for slide in "BA"]
    for file in quality:
        file.write_bytes(kept["quality"].read_bytes())
    tiles = pd.read_parquet(kept["tiles"])
    image, _, complaint = _write_bad("white", tmp_path, tmp_path)
    bad, _ = prepare(image, skip=True)
    lost, _ = tile(bad, skip=True)
    path, _ = encode(bad, lost["tiles"], [{"name": "descriptors"}], skip=True)
    ids = {"slides": rows(A="p v section", B="q c slide", S1="r c slide")}
    features = [tmp_path / f"{slide}.h5" for slide in "BA"]
    for file in features:
        with h5py.File(file, "w") as written:
            written.attrs["slide"] = file.stem
    failed = {"failed": tmp_path / "failed.tsv", "page": tmp_path / "failed.html"}
    run_script(
        "check_slides.py",
        input={"features": [*features, path]},
        output=failed,
        params=ids,
    )
    made = {"table": tmp_path / "slides.tsv", "page": tmp_path / "slides.html"}
    unread = tmp_path / "S1.quality.tsv"
    unread.write_bytes(lost["quality"].read_bytes())
    given = {"quality": [*quality, unread], "failed": [failed["failed"]]}
    run_script("list_slides.py", input=given, output=made, params=ids)
    listed = read_tsv(made["table"])
    assert list(listed["role"]) == ["section", "slide", "slide"]
    assert list(listed["status"]) == ["used", "used", "left out"]
    assert re.search(complaint, listed["reason"][2])
    assert listed["n_tiles"][2] == 0
    assert np.isnan(listed["tissue_mm2"][2])
    assert listed["n_tiles"][0] == len(tiles)
    assert listed["median_sharpness"][0] == pytest.approx(tiles["blur"].median(), rel=1e-4)
    page = made["page"].read_text()
    assert "2 of 3 are used" in page
    assert re.search(complaint, page)

    # With `on_bad_slide: stop` there is no list of failures, and no column of reasons to show.
    run_script(
        "list_slides.py",
        input={"quality": quality[1:], "failed": []},
        output=made,
        params={"slides": rows(A="p v section")},
    )
    assert "reason" not in made["page"].read_text()


def test_outlines_drawn_in_qupath_limit_the_tiles(tmp_path, prepare, tile):
    slide, _ = prepare(_write_image(tmp_path / "image.tiff"))
    output, _ = tile(slide)
    every = pd.read_parquet(output["tiles"])
    outlines = json.loads(output["outlines"].read_text())
    assert len(outlines["features"]) == 2
    # The right piece only, as it was written, without the part that is marked as an artefact.
    outlines["features"] = [
        feature
        for feature in outlines["features"]
        if np.mean(feature["geometry"]["coordinates"][0], axis=0)[0] > 900
    ]
    square = [[1000, 500], [1250, 500], [1250, 1100], [1000, 1100], [1000, 500]]
    outlines["features"].append(
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [square]},
            "properties": {"classification": {"name": "Artefact*"}},
        }
    )
    drawn = tmp_path / "drawn.geojson"
    drawn.write_text(json.dumps(outlines))
    output, _ = tile(slide, regions=drawn)
    tiles = pd.read_parquet(output["tiles"])
    assert 8 < len(tiles) < len(every) / 3
    assert tiles["x_px"].min() > 1250 - 56
    assert read_tsv(output["quality"]).set_index("metric")["value"]["n_fragments"] == 1
    outlines["features"][0]["geometry"]["coordinates"] = [[[0, 0], [50, 0], [50, 50], [0, 0]]]
    drawn.write_text(json.dumps(outlines))
    with pytest.raises(BadSlide, match="annotated regions"):
        tile(slide, regions=drawn)


def test_given_features_stand_beside_those_made_here(tmp_path, prepare, tile, encode):
    slide, _ = prepare(_write_image(tmp_path / "image.tiff"))
    output, _ = tile(slide)
    own = read_features(encode(slide, output["tiles"], [{"name": "descriptors"}])[0])
    rng = np.random.default_rng(0)
    order = rng.permutation(len(own.row))[3:]  # three tiles are in no patch
    given = tmp_path / "given.h5"
    with h5py.File(given, "w") as file:
        file["features"] = rng.normal(size=(len(order), 7)).astype(np.float16)
        file["coords"] = own.coords[order]
        file["coords"].attrs.update(patch_size=512, patch_size_level0=112)
    expected = h5py.File(given)["features"][()].astype(np.float32)[np.argsort(order)]
    uni = {"name": "uni", "precomputed": True}
    for encoders in ([uni, {"name": "descriptors"}], [{"name": "descriptors"}, uni], [uni]):
        path, log = encode(slide, output["tiles"], encoders, given=given)
        assert f"{len(order)} of {len(own.row)} tiles lie in a patch" in log
        features = read_features(path)
        kept = np.sort(order)
        np.testing.assert_array_equal(features.coords, own.coords[kept])
        np.testing.assert_array_equal(features.block("uni"), expected)
        assert features.blocks == [(e["name"], 7 if e is uni else 35) for e in encoders]
        record = features.encoders[encoders.index(uni)]
        assert record["sha256"] == "precomputed"
        assert record["mpp"] == pytest.approx(112 / 512)
        if len(encoders) == 2:
            np.testing.assert_array_equal(features.block("descriptors"), own.values[kept])
        white = features.white[:7] if encoders[0] is uni else features.white[35:]
        np.testing.assert_allclose(white, expected.mean(0), rtol=1e-5)
    with h5py.File(given, "a") as file:
        file["coords"][:, 0] += 5000
    with pytest.raises(InputError, match="a patch for 0 of the"):
        encode(slide, output["tiles"], [uni], given=given)


def test_a_wrong_setting_is_no_bad_slide(tmp_path, prepare, tile, encode):
    slide, _ = prepare(_write_image(tmp_path / "image.tiff"))
    output, _ = tile(slide)
    with pytest.raises(InputError, match="uni.*MahmoodLab"):
        encode(slide, output["tiles"], [{"name": "uni"}], skip=True)
    assert not (tmp_path / "features/S1.h5").exists()
