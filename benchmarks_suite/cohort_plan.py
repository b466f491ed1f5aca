"""Time and memory of planning a study of thousands of slides: a dry run, of which nothing is computed.

The sheet has ten sections with spots, the rest are slides without spots in five cohorts, two slides
a patient, with survival and response. All files exist and are empty: a dry run reads none of them.

    .venv/bin/python benchmarks_suite/cohort_plan.py --slides 5000 --of stop skip floor

`floor` is what Snakemake itself takes: a workflow of rules without code, parameters, functions or
messages, with the files, logs and benchmarks of the five jobs of each slide and of the cohorts.
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
#: Inputs, then outputs, of the rules of the floor; the first five run for each slide.
FLOOR = {
    "prepare_slide": (["slides/{s}.svs"], ["slides/{s}.json", "slides/{s}"]),
    "tile_slide": (
        ["slides/{s}.json", "slides/{s}.svs", "slides/{s}"],
        [f"tiles/{{s}}.{end}" for end in ("parquet", "geojson", "quality.tsv", "png")],
    ),
    "encode_tiles": (
        ["slides/{s}.json", "slides/{s}.svs", "slides/{s}", "tiles/{s}.parquet"],
        ["features/{s}.h5"],
    ),
    "predict_slide": (
        ["slides/{s}.json", "features/{s}.h5", "positions.gtf"],
        [f"expression/{{s}}.{end}" for end in ("h5ad", "geojson", "png")],
    ),
    "infer_cnv": (
        ["features/{s}.h5", "expression/{s}.h5ad", "positions.gtf"],
        [f"cnv/{{s}}.{end}" for end in ("h5ad", "arms.tsv", "png")],
    ),
}
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
    gene = 'gene_id "ENSG1"; gene_name "GENE";'
    (folder / "positions.gtf").write_text(f"chr1\tx\tgene\t1\t9\t.\t+\t.\t{gene}\n")
    (folder / "sets.gmt").write_text("SET\t\tGENE\n")
    config = folder / "study.yaml"
    config.write_text(
        f"study: cohort\nslides: slides.tsv\npatients: patients.tsv\non_bad_slide: {on_bad_slide}\n"
        "references: {gene_positions: positions.gtf, gene_sets: {sets: sets.gmt}}\n"
    )
    return config


def write_floor(folder: Path, n_slides: int) -> Path:
    """Write a workflow of as many slides, files and jobs, of which none does anything."""
    (folder / "slides").mkdir(parents=True)
    (folder / "positions.gtf").touch()
    slides = [f"S{i:05d}" for i in range(n_slides)]
    for slide in slides:
        (folder / f"slides/{slide}.svs").touch()
    rules = [f"SLIDES = {slides!r}\nwildcard_constraints:\n    s=r'S[0-9]+',\n    c=r'[0-9]'"]
    per_cohort = {"subtype_tumours": "cnv", "summarise_patients": "expression"}
    made = [f"results/{rule}/{c}.tsv" for rule in per_cohort for c in range(N_COHORTS)]
    rules.append(
        f"rule all:\n    input: [f'results/expression/{{s}}.h5ad' for s in SLIDES], {made}"
    )
    for rule, (inputs, outputs) in FLOOR.items():
        inputs = [x if x.endswith((".svs", ".gtf")) else f"results/{x}" for x in inputs]
        outputs = [f"results/{x}" for x in outputs]
        rules.append(
            f"rule {rule}:\n    input: {inputs}\n    output: {outputs}\n"
            f"    log: 'logs/{rule}/{{s}}.log'\n    benchmark: 'benchmarks/{rule}/{{s}}.tsv'"
        )
    for rule, kind in per_cohort.items():
        files = f"[f'results/{kind}/{{s}}.h5ad' for s in SLIDES[int(w.c)::{N_COHORTS}]]"
        rules.append(
            f"rule {rule}:\n    input: lambda w: {files}\n    output: 'results/{rule}/{{c}}.tsv'"
        )
    path = folder / "Snakefile"
    path.write_text("\n\n".join(rules) + "\n")
    return path


def plan(
    folder: Path, config: Path | None, *, snakefile: Path = ROOT / "Snakefile"
) -> tuple[float, float, float, str]:
    """Dry-run a study; return seconds, CPU seconds, peak MB of the largest process, the last lines."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", snakefile, "--dry-run"]
    command += ["--quiet", "rules", "--cores", "2", "--directory", folder]
    command += ["--configfile", config] if config else []
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
    parser.add_argument("--of", nargs="+", default=["stop"], choices=["stop", "skip", "floor"])
    given = parser.parse_args()
    print("slides\tof\tjobs\tseconds\tcpu_seconds\tpeak_mb")
    for n_slides in given.slides:
        for choice in given.of:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                if choice == "floor":
                    made = plan(folder, None, snakefile=write_floor(folder, n_slides))
                else:
                    made = plan(folder, write_study(folder, n_slides, on_bad_slide=choice))
            seconds, cpu, peak, said = made
            jobs = next(
                words[1] for line in said.splitlines() if (words := line.split())[:1] == ["total"]
            )
            times = f"{seconds:.1f}\t{cpu:.1f}\t{peak:.0f}"
            print(n_slides, choice, jobs, times, sep="\t", flush=True)


if __name__ == "__main__":
    main()
