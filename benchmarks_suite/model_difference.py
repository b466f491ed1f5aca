"""Held-out correlation of two models of a study, and their difference with an interval over patients.

Reads the predictions of the patient_cv folds, or fits linear kinds again where there are none:

    python benchmarks_suite/model_difference.py RESULTS_FOLDER STUDY neighbours ridge

The difference is taken on each section (mean over genes of in-section r), averaged over a patient's
sections, and its interval is Student's over patients: with three patients it is wide, as it should be.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from histogep.files import read_tsv
from histogep.models.fit import fit_model
from histogep.models.folds import fold_roles
from histogep.models.predict import build_model
from histogep.models.sections import read_sections
from histogep.models.selection import section_score


def main() -> None:
    """Print the score of each held-out section under both models and their paired difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("study")
    parser.add_argument("kind")
    parser.add_argument("reference")
    arguments = parser.parse_args()
    folds = read_tsv(arguments.results / f"folds/{arguments.study}.tsv", dtype=str)
    slides = folds.loc[folds["protocol"] == "all", "slide"]
    files = [
        [arguments.results / f"{kind}/{slide}.{suffix}" for slide in slides]
        for kind, suffix in (("features", "h5"), ("spots", "h5ad"), ("labels", "tsv"))
    ]
    rows = []
    for fold in folds.loc[folds["protocol"] == "patient_cv", "fold"].unique():
        panel = read_tsv(
            arguments.results / f"genes/{arguments.study}/{fold}.tsv",
            dtype={"gene": str},
            keep_default_na=False,
        )
        genes = panel.loc[panel["main"].astype(str).str.lower() == "true", "gene"].tolist()
        roles = fold_roles(folds, fold)
        sections = {
            role: read_sections(members, *files, task="expression", genes=genes)
            for role, members in roles.items()
            if members
        }
        scores, inner = {}, {}
        for kind in (arguments.kind, arguments.reference):
            fitted = fit_model(
                sections, name=kind, settings={"kind": kind, "task": "expression", "panel": "main"},
                protocol="patient_cv", fold=fold, genes=genes, seed=1, published_grid=(32, 32),
                test=roles["test"],
            )  # fmt: skip
            model = build_model(fitted.arrays, fitted.settings)
            inner[kind] = fitted.settings["validation_score"]
            for section in sections["test"]:
                values, _ = model.predict(section.tiles)
                scores[kind, section.slide] = section_score(values, section.targets)
        for section in sections["test"]:
            pair = [scores[kind, section.slide] for kind in (arguments.kind, arguments.reference)]
            rows.append((section.patient, section.slide, *pair))
            print(
                f"{fold} {section.patient} {section.slide}: "
                + ", ".join(
                    f"{kind} {score:.4f} (inner {inner[kind]:.4f})"
                    for kind, score in zip((arguments.kind, arguments.reference), pair, strict=True)
                )
            )
    patients = list(dict.fromkeys(row[0] for row in rows))
    table = np.array([row[2:] for row in rows])
    of_patients = np.array([table[[row[0] == p for row in rows]].mean(0) for p in patients])
    difference = of_patients[:, 0] - of_patients[:, 1]
    half = stats.t.ppf(0.975, len(difference) - 1) * stats.sem(difference)
    for what, values in (("sections", table), ("patients", of_patients)):
        print(
            f"mean over {len(values)} {what}: {arguments.kind} {values[:, 0].mean():.4f}, "
            f"{arguments.reference} {values[:, 1].mean():.4f}"
        )
    print(
        f"difference over patients {difference.mean():+.4f} "
        f"({difference.mean() - half:+.4f} to {difference.mean() + half:+.4f}, 95 %, Student); "
        f"each {np.round(difference, 4).tolist()}"
    )


if __name__ == "__main__":
    main()
