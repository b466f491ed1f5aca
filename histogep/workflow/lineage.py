"""Where a file came from: rule, code, settings, seed, software, sources, and what changed since.

Every job leaves a record of what it read, wrote and ran with (`histogep.workflow.records`). Joined by
their outputs, the records under logs/ say what a file rests on:

    python -m histogep.workflow.lineage results/survival/hospital/cox.tsv --directory /where/results/go

Without a file it writes the same for every file to results/provenance/lineage.tsv, as each run does
when it ends; where logs/ was not copied along, that table answers instead. A result that neither
knows is called unknown: nothing is concluded from names.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from histogep.errors import InputError
from histogep.files import complete, read_json
from histogep.slides.sources import source_sha256
from histogep.workflow.code import ROOT, code_digest
from histogep.workflow.records import (
    HASHED_INPUT_BYTES,
    RESULTS,
    FileState,
    path_sha256,
    read_record,
    state_of,
)

LOGS = Path("logs")
TABLE = Path("results/provenance/lineage.tsv")
CONFIGURATION = Path("results/provenance/configuration.yaml")
#: The rule of a result that no record names.
UNKNOWN = "unknown"
#: The parameter with the digest of the model folder that a rule applied.
MODEL = "model"


@dataclass(frozen=True)
class Entry:
    """What is known of one file.

    Attributes
    ----------
    file
        Path as the rule names it, relative to the working directory for all results.
    rule, script, code
        What made it, and the digest of the script with all modules that it reaches
        (`histogep.workflow.code.code_digest`). Empty for a source, which no rule made; the rule is
        `UNKNOWN` for a result of which there is no record.
    seed
        The seed, where the rule has one.
    settings
        The other parameters of the rule by name, without lists that are no section of the
        configuration (slides, patients).
    software
        Package -> version, as loaded when the job ended.
    inputs
        File -> its state when the job began.
    started, ended
        UTC times of the job.
    bytes, sha256
        Size and digest of a result when it was made, of a source when it was last used.
    written
        UTC time of a result's last change when its job ended. The workflow may set a later one.
    modified
        UTC time of the last change of the file with this content, at the end of a run; of a source,
        when it was last used.
    """

    file: str
    rule: str = ""
    script: str = ""
    code: str = ""
    seed: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    software: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, FileState] = field(default_factory=dict)
    started: str = ""
    ended: str = ""
    written: str = ""
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
        Neither the records of jobs nor the table of an earlier run are there.
    """

    def __init__(self, directory: str | Path = ".") -> None:
        self.directory = Path(directory)
        configuration = self.path(CONFIGURATION)
        text = configuration.read_text(encoding="utf-8") if configuration.is_file() else "{}"
        self.configuration = yaml.safe_load(text) or {}
        self.table = _read_table(self.path(TABLE))
        self.made = dict(self.table)
        found = map(read_record, sorted(self.path(LOGS).rglob("*.json")))
        # Of several records that name one file the last one made it.
        for record in sorted(filter(None, found), key=lambda record: record["ended"]):
            for entry in self._entries_of(record):
                known = self.made.get(entry.file)
                if known is None or known.ended < entry.ended:
                    self.made[entry.file] = entry
        if not self.made:
            raise InputError(
                f"{self.directory}: neither records of jobs under {LOGS}/ nor {TABLE} are there, so "
                "nobody recorded how its files were made; give the working directory of the study "
                "as --directory"
            )

    def entry(self, file: str) -> Entry:
        """Return what is known of a file: what made it, that it is a source, or that it is unknown."""
        if file in self.made:
            return self.made[file]
        return Entry(file, rule=UNKNOWN if Path(file).parts[:1] == (RESULTS,) else "")

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
                if self.entry(candidate.as_posix()).rule not in ("", UNKNOWN):
                    return candidate.as_posix()
        raise InputError(
            f"{file}: how it was made is not recorded in {self.directory / LOGS}; name a file under "
            "results/. One that an earlier version made has a record when its rule has run again"
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
        """Yield every result that is there, those of no record too, then the sources of them all."""
        there = {file for file in self.made if self.path(file).exists() and self.entry(file).rule}
        own = {TABLE.as_posix(), *there}
        for path in self.path(RESULTS).rglob("*"):
            file = path.relative_to(self.directory)
            inside = {part.as_posix() for part in (file, *file.parents)}
            if path.is_file() and not path.name.startswith(".") and own.isdisjoint(inside):
                there.add(file.as_posix())
        results = [self.entry(file) for file in sorted(there)]
        yield from results
        used = {file for entry in results for file in entry.inputs}
        yield from (self.entry(file) for file in sorted(used) if not self.entry(file).rule)

    def path(self, file: str | Path) -> Path:
        """Return where a file lies."""
        return self.directory / file

    def digests(self, file: str, users: Iterable[Entry]) -> dict[tuple[int | None, str], str]:
        """Return the known digests of a source, by its size and time when it had each.

        Parameters
        ----------
        file
            The source.
        users
            What was made of it. If `prepare_slide` is among them it is an image, of which that rule
            took the digest (over all the files of the slide) and no other job does.
        """
        known = self.table.get(file, Entry(file))
        found = {(known.bytes, known.modified): known.sha256}
        image = is_image(file, users)
        for user in users:
            sha256 = self._digest_of_slide(user) if image else user.inputs[file].sha256
            if sha256:
                found[_state(user.inputs[file])] = sha256
        return found

    def _digest_of_slide(self, user: Entry) -> str:
        """Return the digest of its image that stands in a slide's geometry; "" of other files."""
        geometry = self.path(user.file)
        if user.rule != "prepare_slide" or geometry.suffix != ".json" or not geometry.is_file():
            return ""
        return str(read_json(geometry).get("sha256", ""))

    def _entries_of(self, record: Mapping[str, Any]) -> Iterator[Entry]:
        """Yield what the record of a job says of each of its outputs."""
        params = record["params"]
        settings = {
            name: value
            for name, value in params.items()
            if value is not None
            and name != "seed"
            and (not isinstance(value, list) or isinstance(self.configuration.get(name), list))
        }
        same = ("rule", "script", "code", "software", "inputs", "started", "ended")
        common = {name: record[name] for name in same}
        common |= {"seed": params.get("seed"), "settings": settings}
        for file, state in record["outputs"].items():
            made = {"bytes": state.bytes, "sha256": state.sha256, "written": state.modified}
            yield Entry(file, **common, **made)


def write_table(directory: str | Path = ".") -> Path:
    """Write the lineage of every file of a working directory; return the table's path."""
    lineage = Lineage(directory)
    rows = list(lineage.entries())
    users = _users(rows)
    table = lineage.path(TABLE)
    with complete(table) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, delimiter="\t", lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows:
            state = _seen(lineage, row) if row.rule else _used(lineage, row, users[row.file])
            writer.writerow([_cell(getattr(state, column)) for column in COLUMNS])
    unknown = sum(row.rule == UNKNOWN for row in rows)
    if unknown:
        print(f"{TABLE}: {unknown} results have no record of how they were made", file=sys.stderr)
    return table


def record_run() -> None:
    """Write the table of the working directory when a run ends; never a reason for it to fail."""
    try:
        write_table()
    except Exception as error:
        print(f"{TABLE} was not written ({type(error).__name__}: {error})", file=sys.stderr)


def find_changes(lineage: Lineage, file: str, *, rehash: bool = False) -> list[str]:
    """Return what is no longer as it was when a file was made, one sentence each.

    Parameters
    ----------
    lineage
        The lineage of its working directory.
    file
        The file, as `Lineage.find` returns it.
    rehash
        Read every file again; else one whose time and size are as recorded counts as unchanged.
    """
    entries = lineage.ancestors(file)
    by_name = {entry.file: entry for entry in entries}
    users = _users(entries)
    said = []
    for entry in entries:
        if not lineage.path(entry.file).exists():
            said.append(f"{entry.file}: is no longer there")
        elif entry.rule == UNKNOWN:
            said.append(f"{entry.file}: how it was made is not recorded")
        elif entry.rule:
            said += _change_of_result(lineage, entry, rehash=rehash)
        else:
            said += _change_of_source(lineage, entry.file, users[entry.file], rehash=rehash)
        for name, used in entry.inputs.items():
            if by_name[name].written > used.modified:
                said.append(f"{entry.file}: made before its input {name} was made again")
    said += sorted(set(_changes_of_models(lineage, entries)))
    said += sorted({text for entry in entries if (text := _change_of_code(entry))})
    differing = {text for entry in entries for text in _differences(entry, lineage.configuration)}
    return said + sorted(differing)


def describe(lineage: Lineage, file: str, changes: list[str]) -> str:
    """Return the lineage of a file in words."""
    entries = lineage.ancestors(file)
    entry = lineage.entry(file)
    software: dict[str, set[str]] = {}
    settings: dict[str, Any] = {}
    for part in entries:
        settings.update(part.settings)
        for package, version in part.software.items():
            software.setdefault(package, set()).add(version)
    for name in ("configuration", MODEL):
        settings.pop(name, None)
    steps = Counter(part.rule for part in entries if part.rule)
    codes = {part.rule: part.code for part in entries if part.rule}
    seeds = sorted({part.seed for part in entries if part.seed is not None})
    sources, users = [part for part in entries if not part.rule], _users(entries)
    lines = [
        file,
        f"  made by   {entry.rule} ({entry.script}), {entry.started} to {entry.ended}",
        f"  code      {entry.code}",
        f"  seed      {', '.join(map(str, seeds)) or 'none in use'}",
    ]
    for part in entries:
        digest = _model_digest(lineage.path(part.file))
        if digest:
            used = {user.settings[MODEL] for user in _appliers(part.file, users)}
            lines.append(f"  model     {part.file}  digest {' and '.join(sorted(used)) or digest}")
    versions = (f"{name} {' and '.join(sorted(software[name]))}" for name in software)
    lines.append("  software  " + (", ".join(versions) or "not recorded"))
    lines.append("  settings" if settings else "  settings  none")
    lines += [f"    {name}: {json.dumps(settings[name])}" for name in sorted(settings)]
    lines.append(f"  steps     {len(steps)} rules, {sum(steps.values())} files")
    lines += [f"    {rule:<22}{steps[rule]:>6}  code {codes[rule]}" for rule in steps]
    lines.append(f"  sources   {len(sources)} files that no rule made")
    for part in sources:
        digests = lineage.digests(part.file, users[part.file])
        used = [digests.get(_state(user.inputs[part.file])) for user in users[part.file]]
        lines.append(f"    {part.file}  sha256 {next(filter(None, used), 'not recorded')}")
    lines.append("  changed since" if changes else "  changed since: nothing")
    return "\n".join([*lines, *(f"    {change}" for change in changes)]) + "\n"


def is_image(file: str, users: Iterable[Entry]) -> bool:
    """Return whether a file is a slide, whose digest is that of all its files."""
    return any(user.rule == "prepare_slide" and user.inputs[file].name == "image" for user in users)


def _users(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    """Return, for each file, what was made of it."""
    users: dict[str, list[Entry]] = {}
    for entry in entries:
        for name in entry.inputs:
            users.setdefault(name, []).append(entry)
    return users


def _appliers(file: str, users: Mapping[str, list[Entry]]) -> list[Entry]:
    """Return what was made with a model folder whose digest the rule was given."""
    return [user for user in users.get(file, ()) if MODEL in user.settings]


def _seen(lineage: Lineage, entry: Entry) -> Entry:
    """Return a result with the time of its last change, if its content is still as it was made.

    A file that no table lists yet and that is too large to be read at the end of every run is
    believed to be so by its size.
    """
    path = lineage.path(entry.file)
    if entry.rule == UNKNOWN or not path.exists():
        return entry
    now = state_of(path)
    if now.bytes != entry.bytes or now.modified == entry.modified:
        return entry
    known = lineage.table.get(entry.file)
    is_new = known is None or known.ended != entry.ended
    believed = is_new and now.bytes > HASHED_INPUT_BYTES
    as_made = believed or (entry.sha256 and path_sha256(path) == entry.sha256)
    return replace(entry, modified=now.modified) if as_made else entry


def _used(lineage: Lineage, entry: Entry, users: list[Entry]) -> Entry:
    """Return a source as it was when it was last used; its digest is taken if it still is so."""
    user = max(users, key=lambda user: user.started)
    used = user.inputs[entry.file]
    path = lineage.path(entry.file)
    sha256 = lineage.digests(entry.file, users).get(_state(used), "")
    if not sha256 and path.exists() and _state(state_of(path)) == _state(used):
        sha256 = path_sha256(path)
    return replace(entry, bytes=used.bytes, modified=used.modified, sha256=sha256)


def _state(state: FileState) -> tuple[int | None, str]:
    return state.bytes, state.modified


def _change_of_result(lineage: Lineage, entry: Entry, *, rehash: bool) -> Iterator[str]:
    """Yield how a result differs from what its job wrote."""
    path = lineage.path(entry.file)
    now = state_of(path)
    if now.bytes == entry.bytes and now.modified in (entry.modified, entry.written) and not rehash:
        return
    if entry.sha256:
        digest = path_sha256(path)
        if digest != entry.sha256:
            yield f"{entry.file}: sha256 is {digest}, it was {entry.sha256}"
    elif now.bytes != entry.bytes or entry.modified not in ("", now.modified):
        yield f"{entry.file}: {now.bytes} bytes written at {now.modified}, made at {entry.ended}"


def _change_of_source(
    lineage: Lineage, file: str, users: list[Entry], *, rehash: bool
) -> Iterator[str]:
    """Yield how a source differs from what was used of it: the first difference only."""
    path = lineage.path(file)
    now = state_of(path)
    digests = lineage.digests(file, users)
    digest = ""
    for user in users:
        used = _state(user.inputs[file])
        if used == _state(now) and not rehash:
            continue
        if recorded := digests.get(used):
            digest = digest or (source_sha256 if is_image(file, users) else path_sha256)(path)
            if digest != recorded:
                yield f"{file}: sha256 is {digest}, it was {recorded}"
                return
        elif used != _state(now):
            yield f"{file}: written at {now.modified}, used at {user.started}"
            return


def _changes_of_models(lineage: Lineage, entries: Iterable[Entry]) -> Iterator[str]:
    """Yield each model folder that was applied and is another one now, whatever its times."""
    for entry in entries:
        for name in entry.inputs if MODEL in entry.settings else ():
            now = _model_digest(lineage.path(name))
            if now and now != entry.settings[MODEL]:
                yield f"{name}: the model's digest is {now}, it was {entry.settings[MODEL]}"


def _change_of_code(entry: Entry) -> str:
    """Return how the code of a rule differs from what made a file, or nothing."""
    if not entry.code or not entry.script:
        return ""
    if not (ROOT / "workflow_scripts" / entry.script).is_file():
        return f"rule {entry.rule}: {entry.script} is no longer there"
    now = code_digest(entry.script)
    if now == entry.code:
        return ""
    return f"rule {entry.rule}: code digest of {entry.script} is {now}, it was {entry.code}"


def _differences(entry: Entry, configuration: Mapping[str, Any]) -> Iterator[str]:
    """Yield each setting of a file that the configuration of the last run has otherwise."""
    given = {
        name: value
        for name, value in entry.settings.items()
        if isinstance(value, dict | list) and isinstance(value, type(configuration.get(name)))
    }
    if entry.seed is not None:
        given["seed"] = entry.seed
    for name, value, now in _unequal(given, configuration):
        yield (
            f"rule {entry.rule}: {name} was {json.dumps(value)}, "
            f"{CONFIGURATION.name} has {json.dumps(now)}"
        )


def _unequal(
    given: Mapping[str, Any], now: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Yield dotted key and both values wherever two settings have the same key and differ."""
    for key in sorted(given.keys() & now.keys()):
        if isinstance(given[key], dict) and isinstance(now[key], dict):
            yield from _unequal(given[key], now[key], f"{prefix}{key}.")
        elif given[key] != now[key]:
            yield f"{prefix}{key}", given[key], now[key]


def _model_digest(folder: Path) -> str:
    """Return the digest that a model folder carries, or nothing if it is none."""
    settings = folder / "settings.json"
    return str(read_json(settings).get("digest", "")) if settings.is_file() else ""


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return json.dumps(value, default=asdict)


def _read_table(path: Path) -> dict[str, Entry]:
    """Return the rows of a table of this version; of another one, or of none, nothing."""
    kinds = {name: part.type for name, part in Entry.__dataclass_fields__.items()}
    csv.field_size_limit(2**30)
    entries = {}
    try:
        with open(path, newline="", encoding="utf-8") as handle:
            for row in csv.DictReader(handle, delimiter="\t"):
                plain: dict[str, Any] = {
                    k: v if kinds[k] == "str" else json.loads(v or "null") for k, v in row.items()
                }
                plain["inputs"] = {f: FileState(**state) for f, state in plain["inputs"].items()}
                entries[row["file"]] = Entry(**plain)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {file: entry for file, entry in entries.items() if entry.rule != UNKNOWN}


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 0 if nothing has changed, 1 if something has, 2 for a mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m histogep.workflow.lineage", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("file", nargs="?", help="a file under results/; none: write the table")
    parser.add_argument("--directory", default=".", help="working directory of the study")
    parser.add_argument("--rehash", action="store_true", help="read every file it rests on again")
    given = parser.parse_args(arguments)
    try:
        if given.file is None:
            print(write_table(given.directory))
            return 0
        lineage = Lineage(given.directory)
        file = lineage.find(given.file)
        changes = find_changes(lineage, file, rehash=given.rehash)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(describe(lineage, file, changes), end="")
    return 1 if changes else 0


if __name__ == "__main__":
    sys.exit(main())
