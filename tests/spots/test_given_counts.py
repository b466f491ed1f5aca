"""Counts and positions that others give: awkward, foreign, damaged. Right, or refused by name."""

from __future__ import annotations

import gzip
import shutil

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import io, sparse

from histogep.errors import InputError
from histogep.spots.readers import read_positions, read_section

N_SPOTS, N_GENES = 40, 6
GENES = ["TP53", "EGFR", "KRAS", "EPCAM", "CD3D", "RPL3"]
IDS = [f"ENSG{i:011d}" for i in range(N_GENES)]


@pytest.fixture
def counts():
    return np.random.default_rng(0).poisson(2, (N_SPOTS, N_GENES)) + 1


@pytest.fixture
def places():
    row, step = np.divmod(np.arange(N_SPOTS), 8)
    col = 2 * step + row % 2
    return pd.DataFrame(
        {
            "barcode": [
                f"{'ACGT'[i % 4]}{'ACGT'[i // 4 % 4]}ACGTACGTACG{i:03d}-1" for i in row * 8 + step
            ],
            "in_tissue": 1,
            "array_row": row,
            "array_col": col,
            "pxl_row_in_fullres": 200 + 86.6 * row,
            "pxl_col_in_fullres": 200 + 50.0 * col,
        }
    )


def _h5(path, counts, places, **changes):
    matrix = sparse.csr_matrix(counts)
    parts = {
        "data": matrix.data,
        "indices": matrix.indices,
        "indptr": matrix.indptr,
        "shape": np.array([counts.shape[1], counts.shape[0]]),
        "barcodes": places["barcode"].to_numpy().astype("S"),
        "features/name": np.array(GENES, "S"),
        "features/id": np.array(IDS, "S"),
        "features/feature_type": np.array(["Gene Expression"] * N_GENES, "S"),
        "features/genome": np.array(["GRCh38"] * N_GENES, "S"),
    } | changes
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in parts.items():
            file[f"matrix/{name}"] = values
    return path


def _mtx(folder, counts, places, *, prefix="", zipped=False, features=None):
    folder.mkdir(parents=True, exist_ok=True)
    end, opened = (".gz", gzip.open) if zipped else ("", open)
    with opened(folder / f"{prefix}matrix.mtx{end}", "wb") as handle:
        io.mmwrite(handle, sparse.coo_matrix(counts.T))
    rows = features or [f"{i}\t{g}\tGene Expression" for i, g in zip(IDS, GENES, strict=True)]
    for name, lines in (("features", rows), ("barcodes", places["barcode"])):
        with opened(folder / f"{prefix}{name}.tsv{end}", "wt") as handle:
            handle.writelines(f"{line}\n" for line in lines)
    return folder


