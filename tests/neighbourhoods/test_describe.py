"""What lies beside what: squidpy's numbers, the null that keeps the maps, and what cannot be compared."""

import anndata as ad
import networkx as nx
import numpy as np
import pandas as pd
import pytest
import squidpy as sq
from scipy import ndimage, sparse
from sklearn.metrics import roc_auc_score

from histogep.errors import BadSlide, InputError
from histogep.files import read_tsv, write_tsv
from histogep.lattice import Lattice
from histogep.neighbourhoods.describe import (
    describe_neighbourhoods,
    group_closeness,
    link_moments,
    local_clustering,
    moved_maps,
    neighbour_graph,
)
from histogep.neighbourhoods.measures import COLUMNS, MEASURES, average_slides, summarise_slides
from histogep.neighbourhoods.tissue_classes import (
    Places,
    classify,
    measured_places,
    predicted_places,
    score_programmes,
)
from histogep.outcome.patients import NEIGHBOURHOOD, image_blocks
from histogep.report.figures.neighbourhoods import neighbourhood_figure
from histogep.simulate import cohort as simulate_cohort
from histogep.simulate import files as simulate_slides
from histogep.spots.normalise import add_expression

VISIUM = Lattice("visium")
QUICK = {"permutations": 50, "most_places": 2000, "rings": 2, "seed": 1}
MARKERS = pd.DataFrame(
    {
        "lineage": ["t_cell"] * 8 + ["fibroblast"] * 8 + ["adipocyte"] * 4,
        "gene": [f"T{i}" for i in range(8)]
        + [f"F{i}" for i in range(8)]
        + [f"A{i}" for i in range(4)],
    }
)


def places_of(tumour, immune, stroma, row, col, *, lattice=VISIUM, clone="", undetermined=0):
    """Places of a slide whose programmes are given."""
    x_um, y_um = lattice.centres_um(row, col)
    named = np.where(immune > 1, "immune", np.where(stroma > 0.3, "stroma", "other"))
    table = pd.DataFrame(
        {
            "row": row,
            "col": col,
            "x_um": x_um,
            "y_um": y_um,
            "tumour": tumour,
            "uncertain": False,
            "class": np.where(tumour, "malignant", named),
            "clone": np.where(tumour, clone, ""),
            "immune": immune,
            "stroma": stroma,
            "adipose": 0.0,
        },
        index=[f"{r}x{c}" for r, c in zip(row, col, strict=True)],
    )
    return Places("S", True, lattice, table, undetermined, ())


def unrelated(seed, side=14):
    """A slide whose tumour, immune places and stroma are broad maps that know nothing of each other."""
    rng = np.random.default_rng(seed)
    row, col = np.divmod(np.arange(side * side), side)
    fields = [ndimage.gaussian_filter(rng.normal(size=(side, side)), 1.5).ravel() for _ in range(3)]
    fields = [field / field.std() for field in fields]
    return places_of(fields[0] > 0.25, fields[1], fields[2], row, col)


def squidpy_data(found, column="class"):
    data = ad.AnnData(
        obs=pd.DataFrame({"class": pd.Categorical(found.places[column])}),
        obsm={"spatial": found.places[["x_um", "y_um"]].to_numpy()},
    )
    sq.gr.spatial_neighbors_radius(data, radius=150.0)
    return data


def planted(seed, slide, *, rows=9, cols=10):
    """The true places of a slide of the simulated study."""
    tissue = simulate_slides._tissue(
        slide, simulate_cohort.slide_composition(seed, slide), rows, cols, seed=seed
    )
    row, col = np.divmod(np.arange(rows * cols), cols)
    x_um, y_um = (values + simulate_slides.MARGIN_UM for values in VISIUM.centres_um(row, col))
    kept = tissue.around(tissue.mask.astype(np.float32), x_um, y_um) >= 0.5
    shares = tissue.composition(x_um[kept], y_um[kept])
    truth = simulate_slides._truth_table(pd.Series(np.flatnonzero(kept)), shares)
    places = places_of(
        truth["clone"].to_numpy() != "",
        truth["share_immune"].to_numpy(),
        truth["share_stroma"].to_numpy(),
        row[kept],
        col[kept],
    )
    others = truth["compartment"].where(truth["compartment"].isin(["immune", "stroma"]), "other")
    places.table["class"] = np.where(places.table["tumour"], "malignant", others)
    return places


