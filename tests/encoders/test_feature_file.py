from __future__ import annotations

import json
from dataclasses import fields, replace

import h5py
import numpy as np
import pytest

from histogep.encoders.feature_file import (
    Features,
    FeatureWriter,
    read_features,
    tile_attributes,
    write_features,
)
from histogep.errors import InputError

#: The attributes of `coords` in TRIDENT (mahmoodlab/TRIDENT, wsi_objects/WSI.py).
TRIDENT = {
    "patch_size",
    "patch_size_level0",
    "level0_magnification",
    "target_magnification",
    "overlap",
    "name",
    "savetodir",
    "level0_width",
    "level0_height",
}


@pytest.fixture
def features():
    rng = np.random.default_rng(0)
    return Features(
        slide="S1",
        values=rng.normal(size=(5, 7)).astype(np.float32),
        row=np.arange(5, dtype=np.int32),
        col=np.arange(5, dtype=np.int32) * 2,
        coords=rng.integers(-50, 9000, (5, 2)),
        barcode=np.array(["AAAC-1", "", "é", "x", "y"], object),
        white=np.zeros(7, np.float32),
        blocks=[("descriptors", 3), ("lite0", 4)],
        lattice={"kind": "visium", "pitch_um": 100.0, "tile_um": 112.0},
        encoders=[{"name": "descriptors", "dim": 3}, {"name": "lite0", "dim": 4}],
        attributes=tile_attributes(
            slide="S1", mpp=0.25, tile_um=112, pitch_um=100, width_px=9000, height_px=8000
        ),
    )


def test_features_go_round(tmp_path, features):
    write_features(features, tmp_path / "S1.h5")
    found = read_features(tmp_path / "S1.h5")
    for field in fields(features):
        expected, value = getattr(features, field.name), getattr(found, field.name)
        if isinstance(expected, np.ndarray):
            np.testing.assert_array_equal(value, expected)
        else:
            assert value == expected, field.name
    np.testing.assert_array_equal(found.block("lite0"), features.values[:, 3:])
    with pytest.raises(InputError, match="uni"):
        found.block("uni")


def test_the_layout_is_tridents(tmp_path, features):
    write_features(features, tmp_path / "S1.h5")
    with h5py.File(tmp_path / "S1.h5") as file:
        assert file["features"].dtype == np.float32
        assert file["coords"].dtype == np.int64
        attributes = dict(file["coords"].attrs)
        assert json.loads(file.attrs["blocks"]) == [["descriptors", 3], ["lite0", 4]]
    assert set(attributes) >= TRIDENT
    assert attributes["patch_size_level0"] == 448
    assert attributes["level0_magnification"] == 40
    assert attributes["target_magnification"] == 20
    assert attributes["overlap"] == 24


def test_readers_of_trident_and_clam_find_what_they_look_for(tmp_path, features):
    """What TRIDENT's read_coords, its heatmaps and slide encoders, and CLAM's bags look up."""
    write_features(features, tmp_path / "S1.h5")
    with h5py.File(tmp_path / "S1.h5") as file:
        values, coords = file["features"][:], file["coords"][:]
        attributes = dict(file["coords"].attrs)
    assert values.ndim == 2
    assert values.shape[0] == coords.shape[0]
    assert coords.shape[1] == 2
    numbers = (
        *("patch_size", "patch_size_level0", "level0_magnification"),
        *("overlap", "level0_width", "level0_height"),
    )
    assert all(isinstance(attributes[name], np.integer) for name in numbers)
    assert isinstance(attributes["target_magnification"], np.floating)
    assert isinstance(attributes["name"], str)


def test_trident_reads_squares_of_our_size_whatever_the_pixel_size():
    """The arithmetic of TRIDENT's WSIPatcher, which knows the two magnifications alone."""
    rng = np.random.default_rng(0)
    for mpp in (0.2273, 0.2498, 0.25, 0.499, 0.687, 1.0, 3.19, *rng.uniform(0.1, 4, 500)):
        for objective in (None, 40, 20):
            told = tile_attributes(
                slide="S", mpp=mpp, tile_um=112, pitch_um=100, width_px=9000, height_px=9000,
                objective=objective,
            )  # fmt: skip
            src_pixel_size = 10 / told["level0_magnification"]
            dst_pixel_size = 10 / told["target_magnification"]
            side = round(told["patch_size"] * (dst_pixel_size / src_pixel_size))
            assert side == told["patch_size_level0"] == round(112 / mpp)
    assert (
        tile_attributes(slide="S", mpp=0.687, tile_um=112, pitch_um=100, width_px=9, height_px=9)[
            "patch_size_level0"
        ]
        == 163
    )


def test_the_same_features_give_the_same_bytes(tmp_path, features):
    for name in ("a", "b"):
        write_features(features, tmp_path / f"{name}.h5")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_rows_that_are_missing_or_not_finite_leave_no_file(tmp_path, features):
    options = {
        name: getattr(features, name)
        for name in ("slide", "row", "col", "coords", "barcode", "blocks", "lattice", "encoders")
    }
    path = tmp_path / "S1.h5"

    def write_three_rows():
        with FeatureWriter(path, attributes={}, **options) as writer:
            writer.append(features.values[:3])
            writer.set_white(features.white)

    with pytest.raises(ValueError, match="3 of 5"):
        write_three_rows()
    with pytest.raises(ValueError, match="finite"):
        write_features(replace(features, values=features.values * np.nan), path)
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_file_is_an_input_error(tmp_path, features):
    path = tmp_path / "S1.h5"
    write_features(features, path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(InputError, match="encode_tiles"):
        read_features(path)
