from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import pyvips
from PIL import Image
from scipy import ndimage

from histogep.deployment.folder import check_features
from histogep.encoders import encode as encoding
from histogep.encoders.batches import encode_on_cpu, encode_on_gpu
from histogep.encoders.descriptors import DESCRIPTOR_NAMES, DescriptorEncoder, describe_tiles
from histogep.encoders.encode import encode_slide
from histogep.encoders.feature_file import read_features
from histogep.encoders.tile_pixels import read_tiles
from histogep.errors import InputError
from histogep.lattice import Lattice
from histogep.slides.reader import Slide

SIZE = (2000, 1600)


def _write(path, *, levels):
    """Write one and the same picture with the levels (powers of 2) that are named."""
    rng = np.random.default_rng(0)
    picture = ndimage.gaussian_filter(rng.random((SIZE[1], SIZE[0], 3)), (6, 6, 0))
    picture = ((picture - picture.min()) / np.ptp(picture) * 255).astype(np.uint8)
    import tifffile

    with tifffile.TiffWriter(path) as file:
        for number, level in enumerate(levels):
            image = Image.fromarray(picture).reduce(2**level) if level else picture
            file.write(
                np.asarray(image), tile=(128, 128), photometric="rgb", subfiletype=int(number > 0)
            )
    return Slide(slide="S1", image=path, mpp=0.25, width_px=SIZE[0], height_px=SIZE[1])


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return _write(tmp_path_factory.mktemp("slide") / "S1.tiff", levels=range(4))


@pytest.fixture(scope="module")
def tiles():
    centre = np.array([[x, y] for y in range(300, 1500, 450) for x in range(300, 1800, 450)])
    row, col = np.divmod(np.arange(len(centre)), 4)
    return pd.DataFrame(
        {"row": row, "col": col, "x_px": centre[:, 0], "y_px": centre[:, 1], "barcode": ""}
    )


@pytest.mark.parametrize("side", [312.5, 448.0, 300.0, 450.2, 1000.0])
def test_tiles_are_pillows_within_a_grey_level(slide, side):
    corners = np.array([[100.0, 200.0], [777.0, 100.0], [-60.0, 300.0]])
    found = read_tiles(slide, corners, side, size=224)
    assert found.shape == (3, 224, 224, 3)
    level = slide.level(side / 224)
    for tile, (x, y) in zip(found, corners, strict=True):
        x, y = np.round([x / 2**level, y / 2**level]) * 2**level
        expected = slide.read(x, y, side, side, size=(224, 224))
        assert np.abs(tile.astype(int) - expected).max() <= 1 + (side == 450.2)


def test_averaging_by_two_brightens_no_tile(tmp_path):
    """Halves of a grey level are as often rounded down as up (an eighth of all averages are)."""
    gappy = _write(tmp_path / "gappy.tiff", levels=(0,))
    corners = np.array([[100.0, 200.0], [777.0, 100.0]])
    found = read_tiles(gappy, corners, 448, size=224)
    for tile, (x, y) in zip(found, corners.astype(int), strict=True):
        pixels = gappy.region(0, x, y, 448, 448).astype(float)
        exact = pixels.reshape(224, 2, 224, 2, 3).mean((1, 3))
        assert abs(tile.mean() - exact.mean()) < 0.02


def test_a_slide_coarser_than_the_tiles_keeps_fractions_of_a_px(slide):
    coarse = Slide(slide="S1", image=slide.image, mpp=2, width_px=SIZE[0], height_px=SIZE[1])
    (found,) = read_tiles(coarse, np.array([[100.4, 200.7]]), 56, size=224)
    np.testing.assert_array_equal(found, coarse.read(100.4, 200.7, 56, 56, size=(224, 224)))


