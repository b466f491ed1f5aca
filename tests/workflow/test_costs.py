"""What jobs took and asked for, from the records and logs that `job_log` itself writes."""

import json
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from histogep.errors import InputError
from histogep.workflow.costs import COLUMNS, Cost, read_costs, tabulate_costs
from histogep.workflow.job import job_log

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A folder in which two jobs of one rule and one of another have ended."""
    monkeypatch.chdir(tmp_path)
    for rule, name, asked in (
        ("tile_slide", "A", {"mem_mb": 4000, "runtime": 60}),
        ("tile_slide", "B", {"mem_mb": 8000, "runtime": 120}),
        ("list_slides", "", {}),
    ):
        log = tmp_path / "logs" / rule / f"{name}.log" if name else tmp_path / f"logs/{rule}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        nothing = dict.fromkeys(("input", "output", "params", "wildcards"), {})
        job = SimpleNamespace(rule=rule, threads=1, resources=asked, **nothing)
        with job_log(log, job):
            sum(i * i for i in range(3_000_000 if name == "B" else 1000))
    return tmp_path


def test_costs_are_those_that_the_jobs_left(finished):
    costs = read_costs(finished)
    assert [cost.rule for cost in costs] == ["list_slides", "tile_slide", "tile_slide"]
    assert all(10 < cost.peak_mb < 5000 and cost.cpu_s > 0 for cost in costs)
    a, b = costs[1:]
    assert (a.mem_mb, b.mem_mb, a.runtime_min, b.runtime_min) == (4000, 8000, 60, 120)
    assert b.seconds > 0.02
    assert b.seconds > a.seconds


def test_the_seconds_are_those_between_the_times_of_the_record(finished):
    path = finished / "logs/tile_slide/A.json"
    record = json.loads(path.read_text())
    later = datetime.fromisoformat(record["started"]) + timedelta(minutes=90)
    path.write_text(json.dumps(record | {"ended": later.isoformat()}))
    table = tabulate_costs(read_costs(finished)).set_index("rule")
    assert table.loc["tile_slide", "s_most"] == 5400
    assert table.loc["tile_slide", "time_used"] == 1.5


def test_what_is_no_record_of_a_job_or_did_not_end_is_left_out(finished):
    (finished / "logs/study.json").write_text("{}\n{}\n")
    (finished / "logs/tile_slide/A.log").write_text("killed")
    (finished / "logs/list_slides.log").unlink()
    assert [cost.rule for cost in read_costs(finished)] == ["tile_slide"]


def test_a_row_holds_sums_over_jobs_and_the_most_of_one():
    costs = [
        Cost("a", 10.0, 60.0, 500.0, 1000.0, 10.0),
        # A second attempt asks for twice as much.
        Cost("a", 30.0, 120.0, 1500.0, 2000.0, 20.0),
        Cost("b", 50.0, 1.0, 100.0, 0.0, 0.0),
    ]
    table = tabulate_costs(costs)
    assert tuple(table.columns) == COLUMNS
    b, a = table.to_dict("records")
    assert (a["jobs"], a["cpu_s"], a["cpu_s_most"], a["s_most"]) == (2, 40.0, 30.0, 120.0)
    assert (a["peak_mb"], a["mem_mb"], a["memory_used"], a["time_used"]) == (1500, 2000, 0.75, 0.1)
    assert np.isnan(b["memory_used"])
    assert np.isnan(b["time_used"])


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(InputError, match="name the folder in which the study ran"):
        read_costs(tmp_path)


def test_the_command_prints_the_table(finished):
    call = [sys.executable, "-m", "histogep.workflow.costs", str(finished)]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True)
    header, *rows = done.stdout.splitlines()
    assert header.split("\t") == list(COLUMNS)
    assert {row.split("\t")[0] for row in rows} == {"tile_slide", "list_slides"}