# ---------------------------------------------------------------- squidpy's own numbers


@pytest.fixture(scope="module")
def found():
    return describe_neighbourhoods(unrelated(3), **QUICK)


def test_the_numbers_are_squidpys(found):
    data = squidpy_data(found)
    names = list(data.obs["class"].cat.categories)
    assert len(names) == 5
    table = found.table[found.table["partition"] == "tissue"]
    links = sq.gr.interaction_matrix(data, "class", copy=True)
    enriched = sq.gr.nhood_enrichment(
        data, "class", seed=1, n_perms=2000, n_jobs=1, copy=True, show_progress_bar=False
    )
    occurrence, _ = sq.gr.co_occurrence(
        data, "class", interval=np.array([0.0, 150.0, 250.0]), copy=True
    )
    central = sq.gr.centrality_scores(data, "class", copy=True, n_jobs=1)
    compared = 0
    for row in table.itertuples():
        i, j = names.index(row.of), -1 if isinstance(row.beside, float) else names.index(row.beside)
        if row.statistic == "links":
            assert row.value == links[i, j] == links[j, i]
        elif row.statistic == "enrichment":  # 50 permutations against 2,000
            assert row.value == pytest.approx(enriched.zscore[i, j], rel=0.4, abs=0.8)
        elif row.statistic == "co_occurrence":
            number = [150.0, 250.0].index(row.distance_um)
            assert row.value == pytest.approx(occurrence[j, i, number], rel=1e-5)
        elif row.statistic in central:
            assert row.value == pytest.approx(central.loc[row.of, row.statistic])
        else:
            continue
        compared += 1
    assert compared == 15 + 15 + 2 * 15 + 3 * 5


@pytest.mark.parametrize("same", [False, True])
def test_moments_of_the_links_are_those_of_dealt_classes(found, same):
    graph = squidpy_data(found).obsp["spatial_connectivities"]
    degree = np.diff(graph.indptr).astype(float)
    rng = np.random.default_rng(0)
    label = np.zeros(len(degree), int)
    label[:30], label[30:70] = 1, 2
    drawn = []
    for _ in range(4000):
        dealt = rng.permutation(label)
        one, two = (dealt == 1).astype(float), (dealt == (1 if same else 2)).astype(float)
        drawn.append(one @ (graph @ two))
    mean, deviation = link_moments(degree, 30, 30 if same else 40, same=same)
    assert mean == pytest.approx(np.mean(drawn), rel=0.01)
    assert deviation == pytest.approx(np.std(drawn), rel=0.05)


def test_clustering_and_closeness_are_networkx(found):
    matrix = sparse.csr_matrix(squidpy_data(found).obsp["spatial_connectivities"])
    graph = nx.Graph(matrix)
    clustering = nx.clustering(graph)
    np.testing.assert_allclose(
        local_clustering(matrix), [clustering[i] for i in range(matrix.shape[0])]
    )
    member = found.places["class"].to_numpy() == "stroma"
    assert group_closeness(matrix, member) == pytest.approx(
        nx.group_closeness_centrality(graph, set(np.flatnonzero(member)))
    )


