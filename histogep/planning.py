"""What makes Snakemake plan thousands of slides in less time and memory, with the same plan."""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any


def spare_planning(snakemake: Mapping[str, ModuleType]) -> None:
    """Leave out of planning what is done again and again to no end.

    A plan is millions of small objects that all stay: looking for garbage among them takes a sixth
    of the time. The other parts reach into what Snakemake may change: where one fails, the plan is
    made as Snakemake alone makes it.

    Parameters
    ----------
    snakemake
        Modules by name, of which `snakemake.dag` and `snakemake.jobs` are taken: `sys.modules`.
    """
    gc.set_threshold(200_000, 20, 100)
    for mend, name in ((check_scripts_once, "dag"), (describe_no_hidden_jobs, "jobs")):
        try:
            mend(snakemake[f"snakemake.{name}"])
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            print(f"Planning goes on without {mend.__name__} ({reason})", file=sys.stderr)


def check_scripts_once(dag: ModuleType) -> None:
    """Look for the script of a rule once, not for each of its jobs.

    Snakemake (seen in 9.27) opens and reads the script for every job of a plan, to say early that it
    is missing, and works out the job's parameters for it, which nothing else in a first plan needs.
    A script whose path holds wildcards is looked for at each job, as before.
    """
    processor = dag.ScriptProcessor
    look = processor.process_job
    if getattr(look, "once", False):
        return
    seen: set[Any] = set()

    def process_job(self: Any, job: Any) -> None:
        try:
            script = str(getattr(job.rule, self.script_type, None))
            key = (id(self), job.rule)
        except AttributeError:  # of another version: as if nothing were mended
            look(self, job)
            return
        if "{" not in script and key in seen:
            return
        look(self, job)
        seen.add(key)

    process_job.once = True
    processor.process_job = process_job


def describe_no_hidden_jobs(jobs: ModuleType) -> None:
    """Do not describe the jobs of a dry run with `--quiet rules`, which shows no description.

    Snakemake (seen in 9.27) makes message, inputs, outputs and log of each job into text, and throws
    it away after. What such a dry run shows of a checkpoint stays.
    """
    describe = jobs.Job.log_info
    if getattr(describe, "only_shown", False):
        return

    def log_info(self: Any, *args: Any, **options: Any) -> None:
        try:
            workflow = self.dag.workflow
            quiet = any(kind.name == "RULES" for kind in workflow.output_settings.quiet or ())
            hidden = workflow.dryrun and quiet
            hidden = hidden and not (self.rule.is_checkpoint or self.rule.is_handover)
        except AttributeError:  # of another version: as if nothing were mended
            hidden = False
        if not hidden:
            describe(self, *args, **options)

    log_info.only_shown = True
    jobs.Job.log_info = log_info
