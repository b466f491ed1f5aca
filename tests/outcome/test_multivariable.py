from __future__ import annotations

import lifelines
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.duration.hazard_regression import PHReg
from statsmodels.stats.outliers_influence import variance_inflation_factor

from histogep.outcome.multivariable import COLUMNS, fit_multivariable
from histogep.outcome.survival import fit_survival
from histogep.report.figures.outcome import adjusted_forest
from histogep.study.covariates import sex_number, stage_number

QUICK = {"repeats": 1, "shuffles": 19, "refits": 2, "bootstraps": 100, "inner_folds": 3}


def patients(n=300, seed=0, *, of_stage=0.5, of_image=0.6):
    """Patients whose hazard follows stage and image; the image knows nothing of the stage."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=n)
    clinical = pd.DataFrame(
        {
            "age": rng.normal(62, 10, n).round(),
            "sex": rng.integers(0, 2, n).astype(float),
            "stage": rng.integers(1, 5, n).astype(float),
        }
    )
    hazard = 0.03 * (clinical["age"] - 62) + of_stage * (clinical["stage"] - 2.5) + of_image * image
    happens, leaves = rng.exponential(40 * np.exp(-hazard)), rng.uniform(5, 100, n)
    time, event = np.minimum(happens, leaves).round(1), (happens <= leaves).astype(int)
    return clinical, image, time, event


def rows(found):
    return found.table.set_index(["variable", "level"])


@pytest.fixture(scope="module")
def tcga(shared_data):
    """Breast cancers of TCGA-CDR with a risk that is a gene of their tumour, where it was measured."""
    table = pd.read_excel(shared_data / "tcga" / "TCGA-CDR-SupplementalTableS1.xlsx", index_col=0)
    table = table[table["type"] == "BRCA"].reset_index(drop=True)
    unknown = ["[Discrepancy]", "[Not Available]", "Stage X"]
    stage = table["ajcc_pathologic_tumor_stage"].replace(unknown, "")
    return pd.DataFrame(
        {
            "time": table["OS.time"] / 30.44,
            "event": table["OS"].astype(float),
            "age": table["age_at_initial_pathologic_diagnosis"].astype(float),
            "sex": table["gender"].map(lambda s: sex_number(s.lower())),
            "stage": stage.map(lambda s: stage_number("" if s != s else s)),
        }
    ).query("time == time and event == event")


def test_hazard_ratios_of_tcga_breast_cancers_equal_those_of_other_packages(tcga):
    rng = np.random.default_rng(0)
    risk = rng.normal(size=len(tcga)) + tcga["event"].to_numpy()
    clinical = tcga[["age", "sex", "stage"]]
    found = fit_multivariable(clinical, risk, tcga["time"].to_numpy(), tcga["event"].to_numpy())
    used = tcga.assign(risk=risk).dropna()
    assert found.n == len(used) < len(tcga)
    assert found.events == used["event"].sum()
    used["risk"] /= used["risk"].std()
    design = pd.DataFrame(
        {
            "age": used["age"] / 10,
            "male": used["sex"],
            **{
                name: used["stage"] == number for name, number in (("II", 2), ("III", 3), ("IV", 4))
            },
            "risk": used["risk"],
        }
    ).astype(float)
    model = PHReg(used["time"] + 1e-3, design - design.mean(), status=used["event"], ties="efron")
    # Its Newton steps run off from zero.
    theirs = model.fit(start_params=model.fit(method="bfgs", disp=0).params)
    table = rows(found)
    named = [("age", "per 10 years"), ("sex", "male"), ("stage", "II"), ("stage", "III"),
             ("stage", "IV"), ("image risk", "per SD")]  # fmt: skip
    ours = table.loc[named]
    np.testing.assert_allclose(np.log(ours["hr"]), theirs.params, rtol=1e-5)
    np.testing.assert_allclose(np.log(ours[["ci_low", "ci_high"]]), theirs.conf_int(), rtol=1e-4, atol=1e-5)  # fmt: skip
    np.testing.assert_allclose(ours["p"], theirs.pvalues, rtol=1e-3)
    # lifelines by hand, its own coding of the stage: likelihood ratio and univariable ratios.
    frame = used.assign(stage=used["stage"].astype(int).astype(str))
    full = lifelines.CoxPHFitter().fit(frame, "time", "event", formula="age + sex + stage + risk")
    less = lifelines.CoxPHFitter().fit(frame, "time", "event", formula="age + sex + stage")
    chi2 = 2 * (full.log_likelihood_ - less.log_likelihood_)
    image = table.loc[("image risk", "per SD")]
    assert image["lr_chi2"] == pytest.approx(chi2, rel=1e-6)
    assert image["lr_p"] == pytest.approx(stats.chi2.sf(chi2, 1), rel=1e-5)
    no_stage = lifelines.CoxPHFitter().fit(frame, "time", "event", formula="age + sex + risk")
    joint = table.loc[("stage", "III")]
    assert joint["lr_df"] == 3
    assert joint["lr_chi2"] == pytest.approx(
        2 * (full.log_likelihood_ - no_stage.log_likelihood_), rel=1e-6
    )
    alone = lifelines.CoxPHFitter().fit(frame, "time", "event", formula="stage")
    assert table.loc[("stage", "IV"), "hr_univariable"] == pytest.approx(
        np.exp(alone.params_["stage[T.4]"]), rel=1e-6
    )
    # What is known of these patients: the stage tells more than anything, and with men in one
    # per cent nothing is told of them.
    assert 4 < table.loc[("stage", "IV"), "hr"] < 30
    assert table.loc[("sex", "female"), "reference"] == "female"
    assert table.loc[("stage", "I"), ["hr", "hr_univariable"]].tolist() == [1, 1]
    assert table.loc[("stage", "I"), "ci_low"] != table.loc[("stage", "I"), "ci_low"]
    assert found.lacks.count("stage") == found.table.set_index("variable").loc["stage", "missing"].max()  # fmt: skip


def test_inflation_equals_that_of_statsmodels():
    clinical, image, time, event = patients()
    clinical["sex"] = (image + np.random.default_rng(1).normal(size=300) > 0).astype(float)
    found = rows(fit_multivariable(clinical[["age", "sex"]], image, time, event))
    design = np.column_stack([np.ones(300), clinical["age"], clinical["sex"], image])
    for place, key in enumerate(
        [("age", "per 10 years"), ("sex", "male"), ("image risk", "per SD")]
    ):
        assert found.loc[key, "vif"] == pytest.approx(variance_inflation_factor(design, place + 1))


def test_hazards_that_are_not_proportional_are_named():
    clinical, image, time, event = patients(n=600, of_image=0)
    male = clinical["sex"] == 1
    time[male], event[male] = np.where(time[male] > 12, 100.0, time[male] / 3), time[male] <= 12
    found = fit_multivariable(clinical, image, time, event)
    assert rows(found).loc[("sex", "male"), "ph_p"] < 0.001
    assert any("hazards are not proportional (p < .05): sex" in note for note in found.notes)
    outcome = clinical[["sex"]].assign(time=time, event=event)
    fitted = lifelines.CoxPHFitter().fit(outcome, "time", "event")
    test = lifelines.statistics.proportional_hazard_test(fitted, outcome, time_transform="km")
    alone = rows(fit_multivariable(clinical[["sex"]], None, time, event))
    assert alone.loc[("sex", "male"), "ph_p"] == pytest.approx(float(test.p_value[0]))


@pytest.fixture(scope="module")
def cohorts():
    """Slides whose genes follow a hazard of their own, or are only the stage once more."""
    found = {}
    for kind in ("own", "copy of stage"):
        clinical, latent, time, event = patients(n=240, seed=4, of_stage=0.7, of_image=0.9)
        rng = np.random.default_rng(7)
        if kind == "copy of stage":
            clinical, _, time, event = patients(n=240, seed=4, of_stage=0.7, of_image=0)
            latent = (clinical["stage"] - 2.5) / 1.1 + 0.5 * rng.normal(size=240)
        genes = np.outer(latent, np.ones(20)) + rng.normal(size=(240, 20))
        table = pd.DataFrame(genes, columns=[f"gene:G{i:02d}" for i in range(20)])
        table = table.assign(
            patient=[f"P{i:03d}" for i in range(240)], time=time, event=event, **clinical
        )
        found[kind] = table, fit_survival(table, settings=QUICK, seed=1)
    return found


def test_an_image_of_its_own_keeps_its_hazard_beside_the_clinic(cohorts):
    table, result = cohorts["own"]
    image = rows(result.multivariable).loc[("image risk", "per SD")]
    assert image["ci_low"] > 1.5
    assert image["hr"] > 0.9 * image["hr_univariable"]
    assert image["lr_p"] < 1e-6
    assert image["p_shuffles"] == pytest.approx(1 / 20)
    assert 0.8 < image["hr_null"] < 1.1
    assert image["vif"] < 1.2
    # The same model by hand, with the out-of-fold risk that the workflow writes.
    risk = result.risk.set_index("patient").loc[table["patient"], "risk_image"].to_numpy()
    frame = table[["age", "time", "event"]].assign(
        sex=table["sex"], stage=table["stage"].astype(int).astype(str), risk=risk / risk.std(ddof=1)
    )
    by_hand = lifelines.CoxPHFitter().fit(
        frame, "time", "event", formula="age + sex + stage + risk"
    )
    assert np.log(image["hr"]) == pytest.approx(by_hand.params_["risk"], rel=1e-5)


def test_an_image_that_only_copies_the_stage_has_no_hazard_of_its_own(cohorts):
    image = rows(cohorts["copy of stage"][1].multivariable).loc[("image risk", "per SD")]
    assert image["hr_univariable"] > 1.5
    assert image["ci_low"] < 1 < image["ci_high"]
    assert abs(np.log(image["hr"])) < 0.35
    assert image["lr_p"] > 0.05
    assert image["vif"] > 2


def test_who_lacks_a_value_is_left_out_and_named():
    clinical, image, time, event = patients()
    clinical.loc[[3, 8], "stage"] = np.nan
    clinical.loc[[8, 11], "age"] = np.nan
    found = fit_multivariable(clinical, image, time, event)
    assert found.n == 297
    assert (found.lacks[3], found.lacks[8], found.lacks[11], found.lacks[0]) == (
        "stage", "age,stage", "age", "",
    )  # fmt: skip
    assert found.notes == ["3 of 300 patients left out: 2 without age, 2 without stage"]
    table = rows(found)
    assert table.loc[("age", "per 10 years"), ["n", "missing"]].tolist() == [297, 2]
    assert table.loc["stage", "n"].sum() == 297
    assert table.loc["stage", "events"].sum() == found.events


def test_small_stages_and_those_without_an_event_are_joined():
    clinical, image, time, event = patients()
    few = np.flatnonzero(clinical["stage"] == 4)[4:]
    clinical.loc[few, "stage"] = 3.0  # four patients are left of stage IV
    event = np.where(clinical["stage"] == 1, 0, event)
    found = rows(fit_multivariable(clinical, image, time, event))
    assert list(found.loc["stage"].index) == ["I to II", "III to IV"]
    assert found.loc[("stage", "III to IV"), "reference"] == "I to II"


def test_few_events_make_one_step_per_stage_and_too_few_no_model(caplog):
    clinical, image, time, event = patients(n=45, seed=2)
    found = fit_multivariable(clinical, image, time, event)
    assert list(rows(found).loc["stage"].index) == ["per stage"]
    assert any("fewer than 10 for each" in note for note in found.notes)
    event[np.flatnonzero(event)[5:]] = 0
    found = fit_multivariable(clinical, image, time, event)
    assert found.table["hr"].dropna().eq(1).all()  # the reference alone
    assert rows(found).loc[("image risk", "per SD"), "hr_univariable"] > 0
    assert "5 events are too few for 4 coefficients (at least 8)" in caplog.text
    assert "no model" in _drawn(found)


def test_an_image_that_is_a_covariate_makes_no_model_but_says_so():
    clinical, _, time, event = patients()
    found = fit_multivariable(clinical, 3 * clinical["stage"].to_numpy() - 1, time, event)
    assert any("follows exactly from the others" in note for note in found.notes)
    image = rows(found).loc[("image risk", "per SD")]
    assert np.isnan(image["hr"])
    assert image["hr_univariable"] > 1.3
    nearly = clinical["stage"].to_numpy() + 0.1 * np.random.default_rng(0).normal(size=300)
    found = fit_multivariable(clinical, nearly, time, event)
    assert any("collinear (variance inflation above 5): " in note for note in found.notes)


def test_what_tells_no_patients_apart_is_left_out_with_its_reason():
    clinical, image, time, event = patients()
    clinical["sex"] = 0.0
    clinical.loc[:5, "sex"] = 1.0
    event[:6] = 0
    found = fit_multivariable(clinical.assign(age=60.0), image, time, event)
    assert found.notes == [
        "age is not in the model: the same for all patients of the model",
        "sex is not in the model: no event among male, so that it has no hazard ratio",
    ]
    kept = found.table.dropna(subset=["level"])["variable"].unique()
    assert list(kept) == ["stage", "image risk"]
    assert found.table.set_index("variable").loc["sex", "note"].startswith("no event among male")
    # A risk that is the same for all, as a penalty that shrinks everything away makes it.
    flat = fit_multivariable(clinical[["stage"]], np.full(300, 0.2), time, event,
                             shuffled=np.zeros((5, 300)))  # fmt: skip
    assert rows(flat).loc[("stage", "IV"), "hr"] > 1
    assert flat.table.set_index("variable").loc["image risk", "note"].startswith("the same for all")


def test_a_variable_that_separates_the_events_has_no_hazard_ratio():
    clinical, _, _, _ = patients(n=60)
    time, event = np.arange(1.0, 61), np.repeat([1, 0], 30)
    found = fit_multivariable(
        clinical[["age"]], np.repeat([1.0, 0.0], 30) - time / 1e3, time, event
    )
    assert "separates" in " ".join(found.notes) or "converge" in " ".join(found.notes)
    assert found.table["hr"].isna().all()


def _drawn(found):
    fig = adjusted_forest(found.table, found.notes, n=found.n, events=found.events)
    axes = fig.axes[0]
    words = [text.get_text() for text in axes.texts] + [fig.get_supxlabel()]
    return "\n".join([*words, *(label.get_text() for label in axes.get_yticklabels())])


def test_the_figure_says_what_the_table_does(cohorts):
    found = cohorts["own"][1].multivariable
    assert list(found.table) == COLUMNS
    drawn = _drawn(found)
    image = rows(found).loc[("image risk", "per SD")]
    assert f"{image['hr']:.2f} ({image['ci_low']:.2f}–{image['ci_high']:.2f})" in drawn
    assert f"likelihood ratio χ² {image['lr_chi2']:.2f}" in drawn
    assert "among shuffled: p = 0.05" in drawn
    assert "stage, I\n" in drawn
    assert drawn.count("reference") == 2
    nothing = fit_multivariable(pd.DataFrame(index=range(20)), None, np.arange(20.0), np.ones(20))
    assert "no variable" in _drawn(nothing)
