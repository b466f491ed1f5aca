"""Check the contents of a model folder against what its settings declare, before any use.

A folder may come from anybody. Its settings are checked against a schema and against themselves;
the arrays against the shapes that follow from the settings, by the header of their file, before
they are read; and no value may be NaN, infinite or absurdly large. Numpy only: torch for networks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import safe_open
from safetensors.numpy import load_file

from histogep.deployment.out_of_distribution import MEASURES, feature_columns
from histogep.errors import InputError
from histogep.files import given_file, read_tsv
from histogep.inputs.resources import FOLDER
from histogep.inputs.schemas import MOST_PROBLEMS, cut, mistakes, shown
from histogep.inputs.sheet_ids import refuse_formulas
from histogep.lattice import Lattice
from histogep.models import lattice
from histogep.models.preparation import VIEWS
from histogep.study.encoder_choices import block_name

#: No fitted number is this large; in float32 it leaves room for sums.
_LARGEST = 1e18
#: Logs of counts per 10,000 end at 9.2; larger predictions are not expression.
_HIGHEST_PREDICTION = 100.0
_FLOATS = ("F32", "F64")
#: Of a normalisation: how many batches it saw, an integer.
_COUNTER = "num_batches_tracked"
#: Kinds whose networks are those of `histogep.models.lattice`.
_COMMITTEES = ("lattice", "blend")

#: Shape of an array; a letter stands for one number wherever it occurs.
Shape = tuple[int | str, ...]


@cache
def _schema() -> dict[str, Any]:
    return json.loads((FOLDER / "model_folder.schema.json").read_text(encoding="utf-8"))


def check_settings(settings: Any, path: str | Path) -> None:
    """Raise InputError for settings of a model folder that no packing could have written.

    Parameters
    ----------
    settings
        Content of settings.json.
    path
        Its file, for the message.
    """
    problems = mistakes(settings, _schema(), name="settings")
    problems = problems or [cut(problem) for problem in _contradictions(settings)]
    if problems:
        raise InputError(
            "\n  ".join(
                [
                    f"{path} cannot be read as a model's settings: copy the folder again, or pack it "
                    "again",
                    *problems[: MOST_PROBLEMS + 1],
                ]
            )
        )


def _contradictions(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield what no schema can check: parts of the settings that contradict each other."""
    lattice = settings["lattice"]
    encoders = {encoder["name"]: encoder for encoder in settings["encoders"]}
    if len(encoders) < len(settings["encoders"]):
        yield "settings.encoders names an encoder twice"
    names = [name for name, _ in settings["blocks"]]
    if len(set(names)) < len(names):
        yield "settings.blocks names a block twice"
    suffixes = tuple(suffix for _, suffix in Lattice.from_settings(lattice).views if suffix)
    for name, width in settings["blocks"]:
        # Wider views of an encoder are blocks of their own.
        stems = {name, *(name.removesuffix(suffix) for suffix in suffixes)}
        known = [e for e in encoders.values() if stems & {e["name"], block_name(e["name"])}]
        if not known:
            yield f"settings.blocks: {shown(name)} belongs to none of settings.encoders"
        elif known[0].get("dim", width) != width:
            yield f"settings.blocks: {shown(name)} has {width} columns, its encoder {known[0]['dim']}"
    sections = set(settings["training_slides"])
    if set(settings.get("training_images", sections)) != sections:
        yield "settings.training_images are not those of settings.training_slides"
    for role, record in settings["models"].items():
        yield from _contradictions_of(f"settings.models.{role}", record, settings)
        allowed = ("tumour", "both") if role == "tumour" else ("expression", "both")
        if record["task"] not in allowed:
            yield f"settings.models.{role} is of task {record['task']}"
        if role == "tumour" and record.get("absent_tumour"):
            yield "settings.models.tumour has no tumour map (absent_tumour)"
    by_name: dict[str, Any] = {}
    for role, record in settings["models"].items():
        if by_name.setdefault(record["model"], record) != record:
            yield f"settings.models.{role} is another model {shown(record['model'])}"


