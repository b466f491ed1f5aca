"""How well planted clones and arms are found on measured spots, by seed.

The counts of the default study's sections are drawn (no images), labelled by their annotation, and
profiled as infer_cnv does. Clones are compared with the clone that prevails in each spot, over all
spots that are mostly tumour; those that the annotation leaves undetermined count as one more group.

    .venv/bin/python benchmarks_suite/planted_clones.py --seeds 1 2 3 4 5
    .venv/bin/python benchmarks_suite/planted_clones.py --rows 78 --cols 64 --sections P02-1
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
import yaml
from sklearn.metrics import adjusted_rand_score

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from histogep.cnv.clones import call_arms, call_clones
from histogep.cnv.profiles import compare_genes
from histogep.labels.annotated import map_texts
from histogep.simulate.cohort import patient_id, slide_composition, stream
from histogep.simulate.counts import Expression
from histogep.simulate.files import (
    DEFAULTS,
    LATTICE,
    _annotation,
    _array,
    _measure,
    _tissue,
    _truth_table,
)
from histogep.simulate.genes import bundled_positions, plant_truth
from histogep.spots.matrices import expression_of
from histogep.spots.normalise import add_expression
from histogep.study.settings import complete_settings

ROOT = Path(__file__).resolve().parents[1]
SECTIONS = [f"{patient_id('P', number, 6)}-1" for number in range(6)] + ["P01-2"]


def score_section(
    section: str,
    *,
    seed: int,
    positions: pd.DataFrame,
    truth: dict[str, Any],
    settings: dict[str, Any],
) -> list[object]:
    """Return spots, clones, adjusted Rand index, right arms and CPU seconds of one section.

    Right arms are those of the planted ones whose mean has the right sign.
    """
    rows, cols = settings["simulation"]["section_rows"], settings["simulation"]["section_cols"]
    tissue = _tissue(section, slide_composition(seed, section), rows, cols, seed=seed)
    spots = _array(tissue, rows, cols, rng=stream(seed, "barcodes", section))
    spots = spots[spots["in_tissue"] == 1].sort_values("barcode", ignore_index=True)
    counts, shares = _measure(
        tissue,
        spots,
        Expression.from_truth(positions, truth),
        depth=float(settings["simulation"].get("depth", DEFAULTS["depth"])),
        rng=stream(seed, "counts", section),
    )
    planted = _truth_table(spots["barcode"], shares)
    texts = _annotation(planted)["label"]
    label = map_texts(texts, settings["labels"], path="the simulated annotation").to_numpy(object)
    reference, malignant = label == "non-malignant", label == "malignant"
    expression = expression_of(add_expression(anndata.AnnData(counts)))
    profiles = compare_genes(expression, positions, reference, genes=list(positions["gene"]))
    neighbours = LATTICE.neighbours(
        spots["array_row"].to_numpy(), spots["array_col"].to_numpy() // 2
    )
    tumour = ~reference & (planted["clone"] != "").to_numpy()
    start = time.process_time()
    clones = call_clones(profiles, malignant, neighbours=neighbours, seed=seed)
    seconds = time.process_time() - start
    arms = call_arms(profiles, clones.labels, neighbours=neighbours, seed=seed)
    called = clones.labels[tumour].astype(str)
    score = adjusted_rand_score(planted["clone"][tumour].to_numpy(str), called)
    right = []
    for name in clones.names:
        clone = planted["clone"][clones.labels == name].mode()[0]
        value = arms[arms["clone"] == name].set_index("arm")["value"]
        right += [
            (value[arm] > 0) == (factor > 1)
            for arm, factor in truth["arms"].get(clone, {}).items()
            if arm in value
        ]
    found = f"{np.sum(right)} of {len(right)}"
    return [len(spots), len(clones.names), f"{score:.3f}", found, f"{seconds:.2f}"]


def main() -> None:
    """Print one line per section, and the mean and the least of each seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--rows", type=int, help="rows of spots, in place of the default study's")
    parser.add_argument("--cols", type=int)
    parser.add_argument("--sections", nargs="+", default=SECTIONS, choices=SECTIONS)
    options = parser.parse_args()
    schema = yaml.safe_load((ROOT / "config/schemas/config.schema.yaml").read_text())
    settings = complete_settings(yaml.safe_load((ROOT / "config/config.yaml").read_text()), schema)
    sizes = {"section_rows": options.rows, "section_cols": options.cols}
    settings["simulation"] |= {name: size for name, size in sizes.items() if size}
    positions = bundled_positions()
    print("seed", "section", "spots", "clones", "adjusted_rand", "arms right", "cpu_s", sep="\t")
    every: list[float] = []
    for seed in options.seeds:
        truth = plant_truth(positions, seed=seed)
        scores = []
        for section in options.sections:
            row = score_section(
                section, seed=seed, positions=positions, truth=truth, settings=settings
            )
            scores.append(float(str(row[2])))
            print(seed, section, *row, sep="\t", flush=True)
        every += scores
        _summarise(seed, scores)
    _summarise("all", every)


def _summarise(seed: int | str, scores: list[float]) -> None:
    print(seed, f"mean {np.mean(scores):.3f}", f"least {min(scores):.3f}", sep="\t", flush=True)


if __name__ == "__main__":
    main()
