from __future__ import annotations

import pytest

from histogep.errors import InputError
from histogep.models.folds import fold_names, fold_roles, split_folds

SETTINGS = {"patient_cv": "patient", "published": "section", "validation": 1}
SECTIONS = ["A1", "A2", "B1", "C1", "C2", "C3", "D1", "E1"]
PATIENTS = ["A", "A", "B", "C", "C", "C", "D", "E"]


def names(settings, patients=PATIENTS):
    return fold_names(
        n_patients=len(set(patients)), n_sections=len(patients), settings=SETTINGS | settings
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"patient_cv": 3, "published": 3},
        {"patient_cv": 2},
        {"patient_cv": 99, "published": 99},
        {"validation": 0},
    ],
)
def test_the_names_promised_at_parse_time_are_the_folds_written(settings):
    folds = split_folds(SECTIONS, PATIENTS, settings=SETTINGS | settings, seed=1)
    assert list(folds["fold"].unique()) == names(settings)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("patient_cv", ["patient", 2, 3, 4])
@pytest.mark.parametrize("validation", [0, 1, 2, 9])
def test_no_patient_has_two_roles_in_an_honest_fold(seed, patient_cv, validation):
    settings = SETTINGS | {"patient_cv": patient_cv, "validation": validation}
    folds = split_folds(SECTIONS, PATIENTS, settings=settings, seed=seed)
    patient_cv_folds = folds[folds["protocol"] == "patient_cv"]
    roles = patient_cv_folds.groupby(["fold", "patient"])["role"].nunique()
    assert (roles == 1).all()
    # Every section is tested exactly once, and every fold trains on at least two patients or all.
    assert (patient_cv_folds[patient_cv_folds["role"] == "test"]["slide"].value_counts() == 1).all()
    assert set(patient_cv_folds[patient_cv_folds["role"] == "test"]["slide"]) == set(SECTIONS)
    training = (
        patient_cv_folds[patient_cv_folds["role"] == "train"].groupby("fold")["patient"].nunique()
    )
    assert training.min() >= 2
    assert len(training) == patient_cv_folds["fold"].nunique()


def test_every_patient_validates_once_when_one_is_left_out_at_a_time():
    folds = split_folds(SECTIONS, PATIENTS, settings=SETTINGS, seed=1)
    validating = folds[folds["role"] == "validation"].groupby("fold")["patient"].unique()
    assert sorted(patient for group in validating for patient in group) == sorted(set(PATIENTS))
    assert not (folds[folds["protocol"] != "patient_cv"]["role"] == "validation").any()


def test_with_two_training_patients_none_is_taken_away_to_validate():
    folds = split_folds(list("abc"), list("ABC"), settings=SETTINGS, seed=1)
    assert "validation" not in set(folds["role"])


def test_folds_are_even_and_follow_the_seed():
    patients = [f"P{i}" for i in range(20)]
    settings = SETTINGS | {"patient_cv": 4, "published": 5}
    first = split_folds(patients, patients, settings=settings, seed=1)
    tested = first[first["role"] == "test"]
    assert tested.groupby("fold").size().to_dict() == {
        **{f"patient_cv-{i}": 5 for i in range(1, 5)},
        **{f"published-{i}": 4 for i in range(1, 6)},
    }
    assert first.equals(split_folds(patients, patients, settings=settings, seed=1))
    assert not first.equals(split_folds(patients, patients, settings=settings, seed=2))


def test_large_patients_do_not_share_a_fold():
    sections = [f"{p}{i}" for p in "XY" for i in range(6)] + ["Z0", "W0"]
    folds = split_folds(
        sections, [s[0] for s in sections], settings=SETTINGS | {"patient_cv": 2}, seed=3
    )
    tested = folds[(folds["protocol"] == "patient_cv") & (folds["role"] == "test")]
    assert tested.groupby("fold").size().tolist() == [7, 7]


def test_the_paper_splits_patients_over_roles():
    folds = split_folds(SECTIONS, PATIENTS, settings=SETTINGS, seed=1)
    roles = folds[folds["protocol"] == "published"].groupby(["fold", "patient"])["role"].nunique()
    assert (roles > 1).any()


def test_one_patient_cannot_be_held_out():
    with pytest.raises(InputError, match="1 patient.*at least 2"):
        split_folds(["a", "b"], ["P", "P"], settings=SETTINGS, seed=1)
    assert fold_names(n_patients=0, n_sections=0, settings=SETTINGS) == []


@pytest.mark.parametrize(
    "settings", [{"patient_cv": 1}, {"published": 0}, {"patient_cv": "section"}]
)
def test_an_impossible_number_of_folds_is_refused(settings):
    with pytest.raises(InputError, match=f"folds.{next(iter(settings))}"):
        names(settings)


def test_repeated_sections_and_sections_without_patient_are_named():
    with pytest.raises(InputError, match="more than once: a"):
        split_folds(["a", "a", "b"], ["P", "P", "Q"], settings=SETTINGS, seed=1)
    with pytest.raises(InputError, match="no patient for the sections b"):
        split_folds(["a", "b"], ["P", " "], settings=SETTINGS, seed=1)


def test_roles_of_one_fold():
    folds = split_folds(SECTIONS, PATIENTS, settings=SETTINGS, seed=1)
    roles = fold_roles(folds, "patient_cv-1")
    assert roles["test"] == {"A1": "A", "A2": "A"}
    assert set(roles["train"]) | set(roles["validation"]) == set(SECTIONS) - {"A1", "A2"}
    with pytest.raises(InputError, match="no fold 'patient_cv-9'"):
        fold_roles(folds, "patient_cv-9")
