from __future__ import annotations

import lifelines
import numpy as np
import pandas as pd
import pytest
from lifelines.statistics import logrank_test
from lifelines.utils import concordance_index

from histogep.errors import InputError
from histogep.outcome.nested_cv import (
    fill_and_scale,
    nested_scores,
    reduce_image,
    refit_bootstrap,
    stratified,
)
from histogep.outcome.risk_groups import concordance, follow_up, group_z, median_time
from histogep.outcome.survival import fit_survival
from histogep.report.figures.outcome import forest, kaplan_meier
from histogep.stats.discrimination import (
    bootstrap_concordance,
    bootstrap_weights,
    interval,
    permutation_p,
    survival_pairs,
)
from histogep.stats.penalised import CoxLearner, LogisticLearner
from histogep.study.covariates import stage_number

QUICK = {"repeats": 2, "shuffles": 12, "refits": 50, "bootstraps": 300, "inner_folds": 3}


def _km(result):
    return kaplan_meier(result.risk, result.concordance, result.log_rank)


def simulate(n=30, seed=1, hazard=1.8, n_genes=60):
    """Patients whose hazard follows a composition that 20 genes show, and age a little."""
    rng = np.random.default_rng(seed)
    composition = rng.permutation(np.linspace(-1.7, 1.7, n))
    other = rng.normal(size=n)
    age = rng.normal(61, 11, n)
    risk = hazard * composition + 0.4 * (age - 61) / 11
    time = 24 * (rng.exponential(size=n) / np.exp(risk)) ** (1 / 1.4)
    censored = rng.uniform(24, 156, n)
    loading = np.zeros((2, n_genes))
    loading[0, :20], loading[1, 20:40] = 0.2, 0.2
    genes = np.stack([composition, other], axis=1) @ loading
    genes += 0.1 * rng.normal(size=(n, n_genes))
    table = pd.DataFrame(genes, columns=[f"gene:G{i:02d}" for i in range(n_genes)])
    return table.assign(
        patient=[f"{i:03d}" for i in range(n)],
        time=np.minimum(time, censored).round(1),
        event=(time <= censored).astype(float),
        age=age.round(),
        sex=rng.integers(0, 2, n).astype(float),
        stage=rng.integers(1, 5, n).astype(float),
        tumour_fraction=rng.uniform(0.3, 0.7, n),
    )


@pytest.fixture(scope="module")
def planted():
    table = simulate()
    return table, fit_survival(table, settings=QUICK, seed=1)


def test_the_planted_hazard_is_found_beyond_the_covariates(planted):
    table, result = planted
    models = result.concordance.set_index("model")
    assert models.loc["clinical+image", "c_index"] > models.loc["clinical", "c_index"] + 0.05
    assert models.loc["image", "c_index"] > 0.65
    gain = models.loc["clinical+image - clinical"]
    assert gain["ci_low"] > 0
    assert gain["p"] == pytest.approx(1 / 13)  # no shuffle did as well: the smallest p there is
    assert 0.35 < models.loc["shuffled", "c_index"] < 0.6
    hits = set(result.cox.query("fdr < 0.05")["gene"])
    planted_genes = {f"G{i:02d}" for i in range(20)}
    assert len(hits & planted_genes) >= 15
    assert len(hits - planted_genes) <= 2
    assert (models["n"] == len(table)).all()
    assert (models["events"] == table["event"].sum()).all()


def test_the_difference_is_the_difference(planted):
    models = planted[1].concordance.set_index("model")["c_index"]
    assert models["clinical+image - clinical"] == pytest.approx(
        models["clinical+image"] - models["clinical"]
    )


def test_risk_is_split_at_its_median(planted):
    table, result = planted
    risk = result.risk
    assert list(risk["patient"]) == sorted(table["patient"])
    assert (risk["group"] == "high").sum() == len(risk) // 2
    assert (
        risk.loc[risk["group"] == "high", "risk_clinical+image"].min()
        > risk["risk_clinical+image"].median()
    )
    assert all(len(folds.split(",")) == QUICK["repeats"] for folds in risk["fold"])


def test_the_groups_are_named_with_the_model_that_made_them(planted):
    risk = planted[1].risk
    assert set(risk["model"]) == {"clinical+image"}
    for name in ("clinical", "image"):
        high = risk[f"risk_{name}"] > risk[f"risk_{name}"].median()
        assert (risk[f"group_{name}"] == "high").tolist() == high.tolist()
    assert not (risk["group_image"] == risk["group_clinical"]).all()