def test_neighbours_of_a_real_visium_and_of_a_real_st_section(shared_data):
    """The lattice's own neighbours, and what squidpy finds of the pixels of Space Ranger."""
    table = pd.read_csv(
        shared_data / "visium/scanpy_1.0.0/spatial/tissue_positions_list.csv", header=None
    )
    table = table[table[1] == 1] if (table[1] == 1).sum() > 100 else table
    row, col = table[2].to_numpy(), table[3].to_numpy() // 2
    x_um, y_um = VISIUM.centres_um(row, col)
    ours = neighbour_graph(pd.DataFrame({"x_um": x_um, "y_um": y_um}), pitch_um=100.0)
    data = ad.AnnData(
        obs=pd.DataFrame(index=table[0]), obsm={"spatial": table[[5, 4]].to_numpy(float)}
    )
    sq.gr.spatial_neighbors_grid(data, n_neighs=6)
    assert len(table) > 100
    assert (ours != data.obsp["spatial_connectivities"]).nnz == 0
    assert (ours.astype(bool) != VISIUM.neighbours(row, col)).nnz == 0

    spots = pd.read_csv(shared_data / "her2st/spots/B4.tsv", sep="\t")
    square = Lattice("st", pitch_um=200.0)
    row, col = spots["y"].to_numpy(), spots["x"].to_numpy()
    x_um, y_um = square.centres_um(row, col)
    ours = neighbour_graph(pd.DataFrame({"x_um": x_um, "y_um": y_um}), pitch_um=200.0)
    assert (ours.astype(bool) != square.neighbours(row, col)).nnz == 0


def test_on_a_strip_one_place_wide_the_next_but_one_is_no_neighbour():
    x_um, y_um = VISIUM.centres_um(np.zeros(30, int), np.arange(30))
    strip = pd.DataFrame({"x_um": x_um, "y_um": y_um})
    graph = neighbour_graph(strip, pitch_um=100.0)
    assert np.diff(graph.indptr).max() == 2
    data = ad.AnnData(
        obs=pd.DataFrame(index=map(str, range(30))), obsm={"spatial": strip.to_numpy()}
    )
    sq.gr.spatial_neighbors_grid(data, n_neighs=6)  # what the guess makes of it
    assert np.diff(sparse.csr_matrix(data.obsp["spatial_connectivities"]).indptr).max() > 2


# ---------------------------------------------------------------- the null


def test_unrelated_maps_lie_within_the_null_but_not_within_shuffled_classes():
    rows = []
    for seed in range(24):
        table = describe_neighbourhoods(unrelated(seed), **QUICK).table
        rows.append(table[table["null"] == "moved"])
    table = pd.concat(rows)
    pairs = table[table["statistic"].isin(["enrichment", *MEASURES])]
    assert (pairs["p"] < 0.05).mean() < 0.06
    place = (pairs["value"] - pairs["null_mean"]) / (pairs["null_high"] - pairs["null_low"])
    assert abs(place.mean()) < 0.1  # neither above nor below
    shuffled = pairs.loc[pairs["statistic"] == "enrichment", "value"].abs() > 1.96
    assert shuffled.mean() > 0.4


def test_what_was_laid_around_the_tumour_is_found_beyond_the_null():
    side = 16
    rng = np.random.default_rng(1)
    row, col = np.divmod(np.arange(side * side), side)
    tumour = ndimage.gaussian_filter(rng.normal(size=(side, side)), 2.0).ravel()
    tumour = tumour > np.quantile(tumour, 0.7)
    away = ndimage.distance_transform_edt(~tumour.reshape(side, side)).ravel()
    immune = np.where((away > 0) & (away < 1.5), 2.0, 0.0) + rng.normal(0, 0.1, len(row))
    table = describe_neighbourhoods(
        places_of(tumour, immune, -immune, row, col), **QUICK
    ).table.set_index(["partition", "statistic"])
    border = table.loc[("patient", "immune_border")].iloc[0]
    assert border["value"] > border["null_high"]
    assert border["p"] < 0.05
    pair = table.loc[("clones", "enrichment")]
    pair = pair[(pair["of"] == "malignant") & (pair["beside"] == "immune")].iloc[0]
    assert pair["value"] > pair["null_high"]


def test_malignant_places_inside_have_no_null_as_the_boundary_surrounds_them(found):
    table = found.table
    inner = table[
        (table["partition"] == "tissue") & (table["of"] == "malignant")
        & table["beside"].isin(["boundary", "immune", "stroma", "other"])
    ]  # fmt: skip
    assert len(inner)
    assert inner["note"].str.startswith("by definition").all()
    assert inner["null_mean"].isna().all()
    assert (
        inner.loc[(inner["statistic"] == "links") & (inner["beside"] != "boundary"), "value"] == 0
    ).all()