def _contradictions_of(
    name: str, record: Mapping[str, Any], settings: Mapping[str, Any]
) -> Iterator[str]:
    for key in ("lattice", "encoders", "blocks"):
        if record[key] != settings[key]:
            yield f"{name}.{key} is not settings.{key}"
    genes = record["genes"]
    if not all(isinstance(gene, str) and gene for gene in genes):
        yield f"{name}.genes holds an entry that is not a gene name"
    elif len(set(genes)) < len(genes):
        yield f"{name}.genes names a gene twice"
    else:
        refuse_formulas(genes, f"settings.json: {name}.genes")
    if record["task"] == "tumour" and genes != ["tumour"]:
        yield f"{name}.genes of a tumour map are ['tumour']"
    if unknown := set(record["train_slides"]) - set(settings["training_slides"]):
        yield f"{name}.train_slides: {min(unknown)} is not in settings.training_slides"
    if record["kind"] == "cmunet":
        wanted = len(genes) + (record["task"] == "both")
        if record["architecture"]["n_outputs"] != wanted:
            yield f"{name}.architecture.n_outputs is not {wanted}"
    if record["kind"] in _COMMITTEES and record["architecture"]["n_outputs"] > len(genes):
        yield f"{name}.architecture.n_outputs is more than the {len(genes)} genes"
    if record["kind"] == "ensemble":
        for member, own in record["members"].items():
            yield from _contradictions_of(f"{name}.members.{member}", own, settings)
            if own["genes"] != genes or own["task"] != record["task"]:
                yield f"{name}.members.{member} predicts other genes"
        total = sum(own["weight"] for own in record["members"].values())
        if abs(total - 1) > 1e-6:
            yield f"{name}.members: their weights add up to {total:g}, not 1"


def folder_file(folder: str | Path, name: str) -> Path:
    """Return a file of a model folder.

    Raises
    ------
    InputError
        It is absent, not a plain file, or a link that leads out of the folder: its target is not
        what was packed, and may be anything.
    """
    path = Path(folder) / name
    home = Path(folder).resolve()
    if path.parent.resolve() != home or not path.resolve().is_relative_to(home):
        raise InputError(
            f"{path} leads out of the model folder: put the file itself there, or pack it again"
        )
    if not path.is_file():
        raise InputError(f"{path} is not a file: copy the model folder again, or pack it again")
    return path


def read_model_arrays(
    folder: str | Path,
    name: str,
    record: Mapping[str, Any],
    *,
    network_shapes: Callable[[Mapping[str, Any]], Mapping[str, Shape]] | None = None,
) -> dict[str, np.ndarray]:
    """Return the arrays of a model in a folder, finite and of the shapes that its settings declare.

    Parameters
    ----------
    folder, name
        Model folder, and the file in it.
    record
        Settings of the model.
    network_shapes
        Gives the shapes of a network's tensors by its architecture; it needs torch, this does not.

    Raises
    ------
    InputError
        Names the file and the array.
    """
    with given_file(Path(folder) / name, "weights"):
        wanted = model_shapes(record, network_shapes)
    parts = [array for array in wanted if "preparation." in array]
    return _read(
        folder_file(folder, name),
        wanted,
        scales={array for array in parts if array.endswith((".deviation", ".spread"))},
        optional={array for array in parts if array.endswith(".components")},
        also=lambda found: _columns_unlike(found, record),
    )


