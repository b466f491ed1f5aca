"""How often the interval of the C-index gain holds the gain that the procedure has on average.

Cohorts are drawn from one population: three clinical covariates bear on the hazard, and the image
does so or not. Each cohort goes through `histogep.outcome.survival.fit_survival`. The gain of the image is
the difference of the out-of-fold C-indices of clinical+image and clinical; what it is on average is
its mean over the cohorts of one size. Beside the interval printed by the workflow stands that of a
bootstrap that holds the fitted models fixed.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd

from histogep.outcome.survival import fit_survival
from histogep.stats.discrimination import (
    bootstrap_concordance,
    bootstrap_weights,
    interval,
    survival_pairs,
)

CLINICAL, FULL = "clinical", "clinical+image"


def cohort(patients: int, effect: float, rng: np.random.Generator) -> pd.DataFrame:
    """Return patients whose log hazard rises by `effect` per deviation of an image component."""
    latent = rng.standard_normal((patients, 4))
    loadings = np.random.default_rng(5).standard_normal((4, 40))
    genes = latent @ loadings + rng.standard_normal((patients, 40))
    table = pd.DataFrame(genes, columns=[f"gene:G{gene}" for gene in range(40)])
    age, stage = rng.normal(65, 10, patients), rng.integers(1, 5, patients).astype(float)
    hazard = 0.03 * (age - 65) + 0.5 * (stage - 2.5) + effect * latent[:, 0]
    time, censored = rng.exponential(40 * np.exp(-hazard)), rng.uniform(5, 100, patients)
    return table.assign(
        patient=[f"P{patient:03d}" for patient in range(patients)],
        age=age,
        sex=rng.integers(0, 2, patients).astype(float),
        stage=stage,
        time=np.minimum(time, censored),
        event=(time <= censored).astype(int),
    )


def gain(table: pd.DataFrame, settings: dict, seed: int) -> dict[str, float]:
    """Return the gain of one cohort with both intervals."""
    result = fit_survival(table, settings=settings, seed=seed)
    row = result.concordance.set_index("model").loc[f"{FULL} - {CLINICAL}"]
    risk = result.risk.set_index("patient").loc[table["patient"]]
    scores = risk[["risk_clinical+image", "risk_clinical"]].to_numpy(float).T
    pairs = survival_pairs(table["time"], table["event"]).astype(float)
    drawn = bootstrap_concordance(
        scores, pairs, bootstrap_weights(len(table), draws=500, seed=seed)
    )
    low, high = interval(drawn[0] - drawn[1])
    found = {"gain": row["c_index"], "low": row["ci_low"], "high": row["ci_high"]}
    return found | {"fixed_low": low, "fixed_high": high}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--cohorts", type=int, default=100)
    parser.add_argument("--patients", nargs="+", type=int, default=[60, 120, 400])
    parser.add_argument("--effects", nargs="+", type=float, default=[0.0, 0.6])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--refits", type=int, default=20)
    parser.add_argument("--inner-folds", type=int, default=3)
    arguments = parser.parse_args()
    settings = {
        "repeats": arguments.repeats,
        "refits": arguments.refits,
        "inner_folds": arguments.inner_folds,
        "penalties": [0.03, 0.3, 3.0],
        "shuffles": 0,
        "bootstraps": 100,
        "horizons": [],
    }
    print(f"seed {arguments.seed}, {arguments.cohorts} cohorts a row; coverage at least .90")
    print("patients effect  mean gain  its deviation  coverage (width)  models fixed (width)")
    for patients in arguments.patients:
        for effect in arguments.effects:
            rows = []
            for number in range(arguments.cohorts):
                rng = np.random.default_rng([arguments.seed, patients, number])
                rows.append(gain(cohort(patients, effect, rng), settings, number))
            table = pd.DataFrame(rows)
            mean = table["gain"].mean()
            held = table["low"].le(mean) & table["high"].ge(mean)
            fixed = table["fixed_low"].le(mean) & table["fixed_high"].ge(mean)
            width = (table["high"] - table["low"]).mean()
            fixed_width = (table["fixed_high"] - table["fixed_low"]).mean()
            print(
                f"{patients:8d} {effect:6.1f} {mean:10.3f} {table['gain'].std():14.4f} "
                f"{held.mean():9.2f} ({width:.3f}) {fixed.mean():13.2f} ({fixed_width:.3f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
