"""Held-out correlation of every kind of model against the number of training patients.

Simulates patients with one section each (images, counts, features: `simulate`), then trains every
kind on the first 2, 4, ... of them, draws them again for each seed, and scores it on test patients that
serve no choice (`curve`). Printed are the means over test patients, the paired difference from
`neighbours` with Student's 95 % interval over test patients, and the CPU seconds of a training:

    python benchmarks_suite/learning_curve.py simulate FOLDER --patients 32
    python benchmarks_suite/learning_curve.py curve FOLDER --sizes 2 4 8 --seeds 1 2 3 --out curve.tsv
    python benchmarks_suite/learning_curve.py curve FOLDER --keep 0.05 --sizes 2 4 8 --out thin.tsv
    python benchmarks_suite/learning_curve.py draw curve.tsv docs/figures/learning_curve.svg

`--keep` thins the counts (binomially) before anything else; the panel is then chosen on thinned ones.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import torch
import yaml
from scipy import sparse, stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from histogep.encoders.encode import encode_slide, open_encoders
from histogep.encoders.exported import export_encoder
from histogep.files import complete, read_tsv, write_json, write_tsv
from histogep.lattice import Lattice
from histogep.models.fit import fit_model
from histogep.models.folds import MIN_TRAINING_PATIENTS
from histogep.models.predict import build_model
from histogep.models.sections import read_section
from histogep.models.selection import section_score
from histogep.report import style
from histogep.simulate.cohort import slide_composition
from histogep.simulate.files import simulate_section
from histogep.simulate.genes import bundled_positions, plant_truth
from histogep.slides.prepare import describe_slide
from histogep.slides.reader import Slide
from histogep.slides.tiles import spot_tiles
from histogep.slides.tissue import tissue_mask
from histogep.spots.align import align_spots
from histogep.spots.matrices import expression_of
from histogep.spots.normalise import add_expression
from histogep.spots.panel import choose_panel
from histogep.spots.readers import read_section as read_counts
from histogep.spots.variable_genes import score_genes
from histogep.study.settings import complete_settings

REPOSITORY = Path(__file__).resolve().parents[1]
#: Patients that are tested; they are the last ones, and no choice sees them.
N_TEST = 8
REFERENCE = "neighbours"
KINDS: dict[str, dict[str, Any]] = {
    "ridge": {"kind": "ridge"},
    "neighbours": {"kind": "neighbours"},
    "lattice": {"kind": "lattice"},
    "blend": {"kind": "blend"},
    "cmunet": {"kind": "cmunet"},
    "cmunet_epochs_alone": {"kind": "cmunet", "min_steps": 0},
}
MARKERS = REPOSITORY / "histogep/resources/markers.tsv"


def study_settings() -> dict[str, Any]:
    """Return the complete settings of the default study."""
    schema = yaml.safe_load((REPOSITORY / "config/schemas/config.schema.yaml").read_text())
    return complete_settings(
        yaml.safe_load((REPOSITORY / "config/config.yaml").read_text()), schema
    )


def simulate(folder: Path, *, n_patients: int, seed: int) -> None:
    """Write features and spots of one section of each patient; those that are there are kept."""
    settings = study_settings()
    lattice = Lattice.from_settings(settings["lattice"])
    positions = bundled_positions()
    truth = plant_truth(positions, seed=seed)
    exported = {}
    for each in settings["encoders"]:
        if each["name"] != "descriptors":
            exported[each["name"]] = folder / f"encoders/{each['name']}.json"
            if not exported[each["name"]].is_file():
                export_encoder(each, exported[each["name"]])
    encoders = open_encoders(settings["encoders"], exported=exported, threads=1, cuda=False)
    for number in range(1, n_patients + 1):
        slide = f"P{number:02d}-1"
        written = folder / f"features/{slide}.h5"
        if written.is_file():
            continue
        image, counts = folder / f"images/{slide}.tiff", folder / f"images/{slide}"
        simulate_section(
            slide, settings["simulation"], slide_composition(seed, slide), positions=positions,
            truth=truth, seed=seed, image=image, folder=counts,
        )  # fmt: skip
        described = folder / f"slides/{slide}.json"
        geometry = describe_slide(slide=slide, source=image, folder=folder / f"slides/{slide}")
        write_json(geometry, described)
        with Slide.from_json(described) as opened:
            mask = tissue_mask(opened, settings["tissue"])
            spots = align_spots(
                read_counts(counts, pitch_um=lattice.pitch_um), opened, mask,
                lattice=lattice, settings=settings["spots"],
            )  # fmt: skip
            with complete(folder / f"spots/{slide}.h5ad") as temporary:
                spots.write_h5ad(temporary, compression="gzip")
            tiles = spot_tiles(opened, mask, lattice=lattice, spots=folder / f"spots/{slide}.h5ad")
            encode_slide(
                opened, tiles, written, lattice=lattice, encoders=encoders, threads=1, cuda=False
            )
        image.unlink()
        print(f"{slide}: {spots.n_obs} spots, {time.process_time():.0f} CPU s so far", flush=True)


def thinned(spots: anndata.AnnData, keep: float, *, seed: int) -> anndata.AnnData:
    """Return spots whose counts are kept with a probability; spots without any are left out."""
    counts = sparse.csr_matrix(spots.X)
    rng = np.random.default_rng(seed)
    counts.data = rng.binomial(counts.data.astype(int), keep).astype(np.float32)
    thin = spots[np.asarray(counts.sum(1)).ravel() > 0].copy()
    thin.X = counts[np.asarray(counts.sum(1)).ravel() > 0]
    return add_expression(thin)


def scored_sections(folder: Path, keep: float) -> tuple[dict[str, Path], dict[str, pd.DataFrame]]:
    """Return the spots of each section, thinned where asked for, and its gene scores, made once."""
    settings = study_settings()["genes"]
    spots, scores = {}, {}
    for number, features in enumerate(sorted((folder / "features").glob("*.h5"))):
        slide = features.stem
        spots[slide] = folder / f"spots/{slide}.h5ad"
        if keep < 1:
            whole, spots[slide] = spots[slide], folder / f"spots-{keep:g}/{slide}.h5ad"
            if not spots[slide].is_file():
                thin = thinned(anndata.read_h5ad(whole), keep, seed=number)
                with complete(spots[slide]) as temporary:
                    thin.write_h5ad(temporary)
        table = folder / f"genes-{keep:g}/{slide}.tsv"
        if not table.is_file():
            own = anndata.read_h5ad(spots[slide])
            write_tsv(
                score_genes(
                    expression_of(own), own.var_names, x=own.obsm["spatial"][:, 0],
                    y=own.obsm["spatial"][:, 1], row=own.obs["row"].to_numpy(),
                    col=own.obs["col"].to_numpy(), neighbours=settings["neighbours"],
                ),
                table,
            )  # fmt: skip
        scores[slide] = read_tsv(table, dtype={"gene": str})
    return spots, scores


def curve(
    folder: Path,
    *,
    sizes: list[int],
    seeds: list[int],
    kinds: list[str],
    keep: float,
    out: Path,
) -> None:
    """Train and test; one row per size, seed, kind and test patient, written as they come."""
    study = study_settings()
    torch.set_num_threads(1)
    spots, scores = scored_sections(folder, keep)
    slides = sorted(spots)
    tested, trained_on = slides[-N_TEST:], slides[:-N_TEST]
    markers = read_tsv(MARKERS, dtype=str)
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        order = np.random.default_rng(seed).permutation(trained_on)
        for size in sizes:
            chosen = list(order[:size])
            panel = choose_panel({s: scores[s] for s in chosen}, markers, study["genes"])
            genes = panel.loc[panel["main"], "gene"].tolist()
            sections = {
                slide: read_section(
                    folder / f"features/{slide}.h5", spots[slide], "", slide=slide,
                    patient=slide[: slide.index("-")], task="expression", genes=genes,
                )
                for slide in [*chosen, *tested]
            }  # fmt: skip
            # As in a study: one patient chooses the network's epoch where three or more are there.
            judges = chosen[-1:] if size >= MIN_TRAINING_PATIENTS else []
            roles = {
                "train": [sections[s] for s in chosen if s not in judges],
                "validation": [sections[s] for s in judges],
            }
            for name in kinds:
                settings = {**KINDS[name], "task": "expression", "panel": "main"}
                if settings["kind"] == "cmunet":
                    settings = {**study["models"]["cmunet"], **settings}
                begun = time.process_time()
                fitted = fit_model(
                    roles, name=name, settings=settings, protocol="patient_cv", fold="curve",
                    genes=genes, seed=seed, published_grid=study["folds"]["published_grid"],
                    test={},
                )  # fmt: skip
                seconds = time.process_time() - begun
                model = build_model(fitted.arrays, fitted.settings)
                rows += [
                    {
                        "patients": size,
                        "seed": seed,
                        "model": name,
                        "patient": sections[slide].patient,
                        "score": section_score(
                            model.predict(sections[slide].tiles)[0], sections[slide].targets
                        ),
                        "share": (fitted.settings.get("choice") or {}).get("share", np.nan),
                        "cpu_s": seconds,
                    }
                    for slide in tested
                ]
                write_tsv(pd.DataFrame(rows), out)
                mean = np.mean([row["score"] for row in rows[-len(tested) :]])
                print(f"{size} {seed} {name}: {mean:.4f}, {seconds:.0f} CPU s", flush=True)
    print(summarise(pd.DataFrame(rows)).to_string(index=False))


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Return mean score, paired difference from `neighbours` with its interval, and CPU seconds.

    Seeds are averaged first; the interval is Student's over test patients.
    """
    wide = table.pivot_table(index=["patients", "patient"], columns="model", values="score")
    rows = []
    for (size, name), part in table.groupby(["patients", "model"], sort=True):
        scores = wide.loc[size]
        difference = (scores[name] - scores[REFERENCE]).to_numpy()
        n = len(difference)
        half = stats.t.ppf(0.975, n - 1) * difference.std(ddof=1) / np.sqrt(n)
        rows.append(
            {
                "patients": size,
                "model": name,
                "score": scores[name].mean(),
                "difference": difference.mean(),
                "ci_low": difference.mean() - half,
                "ci_high": difference.mean() + half,
                "share": part["share"].mean(),
                "seeds": part["seed"].nunique(),
                "cpu_s": part["cpu_s"].mean(),
            }
        )
    return pd.DataFrame(rows).round(4)


