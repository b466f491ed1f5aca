"""What makes Snakemake plan thousands of slides in less time and memory, with the same plan."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

#: The Snakemake in which all that is mended was seen; another one is left as it is.
SEEN_IN = "9.27."


def spare_planning(snakemake: Mapping[str, ModuleType]) -> None:
    """Leave out of planning what is done or kept again and again to no end.

    A plan is millions of small objects that all stay: looking for garbage among them takes a sixth
    of the time. The other parts reach into what Snakemake may change from one version to the next.

    Parameters
    ----------
    snakemake
        Loaded modules by name: `sys.modules`.
    """
    gc.set_threshold(200_000, 20, 100)
    version = snakemake["snakemake"].__version__
    if not version.startswith(SEEN_IN):
        print(
            f"Plans of thousands of slides are made faster and smaller with Snakemake {SEEN_IN}x; "
            f"this is {version}",
            file=sys.stderr,
        )
        return
    for mend, name in _MENDS:
        module = snakemake[f"snakemake.{name}"]
        mended = vars(module).setdefault("_mended_by_histogep", set())
        if mend not in mended:  # a Snakefile is read more than once in a process
            mended.add(mend)
            try:
                mend(module)
            except AttributeError as error:  # which comes before anything is changed
                print(f"Planning goes on without {mend.__name__} ({error})", file=sys.stderr)


def check_scripts_once(dag: ModuleType) -> None:
    """Look for the script of a rule once, not for each of its jobs (`snakemake.dag`).

    Snakemake opens and reads the script for every job of a plan, to say early that it is missing,
    and works out the job's parameters for it, which nothing else in a first plan needs. A script
    whose path holds wildcards is looked for at each job, as before.
    """
    look = dag.ScriptProcessor.process_job
    seen: set[Any] = set()

    def process_job(self: Any, job: Any) -> None:
        script = str(getattr(job.rule, self.script_type, None))
        key = (id(self), job.rule)
        if "{" not in script and key in seen:
            return
        look(self, job)
        seen.add(key)

    dag.ScriptProcessor.process_job = process_job


def describe_no_hidden_jobs(jobs: ModuleType) -> None:
    """Do not describe the jobs of a dry run with `--quiet rules`, which shows no description.

    Snakemake makes message, inputs, outputs and log of each job into text, and throws it away after.
    What such a dry run shows of a checkpoint stays, and so does the error of a message or a command
    that cannot be made, which is told by the first job of its rule (`snakemake.jobs`).
    """
    describe = jobs.Job.log_info
    tried: set[Any] = set()

    def log_info(self: Any, *args: Any, **options: Any) -> None:
        workflow = self.dag.workflow
        quiet = any(kind.name == "RULES" for kind in workflow.output_settings.quiet or ())
        shown = self.rule.is_checkpoint or self.rule.is_handover
        if self.rule not in tried:
            tried.add(self.rule)
            _ = self.message, self.shellcmd
        if shown or not (workflow.dryrun and quiet):
            describe(self, *args, **options)

    jobs.Job.log_info = log_info


def look_at_functions_once(common: ModuleType) -> None:
    """Take the parameters of an input or resource function from its first call.

    Snakemake asks `inspect.signature` for them several times at each job (`snakemake.common`).
    """
    parameters = common.inspect.signature
    seen: dict[tuple[Any, bool], Any] = {}

    def signature(function: Any) -> Any:
        bare = getattr(function, "__func__", function)
        key = (bare, bare is function)
        try:
            known = seen.get(key)
        except TypeError:  # it has no hash
            return parameters(function)
        if known is None:
            known = seen[key] = parameters(function)
        return known

    # The module's own name for it, so that `inspect` itself stays as it is for everyone else.
    common.inspect = SimpleNamespace(**vars(common.inspect) | {"signature": signature})


def share_names(containers: ModuleType) -> None:
    """Let all lists of a plan share what tells where in them a name stands.

    Snakemake makes it anew for each list of files, parameters and wildcards, twelve lists a job: a
    pair of numbers for each name, and two guards of names that none may have
    (`snakemake.iocontainers`).
    """
    guard, named = containers.AttributeGuard, containers.Namedlist
    make, set_name = named.__init__, named._set_name
    overridden = named()._allowed_overrides
    guards: dict[str, Any] = {}
    places: dict[tuple[int, int | None], tuple[int, int | None]] = {}

    def new_guard(cls: type, *name: str) -> Any:
        if len(name) != 1:  # a copy: it gets its name later
            return object.__new__(cls)
        if name[0] not in guards:
            guards[name[0]] = object.__new__(cls)
        return guards[name[0]]

    def _set_name(self: Any, name: str, index: int, end: int | None = None) -> None:
        set_name(self, name, index, end)
        place = (index, end)
        self._names[name] = places.setdefault(place, place)

    def __init__(self: Any, *args: Any, **options: Any) -> None:
        make(self, *args, **options)
        self._allowed_overrides = overridden

    named.__init__ = __init__
    guard.__new__ = new_guard
    named._set_name = _set_name


class _NoFlags(dict[str, Any]):
    """The flags of a path that has none; the first that is set here is the path's own."""

    def __init__(self, text: Any) -> None:
        super().__init__()
        self.text = text

    def __setitem__(self, flag: str, value: Any) -> None:
        if hasattr(self.text, "flags"):
            self.text.flags[flag] = value

    def setdefault(self, flag: str, value: Any = None) -> Any:
        self[flag] = value
        return value

    def update(self, *flags: Any, **more: Any) -> None:
        for flag, value in dict(*flags, **more).items():
            self[flag] = value