@pytest.mark.parametrize("levels", [(0,), (0, 3)])
def test_a_missing_level_is_read_from_the_next_finer_one(slide, tmp_path, levels):
    gappy = _write(tmp_path / "gappy.tiff", levels=levels)
    assert len(gappy.handle.level_dimensions) == len(levels)
    assert gappy.level(4) == 0
    corners = np.array([[100.0, 200.0], [500.0, 600.0]])
    whole, found = (read_tiles(s, corners, 896, size=224).astype(int) for s in (slide, gappy))
    assert np.abs(whole - found).max() <= 4
    # Level 3 itself holds plain means, the other is averaged with the weights of a triangle.
    whole, found = (s.read(0, 0, *SIZE, size=(250, 200)).astype(int) for s in (slide, gappy))
    assert np.abs(whole - found).mean() < 4


def test_batches_come_in_order_from_either_device():
    """The queue of the GPU on the CPU: what was started is finished, in order, one batch late."""
    events = []

    def read(rows):
        return [np.arange(rows.start, rows.stop)]

    def start(view):
        events.append(("start", int(view[0])))

        def finish():
            events.append(("finish", int(view[0])))
            return view[:, None]

        return finish

    batches = [slice(at, at + 3) for at in range(0, 30, 3)]
    for way in (encode_on_cpu, encode_on_gpu):
        events.clear()
        found = np.concatenate([view for (view,) in way(batches, read, start, threads=2)])
        np.testing.assert_array_equal(found[:, 0], np.arange(30))
    assert events[:4] == [("start", 0), ("start", 3), ("finish", 0), ("start", 6)]


def test_an_error_while_reading_ends_the_work(slide, tiles, tmp_path, monkeypatch):
    def read(*_, **__):
        raise InputError("the disk is gone")

    monkeypatch.setattr(encoding, "read_tiles", read)
    with pytest.raises(InputError, match="disk"):
        encode_slide(
            slide,
            tiles,
            tmp_path / "S1.h5",
            lattice=Lattice(),
            encoders=[DescriptorEncoder()],
        )
    assert list(tmp_path.iterdir()) == []


def test_wider_squares_multiply_the_features(slide, tiles, tmp_path):
    lattice = Lattice("square", 112, 112, context_um=(224, 112))
    encode_slide(
        slide,
        tiles,
        tmp_path / "S1.h5",
        lattice=lattice,
        encoders=[DescriptorEncoder()],
    )
    features = read_features(tmp_path / "S1.h5")
    n = len(DESCRIPTOR_NAMES)
    assert features.blocks == [("descriptors", n), ("descriptors@224um", n)]
    assert [(e["name"], e["mpp"]) for e in features.encoders] == [
        ("descriptors", 0.5),
        ("descriptors@224um", 1.0),
    ]
    for um in (112, 224):
        side = um / slide.mpp
        corners = tiles[["x_px", "y_px"]].to_numpy() - side / 2
        expected = describe_tiles(read_tiles(slide, corners, side, size=224))
        columns = features.block("descriptors" if um == 112 else "descriptors@224um")
        np.testing.assert_allclose(columns, expected, rtol=1e-5)
    white = describe_tiles(np.full((1, 224, 224, 3), 255, np.uint8))[0]
    np.testing.assert_array_equal(features.white, np.tile(white, 2))
    # A model that was trained on them takes these, and no slide without them or with others.
    assert Lattice.from_settings(features.lattice) == lattice
    model = {
        "encoders": features.encoders,
        "blocks": features.blocks,
        "lattice": lattice.to_settings(),
    }
    check_features(features, model)
    for context in ((), (112.0, 448.0)):
        other = lattice.to_settings() | {"context_um": context}
        with pytest.raises(InputError, match="lattice"):
            check_features(features, model | {"lattice": other})
    half = [encoder | {"precision": "bfloat16"} for encoder in features.encoders]
    with pytest.raises(InputError, match=r"descriptors in float32, the model learned .* bfloat16"):
        check_features(features, model | {"encoders": half})
    narrow = SimpleNamespace(**vars(features))
    narrow.encoders, narrow.blocks = features.encoders[:1], features.blocks[:1]
    with pytest.raises(InputError, match="encoded with descriptors, the model reads"):
        check_features(narrow, model)


def test_libvips_and_the_level_are_in_use(slide):
    assert slide.region(1, 0, 0, 10, 10).shape == (10, 10, 3)
    assert slide._fast._opened[1] is not None
    assert isinstance(slide._fast._opened[1], pyvips.Image)