def draw(table: Path, figure: Path) -> None:
    """Draw score and paired difference of each kind against the number of training patients."""
    summary = summarise(read_tsv(table, dtype={"patient": str}))
    drawn = style.figure(width_mm=180, height_mm=75)
    left, right = drawn.subplots(1, 2)
    for number, (name, part) in enumerate(summary.groupby("model")):
        place = part["patients"] * 1.03 ** (number - 2)
        left.plot(place, part["score"], marker="o", ms=3, label=name, color=f"C{number}")
        if name != REFERENCE:
            error = [
                part["difference"] - part["ci_low"],
                part["ci_high"] - part["difference"],
            ]
            right.errorbar(place, part["difference"], error, marker="o", ms=3, color=f"C{number}")
    right.axhline(0, color="0.6", lw=0.6)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(summary["patients"].unique()))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("training patients")
    left.set_ylabel("Pearson r in the tissue, test patients")
    right.set_ylabel(f"paired difference from {REFERENCE}")
    # A network that is not trained enough would squeeze all that is to be seen.
    right.set_ylim(-0.03, 0.03)
    left.legend(frameon=False)
    style.save(drawn, figure)


def main() -> None:
    """Run the step that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    steps = parser.add_subparsers(dest="step", required=True)
    step = steps.add_parser("simulate")
    step.add_argument("folder", type=Path)
    step.add_argument("--patients", type=int, default=32)
    step.add_argument("--seed", type=int, default=11)
    step = steps.add_parser("curve")
    step.add_argument("folder", type=Path)
    step.add_argument("--sizes", type=int, nargs="+", default=[2, 4, 8, 16, 24])
    step.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    step.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    step.add_argument("--keep", type=float, default=1.0)
    step.add_argument("--out", type=Path, required=True)
    step = steps.add_parser("summary")
    step.add_argument("tables", type=Path, nargs="+")
    step = steps.add_parser("draw")
    step.add_argument("table", type=Path)
    step.add_argument("figure", type=Path)
    given = parser.parse_args()
    if given.step == "simulate":
        simulate(given.folder, n_patients=given.patients, seed=given.seed)
    elif given.step == "curve":
        kinds = list(dict.fromkeys([REFERENCE, *given.kinds]))
        curve(
            given.folder, sizes=given.sizes, seeds=given.seeds, kinds=kinds, keep=given.keep,
            out=given.out,
        )  # fmt: skip
    elif given.step == "summary":
        tables = [read_tsv(path, dtype={"patient": str}) for path in given.tables]
        print(summarise(pd.concat(tables)).to_string(index=False))
    else:
        draw(given.table, given.figure)


if __name__ == "__main__":
    main()