def test_moved_maps_are_moved_and_keep_their_places():
    table = unrelated(0).table
    x_um, y_um = table["x_um"].to_numpy(), table["y_um"].to_numpy()
    moved = moved_maps(x_um, y_um)
    assert moved.shape == (108, len(table))
    assert np.hypot(x_um[moved] - x_um, y_um[moved] - y_um).mean(axis=1).min() > 100


def test_the_planted_patterns_are_told_apart_by_the_measure_and_not_by_its_null():
    """On the truth: 24 slides of the size of the default study's."""
    slides = [f"H{number:02d}-1" for number in range(1, 25)]
    rows = []
    for slide in slides:
        table = describe_neighbourhoods(planted(1, slide), **QUICK).table
        rows.append(table[table["statistic"] == "immune_infiltration"].iloc[0])
    table = pd.DataFrame(rows)
    infiltrated = [simulate_cohort.slide_composition(1, s).pattern == "infiltrated" for s in slides]
    assert sum(infiltrated) == 12
    assert roc_auc_score(infiltrated, table["value"]) > 0.95
    assert abs(roc_auc_score(infiltrated, table["null_mean"]) - 0.5) < 0.25
    excluded = table[~np.array(infiltrated)]
    assert (excluded["value"] < excluded["null_low"]).mean() > 0.5


# ---------------------------------------------------------------- what cannot be compared


@pytest.mark.filterwarnings("error")
def test_slides_with_nothing_to_compare_are_reported():
    slide = unrelated(0)
    everywhere, nowhere = slide.table.copy(), slide.table.copy()
    everywhere["tumour"], everywhere["class"] = True, "malignant"
    nowhere["tumour"], nowhere["class"] = False, "stroma"
    cases = {
        "every place is malignant": everywhere,
        "every place is not malignant": nowhere,
        "3 places have a neighbour, 20 are needed": slide.table.iloc[:3],
        "0 places have a neighbour, 20 are needed": slide.table.iloc[:0],
    }
    for said, table in cases.items():
        found = describe_neighbourhoods(Places("S", True, VISIUM, table, 0, ()), **QUICK)
        note = found.table.set_index("statistic").loc["not described", "note"]
        assert said in note
        measures = found.table[found.table["statistic"].isin(MEASURES)]
        assert measures["value"].isna().all()
        neighbourhood_figure(found)


def test_isolated_places_are_left_out_and_counted():
    slide = unrelated(1)
    far = slide.table.iloc[:2].copy()
    far["row"] += 40
    far["col"] += [0, 40]
    far["x_um"], far["y_um"] = VISIUM.centres_um(far["row"].to_numpy(), far["col"].to_numpy())
    far.index = ["far", "farther"]
    table = pd.concat([slide.table, far])
    with_far = describe_neighbourhoods(Places("S", True, VISIUM, table, 4, ("why",)), **QUICK)
    plain = with_far.table[with_far.table["partition"].isna()].set_index("statistic")
    assert plain.loc["isolated", "value"] == 2
    assert plain.loc["undetermined", "value"] == 4
    assert plain.loc["undetermined", "note"] == "why"
    without = describe_neighbourhoods(slide, **QUICK).table
    kept = ["statistic", "of", "beside", "value", "null_mean"]
    pd.testing.assert_frame_equal(
        with_far.table.loc[with_far.table["partition"] == "tissue", kept].reset_index(drop=True),
        without.loc[without["partition"] == "tissue", kept].reset_index(drop=True),
    )


def test_a_large_slide_is_sampled_for_co_occurrence_and_says_so():
    found = describe_neighbourhoods(unrelated(2), **QUICK | {"most_places": 100})
    occurrence = found.table[found.table["statistic"] == "co_occurrence"]
    assert occurrence["note"].str.contains("100 of 196 places, drawn at random").all()
    again = describe_neighbourhoods(unrelated(2), **QUICK | {"most_places": 100})
    pd.testing.assert_frame_equal(found.table, again.table)


