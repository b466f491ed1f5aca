"""Check the setting `encoders`, and derive what follows from it before a slide is encoded.

Names and files only, without torch: planning reads this too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from histogep.errors import InputError, suggestion

# Of a study that applies a model alone; every job of a cluster parses the workflow.
if TYPE_CHECKING:
    from histogep.lattice import Lattice

#: Name of the encoder that is not a network.
DESCRIPTORS = "descriptors"
#: Prefix of the folder of a timm snapshot, and its files; the first weights that exist are read.
LOCAL_PREFIX = "local-dir:"
LOCAL_CONFIG = "config.json"
LOCAL_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
PRECISIONS = ("auto", "float32", "bfloat16")
#: The encoders by name, and which of them need a file of weights (`histogep.encoders.registry` has the
#: rest of what is known of them).
_FREE = (DESCRIPTORS, "lite0")
_GATED = (
    *("resnet50", "ctranspath", "phikon", "phikon-v2", "uni", "uni2-h", "virchow", "virchow2"),
    "h-optimus-0",
)


def check_encoders(encoders: Sequence[Mapping[str, Any]]) -> None:
    """Check names and files of weights of the setting `encoders`, complete.

    Raises
    ------
    InputError
        Every encoder that cannot be loaded, one line each. File contents are checked on loading.
    """
    problems = []
    for encoder in encoders:
        name, weights = str(encoder["name"]), encoder.get("weights")
        if encoder.get("precomputed"):
            continue
        if name.startswith(LOCAL_PREFIX):
            if not Path(name.removeprefix(LOCAL_PREFIX)).is_dir():
                problems.append(f"{name}: there is no such folder")
        elif name not in (*_FREE, *_GATED):
            known = (*_FREE, *_GATED, LOCAL_PREFIX + "FOLDER")
            problems.append(f"{name!r} is unknown{suggestion(name, known)}")
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
        if name.startswith(LOCAL_PREFIX):
            folder = Path(name.removeprefix(LOCAL_PREFIX))
            parts = (folder / part for part in (LOCAL_CONFIG, *LOCAL_WEIGHTS))
            files += [str(part) for part in parts if part.is_file()]
        elif encoder.get("weights"):
            files.append(str(encoder["weights"]))
    return files


def exported_encoders(encoders: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the settings of the networks that OpenVINO runs on a CPU, by the names of their blocks.

    Those requested in bfloat16 are not among them: torch runs these on every device.
    """
    return {
        block_name(encoder["name"]): dict(encoder)
        for encoder in encoders
        if encoder["name"] != DESCRIPTORS
        and not encoder.get("precomputed")
        and encoder.get("precision") != "bfloat16"
    }


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
    from histogep.lattice import Lattice

    given = block_names(encoders, Lattice.from_settings(model["lattice"]))
    if given != list(trained):
        raise InputError(
            f"encoders: {' + '.join(given)} given, but the model of `model` reads "
            f"{' + '.join(trained)}: set `encoders` to those"
        )
    applied = []
    for encoder in encoders:
        wanted = trained[block_name(encoder["name"])]
        # Descriptors have one precision only, and features from elsewhere the one they have.
        if encoder["name"] != DESCRIPTORS and not encoder.get("precomputed"):
            if encoder["precision"] not in ("auto", wanted):
                raise InputError(
                    f"encoders: {encoder['name']} has precision {encoder['precision']}, but the "
                    f"model of `model` learned from features in {wanted}: set it to that or auto"
                )
            encoder = {**encoder, "precision": wanted}
        applied.append(dict(encoder))
    return applied


def block_names(encoders: Sequence[Mapping[str, Any]], lattice: Lattice) -> list[str]:
    """Return the names of the blocks of features; a precomputed one has no wider views."""
    return [
        block_name(encoder["name"]) + suffix
        for _, suffix in lattice.views
        for encoder in encoders
        if not (suffix and encoder.get("precomputed"))
    ]


def block_name(encoder: str) -> str:
    """Return the name of the features of an encoder: that of its folder for a snapshot."""
    return PurePath(encoder).name if encoder.startswith(LOCAL_PREFIX) else encoder
