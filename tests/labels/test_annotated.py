import gzip
import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import sparse

from histogep.errors import InputError
from histogep.labels import annotated
from histogep.lattice import Lattice
from histogep.spots.normalise import add_expression
from histogep.workflow.annotation_checks import check_annotations

ROOT = Path(__file__).resolve().parents[2]

TEXTS = {
    "malignant": ["invasive cancer", "cancer in situ", "Tumor"],
    "boundary": ["boundary"],
    "non_malignant": ["connective tissue", "adipose tissue", "immune infiltrate", "stroma"],
    "undetermined": ["undetermined"],
}

MARKERS = pd.DataFrame(
    [("epithelial", "EPCAM"), ("epithelial", "KRT8"), ("fibroblast", "COL1A1"), ("t_cell", "CD3E")],
    columns=["lineage", "gene"],
)


def make_spots(n_rows=8, n_cols=8, *, contrast=5.0, seed=0):
    """A square section, the left half of which expresses the epithelial markers."""
    rng = np.random.default_rng(seed)
    row, col = (axis.ravel() for axis in np.mgrid[:n_rows, :n_cols])
    genes = [*MARKERS["gene"], *(f"G{i}" for i in range(60))]
    mean = np.full((len(row), len(genes)), 10.0)
    left = col < n_cols // 2
    mean[np.ix_(left, [0, 1])] *= contrast
    mean[np.ix_(~left, [2, 3])] *= contrast
    spots = anndata.AnnData(
        X=sparse.csr_matrix(rng.poisson(mean).astype(np.float32)),
        obs=pd.DataFrame(
            {"row": row, "col": col}, index=[f"{c}x{r}" for r, c in zip(row, col, strict=True)]
        ),
        var=pd.DataFrame({"gene_id": ""}, index=genes),
        obsm={"spatial": np.column_stack([col, row]) * 100.0 + 50},
        uns={"slide": "S", "lattice": Lattice("st", 200, 112).to_settings()},
    )
    return add_expression(spots), left


def write(path, text):
    path.write_text(text)
    return path


def test_table_is_joined_by_barcode_and_mapped(tmp_path):
    spots, _ = make_spots(2, 2)
    path = write(
        tmp_path / "a.tsv",
        "barcode\tnote\tlabel\n1x0\tq\tTUMOR \n0x0\tq\tstroma\n9x9\t\tboundary\n",
    )
    labels = annotated.label_annotated(spots, path, TEXTS)
    assert list(labels.columns) == list(annotated.COLUMNS)
    assert labels["barcode"].tolist() == ["0x0", "1x0", "0x1", "1x1"]
    assert labels["label"].tolist() == ["non-malignant", "malignant"] + ["undetermined"] * 2
    assert labels["confidence"].tolist() == [1, 1, 0, 0]
    assert labels["original"].tolist() == ["stroma", "TUMOR ", "", ""]
    assert set(labels["source"]) == {"annotation"}
    assert set(labels["ranked"]) == {""}


def test_the_share_of_an_annotation_that_matched_is_said_and_hardly_any_is_refused(
    tmp_path, caplog
):
    caplog.set_level("INFO")
    spots, _ = make_spots()
    path = tmp_path / "a.csv"

    def label(names):
        write(path, "Barcode,label\n" + "".join(f"{name},Tumor\n" for name in names))
        caplog.clear()
        labels = annotated.label_annotated(spots, path, TEXTS)
        return labels.attrs["join"], [r.levelname for r in caplog.records]

    said, levels = label(spots.obs_names)
    assert said == f"64 of 64 spots of {path} are among the spots of the section (100%)"
    assert levels == ["INFO"]
    # A part of the section, and a table of many sections: said, not refused.
    said, levels = label(spots.obs_names[:20])
    assert "20 of 20 spots" in said
    assert levels == ["INFO", "WARNING"]
    said, levels = label([*spots.obs_names, *(f"A{i}-1" for i in range(900))])
    assert "64 of 64 spots of the section are annotated" in said
    said, levels = label([*spots.obs_names[:20], *(f"A{i}-1" for i in range(80))])
    assert said.startswith("20 of 64")
    assert levels == ["WARNING"]
    with pytest.raises(InputError, match=r"only 1 of 64 spots of the section are annotated"):
        label([spots.obs_names[0], *(f"A{i}-1" for i in range(400))])
    with pytest.raises(InputError, match="with the coordinates rounded 64 would match"):
        label(["0x0", *(f"{name}.02" for name in spots.obs_names)])
    spots.obs_names = [
        f"AAACGTACGTAC{'ACGT'[i % 4]}{'ACGT'[i // 4 % 4]}{'ACGT'[i // 16]}T-1" for i in range(64)
    ]
    bare = [name.removesuffix("-1") for name in spots.obs_names]
    with pytest.raises(
        InputError, match="without the suffix -1 that only one of them has .* would match"
    ):
        label([spots.obs_names[0], *bare[1:]])


