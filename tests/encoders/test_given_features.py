from __future__ import annotations

import logging

import h5py
import numpy as np
import pytest

from histogep.encoders.given_features import match_given, read_given
from histogep.errors import InputError
from histogep.lattice import Lattice
from histogep.slides.reader import Slide

SLIDE = Slide(slide="S1", image="none.svs", mpp=0.25, width_px=8000, height_px=6000)
LATTICE = Lattice("square", 112, 112)
TRIDENT = {
    "patch_size": 224,
    "patch_size_level0": 448,
    "level0_magnification": 40,
    "target_magnification": 20,
    "overlap": 0,
    "name": "S1",
    "level0_width": 8000,
    "level0_height": 6000,
}


def _write(path, *, origin=(96, 32), step=448, attributes=TRIDENT, values=None):
    """Write features as TRIDENT does (as CLAM without attributes); they are the patches' corners."""
    x, y = np.meshgrid(np.arange(origin[0], 7500, step), np.arange(origin[1], 5500, step))
    corners = np.column_stack([x.ravel(), y.ravel()])
    with h5py.File(path, "w") as file:
        file["features"] = corners.astype(np.float32) if values is None else values
        file["coords"] = corners
        file["coords"].attrs.update(attributes)
    return path


@pytest.mark.parametrize(
    "attributes",
    [TRIDENT, {}, {"patch_size": 224, "patch_level": 1, "downsample": np.array([2.0, 2.0])}],
    ids=["trident", "clam features", "clam coords"],
)
def test_a_tile_takes_the_patch_that_covers_its_centre(tmp_path, attributes):
    path = _write(tmp_path / "S1.h5", attributes=attributes)
    given = read_given(path, slide=SLIDE, lattice=LATTICE)
    assert given.side_px == 448
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 8000, 500), rng.uniform(0, 6000, 500)
    row = match_given(given, x, y, slide=SLIDE)
    corner = given.values[row[row >= 0]]
    centres = np.column_stack([x, y])[row >= 0]
    assert ((centres >= corner - 1) & (centres <= corner + 449)).all()
    last = given.corners_px.max(0) + 448
    covered = (x >= 96) & (y >= 32) & (x <= last[0]) & (y <= last[1])
    np.testing.assert_array_equal(row[covered] >= 0, True)
    assert (row[(x < 90) | (y < 25)] == -1).all()


def test_the_tiles_of_the_workflow_itself_come_back_one_for_one(tmp_path, caplog):
    row, col = Lattice().cover(2000, 1500)
    x_um, y_um = Lattice().centres_um(row, col)
    corners = np.round(np.column_stack([x_um, y_um]) / 0.25 - 224).astype(np.int64)
    with h5py.File(tmp_path / "S1.h5", "w") as file:
        file["features"] = np.arange(2.0 * len(row)).reshape(-1, 2)
        file["coords"] = corners
        file["coords"].attrs.update(TRIDENT)
    given = read_given(tmp_path / "S1.h5", slide=SLIDE, lattice=Lattice())
    caplog.set_level(logging.INFO)
    found = match_given(given, x_um / 0.25, y_um / 0.25, slide=SLIDE)
    np.testing.assert_array_equal(found, np.arange(len(row)))
    assert "0 % of a patch apart" in caplog.text
    match_given(given, x_um[:9] / 0.25 + 180, y_um[:9] / 0.25, slide=SLIDE)
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]


def test_features_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "S1.h5"
    _write(path)
    with pytest.raises(InputError, match=r"112 um wide .* tiles of the lattice 55 um"):
        read_given(path, slide=SLIDE, lattice=Lattice("square", 55, 55))
    _write(path, attributes={}, step=512)
    with pytest.raises(InputError, match="128 um wide.*distance of neighbouring"):
        read_given(path, slide=SLIDE, lattice=LATTICE)
    _write(path, attributes=TRIDENT | {"level0_width": 4000})
    with pytest.raises(InputError, match="4000 x 6000 px, but slide S1 has 8000 x 6000"):
        read_given(path, slide=SLIDE, lattice=LATTICE)
    _write(path, values=np.zeros((3, 5)))
    with pytest.raises(InputError, match="do not belong together"):
        read_given(path, slide=SLIDE, lattice=LATTICE)
    n = len(h5py.File(_write(path))["coords"])
    _write(path, values=np.full((n, 4), np.nan))
    with pytest.raises(InputError, match="not finite"):
        read_given(path, slide=SLIDE, lattice=LATTICE)
    path.write_bytes(b"none")
    with pytest.raises(InputError, match="TRIDENT and CLAM"):
        read_given(path, slide=SLIDE, lattice=LATTICE)


def _write_as_trident(path, features, coords, *, overlap):
    """Write a file as TRIDENT's writers do: chunks of one row, growing tables, text for names.

    `coords_to_h5` gives the attributes of coords; those of features are added when encoding.
    """
    attributes = TRIDENT | {"overlap": overlap, "savetodir": "features_uni_v1"}
    with h5py.File(path, "w") as file:
        for name, values in (("features", features), ("coords", coords)):
            shape = values.shape
            table = file.create_dataset(
                name,
                shape=shape,
                maxshape=(None, *shape[1:]),
                chunks=(1, *shape[1:]),
                dtype=values.dtype,
            )
            table[:] = values
        file["features"].attrs.update({"name": "S1", "savetodir": "features_uni_v1"})
        file["coords"].attrs.update(attributes)
    return path


@pytest.mark.parametrize("overlap", [0, 56])
@pytest.mark.parametrize("kind", [np.float16, np.float32])
@pytest.mark.parametrize("batched", [False, True])
def test_a_file_as_trident_writes_it_is_accepted(tmp_path, overlap, kind, batched):
    step = 448 - 2 * overlap
    x, y = np.meshgrid(np.arange(0, 7000, step), np.arange(0, 5000, step))
    coords = np.column_stack([x.ravel(), y.ravel()]).astype(np.int64)
    values = np.random.default_rng(0).normal(size=(len(coords), 5)).astype(kind)
    path = _write_as_trident(
        tmp_path / "S1.h5", values[None] if batched else values, coords, overlap=overlap
    )
    given = read_given(path, slide=SLIDE, lattice=LATTICE)
    assert given.values.dtype == np.float32
    np.testing.assert_array_equal(given.values, values.astype(np.float32))
    np.testing.assert_array_equal(given.corners_px, coords)
    assert (given.side_px, given.patch_px) == (448, 224)
    centres = coords + 224
    row = match_given(given, centres[:, 0], centres[:, 1], slide=SLIDE)
    np.testing.assert_array_equal(row, np.arange(len(coords)))