def test_clones_are_a_partition_of_the_tumour():
    slide = unrelated(4)
    left = slide.table["col"].to_numpy() < 7
    slide.table["clone"] = np.where(slide.table["tumour"], np.where(left, "0", "1"), "")
    table = describe_neighbourhoods(slide, **QUICK).table
    named = set(table.loc[table["partition"] == "clones", "of"].dropna())
    assert named == {"clone 0", "clone 1", "immune", "stroma", "other"}
    pair = table[(table["of"] == "clone 0") & (table["beside"] == "clone 1")]
    assert pair["null_mean"].notna().all()


# ---------------------------------------------------------------- classes of places


def expression(rng, n, high):
    """Places x genes of MARKERS; `high` has the programme of each place."""
    values = rng.normal(1.0, 0.3, (n, len(MARKERS)))
    for lineage, name in (("t_cell", "immune"), ("fibroblast", "stroma"), ("adipocyte", "fat")):
        values[np.ix_(high == name, MARKERS["lineage"] == lineage)] += 1.0
    return np.clip(values, 0, None)


def test_places_get_the_programme_that_they_express():
    rng = np.random.default_rng(0)
    high = rng.choice(["immune", "stroma", "fat", "none"], 400, p=[0.15, 0.3, 0.2, 0.35])
    scores, notes = score_programmes(expression(rng, 400, high), pd.Index(MARKERS["gene"]), MARKERS)
    assert not notes
    named = classify(scores)
    for name in ("immune", "stroma"):
        assert ((named == name) == (high == name)).mean() > 0.97
    nothing, _ = score_programmes(
        expression(rng, 400, np.full(400, "none")), pd.Index(MARKERS["gene"]), MARKERS
    )
    # 5 % for each programme where the genes have nothing to do with each other.
    assert (classify(nothing) == "immune").mean() < 0.1


def test_too_few_genes_of_a_programme_are_said_and_give_no_class():
    rng = np.random.default_rng(0)
    values = expression(rng, 60, np.full(60, "immune"))
    values[:, 2:8] = 1.0  # constant
    scores, notes = score_programmes(sparse.csr_matrix(values), pd.Index(MARKERS["gene"]), MARKERS)
    assert "2 genes of the immune programme vary over the places, 3 are needed" in notes[0]
    assert "immune" not in set(classify(scores))
    slide = unrelated(5)
    slide.table["immune"], slide.table["class"] = (
        np.nan,
        slide.table["class"].replace("immune", "other"),
    )
    table = describe_neighbourhoods(slide, **QUICK).table.set_index("statistic")
    assert (
        table.loc[["immune_infiltration", "immune_mixing", "immune_border"], "value"].isna().all()
    )
    assert np.isfinite(table.loc["stroma_border", "value"])


def write_prediction(path, places, rng, **changes):
    high = places.table["class"].to_numpy()
    values = expression(rng, len(high), high)
    data = ad.AnnData(
        values.astype(np.float32),
        obs=places.table[["row", "col"]].assign(
            tumour=places.table["tumour"].astype(float), out_of_distribution=False
        ),
        var=pd.DataFrame({"predictable": True}, index=MARKERS["gene"]),
        uns={"slide": "S", "lattice": VISIUM.to_settings()},
    )
    for name, value in changes.items():
        data.obs[name] = value
    data.write_h5ad(path)


def test_a_predicted_slide_is_read_and_one_without_a_tumour_map_is_undetermined(tmp_path):
    slide, rng = unrelated(6), np.random.default_rng(0)
    write_tsv(MARKERS, tmp_path / "markers.tsv")
    write_prediction(tmp_path / "S.h5ad", slide, rng)
    read = predicted_places(tmp_path / "S.h5ad", tmp_path / "markers.tsv", tumour_threshold=0.5)
    assert not read.measured
    assert (read.table["class"] == slide.table["class"]).mean() > 0.95
    write_prediction(tmp_path / "S.h5ad", slide, rng, tumour=np.nan)
    read = predicted_places(tmp_path / "S.h5ad", tmp_path / "markers.tsv", tumour_threshold=0.5)
    assert (len(read.table), read.undetermined) == (0, 196)
    describe_neighbourhoods(read, **QUICK)
    data = ad.read_h5ad(tmp_path / "S.h5ad")
    del data.obs["tumour"]
    data.write_h5ad(tmp_path / "S.h5ad")
    with pytest.raises(InputError, match="predict the slide again"):
        predicted_places(tmp_path / "S.h5ad", tmp_path / "markers.tsv", tumour_threshold=0.5)


