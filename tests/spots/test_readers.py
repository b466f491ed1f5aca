"""Readers of measured counts against scanpy's own."""

import gzip
import json

import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import io, sparse

from histogep.errors import InputError
from histogep.spots.readers import read_positions, read_section
from histogep.spots.space_ranger import read_10x_h5, read_10x_mtx

MPP = 2.0


def _places(n_rows=12, n_cols=10):
    """Return Visium's array indices and the pixels that Space Ranger would write."""
    row, col = (part.ravel() for part in np.mgrid[:n_rows, :n_cols])
    array_col = 2 * col + row % 2
    x_um = 50 * array_col + 100
    y_um = 100 * np.sqrt(3) / 2 * row + 100
    return row, array_col, x_um / MPP, y_um / MPP


def _space_ranger(folder, *, header=True, form="h5", barcodes=None):
    """Write a small Space Ranger folder; return its counts, spots x genes."""
    row, col, x, y = _places(4, 3)
    names = [f"AAA{i:02d}-1" for i in range(len(row))]
    counts = np.random.default_rng(1).poisson(2.0, (len(names), 3))
    spatial = folder / "spatial"
    spatial.mkdir(parents=True)
    table = pd.DataFrame(
        {
            "barcode": names,
            "in_tissue": [0] + [1] * (len(names) - 1),
            "array_row": row,
            "array_col": col,
            "pxl_row_in_fullres": y,
            "pxl_col_in_fullres": x,
        }
    )
    name = "tissue_positions.csv" if header else "tissue_positions_list.csv"
    table.to_csv(spatial / name, header=header, index=False)
    (spatial / "scalefactors_json.json").write_text(json.dumps({"spot_diameter_fullres": 27.5}))
    barcodes = names if barcodes is None else barcodes
    features = [("ENSG1", "A"), ("ENSG2", "B"), ("ENSG3", "A")]
    if form == "h5":
        matrix = sparse.csr_matrix(counts)
        with h5py.File(folder / "filtered_feature_bc_matrix.h5", "w") as file:
            group = file.create_group("matrix")
            group["barcodes"] = np.array(barcodes, "S")
            for part in ("data", "indices", "indptr"):
                group[part] = getattr(matrix, part)
            group["shape"] = [3, len(barcodes)]
            part = group.create_group("features")
            part["id"] = np.array([f[0] for f in features], "S")
            part["name"] = np.array([f[1] for f in features], "S")
            part["feature_type"] = np.array(["Gene Expression"] * 2 + ["Antibody Capture"], "S")
            part["genome"] = np.array(["x"] * 3, "S")
    else:
        inside = folder / "filtered_feature_bc_matrix"
        inside.mkdir()
        with gzip.open(inside / "matrix.mtx.gz", "wb") as handle:
            io.mmwrite(handle, sparse.coo_matrix(counts.T))
        with gzip.open(inside / "features.tsv.gz", "wt") as handle:
            handle.writelines(f"{i}\t{s}\tGene Expression\n" for i, s in features)
        with gzip.open(inside / "barcodes.tsv.gz", "wt") as handle:
            handle.writelines(f"{name}\n" for name in barcodes)
    return counts


def test_10x_h5_equals_scanpys_reading(shared_data):
    import scanpy as sc

    for path in (
        shared_data / "visium/scanpy_1.0.0/filtered_feature_bc_matrix.h5",
        shared_data / "visium/spaceranger_v1_no_header/outs/raw_feature_bc_matrix.h5",
    ):
        reference = sc.read_10x_h5(path)
        ours = read_10x_h5(path)
        assert (ours.counts != reference.X).nnz == 0
        assert ours.counts.sum() == reference.X.sum()
        assert list(ours.barcodes) == list(reference.obs_names)
        assert list(ours.genes) == list(reference.var_names)
        assert list(ours.gene_ids) == list(reference.var["gene_ids"])


