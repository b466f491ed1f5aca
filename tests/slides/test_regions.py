from __future__ import annotations

import json

import geopandas
import numpy as np
import pytest
import shapely
from scipy import ndimage
from shapely.geometry import Point, Polygon, mapping

from histogep.errors import BadSlide, InputError
from histogep.slides import regions as regions_module
from histogep.slides.geojson import write_outlines
from histogep.slides.regions import read_regions


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


def test_regions_are_those_of_shapely(tmp_path, monkeypatch):
    monkeypatch.setattr(regions_module, "BAND_PX", 32)
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
    mask = array.copy()
    read_regions(path).limit(mask, px_per_px=(10.0, 10.0))
    y, x = np.indices(array.shape)
    points = geopandas.GeoSeries.from_xy(x.ravel() * 10 + 5, y.ravel() * 10 + 5)
    expected = points.within(ring.union(away).difference(cut)).to_numpy().reshape(array.shape)
    assert expected.mean() > 0.1
    np.testing.assert_array_equal(mask, expected)
    # Without an included region all but the excluded one counts; a bare list will do.
    mask = array.copy()
    read_regions(_write(path, ("Exclude", cut), bare=True)).limit(mask, px_per_px=(10.0, 10.0))
    np.testing.assert_array_equal(mask, ~points.within(cut).to_numpy().reshape(array.shape))


def test_files_without_regions_are_refused(tmp_path):
    path = tmp_path / "r.geojson"
    with pytest.raises(InputError, match=r"its classes: no class, tumor"):
        read_regions(_write(path, ("Tumor", Point(0, 0).buffer(9)), (None, Point(0, 0).buffer(9))))
    with pytest.raises(InputError, match="no annotated area .1 points or lines"):
        read_regions(_write(path, ("Include", Point(0, 0))))
    path.write_text("{")
    with pytest.raises(InputError, match="export it again from QuPath"):
        read_regions(path)