def test_clones_of_another_slide_are_refused_and_refused_profiles_have_none(tmp_path):
    slide, rng = unrelated(6), np.random.default_rng(0)
    write_tsv(MARKERS, tmp_path / "markers.tsv")
    write_prediction(tmp_path / "S.h5ad", slide, rng)
    profile = ad.AnnData(obs=pd.DataFrame({"clone": "0"}, index=slide.table.index))
    options = {"tumour_threshold": 0.5, "cnv": tmp_path / "cnv.h5ad"}
    for uns, clones in (
        ({"slide": "S", "refused": ""}, {"0", ""}),
        ({"slide": "S", "refused": "x"}, {""}),
    ):
        profile.uns = uns
        profile.write_h5ad(tmp_path / "cnv.h5ad")
        read = predicted_places(tmp_path / "S.h5ad", tmp_path / "markers.tsv", **options)
        assert set(read.table["clone"]) == clones
    profile.uns = {"slide": "T", "refused": ""}
    profile.write_h5ad(tmp_path / "cnv.h5ad")
    with pytest.raises(InputError, match="not of the places of slide S"):
        predicted_places(tmp_path / "S.h5ad", tmp_path / "markers.tsv", **options)


@pytest.fixture(scope="module")
def her2st(shared_data, tmp_path_factory):
    """Spots and labels of section A1, as the rules before write them."""
    folder, real = tmp_path_factory.mktemp("a1"), shared_data / "her2st"
    counts = pd.read_csv(real / "counts/A1.tsv.gz", sep="\t", index_col=0)
    annotated = pd.read_csv(real / "labels/A1.tsv", sep="\t").dropna(subset=["x", "y"])
    annotated.index = [
        f"{x:.0f}x{y:.0f}" for x, y in zip(annotated["x"], annotated["y"], strict=True)
    ]
    text = annotated["label"].reindex(counts.index).fillna("undetermined")
    label = text.map({"invasive cancer": "malignant", "cancer in situ": "malignant"})
    label = label.fillna(text.where(text == "undetermined", "non-malignant"))
    place = pd.DataFrame([name.split("x") for name in counts.index], columns=["col", "row"]).astype(
        int
    )
    spots = ad.AnnData(
        sparse.csr_matrix(counts.to_numpy(np.float32)),
        obs=place.set_index(counts.index),
        var=pd.DataFrame(index=counts.columns),
        uns={"slide": "A1", "lattice": {"kind": "st", "pitch_um": 200.0, "tile_um": 112.0}},
    )
    add_expression(spots).write_h5ad(folder / "spots.h5ad")
    write_tsv(pd.DataFrame({"barcode": counts.index, "label": label}), folder / "labels.tsv")
    return folder