def test_10x_mtx_equals_scanpys_reading(tmp_path):
    import scanpy as sc

    counts = _space_ranger(tmp_path, form="mtx")
    ours = read_10x_mtx(tmp_path / "filtered_feature_bc_matrix")
    reference = sc.read_10x_mtx(tmp_path / "filtered_feature_bc_matrix", make_unique=False)
    np.testing.assert_array_equal(ours.counts.toarray(), counts)
    np.testing.assert_array_equal(ours.counts.toarray(), reference.X.toarray())
    assert list(ours.barcodes) == list(reference.obs_names)
    assert list(ours.genes) == list(reference.var_names)
    assert list(ours.gene_ids) == list(reference.var["gene_ids"])


def test_files_are_compressed_or_not_whatever_their_names_say(shared_data):
    folder = shared_data / "visium/visium_hd_binned_outputs/square_002um"
    ours = read_10x_mtx(folder / "filtered_feature_bc_matrix")
    features = (folder / "filtered_feature_bc_matrix/features.tsv.gz").read_text().splitlines()
    assert [line.split("\t")[1].strip('"') for line in features] == list(ours.genes)
    outs = shared_data / "visium/spaceranger_v1_no_header/outs"
    ours = read_10x_mtx(outs / "raw_feature_bc_matrix")
    plain = io.mmread(outs / "raw_feature_bc_matrix/matrix.mtx").T
    np.testing.assert_array_equal(ours.counts.toarray(), plain.toarray())


@pytest.mark.filterwarnings("ignore")
def test_a_visium_folder_equals_scanpys_reading(shared_data):
    import scanpy as sc

    folder = shared_data / "visium/scanpy_1.0.0"
    reference = sc.read_visium(folder)
    raw = read_section(folder)
    assert list(raw.table.index) == list(reference.obs_names)
    np.testing.assert_array_equal(raw.table[["x_px", "y_px"]], reference.obsm["spatial"])
    for axis in ("in_tissue", "array_row", "array_col"):
        np.testing.assert_array_equal(raw.table[axis], reference.obs[axis])
    assert raw.spot_px == pytest.approx(89.4275106)


def test_all_generations_of_space_ranger_are_read(shared_data):
    folder = shared_data / "visium"
    first = read_section(folder / "spaceranger_v1_no_header")
    assert first.kind == "visium"
    assert first.table.loc["AAACAAGTATCTCCCA-1"].tolist() == [True, 50, 102, 8230, 7237]
    second = read_section(folder / "spaceranger_v2_csv_header")
    assert second.table.loc["GTGGCGTGCACCAGAG-1"].tolist() == [True, 1, 101, 19828, 3932]
    assert list(second.genes[:2]) == ["ACPP", "KLK3"]
    hd = read_section(folder / "visium_hd_binned_outputs")
    assert (hd.kind, hd.bin_um) == ("square", 2.0)
    assert hd.table.iloc[0]["x_px"] == pytest.approx(9295.414884)
    # A barcode of HD names its row and column.
    for barcode, spot in hd.table.iterrows():
        assert barcode == f"s_002um_{spot['array_row']:05d}_{spot['array_col']:05d}-1"


def test_the_bins_of_the_lattice_are_chosen(tmp_path):
    for size in (2, 8):
        _space_ranger(tmp_path / f"outs/binned_outputs/square_{size:03d}um")
    assert "square_008um" in read_section(tmp_path, pitch_um=8.0).source
    with pytest.raises(InputError, match=r"bins of 2, 8 um.*lattice\.pitch_um"):
        read_section(tmp_path, pitch_um=100.0)


@pytest.mark.parametrize("form", ["h5", "mtx"])
@pytest.mark.parametrize("header", [True, False])
def test_folder_outs_file_and_matrix_folder_are_the_same_section(tmp_path, form, header):
    counts = _space_ranger(tmp_path / "outs", header=header, form=form)
    name = "filtered_feature_bc_matrix" + (".h5" if form == "h5" else "")
    for given in (tmp_path, tmp_path / "outs", tmp_path / "outs" / name):
        raw = read_section(given)
        kept = 2 if form == "h5" else 3  # antibodies are no genes
        np.testing.assert_array_equal(raw.counts.toarray(), counts[:, :kept])
        assert raw.table["in_tissue"].sum() == 11
        assert raw.spot_px == 27.5


