"""What Snakemake's scheduler and its executors need to be told so that they lose no job and no time."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


def mend_at_start(scheduler: Any, plugin: ModuleType | None) -> None:
    """Mend what is known to go wrong, before the first job starts.

    Both mends reach into what others may change. One that fails costs itself only: the run goes on
    as it would have without it, and says so.

    Parameters
    ----------
    scheduler
        The scheduler of the workflow.
    plugin
        The module `snakemake_executor_plugin_slurm`, or None where another executor is used.
    """
    for mend, what in ((drop_timers, scheduler), (remember_job_age, plugin)):
        try:
            mend(what)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            print(f"The run goes on without {mend.__name__} ({reason})", file=sys.stderr)


def drop_timers(scheduler: Any) -> None:
    """Take away the default rate limit of the scheduler; one that the user chose stays.

    Snakemake (seen in 9.27) sets a timer after every look at the queue, and each timer makes it
    look again: after N jobs there are N timers a second, and the scheduler takes a core for
    itself. Without a rate limit it sets none.
    """
    limiter = getattr(scheduler, "job_rate_limiter", None)
    if limiter is not None and (limiter.max_jobs, limiter.timespan) == (100, 1):
        scheduler.job_rate_limiter = None


def remember_job_age(plugin: ModuleType | None) -> None:
    """Make Snakemake's SLURM executor remember how long the controller knows a job that ended.

    The executor (seen in 2.8.0) asks the controller for this before every look at its jobs. While
    the controller does not answer, it turns to sacct, whatever `slurm-status-command` says; without
    accounting sacct knows no job, all jobs are forgotten, and Snakemake waits for ever. With the last
    answer remembered it stays with squeue, which it asks again until the controller is back.
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