def keep_no_empty_flags(io: ModuleType) -> None:
    """Give a path a dict of flags with its first flag, and look flags up without abstract classes.

    Snakemake makes up to three dicts for each path of each job, nearly all of them empty, and asks
    forty times a path whether it lies in remote storage (`snakemake.io`).
    """
    text, path = io.AnnotatedString, io._IOFile
    clone, get_value = path.clone_flags, io.get_flag_value
    asked, all_flags = path.is_flagged, path.flags.fget

    def innermost(file: Any) -> Any:
        while type(file) is path:
            file = file._file
        return file

    def has_none(file: Any) -> bool:
        file = innermost(file)
        return type(file) is str or (type(file) is text and not file._flags)

    def __init__(self: Any, value: Any) -> None:
        if io.is_callable(value):
            self.callable = value

    def flags_text(self: Any) -> dict[str, Any]:
        if self._flags is None:
            self._flags = {}
        return self._flags

    def set_flags(self: Any, flags: dict[str, Any]) -> None:
        self._flags = flags

    def is_flagged_text(self: Any, flag: str) -> bool:
        return bool(self._flags) and bool(self._flags.get(flag))

    def is_flagged_path(self: Any, flag: str) -> bool:
        return not has_none(self) and asked(self, flag)

    def flags_path(self: Any) -> dict[str, Any]:
        return _NoFlags(innermost(self)) if has_none(self) else all_flags(self)

    def is_storage(self: Any) -> bool:
        return not has_none(self) and io.is_flagged(self._file, "storage_object")

    def get_flag_value(value: Any, flag: str) -> Any:
        return None if has_none(value) else get_value(value, flag)

    def clone_flags(self: Any, other: Any, skip_storage_object: bool = False) -> None:
        if type(self._file) is str and type(other._file) is text and not other._file._flags:
            self._file = text(self._file)
        else:
            clone(self, other, skip_storage_object)

    def __getstate__(self: Any) -> dict[str, Any]:
        # Whoever reads a pickled path may be a process in which nothing is mended.
        return {"callable": None} | vars(self) | {"_flags": self._flags or {}}

    text.__getstate__ = __getstate__
    text._flags = text.callable = None
    text.__init__, text.is_flagged = __init__, is_flagged_text
    text.flags, path.flags = property(flags_text, set_flags), property(flags_path)
    path.is_flagged, path.clone_flags = is_flagged_path, clone_flags
    path.is_storage = property(is_storage)
    for name, module in list(sys.modules.items()):  # it is called by the names of many modules
        if name.startswith("snakemake.") and vars(module).get("get_flag_value") is get_value:
            module.get_flag_value = get_flag_value


def share_empty_sets(jobs: ModuleType) -> None:
    """Let all jobs share one empty set of files with this or that flag.

    Snakemake makes five sets for each job while it makes the job, and adds to none of them later
    (`snakemake.jobs`).
    """
    make = jobs.Job.__init__
    sets = ("temp_output", "protected_output", "touch_output", "pipe_or_service_output")
    none: frozenset[str] = frozenset()

    def __init__(self: Any, *args: Any, **options: Any) -> None:
        make(self, *args, **options)
        for name in (*sets, "_queue_input"):
            if not getattr(self, name):
                setattr(self, name, none)

    jobs.Job.__init__ = __init__


def look_into_folders_once(dag: ModuleType) -> None:
    """Look for outputs inside of folders that are outputs by names, not by sorted paths.

    Snakemake makes a `Path` of every output and sorts all of them. Here only a plan in which one
    output does lie in another is looked at in its way, which names the two (`snakemake.dag`).
    """
    check = dag.DAG.check_directory_outputs

    def check_directory_outputs(self: Any) -> None:
        here = os.getcwd()
        files = {os.path.join(here, file) for job in self.jobs for file in job.output}
        files = {str(Path(file)) if "/./" in file or "//" in file else file for file in files}
        folders = set()
        for folder in map(os.path.dirname, files):
            while folder not in folders:
                folders.add(folder)
                folder = os.path.dirname(folder)
        if files & folders:
            check(self)

    dag.DAG.check_directory_outputs = check_directory_outputs


_MENDS = (
    (check_scripts_once, "dag"),
    (describe_no_hidden_jobs, "jobs"),
    (look_at_functions_once, "common"),
    (share_names, "iocontainers"),
    (keep_no_empty_flags, "io"),
    (share_empty_sets, "jobs"),
    (look_into_folders_once, "dag"),
)