def test_barcodes_of_another_section_are_refused(tmp_path):
    _space_ranger(tmp_path, barcodes=[f"AAA{i:02d}-1" for i in range(11)] + ["CCC-1"])
    with pytest.raises(InputError, match=r"1 of 12 spots.*11 match.*CCC-1"):
        read_section(tmp_path)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match="do not exist"):
        read_section(tmp_path / "nothing")
    with pytest.raises(InputError, match="filtered_feature_bc_matrix"):
        read_section(tmp_path)
    _space_ranger(tmp_path / "a")
    (tmp_path / "a/spatial/tissue_positions.csv").unlink()
    with pytest.raises(InputError, match="tissue_positions"):
        read_section(tmp_path / "a")
    (tmp_path / "b.zip").write_text("")
    with pytest.raises(InputError, match="neither a Space Ranger folder"):
        read_section(tmp_path / "b.zip")
    (tmp_path / "c.h5").write_text("not hdf5")
    with pytest.raises(InputError, match="not readable as a 10x matrix"):
        read_section(tmp_path / "c.h5")


def test_a_matrix_cut_short_is_refused(tmp_path):
    _space_ranger(tmp_path, form="mtx", barcodes=["AAA01-1"])
    with pytest.raises(InputError, match="cut short"):
        read_section(tmp_path)


def test_legacy_tables_are_joined_by_name(shared_data):
    folder = shared_data / "her2st"
    raw = read_section(folder / "counts/A1.tsv.gz", positions=folder / "spots/A1.tsv")
    table = pd.read_csv(folder / "counts/A1.tsv.gz", sep="\t", index_col=0)
    assert raw.kind == "st"
    assert raw.counts.shape == (346, 15045)
    spot = raw.table.index.get_loc("10x13")
    np.testing.assert_array_equal(raw.counts[spot].toarray()[0], table.loc["10x13"])
    # x runs along the columns of the slide and y along its rows.
    assert raw.table.loc["10x13", ["array_row", "array_col"]].tolist() == [13, 10]


def _legacy(folder, *, n=40, unplaced=0, separator="\t"):
    x, y = np.divmod(np.arange(n), 8)
    names = [f"{i}x{j}" for i, j in zip(x, y, strict=True)]
    counts = pd.DataFrame(np.ones((n, 2), int), index=names, columns=["A", "B"])
    positions = pd.DataFrame({"x": x, "y": y, "pixel_x": x * 100.0, "pixel_y": y * 100.0})
    positions = positions.assign(selected=1).iloc[unplaced:]
    counts.to_csv(folder / "counts.tsv", sep="\t")
    positions.to_csv(folder / "spots.tsv", sep=separator, index=False)
    return folder / "counts.tsv", folder / "spots.tsv"


def test_few_unplaced_spots_of_a_legacy_table_are_dropped_and_many_refused(tmp_path, caplog):
    counts, positions = _legacy(tmp_path, unplaced=2)
    assert len(read_section(counts, positions=positions).table) == 38
    assert "2 of 40 spots" in caplog.text
    counts, positions = _legacy(tmp_path, unplaced=3)
    with pytest.raises(InputError, match="3 of 40 spots"):
        read_section(counts, positions=positions)
    with pytest.raises(InputError, match="`positions`"):
        read_section(counts)


def test_a_symbol_twice_in_a_legacy_table_is_the_same_symbol(tmp_path):
    counts, positions = _legacy(tmp_path)
    counts.write_text(counts.read_text().replace("\tA\tB\n", "\tA\tA\n", 1))
    assert list(read_section(counts, positions=positions).genes) == ["A", "A"]


def test_a_legacy_table_of_genes_by_spots_is_turned(tmp_path):
    counts, positions = _legacy(tmp_path, separator=",")
    pd.read_csv(counts, sep="\t", index_col=0).T.to_csv(counts, sep="\t")
    raw = read_section(counts, positions=positions)
    assert raw.counts.shape == (40, 2)
    assert list(raw.genes) == ["A", "B"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("barcode,in_tissue\nA,1\n", "expected barcode, in_tissue"),
        ("x\ty\tpixel_x\tpixel_y\n1\t1\t5\tfar\n", "line 2, column y_px holds 'far'"),
        ("x\ty\tpixel_x\tpixel_y\n1\t1\t5\t5\n1\t1\t6\t6\n", "1x1 is listed more than once"),
        ("", "empty"),
    ],
)
def test_bad_positions_are_refused(tmp_path, text, complaint):
    (tmp_path / "p.tsv").write_text(text)
    with pytest.raises(InputError, match=complaint):
        read_positions(tmp_path / "p.tsv")


