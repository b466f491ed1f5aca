"""Run a cohort of tiny simulated slides to the end: what thousands of jobs cost beside their work.

Two sections train the model, the other slides (one a patient) are predicted, profiled and analysed
with survival, response and enrichment. A slide is 0.5 mm wide, is described without a network and
predicted without one, so that nearly all of the time is that of starting jobs. A run that was
interrupted goes on in the same folder; the row then counts the jobs and seconds of the last call.

    .venv/bin/python benchmarks_suite/cohort_run.py --slides 1000 --cores 2 --folder /tmp/cohort
"""

from __future__ import annotations

import argparse
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from histogep.simulate.cli import write_study

ROOT = Path(__file__).resolve().parents[1]
SIZES = {"section_rows": 16, "section_cols": 16, "slide_rows": 5, "slide_cols": 5}


def make_study(folder: Path, n_slides: int) -> Path:
    """Write sheets and configuration; return the path of the configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    config = write_study(
        folder, sizes=SIZES, n_with_spots=2, n_sections=2, n_without_spots=n_slides
    )
    config["encoders"] = [{"name": "descriptors"}]
    config["folds"] |= {"patient_cv": 2, "published": 2}
    # With one training patient a fold the light map has no inner score, so `auto` takes the network.
    config["deploy"] = {"expression": "ridge", "tumour": "tumour"}
    del config["models"]["blend"]
    for model in ("cmunet", "tumour"):
        config["models"][model] |= {"epochs": 4, "min_steps": 0}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def main() -> None:
    """Run the study and print one row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slides", type=int, default=1000)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args()
    config = make_study(given.folder, given.slides)
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile"]
    command += ["--directory", given.folder, "--configfile", config, "--cores", given.cores]
    log = given.folder / "cohort_run.log"
    started = time.perf_counter()
    with open(log, "w") as said:
        done = subprocess.run([*map(str, command)], stdout=said, stderr=subprocess.STDOUT)
    seconds = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    steps = re.findall(r"(\d+) of (\d+) steps", log.read_text())
    print("slides\tcores\tjobs_done\tjobs\tseconds\tcpu_seconds\tpeak_mb_of_a_process")
    row = [given.slides, given.cores, *(steps[-1] if steps else (0, 0)), round(seconds)]
    print(*row, round(used.ru_utime + used.ru_stime), used.ru_maxrss // 1000, sep="\t")
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