@pytest.mark.parametrize("step", [1, 3])
def test_outlines_hold_the_mask_and_come_back_as_regions(tmp_path, monkeypatch, step):
    array = _blobs()
    array[20:26, 30:36] = False
    monkeypatch.setattr("histogep.slides.geojson.OUTLINE_PX", -(-130 // step))
    path = tmp_path / "tissue.geojson"
    write_outlines(path, name="S1", mask=array.copy(), px_per_px=(16.0, 16.5))
    shapes = geopandas.read_file(path).set_crs(None, allow_override=True)
    assert shapes.is_valid.all()
    if step == 1:
        # A contour cuts the corner of a pixel, an eighth of it.
        assert shapes.area.sum() == pytest.approx(array.sum() * 16 * 16.5, rel=0.01)
        assert len(shapes) == ndimage.label(array)[1]
    mask = np.ones_like(array)
    read_regions(path).limit(mask, px_per_px=(16.0, 16.5))
    agree = (mask == array).mean()
    assert agree == 1 if step == 1 else agree > 0.93
    first = path.read_bytes()
    write_outlines(path, name="S1", mask=array.copy(), px_per_px=(16.0, 16.5))
    assert path.read_bytes() == first
    write_outlines(path, name="S1", mask=np.zeros((1, 1), bool), px_per_px=(1.0, 1.0))
    assert json.loads(path.read_text())["features"] == []


def _square(left, top, right, bottom):
    return mapping(Polygon([(left, top), (right, top), (right, bottom), (left, bottom)]))


def _feature(geometry, classification="Tissue", **properties):
    kind = classification if isinstance(classification, dict) else {"name": classification}
    properties = {"objectType": "annotation", "classification": kind, **properties}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def _limited(path, content, **dump):
    text = content if isinstance(content, bytes) else json.dumps(content, **dump).encode()
    path.write_bytes(text)
    mask = np.ones((100, 100), bool)
    read_regions(path).limit(mask, px_per_px=(10.0, 10.0))
    return int(mask.sum())


LEFT = _square(0, 0, 500, 1000)
UPPER = _square(0, 0, 1000, 500)
BOTH = [_feature(LEFT), _feature(UPPER, "Ignore*")]
NESTED = {"type": "FeatureCollection", "features": [[_feature(LEFT)], {"features": BOTH[1:]}]}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (_feature(LEFT), 5000),
        (BOTH, 2500),
        (NESTED, 2500),
        ([_feature(LEFT), _feature({"type": "LineString", "coordinates": [[0, 0], [9, 9]]})], 5000),
        ([_feature({"type": "GeometryCollection", "geometries": [LEFT, UPPER]})], 7500),
        ([_feature({"type": "GeometryCollection", "geometries": [
            {"type": "Point", "coordinates": [1, 1]},
            {"type": "GeometryCollection", "geometries": [LEFT]}]})], 5000),
        ([_feature(LEFT), _feature({"type": "Polygon", "coordinates": []}, "Ignore*")], 5000),
        ([_feature(LEFT), _feature({"type": "Polygon", "coordinates": [[]]}, "Ignore*")], 5000),
        ([_feature(LEFT), _feature(None, "Ignore*")], 5000),
        ([_feature(LEFT), _feature(UPPER, "Ignore*") | {"properties": None}], 5000),
        ([_feature(LEFT, {"names": ["Tissue", "Frozen"]})], 5000),
        ([_feature(LEFT, {"name": "Tissue: Frozen", "colorRGB": -1})], 5000),
        ([_feature(LEFT), _feature(UPPER, {"names": ["Tissue", "Artefact*"]})], 2500),
        # A ring that is not closed, one that crosses itself, a hole outside, parts that overlap, z.
        ([_feature({"type": "Polygon", "coordinates": [LEFT["coordinates"][0][:-1]]})], 5000),
        ([_feature({"type": "Polygon", "coordinates": [
            [[0, 0], [1000, 1000], [0, 1000], [1000, 0], [0, 0]]]})], 5000),
        ([_feature({"type": "Polygon", "coordinates": [
            LEFT["coordinates"][0], _square(600, 0, 900, 900)["coordinates"][0]]})], 5000),
        ([_feature({"type": "MultiPolygon", "coordinates": [
            LEFT["coordinates"], UPPER["coordinates"]]})], 7500),
        ([_feature({"type": "Polygon", "coordinates": [
            [[0, 0, 3], [500, 0, 3], [500, 1000, 3], [0, 1000, 3], [0, 0, 3]]]})], 5000),
    ],
)  # fmt: skip
def test_every_shape_of_geojson(tmp_path, content, expected):
    assert _limited(tmp_path / "r.geojson", content) == expected


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_encodings_of_geojson(tmp_path, encoding):
    content = json.dumps([_feature(LEFT, name="Gewebe links, \u00b5")], ensure_ascii=False)
    assert _limited(tmp_path / "r.geojson", content.encode(encoding)) == 5000


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e400", "1e99", "null"])
def test_coordinates_that_are_not_finite_are_named_and_left_out(tmp_path, value, caplog):
    broken = json.dumps(_feature(UPPER, "Ignore*", name="upper")).replace("1000.0", value)
    path = tmp_path / "r.geojson"
    assert _limited(path, f"[{json.dumps(_feature(LEFT))}, {broken}]".encode()) == 5000
    assert "1 left out, with coordinates that are not finite: feature 2 'upper'" in caplog.text


@pytest.mark.parametrize(
    "geometry",
    [3, "x", [], {"type": "Cube", "coordinates": []}, {"type": "Polygon"},
     {"type": "Polygon", "coordinates": [1, 2]}, {"type": "Polygon", "coordinates": "abc"},
     {"type": "Polygon", "coordinates": [["a", "b", "c"]]},
     {"type": "Polygon", "coordinates": [[["1", "2"], ["3", "4"], ["5", "6"], ["1", "2"]]]},
     {"type": "GeometryCollection", "geometries": 4}],
)  # fmt: skip
def test_what_is_no_geometry_is_refused_with_the_feature(tmp_path, geometry):
    content = [_feature(LEFT), _feature(geometry, name="odd")]
    with pytest.raises(InputError, match=r"r\.geojson: the geometry of feature 2 'odd' cannot"):
        _limited(tmp_path / "r.geojson", content)


@pytest.mark.parametrize("content", [b"\xff\xd8\xff", b"{}", b"3", b'["a"]', b"PK\x03\x04", b"",
                                     b'{"type": "Topology"}', b"\xe9", b"[]", b"null"])  # fmt: skip
