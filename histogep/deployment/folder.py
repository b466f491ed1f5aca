"""The model folder as a file format: its settings, its digest, and the features it accepts.

settings.json holds all that is needed beside the arrays; `digest` in it is the SHA-256 of every
other file and of the settings themselves, so a changed folder is noticed. Numpy only: no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from histogep.deployment.arrays import check_settings, folder_file
from histogep.encoders.feature_file import Features
from histogep.errors import InputError
from histogep.files import file_sha256
from histogep.lattice import Lattice
from histogep.models.preparation import Tiles

FORMAT = 3
SETTINGS = "settings.json"
GENES = "genes.tsv"
DISTANCE = "training_features.safetensors"
#: Keypoints of the images of the training sections.
KEYPOINTS = "training_images.parquet"
#: Bytes; the settings of a model of 20,000 genes have some MB.
_LARGEST_SETTINGS = 100_000_000
_DECLARED = {"digest": str, "lattice": dict, "encoders": list, "models": dict}


def folder_digest(folder: str | Path, settings: Mapping[str, Any]) -> str:
    """Return the SHA-256 over the files of a model folder and its settings without the digest."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).iterdir()):
        if path.is_file() and path.name != SETTINGS and not path.name.startswith("."):
            sha256 = file_sha256(folder_file(folder, path.name))
            digest.update(f"{path.name} {sha256}\n".encode())
    plain = {key: value for key, value in settings.items() if key != "digest"}
    digest.update(json.dumps(plain, sort_keys=True).encode())
    return digest.hexdigest()


def declared_settings(folder: str | Path) -> dict[str, Any]:
    """Return the settings that a model folder declares, for planning: no other file is read.

    Raises
    ------
    InputError
        No such folder, another format, or a settings.json that `package_model` did not write.
    """
    settings = _parsed(folder)
    check_settings(settings, Path(folder) / SETTINGS)
    return settings


def _parsed(folder: str | Path) -> dict[str, Any]:
    """Return settings.json of a format that this version reads; its contents are not checked."""
    path = Path(folder) / SETTINGS
    if not path.is_file():
        raise InputError(f"{folder} holds no {SETTINGS}: it is not a model folder of package_model")
    path = folder_file(folder, SETTINGS)
    try:
        if path.stat().st_size > _LARGEST_SETTINGS:
            raise ValueError(f"it has {path.stat().st_size:,} bytes")
        text = path.read_text(encoding="utf-8")
        settings = json.loads(text, parse_constant=_no_number, object_pairs_hook=_once)
        version = settings["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as a model's settings ({error})") from error
    if version != FORMAT:
        raise InputError(
            f"{folder} is a model folder of format {version}, this version reads {FORMAT}: run the "
            "study that made it again with this version, or apply it with the version that packed it"
        )
    if lacking := [
        key for key, kind in _DECLARED.items() if not isinstance(settings.get(key), kind)
    ]:
        raise InputError(
            f"{path} cannot be read as a model's settings (no {', '.join(lacking)}): give `model` "
            "a folder that package_model wrote"
        )
    return settings


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is not a number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON in which each key occurs once."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key is given twice")
    return content


def read_settings(folder: str | Path) -> dict[str, Any]:
    """Return the settings of a model folder, after checking that the folder is whole.

    Raises
    ------
    InputError
        As `declared_settings`, or files that differ from those that were packed.
    """
    settings = _parsed(folder)
    if folder_digest(folder, settings) != settings["digest"]:
        raise InputError(
            f"the files of {folder} are not those that were packed (digest "
            f"{settings['digest'][:12]}): copy the folder again, or pack it again"
        )
    check_settings(settings, Path(folder) / SETTINGS)
    return settings


def weights_file(settings: Mapping[str, Any], role: str) -> str:
    """Return the file of a role's weights; roles that share a model share its file."""
    name = settings["models"][role]["model"]
    first = next(r for r, record in settings["models"].items() if record["model"] == name)
    return f"{first}.safetensors"


def columns_of(record: Mapping[str, Any], role: str) -> slice:
    """Return which outputs of a model serve a role: of both tasks the tumour is the last."""
    if record["task"] != "both":
        return slice(None)
    return slice(-1, None) if role == "tumour" else slice(None, -1)


def check_features(features: Features | Any, settings: Mapping[str, Any]) -> None:
    """Raise InputError unless a slide was encoded as the model's training slides were.

    `features` may be anything that has slide, row, encoders, blocks and lattice (a `Section` too).
    """
    name = f"slide {features.slide}"
    wanted, given = settings["encoders"], features.encoders
    if [e["name"] for e in given] != [e["name"] for e in wanted]:
        raise InputError(
            f"{name} was encoded with {_listed(given)}, the model reads {_listed(wanted)}: set "
            "`encoders` to those of the model and run encode_tiles again"
        )
    for mine, trained in zip(given, wanted, strict=True):
        if mine["sha256"] != trained["sha256"]:
            raise InputError(
                f"{name} was encoded with other weights of {mine['name']} (sha256 "
                f"{str(mine['sha256'])[:12]}) than the model's ({str(trained['sha256'])[:12]}): "
                "give `encoders` the model's weights"
            )
        if mine["precision"] != trained["precision"]:
            raise InputError(
                f"{name} was encoded with {mine['name']} in {mine['precision']}, the model learned "
                f"from features in {trained['precision']}: set `precision` in `encoders` to that "
                "and run encode_tiles again"
            )
    if [list(block) for block in features.blocks] != [list(b) for b in settings["blocks"]]:
        raise InputError(
            f"{name} has feature blocks {features.blocks}, the model {settings['blocks']}: run "
            "encode_tiles again"
        )
    if Lattice.from_settings(features.lattice) != Lattice.from_settings(settings["lattice"]):
        raise InputError(
            f"{name} was cut on the lattice {features.lattice}, the model's is "
            f"{settings['lattice']}: set `lattice` to the model's and run tile_slide again"
        )
    if not len(features.row):
        raise InputError(f"{name} has no tile with tissue: check its mask in results/tiles")


def tiles_of(features: Features) -> Tiles:
    """Return the features of all tiles of a slide with their places."""
    return Tiles(features.values, features.row, features.col)


def _listed(encoders: list[dict[str, Any]]) -> str:
    return " + ".join(str(encoder["name"]) for encoder in encoders) or "nothing"
