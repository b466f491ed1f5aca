from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from histogep.enrichment.activity import COLUMNS, score_activity, single_sample_scores
from histogep.errors import InputError
from histogep.report.figures.enrichment import activity_maps
from histogep.spots.normalise import add_expression

SETS = {"planted": {"TUMOUR": [f"G{i:02d}" for i in range(10)], "NOISE": ["G20", "G25", "G31"]}}
OPTIONS = {
    "gene_sets": SETS, "min_size": 3, "max_size": 500, "tumour_threshold": 0.5, "seed": 1,
}  # fmt: skip
LATTICE = {"kind": "visium", "pitch_um": 100.0, "tile_um": 112.0}


@pytest.fixture
def slides(tmp_path):
    """Two predicted slides whose left half is tumour, where ten genes are higher."""
    paths = []
    for number in range(2):
        rng = np.random.default_rng(number)
        row, col = (x.ravel() for x in np.mgrid[0:12, 0:10])
        x = 2 + 0.3 * rng.normal(size=(120, 41))
        x[col < 5, :10] += 1
        obs = pd.DataFrame(
            {
                "row": row,
                "col": col,
                "tumour": np.where(col < 5, 0.9, 0.1),
                "out_of_distribution": False,
            },
            index=[f"{r}x{c}" for r, c in zip(row, col, strict=True)],
        )
        var = pd.DataFrame(
            {"predictable": np.arange(41) < 40}, index=[f"G{i:02d}" for i in range(41)]
        )
        paths.append(tmp_path / f"S{number}.h5ad")
        uns = {"lattice": LATTICE}
        ad.AnnData(x.astype(np.float32), obs=obs, var=var, uns=uns).write_h5ad(paths[-1])
    return paths


def ssgsea_by_hand(values, genes, found):
    """Barbie et al.: the mean difference of two running sums down a tile's ranking."""
    scores = []
    for tile in values:
        order = np.argsort(-tile)
        inside = np.isin(np.asarray(genes)[order], found)
        weight = np.arange(len(tile), 0, -1) ** 0.25 * inside
        walk = np.cumsum(weight) / weight.sum() - np.cumsum(~inside) / (~inside).sum()
        scores.append(walk.mean())
    return np.array(scores)


def test_scores_are_the_running_sums_of_barbie():
    rng = np.random.default_rng(0)
    values, genes = rng.normal(size=(5, 60)), [f"G{i}" for i in range(60)]
    sets = {"A": genes[:12], "B": genes[30:35]}
    scores = single_sample_scores(values, genes, sets, seed=0)
    for column, found in enumerate(sets.values()):
        np.testing.assert_allclose(
            scores[:, column], ssgsea_by_hand(values, genes, found), atol=1e-6
        )


def test_genes_that_were_not_counted_are_no_activity_whatever_their_names():
    """Nine of ten counts are 0: sets at either end of the alphabet score alike."""
    counts = np.random.default_rng(1).poisson(0.1, (200, 100)).astype(float)
    genes = [f"G{i:02d}" for i in range(100)]
    sets = {"first": genes[:20], "last": genes[-20:]}
    scores = single_sample_scores(counts, genes, sets, seed=0)
    assert abs(np.diff(scores.mean(axis=0))[0]) < 0.03
    again = single_sample_scores(counts[:, ::-1], genes[::-1], sets, seed=0)
    np.testing.assert_allclose(scores.mean(axis=0), again.mean(axis=0), atol=0.03)


