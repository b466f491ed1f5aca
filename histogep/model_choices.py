"""What the settings of the models may say together: checked before any job is planned.

The schema knows each setting alone. Here stand the combinations that no training could follow, so
that they are told at once and not by a job, after hours of encoding.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from histogep.jobs import InputError
from histogep.lattice import Lattice

#: What each kind of model can learn.
TASKS_OF = {
    "cmunet": ("expression", "tumour", "both"),
    "ridge": ("expression",),
    "neighbours": ("expression", "tumour"),
    "ensemble": ("expression",),
}

#: The encoders by name, and which of them need a file of weights. Here as names, since a plan does
#: without torch, which `histogep.encoder_specs` imports.
_FREE = ("descriptors", "lite0")
_GATED = (
    *("resnet50", "ctranspath", "phikon", "phikon-v2", "uni", "uni2-h", "virchow", "virchow2"),
    "h-optimus-0",
)
#: What features are computed in; those from elsewhere are as they were given.
_COMPUTED = ("float32", "bfloat16")

#: What may stand for the name of a deployed model: the best by inner folds, or none.
_UNNAMED = {"expression": ("auto",), "tumour": ("auto", ""), "wide": ("",)}


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
    blocks = _block_names(encoders, Lattice.from_settings(lattice))
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


def check_encoders(encoders: Sequence[Mapping[str, Any]]) -> None:
    """Check names and files of weights of the setting `encoders`, complete.

    Raises
    ------
    InputError
        All that cannot be loaded, one line each. What is in the files is looked at when they are.
    """
    problems = []
    for encoder in encoders:
        name, weights = str(encoder["name"]), encoder.get("weights")
        if encoder.get("precomputed"):
            continue
        if name.startswith("local-dir:"):
            if not Path(name.removeprefix("local-dir:")).is_dir():
                problems.append(f"{name}: there is no such folder")
        elif name not in (*_FREE, *_GATED):
            close = difflib.get_close_matches(name.lower(), (*_FREE, *_GATED), n=1)
            meant = f"did you mean {close[0]!r}? " if close else ""
            problems.append(
                f"{name!r} is unknown; {meant}known are {', '.join((*_FREE, *_GATED))} "
                "and local-dir:FOLDER"
            )
        elif weights is None and name in _GATED:
            problems.append(
                f"{name} needs its file of weights, which is not free to ship: name it in `weights`"
            )
        elif weights is not None and not Path(weights).is_file():
            problems.append(f"{name}: the file of weights {weights} does not exist")
    if problems:
        raise InputError("these encoders cannot be loaded:\n  " + "\n  ".join(problems))


def weights_files(encoders: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the files of weights that the setting `encoders` names, and those of local folders."""
    files = []
    for encoder in encoders:
        name = str(encoder["name"])
        if encoder.get("precomputed"):
            continue
        if name.startswith("local-dir:"):
            folder = Path(name.removeprefix("local-dir:"))
            known = ("config.json", "model.safetensors", "pytorch_model.bin")
            files += [str(folder / part) for part in known if (folder / part).is_file()]
        elif encoder.get("weights"):
            files.append(str(encoder["weights"]))
    return files


def applied_encoders(
    model: Mapping[str, Any], encoders: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return the setting `encoders` of a study that applies a model, precisions as in training.

    Parameters
    ----------
    model
        Settings of the model folder.
    encoders
        The complete setting; a precision of "auto" becomes the one the model's features were
        computed in, wherever that was.

    Raises
    ------
    InputError
        Other encoders than the model's, or another precision. Whether their weights are the same
        is known once slides are encoded (`model_folder.check_features`).
    """
    trained = {encoder["name"]: encoder.get("precision") for encoder in model["encoders"]}
    given = _block_names(encoders, Lattice.from_settings(model["lattice"]))
    if given != list(trained):
        raise InputError(
            f"encoders: {' + '.join(given)} given, but the model of `model` reads "
            f"{' + '.join(trained)}: set `encoders` to those"
        )
    applied = []
    for encoder in encoders:
        wanted = trained[_block(encoder["name"])]
        computed = encoder["name"] != "descriptors" and not encoder.get("precomputed")
        if wanted in _COMPUTED and computed:
            if encoder["precision"] not in ("auto", wanted):
                raise InputError(
                    f"encoders: {encoder['name']} has precision {encoder['precision']}, but the "
                    f"model of `model` learned from features in {wanted}: set it to that or auto"
                )
            encoder = {**encoder, "precision": wanted}
        applied.append(dict(encoder))
    return applied


def _block_names(encoders: Sequence[Mapping[str, Any]], lattice: Lattice) -> list[str]:
    """Return the names of the blocks of features; a precomputed one has no wider views."""
    return [
        _block(str(encoder["name"])) + suffix
        for _, suffix in lattice.views
        for encoder in encoders
        if not (suffix and encoder.get("precomputed"))
    ]


def _block(encoder: str) -> str:
    """Return what the features of an encoder are called: those of a snapshot, as its folder."""
    return PurePath(encoder).name if encoder.startswith("local-dir:") else encoder


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
        panel = "wide" if role == "wide" else "main"
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
