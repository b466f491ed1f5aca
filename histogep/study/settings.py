"""Check the configuration strictly, fill in defaults, and report every mistake in one message."""

from __future__ import annotations

import copy
import difflib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from histogep.errors import InputError, suggestion
from histogep.files import given_file
from histogep.inputs.schemas import MOST_PROBLEMS, check_size, cut, mistakes, said, shown
from histogep.inputs.sheet_ids import clashing_keys, refused_name

#: Names under results/ that a study cannot take: results/genes/sections is of all studies.
RESERVED = ("sections",)
#: Types of JSON Schema that take a value of YAML.
_KINDS = {
    dict: ("object",),
    list: ("array",),
    str: ("string",),
    bool: ("boolean",),
    int: ("integer", "number"),
    float: ("number",),
}
#: Settings of earlier versions, and what to do about each.
REMOVED = {
    "cnv.engine": "infercnvpy makes all profiles, measured and predicted: take the line out",
    "cnv.clone_method": "Leiden divides the clones of every slide: take the line out",
    "deploy.wide": "it is now deploy.extended",
    "folds.hist": "it is now folds.published",
    "folds.hist_grid": "it is now folds.published_grid",
    "folds.honest": "it is now folds.patient_cv",
    "genes.wide_max_genes": "it is now genes.extended_max_genes",
    "genes.wide_min_detected": "it is now genes.extended_min_detected",
    "maps.hist": "it is now maps.published",
    "summary.max_distant": "it is now summary.max_out_of_distribution",
}


def complete_settings(
    settings: dict[str, Any],
    schema: dict[str, Any],
    *,
    name: str = "config",
    source: str = "the configuration",
) -> dict[str, Any]:
    """Return the settings with the schema's defaults, after checking them against it.

    Parameters
    ----------
    settings
        What the user wrote.
    schema
        A JSON Schema (2020-12) whose objects are closed and whose keys have defaults.
    name
        Name of the settings in the message.
    source
        Where they come from, for the message: the names of their files.

    Raises
    ------
    InputError
        All that is wrong with the settings, one line each, with the likely intended key.
    """
    check_size(settings, name=source)
    completed = _leave_out(_with_defaults(copy.deepcopy(settings), schema, schema), schema)

    def explain(error: Any) -> str:
        return _explain(error, schema)

    if problems := mistakes(completed, schema, name=name, explain=explain):
        raise InputError("\n  ".join([f"{source} has mistakes:", *problems]))
    return completed


def check_names(settings: dict[str, Any]) -> None:
    """Raise InputError for names of a study that would clash, or that Snakemake refuses.

    Parameters
    ----------
    settings
        From `complete_settings`.
    """
    study = settings["study"]
    if why := refused_name(study):
        raise InputError(f"study {study!r} {why}")
    if problems := clashing_keys(
        {
            "models": settings["models"],
            "measured": settings["measured"],
            "references.gene_sets": settings["references"]["gene_sets"],
        }
    ):
        raise InputError("\n  ".join(["names of the configuration clash:", *problems]))
    check_study_name(study)


def check_study_name(study: str) -> None:
    """Raise InputError where a study's folders would clash with others."""
    # Some file systems treat a and A as one letter.
    if study.casefold() in RESERVED:
        raise InputError(
            f"study is {study!r}, but results/genes/{study} holds the sections' gene scores: choose "
            "another name"
        )


def refuse_repeated_keys(path: str | Path) -> None:
    """Raise InputError for what YAML silently reads as something else.

    It keeps the last of two equal keys, and reads 010 as 8 and 12:30 as 750. Also for a file that
    is not YAML or not UTF-8.
    """
    try:
        with given_file(path, "a configuration"):
            yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_StrictLoader)
    except InputError as error:
        if isinstance(error.__cause__, _MisreadError):
            raise InputError(f"{path}: {error.__cause__}") from None
        if isinstance(error.__cause__, yaml.YAMLError):
            told = " ".join(str(error.__cause__).split())
            raise InputError(cut(f"{path}: not readable as YAML ({told})")) from None
        raise


class _MisreadError(Exception):
    pass


class _StrictLoader(yaml.SafeLoader):
    pass


