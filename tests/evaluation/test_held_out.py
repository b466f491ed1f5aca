"""What is written of a fold's held-out sections is what is read of them."""

import numpy as np
import pytest

from histogep.errors import InputError
from histogep.evaluation.held_out import join_tables, read_held_out, table_of_section
from histogep.models.sections import Section

SETTINGS = {"protocol": "patient_cv", "fold": "patient-A", "model": "ridge", "genes": ["G1", "G2"]}


def _table(slide, patient, n_targets, seed=0):
    rng = np.random.default_rng([seed, n_targets])
    n = 5
    truth = rng.random((n, n_targets)).astype(np.float32)
    section = Section(
        slide=slide,
        patient=patient,
        barcode=np.array([f"{slide}-{i}" for i in range(n)], object),
        row=np.arange(n, dtype=np.int32),
        col=np.arange(n, dtype=np.int32)[::-1],
        features=np.zeros((n, 1), np.float32),
        white=np.zeros(1, np.float32),
        targets=truth,
        blocks=[("descriptors", 1)],
        encoders=[],
        lattice={},
    )
    predicted = rng.random((n, n_targets)).astype(np.float32)
    tissue = np.array([True, True, False, True, True])
    places = section.barcode, section.row, section.col, tissue
    return table_of_section(section, predicted, {"truth": truth}, *places), predicted, truth


def _write(path, *tables, **settings):
    join_tables(tables, SETTINGS | {"threshold": None} | settings).write_h5ad(path)
    return path


def test_sections_come_back_as_they_were_written(tmp_path):
    one, two = _table("S1", "A", 2), _table("S2", "A", 2, seed=1)
    path = _write(tmp_path / "ridge.h5ad", one[0], two[0], task="expression")
    found = read_held_out([path])
    assert [(s.slide, s.patient, s.task, s.fold, s.model) for s in found] == [
        ("S1", "A", "expression", "patient-A", "ridge"),
        ("S2", "A", "expression", "patient-A", "ridge"),
    ]
    for section, (_, predicted, truth) in zip(found, (one, two), strict=True):
        assert section.genes == ("G1", "G2")
        assert section.barcode.tolist() == [f"{section.slide}-{i}" for i in range(5)]
        assert section.col.tolist() == [4, 3, 2, 1, 0]
        np.testing.assert_array_equal(section.predicted, predicted)
        np.testing.assert_array_equal(section.truth, truth)
        assert section.tissue.row.tolist() == [0, 1, 3, 4]


def test_a_model_of_both_tasks_is_read_as_two_maps_with_the_threshold_on_the_tumour(tmp_path):
    table, predicted, truth = _table("S1", "A", 3)
    path = _write(tmp_path / "both.h5ad", table, task="both", threshold=0.4)
    genes, tumour = read_held_out([path])
    assert (genes.task, genes.genes, genes.threshold) == ("expression", ("G1", "G2"), None)
    assert (tumour.task, tumour.genes, tumour.threshold) == ("tumour", ("tumour",), 0.4)
    np.testing.assert_array_equal(np.hstack([genes.predicted, tumour.predicted]), predicted)
    np.testing.assert_array_equal(np.hstack([genes.truth, tumour.truth]), truth)


def test_numbers_may_be_missing_only_where_the_file_says_why(tmp_path):
    table, *_ = _table("S1", "A", 3)
    table.X[:, 2] = np.nan
    path = _write(tmp_path / "both.h5ad", table, task="both")
    with pytest.raises(InputError, match="no finite number for tumour"):
        read_held_out([path])
    path = _write(tmp_path / "both.h5ad", table, task="both", absent_tumour="one class only")
    genes, tumour = read_held_out([path])
    assert (genes.absent, tumour.absent) == ("", "one class only")
