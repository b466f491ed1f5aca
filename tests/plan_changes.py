"""Plan a study again after each of many changes, in one process: a tool of test_cohorts.

    python tests/plan_changes.py FOLDER < changes.json > planned.json

The study in FOLDER is made up: its inputs are empty, or as short as what planning reads may be, and Snakemake is told (`--touch`) that all
results are up to date. Each change is a dict of `settings` (merged into the configuration), `sheet`
(lines that are added to or, after a minus, dropped from the slide sheet) and `grown` (a file that
gets another line: Snakemake compares the bytes of small files, so a new time alone does nothing).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from pathlib import Path

import yaml
from snakemake.cli import main
from snakemake.utils import update_config

ROOT = Path(__file__).resolve().parents[1]
SHEET = "slide\tpatient\tcohort\timage\tcounts\tlabels"


def section(number: int) -> str:
    """Return the line of a section with spots and labels."""
    return f"P{number}\tP{number}\tvisium\tP{number}.svs\tcounts{number}\tlabels{number}.tsv"


def slide(number: int) -> str:
    """Return the line of a slide without spots."""
    return f"H{number:02d}\tH{number:02d}\thospital\tH{number:02d}.svs\t\t"


LINES = [*map(section, range(1, 4)), *map(slide, range(1, 13))]
CONFIG = {
    "study": "s",
    "slides": "slides.tsv",
    "patients": "patients.tsv",
    "folds": {"patient_cv": 3, "published": 3},
    "references": {"gene_positions": "genes.gtf", "gene_sets": {"sets": "sets.gmt"}},
    # What is off by default has its place in the table too.
    "maps": {"outcomes": ["survival", "response"]},
    "enrichment": {"activity": True},
}


def write_study(folder: Path, lines: list[str], config: dict) -> None:
    """Write sheets and configuration."""
    (folder / "slides.tsv").write_text("\n".join([SHEET, *lines, ""]))
    (folder / "study.yaml").write_text(yaml.safe_dump(config))


def write_inputs(folder: Path) -> None:
    """Write all files that a sheet may name, and the clinical table."""
    folder.mkdir(exist_ok=True)
    for number in range(1, 14):
        (folder / f"H{number:02d}.svs").touch()
    for number in range(1, 5):
        (folder / f"P{number}.svs").touch()
        (folder / f"labels{number}.tsv").write_text("barcode\tlabel\n1x1\tmalignant\n")
        (folder / f"counts{number}").mkdir(exist_ok=True)
    place = ("chr1", "made", "gene", "1", "9", ".", "+", ".", 'gene_id "GENE";')
    (folder / "genes.gtf").write_text("\t".join(place) + "\n")
    (folder / "sets.gmt").write_text("SET\t\tGENE\n")
    rows = ["patient\ttime\tevent\tage\tresponse"]
    rows += [
        f"H{number:02d}\t{number}\t{number % 2}\t60\t{number // 2 % 2}" for number in range(1, 14)
    ]
    (folder / "patients.tsv").write_text("\n".join([*rows, ""]))


def snakemake(folder: Path, *arguments: str) -> str:
    """Call Snakemake in this process; return what it said."""
    said = io.StringIO()
    command = ["--snakefile", ROOT / "Snakefile", "--directory", folder, "--cores", "1"]
    command += ["--configfile", folder / "study.yaml", "--quiet", "rules", *arguments]
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            main(list(map(str, command)))
            status = 0
        except SystemExit as end:
            status = end.code or 0
        finally:
            os.chdir(ROOT)
    if status:
        raise SystemExit(said.getvalue()[-6000:])
    return said.getvalue()


def planned(said: str) -> dict[str, int]:
    """Return the rules and job counts of a dry run."""
    table = said.split("Job stats:")[-1] if "Job stats:" in said else ""
    rules = {}
    for line in table.splitlines():
        words = line.split()
        if len(words) == 2 and words[0].isidentifier() and words[1].isdigit():
            rules[words[0]] = int(words[1])
        if words[:1] == ["total"]:
            break
    return {rule: count for rule, count in rules.items() if rule not in ("total", "all")}


def finish(folder: Path) -> None:
    """Make up all results and tell Snakemake that they are up to date."""
    write_inputs(folder)
    write_study(folder, LINES, CONFIG)
    for line in snakemake(folder, "--summary").splitlines():
        name = line.split("\t")[0]
        if name.startswith("results/"):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            # Folders among the results have no suffix.
            path.touch() if path.suffix else path.mkdir(exist_ok=True)
    # All of them, or there is no record of the parameters of those whose times are in order.
    snakemake(folder, "--touch", "--forceall")


def plan(folder: Path, change: dict) -> dict[str, int]:
    """Return what a change makes Snakemake plan; the study is as before afterwards."""
    lines = list(LINES)
    for line in change.get("sheet", []):
        if line.startswith("-"):
            lines.remove(line[1:])
        else:
            lines.append(line)
    config = json.loads(json.dumps(CONFIG))
    update_config(config, change.get("settings", {}))
    write_study(folder, lines, config)
    grown = folder / change["grown"] if change.get("grown") else None
    if grown:
        before, times = grown.read_text(), grown.stat()
        grown.write_text(before + "\n")
        os.utime(grown, (time.time() + 5, time.time() + 5))
    try:
        return planned(snakemake(folder, "--dry-run"))
    finally:
        if grown:
            grown.write_text(before)
            os.utime(grown, ns=(times.st_atime_ns, times.st_mtime_ns))


if __name__ == "__main__":
    study = Path(sys.argv[1])
    finish(study)
    answers = {name: plan(study, change) for name, change in json.load(sys.stdin).items()}
    json.dump(answers, sys.stdout, indent=1)
