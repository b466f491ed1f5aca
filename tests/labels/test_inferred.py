import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.metrics import roc_auc_score

from histogep.cnv.profiles import EXCLUDED_GENES
from histogep.cnv.slide import chromosome_starts, profile_slide
from histogep.errors import InputError
from histogep.files import write_tsv
from histogep.inputs.genome import read_gene_positions
from histogep.labels import annotated, inferred
from histogep.labels.agreement import compare_labels
from histogep.lattice import Lattice
from histogep.spots.matrices import expression_of
from histogep.spots.normalise import add_expression
from tests.labels.test_annotated import MARKERS, ROOT, TEXTS, make_spots


def test_two_halves_are_told_apart_and_their_border_is_boundary_at_most():
    spots, left = make_spots()
    labels = inferred.infer_labels(spots, MARKERS)
    malignant = (labels["label"] == "malignant").to_numpy()
    healthy = (labels["label"] == "non-malignant").to_numpy()
    assert not (malignant & ~left).any()
    assert not (healthy & left).any()
    inner = ~spots.obs["col"].isin([3, 4]).to_numpy()
    assert (malignant | healthy)[inner].all()
    assert set(labels["source"]) == {"markers"}
    np.testing.assert_allclose(labels["confidence"], np.abs(2 * labels["probability"] - 1))
    pd.testing.assert_frame_equal(labels, inferred.infer_labels(spots, MARKERS))


def test_labels_do_not_depend_on_the_order_of_spots():
    spots, _ = make_spots()
    order = np.random.default_rng(1).permutation(spots.n_obs)
    labels = inferred.infer_labels(spots, MARKERS).set_index("barcode")
    turned = inferred.infer_labels(spots[order].copy(), MARKERS).set_index("barcode")
    pd.testing.assert_series_equal(labels["label"], turned.loc[labels.index, "label"])


def test_spots_all_alike_stay_undetermined(caplog):
    spots, _ = make_spots(contrast=1.0, seed=3)
    labels = inferred.infer_labels(spots, MARKERS)
    assert labels["label"].eq("undetermined").all()
    assert labels["confidence"].eq(0).all()
    assert "two groups" in caplog.text
    assert "slide S: the spots do not fall into two groups by" in caplog.text
    assert "no tumour map is learned" in caplog.text
    assert "column labels" in caplog.text
    assert labels["ranked"].value_counts().to_dict() == {"": 32, "low": 16, "high": 16}


def test_few_spots_are_not_divided_by_chance(caplog):
    """Of 5 spots of one kind a mixture finds two groups in 4 sections of 10, of 2 always."""
    divided = {}
    for n_rows, n_cols in ((1, 2), (1, 3), (1, 5), (4, 5), (5, 6)):
        found = 0
        for seed in range(20):
            spots, _ = make_spots(n_rows, n_cols, contrast=1.0, seed=seed)
            labels = inferred.infer_labels(spots, MARKERS)
            found += labels["label"].isin(["malignant", "non-malignant"]).any()
        divided[n_rows * n_cols] = found
    assert divided.pop(30) <= 3
    assert set(divided.values()) == {0}
    assert "20 spots are too few to tell two groups apart (30 are needed)" in caplog.text


def test_ranked_names_the_ends_of_the_marker_score():
    spots, left = make_spots()
    ranked = inferred.infer_labels(spots, MARKERS)["ranked"].to_numpy()
    assert left[ranked == "high"].all()
    assert not left[ranked == "low"].any()
    assert min((ranked == "high").sum(), (ranked == "low").sum()) == 16


def test_spots_of_one_score_have_no_ends():
    assert set(inferred._ends(np.zeros(8))) == {""}


def test_without_markers_labels_are_refused():
    spots, _ = make_spots()
    with pytest.raises(InputError, match="no marker of epithelial"):
        inferred.infer_labels(spots[:, 2:].copy(), MARKERS)