def test_loupe_categories_and_rounded_coordinates(tmp_path):
    loupe = write(tmp_path / "a.csv", "Barcode,Region\n0x0,stroma\n1x1,Tumor\n")
    assert annotated.read_annotation(loupe).to_dict() == {"0x0": "stroma", "1x1": "Tumor"}
    array = write(tmp_path / "b.tsv", "Row.names\tx\ty\tlabel\n10x20\t0.98\t1.03\tTumor\n")
    assert annotated.read_annotation(array).to_dict() == {"1x1": "Tumor"}


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.txt", "a.csv.gz"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_the_separator_is_found_in_the_file_and_not_in_its_name(tmp_path, name, separator):
    # As Loupe exports categories, and spreadsheets save them: byte order mark, quotes, CRLF.
    rows = [("Barcode", '"Region, by Dr. X; 2nd look"'), ("0x0", "stroma"), ('"1x1"', '"Tumor"')]
    assert annotated.read_annotation(
        write(tmp_path / "one", f'"Location"\n"0x0"{separator}"Mal"\n')  # write.table of R
    ).to_dict() == {"0x0": "Mal"}
    text = "\ufeff" + "\r\n".join(separator.join(row) for row in rows) + "\r\n"
    opened = gzip.open if name.endswith(".gz") else open
    with opened(tmp_path / name, "wt", encoding="utf-8", newline="") as handle:
        handle.write(text)
    assert annotated.read_annotation(tmp_path / name).to_dict() == {"0x0": "stroma", "1x1": "Tumor"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"barcode label\n0x0 Tumor\n", "'barcode label.*no tab, comma or semicolon"),
        ("barcode\tlabel\n0x0\tTumor\n".encode("utf-16-le"), "NUL byte"),
        (b"", "is empty"),
        (
            b"barcode,label\n0x0,a,b,Tumor,c\n1x0,x,y,z\n2x0,1,2,3,4,5,6,7\n",
            "do not fit its header",
        ),
    ],
)
def test_a_file_that_is_no_table_of_annotations_is_refused(tmp_path, content, message):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        annotated.read_annotation(tmp_path / "a.csv")


COTTRAZM = """"","orig.ident","CNVLabel","CNVScores","Label","LabelNew","Location"
"0x0","CRC1","1",812.4,"Mal","Mal","Mal"
"1x0","CRC1","8",402.1,NA,"Mal1","Mal"
"0x1","CRC1","3",350.0,NA,"Bdy","Bdy"
"1x1","CRC1","Normal",341.7,"Normal","Normal","nMal"
"""


def test_commas_inside_labels_are_no_separators(tmp_path):
    text = "barcode\tlabel\n0x0\tcarcinoma, invasive, high grade\n"
    labels = annotated.read_annotation(write(tmp_path / "a.csv", text))
    assert labels.to_dict() == {"0x0": "carcinoma, invasive, high grade"}