def _h5ad(path, counts, places, *, obs=None, var=None, index=None, **parts):
    table = places.set_index("barcode")[["in_tissue", "array_row", "array_col"]].assign(
        **(obs or {})
    )
    data = anndata.AnnData(
        parts.pop("X", sparse.csr_matrix(counts.astype(np.float32))),
        obs=table,
        var=pd.DataFrame(var or {}, index=GENES if index is None else index),
        **parts,
    )
    data.obsm["spatial"] = places[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy()
    data.write_h5ad(path)
    return path


def _positions(folder, places, name="tissue_positions.csv", **options):
    folder.mkdir(parents=True, exist_ok=True)
    places.to_csv(folder / name, index=False, **options)
    return folder / name


# ---------------------------------------------------------------------------- damaged matrices

DAMAGE = {
    "index beyond the genes": ("indices", 3, 1_000_000),
    "index one beyond": ("indices", 3, N_GENES),
    "negative index": ("indices", 3, -1),
    "place given twice": ("indices", 1, 0),
    "start beyond the values": ("indptr", 5, 10**6),
    "start that falls": ("indptr", 5, 0),
    "first start": ("indptr", 0, 1),
    "last start": ("indptr", -1, 3),
}


def _damaged(counts, part, at, value):
    matrix = sparse.csr_matrix(counts)
    values = {name: getattr(matrix, name).copy() for name in ("data", "indices", "indptr")}
    values[part][at] = value
    return values


@pytest.mark.parametrize("damage", DAMAGE)
def test_sparse_arrays_that_do_not_fit_are_refused_before_they_are_used(
    tmp_path, counts, places, damage
):
    values = _damaged(counts, *DAMAGE[damage])
    where = _positions(tmp_path, places)
    path = _h5(tmp_path / "x.h5", counts, places, **values)
    with pytest.raises(InputError, match=r"x\.h5: .*the file is damaged"):
        read_section(path, positions=where)
    for place in ("X", "layers/counts", "raw/X", "obsp/distances"):
        path = tmp_path / "x.h5ad"
        matrix = sparse.csr_matrix(counts.astype(np.float32))
        _h5ad(
            path,
            counts,
            places,
            layers={"counts": matrix},
            obsp={"distances": sparse.identity(N_SPOTS, format="csr")},
        )
        with h5py.File(path, "a") as file:
            file.copy("X", file.create_group("raw"), "X")
            file.copy("var", file["raw"], "var")
            if place == "obsp/distances":
                file[f"{place}/indices"][0] = -5
            else:
                part, at, value = DAMAGE[damage]
                file[f"{place}/{part}"][at] = value
        with pytest.raises(InputError, match=r"x\.h5ad: .*the file is damaged"):
            read_section(path)


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("barcodes", np.array(["A-1", "B-1"], "S"), "barcodes has 2 entries"),
        ("features/name", np.array(["A"], "S"), "features/name has 1 entries"),
        ("features/id", np.array(["A"], "S"), "features/id has 1 entries"),
        ("features/feature_type", np.array(["A"], "S"), "features/feature_type has 1 entries"),
        ("shape", np.array([10**12, N_SPOTS]), "1000000000000 genes"),
        ("shape", np.array([-6, -40]), "-6 genes"),
        ("shape", np.array([6.0, 40.0]), "not a number of genes"),
        ("data", np.array([1, 2, 3]), "3 values but 240 indices"),
        ("data", np.array(["a"] * 240, "S"), "not a list of numbers"),
        ("indices", np.full(240, 0.5), "not a list of whole numbers"),
        ("data", np.full(240, -1), "240 values below 0"),
        ("data", np.full(240, np.nan), "not finite numbers"),
        ("data", np.full(240, 0.5), "not whole"),
        ("data", np.full(240, 2**30), "above 16777216"),
        ("barcodes", np.array([b"\xff\xfe"] * N_SPOTS), "entry 1 of /matrix/barcodes is not UTF-8"),
        ("features/name", np.array([b"A\nB"] * N_GENES), "control character"),
        ("features/name", np.array(["TGF-β".encode()] * N_GENES), "'TGF-β'. is not ASCII"),
        ("zone/name", np.array(["A"] * N_GENES, "S"), "zone/name has the name of another part"),
        ("features/targets/indices", np.arange(240), "targets/indices has the name of another"),
        ("barcodes", np.array(["A-1"] * N_SPOTS, "S"), "A-1 is listed more than once"),
    ],
)
def test_parts_of_a_10x_matrix_are_held_against_each_other(
    tmp_path, counts, places, part, values, message
):
    path = _h5(tmp_path / "x.h5", counts, places, **{part: values})
    with pytest.raises(InputError, match=message):
        read_section(path, positions=_positions(tmp_path, places))


def test_a_second_list_of_names_would_be_taken_by_scanpy(tmp_path, counts, places):
    """Why it is refused here. When scanpy reads parts by their path the guard may go."""
    path = _h5(tmp_path / "x.h5", counts, places, **{"zone/name": np.array(["A"] * N_GENES, "S")})
    assert list(sc.read_10x_h5(path).var_names) == ["A"] * N_GENES


