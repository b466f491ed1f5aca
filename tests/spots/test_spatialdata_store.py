"""SpatialData stores, written by spatialdata as spatialdata-io's visium and visium_hd do."""

import json
import os
import shutil

import anndata
import geopandas
import numpy as np
import pandas as pd
import pytest
import shapely
import spatialdata as sd
import zarr
from scipy import sparse
from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale, Sequence, Translation

from histogep.errors import InputError
from histogep.spots.readers import read_section
from histogep.spots.spatialdata_store import is_store

N, GENES = 24, [f"G{i}" for i in range(5)]
ROW, COL = np.divmod(np.arange(N), 6)
COL = 2 * COL + ROW % 2
PX = np.column_stack([300 + 50.0 * COL, 700 + 86.6 * ROW])
COUNTS = np.random.default_rng(3).poisson(3, (N, len(GENES))) + 1


def table_of(region="S1", *, matrix=None, first=0, **changes):
    obs = pd.DataFrame(
        {
            "in_tissue": 1, "array_row": ROW, "array_col": COL,
            "spot_id": np.arange(first, first + N), "region": pd.Categorical([region] * N if isinstance(region, str) else region),
        }
        | changes,
        index=[f"spot-{i}" for i in range(N)],
    )  # fmt: skip
    var = pd.DataFrame({"gene_ids": [f"ENSG{i:011d}" for i in range(len(GENES))]}, index=GENES)
    matrix = sparse.csr_matrix(COUNTS.astype(np.float64)) if matrix is None else matrix
    data = anndata.AnnData(matrix, obs=obs, var=var, obsm={"spatial": PX})
    regions = sorted(set(obs["region"]))
    return TableModel.parse(
        data,
        region=regions if len(regions) > 1 else regions[0],
        region_key="region",
        instance_key="spot_id",
    )


def circles(places=PX, systems=None, name="S1", order=None):
    """Return the spots as circles in the coordinate systems of spatialdata-io, in any order."""
    systems = systems or {
        name: Identity(),
        f"{name}_downscaled_hires": Scale([0.15, 0.15], axes=("y", "x")),
        f"{name}_downscaled_lowres": Scale([0.045, 0.045], axes=("y", "x")),
    }
    order = np.arange(len(places)) if order is None else order
    shapes = geopandas.GeoDataFrame(
        {"radius": 27.5}, geometry=[shapely.Point(*places[i]) for i in order], index=order
    )
    return ShapesModel.parse(shapes, transformations=systems)


def image(systems, side=40):
    pixels = np.zeros((3, side, side), np.uint8)
    return Image2DModel.parse(pixels, dims=("c", "y", "x"), transformations=systems)


def write(path, **parts):
    parts = {"tables": {"table": table_of()}, "shapes": {"S1": circles()}} | parts
    sd.SpatialData(**parts).write(path)
    return path


@pytest.fixture(scope="module")
def visium(tmp_path_factory):
    hires = {"S1_downscaled_hires": Identity(), "S1": Scale([1 / 0.15] * 2, axes=("y", "x"))}
    order = np.random.default_rng(0).permutation(N)
    return write(
        tmp_path_factory.mktemp("store") / "visium.zarr",
        images={"S1_hires_image": image(hires)},
        shapes={"S1": circles(order=order)},
    )


@pytest.fixture
def copy(visium, tmp_path):
    return shutil.copytree(visium, tmp_path / "copy.zarr")


def test_a_visium_store_is_read_whatever_the_order_of_its_shapes(visium):
    assert is_store(visium)
    raw = read_section(visium)
    assert raw.table[["x_px", "y_px"]].to_numpy() == pytest.approx(PX)
    assert (raw.table[["array_row", "array_col"]].to_numpy() == np.c_[ROW, COL]).all()
    assert (raw.counts.toarray() == COUNTS).all()
    assert list(raw.genes) == GENES
    assert raw.gene_ids[1] == "ENSG00000000001"
    assert raw.table["in_tissue"].all()
    assert raw.spot_px == pytest.approx(55)
    assert raw.scales["tissue_hires_scalef"] == pytest.approx(0.15)
    assert raw.scales["tissue_lowres_scalef"] == pytest.approx(0.045)
    assert not raw.grid
    assert raw.bin_um is None


