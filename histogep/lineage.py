"""Where a file came from: rule, code, settings, seed, software, sources, and what changed since.

Snakemake records how it made each file (`.snakemake/metadata`); the log of a job holds the versions
of the packages it used; the geometry of a slide holds the SHA-256 of its image. From these

    python -m histogep.lineage results/survival/hospital/cox.tsv --directory /where/results/go

says what a file rests on, whether Snakemake is running, stopped or not installed. Without a file it
writes the same for every file to results/provenance/lineage.tsv, as each run does when it ends;
where the records of Snakemake were not copied along, that table answers instead.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from histogep.files import complete, file_sha256, read_json
from histogep.jobs import InputError
from histogep.lineage_records import (
    COLUMNS,
    CONFIGURATION,
    MODEL,
    TABLE,
    UNNAMED,
    Entry,
    Lineage,
    sections_of,
    utc,
)
from histogep.provenance import ROOT, code_digest

#: Results above this size (features, expression of large slides) are known by size and time only.
HASHED_BYTES = 16 * 2**20
#: Snakemake touches this file in place of an output folder.
_FOLDER_TIME = ".snakemake_timestamp"


def write_table(directory: str | Path = ".") -> Path:
    """Write the lineage of every file of a working directory; return the table's path.

    Digests of files whose size and time are those of the last table are taken from it.
    """
    lineage = Lineage(directory)
    rows = list(lineage.entries())
    users = _users(rows)
    table = lineage.directory / TABLE
    with complete(table) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, delimiter="\t", lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows:
            state = _measure(lineage, row, users.get(row.file, []))
            writer.writerow([_cell(getattr(state, column)) for column in COLUMNS])
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
        change = _change_of_file(lineage, entry, users.get(entry.file, []), rehash=rehash)
        if change:
            said.append(f"{entry.file}: {change}")
        if entry.rule:
            late = [name for name in entry.inputs if by_name[name].ended > entry.started]
            said += [f"{entry.file}: made before its input {name} was made again" for name in late]
    said += sorted(set(_changes_of_models(lineage, entries)))
    said += sorted({text for entry in entries if (text := _change_of_code(entry))})
    differing = {text for entry in entries for text in _differences(entry, lineage.configuration)}
    return said + sorted(differing)


def describe(lineage: Lineage, file: str, changes: list[str]) -> str:
    """Return the lineage of a file in words."""
    entries = lineage.ancestors(file)
    entry = lineage.entry(file)
    software: dict[str, set[str]] = {}
    for part in entries:
        for package, version in part.software.items():
            software.setdefault(package, set()).add(version)
    settings: dict[str, Any] = {}
    unnamed: list[Any] = []
    for part in entries:
        settings.update(part.settings)
        unnamed += [value for value in part.settings.get(UNNAMED, ()) if value not in unnamed]
    if unnamed:
        settings[UNNAMED] = unnamed
    for name in ("configuration", MODEL):
        settings.pop(name, None)
    steps = Counter(part.rule for part in entries if part.rule)
    order = list(dict.fromkeys(part.rule for part in entries if part.rule))
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
            used = {
                user.settings[MODEL] for user in users.get(part.file, ()) if MODEL in user.settings
            }
            lines.append(f"  model     {part.file}  digest {' and '.join(sorted(used)) or digest}")
    lines.append("  software  " + (_wrapped_versions(software) or "not recorded"))
    lines.append("  settings")
    lines += [f"    {name}: {json.dumps(settings[name])}" for name in sorted(settings)] or [
        "    none"
    ]
    lines.append(f"  steps     {len(order)} rules, {sum(steps.values())} files")
    lines += [f"    {rule:<22}{steps[rule]:>6}  code {codes[rule]}" for rule in order]
    lines.append(f"  sources   {len(sources)} files that no rule made")
    for part in sources:
        used = (lineage.used_sha256(part.file, entry) for entry in users.get(part.file, []))
        digest = next(filter(None, used), part.sha256)
        lines.append(f"    {part.file}  sha256 {digest or 'not recorded'}")
    lines.append("  changed since" if changes else "  changed since: nothing")
    return "\n".join([*lines, *(f"    {change}" for change in changes)]) + "\n"


def _users(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    """Return, for each file, what was made of it."""
    users: dict[str, list[Entry]] = {}
    for entry in entries:
        for name in entry.inputs:
            users.setdefault(name, []).append(entry)
    return users


def _measure(lineage: Lineage, entry: Entry, users: list[Entry]) -> Entry:
    """Return an entry with size, time and digest of its file as it is now."""
    path = lineage.path(entry.file)
    if not path.exists():
        return entry
    size, modified = _size(path), _time(path)
    if (entry.bytes, entry.modified) == (size, modified):
        return entry
    if entry.rule and modified != entry.ended:
        return entry  # Somebody wrote it since: its digest now is not that of what was made.
    sha256 = ""
    if not entry.rule:
        # An image of gigabytes was read once, by prepare_slide, if nobody wrote it since. One that
        # was measured before has other contents now, also under an older time.
        taken = [
            lineage.used_sha256(entry.file, u)
            for u in users
            if modified <= u.started and not entry.modified
        ]
        sha256 = next(filter(None, taken), "") or _digest(path)
    elif size <= HASHED_BYTES:
        sha256 = _digest(path)
    return replace(entry, bytes=size, modified=modified, sha256=sha256)


def _change_of_file(lineage: Lineage, entry: Entry, users: list[Entry], *, rehash: bool) -> str:
    """Return how a file differs from what it was, or nothing."""
    path = lineage.path(entry.file)
    if not path.exists():
        return "is no longer there"
    modified = _time(path)

    def compared(recorded: str, *, image: bool = False) -> str:
        # The digest of an image was taken over all the files of its slide.
        now = _image_digest(path) if image else _digest(path)
        return "" if now == recorded else f"sha256 is {now}, it was {recorded}"

    if entry.rule:
        if modified == entry.ended and not rehash:
            return ""
        used = [lineage.used_sha256(entry.file, u) for u in users if u.started >= entry.ended]
        recorded = entry.sha256 or next(filter(None, used), "")
        if recorded:
            return compared(recorded)
        return "" if modified == entry.ended else f"written at {modified}, made at {entry.ended}"
    measured = (entry.bytes, entry.modified) == (_size(path), modified)
    for user in users:
        recorded = lineage.used_sha256(entry.file, user)
        if modified <= user.started and not rehash:
            # Not written since, by its time; but another file may have come with an older one.
            as_used = measured and (not recorded or entry.sha256 in ("", recorded))
            if as_used or not entry.modified:
                continue
        if recorded:
            change = compared(recorded, image=user.rule == "prepare_slide")
        elif entry.sha256 and entry.modified <= user.started:
            change = compared(entry.sha256)
        else:
            late = modified > user.started
            change = f"written at {modified}, used at {user.started}" if late else ""
        if change:
            return change
    return ""


def _changes_of_models(lineage: Lineage, entries: Iterable[Entry]) -> Iterator[str]:
    """Yield each model folder that was applied and is another one now, whatever its times."""
    for entry in entries:
        for name in entry.inputs if MODEL in entry.settings else ():
            now = _model_digest(lineage.path(name))
            if now and now != entry.settings[MODEL]:
                yield f"{name}: the model's digest is {now}, it was {entry.settings[MODEL]}"


def _change_of_code(entry: Entry) -> str:
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
    sections = sections_of(configuration)
    for name, value in entry.settings.items():
        now = sections.get(name)
        if not isinstance(value, dict) or not isinstance(now, dict):
            continue
        for key in sorted(value):
            if key in now and now[key] != value[key]:
                yield (
                    f"rule {entry.rule}: {name}.{key} was {json.dumps(value[key])}, "
                    f"{CONFIGURATION.name} has {json.dumps(now[key])}"
                )
    if entry.seed is not None and configuration.get("seed", entry.seed) != entry.seed:
        yield (
            f"rule {entry.rule}: seed was {entry.seed}, "
            f"{CONFIGURATION.name} has {configuration['seed']}"
        )


def _time(path: Path) -> str:
    stamp = path / _FOLDER_TIME
    return utc((stamp if stamp.is_file() else path).stat().st_mtime)


def _members(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != _FOLDER_TIME]


def _size(path: Path) -> int:
    return sum(p.stat().st_size for p in (_members(path) if path.is_dir() else [path]))


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file; of a folder, of the names and digests of its files."""
    return _digest_at(path, _time(path), _size(path))


@cache
def _digest_at(path: Path, modified: str, size: int) -> str:
    """Return the digest of a file as it is at a time: several rules may ask for it."""
    if not path.is_dir():
        return file_sha256(path)
    total = hashlib.sha256()
    for member in _members(path):
        total.update(f"{member.relative_to(path).as_posix()} {file_sha256(member)}\n".encode())
    return total.hexdigest()


def _image_digest(path: Path) -> str:
    from histogep.geometry import source_sha256

    return source_sha256(path)


def _model_digest(folder: Path) -> str:
    """Return the digest that a model folder carries, or nothing if it is none."""
    settings = folder / "settings.json"
    return str(read_json(settings).get("digest", "")) if settings.is_file() else ""


def _wrapped_versions(software: Mapping[str, set[str]]) -> str:
    return ", ".join(f"{name} {' and '.join(sorted(software[name]))}" for name in software)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 0 if nothing has changed, 1 if something has, 2 for a mistake."""
    parser = argparse.ArgumentParser(prog="python -m histogep.lineage", description=__doc__)
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