def test_a_real_section_goes_through_the_scripts(her2st, run_script, tmp_path):
    outputs = {"table": tmp_path / "A1.tsv", "figure": tmp_path / "A1.png"}
    log = run_script(
        "describe_neighbourhoods.py",
        input={
            "spots": her2st / "spots.h5ad",
            "labels": her2st / "labels.tsv",
            "markers": "histogep/resources/markers.tsv",
        },
        output=outputs,
        params={
            "neighbourhoods": {
                name: QUICK[name] for name in ("permutations", "most_places", "rings")
            },
            "tumour_threshold": None,
            "seed": 1,
        },
    )
    assert "slide A1: 340 places" in log or "slide A1: 341 places" in log
    assert "Creating graph" not in log
    table = read_tsv(outputs["table"])
    assert tuple(table.columns) == COLUMNS
    measures = table[table["partition"] == "patient"].set_index("statistic")
    # The annotated immune cells and connective tissue lie outside the tumour, not in it.
    infiltration = measures.loc["immune_infiltration"]
    assert infiltration["value"] < infiltration["null_low"]
    assert outputs["figure"].stat().st_size > 10_000

    listed = {name: tmp_path / f"{name}.out" for name in ("slides", "patients", "page")}
    run_script(
        "summarise_neighbourhoods.py",
        input={"tables": [outputs["table"]]},
        output=listed,
        params={"patients": {"A1": "A"}, "sample_types": ["01"]},
        wildcards={"cohort": "her2st"},
    )
    patients = read_tsv(listed["patients"])
    assert patients.loc[0, "immune_infiltration"] == pytest.approx(infiltration["value"])
    assert "immune_infiltration" in listed["page"].read_text()


def test_a_section_that_was_left_out_says_so_again(her2st, tmp_path):
    spots = ad.read_h5ad(her2st / "spots.h5ad")
    spots.uns["failed"] = '{"rule": "align_spots", "reason": "no"}'
    spots.write_h5ad(tmp_path / "spots.h5ad")
    with pytest.raises(BadSlide, match="no"):
        measured_places(
            tmp_path / "spots.h5ad", her2st / "labels.tsv", "histogep/resources/markers.tsv"
        )


# ---------------------------------------------------------------- patients


def test_slides_are_averaged_by_their_places_and_missing_ones_left_out(tmp_path):
    paths, slides = [], ["S", "T", "U"]
    for slide, side in zip(slides, (14, 10, 14), strict=True):
        table = describe_neighbourhoods(unrelated(7, side), **QUICK).table.assign(slide=slide)
        if slide == "U":
            table.loc[table["statistic"] == "immune_mixing", "value"] = np.nan
        paths.append(tmp_path / f"{slide}.tsv")
        write_tsv(table, paths[-1])
    of_slides, of_patients = summarise_slides(paths, slides=slides, slide_patients=["a", "a", "b"])
    first = of_slides.set_index("slide")
    row = of_patients.set_index("patient").loc["a"]
    expected = np.average(
        first.loc[["S", "T"], "immune_mixing"], weights=first.loc[["S", "T"], "n_places"]
    )
    assert row["immune_mixing"] == pytest.approx(expected)
    assert np.isnan(of_patients.set_index("patient").loc["b", "immune_mixing"])
    assert list(average_slides(of_slides.iloc[:1])["n_slides"]) == [1]
    # Normal tissue, and a frozen section beside the diagnostic slide, are listed and not averaged.
    names = ["TCGA-AA-0001-01Z-00-DX1", "TCGA-AA-0001-11A-01-TS1", "TCGA-AA-0001-01A-01-TS1"]
    renamed = []
    for path, name in zip(paths, names, strict=True):
        renamed.append(tmp_path / f"{name}.tsv")
        write_tsv(read_tsv(path, dtype={"slide": str}).assign(slide=name), renamed[-1])
    listed, averaged = summarise_slides(renamed, slides=names, slide_patients=["TCGA-AA-0001"] * 3)
    assert len(listed) == 3
    assert averaged["n_slides"].tolist() == [1]
    assert averaged.loc[0, "immune_mixing"] == pytest.approx(first.loc["S", "immune_mixing"])
    with pytest.raises(InputError, match="is not the table of slide X"):
        summarise_slides(paths[:1], slides=["X"], slide_patients=["a"])


def test_the_block_of_the_image_models_is_there_only_where_it_is_asked_for():
    table = pd.DataFrame(
        {"gene:A": [1.0], "upper:A": [2.0], "heterogeneity": [3.0], NEIGHBOURHOOD + "x": [4.0]}
    )
    assert [block.shape[1] for block in image_blocks(table, neighbourhoods=False)] == [1, 1, 1]
    assert [block.tolist() for block in image_blocks(table, neighbourhoods=True)][3] == [[4.0]]
