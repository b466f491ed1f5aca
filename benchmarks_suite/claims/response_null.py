"""What scores of a response reach where nothing can be learnt, beside the null that is printed.

Cohorts of noise go through `histogep.outcome.response.predict_response`. Printed are, over the cohorts, the
mean of AUROC and average precision and of the null told beside them, and how often a score exceeds
the 95 % bound told: one in 20 if the bound is right.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd

from histogep.outcome.response import predict_response


def cohort(patients: int, positives: int, rng: np.random.Generator) -> pd.DataFrame:
    """Return patients whose genes, signature and age have nothing to do with the response."""
    latent = rng.normal(size=(patients, 3))
    genes = latent @ rng.normal(size=(3, 30)) + rng.normal(size=(patients, 30))
    table = pd.DataFrame(genes, columns=[f"gene:G{gene}" for gene in range(30)])
    return table.assign(
        patient=[f"P{patient}" for patient in range(patients)],
        response=rng.permutation(np.repeat([1.0, 0.0], [positives, patients - positives])),
        age=rng.normal(60, 10, patients),
        **{"signature:noise": rng.normal(size=patients)},
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--cohorts", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--permutations", type=int, default=50)
    parser.add_argument(
        *("--sizes",), nargs="+", default=["30:8", "60:20"], help="patients:responders"
    )
    arguments = parser.parse_args()
    settings = {
        "repeats": arguments.repeats,
        "permutations": arguments.permutations,
        "bootstraps": 100,
    }
    print(
        f"seed {arguments.seed}, {arguments.cohorts} cohorts a row; prevalence: what was told once"
    )
    print(
        "patients responders model           metric  prevalence or .5  null  observed  above 95 %"
    )
    for size in arguments.sizes:
        patients, positives = map(int, size.split(":"))
        tables = []
        for number in range(arguments.cohorts):
            rng = np.random.default_rng([arguments.seed, patients, positives, number])
            table = cohort(patients, positives, rng)
            tables.append(predict_response(table, settings=settings, seed=number).performance)
        rows = pd.concat(tables)
        rows["above"] = rows["value"] > rows["null_upper"]
        for (model, metric), group in rows.groupby(["model", "metric"], sort=False):
            once = 0.5 if metric == "auroc" else positives / patients
            print(
                f"{patients:8d} {positives:10d} {model:15s} {metric:6s} {once:17.3f} "
                f"{group['null'].mean():5.3f} {group['value'].mean():9.3f} "
                f"{group['above'].mean():11.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
