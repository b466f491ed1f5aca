from __future__ import annotations

import functools
import itertools
from pathlib import Path

import numpy as np
import pytest
import yaml

from histogep.errors import InputError
from histogep.lattice import Lattice
from histogep.models.fit import fit_model
from histogep.models.network import lattice_fit
from histogep.models.sections import TASKS, Section
from histogep.study.model_choices import TASKS_OF, check_members, check_models
from histogep.study.settings import check_study_name, complete_settings

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = yaml.safe_load((ROOT / "config/schemas/config.schema.yaml").read_text())


def check(**given):
    settings = complete_settings({"study": "s", **given}, SCHEMA)
    rest = {name: settings[name] for name in ("deploy", "encoders", "lattice")}
    check_models(settings["models"], **rest)


@pytest.mark.parametrize("path", ["config.yaml", *(f"examples/{n}.yaml" for n in ("her2st",))])
def test_the_defaults_and_the_shipped_studies_pass(path):
    check()
    given = yaml.safe_load((ROOT / "config" / path).read_text())
    check(**{key: value for key, value in given.items() if key != "study"})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"models": {"ridge": {"task": "tumour"}}},
            r"models.ridge: kind ridge cannot learn task tumour; set kind to cmunet or neighbours, "
            "or task to expression",
        ),
        (
            {"models": {"near": {"kind": "neighbours", "task": "both"}}},
            "models.near: kind neighbours cannot learn task both; set kind to cmunet, or task to "
            "expression or tumour",
        ),
        ({"models": {"mean": {"kind": "ensemble", "task": "both", "members": ["ridge", "cmunet"]}}},
         "models.mean: kind ensemble cannot learn task both"),
        ({"models": {"ridge": {"members": ["cmunet", "extended"]}}},
         "models.ridge.members: only kind ensemble has members"),
        ({"models": {"mean": {"kind": "ensemble", "members": ["ridge"]}}}, "at least two models"),
        ({"models": {"cmunet": {"kernel": 4}}}, "models.cmunet.kernel is 4: it must be odd"),
        ({"models": {"cmunet": {"lr": 1e-6}}}, "models.cmunet.min_lr is 1e-05, above lr 1e-06"),
        ({"models": {"ridge": {"encoder_sets": [["lite0"], ["uni"]]}}},
         "models.ridge.encoder_sets names uni; `encoders` gives descriptors, lite0"),
        ({"deploy": {"expression": "forest"}}, "deploy.expression names 'forest'; the models are"),
        ({"deploy": {"extended": "tumour"}}, "deploy.extended names tumour, whose task is tumour"),
        ({"deploy": {"tumour": "ridge"}}, "name a model of task tumour or both"),
        ({"models": {name: {"panel": "extended"} for name in ("cmunet", "ridge")}},
         "none predicts the main panel; set panel to main"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_with_the_setting_and_the_remedy(given, message):
    with pytest.raises(InputError, match=message):
        check(**given)


def test_all_mistakes_of_the_models_stand_in_one_message():
    with pytest.raises(InputError) as caught:
        check(models={"ridge": {"task": "both"}, "cmunet": {"kernel": 8}}, deploy={"extended": "x"})
    assert len(str(caught.value).splitlines()) == 4


def test_wider_views_and_snapshots_may_be_chosen_and_no_model_may_be_deployed():
    check(
        encoders=[{"name": "descriptors"}, {"name": "local-dir:/weights/mine"}],
        lattice={"context_um": [112, 224]},
        models={"ridge": {"encoder_sets": [["descriptors@224um", "mine"]]}},
        deploy={"tumour": ""},
    )


@pytest.mark.parametrize(
    "deploy",
    [
        {"expression": ""},
        {"expression": "extended"},
        {"tumour": "extended"},
        {"extended": "auto"},
        {"extended": "ridge"},
    ],
)
def test_deployments_that_would_leave_a_folder_without_its_model_are_refused(deploy):
    with pytest.raises(InputError, match=f"deploy.{next(iter(deploy))} names"):
        check(deploy=deploy)


def tiny_sections(task):
    rng = np.random.default_rng(0)
    row, col = (axis.ravel() for axis in np.indices((6, 6)))
    return [
        Section(
            f"S{i}", f"P{i}", np.array([f"{i}-{j}" for j in range(36)]), row, col,
            rng.normal(size=(36, 4)).astype(np.float32), np.zeros(4, np.float32),
            np.column_stack(
                [rng.normal(size=(36, 2)), np.arange(36) % 2]
            )[:, {"expression": slice(2), "tumour": slice(2, 3), "both": slice(3)}[task]]
            .astype(np.float32),
            [("descriptors", 4)],
            [{"name": "descriptors", "sha256": "", "precision": "float32"}],
            Lattice().to_settings(),
        )
        for i in range(2)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "task"),
    [pair for pair in itertools.product(TASKS_OF, TASKS) if pair[0] not in ("cmunet", "ensemble")],
)
def test_the_table_of_tasks_is_what_the_jobs_really_learn(kind, task, monkeypatch):
    """What passes the check trains, and what it refuses would have stopped a job."""
    quick = functools.partial(lattice_fit.train_committee, steps=2, snapshots=(1, 2))
    monkeypatch.setattr(lattice_fit, "train_committee", quick)
    settings = complete_settings({"study": "s", "models": {"m": {"kind": kind}}}, SCHEMA)
    given = settings["models"]["m"] | {"task": task, "components": 2, "ranks": [0], "rings": 1}

    def fit():
        return fit_model(
            {"train": tiny_sections(task)}, name="m", settings=given, protocol="patient_cv",
            fold="patient_cv-1", genes=["G1", "G2"], seed=1, published_grid=(16, 16), test={},
        )  # fmt: skip

    if task in TASKS_OF[kind]:
        assert fit().settings["task"] == task
    else:
        with pytest.raises(InputError):
            fit()


@pytest.mark.parametrize("name", ["sections", "Sections"])
def test_a_study_cannot_take_the_folder_of_the_sections(name):
    with pytest.raises(InputError, match=f"study is '{name}'.*choose another name"):
        check_study_name(name)
    check_study_name("sections2")


def study_models(**changes):
    shared = {"task": "expression", "panel": "main", "members": []}
    models = {
        "net": shared | {"kind": "cmunet"},
        "ridge": shared | {"kind": "ridge"},
        "extended": shared | {"kind": "ridge", "panel": "extended"},
        "tumour": shared | {"kind": "cmunet", "task": "tumour"},
        "mean": shared | {"kind": "ensemble", "members": ["net", "ridge"]},
    }
    models["mean"] |= changes
    return models


def test_a_sound_ensemble_passes_and_others_are_named():
    check_members(study_models())
    for changes, message in (
        ({"members": ["net"]}, "at least two models"),
        ({"members": ["net", "net"]}, "at least two models"),
        ({"members": ["net", "forest"]}, "names 'forest'; there are net, ridge"),
        ({"members": ["net", "mean"]}, "names 'mean'"),
        ({"members": ["net", "tumour"]}, "expression models"),
        ({"members": ["net", "extended"]}, "its member extended is extended"),
    ):
        with pytest.raises(InputError, match=f"models.mean.*{message}"):
            check_members(study_models(**changes))
