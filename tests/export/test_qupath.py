"""QuPath itself is not here: files are held against what its reader takes (QuPathTypeAdapters, 0.4 to 0.6)."""

import json

import geopandas
import numpy as np
import pytest
import shapely

from histogep.export.qupath import write_qupath
from tests.export_slide import MPP, ROW, TUMOUR, X_PX, Y_PX, measured_layers, predicted_layers


def read(path):
    """Return features and one row of class and measurements each, as QuPath's reader takes them."""
    content = json.loads(path.read_text())
    assert content["type"] == "FeatureCollection"
    ids = [feature["id"] for feature in content["features"]]
    assert len(set(ids)) == len(ids)
    for feature in content["features"]:
        assert feature["type"] == "Feature"
        properties = feature["properties"]
        # "tile" is a detection, and of detections measurement maps are made.
        assert properties["objectType"] == "tile"
        assert all(isinstance(value, int | float) for value in properties["measurements"].values())
        kind = properties.get("classification")
        if kind is not None:
            assert set(kind) == {"name", "color"}
            assert len(kind["color"]) == 3
            assert all(isinstance(part, int) and 0 <= part < 256 for part in kind["color"])
    return content["features"]


def names(features):
    return [f["properties"].get("classification", {}).get("name") for f in features]


def values(features, name):
    return np.array([f["properties"]["measurements"].get(name, np.nan) for f in features])


def test_every_layer_is_a_file_with_classes_and_measurements(tmp_path):
    layers = predicted_layers(tmp_path)
    written = write_qupath(layers, tmp_path / "q", genes=["EPCAM", "CD3D"])
    assert sorted(written) == sorted(path.name for path in (tmp_path / "q").iterdir())
    assert written == ["tumour.geojson", "tissue.geojson", "clones.geojson"]
    tumour = read(tmp_path / "q/tumour.geojson")
    wanted = [None if i == 5 else "Tumor" if t else "Other" for i, t in enumerate(TUMOUR)]
    assert names(tumour) == wanted
    for gene in ("EPCAM", "CD3D"):
        assert values(tumour, gene) == pytest.approx(
            layers.gene_values([gene])[gene].to_numpy(), abs=1e-5
        )
    assert values(tumour, "tumour probability") == pytest.approx(
        layers.tumour["tumour"].to_numpy(float), abs=1e-5, nan_ok=True
    )
    assert "tumour probability" not in tumour[5]["properties"]["measurements"]
    clones = read(tmp_path / "q/clones.geojson")
    wanted = [None if not t else f"Clone {int(r >= 5)}" for t, r in zip(TUMOUR, ROW, strict=True)]
    assert names(clones) == wanted
    assert len({str(f["properties"].get("classification")) for f in clones}) == 3
    assert values(clones, "cnv score") == pytest.approx(0.1 * TUMOUR)
    tissue = read(tmp_path / "q/tissue.geojson")
    assert {"Tumor", "Immune cells"} <= set(names(tissue))
    assert values(tissue, "neighbours malignant") == pytest.approx(
        layers.tissue["neighbours_malignant"].to_numpy(), abs=1e-5, nan_ok=True
    )


def test_tiles_lie_where_the_lattice_has_them_and_another_program_reads_them(tmp_path):
    write_qupath(predicted_layers(tmp_path), tmp_path / "q")
    frame = geopandas.read_file(tmp_path / "q/tumour.geojson", engine="pyogrio").set_crs(
        None, allow_override=True
    )
    centres = shapely.get_coordinates(frame.geometry.centroid.to_numpy())
    assert centres == pytest.approx(np.c_[X_PX, Y_PX], abs=0.1)
    assert np.sqrt(frame.geometry.area.to_numpy()) == pytest.approx(100 / MPP, abs=0.2)


def test_the_same_slide_gives_the_same_bytes_and_a_section_says_what_was_measured(tmp_path):
    layers = measured_layers(tmp_path)
    for folder in ("a", "b"):
        assert write_qupath(layers, tmp_path / folder) == ["tumour.geojson", "tissue.geojson"]
    for name in ("tumour", "tissue"):
        a, b = (tmp_path / folder / f"{name}.geojson" for folder in "ab")
        assert a.read_bytes() == b.read_bytes()
    features = read(tmp_path / "a/tumour.geojson")
    assert "malignant by label" in features[0]["properties"]["measurements"]
    assert "tumour probability" not in features[0]["properties"]["measurements"]


def test_an_expression_subtype_has_groups_not_clones(tmp_path):
    write_qupath(predicted_layers(tmp_path, name="expression subtype"), tmp_path / "q")
    assert set(names(read(tmp_path / "q/clones.geojson"))) == {None, "Group 0", "Group 1"}