def _h5ad(path, *, change=None, obs=(), names=("A", "B", "C")):
    """Write an AnnData of 12 spots; return its counts, and the pixels of its spots."""
    import anndata

    row, col, x, y = _places(4, 3)
    counts = np.random.default_rng(1).poisson(20.0, (len(row), len(names))).astype(np.float32)
    table = pd.DataFrame(
        {"array_row": row, "array_col": col, **dict(obs)},
        index=[f"AAA{i:02d}-1" for i in range(12)],
    )
    data = anndata.AnnData(counts, obs=table, var=pd.DataFrame(index=list(names)))
    data.obsm["spatial"] = np.c_[x, y]
    if change is not None:
        data = change(data) or data
    data.write_h5ad(path)
    return counts, np.c_[x, y]


def _raw_of_all(data):
    part = data[:, :2].copy()
    part.raw = data
    return part


def _layer_of_few(data):
    part = data[:, :2].copy()
    part.layers["counts"] = part.X.copy()
    part.X = np.log1p(part.X)
    part.raw = data
    return part


def _rounded(data):
    data.raw = data.copy()
    data.X = np.round(np.log1p(data.X))


def _yes_or_no(data):
    data.raw = data.copy()
    data.X = (data.X > 20).astype(np.float32)


def _layer(name):
    def change(data):
        data.layers[name] = data.X.copy()
        data.X = np.log1p(data.X)

    return change


@pytest.mark.parametrize(
    "change",
    [_raw_of_all, _layer_of_few, _rounded, _yes_or_no, *map(_layer, ("raw_counts", "RAW", "UMI"))],
)
def test_an_h5ad_gives_the_raw_counts_of_all_its_genes(tmp_path, change):
    counts, _ = _h5ad(tmp_path / "a.h5ad", change=change)
    section = read_section(tmp_path / "a.h5ad")
    assert list(section.genes) == ["A", "B", "C"]
    np.testing.assert_array_equal(section.counts.toarray(), counts)


def test_a_layer_of_another_name_is_named(tmp_path):
    _h5ad(tmp_path / "a.h5ad", change=_layer("spliced"))
    with pytest.raises(InputError, match="the layers 'spliced' are not tried"):
        read_section(tmp_path / "a.h5ad")


@pytest.mark.parametrize(
    "columns",
    [
        ("x", "y"),
        ("y", "x"),
        ("pxl_row_in_fullres", "pxl_col_in_fullres"),
        ("imagerow", "imagecol"),
    ],
)
def test_the_names_of_a_table_of_places_tell_x_from_y(tmp_path, columns):
    def change(data):
        places = pd.DataFrame(data.obsm["spatial"], index=data.obs_names, columns=["x", "y"])
        if columns[0] != "x":
            places = places[["y", "x"]]
        data.obsm["spatial"] = places.set_axis(list(columns), axis=1)

    _, pixels = _h5ad(tmp_path / "a.h5ad", change=change)
    table = read_section(tmp_path / "a.h5ad").table
    np.testing.assert_allclose(table[["x_px", "y_px"]], pixels)


@pytest.mark.parametrize("places", ["none", "same", "exchanged", "of a smaller image"])
def test_pixels_of_the_full_image_in_obs_are_believed(tmp_path, places, caplog):
    _, _, x, y = _places(4, 3)

    def change(data):
        if places == "none":
            del data.obsm["spatial"]
        elif places == "exchanged":
            data.obsm["spatial"] = data.obsm["spatial"][:, ::-1]
        elif places == "of a smaller image":
            data.obsm["spatial"] = data.obsm["spatial"] * 0.08

    obs = {"pxl_row_in_fullres": y, "pxl_col_in_fullres": x}
    _, pixels = _h5ad(tmp_path / "a.h5ad", change=change, obs=obs)
    table = read_section(tmp_path / "a.h5ad").table
    np.testing.assert_allclose(table[["x_px", "y_px"]], pixels)
    assert ("those of obs are used" in caplog.text) == (places not in ("none", "same"))
    assert ("exchanged" in caplog.text) == (places == "exchanged")


