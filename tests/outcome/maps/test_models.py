from __future__ import annotations

import anndata as ad
import lifelines
import numpy as np
import pandas as pd
import pytest
import torch
from lifelines.utils import concordance_index
from sklearn.metrics import roc_auc_score

from histogep.errors import InputError
from histogep.lattice import Lattice
from histogep.outcome.maps.models import (
    Cohort,
    Outcome,
    nested_map_scores,
    score_cohort,
    train_network,
)
from histogep.outcome.maps.network import EfronLoss, FileOrderLoss, LogisticLoss, MapNet
from histogep.outcome.maps.scores import MapScores, read_map_scores
from histogep.outcome.maps.slide_maps import SlideMap, canvases, coarsen, read_slide_maps
from histogep.outcome.nested_cv import stratified
from histogep.outcome.response import predict_response
from histogep.outcome.survival import fit_survival
from histogep.report.figures.outcome import forest, roc

SETTINGS = {
    "components": 2, "channels": [6], "blocks": 1, "kernel": 3, "epochs": 24, "lr": 0.02,
    "weight_decay": 0.01, "inner_folds": 2, "repeats": 1, "shuffles": 3, "side": 64,
    "published": False, "noise_draws": 3,
}  # fmt: skip
OUTCOME = {"folds": 3, "penalties": [0.1, 1.0], "covariates": ["age"]}
SIDE = 6


def pattern(kind, rng):
    """Half of the tiles high, half low: in two halves, or as a checkerboard."""
    row, col = np.divmod(np.arange(SIDE**2), SIDE)
    high = (row + col) % 2 if kind == "mixed" else col >= SIDE // 2
    values = np.where(high, 1.0, -1.0)[:, None] * np.array([1.0, -0.7, 0.5, 0.0])
    values = values + 0.3 * rng.normal(size=values.shape)
    return row, col, values - values.mean(axis=0)  # the mean of a slide tells nothing