def test_the_stage_alone_stands_beside_the_models_as_lifelines_scores_it():
    table = simulate(seed=3)
    table.loc[:4, "stage"] = np.nan
    row = fit_survival(table, settings=QUICK, seed=1).concordance.set_index("model").loc["stage"]
    known = table[table["stage"].notna()]
    expected = concordance_index(known["time"], -known["stage"], known["event"])
    assert row["c_index"] == pytest.approx(expected)
    assert (row["n"], row["protocol"]) == (len(known), "as given")
    assert row["ci_low"] < row["c_index"] < row["ci_high"]
    assert row["null"] == pytest.approx(0.5, abs=0.05)


def test_two_runs_are_identical_and_another_seed_is_not(planted):
    table, result = planted
    again = fit_survival(table, settings=QUICK, seed=1)
    pd.testing.assert_frame_equal(result.concordance, again.concordance)
    pd.testing.assert_frame_equal(result.risk, again.risk)
    other = fit_survival(table, settings=QUICK, seed=2)
    assert not other.risk["risk_image"].equals(result.risk["risk_image"])


def test_an_outcome_without_cause_gives_one_half():
    values, p = [], []
    for seed in range(6):
        table = simulate(n=60, seed=seed)
        order = np.random.default_rng(seed).permutation(len(table))
        table[["time", "event"]] = table[["time", "event"]].to_numpy()[order]
        result = fit_survival(
            table, settings=QUICK | {"repeats": 1, "shuffles": 9, "refits": 2}, seed=seed
        )
        assert (result.cox["fdr"] > 0.01).all()
        values.append(result.concordance.set_index("model").loc["image", "c_index"])
        p.append(result.log_rank.set_index("model").loc["image", "p"])
    assert 0.4 < np.mean(values) < 0.58
    assert np.mean(p) > 0.25  # of the log-rank statistic, among those of the shuffles


def test_a_patient_s_score_does_not_know_the_patient_s_own_outcome():
    """Changing the outcome of a fold's held-out patients leaves their scores as they were."""
    table = simulate(n=40, seed=3)
    image = table.filter(like="gene:").to_numpy(), table[["tumour_fraction"]].to_numpy()

    def scores(time, event):
        return nested_scores(
            CoxLearner(time, event),
            table["event"].to_numpy(int),  # the folds stay as they are
            clinical=table[["age", "stage"]],
            image=image,
            folds=4,
            inner_folds=3,
            penalties=[0.1, 1.0],
            components=5,
            shuffles=0,
            seed=1,
            shuffle_seed=1,
            warned=set(),
        )

    time, event = table["time"].to_numpy(), table["event"].to_numpy()
    first = scores(time, event)
    held_out = first.fold == 2
    changed_time, changed_event = time.copy(), event.copy()
    changed_time[held_out], changed_event[held_out] = 1.0, 1.0
    again = scores(changed_time, changed_event)
    for name in ("clinical", "image", "clinical+image"):
        np.testing.assert_allclose(first.scores[name][held_out], again.scores[name][held_out])
        assert not np.allclose(first.scores[name][~held_out], again.scores[name][~held_out])


def test_measured_expression_is_called_what_it_is():
    table = simulate(seed=5).assign(source="measured").drop(columns="tumour_fraction")
    result = fit_survival(table, settings=QUICK | {"repeats": 1, "refits": 5}, seed=1)
    assert set(result.concordance["model"]) == {
        "clinical", "expression", "clinical+expression", "shuffled", "clinical+shuffled",
        "clinical+expression - clinical", "stage",
    }  # fmt: skip
    assert {"risk_expression", "risk_clinical+expression"} <= set(result.risk)
    titles = [axes.get_title(loc="left") for axes in _km(result).axes]
    assert any(title.startswith("Clinical + expression") for title in titles)
    texts = [text.get_text() for text in forest(result.concordance, result.cox).axes[0].texts]
    assert texts[0].startswith("expression beyond clinical")


def test_components_are_fitted_on_the_training_patients_only():
    rng = np.random.default_rng(0)
    genes, others = rng.normal(size=(20, 30)), rng.normal(size=(20, 3))
    train = np.arange(15)
    first = reduce_image((genes, others), np.arange(20), train, 4)
    genes_changed = genes.copy()
    genes_changed[15:] += 100
    again = reduce_image((genes_changed, others), np.arange(20), train, 4)
    np.testing.assert_allclose(first[:15], again[:15], atol=1e-9)
    assert first[:15, 0].std() == pytest.approx(1)
    np.testing.assert_allclose(first[:15].mean(axis=0), 0, atol=1e-9)
    # Against numpy's own decomposition of the same scaled blocks.
    blocks = [b[:15] for b in (genes, others)]
    scaled = [(b - b.mean(0)) / b.std(0) / np.sqrt(b.shape[1]) for b in blocks]
    u, s, _ = np.linalg.svd(np.hstack(scaled), full_matrices=False)
    np.testing.assert_allclose(np.abs(first[:15]), np.abs(u * s)[:, :4] / s[0] * np.sqrt(15))


