"""What one job was: the record that it writes beside its log when it ends well.

`logs/<rule>/<wildcards>.json` holds the rule, its wildcards, its parameters by name, size, time and
digest of all that it read and wrote, the versions of the packages that it loaded, and what it warned
of. A job that fails or is killed leaves none. `histogep.workflow.lineage` joins the records of a study
by output, `histogep.workflow.warnings_of_jobs` lists what they warned of.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from histogep.files import complete, file_sha256
from histogep.warned import Heard, Warned
from histogep.workflow.software import loaded_versions

#: What stands in every record, and in no other JSON.
FORMAT = "histogep job record 1"
#: What the workflow makes lies here. It has a record of its own, and is not read again by its users.
RESULTS = "results"
#: Sources above this size (images, large counts) are known by size and time when they are used.
HASHED_INPUT_BYTES = 16 * 2**20
#: Results above this size are known by size and time.
HASHED_OUTPUT_BYTES = 2**30
#: Resources that say nothing about a result.
_INCIDENTAL = ("tmpdir",)
#: Without any of these it is not a record.
_FIELDS = (
    *("rule", "script", "code", "wildcards", "params", "threads", "resources", "software"),
    *("started", "ended", "inputs", "outputs"),
)


class Job(Protocol):
    """What a workflow tells a job: the values of each part by name, through `items()`."""

    rule: str
    threads: int
    input: Any
    output: Any
    params: Any
    wildcards: Any
    resources: Any


@dataclass(frozen=True)
class FileState:
    """A file, or a folder with all that it holds, as it was at a time.

    Attributes
    ----------
    bytes
        Size; of a folder, of all its files.
    modified
        UTC time of the last change; of a folder, of its youngest file, "" where it has none.
    sha256
        Digest of the content (`path_sha256`), or "" where nobody took it.
    name
        The name under which a rule gives it, or "".
    """

    bytes: int
    modified: str
    sha256: str = ""
    name: str = ""


@contextlib.contextmanager
def recorded(path: str | Path, job: Job, heard: Heard) -> Iterator[None]:
    """Write the record of a job when the block ends without error; remove an older one before.

    It holds the state of each input when the block began, that of each output when it ended, and the
    versions of the packages that are loaded then.

    Parameters
    ----------
    path
        The record.
    job
        What the job is.
    heard
        What listens to the warnings of the job.
    """
    path = Path(path)
    path.unlink(missing_ok=True)
    started = utc(datetime.now(UTC).timestamp())
    inputs = {file: _used(file, name) for file, name in _named_files(job.input).items()}
    yield
    params = dict(job.params.items())
    record = {
        "format": FORMAT,
        "rule": job.rule,
        "script": Path(getattr(sys.modules["__main__"], "__file__", "") or "").name,
        "code": params.pop("code", ""),
        "wildcards": dict(job.wildcards.items()),
        "params": params,
        "threads": job.threads,
        "resources": {
            name: value
            for name, value in job.resources.items()
            if not name.startswith("_") and name not in _INCIDENTAL
        },
        "software": loaded_versions(),
        "warnings": [asdict(warned) for warned in heard.warned],
        "started": started,
        "ended": utc(datetime.now(UTC).timestamp()),
        "inputs": {file: asdict(state) for file, state in inputs.items() if state is not None},
        "outputs": {
            file: asdict(state_of(file, hashed_bytes=HASHED_OUTPUT_BYTES, name=name))
            for file, name in _named_files(job.output).items()
            if Path(file).exists()
        },
    }
    with complete(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1, default=str) + "\n", encoding="utf-8")


def read_record(path: str | Path) -> dict[str, Any] | None:
    """Return what `recorded` wrote, its states as `FileState`s, its warnings as `Warned`s; None of other files.

    A record of a version that kept no warnings has none.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        texts = (record[name] for name in ("rule", "script", "code", "started", "ended"))
        if record["format"] != FORMAT or not all(isinstance(text, str) for text in texts):
            return None
        record["params"].items()
        for side in ("inputs", "outputs"):
            record[side] = {file: FileState(**state) for file, state in record[side].items()}
        told = record.get("warnings", [])
        warned = [Warned(**{**one, "decides": tuple(one["decides"])}) for one in told]
        return {name: record[name] for name in _FIELDS} | {"warnings": warned}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def state_of(path: str | Path, *, hashed_bytes: int = -1, name: str = "") -> FileState:
    """Return the state of a file or folder, with its digest if it is no larger than `hashed_bytes`."""
    path = Path(path)
    stats = [member.stat() for member in (_members(path) if path.is_dir() else [path])]
    size = sum(stat.st_size for stat in stats)
    modified = max((stat.st_mtime for stat in stats), default=None)
    return FileState(
        bytes=size,
        modified="" if modified is None else utc(modified),
        sha256=path_sha256(path) if size <= hashed_bytes else "",
        name=name,
    )


def path_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file; of a folder, of the names and digests of its files."""
    path = Path(path)
    if not path.is_dir():
        return file_sha256(path)
    total = hashlib.sha256()
    for member in _members(path):
        total.update(f"{member.relative_to(path).as_posix()} {file_sha256(member)}\n".encode())
    return total.hexdigest()


def utc(seconds: float) -> str:
    """Return a time in seconds as UTC text, whose order is that of the times."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")


def _members(folder: Path) -> list[Path]:
    """Return the files of a folder; hidden ones (marks of the workflow engine) are not its content."""
    return [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith(".")]


def _used(file: str, name: str) -> FileState | None:
    """Return the state of an input; None of one that cannot be read, which the job itself will say."""
    made = Path(file).parts[:1] == (RESULTS,)
    try:
        return state_of(file, hashed_bytes=-1 if made else HASHED_INPUT_BYTES, name=name)
    except OSError:
        return None


def _named_files(files: Any) -> dict[str, str]:
    """Return the files of one side of a job with their names, "" for one that has none."""
    named = {}
    for name, value in files.items():
        several = [value] if isinstance(value, str | Path) else value
        named.update({str(file): name for file in several})
    unnamed = files if isinstance(files, list) else ()
    return {str(file): "" for file in unnamed if str(file) not in named} | named