def test_a_table_without_columns_says_what_is_wrong(tmp_path):
    for content in (b"barcode label\n0x0 stroma\n", b"", b"\x89PNG\xff\xfe\x00\n"):
        (tmp_path / "a.tsv").write_bytes(content)
        with pytest.raises(InputError, match="a.tsv"):
            annotated.read_annotation(tmp_path / "a.tsv")


@pytest.mark.parametrize("writer", ["write.csv", "write.table"])
def test_spots_of_cottrazm_as_r_writes_them(tmp_path, writer):
    spots, _ = make_spots(2, 2)
    text = COTTRAZM
    if writer == "write.table":  # no head above the row names
        text = text.removeprefix('"",').replace(",", "\t")
    path = write(tmp_path / ("a.csv" if writer == "write.csv" else "a.tsv"), text)
    schema = yaml.safe_load((ROOT / "config/schemas/config.schema.yaml").read_text())
    texts = schema["properties"]["labels"]["properties"]
    labels = annotated.label_annotated(
        spots, path, {name: texts[name]["default"] for name in texts}
    )
    found = labels.set_index("barcode")["label"].to_dict()
    assert found == {
        "0x0": "malignant",
        "1x0": "malignant",
        "0x1": "boundary",
        "1x1": "non-malignant",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("barcode\tCNVLabel\tLabel\n0x0\t1\tMal\n", "BoundaryPlot"),
        ("barcode\tlabel\n0x0\tmystery\n", "'mystery'.*labels.malignant"),
        ("barcode\tlabel\nACGT-1\tTumor\n", "annotates no spot of slide S.*ACGT-1"),
        ("barcode\tlabel\n0x0\tTumor\n0x0\tstroma\n", "0x0 two annotations"),
        ("place\tlabel\n0x0\tTumor\n", "neither a column barcode nor x and y"),
        ("barcode\tfirst\tsecond\n0x0\tTumor\tb\n", "first, second"),
        ("x\ty\tlabel\none\t2\tTumor\n", "row 1 is not a number"),
    ],
)
def test_unclear_annotations_are_refused(tmp_path, text, message):
    spots, _ = make_spots(2, 2)
    with pytest.raises(InputError, match=message):
        annotated.label_annotated(spots, write(tmp_path / "a.tsv", text), TEXTS)


def _feature(name, rings, kind="annotation"):
    properties = {"objectType": kind}
    if name:
        properties["classification"] = {"name": name, "color": [200, 0, 0]}
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": rings},
        "properties": properties,
    }


def _box(x0, y0, x1, y1):
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]


@pytest.mark.parametrize("bare", [True, False])
def test_polygons_with_holes_overlaps_and_crossings(tmp_path, bare):
    spots, _ = make_spots(4, 4)
    features = [
        # The hole leaves out the spot 1x1, centred at (150, 150).
        _feature("stroma", [_box(0, 0, 400, 400), _box(110, 110, 190, 190)]),
        _feature("Tumor", [_box(200, 200, 400, 400)]),
        # Crosses itself; it still holds the spots 0x0 and 0x3 in its two triangles.
        _feature("boundary", [[[0, 0], [100, 100], [0, 100], [100, 0], [0, 0]]]),
        _feature("", [_box(0, 0, 400, 400)]),
        _feature("Cell", [_box(0, 0, 400, 400)], kind="detection"),
    ]
    content = features if bare else {"type": "FeatureCollection", "features": features}
    path = write(tmp_path / "a.geojson", json.dumps(content))
    labels = annotated.label_annotated(spots, path, TEXTS).set_index("barcode")["label"]
    assert labels["1x1"] == "undetermined"
    assert labels[["2x2", "3x2", "2x3", "3x3"]].eq("malignant").all()
    assert labels["0x0"] == "boundary"
    rest = labels.drop(["1x1", "2x2", "3x2", "2x3", "3x3", "0x0"])
    assert rest.eq("non-malignant").all()
    assert len(rest) == 10