def test_a_matrix_of_probes_names_the_genes_and_not_the_probes(tmp_path, counts, places):
    """As of raw_probe_bc_matrix.h5, where `id` is of the probe and `gene_id` of its gene."""
    probes = np.array([f"{i}|{g}|abc" for i, g in zip(IDS, GENES, strict=True)], "S")
    changes = {"features/id": probes, "features/gene_id": np.array(IDS, "S")}
    path = _h5(tmp_path / "x.h5", counts, places, **changes)
    raw = read_section(path, positions=_positions(tmp_path, places))
    assert list(raw.gene_ids) == list(IDS)


@pytest.mark.parametrize("part", ["matrix", "features", "data", "barcodes", "shape"])
def test_a_10x_matrix_with_a_part_missing_is_refused(tmp_path, counts, places, part):
    path = _h5(tmp_path / "x.h5", counts, places)
    with h5py.File(path, "a") as file:
        del file["matrix" if part == "matrix" else f"matrix/{part}"]
    with pytest.raises(InputError, match="not a 10x matrix"):
        read_section(path, positions=_positions(tmp_path, places))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("6 40 1000000000000", "1000000000000 entries, more than"),
        ("6 40 100000", "100000 entries, more than"),
        ("6 40 241", "241"),
        ("6 40 239", r"matrix\.mtx"),
        ("1000000000 1000000000 240", "1000000000 genes"),
        ("40 6 240", "turned"),
        ("6 40", "no size of a matrix"),
        ("6 40 -240", "no size of a matrix"),
        ("6.5 40 240", "no size of a matrix"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_the_header_of_a_matrix_is_held_against_names_and_bytes(
    tmp_path, counts, places, line, message, zipped
):
    folder = _mtx(tmp_path / "filtered_feature_bc_matrix", counts, places)
    text = (folder / "matrix.mtx").read_text().replace("6 40 240", line)
    assert line in text
    (folder / "matrix.mtx").write_text(text)
    if zipped:
        with gzip.open(folder / "matrix.mtx.gz", "wt") as handle:
            handle.write(text)
        (folder / "matrix.mtx").unlink()
    _positions(tmp_path / "spatial", places)
    with pytest.raises(InputError, match=message):
        read_section(folder)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("1 1 ", "0 1 "),
        ("1 1 ", "7 1 "),
        ("1 1 ", "1 41 "),
        ("1 1 ", "-1 1 "),
        ("1 1 ", "2 1 "),  # a place twice
        ("1 1 ", "1.5 1 "),
        ("1 1 ", "a 1 "),
        ("%%MatrixMarket", "%%Matrix"),
        ("coordinate integer general", "coordinate pattern general"),
        ("coordinate integer general", "coordinate integer symmetric"),
        ("coordinate integer general", "array integer general"),
        ("coordinate integer general", "coordinate complex general"),
    ],
)
def test_a_damaged_matrix_market_file_is_refused(tmp_path, counts, places, old, new):
    folder = _mtx(tmp_path / "filtered_feature_bc_matrix", counts, places)
    text = (folder / "matrix.mtx").read_text()
    head, rest = text.split("\n", 1)
    text = (
        head.replace(old, new) + "\n" + rest
        if old in head
        else text.replace(f"\n{old}", f"\n{new}", 1)
    )
    (folder / "matrix.mtx").write_text(text)
    _positions(tmp_path / "spatial", places)
    with pytest.raises(InputError, match="filtered_feature_bc_matrix"):
        read_section(folder)


@pytest.mark.parametrize("name", ["features.tsv", "barcodes.tsv"])
@pytest.mark.parametrize("zipped", [False, True])
def test_names_that_are_not_utf8_are_refused_with_file_and_line(
    tmp_path, counts, places, name, zipped
):
    folder = _mtx(tmp_path / "filtered_feature_bc_matrix", counts, places)
    lines = (folder / name).read_bytes().split(b"\n")
    lines[2] = lines[2][:3] + b"\xe9" + lines[2][3:]
    (folder / name).write_bytes(b"\n".join(lines))
    if zipped:
        (folder / f"{name}.gz").write_bytes(gzip.compress(b"\n".join(lines)))
        (folder / name).unlink()
    _positions(tmp_path / "spatial", places)
    with pytest.raises(InputError, match=rf"{name}.*, line 3: .*is not UTF-8"):
        read_section(folder)


