"""What is recorded of how the files of a working directory were made.

Snakemake keeps a record of every file that a rule made (`.snakemake/metadata`); the log of a job
holds the versions of the packages it used; results/provenance/lineage.tsv keeps the same after a
run, with the digest of every source, for when the records were not copied along with the results.
"""

from __future__ import annotations

import ast
import csv
import json
import os
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from histogep.files import read_json
from histogep.jobs import InputError
from histogep.software import read_versions

TABLE = Path("results/provenance/lineage.tsv")
CONFIGURATION = Path("results/provenance/configuration.yaml")
METADATA = Path(".snakemake/metadata")
#: Where settings are kept whose section nobody knows, before the configuration was recorded.
UNNAMED = "without a name"
_CODE = re.compile(r"[0-9a-f]{16}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
#: The setting under which the digest of the model folder that a rule applied is kept.
MODEL = "digest of the model"
_SCRIPT = re.compile(r"workflow_scripts/(\w+\.py)")


@dataclass(frozen=True)
class Entry:
    """What is known of one file.

    Attributes
    ----------
    file
        Path as the rule names it, relative to the working directory for all results.
    rule, script, code
        What made it, and the digest of the script with all modules that it reaches
        (`histogep.provenance.code_digest`); empty for a source, which no rule made.
    seed
        The seed, where the rule has one.
    settings
        The rule's settings by their key in the configuration.
    software
        Package -> version, as loaded when the job ended.
    inputs
        What it was made from.
    input_sha256
        Digests of the inputs when it was made, where Snakemake took them (below 1 MB).
    started, ended, modified
        UTC times: of the job, and of the file when `sha256` was taken.
    sha256, bytes
        Digest and size of the file; of a model folder its own digest.
    """

    file: str
    rule: str = ""
    script: str = ""
    code: str = ""
    seed: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    software: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    input_sha256: Mapping[str, str] = field(default_factory=dict)
    started: str = ""
    ended: str = ""
    modified: str = ""
    sha256: str = ""
    bytes: int | None = None


COLUMNS = list(Entry.__dataclass_fields__)


class Lineage:
    """The lineage of the files of one working directory.

    Parameters
    ----------
    directory
        The working directory of the study (`--directory` of Snakemake).

    Raises
    ------
    InputError
        Neither Snakemake's records nor the table of an earlier run are there.
    """

    def __init__(self, directory: str | Path = ".") -> None:
        self.directory = Path(directory)
        self.records = self.directory / METADATA
        table = self.directory / TABLE
        self.table = _read_table(table) if table.is_file() else {}
        if not self.table and not self.records.is_dir():
            raise InputError(
                f"{self.directory}: neither {METADATA} nor {TABLE} is there, so nobody recorded "
                "how its files were made; give the working directory of the study as --directory"
            )
        configuration = self.directory / CONFIGURATION
        text = configuration.read_text(encoding="utf-8") if configuration.is_file() else "{}"
        self.configuration = yaml.safe_load(text) or {}
        self._entries: dict[str, Entry] = {}
        self._software: dict[Path, dict[str, str]] = {}

    def entry(self, file: str) -> Entry:
        """Return what is known of a file; of one that no rule made, only its digest."""
        if file not in self._entries:
            known = self.table.get(file, Entry(file))
            made = self._recorded(file)
            if made is not None:
                same = known.ended == made.ended
                made = replace(
                    made,
                    sha256=known.sha256 if same else "",
                    bytes=known.bytes if same else None,
                    modified=known.modified if same else "",
                )
            self._entries[file] = made or known
        return self._entries[file]

    def find(self, file: str | Path) -> str:
        """Return a file as its rule names it; of a file in an output folder, the folder.

        Raises
        ------
        InputError
            Nothing is recorded of it.
        """
        path = Path(file)
        inside = Path(os.path.relpath(path.absolute(), self.directory.absolute()))
        for start in dict.fromkeys((path, inside)):
            for candidate in (start, *start.parents):
                if self.entry(candidate.as_posix()).rule:
                    return candidate.as_posix()
        raise InputError(
            f"{file}: no rule of the study in {self.directory} made it, as far as its records go; "
            "name a file under results/"
        )

    def ancestors(self, file: str) -> list[Entry]:
        """Return a file and all that it rests on, in the order in which they were made."""
        found: dict[str, Entry] = {}
        pending = [file]
        while pending:
            name = pending.pop()
            if name not in found:
                found[name] = self.entry(name)
                pending.extend(found[name].inputs)
        return sorted(found.values(), key=lambda entry: (entry.ended, entry.file))

    def entries(self) -> Iterator[Entry]:
        """Yield every file that is there and that a rule made, then the sources of them all."""
        sources: set[str] = set()
        names = set(self._record_names()) if self.records.is_dir() else set(self.table)
        for file in sorted(names):
            entry = self.entry(file)
            if entry.rule and self.path(file).exists():
                sources.update(name for name in entry.inputs if name not in names)
                yield entry
        yield from (self.entry(name) for name in sorted(sources))

    def path(self, file: str) -> Path:
        """Return where a file lies."""
        return self.directory / file

    def used_sha256(self, file: str, user: Entry) -> str:
        """Return the digest that a file had when `user` was made of it, if anybody took it."""
        geometry = self.path(user.file)
        if user.rule == "prepare_slide" and geometry.suffix == ".json" and geometry.is_file():
            return str(read_json(geometry).get("sha256", ""))
        return user.input_sha256.get(file, "")

    def _versions(self, log: Path) -> dict[str, str]:
        """Return what a log tells; the files of one job share it."""
        if log not in self._software:
            self._software[log] = read_versions(log)
        return self._software[log]

    def _record_names(self) -> Iterator[str]:
        for folder, _, files in os.walk(self.records):
            parts = Path(folder).relative_to(self.records).parts
            for name in files:
                encoded = "".join(part.removeprefix("@") for part in (*parts, name))
                try:
                    yield urlsafe_b64decode(encoded).decode()
                except ValueError:
                    continue  # Not a record: Snakemake's names are base64 of UTF-8.

    def _recorded(self, file: str) -> Entry | None:
        """Return Snakemake's record of a file, if it has a complete one."""
        name = urlsafe_b64encode(file.encode()).decode()
        parts = [name[start : start + 254] for start in range(0, len(name), 254)]
        path = self.records.joinpath(*(f"@{part}" for part in parts[:-1]), parts[-1])
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if record.get("incomplete") or not record.get("rule"):
            return None
        values = [_literal(text) for text in record.get("params") or []]
        codes = [v for v in values if isinstance(v, str) and _CODE.fullmatch(v)]
        seeds = [v for v in values if isinstance(v, int) and not isinstance(v, bool)]
        script = _SCRIPT.search(record.get("code") or "")
        logs = [self.path(log) for log in record.get("log") or []]
        return Entry(
            file=file,
            rule=record["rule"],
            script=script[1] if script else "",
            code=codes[0] if codes else "",
            seed=seeds[0] if len(seeds) == 1 else None,
            settings=_name_settings(values, self.configuration, rule=record["rule"]),
            # A job may write tables among its logs, which tell no versions.
            software=next((v for log in logs if log.is_file() and (v := self._versions(log))), {}),
            inputs=tuple(record.get("input") or ()),
            input_sha256={
                name: text.split(":")[-1]
                for name, text in (record.get("input_checksums") or {}).items()
            },
            started=utc(record["starttime"]),
            ended=utc(record["endtime"]),
        )


def _name_settings(
    values: list[Any], configuration: Mapping[str, Any], *, rule: str
) -> dict[str, Any]:
    """Return the settings among a rule's parameters by their key in the configuration.

    Snakemake records parameters without their names. One that equals a section is that section; an
    object with the same keys as a section is the section before it was changed. Of several such
    sections it is the one that the rule is named after. Objects that no section is like are kept
    without a name.
    """
    sections = sections_of(configuration)
    named: dict[str, Any] = {}
    for value in values:
        if value == configuration and value:
            named["configuration"] = value
        elif isinstance(value, str) and _DIGEST.fullmatch(value):
            named[MODEL] = value
        elif isinstance(value, dict | list) and value:
            # Named after the rule first, then equal; sorted() keeps False before True.
            alike = [
                (name not in rule, section != value, name)
                for name, section in sections.items()
                if section == value or _alike(value, section)
            ]
            named.update({name: value for _, _, name in sorted(alike)[:1]})
            if not alike and isinstance(value, dict):
                named.setdefault(UNNAMED, []).append(value)
    return named


def _alike(value: Any, section: Any) -> bool:
    """Return whether two values are objects with the same keys."""
    return isinstance(value, dict) and isinstance(section, dict) and value.keys() == section.keys()


def sections_of(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Return the objects and lists of a configuration by their dotted key, two levels deep."""
    found = {}
    for key, value in configuration.items():
        found[key] = value
        if isinstance(value, dict):
            found.update({f"{key}.{name}": part for name, part in value.items()})
    return {
        name: value for name, value in found.items() if isinstance(value, dict | list) and value
    }


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None


def utc(seconds: float) -> str:
    """Return a time in seconds as UTC text, whose order is that of the times."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")


def _read_table(path: Path) -> dict[str, Entry]:
    csv.field_size_limit(2**30)
    with open(path, newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    if rows and set(rows[0]) != set(COLUMNS):
        raise InputError(
            f"{path} is not a table of this version: remove it, the next run makes it again"
        )
    kinds = {name: part.type for name, part in Entry.__dataclass_fields__.items()}
    entries = {}
    for row in rows:
        plain = {k: v if kinds[k] == "str" else json.loads(v or "null") for k, v in row.items()}
        entries[row["file"]] = Entry(**{**plain, "inputs": tuple(plain["inputs"])})
    return entries
