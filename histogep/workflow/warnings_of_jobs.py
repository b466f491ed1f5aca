"""What the jobs of a study warned of: as a table, for the pages that it decides, and on the console.

Each job keeps its warnings in the record beside its log (`histogep.workflow.records`), so that those of
a job that did not run again are still known. From the files that a study asks for, the records lead
back to every job that these rest on and to no other: slides, models and stages that were taken out
of the study leave nothing here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from histogep.warned import Warned
from histogep.workflow.records import read_record

LOGS = Path("logs")
TABLE = "results/warnings.tsv"
#: The rule of what was found before the first job.
PLAN = "(plan)"
COLUMNS = ("rule", "slide", "job", "decides", "n", "warning")
#: Slides that a line of the console names before it only counts.
_NAMED = 5


def list_warnings(
    files: Iterable[str], *, planned: Iterable[str] = (), directory: str | Path = "."
) -> pd.DataFrame:
    """Return the warnings of all jobs that some files rest on, the deciding ones first.

    Parameters
    ----------
    files
        Results, as their rules name them.
    planned
        What was warned of before the first job.
    directory
        The working directory of the study.

    Returns
    -------
    DataFrame
        `COLUMNS`: the rule; the slide, where the job or the warning is of one; the other wildcards of
        the job ("fold=all, model=ridge"); what the warning decides, separated by commas ("" for
        nothing); how often the job gave it; its text.
    """
    rows = [(PLAN, "", "", "", 1, text) for text in planned]
    for record in _behind(files, Path(directory)):
        rows += _rows(record)
    return _ordered(rows)


def deciding_warnings(
    files: Iterable[str],
    *subjects: str,
    own: Iterable[Warned] = (),
    directory: str | Path = ".",
) -> list[str]:
    """Return the warnings of the jobs behind some files that decide one of some results, as sentences.

    Parameters
    ----------
    files
        Inputs of the job whose page repeats the warnings.
    subjects
        What they decide (`histogep.warned.SUBJECTS`).
    own
        What the job itself has warned of, of which there is no record yet.
    directory
        The working directory of the study.
    """
    rows = [("this step", w.slide, "", ",".join(w.decides), w.n, w.text) for w in own]
    table = pd.concat([list_warnings(files, directory=directory), _ordered(rows)])
    return sentences(table, *subjects)


def sentences(warned: pd.DataFrame, *subjects: str) -> list[str]:
    """Return the deciding warnings of a table, one sentence for those that differ in the slide only.

    Without subjects those of all.
    """
    wanted = set(subjects)
    told: dict[tuple[str, str, str], list[str]] = {}
    for row in warned[warned["decides"] != ""].itertuples():
        if not wanted or wanted & set(row.decides.split(",")):
            text = (
                str(row.warning).replace(f"slide {row.slide}: ", "") if row.slide else row.warning
            )
            slides = told.setdefault((row.decides, row.rule, str(text)), [])
            if row.slide and row.slide not in slides:
                slides.append(row.slide)
    return [
        f"{decides.replace(',', ', ')} ({', '.join(filter(None, (rule, _slides(slides))))}): {text}"
        for (decides, rule, text), slides in told.items()
    ]


def describe(warned: pd.DataFrame, *, where: str = TABLE) -> str:
    """Return the block that stands at the end of a run; "" where nothing was warned of."""
    if warned.empty:
        return ""
    lines = []
    for rule, rows in warned.groupby("rule", sort=True):
        counts = rows[rows["slide"] != ""].groupby("slide")["n"].sum()
        named = ", ".join(f"{slide} {n}" for slide, n in counts.head(_NAMED).items())
        more = f" and {len(counts) - _NAMED} more slides" if len(counts) > _NAMED else ""
        lines.append(f"  {rule}: {rows['n'].sum()}" + (f" ({named}{more})" if named else ""))
    total, deciding = int(warned["n"].sum()), warned[warned["decides"] != ""]
    said = "1 warning" if total == 1 else f"{total} warnings"
    if deciding.empty:
        return "\n".join([f"{said}, none of which decides a result; see {where}:", *lines])
    return "\n".join(
        [
            f"{said}, of which {int(deciding['n'].sum())} decide a result; see {where}:",
            *lines,
            "What decides a result:",
            *(f"  {sentence}" for sentence in sentences(deciding)),
        ]
    )


def say_warnings(since: datetime, *, directory: str | Path = ".") -> None:
    """Print what the jobs of one run warned of when it ends; never a reason for it to fail.

    Parameters
    ----------
    since
        When the run began; jobs that ended earlier belong to another one.
    directory
        The working directory of the study.
    """
    try:
        root, table = Path(directory), Path(directory) / TABLE
        rows: list[tuple[Any, ...]] = []
        for path in sorted((root / LOGS).rglob("*.json")):
            # A file that is older need not be read: most jobs of a large study did not run again.
            if path.stat().st_mtime >= since.timestamp():
                record = read_record(path)
                if record and datetime.fromisoformat(record["started"]) >= since:
                    rows += _rows(record)
        if block := describe(_ordered(rows), where=TABLE if table.is_file() else f"{LOGS}/"):
            print(block, file=sys.stderr)
    except Exception as error:
        print(f"the warnings were not listed ({type(error).__name__}: {error})", file=sys.stderr)


def _behind(files: Iterable[str], directory: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the record of every job that some files rest on, each once, in the order they ended."""
    made: dict[str, Mapping[str, Any]] = {}
    found = map(read_record, sorted((directory / LOGS).rglob("*.json")))
    # Of several records that name one file the last one made it.
    for record in sorted(filter(None, found), key=lambda record: record["ended"]):
        made |= dict.fromkeys(record["outputs"], record)
    pending, seen = [str(file) for file in files], set()
    while pending:
        file = pending.pop()
        if file in made and file not in seen:
            seen.update(made[file]["outputs"])
            pending.extend(made[file]["inputs"])
    behind = {id(made[file]): made[file] for file in seen if file in made}
    yield from sorted(behind.values(), key=lambda record: (record["ended"], record["rule"]))


def _rows(record: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    others = {name: value for name, value in record["wildcards"].items() if name != "slide"}
    job = ", ".join(f"{name}={value}" for name, value in others.items())
    own = record["wildcards"].get("slide", "")
    return [
        (record["rule"], w.slide or own, job, ",".join(w.decides), w.n, w.text)
        for w in record["warnings"]
    ]


def _ordered(rows: list[tuple[Any, ...]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    order = table.assign(plain=table["decides"] == "").sort_values(
        ["plain", "rule", "slide", "job"], kind="stable"
    )
    return table.loc[order.index].reset_index(drop=True)


def _slides(slides: list[str]) -> str:
    if not slides:
        return ""
    more = f" and {len(slides) - _NAMED} more" if len(slides) > _NAMED else ""
    return f"slide{'s' * (len(slides) > 1)} {', '.join(slides[:_NAMED])}{more}"
