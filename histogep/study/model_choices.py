"""Check which combinations of model settings are possible, before any job is planned.

The schema checks each setting alone. Here are the combinations that cannot be trained, so that they
are reported at once and not by a job, after hours of encoding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from histogep.errors import InputError
from histogep.lattice import Lattice
from histogep.study.encoder_choices import block_names

#: What each kind of model can learn.
TASKS_OF = {
    "cmunet": ("expression", "tumour", "both"),
    "ridge": ("expression",),
    "neighbours": ("expression", "tumour"),
    "lattice": ("expression",),
    "blend": ("expression",),
    "ensemble": ("expression",),
}

#: Values in place of the name of a deployed model: the best by inner folds, or none.
_UNNAMED = {"expression": ("auto",), "tumour": ("auto", ""), "extended": ("",)}


def check_models(
    models: Mapping[str, Mapping[str, Any]],
    *,
    deploy: Mapping[str, str],
    encoders: Sequence[Mapping[str, Any]],
    lattice: Mapping[str, Any],
) -> None:
    """Check the settings of a study's models against each other.

    Parameters
    ----------
    models, deploy, encoders, lattice
        The complete settings of these names.

    Raises
    ------
    InputError
        All impossible combinations, one line each, with the setting and the remedy.
    """
    blocks = block_names(encoders, Lattice.from_settings(lattice))
    problems = [
        problem
        for name, choices in models.items()
        for problem in _of_one(f"models.{name}", choices, blocks)
    ]
    problems += _of_deployment(models, deploy)
    if problems:
        raise InputError("these models cannot be trained:\n  " + "\n  ".join(problems))
    check_members(models)


def check_members(models: Mapping[str, Mapping[str, Any]]) -> None:
    """Check the ensembles among the models of a study.

    Raises
    ------
    InputError
        Naming the ensemble and what its members lack.
    """
    for name, choices in models.items():
        if choices["kind"] != "ensemble":
            continue
        members = choices["members"]
        if len(set(members)) < 2:
            raise InputError(f"models.{name}.members: name at least two models to average")
        for member in members:
            if member not in models or models[member]["kind"] == "ensemble":
                known = ", ".join(m for m, c in models.items() if c["kind"] != "ensemble")
                raise InputError(f"models.{name}.members names {member!r}; there are {known}")
            other = models[member]
            if choices["task"] != "expression" or other["task"] != "expression":
                raise InputError(f"models.{name}: an ensemble is of expression models")
            if other["panel"] != choices["panel"]:
                raise InputError(
                    f"models.{name}: its panel is {choices['panel']}, that of its member {member} "
                    f"is {other['panel']}"
                )


def _of_one(place: str, choices: Mapping[str, Any], blocks: Sequence[str]) -> Iterator[str]:
    kind, task = choices["kind"], choices["task"]
    if task not in TASKS_OF[kind]:
        able = [other for other, tasks in TASKS_OF.items() if task in tasks]
        yield (
            f"{place}: kind {kind} cannot learn task {task}; set kind to {' or '.join(able)}, or "
            f"task to {' or '.join(TASKS_OF[kind])}"
        )
    if kind != "ensemble" and choices["members"]:
        yield f"{place}.members: only kind ensemble has members, this is {kind}; leave them out"
    if kind == "cmunet" and choices["kernel"] % 2 == 0:
        yield f"{place}.kernel is {choices['kernel']}: it must be odd"
    if kind == "cmunet" and choices["min_lr"] > choices["lr"]:
        yield (
            f"{place}.min_lr is {choices['min_lr']:g}, above lr {choices['lr']:g}: the rate must fall"
        )
    for part in choices["encoder_sets"]:
        unknown = [name for name in part if name not in blocks]
        if unknown:
            yield (
                f"{place}.encoder_sets names {', '.join(unknown)}; `encoders` gives "
                f"{', '.join(blocks)}"
            )


def _of_deployment(
    models: Mapping[str, Mapping[str, Any]], deploy: Mapping[str, str]
) -> Iterator[str]:
    main = [c for c in models.values() if c["panel"] == "main" and c["task"] != "tumour"]
    if not main:
        yield "models: none predicts the main panel; set panel to main for an expression model"
    for role, name in deploy.items():
        if name in _UNNAMED[role]:
            continue
        task = "tumour" if role == "tumour" else "expression"
        panel = "extended" if role == "extended" else "main"
        if name not in models:
            yield f"deploy.{role} names {name!r}; the models are {', '.join(models)}"
        elif models[name]["task"] not in (task, "both"):
            yield (
                f"deploy.{role} names {name}, whose task is {models[name]['task']}; name a model of "
                f"task {task} or both"
            )
        elif models[name]["panel"] != panel:
            yield (
                f"deploy.{role} names {name}, whose panel is {models[name]['panel']}; name a model "
                f"of panel {panel}"
            )
