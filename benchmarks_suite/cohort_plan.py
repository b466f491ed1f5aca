"""Time and memory of planning a study of thousands of slides: a dry run, of which nothing is computed.

The sheet has ten sections with spots, the rest are slides without spots in five cohorts, two slides
a patient, with survival and response. All files exist and are empty: a dry run reads none of them.

    .venv/bin/python benchmarks_suite/cohort_plan.py --slides 5000 --on-bad-slide stop skip
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
N_SECTIONS = 10
N_COHORTS = 5
_RUN = (
    "import resource, subprocess, sys; rc = subprocess.call(sys.argv[1:], stdout=2);"
    "used = resource.getrusage(resource.RUSAGE_CHILDREN);"
    "print(used.ru_maxrss, used.ru_utime + used.ru_stime); sys.exit(rc)"
)


def write_study(folder: Path, n_slides: int, *, on_bad_slide: str = "stop") -> Path:
    """Write sheets, empty files and the configuration; return the path of the configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    slides = ["slide\tpatient\tcohort\timage\tcounts"]
    patients = ["patient\ttime\tevent\tage\tsex\tstage\tresponse"]
    for i in range(n_slides):
        section = i < N_SECTIONS
        patient = f"T{i:04d}" if section else f"H{i // 2:04d}"
        cohort = "visium" if section else f"hospital{i % N_COHORTS}"
        image = folder / "slides" / f"S{i:05d}.svs"
        image.parent.mkdir(exist_ok=True)
        image.touch()
        counts = ""
        if section:
            counts = f"counts{i}"
            (folder / counts).mkdir(exist_ok=True)
        slides.append(f"S{i:05d}\t{patient}\t{cohort}\tslides/{image.name}\t{counts}")
        if not section and i % 2 == 0:
            patients.append(f"{patient}\t{i % 97}\t{i // 2 % 2}\t60\tf\tII\t{i // 4 % 2}")
    (folder / "slides.tsv").write_text("\n".join(slides) + "\n")
    (folder / "patients.tsv").write_text("\n".join(patients) + "\n")
    (folder / "positions.gtf").touch()
    (folder / "sets.gmt").touch()
    config = folder / "study.yaml"
    config.write_text(
        f"study: cohort\nslides: slides.tsv\npatients: patients.tsv\non_bad_slide: {on_bad_slide}\n"
        "references: {gene_positions: positions.gtf, gene_sets: {sets: sets.gmt}}\n"
    )
    return config


def plan(folder: Path, config: Path) -> tuple[float, float, float, str]:
    """Dry-run a study; return seconds, CPU seconds, peak MB of the largest process, the last lines."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--dry-run"]
    command += ["--quiet", "rules", "--cores", "2", "--directory", folder, "--configfile", config]
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _RUN, *map(str, command)],
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(done.stderr[-4000:])
    peak_kb, cpu = done.stdout.split()
    return seconds, float(cpu), int(peak_kb) / 1000, done.stderr


def main() -> None:
    """Print one row per number of slides and way of dealing with bad slides."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slides", type=int, nargs="+", default=[5000])
    parser.add_argument("--on-bad-slide", nargs="+", default=["stop"], choices=["stop", "skip"])
    given = parser.parse_args()
    print("slides\ton_bad_slide\tjobs\tseconds\tcpu_seconds\tpeak_mb")
    for n_slides in given.slides:
        for choice in given.on_bad_slide:
            with tempfile.TemporaryDirectory() as folder:
                config = write_study(Path(folder), n_slides, on_bad_slide=choice)
                seconds, cpu, peak, said = plan(Path(folder), config)
            jobs = next(
                words[1] for line in said.splitlines() if (words := line.split())[:1] == ["total"]
            )
            print(
                n_slides,
                choice,
                jobs,
                f"{seconds:.1f}\t{cpu:.1f}\t{peak:.0f}",
                sep="\t",
                flush=True,
            )


if __name__ == "__main__":
    main()