def test_bins_of_visium_hd_are_squares_and_the_lattice_picks_their_size(tmp_path):
    tables, shapes = {}, {}
    for side in (8, 16):
        name = f"HD_square_{side:03}um"
        places = PX + side
        boxes = shapely.box(*(places - side).T, *(places + side).T)
        systems = {"HD": Identity(), "HD_downscaled_lowres": Scale([0.1, 0.1], axes=("x", "y"))}
        frame = geopandas.GeoDataFrame(geometry=boxes)
        shapes[name] = ShapesModel.parse(frame, transformations=systems)
        tables[f"square_{side:03}um"] = table_of(name)
    path = write(tmp_path / "hd.zarr", tables=tables, shapes=shapes)
    for side in (8, 16):
        raw = read_section(path, pitch_um=side)
        assert raw.table[["x_px", "y_px"]].to_numpy() == pytest.approx(PX + side)
        assert (raw.kind, raw.bin_um, raw.spot_px) == ("square", side, pytest.approx(2 * side))
    with pytest.raises(InputError, match=r"bins of 8, 16 um but the lattice has a pitch of 100 um"):
        read_section(path, pitch_um=100)
    # A large table of other bins is not read: it may be damaged.
    shutil.rmtree(path / "tables/square_008um/X")
    assert read_section(path, pitch_um=16).counts.shape == COUNTS.shape


def test_the_full_image_says_which_pixel_a_place_is(tmp_path):
    """Shapes in um, turned; an image that was cropped and has pixels of half a um."""
    to_um = Affine([[0, -1, 900], [1, 0, 20], [0, 0, 1]], ("x", "y"), ("x", "y"))
    crop = Sequence([Translation([10, 30], ("x", "y")), Scale([0.5, 0.5], ("x", "y"))])
    path = write(
        tmp_path / "um.zarr",
        shapes={"S1": circles(systems={"global": to_um, "S1_downscaled_hires": Scale([0.05] * 2, ("x", "y"))})},
        images={"S1_full_image": image({"global": crop}), "S1_hires_image": image({"global": Identity()})},
    )  # fmt: skip
    raw = read_section(path)
    x_um, y_um = 900 - PX[:, 1], 20 + PX[:, 0]
    wanted = np.column_stack([x_um / 0.5 - 10, y_um / 0.5 - 30])
    assert raw.table[["x_px", "y_px"]].to_numpy() == pytest.approx(wanted)
    assert raw.spot_px == pytest.approx(110)
    # .05 px of the smaller image for a unit of the shapes, of which a full pixel is a half.
    assert raw.scales["tissue_hires_scalef"] == pytest.approx(0.025)


def test_coordinate_systems_that_contradict_each_other_are_refused(tmp_path):
    far = {"global": Identity(), "aligned": Translation([5, 0], ("x", "y"))}
    path = write(tmp_path / "two.zarr", shapes={"S1": circles(systems=far)})
    with pytest.raises(
        InputError, match=r"lies differently in coordinate system global and in coord.*aligned"
    ):
        read_section(path)
    same = {"global": Identity(), "S1": Identity()}
    path = write(tmp_path / "same.zarr", shapes={"S1": circles(systems=same)})
    assert read_section(path).table["x_px"].to_numpy() == pytest.approx(PX[:, 0])
    small = {"S1_downscaled_hires": Scale([0.1, 0.1], ("x", "y"))}
    path = write(tmp_path / "small.zarr", shapes={"S1": circles(systems=small)})
    with pytest.raises(
        InputError, match=r"S1_downscaled_hires, of which none is of the full image"
    ):
        read_section(path)
    flat = {"global": Scale([1.0, 0.0], ("x", "y"))}
    path = write(tmp_path / "flat.zarr", shapes={"S1": circles(systems=flat)})
    with pytest.raises(InputError, match="cannot be inverted"):
        read_section(path)


def _labels(path):
    labels = Labels2DModel.parse(np.arange(N * 4).reshape(N, 4), dims=("y", "x"))
    return write(path, shapes={}, labels={"S1": labels})


def _two_sections(path):
    half = pd.Categorical(["S1"] * 12 + ["S2"] * 12)
    both = {"S1": circles(PX[:12]), "S2": circles(PX[12:], name="S2", order=np.arange(12))}
    ids = np.r_[:12, :12]
    return write(path, tables={"table": table_of(region=half, spot_id=ids)}, shapes=both)


