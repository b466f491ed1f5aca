from __future__ import annotations

import json

import geopandas
import numpy as np
import pytest
from scipy import ndimage
from shapely.geometry import Point, Polygon, mapping

from histogep import bitmask
from histogep.bitmask import BitMask, Window
from histogep.jobs import InputError
from histogep.qupath import write_outlines
from histogep.regions import read_regions


def _write(path, *regions, bare=False):
    features = [
        {
            "type": "Feature",
            "geometry": mapping(shape),
            "properties": {"objectType": "annotation", "classification": name and {"name": name}},
        }
        for name, shape in regions
    ]
    content = features if bare else {"type": "FeatureCollection", "features": features}
    path.write_text(json.dumps(content))
    return path


def _blobs(shape=(90, 130)):
    field = ndimage.gaussian_filter(np.random.default_rng(4).normal(size=shape), 5)
    return field > 0


def _whole(mask):
    return mask.read(Window(0, mask.shape[0], 0, mask.shape[1]))


def test_regions_are_those_of_shapely(tmp_path, monkeypatch):
    monkeypatch.setattr(bitmask, "WINDOW_PX", 32)
    ring = Polygon(
        Point(400, 300).buffer(280).exterior, [Point(400, 300).buffer(90).exterior.coords]
    )
    away = Point(900, 500).buffer(150).union(Point(1200, 700).buffer(60))
    cut = Polygon([(381, 11), (473, 11), (522, 701), (381, 701)])
    path = _write(
        tmp_path / "r.geojson",
        ("Include", ring),
        ("region*", away),
        ("Ignore*", cut),
        ("Tumor", cut),
    )
    array = np.ones((90, 130), bool)
    mask = BitMask.of(array)
    read_regions(path).limit(mask, px_per_px=(10.0, 10.0))
    y, x = np.indices(array.shape)
    points = geopandas.GeoSeries.from_xy(x.ravel() * 10 + 5, y.ravel() * 10 + 5)
    expected = points.within(ring.union(away).difference(cut)).to_numpy().reshape(array.shape)
    assert expected.mean() > 0.1
    np.testing.assert_array_equal(_whole(mask), expected)
    # Without an included region all but the excluded one counts; a bare list will do.
    mask = BitMask.of(array)
    read_regions(_write(path, ("Exclude", cut), bare=True)).limit(mask, px_per_px=(10.0, 10.0))
    np.testing.assert_array_equal(_whole(mask), ~points.within(cut).to_numpy().reshape(array.shape))


def test_files_without_regions_are_refused(tmp_path):
    path = tmp_path / "r.geojson"
    with pytest.raises(InputError, match=r"its classes: no class, tumor"):
        read_regions(_write(path, ("Tumor", Point(0, 0).buffer(9)), (None, Point(0, 0).buffer(9))))
    with pytest.raises(InputError, match="is a Point, not a polygon"):
        read_regions(_write(path, ("Include", Point(0, 0))))
    path.write_text("{")
    with pytest.raises(InputError, match="export them from QuPath"):
        read_regions(path)


@pytest.mark.parametrize("step", [1, 3])
def test_outlines_hold_the_mask_and_come_back_as_regions(tmp_path, monkeypatch, step):
    array = _blobs()
    array[20:26, 30:36] = False
    monkeypatch.setattr("histogep.qupath.OUTLINE_PX", -(-130 // step))
    path = tmp_path / "tissue.geojson"
    write_outlines(path, name="S1", mask=BitMask.of(array), px_per_px=(16.0, 16.5))
    shapes = geopandas.read_file(path).set_crs(None, allow_override=True)
    assert shapes.is_valid.all()
    if step == 1:
        # A contour cuts the corner of a pixel, an eighth of it.
        assert shapes.area.sum() == pytest.approx(array.sum() * 16 * 16.5, rel=0.01)
        assert len(shapes) == ndimage.label(array)[1]
    mask = BitMask.of(np.ones_like(array))
    read_regions(path).limit(mask, px_per_px=(16.0, 16.5))
    agree = (_whole(mask) == array).mean()
    assert agree == 1 if step == 1 else agree > 0.93
    first = path.read_bytes()
    write_outlines(path, name="S1", mask=BitMask.of(array), px_per_px=(16.0, 16.5))
    assert path.read_bytes() == first
    write_outlines(path, name="S1", mask=BitMask((1, 1)), px_per_px=(1.0, 1.0))
    assert json.loads(path.read_text())["features"] == []