def test_polygons_elsewhere_or_without_class_are_refused(tmp_path):
    spots, _ = make_spots(2, 2)
    path = tmp_path / "a.geojson"
    write(path, json.dumps([_feature("Tumor", [_box(9000, 9000, 9900, 9900)])]))
    with pytest.raises(InputError, match="px of the full image"):
        annotated.label_annotated(spots, path, TEXTS)
    write(path, json.dumps([_feature("", [_box(0, 0, 200, 200)])]))
    with pytest.raises(InputError, match="no annotation with a class"):
        annotated.label_annotated(spots, path, TEXTS)
    with pytest.raises(InputError, match="cannot be read as GeoJSON"):
        annotated.label_annotated(spots, write(path, "{"), TEXTS)


def _halves(scale):
    halves = {"Tumor": (0, 1150), "Stroma": (1150, 2400)}
    return [
        _feature(name, [[[x * scale, y * scale] for x, y in _box(left, 0, right, 2200)]])
        for name, (left, right) in halves.items()
    ]


def _grid(n=20):
    spots, _ = make_spots(n, n)
    row, col = np.divmod(np.arange(n * n), n)
    spots.obsm["spatial"] = np.column_stack([200 + 100 * col + 50 * (row % 2), 200 + 86.6 * row])
    return spots


@pytest.mark.parametrize(
    ("scale", "told"),
    [(0.5, "multiplied by 2"), (0.25, "multiplied by 4"), (0.17, "multiplied by")],
)
def test_annotations_of_a_smaller_copy_are_refused_with_their_scale(tmp_path, scale, told):
    spots, path = _grid(), tmp_path / "a.geojson"
    counts = annotated.label_annotated(spots, write(path, json.dumps(_halves(1))), TEXTS)["label"]
    assert counts.value_counts().to_dict() == {"malignant": 200, "non-malignant": 200}
    write(path, json.dumps(_halves(scale)))
    with pytest.raises(InputError, match=f"of 400 spots lie in an annotated area.*{told}"):
        annotated.label_annotated(spots, path, TEXTS)


def test_annotations_with_x_and_y_exchanged_are_refused(tmp_path):
    spots, path = _grid(), tmp_path / "a.geojson"
    spots.obsm["spatial"] += np.array([4000, 0])
    write(path, json.dumps([_feature("Tumor", [_box(0, 4000, 2300, 6400)])]))
    with pytest.raises(InputError, match="0 of 400 .*100% of them would if x and y were exchanged"):
        annotated.label_annotated(spots, path, TEXTS)


def test_a_small_annotation_is_taken_and_its_share_told(tmp_path, caplog):
    spots, path = _grid(), tmp_path / "a.geojson"
    boxes = [(_box(600, 500, 1200, 1000), 36), (_box(0, 0, 1090, 3000), 180)]
    boxes += [(_box(150, 150, 500, 500), 14), (_box(150, 150, 1000, 1000), 85)]  # in the corner
    for box, n in boxes:
        write(path, json.dumps([_feature("Tumor", [box])]))
        labels = annotated.label_annotated(spots, path, TEXTS)["label"]
        assert (labels == "malignant").sum() == pytest.approx(n, abs=3)
        assert "of 400 spots lie in an annotated area" in caplog.text


def test_cells_inside_an_annotation_do_not_relabel_its_spots(tmp_path):
    spots, path = _grid(), tmp_path / "a.geojson"
    tumour_area = _feature("Tumor", [_box(-50, -200, 2350, 2200)])
    for kind in ({"properties": {"object_type": "cell"}}, {"id": "PathCellObject"}):
        cells = []
        for x, y in spots.obsm["spatial"][::2]:
            cell = _feature("Stroma", [_box(x - 8, y - 8, x + 8, y + 8)])
            del cell["properties"]["objectType"]
            cell["properties"] |= kind.get("properties", {})
            cells.append(cell | {key: kind[key] for key in kind if key != "properties"})
        write(path, json.dumps([tumour_area, *cells]))
        assert set(annotated.label_annotated(spots, path, TEXTS)["label"]) == {"malignant"}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_labels_with_a_byte_order_mark(tmp_path, encoding):
    spots, path = _grid(), tmp_path / "a.geojson"
    path.write_bytes(json.dumps(_halves(1)).encode(encoding))
    assert (annotated.label_annotated(spots, path, TEXTS)["label"] == "malignant").sum() == 200


