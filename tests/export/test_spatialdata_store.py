import filecmp
import os

import matplotlib
import numpy as np
import pytest
import shapely
import spatialdata as sd
from spatialdata.transformations import get_transformation

from histogep.export.spatialdata_store import write_store
from histogep.spots.readers import read_section
from tests.export_slide import (
    GENES,
    HEIGHT_PX,
    MPP,
    ROW,
    TUMOUR,
    WIDTH_PX,
    X_PX,
    Y_PX,
    measured_layers,
    predicted_layers,
    write_slide,
)  # fmt: skip

matplotlib.use("Agg")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    with write_slide(folder) as slide:
        write_store(predicted_layers(folder), slide, folder / "S.zarr", image_um=0.5)
    # As Snakemake does in every folder that a rule makes.
    (folder / "S.zarr/.snakemake_timestamp").touch()
    return folder / "S.zarr"


def affine(element):
    return get_transformation(element, "global").to_affine_matrix(("x", "y"), ("x", "y"))


def test_spatialdata_opens_image_tiles_and_tables_in_one_system(store):
    data = sd.read_zarr(store)
    assert data.coordinate_systems == ["global"]
    assert set(data.tables) == {"expression", "tumour", "copy_number"}
    levels = list(data.images["S_image"].values())
    assert len(levels) == 3
    image = levels[0]["image"]
    assert image.shape == (3, HEIGHT_PX, WIDTH_PX)
    tiles = data.shapes["S_tiles"]
    assert shapely.get_coordinates(tiles.centroid.to_numpy()) == pytest.approx(np.c_[X_PX, Y_PX])
    assert np.sqrt(tiles.area.to_numpy()) == pytest.approx(100 / MPP)
    assert affine(tiles) == pytest.approx(np.eye(3))
    assert affine(data.images["S_image"]) == pytest.approx(np.eye(3))
    # What lies in the image at the middle of a tile is what its table says.
    y_px = Y_PX.astype(int)
    y_px += y_px % 7 == 0  # every seventh line of the image is darker
    red = image.values[0, y_px, X_PX.astype(int)]
    table = data.tables["tumour"]
    assert (table.obs["instance"] == np.arange(len(ROW))).all()
    known = np.isfinite(table.X[:, 0])
    assert known.sum() == len(ROW) - 1
    assert ((table.X[known, 0] > 0.5) == TUMOUR[known]).all()
    assert ((red == 150) == (X_PX < 1200)).all()
    genes = data.tables["expression"]
    assert list(genes.var_names) == GENES
    profiles = data.tables["copy_number"]
    assert list(profiles.var_names) == [f"chr1:{i}" for i in range(4)] + [
        f"chr2:{i}" for i in range(3)
    ]
    assert (profiles.X[:, 0] == np.arange(len(ROW))).all()
    joined = sd.get_values("EPCAM", sdata=data, element_name="S_tiles", table_name="expression")
    assert joined["EPCAM"].to_numpy() == pytest.approx(genes[:, "EPCAM"].X.ravel())


def test_spatialdata_plot_draws_it(store):
    import spatialdata_plot  # noqa: F401

    data = sd.read_zarr(store)
    drawn = data.pl.render_images("S_image").pl.render_shapes(
        "S_tiles", color="EPCAM", table_name="expression"
    )
    axes = drawn.pl.show(return_ax=True, coordinate_systems="global")
    figure = axes.figure
    figure.canvas.draw()
    assert axes.get_images()
    assert np.asarray(figure.canvas.buffer_rgba())[..., :3].std() > 20
    data.pl.render_shapes("S_tiles", color="clone", table_name="copy_number").pl.show()


def test_a_coarser_image_says_its_scale_and_the_same_slide_gives_the_same_bytes(tmp_path):
    layers = measured_layers(tmp_path)
    with write_slide(tmp_path) as slide:
        for name in ("a", "b"):
            write_store(layers, slide, tmp_path / f"{name}.zarr", image_um=2.0)
    data = sd.read_zarr(tmp_path / "a.zarr")
    image = data.images["S_image"]
    assert image.shape == (3, HEIGHT_PX / 4, WIDTH_PX / 4)
    assert affine(image) == pytest.approx(np.diag([4, 4, 1]), rel=1e-3)
    spots = data.shapes["S_spots"]
    assert spots["radius"].to_numpy() == pytest.approx(55)
    for place, _, files in os.walk(tmp_path / "a.zarr"):
        other = place.replace("a.zarr", "b.zarr")
        _, unlike, odd = filecmp.cmpfiles(place, other, files, shallow=False)
        assert (unlike, odd) == ([], []), place


def test_what_is_written_of_a_section_is_counts_again(tmp_path):
    """Out and in: the same counts at the same pixels."""
    layers = measured_layers(tmp_path)
    layers.data.obs["array_row"], layers.data.obs["array_col"] = ROW, layers.data.obs["col"]
    with write_slide(tmp_path) as slide:
        write_store(layers, slide, tmp_path / "S.zarr", image_um=2.0)
    raw = read_section(tmp_path / "S.zarr")
    assert (raw.counts != layers.data.X).nnz == 0
    assert raw.table[["x_px", "y_px"]].to_numpy() == pytest.approx(np.c_[X_PX, Y_PX])