def _strict_mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[Any, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            continue  # a list or an object, which is not a key that a configuration has
        if key.value in seen:
            name = shown(key.value)
            raise _MisreadError(
                f"key {name} on line {seen[key.value]} and line {line}; keep one of them"
            )
        seen[key.value] = line
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


def _plain_number(loader: _StrictLoader, node: yaml.ScalarNode) -> float:
    whole = node.tag.endswith(":int")
    number = (loader.construct_yaml_int if whole else loader.construct_yaml_float)(node)
    if ":" in node.value or (whole and re.match(r"[-+]?0[0-9xob_]", node.value)):
        line = node.start_mark.line + 1
        raise _MisreadError(
            f"line {line}: YAML reads {shown(node.value)} as {number}: write the number plainly, or "
            "text in quotes"
        )
    return number


for _tag in ("int", "float"):
    _StrictLoader.add_constructor(f"tag:yaml.org,2002:{_tag}", _plain_number)
_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _strict_mapping)


def _with_defaults(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> Any:
    """Fill the defaults of `schema` into `value`, nested objects included."""
    schema = _resolve(schema, root)
    if isinstance(value, dict):
        for key, part in schema.get("properties", {}).items():
            part = _resolve(part, root)
            if key not in value and "default" in part:
                value[key] = copy.deepcopy(part["default"])
            if key in value:
                value[key] = _with_defaults(value[key], part, root)
        extra = schema.get("additionalProperties")
        others = sorted(value.keys() - schema.get("properties", {}).keys(), key=str)
        if isinstance(extra, dict):
            for key in others:
                value[key] = _with_defaults(value[key], extra, root)
        # One order, whatever the file's: Snakemake compares parameters with their order.
        known = [key for key in schema.get("properties", {}) if key in value]
        value = {key: value[key] for key in (*known, *others)}
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        value = [_with_defaults(item, schema["items"], root) for item in value]
    return value


def _leave_out(completed: Any, schema: dict[str, Any]) -> Any:
    """Take the models out that are there by default and that the user set to null.

    Where the model of the extended panel is one of them, none is deployed.
    """
    models = completed.get("models") if isinstance(completed, dict) else None
    by_default = schema.get("properties", {}).get("models", {}).get("properties", {})
    if isinstance(models, dict):
        left_out = [name for name in by_default if name in models and models[name] is None]
        for model in left_out:
            del models[model]
        deploy = completed.get("deploy")
        if isinstance(deploy, dict) and deploy.get("extended") in left_out:
            deploy["extended"] = ""
    return completed


def _resolve(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """Follow a local `$ref`; keys beside it win over those of its target."""
    if "$ref" not in schema:
        return schema
    target: Any = root
    for key in schema["$ref"].removeprefix("#/").split("/"):
        target = target[key]
    beside = {key: value for key, value in schema.items() if key != "$ref"}
    properties = {**target.get("properties", {}), **beside.get("properties", {})}
    return {**target, **beside, "properties": properties}


def _explain(error: Any, schema: dict[str, Any]) -> str:
    if error.validator == "additionalProperties":
        known = list(error.schema.get("properties", {}))
        unknown = sorted(error.instance.keys() - set(known), key=str)
        place = [str(part) for part in error.absolute_path]
        return "; ".join(
            f"{shown(key)} is gone: {removed}"
            if (removed := REMOVED.get(".".join([*place, str(key)])))
            else f"unknown key {shown(key)}{_meant(str(key)[:80], known, place, schema)}"
            for key in unknown[:MOST_PROBLEMS]
        )
    if error.validator == "enum" and "propertyNames" in error.absolute_schema_path:
        return (
            f"unknown key {shown(error.instance)}{suggestion(error.instance, error.validator_value)}: "
            "write {name here: name in your file}"
        )
    if error.validator == "type":
        path = [str(part) for part in error.absolute_path]
        if path[:-1] == ["models"] and error.instance is None:
            known = schema["properties"]["models"]["properties"]
            return (
                f"null leaves a default model out, and this is none{suggestion(path[-1], [*known])}"
            )
        twin = _twin(path, error.instance, schema)
        return f"{said(error)}{twin or _remedy(error.instance, error.validator_value)}"
    if error.validator == "pattern" and error.validator_value.startswith(
        "^[A-Za-z0-9][A-Za-z0-9_-]"
    ):
        return f"{said(error)}: write letters, digits, '_' and '-', the first a letter or digit"
    return said(error)


def _meant(key: str, known: list[str], place: list[str], schema: dict[str, Any]) -> str:
    """Return which key was probably meant: one of this place, or one of its name elsewhere."""
    near = suggestion(key, known)
    here = ".".join(place)
    elsewhere = [
        path
        for path, _ in _leaves(schema, schema, "")
        if path.rpartition(".")[2] == key.lower() and path.rpartition(".")[0] != here
    ]
    if not near.startswith(" (known") or not elsewhere:
        return near
    return f", did you mean {' or '.join(map(repr, elsewhere[:3]))}?"


def _twin(path: list[str], given: Any, schema: dict[str, Any]) -> str:
    """Return the neighbouring key of nearly the same name that takes such a value, "" for none."""
    parent = schema
    for key in path[:-1]:
        parent = _resolve(parent, schema)
        parent = parent.get("properties", {}).get(key) or parent.get("additionalProperties")
        if not isinstance(parent, dict):
            return ""
    siblings = _resolve(parent, schema).get("properties", {}) if path else {}
    others = [key for key in siblings if key != path[-1]]
    for other in difflib.get_close_matches(path[-1], others, n=3, cutoff=0.8) if path else ():
        kinds = _resolve(siblings[other], schema).get("type", [])
        kinds = [kinds] if isinstance(kinds, str) else kinds
        if any(kind in kinds for kind in _KINDS.get(type(given), ())):
            return f", did you mean {other!r}?"
    return ""


def _remedy(given: Any, kinds: str | list[str]) -> str:
    """Return what to write in place of a value of another type."""
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if isinstance(given, str) and re.match(r"[-+]?[0-9.]+e[-+]?[0-9]+$", given, re.IGNORECASE):
        return " (YAML reads 1e-3 as text: write 1.0e-3 or 0.001)"
    if "integer" in kinds and isinstance(given, float) and given.is_integer():
        return f" (write {int(given)})" if abs(given) < 1e15 else ""
    if isinstance(given, bool) and "string" in kinds:
        return " (YAML reads yes, no, on and off as true and false: put it in quotes)"
    if not isinstance(given, (str, list, dict)) and given is not None and "string" in kinds:
        return " (put it in quotes)"
    if "array" in kinds:
        return " (a list: write [...], or lines that begin with '- ')"
    if "object" in kinds:
        return " (keys with values: write {name: value}, or indented lines `name: value`)"
    return ""


def describe_settings(schema: dict[str, Any]) -> str:
    """Return every key of a schema as rows of a Markdown table: key, values, default, meaning.

    `config/README.md` holds its output, and a test compares the two.
    """
    rows = ["| key | values | default | meaning |", "|---|---|---|---|"]
    rows += [
        f"| `{key}` | {_values(part)} | {_default(part)} | {part['description'].strip()} |"
        for key, part in _leaves(schema, schema, "")
    ]
    return "\n".join(rows) + "\n"


def _leaves(
    schema: dict[str, Any], root: dict[str, Any], prefix: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each documented key with its schema; a shared definition is given once as NAME."""
    for key, part in schema.get("properties", {}).items():
        if "$ref" not in part:
            yield prefix + key, part
            if part.get("properties") or isinstance(part.get("additionalProperties"), dict):
                yield from _leaves(part, root, f"{prefix}{key}.")
            if isinstance(part.get("items"), dict) and part["items"].get("properties"):
                yield from _leaves(part["items"], root, f"{prefix}{key}[].")
    extra = schema.get("additionalProperties")
    if isinstance(extra, dict) and "$ref" in extra:
        yield from _leaves(_resolve(extra, root), root, f"{prefix}NAME.")


def _values(part: dict[str, Any]) -> str:
    if "enum" in part:
        return ", ".join(f"`{value}`" for value in part["enum"])
    if "oneOf" in part:
        return " or ".join(f"`{p['const']}`" if "const" in p else _values(p) for p in part["oneOf"])
    kinds = part["type"] if isinstance(part["type"], list) else [part["type"]]
    text = " or ".join(kinds)
    low = part.get("minimum", part.get("exclusiveMinimum"))
    high = part.get("maximum", part.get("exclusiveMaximum"))
    if low is not None and high is not None:
        return f"{text} from {low} to {high}"
    if low is not None:
        return f"{text}, at least {low}" if "minimum" in part else f"{text} above {low}"
    return text


def _default(part: dict[str, Any]) -> str:
    if "default" not in part:
        return "" if part.get("properties") else "none: must be given"
    if part["default"] == {} and part.get("properties"):
        return ""
    return f"`{json.dumps(part['default'])}`"


if __name__ == "__main__":
    import sys

    sys.stdout.write(describe_settings(yaml.safe_load(Path(sys.argv[1]).read_text())))
