"""Held-out correlation of the linear models beside the marks of a plain ridge, and a leak's size.

Leave one patient out; the panel is the 250 genes most variable over the training sections, so no
choice sees a held-out patient; then once more with the panel chosen on all sections, which leaks.
"chosen" is, fold by fold, the kind of the better score in inner patient folds. The marks are those
of a plain ridge on the six her2st sections. Run it on a study whose features and spots exist:

    python benchmarks_suite/ridge_marks.py RESULTS_FOLDER STUDY
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import anndata
import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from histogep.deployment.folder import tiles_of
from histogep.encoders.feature_file import read_features
from histogep.files import read_tsv
from histogep.lattice import Lattice
from histogep.models.neighbours import fit_neighbours
from histogep.models.ridge import fit_ridge
from histogep.models.selection import mean_over_groups, section_score
from histogep.spots.matrices import expression_of

N_GENES = 250
#: Plain ridge on descriptors + lite0, six her2st sections: mean over sections, over patients.
MARKS = (0.101, 0.118)
KINDS = {"ridge": fit_ridge, "neighbours": fit_neighbours}


def main() -> None:
    """Print the score of each section, its mean over sections and patients, and the leak's size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("study")
    arguments = parser.parse_args()
    folds = read_tsv(arguments.results / f"folds/{arguments.study}.tsv", dtype=str)
    patient = dict(folds[folds["protocol"] == "all"][["slide", "patient"]].to_numpy())
    features, spots = {}, {}
    for slide in patient:
        table = anndata.read_h5ad(arguments.results / f"spots/{slide}.h5ad")
        encoded = read_features(arguments.results / f"features/{slide}.h5")
        place = {barcode: i for i, barcode in enumerate(encoded.barcode)}
        order = np.array([place[barcode] for barcode in table.obs_names])
        for name in ("values", "row", "col"):
            setattr(encoded, name, getattr(encoded, name)[order])
        features[slide], spots[slide] = encoded, table
    shared = sorted(set.intersection(*(set(table.var_names) for table in spots.values())))
    expression = {
        slide: expression_of(table)[:, table.var_names.get_indexer(shared)].toarray()
        for slide, table in spots.items()
    }
    for name, leak in (("panel in the fold", False), ("panel on all sections (a leak)", True)):
        scores = {kind: {} for kind in (*KINDS, "chosen")}
        for held_out in dict.fromkeys(patient.values()):
            train = [slide for slide in patient if patient[slide] != held_out]
            variance = np.mean([expression[s].var(0) for s in (patient if leak else train)], axis=0)
            genes = np.argsort(-variance, kind="stable")[:N_GENES]
            models = {
                kind: fit(
                    [tiles_of(features[slide]) for slide in train],
                    [expression[slide][:, genes] for slide in train],
                    [patient[slide] for slide in train],
                    blocks=features[train[0]].blocks,
                    lattice=Lattice.from_settings(features[train[0]].lattice),
                )
                for kind, fit in KINDS.items()
            }
            chosen = max(KINDS, key=lambda kind: models[kind].choice["score"])
            for slide in set(patient) - set(train):
                for kind, model in models.items():
                    predicted, _ = model.predict(tiles_of(features[slide]))
                    scores[kind][slide] = section_score(predicted, expression[slide][:, genes])
                scores["chosen"][slide] = scores[chosen][slide]
            inner = ", ".join(f"{k} {model.choice['score']:.4f}" for k, model in models.items())
            print(f"{name}, without {held_out}: inner scores {inner}; chosen {chosen}", flush=True)
        of_patients = {}
        for kind, of_slides in scores.items():
            values = [of_slides[slide] for slide in patient]
            names = list(patient.values())
            of_patients[kind] = np.array(
                [
                    np.mean([v for v, n in zip(values, names, strict=True) if n == one])
                    for one in dict.fromkeys(names)
                ]
            )
            each = ", ".join(f"{slide} {score:.3f}" for slide, score in sorted(of_slides.items()))
            print(
                f"{name}, {kind}: sections {np.mean(values):.4f} (mark {MARKS[0]}), patients "
                f"{mean_over_groups(values, names):.4f} (mark {MARKS[1]}); {each}",
                flush=True,
            )
        gain = of_patients["chosen"] - of_patients["ridge"]
        half = stats.t.ppf(0.975, len(gain) - 1) * stats.sem(gain)
        print(
            f"{name}, chosen minus ridge over patients: {gain.mean():+.4f} "
            f"({gain.mean() - half:+.4f} to {gain.mean() + half:+.4f}, 95 %, Student)",
            flush=True,
        )


if __name__ == "__main__":
    main()