def test_the_planted_set_is_active_in_the_tumour_and_a_random_one_is_not(slides):
    table, maps = score_activity(slides, slides=["S0", "S1"], slide_patients=["A", "B"], **OPTIONS)
    assert list(table) == COLUMNS
    assert maps.shape == (240, 2)
    planted = table[table["gene_set"] == "TUMOUR"].set_index("slide")
    assert (planted["difference"] > 0.2).all()
    assert (planted["moran_i"] > planted["moran_null"] + 0.3).all()
    assert planted["patient"].to_dict() == {"S0": "A", "S1": "B"}
    # Odd rows of the hexagonal lattice lie half a pitch further right, rows closer than columns.
    first = maps.obs[maps.obs["slide"] == "S0"].set_index(["row", "col"])[["x_um", "y_um"]]
    step = first.loc[(1, 0)] - first.loc[(0, 0)]
    assert step["x_um"] == pytest.approx(50)
    assert step["y_um"] == pytest.approx(100 * np.sqrt(3) / 2)
    drawn = activity_maps(table, maps).axes[0].collections[0].get_offsets()
    np.testing.assert_allclose(drawn, first.to_numpy())
    scores = maps[(maps.obs["slide"] == "S0") & (maps.obs["tumour"] > 0.5), "planted:TUMOUR"].X
    assert planted.loc["S0", "tumour"] == pytest.approx(scores.mean(), abs=1e-6)
    noise = table[table["gene_set"] == "NOISE"]
    assert (noise["difference"].abs() < 0.2).all()
    assert (noise["moran_i"] < noise["moran_null"] + 0.15).all()


def test_measured_sections_have_no_tumour_and_every_gene_counts(tmp_path):
    rng = np.random.default_rng(0)
    row, col = (x.ravel() for x in np.mgrid[0:6, 0:6])
    obs = pd.DataFrame({"row": row, "col": col}, index=[f"b{i}" for i in range(36)])
    var = pd.DataFrame(index=[f"G{i:02d}" for i in range(40)])
    counts = sparse.csr_matrix(rng.poisson(4, (36, 40)))
    path = tmp_path / "s.h5ad"
    section = ad.AnnData(counts, obs=obs, var=var, uns={"lattice": LATTICE})
    add_expression(section).write_h5ad(path)
    table, _ = score_activity([path], slides=["s"], slide_patients=["A"], **OPTIONS)
    assert table["n_genes"].tolist() == [3, 10]
    assert table[["tumour", "difference"]].isna().all(axis=None)
    assert table["mean"].notna().all()


def test_no_set_gives_an_empty_table_and_another_model_is_refused(slides):
    nothing = {**OPTIONS, "gene_sets": {"other": {"ELSEWHERE": ["A", "B", "C"]}}}
    ids = {"slides": ["S0", "S1"], "slide_patients": ["A", "B"]}
    table, maps = score_activity(slides, **ids, **nothing)
    assert table.empty
    assert maps.n_obs == 0
    data = ad.read_h5ad(slides[1])
    data.var["predictable"] = True
    data.write_h5ad(slides[1])
    with pytest.raises(InputError, match="different models"):
        score_activity(slides, **ids, **OPTIONS)


def test_the_script_writes_table_maps_and_figure(run_script, slides, tmp_path):
    (tmp_path / "g.gmt").write_text("TUMOUR\t\t" + "\t".join(SETS["planted"]["TUMOUR"]) + "\n")
    output = {name: tmp_path / f"a.{end}" for name, end in
              (("table", "tsv"), ("maps", "h5ad"), ("figure", "png"))}  # fmt: skip
    for gmt in ("TUMOUR\t\t" + "\t".join(SETS["planted"]["TUMOUR"]), "ELSEWHERE\t\tA\tB"):
        (tmp_path / "g.gmt").write_text(gmt + "\n")
        run_script(
            "score_activity.py",
            input={"slides": slides, "gene_sets": [tmp_path / "g.gmt"]},
            output=output,
            params={
                "slide_patients": {"S0": "A", "S1": "B"}, "collections": {"planted": tmp_path / "g.gmt"},
                "enrichment": {"min_size": 3, "max_size": 500}, "tumour_threshold": 0.5, "seed": 1,
                "training_patients": "exclude",
            },
        )  # fmt: skip
        assert output["figure"].stat().st_size > 2000
        assert ad.read_h5ad(output["maps"]).n_vars == (1 if gmt.startswith("TUMOUR") else 0)