def test_a_quote_in_a_name_swallows_no_line(tmp_path, counts, places):
    rows = [
        f'{i}\t{g}"\tGene Expression' if g == "EGFR" else f"{i}\t{g}\tGene Expression"
        for i, g in zip(IDS, GENES, strict=True)
    ]
    folder = _mtx(tmp_path / "filtered_feature_bc_matrix", counts, places, features=rows)
    _positions(tmp_path / "spatial", places)
    assert list(read_section(folder).genes) == ["TP53", 'EGFR"', *GENES[2:]]


# ------------------------------------------------------------------------------- whole sections


@pytest.mark.parametrize("form", ["h5", "mtx", "h5ad", "table"])
def test_every_form_gives_the_same_section(tmp_path, counts, places, form):
    where = None
    if form == "h5":
        path = _h5(tmp_path / "filtered_feature_bc_matrix.h5", counts, places)
        _positions(tmp_path / "spatial", places)
    elif form == "mtx":
        path = _mtx(tmp_path / "filtered_feature_bc_matrix", counts, places, zipped=True)
        _positions(tmp_path / "spatial", places, "tissue_positions_list.csv", header=False)
    elif form == "h5ad":
        path = _h5ad(tmp_path / "x.h5ad", counts, places)
    else:
        path, where = tmp_path / "x.csv", _positions(tmp_path, places)
        pd.DataFrame(counts, index=places["barcode"], columns=GENES).to_csv(path)
    raw = read_section(path, positions=where)
    np.testing.assert_array_equal(raw.counts.toarray(), counts)
    assert list(raw.genes) == GENES
    assert list(raw.table.index) == list(places["barcode"])
    np.testing.assert_array_equal(raw.table["array_col"], places["array_col"])
    np.testing.assert_array_equal(raw.table["x_px"], places["pxl_col_in_fullres"])
    assert raw.table["in_tissue"].all()


@pytest.mark.parametrize("zipped", [False, True])
def test_files_of_geo_carry_the_samples_name_in_front(tmp_path, counts, places, zipped):
    _mtx(tmp_path, counts, places, prefix="GSM1_", zipped=zipped)
    _positions(tmp_path, places, f"GSM1_tissue_positions_list.csv{'.gz' * zipped}", header=False)
    (tmp_path / "GSM1_scalefactors_json.json").write_text('{"spot_diameter_fullres": 60}')
    raw = read_section(tmp_path)
    np.testing.assert_array_equal(raw.counts.toarray(), counts)
    assert raw.spot_px == 60
    # Barcodes are the same in all sections: another sample's positions would fit without a word.
    (found,) = tmp_path.glob("*positions*")
    found.rename(tmp_path / found.name.replace("GSM1", "GSM2"))
    with pytest.raises(InputError, match="holds none of"):
        read_section(tmp_path)
    _mtx(tmp_path, counts, places, prefix="GSM2_", zipped=zipped)
    with pytest.raises(InputError, match="folder of its own"):
        read_section(tmp_path)


def test_scale_factors_that_are_no_numbers_are_left_out(tmp_path, counts, places):
    _h5(tmp_path / "filtered_feature_bc_matrix.h5", counts, places)
    _positions(tmp_path / "spatial", places)
    path = tmp_path / "spatial/scalefactors_json.json"
    path.write_text(
        '{"spot_diameter_fullres": null, "tissue_hires_scalef": 0.1, "a": [1], "b": NaN}'
    )
    raw = read_section(tmp_path)
    assert raw.spot_px is None
    assert raw.scales == {"tissue_hires_scalef": 0.1}
    for text in ("[1, 2]", "{", "", "\xff"):
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(InputError, match="scalefactors_json"):
            read_section(tmp_path)


