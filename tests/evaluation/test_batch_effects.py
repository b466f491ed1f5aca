"""What features go with: planted effects are found, with their null, and nothing where there is none."""

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.metrics import r2_score

from histogep.encoders.feature_file import Features, write_features
from histogep.evaluation.batch_effects import (
    COLUMNS,
    Components,
    explain,
    expression_components,
    feature_components,
    warnings_of,
)
from histogep.report.figures.batch_effects import plot_batches
from histogep.report.pages_batch_effects import write_batch_page


def slide_table(n_patients=8, of_each=3, seed=0):
    rng = np.random.default_rng(seed)
    n = n_patients * of_each
    return pd.DataFrame(
        {
            "slide": [f"S{i}" for i in range(n)],
            "patient": [f"P{i // of_each}" for i in range(n)],
            "cohort": ["a"] * n,
            "mpp": 0.5,
            "mean_haematoxylin": rng.normal(0.1, 0.02, n),
            "mean_eosin": rng.normal(0.1, 0.02, n),
        }
    )


def places(slides, *, patient=0.0, eosin=0.0, n=50, seed=1):
    rng = np.random.default_rng(seed)
    of_patient = {name: rng.normal(size=6) for name in slides["patient"].unique()}
    direction, scores, names = rng.normal(size=6), [], []
    for row in slides.itertuples():
        shift = (
            patient * of_patient[row.patient] + eosin * (row.mean_eosin - 0.1) / 0.02 * direction
        )
        scores.append(rng.normal(size=(n, 6)) + shift)
        names += [row.slide] * n
    return Components(
        "features", np.concatenate(scores), np.full(6, 1 / 6), np.asarray(names, object)
    )


def shares(components, slides):
    return explain(components, slides, seed=1).set_index("factor")


def test_nothing_planted_is_within_what_chance_gives():
    found = shares(places(slide_table()), slide_table())
    for factor in ("patient", "haematoxylin", "eosin"):
        assert found.loc[factor, "share"] < 1.5 * found.loc[factor, "null_upper"]
    assert found.loc["cohort", "note"] == "one level: nothing to compare"
    assert found.loc["um per px", "note"] == "one level: nothing to compare"
    assert warnings_of(found.reset_index()) == []


def test_a_patient_that_explains_nearly_all_is_warned_of():
    slides = slide_table()
    found = shares(places(slides, patient=4.0), slides)
    row = found.loc["patient"]
    assert row["share"] > 0.8 > row["null_upper"]
    (line,) = warnings_of(found.reset_index())
    assert line.startswith("the patient explains 9")
    weak = shares(places(slides, patient=0.5), slides)
    assert weak.loc["patient", "share"] > weak.loc["patient", "null_upper"]
    assert warnings_of(weak.reset_index()) == []


def test_a_stain_that_features_follow_is_found_and_warned_of():
    slides = slide_table()
    found = shares(places(slides, eosin=3.0), slides)
    assert found.loc["eosin", "share"] > max(0.5, found.loc["eosin", "null_upper"])
    assert found.loc["haematoxylin", "share"] < 0.2
    assert any(line.startswith("eosin explains") for line in warnings_of(found.reset_index()))


def test_shares_are_those_of_a_regression_on_the_places():
    """As scikit-learn has them: the variance that the means of levels, or a line, explain."""
    slides = slide_table()
    data = places(slides, patient=1.0, eosin=1.0)
    found = shares(data, slides)
    table = slides.set_index("slide")
    patient = table.loc[data.slide, "patient"].to_numpy()
    means = pd.DataFrame(data.scores).groupby(patient).transform("mean")
    expected = r2_score(data.scores, means, multioutput="variance_weighted")
    assert found.loc["patient", "share"] == pytest.approx(expected)
    x = table.loc[data.slide, "mean_eosin"].to_numpy()
    fitted = np.column_stack([np.polyval(np.polyfit(x, column, 1), x) for column in data.scores.T])
    expected = r2_score(data.scores, fitted, multioutput="variance_weighted")
    assert found.loc["eosin", "share"] == pytest.approx(expected)


def test_patients_of_one_slide_each_are_noted():
    slides = slide_table(6, 1)
    found = shares(places(slides), slides)
    assert "patient and slide cannot be told apart" in found.loc["patient", "note"]
    assert found.loc["patient", "share"] == found.loc["slide", "share"]
    assert found.loc["patient", "null"] == pytest.approx(5 / 299)


def test_a_stain_that_is_not_known_of_every_slide_is_not_used():
    slides = slide_table()
    slides.loc[0, "mean_eosin"] = np.nan
    assert shares(places(slides), slides).loc["eosin", "note"] == "not known of every slide"


def test_files_are_read_evenly_and_columns_of_one_value_left_out(tmp_path):
    paths, spots = {}, {}
    rng = np.random.default_rng(0)
    for number, n in enumerate((500, 30)):
        slide = f"S{number}"
        paths[slide] = tmp_path / f"{slide}.h5"
        values = rng.normal(size=(n, 5)).astype(np.float32)
        values[:, 2] = 1.0
        write_features(
            Features(
                slide=slide, values=values, row=np.arange(n), col=np.zeros(n, int),
                coords=np.zeros((n, 2), int), barcode=np.full(n, "", object),
                white=np.zeros(5, np.float32), blocks=[("a", 5)],
                lattice={"kind": "visium", "pitch_um": 100.0, "tile_um": 112.0},
                encoders=[{"name": "a", "sha256": ""}], attributes={},
            ),
            paths[slide],
        )  # fmt: skip
        counts = sparse.csr_matrix(rng.poisson(2, (n, 4)).astype(np.float32))
        genes = pd.DataFrame(index=["A", "B", "C", f"only in {slide}"])
        data = anndata.AnnData(counts, var=genes, uns={"slide": slide})
        data.layers["log1p_cp10k"] = counts.log1p()
        spots[slide] = tmp_path / f"{slide}.h5ad"
        data.write_h5ad(spots[slide])
    found = feature_components(paths, seed=1)
    assert pd.Series(found.slide).value_counts().to_dict() == {"S0": 200, "S1": 30}
    assert found.scores.shape == (230, 4)
    with h5py.File(paths["S0"]) as file:
        assert np.ptp(file["features"][:, 2]) == 0
    assert np.array_equal(found.scores, feature_components(paths, seed=1).scores)
    assert expression_components(spots, seed=1).scores.shape == (230, 3)


def test_page_and_figure_are_written(tmp_path):
    slides = slide_table()
    data = places(slides, patient=4.0)
    table = explain(data, slides, seed=1)
    assert list(table.columns) == list(COLUMNS)
    write_batch_page(table, tmp_path / "page.html")
    assert "Warning: the patient explains 9" in (tmp_path / "page.html").read_text()
    figure = plot_batches([data], slides, table)
    assert len(figure.axes) == 6
    assert figure.axes[0].get_title(loc="left").startswith("patient\n9")