def test_too_few_genes_for_copy_number_leave_the_markers(caplog):
    spots, _ = make_spots()
    positions = pd.DataFrame(
        {"gene": spots.var_names, "chromosome": "chr1", "start": range(64), "end": range(1, 65)}
    )
    labels = inferred.infer_labels(spots, MARKERS, positions=positions)
    assert set(labels["source"]) == {"markers"}
    assert "copy number is left out" in caplog.text


def _her2st(shared_data, section):
    """Counts of a section on its array; the pixels are not needed here."""
    path = shared_data / "her2st" / "counts" / f"{section}.tsv.gz"
    table = pd.read_csv(path, sep="\t", index_col=0)
    table = table[table.sum(axis=1) >= 100]
    x, y = np.array([name.split("x") for name in table.index], dtype=int).T
    spots = anndata.AnnData(
        X=sparse.csr_matrix(table.to_numpy(np.float32)),
        obs=pd.DataFrame({"row": y, "col": x}, index=table.index.astype(str)),
        var=pd.DataFrame({"gene_id": ""}, index=table.columns),
        obsm={"spatial": np.column_stack([x, y]).astype(float)},
        uns={"slide": section, "lattice": Lattice("st", 200, 112).to_settings()},
    )
    return add_expression(spots)


@pytest.fixture(scope="module")
def her2st_a1(shared_data):
    return _her2st(shared_data, "A1")


@pytest.mark.parametrize(("with_cnv", "least"), [(False, 0.72), (True, 0.78)])
def test_inferred_labels_find_what_the_pathologist_saw(her2st_a1, shared_data, with_cnv, least):
    truth = annotated.label_annotated(
        her2st_a1, shared_data / "her2st" / "labels" / "A1.tsv", TEXTS
    )
    assert truth["label"].value_counts().to_dict() == {
        "malignant": 302,
        "non-malignant": 38,
        "undetermined": 5,
    }
    table = shared_data / "genepos" / "gencode_v38_gene_pos.txt"
    positions = read_gene_positions(table) if with_cnv else None
    markers = pd.read_csv(ROOT / "histogep/resources" / "markers.tsv", sep="\t")
    labels = inferred.infer_labels(her2st_a1, markers, positions=positions)
    assert set(labels["source"]) == {"cnv" if with_cnv else "markers"}
    known = truth["label"].isin(["malignant", "non-malignant"])
    auroc = roc_auc_score(truth["label"][known] == "malignant", labels["probability"][known])
    # Measured 0.753 without and 0.813 with copy number; the depth of the spots alone gives 0.729.
    assert auroc > least


def test_agreement_of_labels_by_hand():
    barcode = list("abcdefgh")
    truth = ["malignant"] * 4 + ["non-malignant"] * 3 + ["undetermined"]
    found = ["malignant", "malignant", "malignant", "boundary"]
    found += ["non-malignant", "non-malignant", "malignant", "malignant"]
    annotated = pd.DataFrame({"barcode": barcode, "label": truth})
    inferred = pd.DataFrame({"barcode": barcode, "label": found, "source": "cnv"})
    inferred["probability"] = [0.9, 0.9, 0.9, 0.5, 0.1, 0.1, 0.8, 0.9]
    row, confusion = compare_labels(annotated, inferred, np.arange(8), slide="S")
    row = row.iloc[0]
    assert (row["n"], row["n_malignant"]) == (7, 4)
    assert row["auroc"] == pytest.approx(11 / 12)  # 12 pairs, one in the wrong order
    assert row["auroc_depth"] == 0
    assert row["dice"] == pytest.approx(6 / 8)
    assert row["dice_null"] == pytest.approx(8 / 11)
    assert row["share_right"] == pytest.approx(5 / 6)
    assert row["share_decided"] == pytest.approx(6 / 7)
    met = confusion.set_index(["annotated", "inferred"])["n_spots"]
    assert met["malignant", "boundary"] == 1
    assert met["undetermined", "malignant"] == 1
    assert met.sum() == 8


