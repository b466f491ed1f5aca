"""What a cluster's executor needs to be told so that it loses no job."""

from __future__ import annotations

from types import ModuleType


def remember_job_age(plugin: ModuleType | None) -> None:
    """Make Snakemake's SLURM executor remember how long the controller knows a job that ended.

    The executor (seen in 2.8.0) asks the controller for this before every look at its jobs. While
    the controller does not answer, it turns to sacct, whatever `slurm-status-command` says; without
    accounting sacct knows no job, all jobs are forgotten, and Snakemake waits for ever. With the last
    answer remembered it stays with squeue, which it asks again until the controller is back.

    Parameters
    ----------
    plugin
        The module `snakemake_executor_plugin_slurm`, or None where another executor is used.
    """
    ask = getattr(plugin, "get_min_job_age", None)
    if ask is None:
        return
    known = [ask()]

    def last_answer() -> int | None:
        known.append(ask())
        known[:] = [age for age in known if age is not None][-1:]
        return known[0] if known else None

    plugin.get_min_job_age = last_answer