def test_what_is_no_geojson_is_refused(tmp_path, content):
    with pytest.raises(InputError, match=r"r\.geojson"):
        _limited(tmp_path / "r.geojson", content)


@pytest.mark.parametrize(
    "kind",
    [
        {"properties": {"objectType": "cell"}},
        {"properties": {"objectType": "tile"}},
        {"properties": {"object_type": "detection"}},
        {"properties": {"object_type": "tma_core"}},
        {"objectType": "Detection", "properties": {}},
        {"id": "PathCellObject", "properties": {"isLocked": False, "measurements": []}},
        {"id": "PathDetectionObject", "properties": {}},
        {"id": "PathTileObject", "properties": {}},
        {"id": "TMACoreObject", "properties": {}},
        {"id": "7f1", "nucleusGeometry": UPPER, "properties": {}},
    ],
)
def test_cells_and_detections_of_every_version_are_no_annotations(tmp_path, kind):
    old = {**_feature(LEFT), "id": "PathAnnotationObject"}
    del old["properties"]["objectType"]
    detected = {"type": "Feature", "geometry": UPPER, **kind}
    detected["properties"] = {**kind["properties"], "classification": {"name": "Ignore*"}}
    path = tmp_path / "r.geojson"
    assert _limited(path, [old, detected]) == 5000
    with pytest.raises(InputError, match="1 detections, cells or tiles, which are not annotations"):
        _limited(path, [detected])


@pytest.mark.parametrize("crossing", [False, True])
def test_many_points_are_rasterised_once(tmp_path, crossing):
    """10^6 points; polygon2mask took points times pixels, dividing at crossings their square."""
    n = 10**6
    angle = np.linspace(0, 2 * np.pi, n, endpoint=False)
    radius = 4000 + 50 * np.sin(2000 * angle)
    points = 5000 + radius[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])
    points = np.round(points, 0 if crossing else 3)
    ring = json.dumps([*points.tolist(), points[0].tolist()])
    geometry = f'{{"type": "Polygon", "coordinates": [{ring}]}}'
    path = tmp_path / "r.geojson"
    path.write_text(json.dumps([_feature("HERE")]).replace('"HERE"', geometry))
    mask = np.ones((625, 625), bool)
    read_regions(path).limit(mask, px_per_px=(16.0, 16.0))
    y, x = np.indices((625, 625)) * 16 + 8 - 5000
    expected = np.hypot(x, y) < 4000 + 50 * np.sin(2000 * np.arctan2(y, x))
    assert (mask == expected).mean() > 0.997


def test_the_raster_is_that_of_shapely_on_random_polygons(tmp_path):
    rng = np.random.default_rng(3)
    for _ in range(20):
        points = rng.uniform(-200, 1500, (rng.integers(3, 30), 2)).round(2).tolist()
        shape = {"type": "Polygon", "coordinates": [[*points, points[0]]]}
        path = tmp_path / "r.geojson"
        path.write_text(json.dumps([_feature(shape)]))
        regions = read_regions(path)
        mask = np.ones((90, 110), bool)
        y, x = np.indices((90, 110)) * 10.0 + 5
        expected = shapely.contains_xy(shapely.union_all(regions.include), x, y)
        if expected.any():
            regions.limit(mask, px_per_px=(10.0, 10.0))
            np.testing.assert_array_equal(mask, expected)


def test_regions_that_touch_no_tissue_are_counted_and_explained(tmp_path, caplog):
    mask = np.zeros((100, 100), bool)
    tissue = np.zeros((100, 100), bool)
    tissue[50:90, 50:90] = True
    path = tmp_path / "r.geojson"
    path.write_text(json.dumps([_feature(_square(120, 120, 230, 230))]))  # a quarter of the size
    mask = tissue.copy()
    with pytest.raises(BadSlide, match="100% would be if their coordinates were multiplied by 4"):
        read_regions(path).limit(mask, px_per_px=(10.0, 10.0), slide="S1")
    path.write_text(json.dumps([_feature(_square(500, 500, 900, 900)), _feature(LEFT, "Ignore*")]))
    mask = tissue.copy()
    read_regions(path).limit(mask, px_per_px=(10.0, 10.0), slide="S1")
    assert mask.sum() == tissue.sum()
    assert "1 of 1 areas to exclude touch no tissue" in caplog.text