def test_annotated_sections_show_what_inferred_labels_are_worth(
    run_script, her2st_a1, shared_data, tmp_path
):
    truth = annotated.label_annotated(
        her2st_a1, shared_data / "her2st" / "labels" / "A1.tsv", TEXTS
    )
    write_tsv(truth, tmp_path / "A1.tsv")
    her2st_a1.write_h5ad(tmp_path / "A1.h5ad")
    names = {"agreement": "labels.tsv", "confusion": "confusion.tsv", "page": "labels.html"}
    outputs = {name: tmp_path / "out" / file for name, file in names.items()}
    run_script(
        "check_labels.py",
        input={
            "spots": [tmp_path / "A1.h5ad"],
            "labels": [tmp_path / "A1.tsv"],
            "markers": ROOT / "histogep/resources" / "markers.tsv",
            "gene_positions": shared_data / "genepos" / "gencode_v38_gene_pos.txt",
        },
        output=outputs,
        params={"code": "", "slides": ["A1"], "cnv": {}},
        wildcards={"study": "s"},
    )
    row = pd.read_csv(outputs["agreement"], sep="\t").iloc[0]
    assert (row["slide"], row["source"], row["n"], row["n_malignant"]) == ("A1", "cnv", 340, 302)
    # Measured 0.843 against 0.729 of the depth; Dice 0.924, but 0.941 of calling all malignant.
    assert row["auroc"] > max(0.78, row["auroc_depth"])
    assert row["dice"] > 0.9
    confusion = pd.read_csv(outputs["confusion"], sep="\t")
    assert confusion["n_spots"].sum() == 345
    assert "inferred" in outputs["page"].read_text()


@pytest.mark.parametrize(("section", "above"), [("C2", 0.998), ("C3", 1), ("C4", 1)])
def test_ranked_spots_show_the_gain_of_erbb2_where_no_spot_is_labelled(shared_data, section, above):
    spots = _her2st(shared_data, section)
    positions = read_gene_positions(shared_data / "genepos" / "gencode_v38_gene_pos.txt")
    markers = pd.read_csv(ROOT / "histogep/resources" / "markers.tsv", sep="\t")
    # ERBB2 is a marker, and keratins lie beside it: none of them may rank, none is measured.
    on_17 = positions.loc[positions["chromosome"] == "chr17", "gene"]
    assert markers["gene"].isin(on_17).sum() >= 5
    labels = inferred.infer_labels(
        spots, markers[~markers["gene"].isin(on_17)], positions=positions
    )
    malignant, other = (labels["label"].eq(name) for name in ("malignant", "non-malignant"))
    if malignant.any():
        amplified = expression_of(spots)[:, [spots.var_names.get_loc("ERBB2")]].toarray()
        assert amplified[malignant].mean() > amplified[other].mean() + 0.5
    result, arms, _ = profile_slide(
        expression_of(spots),
        positions,
        slide=section,
        # As if there were no labels, as with all markers there are none.
        labels=np.full(spots.n_obs, "undetermined", dtype=object),
        ranked=labels["ranked"].to_numpy(),
        obs=spots.obs,
        lattice=Lattice.from_settings(spots.uns["lattice"]),
        # An amplicon is a score of genes wide: windows as wide.
        settings={
            "window": 21,
            "step": 1,
            "dynamic_threshold": None,
            "exclude_genes": [*EXCLUDED_GENES, "^KRT", "^ERBB2$"],
            "max_clones": 1,
        },
        measured=True,
        genes=spots.var_names.tolist(),
    )
    assert result.uns["refused"] == ""
    assert result.uns["reference"] == "ranked"
    malignant, reference = (result.obs[name].to_numpy() for name in ("malignant", "reference"))
    values = np.asarray(result.obsm["X_cnv"])
    profile = values[malignant].mean(axis=0) - values[reference].mean(axis=0)
    starts = chromosome_starts(result)
    on_17 = np.zeros(len(profile), bool)
    on_17[starts["chr17"] : starts["chr18"]] = True
    # The gain on chromosome 17 stands above all other windows; in C2 eleven are higher.
    assert profile[on_17].max() > np.quantile(profile[~on_17], above)
    assert profile[on_17].max() > 0.25
    assert arms.set_index("arm").loc["17q", "value"] > 0
