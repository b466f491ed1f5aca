"""The study as the process that planned it has read it, in a file that its jobs trust.

Every job of a cluster parses the workflow, twice: completing and checking the settings, reading the
sheets and importing what reads them took half a second of CPU each time. When a run starts, the process that
planned it writes what it read; a job takes it from there. The file bears a digest of all that it was made of
(configuration, where it came from, the code that reads it), the state of each file that was read, and a digest
of its own content. A job for which any of these differs (other `--config`, a sheet that has changed since, two
studies in one folder, a machine with other paths) or that has no such file reads the study as the planning
process does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from histogep.files import complete, file_sha256
from histogep.study.stages import Stage, Stages
from histogep.workflow.study import References, Sheets, Study

#: From the folder of the run; of the run, not of its results, like the records of the jobs.
RESOLVED = "logs/study.json"
FORMAT = "histogep study 1"
#: Larger ones (tables of measured expression) are known by size and time.
HASHED_BYTES = 16 * 2**20
_LIBRARY = Path(__file__).resolve().parents[1]
#: Their code decides what a study is made of.
_ROOMS = ("study", "inputs", "workflow")


@dataclass(frozen=True)
class Given:
    """What a study is read from.

    Attributes
    ----------
    config
        The configuration as Snakemake has it.
    configfiles
        The files that it came from.
    repository
        Where the workflow lies.
    """

    config: Mapping[str, Any]
    configfiles: Sequence[str | Path]
    repository: str | Path

    def read(self, *, main_process: bool) -> Study:
        """Read the study with all that it names (`histogep.workflow.study_reading.read_study`)."""
        from histogep.workflow.study_reading import read_study

        return read_study(
            self.config,
            configfiles=self.configfiles,
            repository=self.repository,
            main_process=main_process,
        )

    def digest(self) -> str:
        """Return a digest of the configuration, its origin, and the code that makes a study of it."""
        said = json.dumps(
            [
                *(FORMAT, self.config, str(self.repository), str(Path.cwd())),
                [str(file) for file in self.configfiles],
            ],
            sort_keys=True,
            default=repr,
        )
        digest = hashlib.sha256(said.encode())
        files = [file for room in _ROOMS for file in sorted((_LIBRARY / room).glob("*.py"))]
        schemas = sorted(Path(self.repository).glob("config/schemas/*.yaml"))
        for file in (*files, *schemas):
            digest.update(file.read_bytes())
        return digest.hexdigest()


def open_study(given: Given, *, main_process: bool) -> Study:
    """Return the study: read and checked by the process that plans, what that one read in a job.

    Raises
    ------
    InputError
        As `histogep.workflow.study_reading.read_study` does.
    """
    if main_process:
        return given.read(main_process=True)
    return resolved_study(given) or given.read(main_process=False)


def write_resolved(study: Study, given: Given) -> bool:
    """Write a study for the jobs of this run; return whether it can be written as it is.

    It cannot where JSON has no word for a value (a date in the configuration), and where the folder
    cannot be written; jobs then read the study themselves.
    """
    body = {
        "settings": study.settings,
        "references": asdict(study.references),
        "slides": study.slides,
        "applied": study.applied,
        "stages": [asdict(stage) for stage in study.stages.stages],
    }
    written = {
        "given": given.digest(),
        "files": {file: _state(file) for file in _files(study, given)},
    }
    path = Path(RESOLVED)
    try:
        text = json.dumps(body)
        # Numbers as keys come back as text: a job must get what the planning process has.
        if repr(json.loads(text)) != repr(_plain(body)):
            raise ValueError
        head = json.dumps(written | {"content": hashlib.sha256(text.encode()).hexdigest()})
        with complete(path) as temporary:
            temporary.write_text(f"{head}\n{text}\n", encoding="utf-8")
    except (OSError, TypeError, ValueError):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        return False
    return True


def resolved_study(given: Given) -> Study | None:
    """Return the study that `write_resolved` wrote; None unless it is of just these inputs."""
    try:
        head, text, end = Path(RESOLVED).read_text(encoding="utf-8").split("\n")
        written = json.loads(head)
        whole = hashlib.sha256(text.encode()).hexdigest() == written["content"] and not end
        same = written["given"] == given.digest() and all(
            _state(file) == state for file, state in written["files"].items()
        )
        if not (whole and same):
            return None
        body = json.loads(text)
        stages = [Stage(**stage | {"targets": tuple(stage["targets"])}) for stage in body["stages"]]
        return Study(
            body["settings"],
            References(**body["references"]),
            body["slides"],
            partial(_sheets, given),
            applied=body["applied"],
            planned=Stages(tuple(stages)),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _sheets(given: Given) -> Sheets:
    """Return the tables of a study, which only a job needs that must plan the stages again."""
    return given.read(main_process=False).sheets()


def _files(study: Study, given: Given) -> list[str]:
    """Return the files whose content a study is made of."""
    references = study.references
    measured = [file for files in references.measured.values() for file in files.values()]
    model = [f"{references.model}/settings.json"] if references.model else []
    named = (*given.configfiles, references.slides, references.patients, *measured, *model)
    return sorted({str(file) for file in named if file})


def _state(file: str) -> list[Any]:
    """Return a digest of a file, size and time of a large one, nothing of one that is not there."""
    try:
        stat = Path(file).stat()
        if stat.st_size > HASHED_BYTES:
            return [stat.st_size, stat.st_mtime_ns]
        return [file_sha256(file)]
    except OSError:
        return []


def _plain(value: Any) -> Any:
    """Return a value as JSON has it, where it has it: only mappings and tuples change their type."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value