# ------------------------------------------------------------------------------------- AnnData


@pytest.mark.parametrize(
    "values",
    [
        *([True, False], [1, 0], [1.0, 0.0], ["True", "False"], ["TRUE", "FALSE"], ["1", "0"]),
        *(["1.0", "0.0"], ["yes", "no"], pd.Categorical(["true", "false"]), pd.Categorical([1, 0])),
    ],
    ids=str,
)
def test_in_tissue_is_read_however_it_is_written(tmp_path, counts, places, values):
    values = pd.Series(values).repeat(N_SPOTS // 2).to_numpy()
    raw = read_section(_h5ad(tmp_path / "x.h5ad", counts, places, obs={"in_tissue": values}))
    assert raw.table["in_tissue"].tolist() == [True] * 20 + [False] * 20


def test_a_missing_in_tissue_is_left_out_and_counted(tmp_path, counts, places, caplog):
    values = np.where(np.arange(N_SPOTS) == 3, np.nan, 1.0)
    raw = read_section(_h5ad(tmp_path / "x.h5ad", counts, places, obs={"in_tissue": values}))
    assert raw.table["in_tissue"].sum() == N_SPOTS - 1
    assert "missing for 1 of 40 spots" in caplog.text
    for wrong, message in ((np.nan, "empty for every spot"), (2.0, "must be 1 or 0"), ("x", "'x'")):
        path = _h5ad(tmp_path / "x.h5ad", counts, places, obs={"in_tissue": wrong})
        with pytest.raises(InputError, match=message):
            read_section(path)
        where = _positions(tmp_path, places.assign(in_tissue=wrong))
        with pytest.raises(InputError, match=message):
            read_positions(where)


def test_refined_array_coordinates_are_rounded_never_cut_off(tmp_path, counts, places):
    noise = np.random.default_rng(1).normal(0, 0.05, N_SPOTS)
    for change in (noise, -1e-6, 1e-7):
        rows = places["array_row"].to_numpy() + change
        raw = read_section(_h5ad(tmp_path / "x.h5ad", counts, places, obs={"array_row": rows}))
        np.testing.assert_array_equal(raw.table["array_row"], places["array_row"])
        where = _positions(tmp_path, places.assign(array_row=rows))
        np.testing.assert_array_equal(read_positions(where)["array_row"], places["array_row"])
    for rows in (places["array_row"] * 1.37, places["array_row"] + 0.5, places["array_row"] * 1e12):
        with pytest.raises(
            InputError, match="not a row or column of an array|no place of an array"
        ):
            read_section(
                _h5ad(tmp_path / "x.h5ad", counts, places, obs={"array_row": rows.to_numpy()})
            )


def test_several_sections_in_one_file_are_named_with_the_way_to_split_them(
    tmp_path, counts, places
):
    for column in ("library_id", "sample", "batch"):
        one = anndata.read_h5ad(_h5ad(tmp_path / "x.h5ad", counts, places))
        both = anndata.concat([one, one], label=column, keys=["s1", "s2"], index_unique="-")
        both.write_h5ad(tmp_path / "y.h5ad")
        with pytest.raises(InputError, match=rf"several sections: .*obs\['{column}'\] == s\]"):
            read_section(tmp_path / "y.h5ad")
        # What is written by the message's own words is read.
        both[both.obs[column] == "s1"].write_h5ad(tmp_path / "s1.h5ad")
        assert read_section(tmp_path / "s1.h5ad").counts.shape == counts.shape
    library = {"scalefactors": {"tissue_hires_scalef": 0.1}}
    path = _h5ad(tmp_path / "x.h5ad", counts, places, uns={"spatial": {"a": library, "b": library}})
    with pytest.raises(InputError, match=r"uns\['spatial'\] has 2 sections \(a, b\)"):
        read_section(path)
    path = _h5ad(tmp_path / "x.h5ad", counts, places, uns={"spatial": {"a": library}})
    assert read_section(path).scales == {"tissue_hires_scalef": 0.1}


@pytest.mark.parametrize("column", ["feature_name", "gene_symbols", "real_gene_name", "gene_name"])
@pytest.mark.parametrize("category", [False, True])
def test_symbols_beside_ensembl_ids_are_taken(tmp_path, counts, places, column, category):
    symbols = [*GENES[:4], None, "RPL3"]
    symbols = pd.Categorical(symbols) if category else ["" if s is None else s for s in symbols]
    for ids in (IDS, [f"{i}.3" for i in IDS]):
        raw = read_section(
            _h5ad(tmp_path / "x.h5ad", counts, places, var={column: symbols}, index=ids)
        )
        assert list(raw.genes) == [*GENES[:4], IDS[4], "RPL3"]
        assert list(raw.gene_ids) == IDS


def test_a_table_of_cellxgene_and_symbols_called_ids_are_understood(tmp_path, counts, places):
    var = {
        "feature_name": [*GENES[:4], f"TP53_{IDS[4]}", "ERCC-00002 (spike-in control)"],
        "feature_type": ["protein_coding"] * 6,
        "feature_biotype": ["gene"] * 5 + ["spike-in"],
        "feature_reference": ["NCBITaxon:9606"] * 6,
    }
    raw = read_section(_h5ad(tmp_path / "x.h5ad", counts, places, var=var, index=IDS))
    assert list(raw.genes) == [*GENES[:4], "TP53"]
    raw = read_section(
        _h5ad(tmp_path / "x.h5ad", counts, places, var={"gene_ids": GENES}, index=IDS)
    )
    assert list(raw.genes) == GENES
    assert list(raw.gene_ids) == IDS


def test_antibodies_of_an_h5ad_are_left_out_wherever_its_counts_lie(tmp_path, counts, places):
    kinds = ["Gene Expression"] * 4 + ["Antibody Capture"] * 2
    var = {"feature_types": kinds, "gene_ids": IDS}
    names = [*GENES[:4], "TP53-1", "EGFR-1"]
    path = _h5ad(tmp_path / "x.h5ad", counts, places, var=var, index=names)
    np.testing.assert_array_equal(read_section(path).counts.toarray(), counts[:, :4])
    # The table of raw has often lost the types.
    data = anndata.read_h5ad(path)
    data.raw = data
    data.raw.var.drop(columns="feature_types", inplace=True)
    data.X = data.X.astype(np.float32) / 3
    data.write_h5ad(path)
    raw = read_section(path)
    np.testing.assert_array_equal(raw.counts.toarray(), counts[:, :4])
    assert list(raw.genes) == GENES[:4]


def test_counts_that_are_none_are_named_place_by_place(tmp_path, counts, places):
    matrix = counts.astype(np.float32)
    negative, fraction, missing = matrix.copy(), matrix / 2 + 0.1, matrix.copy()
    negative[3, 2], missing[3, 2] = -1, np.nan
    path = tmp_path / "x.h5ad"
    for wrong, word in ((negative, "below 0"), (fraction, "not whole"), (missing, "finite")):
        for form in (np.asarray, sparse.csr_matrix, sparse.csc_matrix):
            with pytest.raises(InputError, match=f"raw counts are needed .*X holds .*{word}"):
                read_section(_h5ad(path, counts, places, X=form(wrong)))
    with pytest.raises(InputError, match="not numbers"):
        read_section(_h5ad(path, counts, places, X=matrix > 1))
    for form in (np.asarray, sparse.csc_matrix):
        raw = read_section(_h5ad(path, counts, places, X=form(matrix)))
        np.testing.assert_array_equal(raw.counts.toarray(), counts)


@pytest.mark.parametrize("marks", [(".zgroup",), ("zarr.json",), ()])
def test_zarr_stores_are_named_with_the_way_in(tmp_path, marks):
    for parts, message in (
        (("tables", "images"), "none of its tables"),
        (("X", "obs"), "read_zarr"),
    ):
        folder = tmp_path / "x.zarr"
        for part in parts:
            (folder / part).mkdir(parents=True)
        for mark in marks:
            (folder / mark).write_text("{}")
        with pytest.raises(InputError, match=message):
            read_section(folder)
        shutil.rmtree(folder)


def test_an_anndata_zarr_store_is_known(tmp_path):
    anndata.AnnData(np.ones((3, 2))).write_zarr(tmp_path / "store")
    with pytest.raises(InputError, match="is a Zarr store"):
        read_section(tmp_path / "store")


@pytest.mark.parametrize("name", ["x.h5mu", "x.loom", "x.rds", "x.mtx.gz", "x.tar.gz", "x.xlsx"])
def test_other_formats_are_named_with_the_way_in(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match="neither a Space Ranger folder.*; it is "):
        read_section(tmp_path / name)


# --------------------------------------------------------------------------------------- joins


@pytest.mark.parametrize(
    ("change", "explained"),
    [
        (lambda b: b.removesuffix("-1"), "without the suffix -1"),
        (lambda b: b.replace("-1", "-2"), "without the suffix -1"),
        (lambda b: b.replace("-1", ".1"), "with - in place of"),
        (str.lower, "in upper case"),
        (lambda b: f"sample1_{b}", "by the letters of the barcode alone"),
        (lambda b: f"{b}_s1", "by the letters of the barcode alone"),
        (lambda b: b[::-1], "same section"),
    ],
)
def test_barcodes_that_do_not_match_are_refused_with_what_would_explain_it(
    tmp_path, counts, places, change, explained
):
    # Barcodes as long as those of 10x.
    places["barcode"] = [
        "".join("ACGT"[(i >> 2 * k) % 4] for k in range(16)) + "-1" for i in range(N_SPOTS)
    ]
    path = _h5(tmp_path / "filtered_feature_bc_matrix.h5", counts, places)
    _positions(tmp_path / "spatial", places.assign(barcode=places["barcode"].map(change)))
    with pytest.raises(InputError, match=rf"40 of 40 spots.*{explained}"):
        read_section(path)


def test_the_share_that_matched_is_in_the_log(tmp_path, counts, places, caplog):
    caplog.set_level("INFO")
    few = places.iloc[:10]
    path = _h5(tmp_path / "filtered_feature_bc_matrix.h5", counts[:10], few)
    _positions(tmp_path / "spatial", places)
    raw = read_section(path)
    said = (
        "10 of 10 spots with counts have a position",
        "10 of 40 positions in tissue have counts",
    )
    assert raw.notes == said
    assert [r.levelname for r in caplog.records if said[1] in r.getMessage()] == ["WARNING"]


def _legacy(folder, counts, *, name="{x}x{y}", x=None, y=None):
    y0, x0 = np.divmod(np.arange(N_SPOTS), 8)
    x, y = (x0 if x is None else x), (y0 if y is None else y)
    positions = pd.DataFrame({"x": x0, "y": y0, "pixel_x": x0 * 100.0, "pixel_y": y0 * 100.0})
    positions.to_csv(folder / "p.tsv", sep="\t", index=False)
    names = [name.format(x=i, y=j) for i, j in zip(x, y, strict=True)]
    pd.DataFrame(counts, index=names, columns=GENES).to_csv(folder / "c.tsv", sep="\t")
    return folder / "c.tsv", folder / "p.tsv"


def test_refined_coordinates_in_names_of_spots_are_rounded(tmp_path, counts):
    y, x = np.divmod(np.arange(N_SPOTS), 8)
    path, where = _legacy(tmp_path, counts, x=x + 0.02, y=y + 0.1)
    raw = read_section(path, positions=where)
    np.testing.assert_array_equal(raw.counts.toarray(), counts)
    path, where = _legacy(tmp_path, counts, x=x * 0.5, y=y)
    with pytest.raises(InputError, match="both lie nearest to"):
        read_section(path, positions=where)
    path, where = _legacy(tmp_path, counts, x=y, y=x)
    with pytest.raises(InputError, match="with x and y swapped"):
        read_section(path, positions=where)
    path, where = _legacy(tmp_path, counts, name="{x}_{y}")
    with pytest.raises(InputError, match="written as XxY"):
        read_section(path, positions=where)


# --------------------------------------------------------------------------- tables that come back

AWKWARD = [
    "plain",
    "with blank",
    "a,b",
    "a;b",
    "é",
    "ß-1",
    "µm",
    "x'y",
    "(A)",
    "A/B",
    "α",
    "1.5",
    "-",
]


@pytest.mark.parametrize("seed", range(20))
def test_random_awkward_tables_of_counts_and_positions_come_back(tmp_path, seed):
    """Every row and every value, whatever separator, encoding, line end and compression."""
    rng = np.random.default_rng(seed)
    n, m = int(rng.integers(3, 30)), int(rng.integers(2, 12))
    genes = [f"G{i}{AWKWARD[rng.integers(len(AWKWARD))]}" for i in range(m)]
    x, y = rng.permutation(100)[:n], rng.permutation(100)[:n]
    names = [f"{i}x{j}" for i, j in zip(x, y, strict=True)]
    counts = rng.poisson(3, (n, m)) + 1
    separator = [",", "\t", ";"][rng.integers(3)]
    end = ["\n", "\r\n", "\r"][rng.integers(3)]
    encoding = ["utf-8", "utf-8-sig", "utf-16"][rng.integers(3)]
    table = pd.DataFrame(counts, index=names, columns=genes)
    places = pd.DataFrame(
        {"x": x, "y": y, "pixel_x": x * 10.25, "pixel_y": y * 10.5, "selected": 1}
    )
    for frame, name, index in ((table, "c.csv", True), (places, "p.csv", False)):
        text = frame.to_csv(sep=separator, index=index, lineterminator=end)
        data = text.encode(encoding)
        (tmp_path / name).write_bytes(gzip.compress(data) if rng.random() < 0.5 else data)
    raw = read_section(tmp_path / "c.csv", positions=tmp_path / "p.csv")
    np.testing.assert_array_equal(raw.counts.toarray(), counts)
    assert list(raw.genes) == genes
    assert list(raw.table.index) == names
    np.testing.assert_array_equal(raw.table["x_px"], places["pixel_x"])
    np.testing.assert_array_equal(raw.table["array_row"], y)


@pytest.mark.parametrize("seed", range(60))
def test_a_damaged_file_is_read_right_or_refused_by_name(tmp_path, counts, places, seed):
    """Bytes flipped, cut or swapped: the same section, or an InputError with the file's name."""
    rng = np.random.default_rng(seed)
    where = _positions(tmp_path / "spatial", places)
    forms = {
        "h5": _h5(tmp_path / "filtered_feature_bc_matrix.h5", counts, places),
        "h5ad": _h5ad(tmp_path / "x.h5ad", counts, places),
        "mtx": _mtx(tmp_path / "m", counts, places) / "matrix.mtx",
        "features": tmp_path / "m/features.tsv",
        "positions": where,
    }
    form = list(forms)[seed % len(forms)]
    path = forms[form]
    content = bytearray(path.read_bytes())
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(len(content)))
        how = rng.integers(3)
        if how == 0:
            content[at] ^= 1 << int(rng.integers(8))
        elif how == 1:
            del content[at:]
        elif how == 2:
            content[at : at + 8] = content[at : at + 8][::-1]
        if not content:
            content = bytearray(b"\0")
    path.write_bytes(bytes(content))
    given = {"h5ad": path, "mtx": path.parent, "features": path.parent}.get(
        form, tmp_path / "filtered_feature_bc_matrix.h5"
    )
    problem = ""
    try:
        raw = read_section(given, positions=None if form == "h5ad" else where)
    except InputError as error:
        problem = str(error)
    if problem:
        assert str(tmp_path) in problem
    else:
        assert np.isfinite(raw.counts.data).all()
        assert raw.counts.shape == (len(raw.table), len(raw.genes))
