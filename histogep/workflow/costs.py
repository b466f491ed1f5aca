"""What the jobs of each rule took beside what they asked for: `python -m histogep.workflow.costs FOLDER`.

From the records and logs that every finished job leaves (`histogep.workflow.records`,
`histogep.workflow.job`). What a pilot of some slides needed tells what to book for all of them.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pandas as pd

from histogep.errors import InputError
from histogep.workflow.records import read_record

COLUMNS = (
    *("rule", "jobs", "cpu_s", "cpu_s_most", "s_most", "peak_mb"),
    *("mem_mb", "memory_used", "runtime_min", "time_used"),
)
_COST = re.compile(r"peak memory (\d+) MB, ([\d.]+) s CPU")


@dataclass(frozen=True)
class Cost:
    """What one job took, and what it asked for.

    Attributes
    ----------
    rule
        Its rule.
    cpu_s
        CPU seconds of its process and of those that it started.
    seconds
        From its first line to its last, without the start of Python and its imports.
    peak_mb
        Most memory of its process, in MB.
    mem_mb, runtime_min
        Memory in MB and minutes that it asked for; 0 where it asked for none.
    """

    rule: str
    cpu_s: float
    seconds: float
    peak_mb: float
    mem_mb: float
    runtime_min: float


def read_costs(folder: str | Path) -> list[Cost]:
    """Return the cost of every job that ended well in a folder of results.

    Raises
    ------
    InputError
        There is no record of any job.
    """
    costs = list(_costs(Path(folder) / "logs"))
    if not costs:
        raise InputError(
            f"{folder}/logs holds no record of a finished job: name the folder in which the study ran"
        )
    return costs


def _costs(logs: Path) -> Iterator[Cost]:
    for path in sorted(logs.rglob("*.json")):
        record, log = read_record(path), path.with_suffix(".log")
        if record is None or not log.is_file():
            continue
        said = _COST.findall(log.read_text(encoding="utf-8", errors="replace"))
        if not said:
            continue
        peak, cpu = said[-1]
        ended, started = (datetime.fromisoformat(record[name]) for name in ("ended", "started"))
        asked = {name: float(record["resources"].get(name, 0)) for name in ("mem_mb", "runtime")}
        yield Cost(
            record["rule"],
            float(cpu),
            (ended - started).total_seconds(),
            float(peak),
            asked["mem_mb"],
            asked["runtime"],
        )


def tabulate_costs(costs: list[Cost]) -> pd.DataFrame:
    """Return one row per rule, `COLUMNS`, the dearest first.

    `cpu_s` is the sum over its jobs; `cpu_s_most`, `s_most` and `peak_mb` are of the job that took most.
    `memory_used` and `time_used` are the largest shares of what a job asked for, NaN where it
    asked for nothing.

    Parameters
    ----------
    costs
        From `read_costs`.
    """
    jobs = pd.DataFrame(costs)
    jobs["memory_used"] = jobs["peak_mb"] / jobs["mem_mb"].where(jobs["mem_mb"] > 0)
    jobs["time_used"] = jobs["seconds"] / 60 / jobs["runtime_min"].where(jobs["runtime_min"] > 0)
    table = jobs.groupby("rule").agg(
        jobs=("cpu_s", "size"),
        cpu_s=("cpu_s", "sum"),
        cpu_s_most=("cpu_s", "max"),
        s_most=("seconds", "max"),
        peak_mb=("peak_mb", "max"),
        mem_mb=("mem_mb", "max"),
        memory_used=("memory_used", "max"),
        runtime_min=("runtime_min", "max"),
        time_used=("time_used", "max"),
    )
    table = table.sort_values("cpu_s", ascending=False, kind="stable").reset_index()
    return table[list(COLUMNS)]


def main() -> None:
    """Print the table of a folder."""
    parser = argparse.ArgumentParser(prog="histogep.workflow.costs", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("."))
    try:
        table = tabulate_costs(read_costs(parser.parse_args().folder))
    except InputError as error:
        parser.error(str(error))
    table.round(2).to_csv(sys.stdout, sep="\t", index=False)


if __name__ == "__main__":
    main()