def test_copies_of_a_patient_share_their_folds():
    rows = np.sort(np.random.default_rng(0).integers(0, 40, 40))
    strata = np.arange(40) % 2
    tested = []
    for train, test in stratified(strata[rows], 5, 3, rows):
        assert not set(rows[train]) & set(rows[test])
        assert sorted([*train, *test]) == list(range(40))
        tested += list(test)
    assert sorted(tested) == list(range(40))
    # Without copies the folds are as before.
    for ours, theirs in zip(
        stratified(strata, 5, 3, np.arange(40)), stratified(strata, 5, 3), strict=True
    ):
        np.testing.assert_array_equal(ours[1], theirs[1])


def test_an_interval_counts_the_training(planted):
    """A model that another sample of patients would have made otherwise has a wider interval."""
    table, result = planted
    row = result.concordance.set_index("model").loc["clinical+image - clinical"]
    assert row["interval"] == "refitted"
    scores = result.risk.set_index("patient").loc[table["patient"].astype(str)]
    fixed = bootstrap_concordance(
        scores[["risk_clinical+image", "risk_clinical"]].to_numpy(float).T,
        survival_pairs(table["time"], table["event"]).astype(float),
        bootstrap_weights(len(table), draws=400, seed=0),
    )
    low, high = interval(fixed[0] - fixed[1])
    assert row["ci_high"] - row["ci_low"] > high - low
    assert row["ci_low"] < row["c_index"] < row["ci_high"]


def test_missing_covariates_are_a_level_of_their_own(caplog):
    clinical = pd.DataFrame({"stage": [1.0, 2, 3, np.nan, 4, np.nan], "sex": [1.0] * 5 + [0.0]})
    warned: set[str] = set()
    design = fill_and_scale(clinical, np.arange(5), warned=warned)
    assert design.shape == (6, 3)
    assert np.isfinite(design).all()
    assert design[3, 1] == design[5, 1] > design[0, 1]  # the marker of a missing stage
    assert (design[:, 2] == 0).all()
    assert warned == {"sex"}
    assert "sex is constant" in caplog.text


@pytest.mark.parametrize("seed", range(4))
def test_concordance_equals_lifelines_with_ties(seed):
    rng = np.random.default_rng(seed)
    time, event = rng.integers(1, 12, 80).astype(float), rng.integers(0, 2, 80)
    risk = rng.integers(0, 9, 80).astype(float)
    pairs = survival_pairs(time, event).astype(float)
    batched = bootstrap_concordance(risk[None], pairs, np.ones((1, 80)))[0, 0]
    assert batched == pytest.approx(concordance_index(time, -risk, event))
    assert concordance(time, event, risk) == pytest.approx(batched)
    assert np.isnan(concordance(np.ones(5), np.zeros(5), risk[:5]))


def test_a_bootstrap_draw_equals_lifelines_on_the_drawn_patients():
    rng = np.random.default_rng(0)
    time, event, risk = rng.exponential(size=50), rng.integers(0, 2, 50), rng.normal(size=50)
    weights = bootstrap_weights(50, draws=5, seed=1)
    assert (weights.sum(axis=1) == 50).all()
    values = bootstrap_concordance(risk[None], survival_pairs(time, event).astype(float), weights)
    for draw, value in zip(weights.astype(int), values[0], strict=True):
        rows = np.repeat(np.arange(50), draw)
        # lifelines counts a patient against its own copy never, as the times are tied events.
        assert value == pytest.approx(
            concordance_index(time[rows], -risk[rows], event[rows]), abs=1e-9
        )