def _a_spot_twice(path):
    table = table_of()
    table.obs["spot_id"] = [0, *range(23)]
    return write(path, tables={"table": table})


CASES = {
    "two sections in one table": (_two_sections, r"holds several sections \(S1, S2\)"),
    "two tables of spots": (
        lambda p: write(p, tables={"a": table_of(), "b": table_of()}),
        r"holds 2 tables of spots \(a, b\)",
    ),
    "labels": (_labels, r"annotates 'S1', of which the store has labels \(an image\), not shapes"),
    "spots of other shapes": (
        lambda p: write(p, tables={"table": table_of(first=7)}),
        r"7 of 24 spots of .* have no shape in .*S1 \(such as 24\)",
    ),
    "a spot twice": (
        _a_spot_twice,
        "spot_id 0 of obs occurs twice",
    ),
    "normalised": (
        lambda p: write(p, tables={"table": table_of(matrix=sparse.csr_matrix(np.log1p(COUNTS)))}),
        "raw counts are needed",
    ),
    "no table": (lambda p: write(p, tables={}), "has no tables: give the store with the counts"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_understood_is_refused_with_a_reason(case, tmp_path):
    make, message = CASES[case]
    with pytest.raises(InputError, match=message):
        read_section(make(tmp_path / "x.zarr"))


def test_cells_and_early_versions_are_named(copy):
    for column in ("array_row", "array_col"):
        shutil.rmtree(copy / f"tables/table/obs/{column}")
    with pytest.raises(InputError, match=r"none of its tables \(table\) has array_row .* cells"):
        read_section(copy)
    (copy / "tables").rename(copy / "table")
    with pytest.raises(InputError, match="only the `table` of an early version"):
        read_section(copy)


@pytest.mark.parametrize(
    "chunk", ["X/data", "X/indices", "X/indptr", "obs/array_row", "obs/in_tissue", "obs/_index",
              "var/_index", "obs/spot_id"],
)  # fmt: skip
def test_a_missing_chunk_is_never_read_as_zeros(copy, chunk):
    """Zarr itself gives zeros, as of in_tissue: no spot lies on tissue."""
    shutil.rmtree(copy / "tables/table" / chunk / "c")
    with pytest.raises(InputError, match=f"{chunk} lacks chunks, which would read as zeros"):
        read_section(copy)


def test_chunks_of_zeros_that_a_writer_left_out_can_be_written(tmp_path):
    """The remedy in the message works: a dense matrix with an empty chunk."""
    table = table_of(matrix=np.zeros((N, len(GENES))), in_tissue=1)
    table.X[0, 0] = 200.0
    path = write(tmp_path / "a.zarr", tables={"table": table})
    zarr.open_group(path / "tables/table", mode="r+").create_array(
        "X", data=table.X, chunks=(6, 5), overwrite=True, attributes={"encoding-type": "array", "encoding-version": "0.2.0"}
    )  # fmt: skip
    with pytest.raises(InputError, match="write_empty_chunks"):
        read_section(path)
    with zarr.config.set({"array.write_empty_chunks": True}):
        zarr.open_group(path / "tables/table", mode="r+").create_array(
            "X", data=table.X, chunks=(6, 5), overwrite=True, attributes={"encoding-type": "array", "encoding-version": "0.2.0"}
        )  # fmt: skip
    assert read_section(path).counts.sum() == 200


def test_a_store_cut_short_anywhere_is_refused_or_reads_the_same(visium, tmp_path):
    """Every file of tables and shapes in turn is lost, and every third emptied or cut in half."""
    good = read_section(visium)
    files = [p.relative_to(visium) for p in visium.rglob("*") if p.is_file()]
    files = [p for p in files if p.parts[0] in ("tables", "shapes")]
    assert len(files) > 40
    refused = 0
    for number, file in enumerate(files):
        for harm in ("lost", *((), ("empty",), ("half",))[number % 3]):
            copy = shutil.copytree(visium, tmp_path / "harmed.zarr")
            if harm == "lost":
                (copy / file).unlink()
            else:
                content = (copy / file).read_bytes()
                (copy / file).write_bytes(content[: len(content) // 2] if harm == "half" else b"")
            raw = None
            try:
                raw = read_section(copy)
            except InputError as error:
                refused += 1
                message = str(error)
            if raw is None:
                assert "harmed.zarr" in message
            else:
                pd.testing.assert_frame_equal(raw.table, good.table)
                assert (raw.counts != good.counts).nnz == 0
                assert list(raw.genes) == list(good.genes)
                assert raw.scales == good.scales
            shutil.rmtree(copy)
    assert refused > 30


def test_links_pickles_and_declared_sizes_are_refused(copy, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"x")
    data = copy / "tables/table/X/data"
    told = (data / "zarr.json").read_text()
    chunk = (data / "c/0").read_bytes()
    (data / "c/0").unlink()
    os.symlink(secret, data / "c/0")
    with pytest.raises(InputError, match="is a link: a store must hold its own files"):
        read_section(copy)
    (data / "c/0").unlink()
    (data / "c/0").write_bytes(chunk)
    for shape, chunks, message in (
        ([10**12], [10**12], "declares .* values, more than|its chunk has 8000000000000"),
        ([10**9], [1], "more than any table"),
        ([-1], [1], "a side of -1"),
    ):
        content = json.loads(told)
        content["shape"] = shape
        content["chunk_grid"]["configuration"]["chunk_shape"] = chunks
        (data / "zarr.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=message):
            read_section(copy)
    content = json.loads(told)
    content["codecs"] = [{"name": "numcodecs.pickle"}]
    (data / "zarr.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="packed with pickle"):
        read_section(copy)
    # A frame that says it unpacks to a thousand times its chunk.
    (data / "zarr.json").write_text(told)
    import numcodecs

    (data / "c/0").write_bytes(numcodecs.Zstd().encode(bytes(2**20)))
    with pytest.raises(InputError, match="unpacks to 1048576 bytes, but its chunk has"):
        read_section(copy)


def test_indices_beyond_the_matrix_never_reach_compiled_code(copy):
    group = zarr.open_group(copy / "tables/table/X", mode="r+")
    indices = group["indices"][:]
    indices[5] = 2**20
    group["indices"][:] = indices
    with pytest.raises(InputError, match="an index of 1048576 in a matrix of 5 across"):
        read_section(copy)


def test_stores_of_zarr_format_2_are_read(visium, tmp_path):
    """As spatialdata wrote them before 0.5."""
    copy = shutil.copytree(visium, tmp_path / "two.zarr")
    table = sd.read_zarr(visium).tables["table"]
    shutil.rmtree(copy / "tables/table")
    with anndata.settings.override(zarr_write_format=2):
        table.write_zarr(copy / "tables/table")
    assert (copy / "tables/table/X/data/.zarray").is_file()
    shapes = copy / "shapes/S1"
    attributes = json.loads((shapes / "zarr.json").read_text())["attributes"]
    (shapes / "zarr.json").unlink()
    (shapes / ".zattrs").write_text(json.dumps(attributes))
    (shapes / ".zgroup").write_text('{"zarr_format": 2}')
    raw, good = read_section(copy), read_section(visium)
    pd.testing.assert_frame_equal(raw.table, good.table)
    assert (raw.counts != good.counts).nnz == 0
    # `pickle` in the filters of format 2 would run what it holds.
    path = copy / "tables/table/var/_index/.zarray"
    content = json.loads(path.read_text())
    content["filters"] = [{"id": "pickle", "protocol": 5}]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="packed with pickle"):
        read_section(copy)
    path = copy / "tables/table/X/data"
    (path / "0").unlink()
    with pytest.raises(InputError, match="packed with pickle|lacks chunks"):
        read_section(copy)


@pytest.mark.parametrize("part", ["tables", "shapes", "shapes/S1", "images/S1_hires_image"])
def test_a_part_of_a_store_may_not_lie_elsewhere(copy, tmp_path, part):
    """The store itself may: users keep large data on another disk."""
    (copy / part).rename(tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", copy / part)
    with pytest.raises(InputError, match=f"{part} is a link: a store must hold its own files"):
        read_section(copy)
    (copy / part).unlink()
    (tmp_path / "elsewhere").rename(copy / part)
    os.symlink(copy, tmp_path / "linked.zarr")
    assert read_section(tmp_path / "linked.zarr").counts.shape == COUNTS.shape
