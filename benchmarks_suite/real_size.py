"""A study of real sizes: what every rule takes beside what it asks for, and how that grows.

Simulated sections of 78 x 64 spots with all genes of the simulation (9,548; main panel of 250 and extended
panel of 5,000 as in the schema) and slides of 60 x 50 tiles run through the whole workflow with the networks of the
default study. The table is that of `python -m histogep.workflow.costs`; with `--beside` the CPU seconds of a
job, and of all jobs, are compared with those of another finished folder (another number of sections).

    .venv/bin/python benchmarks_suite/real_size.py --folder /tmp/real8
    .venv/bin/python benchmarks_suite/real_size.py --folder /tmp/real24 --sections 24 --beside /tmp/real8

About 40 CPU minutes with 8 sections and 12 slides. A run that was interrupted goes on in the same folder.
Ends with 1 if the study fails, a job used more than its rule asks for, or more than 8 GB.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from histogep.simulate.cli import write_study
from histogep.workflow.costs import read_costs, tabulate_costs

ROOT = Path(__file__).resolve().parents[1]
SIZES = {"section_rows": 78, "section_cols": 64, "slide_rows": 60, "slide_cols": 50}
GENES = {"min_moran": 0.05, "max_genes": 250, "extended_max_genes": 5000}
MOST_MB = 8000


def make_study(folder: Path, *, n_sections: int, n_slides: int) -> Path:
    """Write sheets and configuration, two sections of every third patient; return the configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    patients = max(3, n_sections * 3 // 4)
    numbers = {"n_with_spots": patients, "n_sections": n_sections, "n_without_spots": n_slides}
    config = write_study(folder, sizes=SIZES, **numbers) | {"genes": GENES}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def run_study(folder: Path, config: Path, *, cores: int) -> int:
    """Run the study to its end; return the exit status of Snakemake."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile"]
    command += ["--directory", folder, "--configfile", config, "--cores", cores]
    started = time.perf_counter()
    with open(folder / "real_size.log", "a") as said:
        done = subprocess.run([*map(str, command)], stdout=said, stderr=subprocess.STDOUT)
    print(f"{cores} cores: {time.perf_counter() - started:.0f} s, exit status {done.returncode}")
    return done.returncode


def growth(table: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Return by rule how many times the jobs, the CPU of all and of the dearest job, and memory grew."""
    columns = ["jobs", "cpu_s", "cpu_s_most", "peak_mb"]
    ratio = table.set_index("rule")[columns] / other.set_index("rule")[columns]
    return ratio.dropna().sort_values("cpu_s_most", ascending=False).add_suffix("_times")


def main() -> None:
    """Run a study and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--sections", type=int, default=8)
    parser.add_argument(
        "--slides", type=int, default=12, help="patients with a slide without spots"
    )
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--beside", type=Path, help="a finished folder of another size")
    given = parser.parse_args()
    config = make_study(given.folder, n_sections=given.sections, n_slides=given.slides)
    failed = run_study(given.folder, config, cores=given.cores)
    table = tabulate_costs(read_costs(given.folder))
    print(table.round(2).to_string(index=False))
    print(f"{table['jobs'].sum()} jobs, {table['cpu_s'].sum() / 60:.1f} CPU minutes")
    if given.beside:
        print(growth(table, tabulate_costs(read_costs(given.beside))).round(2).to_string())
    over = table[(table["memory_used"] > 1) | (table["time_used"] > 1)]
    over = pd.concat([over, table[table["peak_mb"] > MOST_MB]])["rule"].unique()
    if len(over):
        print(f"more than asked for, or than {MOST_MB} MB: {', '.join(over)}")
    sys.exit(int(bool(failed or len(over))))


if __name__ == "__main__":
    main()
