"""Held-out correlation of the two-part ridge beside the marks of a plain one (METHOD.md, section 5).

Leave one patient out; the panel is the 250 genes most variable over the training sections, so no
choice sees a held-out patient. Run it on a study whose features and spots exist:

    python benchmarks_suite/ridge_marks.py RESULTS_FOLDER STUDY
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import anndata
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from histogep.features import read_features
from histogep.files import read_tsv
from histogep.lattice import Lattice
from histogep.model_folder import tiles_of
from histogep.normalise import log_cp10k
from histogep.ridge import fit_ridge
from histogep.selection import mean_over_groups, section_score

N_GENES = 250
#: Plain ridge on descriptors + lite0, six her2st sections: mean over sections, over patients.
MARKS = (0.101, 0.118)


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
        slide: log_cp10k(table.X)[:, table.var_names.get_indexer(shared)].toarray()
        for slide, table in spots.items()
    }
    for name, leak in (("panel in the fold", False), ("panel on all sections (a leak)", True)):
        scores = {}
        for held_out in dict.fromkeys(patient.values()):
            train = [slide for slide in patient if patient[slide] != held_out]
            variance = np.mean([expression[s].var(0) for s in (patient if leak else train)], axis=0)
            genes = np.argsort(-variance, kind="stable")[:N_GENES]
            model = fit_ridge(
                [tiles_of(features[slide]) for slide in train],
                [expression[slide][:, genes] for slide in train],
                [patient[slide] for slide in train],
                blocks=features[train[0]].blocks,
                lattice=Lattice.from_settings(features[train[0]].lattice),
            )
            for slide in set(patient) - set(train):
                predicted, _ = model.predict(tiles_of(features[slide]))
                scores[slide] = section_score(predicted, expression[slide][:, genes])
        values = [scores[slide] for slide in patient]
        by_patient = mean_over_groups(values, list(patient.values()))
        each = ", ".join(f"{slide} {score:.3f}" for slide, score in sorted(scores.items()))
        print(
            f"{name}: sections {np.mean(values):.4f} (mark {MARKS[0]}), "
            f"patients {by_patient:.4f} (mark {MARKS[1]}); {each}"
        )


if __name__ == "__main__":
    main()