def planted(n=42, seed=0):
    """Patients with one or two slides; apart dies late and rarely responds, mixed early and does."""
    rng = np.random.default_rng(seed)
    mixed = rng.permutation(np.arange(n) % 2 == 1)
    maps = []
    for patient in range(n):
        for slide in range(1 + patient % 3 // 2):
            row, col, values = pattern("mixed" if mixed[patient] else "apart", rng)
            values = np.column_stack([values, np.ones(len(values))]).astype(np.float32)
            lattice = Lattice(kind="square", pitch_um=100, tile_um=112)
            maps.append(
                SlideMap(f"S{patient}-{slide}", f"P{patient:02d}", row, col, lattice, values)
            )
    time = rng.exponential(size=n) * np.where(mixed, 6, 60)
    gene = np.empty(n)
    for kind in (mixed, ~mixed):  # the same values in both kinds
        gene[kind] = np.linspace(-1, 1, kind.sum())
    table = pd.DataFrame(
        {
            "patient": [f"P{i:02d}" for i in range(n)],
            "time": np.minimum(time, 80),
            "event": (time < 80).astype(float),
            "age": rng.normal(60, 8, n),
            "response": np.where(rng.random(n) < 0.1, ~mixed, mixed).astype(float),
            "gene:G0": gene,
        }
    )
    return table, maps


@pytest.fixture(scope="module")
def scored():
    table, maps = planted()
    options = {"settings": SETTINGS, "outcome_settings": OUTCOME, "seed": 1}
    survival, published = score_cohort(
        table, maps, outcome="survival", **{**options, "settings": {**SETTINGS, "published": True}}
    )
    response, none = score_cohort(table, maps, outcome="response", **options)
    return table, survival, published, response, none


def test_the_loss_is_lifelines_partial_log_likelihood():
    rng = np.random.default_rng(0)
    x = rng.normal(size=80)
    time = np.ceil(rng.exponential(8, 80) / np.exp(0.5 * x))  # many ties
    event = (rng.random(80) < 0.7).astype(int)
    data = pd.DataFrame({"x": x, "time": time, "event": event})
    fitted = lifelines.CoxPHFitter().fit(data, "time", "event")
    risk = torch.as_tensor(fitted.params_["x"] * x)
    loss = EfronLoss(time, event)
    assert len(loss.ends) < event.sum()
    assert float(loss(risk)) == pytest.approx(-fitted.log_likelihood_, abs=1e-6)
    # The order of the patients in the file does not matter, and adding a constant neither.
    order = rng.permutation(80)
    again = EfronLoss(time[order], event[order])(risk[order] + 3)
    assert float(again) == pytest.approx(-fitted.log_likelihood_, abs=1e-6)
    assert torch.autograd.gradcheck(loss, risk.clone().requires_grad_())


def test_the_paper_s_loss_never_sees_time():
    rng = np.random.default_rng(0)
    event, risk = np.array([1, 0, 1, 0, 0]), torch.as_tensor(rng.normal(size=5))
    value = float(FileOrderLoss(event)(risk))
    unit = (risk / risk.norm()).numpy()[[1, 3, 4, 0, 2]]
    expected = -sum(unit[i] - np.log(np.exp(unit[: i + 1]).sum()) for i in (3, 4))
    assert value == pytest.approx(expected)
    assert float(FileOrderLoss(event)(10 * risk)) == pytest.approx(value)


def test_tissue_alone_counts_and_slides_do_not_see_each_other():
    torch.manual_seed(0)
    network = MapNet(3, channels=[4, 6], blocks=1, kernel=3)
    torch.nn.init.normal_(network.head.weight)
    grid, mask = torch.randn(2, 3, 9, 7), torch.ones(2, 1, 9, 7)
    mask[:, :, 6:] = 0
    filled = torch.where(mask > 0, grid, torch.full_like(grid, 50.0))
    plain = network(grid * mask, mask)
    torch.testing.assert_close(network(filled * mask, mask), plain)
    torch.testing.assert_close(network(grid[:1] * mask[:1], mask[:1]), plain[:1])
    wider = torch.nn.functional.pad(grid * mask, (0, 5, 0, 4))
    wide_mask = torch.nn.functional.pad(mask, (0, 5, 0, 4))
    torch.testing.assert_close(network(wider, wide_mask), plain)


def test_a_step_in_parts_is_the_step_of_all_at_once():
    table, maps = planted(n=12)
    rows = np.arange(9)
    loss = EfronLoss(table["time"].to_numpy()[rows], table["event"].to_numpy()[rows])
    results = []
    for size in (len(maps), 4):
        cohort = Cohort(maps, list(table["patient"]))
        cohort.parts = list(torch.arange(len(maps)).split(size))
        tiles = cohort.channels(rows, components=2, seed=1)
        settings = {**SETTINGS, "epochs": 3}
        owner = np.arange(12)
        results.append(train_network(cohort, tiles, owner, loss, rows, settings=settings, seed=1))
    # A Cox loss knows no level, so that the last bias may be any.
    centred = [risk - risk.mean(axis=1, keepdims=True) for risk in results]
    np.testing.assert_allclose(*centred, atol=1e-4)
    assert np.abs(centred[0][0]).max() == 0  # before the first step nobody differs
    assert np.abs(centred[0][-1]).max() > 0.05


def test_several_slides_of_a_patient_are_averaged():
    table, maps = planted(n=6)
    cohort = Cohort(maps, list(table["patient"]))
    tiles = cohort.channels(np.arange(6), components=2, seed=1)
    loss = LogisticLoss(table["response"].to_numpy())
    settings = {**SETTINGS, "epochs": 4}
    rows, owner = np.arange(6), np.arange(6)
    first = train_network(cohort, tiles, owner, loss, rows, settings=settings, seed=1)
    # A slide that stands twice counts as once: the mean of two equal numbers.
    twice = Cohort([*maps, maps[0]], list(table["patient"]))
    more = torch.cat([tiles[:-1], tiles[: SIDE**2], tiles[-1:]])
    again = train_network(twice, more, owner, loss, rows, settings=settings, seed=1)
    assert (np.bincount(cohort.patient) == [1, 1, 2, 1, 1, 2]).all()
    assert (np.bincount(twice.patient) == [2, 1, 2, 1, 1, 2]).all()
    np.testing.assert_allclose(first, again, atol=1e-4)
    assert np.abs(first[-1]).max() > 0.01


def written(table, *scores, folder):
    paths = [folder / f"{number}.tsv" for number in range(len(scores))]
    for path, each in zip(paths, scores, strict=True):
        each.write(path, list(table["patient"]))
    return paths


def test_a_spatial_signal_is_found_that_patient_means_cannot_see(scored, tmp_path):
    table, survival, published, _, _ = scored
    settings = {"repeats": 1, "shuffles": 10, "bootstraps": 200, "refits": 5, **OUTCOME}
    paths = written(table, survival, published, folder=tmp_path)
    result = fit_survival(table, settings=settings, seed=1, maps=paths)
    rows = result.concordance.set_index("model")
    assert rows.loc["maps", "c_index"] > 0.65
    assert rows.loc["maps", "ci_low"] > 0.5
    assert rows.loc["maps", "p"] == pytest.approx(1 / 4)  # none of 3 shuffles did as well
    assert 0.35 < rows.loc["shuffled maps", "c_index"] < 0.62
    assert rows.loc["image", "c_index"] < 0.6  # the mean of a slide has no part in it
    gain = rows.loc["clinical+maps - clinical"]
    difference = rows.loc["clinical+maps", "c_index"] - rows.loc["clinical", "c_index"]
    assert gain["c_index"] == pytest.approx(difference)
    assert gain["c_index"] > 0.05
    assert (rows["n"] == len(table)).all()
    # The other models are what they are without maps.
    alone = fit_survival(table, settings=settings, seed=1).concordance
    pd.testing.assert_frame_equal(result.concordance.head(len(alone)), alone)
    labels = [
        t.get_text() for t in forest(result.concordance, result.cox).axes[0].get_yticklabels()
    ]
    assert any(label.startswith("maps") for label in labels)


def test_the_gain_of_the_maps_is_that_in_the_folds_which_both_models_have(scored, tmp_path):
    """The network of one repeat beside a clinical model of three: the first one's folds count."""
    table, survival, published, _, _ = scored
    paths = written(table, survival, published, folder=tmp_path)
    settings = {"shuffles": 3, "bootstraps": 200, "refits": 5, **OUTCOME}
    rows = [
        fit_survival(
            table, settings={"repeats": repeats, **settings}, seed=1, maps=paths
        ).concordance.set_index("model")
        for repeats in (1, 3)
    ]
    gain = [table.loc["clinical+maps - clinical"] for table in rows]
    pd.testing.assert_series_equal(*gain)
    assert rows[0].loc["clinical", "c_index"] != pytest.approx(rows[1].loc["clinical", "c_index"])
    assert rows[1].loc[["clinical", "maps"], "repeats"].tolist() == [3, 1]
    # Folds of another seed are other patients held out together: not to be compared.
    with pytest.raises(InputError, match="in other folds than the clinical model"):
        fit_survival(table, settings={"repeats": 1, **settings}, seed=2, maps=paths)


def test_the_paper_s_protocol_stands_beside_noise_through_it(scored, tmp_path):
    table, survival, published, _, none = scored
    assert none.scores == {}  # a response has no such card
    paths = written(table, survival, published, folder=tmp_path)
    settings = {"repeats": 1, "shuffles": 10, "bootstraps": 200, "refits": 5, **OUTCOME}
    table_of = fit_survival(table, settings=settings, seed=1, maps=paths).concordance
    rows = table_of.set_index("model")
    assert set(rows.index[rows["protocol"] == "published"]) == {
        "published maps", "published noise", "published clinical+maps", "published clinical+noise",
    }  # fmt: skip
    # Picking the epoch on the test fold lifts what is there, and noise above one half.
    assert rows.loc["published maps", "c_index"] > rows.loc["maps", "c_index"]
    assert rows.loc["published noise", "c_index"] > 0.5
    assert rows.loc["published maps", "null"] == pytest.approx(
        rows.loc["published noise", "c_index"]
    )
    fold, risk = published.fold[0], published.scores["published maps"][0]
    by_fold = [
        concordance_index(table["time"][fold == f], -risk[fold == f], table["event"][fold == f])
        for f in np.unique(fold)
    ]
    assert rows.loc["published maps", "c_index"] == pytest.approx(np.mean(by_fold))


def test_the_network_classifies_responders_too(scored, tmp_path):
    table, _, _, response, none = scored
    settings = {"repeats": 1, "permutations": 10, "bootstraps": 200, **OUTCOME}
    paths = written(table, response, none, folder=tmp_path)
    result = predict_response(table, settings=settings, seed=1, maps=paths)
    auroc = result.performance.query("metric == 'auroc'").set_index("model")
    assert auroc.loc["maps", "value"] > 0.75
    assert auroc.loc["maps", "value"] == pytest.approx(
        roc_auc_score(result.scores["response"], result.scores["maps"])
    )
    assert auroc.loc["maps", "p"] == pytest.approx(1 / 4)
    assert auroc.loc["image", "value"] < 0.65
    shuffled = [roc_auc_score(table["response"], s) for s in response.shuffled["maps"][0]]
    assert 0.3 < np.mean(shuffled) < 0.65
    labels = [line.get_label() for line in roc(result.scores, result.performance).axes[0].lines]
    assert any(label.startswith("clinical+maps") for label in labels)


def test_folds_are_those_of_the_other_models(scored):
    table, survival, _, _, _ = scored
    for number, (_, test) in enumerate(stratified(table["event"].to_numpy(int), 3, 1), start=1):
        assert (survival.fold[0, test] == number).all()


def test_a_patient_s_score_does_not_know_the_patient_s_own_outcome():
    """Changing the outcome of a fold's held-out patients leaves their scores as they were."""
    table, maps = planted(n=24, seed=3)
    cohort = Cohort(maps, list(table["patient"]))
    strata = table["event"].to_numpy(int)
    settings = {**SETTINGS, "epochs": 8, "shuffles": 0}

    def scores(time):
        outcome = Outcome(strata, time)
        return nested_map_scores(
            cohort, outcome, clinical=table[["age"]], folds=3, settings=settings,
            penalties=[0.1], seed=1,
        )  # fmt: skip

    time = table["time"].to_numpy()
    first = scores(time)
    held_out = first.fold[0] == 2
    again = scores(np.where(held_out, time[::-1] + 1, time))
    for name in ("maps", "clinical+maps"):
        before, after = first.scores[name][0], again.scores[name][0]
        np.testing.assert_allclose(before[held_out], after[held_out])
        assert not np.allclose(before[~held_out], after[~held_out])


def test_programmes_are_fitted_on_training_patients_only():
    _, maps = planted(n=6)
    cohort = Cohort(maps, [f"P{i:02d}" for i in range(6)])
    first = cohort.channels(np.arange(4), components=2, seed=1)
    for item in maps:
        if item.patient in ("P04", "P05"):
            item.values[:] = 100
    again = cohort.channels(np.arange(4), components=2, seed=1)
    kept = np.concatenate([np.full(len(m.row), m.patient < "P04") for m in maps])
    np.testing.assert_array_equal(first[:-1][kept], again[:-1][kept])
    taught = np.concatenate([m.values for m in maps if m.patient < "P04"])
    channels = first[:-1][kept].numpy()
    assert len(taught) == len(channels)
    np.testing.assert_allclose(channels[:, :2].mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(channels[:, :2].std(axis=0), 1, atol=1e-3)
    assert np.abs(channels[:, 2]).max() == 0  # a tumour probability that is the same everywhere


def test_canvases_hold_every_tile_once_and_turn_with_the_lattice():
    rng = np.random.default_rng(0)
    for kind in ("visium", "square"):
        lattice = Lattice(kind=kind, pitch_um=100, tile_um=112)
        row, col = (x.ravel() for x in np.mgrid[3:9, 5:11])
        keep = rng.random(len(row)) < 0.8
        values = rng.normal(size=(int(keep.sum()), 3)).astype(np.float32)
        item = SlideMap("S", "P", row[keep], col[keep], lattice, values)
        every = canvases([item, item])
        for canvas in every:
            for slide in range(2):
                found = np.sort(canvas[slide][canvas[slide] >= 0])
                np.testing.assert_array_equal(found, slide * len(values) + np.arange(len(values)))
        assert len({canvas.tobytes() for canvas in every}) >= 4


def test_large_slides_are_averaged_in_blocks():
    row, col = (x.ravel() for x in np.mgrid[0:10, 0:6])
    values = np.column_stack([row, col, np.ones(60)]).astype(np.float32)
    item = SlideMap("S", "P", row, col, Lattice(kind="visium"), values)
    assert coarsen(item, side=10) is item
    coarse = coarsen(item, side=5)
    assert len(coarse.row) == 15
    np.testing.assert_allclose(coarse.values[0], [0.5, 0.5, 1])
    np.testing.assert_allclose(coarse.values[-1], [8.5, 4.5, 1])
    assert coarse.lattice.kind == "square"


def test_scores_of_other_patients_are_refused(tmp_path):
    scores = MapScores({"maps": np.zeros((1, 2))}, {"maps": np.zeros((1, 3, 2))}, np.ones((1, 2)))
    scores.write(tmp_path / "s.tsv", ["A", "B"])
    again = read_map_scores(tmp_path / "s.tsv", ["B", "A"])
    assert again.shuffled["maps"].shape == (1, 3, 2)
    with pytest.raises(InputError, match="of other patients"):
        read_map_scores(tmp_path / "s.tsv", ["A", "C"])


@pytest.fixture
def slides(tmp_path):
    """Files as predict_slide writes them, for twelve patients of whom one has two slides."""
    table, maps = planted(n=18)
    paths = []
    for item in maps:
        obs = pd.DataFrame(
            {
                "row": item.row,
                "col": item.col,
                "tumour": item.values[:, -1],
                "out_of_distribution": False,
            },
            index=[f"{r}x{c}" for r, c in zip(item.row, item.col, strict=True)],
        )
        genes = [f"G{i}" for i in range(item.values.shape[1] - 1)]
        var = pd.DataFrame({"predictable": True}, index=genes)
        uns = {"model_digest": "d", "lattice": item.lattice.to_settings()}
        paths.append(tmp_path / f"{item.slide}.h5ad")
        ad.AnnData(item.values[:, :-1], obs=obs, var=var, uns=uns).write_h5ad(paths[-1])
    table.to_parquet(tmp_path / "patients.parquet")
    return table, maps, paths


def test_slides_of_the_wanted_patients_are_read(slides):
    _, maps, paths = slides
    names, owners = [m.slide for m in maps], [m.patient for m in maps]
    options = {"slides": names, "slide_patients": owners, "side": 64}
    read = read_slide_maps(paths, patients=["P00", "P02"], **options)
    assert [m.slide for m in read] == ["S0-0", "S2-0", "S2-1"]
    np.testing.assert_allclose(read[0].values, maps[0].values, atol=1e-6)
    with pytest.raises(InputError, match="no slide with tiles of patients P99"):
        read_slide_maps(paths, patients=["P99"], **options)
    for path in paths:
        data = ad.read_h5ad(path)
        data.uns["image_sha256"] = "one" if path.stem in ("S2-0", "S2-1") else path.stem
        data.write_h5ad(path)
    single = read_slide_maps(paths, patients=["P00", "P02"], **options)
    assert [m.slide for m in single] == ["S0-0", "S2-0"]
    data = ad.read_h5ad(paths[0])
    data.uns["model_digest"] = "another"
    data.write_h5ad(paths[0])
    with pytest.raises(InputError, match="different models"):
        read_slide_maps(paths, patients=["P00", "P02"], **options)


@pytest.mark.parametrize("outcome", ["survival", "response"])
def test_from_predicted_slides_to_rows_beside_the_other_models(
    run_script, slides, tmp_path, outcome
):
    table, maps, paths = slides
    scores, published = tmp_path / "maps.tsv", tmp_path / "maps.published.tsv"
    settings = {**SETTINGS, "epochs": 3, "shuffles": 3, "published": True}
    run_script(
        "train_map_net.py",
        input={"patients": tmp_path / "patients.parquet", "expression": paths},
        output={"scores": scores, "published": published},
        params={
            "slide_patients": {m.slide: m.patient for m in maps},
            "sample_types": ["01"], "maps": settings, "outcome_settings": OUTCOME, "seed": 1,
        },
        wildcards={"cohort": "c", "outcome": outcome},
    )  # fmt: skip
    known = pd.read_csv(scores, sep="\t")
    assert set(known["patient"]) == set(table["patient"])
    assert known["draw"].nunique() == 4
    quick = {"repeats": 1, "bootstraps": 100, **OUTCOME}
    if outcome == "survival":
        result = fit_survival(
            table, settings=quick | {"shuffles": 3}, seed=1, maps=[scores, published]
        ).concordance
        assert "published noise" in set(result["model"])
    else:
        quick["permutations"] = 3
        result = predict_response(
            table, settings=quick, seed=1, maps=[scores, published]
        ).performance
    assert {"maps", "clinical+maps"} <= set(result["model"])
