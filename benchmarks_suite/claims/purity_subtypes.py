"""How often clones that differ in purity alone are taken for subtypes (row 8), and planted ones found.

Each patient has a slide of 60 spots, half of them tumour of one clone, whose purity is the
patient's own, .2 to .9. Counts are drawn spot by spot and profiled as measured sections are. All
patients bear one copy-number profile (one subtype is right), or one of two or three, in turn. With
`programme` each patient's tumour has an expression programme of its own as well.

    python benchmarks_suite/claims.py --row 8 --runs 50 --seed 1000
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import adjusted_rand_score

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from histogep.cnv.cohort import SlideProfile
from histogep.cnv.controls import COLUMNS
from histogep.cnv.profiles import compare_genes
from histogep.cnv.subtypes import subtype_cohort
from histogep.inputs.genome import assign_arms

#: Copy-number factors of the arms of each subtype; the first arms are shared.
KINDS = (
    {"1q": 1.5, "16q": 0.5, "8q": 1.5, "17p": 0.5, "11q": 0.5},
    {"1q": 1.5, "16q": 0.5, "3p": 0.5, "20q": 1.5, "7p": 1.5},
    {"5q": 0.5, "13q": 1.5, "10q": 0.5, "6q": 0.5, "1q": 1.5},
)
N_GENES, N_SPOTS = 3000, 60
LENGTHS_MB = (
    *(249, 242, 198, 190, 181, 171, 159, 145, 138, 134, 135),
    *(133, 114, 107, 102, 90, 83, 80, 59, 64, 47, 51),
)


def make_genome() -> pd.DataFrame:
    """Return 3,000 genes along the autosomes."""
    rows = []
    for number, end in enumerate(LENGTHS_MB, start=1):
        first = 20 if number in (13, 14, 15, 21, 22) else 1
        places = np.linspace(first, end, round(end * N_GENES / sum(LENGTHS_MB)))
        rows += [(f"g{number}_{i}", f"chr{number}", int(p * 1e6)) for i, p in enumerate(places)]
    table = pd.DataFrame(rows, columns=["gene", "chromosome", "start"])
    return table.assign(end=table["start"] + 1000)


def draw_slide(
    genome: pd.DataFrame,
    slide: str,
    kind: dict[str, float],
    *,
    shared: tuple[np.ndarray, np.ndarray],
    purity: float,
    depth: float,
    programme: float,
    rng: np.random.Generator,
) -> SlideProfile:
    """Return the profile of a slide with one clone.

    Parameters
    ----------
    shared
        Expression of normal tissue and of tumour, the same in all patients.
    purity
        Share of tumour in its spots, give or take a tenth.
    depth
        Counts of a spot.
    programme
        Log-sd of the patient's own programme, over a quarter of the genes.
    """
    n = len(genome)
    factor = np.array([kind.get(arm, 1.0) for arm in assign_arms(genome)])
    own = np.exp(rng.normal(0, programme, n) * (rng.random(n) < 0.25)) if programme else 1.0
    normal, tumour = shared[0], shared[1] * factor * own
    malignant = np.arange(N_SPOTS) >= N_SPOTS // 2
    share = np.where(malignant, np.clip(purity * rng.uniform(0.9, 1.1, N_SPOTS), 0, 1), 0.0)
    mean = np.outer(1 - share, normal) + np.outer(share, tumour)
    mean *= depth / mean.sum(axis=1, keepdims=True)
    counts = rng.poisson(mean * rng.gamma(10, 0.1, mean.shape))
    values = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4).astype(np.float32)
    profiles = compare_genes(values, genome, ~malignant, genes=list(genome["gene"]), min_genes=500)
    arms = profiles.arm_table["n_genes"].to_numpy() >= 15
    contrast = profiles.arms[malignant].mean(axis=0) - profiles.arms[~malignant].mean(axis=0)
    means = profiles.gene_means(malignant) - profiles.gene_means(~malignant)
    genes = profiles.genes.set_index("gene")
    clone = np.where(malignant, "0", "reference")
    return SlideProfile(
        *(slide, slide, True, "CNV", "", "labels"),
        spots=pd.DataFrame(
            {"clone": clone, "cnv_score": 0.0, "reference": ~malignant},
            index=[f"b{i}" for i in range(N_SPOTS)],
        ),
        clones=pd.DataFrame(
            [contrast[arms]], index=["0"], columns=profiles.arm_table["arm"].to_numpy()[arms]
        ),
        genes=pd.DataFrame([means], index=["0"], columns=genes.index),
        gene_arms=genes["arm"],
        gene_levels=genes["reference_level"],
        heterogeneity={},
        controls=pd.DataFrame(columns=list(COLUMNS)),
        pitch_um=100.0,
    )


def divide_cohort(
    n_kinds: int,
    *,
    patients: int,
    seed: int,
    depth: float = 4000.0,
    programme: float = 0.0,
    purity: tuple[float, float] = (0.2, 0.9),
) -> tuple[int, float]:
    """Return the number of subtypes found in a cohort, and their adjusted Rand index."""
    rng = np.random.default_rng(seed)
    genome = make_genome()
    base = rng.lognormal(0, 1.2, len(genome))
    change = np.exp(rng.normal(0, 0.5, len(genome)) * (rng.random(len(genome)) < 0.25))
    slides = [
        draw_slide(
            genome,
            f"s{i}",
            KINDS[i % n_kinds],
            shared=(base, base * change),
            purity=float(rng.uniform(*purity)),
            depth=depth,
            programme=programme,
            rng=rng,
        )
        for i in range(patients)
    ]
    spots = subtype_cohort(slides, seed=seed).spots.drop_duplicates("slide").set_index("slide")
    found = spots["subtype"].reindex([f"s{i}" for i in range(patients)])
    truth = [i % n_kinds for i in range(patients)]
    return found.nunique(), float(adjusted_rand_score(truth, found))


def main() -> None:
    """Print how many subtypes were found, by what was planted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--patients", type=int, nargs="+", default=[6, 12, 24])
    parser.add_argument("--planted", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    head = ("planted", "patients", "counts per spot", "own programme", "cohorts", "more than one")
    print(*head, "right number", "mean adjusted Rand index", sep="\t")
    for n_kinds in options.planted:
        for patients in options.patients:
            for depth, programme in ((4000.0, 0.0), (1500.0, 0.0), (4000.0, 0.4)):
                found = [
                    divide_cohort(
                        n_kinds,
                        patients=patients,
                        seed=options.seed + i,
                        depth=depth,
                        programme=programme,
                    )
                    for i in range(options.runs)
                ]
                number, score = np.array(found).T
                more, right = int((number > 1).sum()), int((number == n_kinds).sum())
                row = (n_kinds, patients, f"{depth:.0f}", programme, options.runs, more, right)
                print(*row, f"{score.mean():.2f}", sep="\t", flush=True)


if __name__ == "__main__":
    main()