def test_labels_of_a_class_that_qupath_ignores(tmp_path):
    spots, path = _grid(), tmp_path / "a.geojson"
    annotations = [*_halves(1), _feature("Undetermined*", [_box(150, 150, 450, 450)])]
    labels = annotated.label_annotated(spots, write(path, json.dumps(annotations)), TEXTS)
    assert 0 < (labels["label"] == "undetermined").sum() < 20


def test_annotations_of_a_study_are_read_whole_while_planning(tmp_path):
    good = write(tmp_path / "good.geojson", json.dumps(_halves(1)))
    table = write(tmp_path / "table.tsv", "barcode\tlabel\n0x0\tTumor\n")
    slides = pd.DataFrame(
        {
            "labels": [str(good), str(table), "data/simulated/S3/annotation.tsv", ""],
            "regions": ["", "", "", ""],
        },
        index=["S1", "S2", "S3", "S4"],
    )
    check_annotations(slides, TEXTS, made=lambda file: file.startswith("data/"))
    slides.loc["S2", "labels"] = str(write(tmp_path / "t.tsv", "barcode\tlabel\n0x0\tmystery\n"))
    slides.loc["S4", "regions"] = str(write(tmp_path / "cut.geojson", '[{"type": "Feat'))
    with pytest.raises(InputError) as caught:
        check_annotations(slides, TEXTS, made=lambda file: file.startswith("data/"))
    assert "slide S2, labels: " in str(caught.value)
    assert "'mystery'" in str(caught.value)
    assert "slide S4, regions: " in str(caught.value)


@pytest.mark.parametrize(
    "column", ["Barcode", "barcodes", "Barcodes", "spot_id", "Spot", "cell_id", "index", "id", ""]
)
def test_the_column_of_barcodes_has_many_names(tmp_path, column):
    spots, _ = make_spots(2, 2)
    text = f"{column},label\n0x0,Tumor\n1x0,stroma\n0x1,NA\n1x1,nan\n"
    labels = annotated.label_annotated(spots, write(tmp_path / "a.csv", text), TEXTS)
    assert labels["label"].tolist() == ["malignant", "non-malignant"] + ["undetermined"] * 2


@pytest.mark.parametrize("place", ["geometry", "feature"])
def test_areas_on_several_planes_of_a_stack_are_refused(tmp_path, place):
    spots, _ = make_spots(2, 2)
    first = _feature("Tumor", [_box(0, 0, 200, 200)])
    second = _feature("stroma", [_box(0, 0, 200, 150)])
    holder = second["geometry"] if place == "geometry" else second
    holder["plane"] = {"c": -1, "z": 2, "t": 0}
    path = write(tmp_path / "a.geojson", json.dumps([first, second]))
    with pytest.raises(InputError, match=r"feature 1 and feature 2 .* different planes"):
        annotated.label_annotated(spots, path, TEXTS)
    write(path, json.dumps([second]))
    assert annotated.label_annotated(spots, path, TEXTS)["label"].iloc[0] == "non-malignant"


def test_an_annotation_that_decides_nothing_is_warned_of(tmp_path, caplog):
    spots, _ = make_spots()
    lines = [f"{name}\tundetermined" for name in spots.obs_names]
    path = write(tmp_path / "labels.tsv", "barcode\tlabel\n" + "\n".join(lines) + "\n")
    labels = annotated.label_annotated(spots, path, TEXTS)
    assert labels["label"].eq("undetermined").all()
    (warning,) = caplog.records
    assert "slide S: all spots that" in warning.getMessage()
    assert "no tumour map is learned" in warning.getMessage()
    assert warning.decides == ("tumour",)
