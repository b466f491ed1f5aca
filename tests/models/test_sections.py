from __future__ import annotations

import anndata
import numpy as np
import pytest

from histogep.encoders.feature_file import read_features, write_features
from histogep.errors import InputError
from histogep.files import read_tsv, write_tsv
from histogep.lattice import Lattice
from histogep.models.sections import grid_of, panel_expression, read_section, read_sections
from tests.model_study import GENES, LATTICE, make_study


@pytest.fixture
def study(tmp_path):
    return make_study(tmp_path, patients=("P", "Q"))


def read(study, task="expression", genes=GENES, slide=0):
    return read_section(
        *(study.files[kind][slide] for kind in ("features", "spots", "labels")),
        slide=study.slides[slide],
        patient="P",
        task=task,
        genes=genes,
    )


def test_features_and_targets_are_joined_by_barcode(study):
    section = read(study, genes=["G3", "G0"])
    encoded = read_features(study.files["features"][0])
    spots = anndata.read_h5ad(study.files["spots"][0])
    for i in (0, 7, len(section.barcode) - 1):
        (at,) = np.flatnonzero(encoded.barcode == section.barcode[i])
        assert np.array_equal(section.features[i], encoded.values[at])
        counts = spots[section.barcode[i]].X.toarray().ravel()
        expected = np.log1p(counts[[3, 0]] / counts.sum() * 1e4)
        assert section.targets[i] == pytest.approx(expected, rel=1e-5)


def test_boundary_and_undetermined_labels_are_no_truth(study):
    labels = read_tsv(study.files["labels"][0])
    section = read(study, task="tumour")
    truth = dict(zip(section.barcode, section.targets[:, 0], strict=True))
    for kind, value in (("malignant", 1.0), ("non-malignant", 0.0)):
        named = labels.loc[labels["label"] == kind, "barcode"]
        assert {truth[barcode] for barcode in named} == {value}
    assert np.isnan([truth[b] for b in labels.loc[labels["label"] == "boundary", "barcode"]]).all()
    labels.loc[0, "label"] = "undetermined"
    write_tsv(labels, study.files["labels"][0])
    assert np.isnan(read(study, task="tumour").targets[0, 0])


def test_a_gene_the_table_lacks_is_not_detected(study, caplog):
    section = read(study, genes=["G0", "NOT_THERE"])
    assert (section.targets[:, 1] == 0).all()
    assert section.targets[:, 0].any()
    assert "lacks 1 of 2 panel genes (NOT_THERE" in caplog.text
    with pytest.raises(InputError, match="none of the 1 genes"):
        read(study, genes=["NOT_THERE"])
    with pytest.raises(InputError, match="panel .* is empty"):
        panel_expression(anndata.AnnData(np.ones((2, 2))), [])


def test_spots_without_features_are_named(study):
    features = read_features(study.files["features"][0])
    spots = anndata.read_h5ad(study.files["spots"][0])
    features.barcode[features.barcode == spots.obs_names[4]] = ""
    write_features(features, study.files["features"][0])
    with pytest.raises(InputError, match=f"no features of 1 of the .*{spots.obs_names[4]}"):
        read(study)


def test_files_that_place_a_spot_differently_are_refused(study):
    features = read_features(study.files["features"][0])
    features.row = features.row + 1
    write_features(features, study.files["features"][0])
    with pytest.raises(InputError, match="different lattice positions"):
        read(study)


def test_features_of_another_slide_are_refused(study):
    with pytest.raises(InputError, match="is of slide S0, not S9"):
        read_section(
            *(study.files[kind][0] for kind in ("features", "spots", "labels")),
            slide="S9",
            patient="P",
            task="tumour",
        )


def test_only_the_sections_asked_for_are_opened(study):
    files = [study.files[kind] for kind in ("features", "spots", "labels")]
    for paths in files:
        paths[1].write_text("not readable")
    (section,) = read_sections({"S0": "P"}, *files, task="expression", genes=GENES)
    assert section.slide == "S0"
    with pytest.raises(InputError, match="S1"):
        read_sections({"S1": "Q"}, *files, task="expression", genes=GENES)
    with pytest.raises(InputError, match="section S7 has no features"):
        read_sections({"S7": "Q"}, *files, task="expression", genes=GENES)


def test_sections_encoded_otherwise_are_refused(study):
    files = [study.files[kind] for kind in ("features", "spots", "labels")]
    with pytest.raises(InputError, match="lie on the lattice"):
        read_sections(study.roles(), *files, task="tumour", lattice=LATTICE | {"pitch_um": 200.0})
    features = read_features(files[0][1])
    features.encoders[1]["sha256"] = "other"
    write_features(features, files[0][1])
    with pytest.raises(InputError, match="differ in their encoders"):
        read_sections(study.roles(), *files, task="tumour")


@pytest.mark.parametrize("kind", ["visium", "st"])
def test_grid_there_and_back(kind):
    rng = np.random.default_rng(0)
    row, col = (axis.ravel() + 5 for axis in np.indices((7, 9)))
    some = rng.permutation(63)[:40]
    row, col, values = row[some], col[some], rng.normal(size=(40, 3))
    lattice = Lattice(kind, 100.0, 100.0)
    for symmetry in [None, *lattice.symmetries()]:
        grid = grid_of(row, col, lattice, symmetry=symmetry)
        assert np.array_equal(grid.take(grid.lay(values)), values)
        assert grid.lay(values, np.array([1.0, 2.0, 3.0]))[~grid.tissue].tolist() == (
            [[1.0, 2.0, 3.0]] * int((~grid.tissue).sum())
        )


def test_a_hexagonal_grid_keeps_which_rows_are_shifted():
    row, col = np.array([3, 4]), np.array([6, 6])
    hexagonal = grid_of(row, col, Lattice("visium"))
    assert np.argwhere(hexagonal.tissue).tolist() == [[1, 0], [2, 0]]
    square = grid_of(row, col, Lattice("st"))
    assert np.argwhere(square.tissue).tolist() == [[0, 0], [1, 0]]


def test_a_given_shape_keeps_the_indices_or_says_what_is_needed():
    row, col = np.array([2, 19]), np.array([3, 9])
    kept = grid_of(row, col, Lattice("st"), shape=(20, 12))
    assert np.argwhere(kept.tissue).tolist() == [[2, 3], [19, 9]]
    moved = grid_of(row, col, Lattice("st"), shape=(18, 12))
    assert np.argwhere(moved.tissue).tolist() == [[0, 0], [17, 6]]
    with pytest.raises(InputError, match="18 rows x 7 columns.*published_grid"):
        grid_of(row, col, Lattice("st"), shape=(17, 12))
