import numpy as np
import pandas as pd
import pytest

from histogep.errors import InputError
from histogep.files import write_tsv
from tests.export_slide import COL, GENES, ROW, TUMOUR, measured_layers, predicted_layers


def test_a_predicted_slide_has_every_layer_in_the_order_of_its_tiles(tmp_path):
    layers = predicted_layers(tmp_path)
    assert not layers.measured
    assert list(layers.cnv.obs_names) == list(layers.data.obs_names)
    assert (layers.cnv.obsm["X_cnv"][:, 0] == np.arange(len(ROW))).all()
    kinds = layers.tissue["class"].to_numpy()
    assert kinds[5] == ""  # no tumour probability
    assert (kinds[TUMOUR & (np.arange(len(ROW)) != 5)] == "malignant").all()
    assert (kinds[COL > 9] == "immune").all()
    # All neighbours of a tile inside the tumour are malignant, and half are at its border.
    inside = (COL == 2) & (ROW > 1) & (ROW < 8)
    assert (layers.tissue["neighbours_malignant"][inside] == 1).all()
    border = layers.tissue["neighbours_malignant"][(COL == 6) & (ROW == 4)].item()
    assert 0 < border < 1


def test_a_section_has_its_labels_as_tumour(tmp_path):
    layers = measured_layers(tmp_path)
    tumour = layers.tumour["tumour"].to_numpy()
    assert np.isnan(tumour[3])
    assert (tumour[np.arange(len(ROW)) != 3] == TUMOUR[np.arange(len(ROW)) != 3]).all()
    assert layers.cnv is None
    values = layers.gene_values(["EPCAM", "CD3D"])
    assert list(values) == ["EPCAM", "CD3D"]
    wanted = layers.data.layers["log1p_cp10k"].toarray()[:, [GENES.index("EPCAM"), 0]]
    assert np.allclose(values, wanted)


def test_a_profile_that_was_refused_is_no_layer(tmp_path):
    assert predicted_layers(tmp_path, refused="too few genes").cnv is None


def test_a_profile_bears_the_name_that_the_controls_of_its_cohort_leave_it(tmp_path):
    table = pd.DataFrame({"slide": ["T", "S"], "name": ["CNV", "expression subtype"]})
    write_tsv(table, tmp_path / "subtypes.tsv")
    found = predicted_layers(tmp_path, subtypes=tmp_path / "subtypes.tsv")
    assert found.cnv.uns["name"] == "expression subtype"
    write_tsv(table.iloc[:1], tmp_path / "subtypes.tsv")
    found = predicted_layers(tmp_path, subtypes=tmp_path / "subtypes.tsv")
    assert found.cnv.uns["name"] == "CNV"


def test_genes_are_those_named_or_the_best(tmp_path, caplog):
    predicted = predicted_layers(tmp_path)
    # By held-out score; KRT19 has the highest and is not predictable.
    assert predicted.choose_genes([]) == GENES[6::-1]
    assert predicted.choose_genes(["DCN", "NOT", "DCN"]) == ["DCN"]
    assert "slide S has not: NOT" in caplog.text
    with pytest.raises(InputError, match="export.genes: slide S has none of NOT; its 8 genes"):
        predicted.choose_genes(["NOT"])
    measured = measured_layers(tmp_path)
    spread = measured.data.layers["log1p_cp10k"].toarray().var(axis=0)
    assert measured.choose_genes([]) == [GENES[i] for i in np.argsort(-spread, kind="stable")]