def test_curves_equal_lifelines_and_their_p_is_that_of_the_shuffles(planted):
    _, result = planted
    risk = result.risk
    high = risk["group"] == "high"
    km = _km(result)
    # Out-of-fold groups are not independent, so that the p of the log-rank's law may not stand there.
    titles = [axes.get_title(loc="left") for axes in km.axes[:3]]
    assert [title.splitlines()[0] for title in titles] == [
        *("Clinical covariates", "Image", "Clinical + image"),
    ]
    by_model = result.concordance.set_index("model")["p"]
    halves = result.log_rank.set_index("model")
    for title, model in zip(titles, ("clinical", "image", "clinical+image"), strict=True):
        assert f"p = {by_model[model]:.2g} by shuffles" in title
        chi2, p = halves.loc[model, ["chi2", "p"]]
        assert f"log-rank χ² {chi2:.2f}, p = {p:.2g} by shuffles" in title
    by_image = risk["group_image"] == "high"
    for axes, group in ((km.axes[1], by_image), (km.axes[2], high)):
        fitted = lifelines.KaplanMeierFitter().fit(risk["time"][group], risk["event"][group])
        curve = axes.lines[0].get_ydata()
        np.testing.assert_allclose(curve, fitted.survival_function_["KM_estimate"])
    labels = [
        tick.get_text() for tick in forest(result.concordance, result.cox).axes[0].get_yticklabels()
    ]
    assert len(labels) == 6
    assert any(label.startswith("shuffled") for label in labels)


@pytest.mark.parametrize("seed", range(4))
def test_the_z_of_a_group_is_the_root_of_the_log_rank_test_without_ties(seed):
    rng = np.random.default_rng(seed)
    time, event = rng.exponential(10, 80), rng.integers(0, 2, 80)
    high = rng.random((3, 80)) < [[0.2], [0.5], [0.8]]
    for group, value in zip(high, group_z(time, event, high), strict=True):
        theirs = logrank_test(time[group], time[~group], event[group], event[~group])
        assert value**2 == pytest.approx(theirs.test_statistic, rel=1e-9)
    # Who dies first has more events than expected, and nobody is compared with nobody.
    early = time <= np.median(time)
    assert group_z(time, event, np.stack([early, ~early]))[0] > 0
    assert np.isnan(group_z(time, event, np.zeros((1, 80), bool)))


def test_median_follow_up_turns_the_events_round():
    """Ten patients enrolled one a month, followed until month 12: by hand."""
    time = np.array([12.0, 11, 10, 9, 8, 7, 6, 5, 4, 3])
    event = np.zeros(10, int)
    event[[8, 9]] = 1  # at 4 and 3 months
    table = follow_up(time, event, {"all": np.ones(10, bool), "none": np.zeros(10, bool)})
    row = table.iloc[0]
    assert (row["patients"], row["events"]) == (10, 2)
    # Of the 8 still followed one is censored each month from the 5th: half of them by the 8th.
    assert row["median_follow_up"] == 8
    assert row["follow_up_ci_low"] < 8 < row["follow_up_ci_high"]
    assert np.isnan(row["median_survival"])  # four fifths live
    assert table.iloc[1, 3:].isna().all()
    assert median_time(np.arange(1.0, 6), np.ones(5))[0] == 3


def test_halves_of_the_risk_are_compared_with_those_of_shuffled_images(planted):
    table, result = planted
    halves = result.log_rank.set_index("model")
    risk = result.risk
    high = risk["group"] == "high"
    theirs = logrank_test(
        *(risk.loc[rows, "time"] for rows in (high, ~high)),
        *(risk.loc[rows, "event"] for rows in (high, ~high)),
    )
    both = halves.loc["clinical+image"]
    assert both["chi2"] == pytest.approx(theirs.test_statistic)
    assert both["p_independent"] == pytest.approx(theirs.p_value)
    assert both["events_high"] + both["events_low"] == table["event"].sum()
    assert both["p"] == pytest.approx(1 / 13)  # above all twelve shuffles
    assert set(halves.index) == {"clinical", "image", "clinical+image"}


def test_a_study_without_covariates_or_without_genes_still_runs():
    table = simulate(seed=5)
    image_only = fit_survival(table.drop(columns=["age", "sex", "stage"]), settings=QUICK, seed=1)
    assert set(image_only.concordance["model"]) == {"image", "shuffled"}
    assert image_only.risk["risk_clinical"].isna().all()
    _km(image_only)
    bare = table[["patient", "time", "event", "age"]]
    clinical_only = fit_survival(bare, settings=QUICK, seed=1)
    assert set(clinical_only.concordance["model"]) == {"clinical"}
    assert clinical_only.cox.empty
    _km(clinical_only)
    forest(clinical_only.concordance, clinical_only.cox)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.assign(event=0.0), "no patient has an event"),
        (lambda t: t.head(4), "4 patients with time and event are fewer than the 5 folds"),
        (lambda t: t.assign(time=[-1.0, *t["time"][1:]]), "negative times: 000"),
        (lambda t: t.assign(event=[2.0, *t["event"][1:]]), "other than 0 and 1: 000"),
        (lambda t: t.assign(event=[1.0] * 2 + [0.0] * 28), "2 events are too few for 5 folds"),
        (lambda t: t.drop(columns="time"), "no column 'time'"),
        (lambda t: t[["patient", "time", "event"]], "nothing to model risk with"),
    ],
)
def test_refusals_say_what_is_wrong(change, message):
    with pytest.raises(InputError, match=message):
        fit_survival(change(simulate()), settings=QUICK, seed=1)