def read_distance_arrays(
    folder: str | Path, name: str, settings: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Return the arrays of `histogep.deployment.out_of_distribution.FeatureDistance`, as `read_model_arrays` does."""
    wanted: dict[str, Shape] = {}
    for number, columns in enumerate(feature_columns(settings["blocks"])):
        n, k = len(columns), f"{number}.k"
        shapes: dict[str, Shape] = {"mean": (n,), "scale": (n,), "components": (n, k)}
        shapes |= {"centre": (k,), "inverse_covariance": (k, k)}
        shapes |= {"limits": (len(MEASURES),), "tile_limits": (len(MEASURES),)}
        shapes |= {"white": (n,), "empty": (1,)}
        wanted |= {f"{number}.{name}": shape for name, shape in shapes.items()}
    path = folder_file(folder, name)
    scales = {array for array in wanted if array.endswith((".scale", "limits", ".empty"))}
    optional = {array for array in wanted if array.endswith(".white")}
    arrays = _read(path, wanted, scales=scales, optional=optional)
    for array, values in arrays.items():
        if array.endswith("limits") and not (values > 0).all():
            raise InputError(f"{path}: `{array}` holds a zero: copy the model folder again")
    return arrays


def read_genes(folder: str | Path, name: str, settings: Mapping[str, Any]) -> pd.DataFrame:
    """Return the table of the genes of a model folder, index gene.

    Raises
    ------
    InputError
        It lacks a column or a gene of a model, names one twice, or holds an invalid number.
    """
    path = folder_file(folder, name)
    with given_file(path, "the genes of a model folder"):
        genes = read_tsv(path, dtype=str, keep_default_na=False)
    again = "copy the model folder again, or pack it again"
    wanted = ["gene", "main", "extended", "predictable", "score", "null", "half_width"]
    if lacking := [column for column in wanted if column not in genes]:
        raise InputError(f"{path} has no column {', '.join(lacking)}: {again}")
    for column in ("main", "extended", "predictable"):
        lowered = genes[column].str.lower()
        if not lowered.isin(["true", "false"]).all():
            raise InputError(f"{path}: `{column}` holds neither True nor False: {again}")
        genes[column] = lowered == "true"
    for column in ("score", "null", "half_width"):
        given = genes[column].where(~genes[column].isin(["", "nan"]))
        genes[column] = pd.to_numeric(given, errors="coerce")
        bad = (
            genes[column].isna() & given.notna() | ~(genes[column].abs() < _LARGEST) & given.notna()
        )
        low = genes[column] < (0 if column == "half_width" else -1)
        if (bad | low).any():
            line = int(np.flatnonzero(bad | low)[0]) + 2
            raise InputError(f"{path} line {line}: `{column}` is not a valid number: {again}")
    records = settings["models"]
    for column, role in (("main", "expression"), ("extended", "extended")):
        members = list(records[role]["genes"]) if role in records else []
        if sorted(genes.loc[genes[column], "gene"]) != sorted(members):
            raise InputError(
                f"{path}: the genes marked `{column}` are not those of settings.models.{role}: {again}"
            )
    if genes["gene"].duplicated().any():
        raise InputError(f"{path} names a gene twice: {again}")
    return genes.set_index("gene")


def model_shapes(
    record: Mapping[str, Any],
    network_shapes: Callable[[Mapping[str, Any]], Mapping[str, Shape]] | None = None,
    prefix: str = "",
) -> dict[str, Shape]:
    """Return name -> shape of every array of a model, as its settings declare them."""
    if record["kind"] == "ensemble":
        return {
            name: shape
            for member, own in record["members"].items()
            for name, shape in model_shapes(own, network_shapes, f"{prefix}{member}/").items()
        }
    shapes: dict[str, Shape] = {}
    for name, width in record["blocks"]:
        stem = f"{prefix}preparation.{name}"
        shapes |= {f"{stem}.mean": (int(width),), f"{stem}.deviation": (int(width),)}
        for view in VIEWS:
            # Either reduced to k components, or kept whole beside the means of its neighbours.
            shapes[f"{stem}.{view}.components"] = (int(width), f"{stem}.{view}")
            for what in ("centre", "spread"):
                shapes[f"{stem}.{view}.{what}"] = (f"{stem}.{view}",)
    n = len(record["genes"])
    if record["kind"] == "cmunet":
        n += record["task"] == "both"
        shapes |= {f"{prefix}target.mean": (n,), f"{prefix}target.sd": (n,)}
        if network_shapes is None:
            raise InputError(f"model {record['model']!r} is a network, which is not read here")
        network = network_shapes(record["architecture"])
        return shapes | {
            f"{prefix}network.{name}": shape or (1,) for name, shape in network.items()
        }
    level: dict[str, Shape] = {
        f"{prefix}ridge.level": (f"{prefix}p", n),
        f"{prefix}ridge.level_mean": (f"{prefix}p",),
        f"{prefix}ridge.target_mean": (n,),
    }
    if record["kind"] in _COMMITTEES:
        made = record["architecture"]
        shapes |= level | {
            f"{prefix}lattice.scale": (made["n_inputs"],),
            f"{prefix}lattice.decoder": (made["n_networks"], made["n_outputs"], n),
        }
        if record["kind"] == "blend":
            shapes[f"{prefix}ridge.deviation"] = (f"{prefix}c", n)
        weights = lattice.network_shapes(made)
        return shapes | {f"{prefix}network.{name}": shape for name, shape in weights.items()}
    if record["task"] == "tumour":
        return shapes | {
            f"{prefix}tumour.coefficients": (f"{prefix}c",),
            f"{prefix}tumour.odds": (2,),
        }
    return shapes | level | {f"{prefix}ridge.deviation": (f"{prefix}c", n)}


def check_predicted(
    values: np.ndarray, *, slide: str, names: list[str], rows: np.ndarray, study: str
) -> None:
    """Raise InputError for predictions that are not numbers, or not log1p CP10k (or probabilities).

    Parameters
    ----------
    values
        (k, t), of some tiles.
    slide, study
        Of the message: whose tiles, and whose model.
    names
        Of the t columns.
    rows
        Index of the tiles on the slide, (k,).
    """
    bad = ~(np.abs(values) <= _HIGHEST_PREDICTION)
    if bad.any():
        tile, column = np.argwhere(bad)[0]
        raise InputError(
            f"slide {slide}: the model of study {study} predicts {values[tile, column]:g} for "
            f"{names[column]} in tile {rows[tile]} ({bad.sum()} such values among {bad.size}): its "
            "weights or the features of the slide are damaged; pack the model again, or encode the "
            "slide again"
        )


def _read(
    path: Path,
    wanted: Mapping[str, Shape],
    *,
    scales: Container[str],
    optional: Container[str] = (),
    also: Callable[[Mapping[str, tuple[int, ...]]], Iterator[str]] = lambda found: iter(()),
) -> dict[str, np.ndarray]:
    """Return the arrays of a file after checking its header, then its numbers, against `wanted`.

    Parameters
    ----------
    path
        The file; other arrays in it are ignored.
    wanted
        Name -> shape.
    scales
        Names of arrays that are never negative.
    optional
        Names of arrays that may be absent.
    also
        Returns other problems of the shapes; called where each is as wanted.
    """
    with given_file(path, "weights"), safe_open(path, framework="numpy") as file:
        parts = {name: file.get_slice(name) for name in file.keys() if name in wanted}  # noqa: SIM118
        found = {name: tuple(part.get_shape()) for name, part in parts.items()}
        kinds = {name: part.get_dtype() for name, part in parts.items()}
    problems = [f"there is no array `{n}`" for n in wanted if n not in found and n not in optional]
    problems = problems or [*_unlike(found, kinds, wanted)] or [*also(found)]
    arrays: dict[str, np.ndarray] = {}
    if not problems:
        with given_file(path, "weights"):
            arrays = {name: array for name, array in load_file(path).items() if name in wanted}
        for name, array in arrays.items():
            if not (np.abs(array) <= _LARGEST).all():
                problems.append(f"`{name}` holds NaN, infinity or a number beyond {_LARGEST:g}")
            elif name in scales and (array < 0).any():
                problems.append(f"`{name}` holds a negative scale")
    if problems:
        more = f" ({len(problems) - 1} more such arrays)" if len(problems) > 1 else ""
        raise InputError(
            cut(f"{path}: {problems[0]}{more}: copy the model folder again, or pack it again")
        )
    return arrays


def _unlike(
    found: Mapping[str, tuple[int, ...]], kinds: Mapping[str, str], wanted: Mapping[str, Shape]
) -> Iterator[str]:
    """Yield the differences between the arrays of a header and those wanted."""
    known: dict[str, int] = {}
    for name, given in found.items():
        if kinds[name] not in _FLOATS and not name.endswith(_COUNTER):
            yield f"`{name}` is of type {kinds[name]}, not float32 or float64"
        shape = tuple(
            known.setdefault(size, real) if isinstance(size, str) else size
            for size, real in zip(wanted[name], given, strict=False)
        )
        if shape != given or len(given) != len(wanted[name]) or 0 in given:
            yield f"`{name}` has shape {given}, the settings declare {wanted[name]}"


def _columns_unlike(
    found: Mapping[str, tuple[int, ...]], record: Mapping[str, Any], prefix: str = ""
) -> Iterator[str]:
    """Yield the mismatches between the columns of a preparation and those that its model reads."""
    if record["kind"] == "ensemble":
        for member, own in record["members"].items():
            yield from _columns_unlike(found, own, f"{prefix}{member}/")
        return
    own = dict.fromkeys(VIEWS, 0)
    prepared = dict.fromkeys(VIEWS, 0)
    for name, width in record["blocks"]:
        for view in VIEWS:
            stem = f"{prefix}preparation.{name}.{view}"
            # Reduced to components, or kept whole beside the means over the neighbours.
            reduced = found.get(f"{stem}.components")
            n = int(width) if reduced is None else reduced[1]
            own[view] += n
            prepared[view] += n if reduced else 2 * n
            if found[f"{stem}.centre"] != (n if reduced else 2 * n,):
                yield f"`{stem}.centre` has shape {found[f'{stem}.centre']}"
    if record["kind"] == "cmunet":
        if record["architecture"]["n_inputs"] != sum(prepared.values()):
            yield f"`{prefix}network` reads {record['architecture']['n_inputs']} columns"
        return
    if record["kind"] in _COMMITTEES and record["architecture"]["n_inputs"] != sum(own.values()):
        yield f"`{prefix}network` reads {record['architecture']['n_inputs']} columns"
    light = record["kind"] in ("neighbours", "blend")
    rings = 1 + record["choice"]["rings"] if light else 1
    if record["task"] == "tumour":
        wanted = {"tumour.coefficients": rings * sum(own.values())}
    else:
        slide = prepared["slide"] if record["kind"] == "ridge" else rings * own["slide"]
        wanted = {"ridge.deviation": slide, "ridge.level": prepared["whole"]}
        if record["kind"] == "lattice":
            del wanted["ridge.deviation"]
    for name, n in wanted.items():
        if found[f"{prefix}{name}"][0] != n:
            yield f"`{prefix}{name}` has {found[f'{prefix}{name}'][0]} rows, not {n}"