def test_the_scale_of_the_section_that_was_cut_out_is_taken(tmp_path):
    def change(data):
        data.uns["spatial"] = {
            name: {"scalefactors": {"spot_diameter_fullres": width}}
            for name, width in (("S1", 60.0), ("S2", 70.0))
        }

    _h5ad(tmp_path / "a.h5ad", change=change, obs={"library_id": "S2"})
    assert read_section(tmp_path / "a.h5ad").scales == {"spot_diameter_fullres": 70.0}


def test_counts_in_a_file_of_the_wrong_name_are_known(tmp_path):
    _space_ranger(tmp_path / "a")
    matrix = tmp_path / "a" / "filtered_feature_bc_matrix.h5"
    (tmp_path / "a" / "b.h5ad").write_bytes(matrix.read_bytes())
    with pytest.raises(InputError, match=r"b\.h5ad is a matrix of 10x"):
        read_section(tmp_path / "a" / "b.h5ad")
    _h5ad(tmp_path / "c.h5ad")
    content = (tmp_path / "c.h5ad").read_bytes()
    (tmp_path / "c.h5").write_bytes(content)
    with pytest.raises(InputError, match=r"c\.h5 is an AnnData"):
        read_section(tmp_path / "c.h5")
    (tmp_path / "d.h5ad.gz").write_bytes(gzip.compress(content))
    with pytest.raises(InputError, match="compressed with gzip: unpack"):
        read_section(tmp_path / "d.h5ad.gz")


@pytest.mark.parametrize("form", ["bytes", "row names", "categories"])
def test_positions_in_parquet_name_spots_in_any_type(tmp_path, form):
    _space_ranger(tmp_path / "a")
    spatial = tmp_path / "a" / "spatial"
    expected = read_section(tmp_path / "a").table
    table = pd.read_csv(spatial / "tissue_positions.csv")
    if form == "bytes":
        table["barcode"] = [name.encode() for name in table["barcode"]]
    elif form == "row names":
        table = table.set_index("barcode").rename_axis(None)
    else:
        table = table.assign(
            barcode=table["barcode"].astype("category"), in_tissue=table["in_tissue"].astype(bool)
        )
    (spatial / "tissue_positions.csv").unlink()
    table.to_parquet(spatial / "tissue_positions.parquet")
    pd.testing.assert_frame_equal(read_section(tmp_path / "a").table, expected)


def test_features_that_are_not_separated_by_tabs_are_refused(tmp_path):
    _space_ranger(tmp_path / "a", form="mtx")
    path = tmp_path / "a" / "filtered_feature_bc_matrix" / "features.tsv.gz"
    text = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(text.replace(b"\t", b",")))
    with pytest.raises(InputError, match=r"line 1 \('ENSG1,A,Gene.*not separated by tabs"):
        read_section(tmp_path / "a")


def test_segmented_cells_and_positions_of_another_sample_are_named(tmp_path):
    (tmp_path / "a" / "segmented_outputs").mkdir(parents=True)
    (tmp_path / "a" / "segmented_outputs" / "filtered_feature_cell_matrix.h5").write_bytes(b"x")
    with pytest.raises(InputError, match="segmented cells, which lie on no lattice"):
        read_section(tmp_path / "a")
    _space_ranger(tmp_path / "b", form="mtx")
    inside = tmp_path / "b" / "filtered_feature_bc_matrix"
    for path in list(inside.iterdir()):
        path.rename(inside / f"GSM1_{path.name}")
    (tmp_path / "b/spatial/tissue_positions.csv").rename(inside / "GSM2_tissue_positions.csv")
    with pytest.raises(InputError, match="GSM2_tissue_positions.csv is of another sample"):
        read_section(inside)