def test_missing_times_and_constant_covariates_are_told_and_left_out(caplog):
    table = simulate().assign(sex=1.0)
    table.loc[[3, 7], "time"] = np.nan
    result = fit_survival(table, settings=QUICK | {"shuffles": 0, "refits": 5}, seed=1)
    assert (result.concordance["n"] == 28).all()
    assert "2 patients without time or event left out: 003, 007" in caplog.text
    assert "covariate sex is the same for all patients" in caplog.text


def test_a_covariate_that_is_constant_in_a_fold_is_told_and_left_out_there(caplog):
    """One man among women: the fold that holds him out has no sex to learn from."""
    table = simulate().assign(sex=[1.0] + [0.0] * 29)
    settings = {**QUICK, "repeats": 1, "shuffles": 0, "refits": 5, "covariates": ["age", "sex"]}
    result = fit_survival(table, settings=settings, seed=1)
    told = [m for m in caplog.messages if "covariate sex is constant in a fold's training" in m]
    assert len(told) == 1
    assert np.isfinite(result.risk["risk_clinical"]).all()


def test_a_permutation_p_is_never_zero():
    assert permutation_p(0.9, np.full(9, 0.5)) == pytest.approx(0.1)
    assert permutation_p(0.5, np.full(9, 0.5)) == 1


@pytest.mark.parametrize(
    ("covariates", "low", "high"), [(["age"], 0.60, 0.67), (["age", "stage"], 0.70, 0.76)]
)
def test_clinical_covariates_of_tcga_brca_reach_their_known_concordance(
    shared_data, tcga_brca, covariates, low, high
):
    result = fit_survival(
        tcga_brca,
        settings={"covariates": covariates, "repeats": 1, "shuffles": 0, "refits": 5},
        seed=1,
    )
    row = result.concordance.iloc[0]
    assert (row["n"], row["events"]) == (1096, 151)
    assert low < row["c_index"] < high
    assert row["ci_low"] < row["c_index"] < row["ci_high"]


@pytest.fixture(scope="module")
def tcga_brca(shared_data):
    table = pd.read_excel(shared_data / "tcga" / "TCGA-CDR-SupplementalTableS1.xlsx", index_col=0)
    table = table[table["type"] == "BRCA"].reset_index(drop=True)
    stages = table["ajcc_pathologic_tumor_stage"].replace(
        {"[Discrepancy]": "", "[Not Available]": "", "Stage X": ""}
    )
    return pd.DataFrame(
        {
            "patient": table["bcr_patient_barcode"],
            "time": table["OS.time"] / 30.44,
            "event": table["OS"].astype(float),
            "age": table["age_at_initial_pathologic_diagnosis"].astype(float),
            "stage": stages.map(lambda s: stage_number("" if s != s else s)),
        }
    )


@pytest.mark.parametrize("n_censored", [1, 3])
def test_refits_have_the_folds_of_the_procedure_that_they_repeat(n_censored):
    """Nearly all have died: few who are censored are no reason to train on fewer patients."""
    table = simulate(n=24)
    event = np.ones(24, int)
    event[np.argsort(table["time"].to_numpy())[-n_censored:]] = 0
    time = table["time"].to_numpy()
    options = {
        "clinical": table[["age", "sex"]],
        "image": (table.filter(like="gene:").to_numpy(),),
        "draws": 4,
        "folds": 5,
        "inner_folds": 3,
        "penalties": [0.1, 1.0],
        "components": 3,
        "seed": 1,
    }
    refits = refit_bootstrap(lambda rows: CoxLearner(time[rows], event[rows]), event, **options)
    assert [scores.fold.max() for _, scores in refits] == [5] * 4
    assert all(np.isfinite(scores.scores["clinical+image"]).all() for _, scores in refits)
    # A model of a response has to see both classes in training.
    few = refit_bootstrap(lambda rows: LogisticLearner(event[rows]), event, **options)
    assert all(scores.fold.max() <= max(n_censored, 2) for _, scores in few)
