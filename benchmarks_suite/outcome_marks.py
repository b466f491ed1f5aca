"""Outcome statistics on real cohorts: known marks, agreement with lifelines, permuted outcomes.

    python benchmarks_suite/outcome_marks.py DATA_ROOT [--permutations 20]

DATA_ROOT holds tcga/ and icb/ (config/examples). Prints, for TCGA-BRCA: patients and events, the
clinical-only C-index, what measured expression adds, the largest difference of the per-gene Cox
from lifelines, and, with the outcome permuted over the patients, C-index and genes below FDR .05;
for the immunotherapy cohorts: the cytolytic AUROC with its interval and permutation p.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import lifelines
import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from histogep.outcome.bulk_patients import summarise_measured
from histogep.outcome.patients import GENE, image_columns
from histogep.outcome.response import predict_response
from histogep.outcome.signatures import read_signatures
from histogep.outcome.survival import fit_survival
from histogep.stats.cox import scan_genes
from histogep.study.clinical import read_clinical

SIGNATURES = Path(__file__).resolve().parents[1] / "histogep/resources/signatures.yaml"
#: One repeat without shuffles: the marks need the fits, not their nulls.
QUICK = {"repeats": 1, "shuffles": 0, "bootstraps": 1000}


def main() -> None:
    """Print every mark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data_root", type=Path)
    parser.add_argument("--permutations", type=int, default=20)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="lifelines")
    brca(arguments.data_root / "tcga", arguments.permutations)
    immunotherapy(arguments.data_root / "icb")


def brca(folder: Path, permutations: int) -> None:
    """Print the marks of TCGA-BRCA."""
    table, _ = summarise_measured(
        folder / "tcga_brca_all_clean.csv.zip",
        scale="zscore",
        patients=read_clinical(folder / "TCGA-CDR-SupplementalTableS1.xlsx"),
        signatures=read_signatures(SIGNATURES),
    )
    genes, _, _ = image_columns(table)
    print(
        f"TCGA-BRCA: {len(table)} patients, {table['event'].sum():.0f} events, {len(genes)} genes"
    )
    bare = table.drop(columns=[name for name in table if ":" in name])
    for covariates in (["age"], ["age", "stage"]):
        row = fit_survival(bare, settings={**QUICK, "covariates": covariates}, seed=1)
        show(f"clinical only ({' + '.join(covariates)})", row.concordance.iloc[0])
    models = fit_survival(table, settings=QUICK, seed=1).concordance
    for _, row in models.iterrows():
        show(row["model"], row)

    values, time, event = table[genes].to_numpy(float), table["time"], table["event"]
    scan = scan_genes(values, time, event, genes=genes)
    worst = 0.0
    for gene in np.linspace(0, len(genes) - 1, 100).astype(int):
        if not np.isfinite(scan["coef"][gene]):
            continue
        # On the scan's scale and run to the end, as lifelines' default stops 1e-5 short.
        x = (values[:, gene] - values[:, gene].mean()) / scan["sd"][gene]
        fitted = lifelines.CoxPHFitter().fit(
            pd.DataFrame({"x": x, "time": time, "event": event}),
            "time",
            "event",
            fit_options={"precision": 1e-12, "r_precision": 1e-14},
        )
        worst = max(
            worst,
            abs(fitted.params_["x"] - scan["coef"][gene]),
            abs(fitted.standard_errors_["x"] - scan["se"][gene]),
        )
    print(f"100 genes beside lifelines: largest difference of beta and se {worst:.1e}")
    print(f"genes below FDR .05: {(scan['fdr'] < 0.05).sum()} of {scan['p'].notna().sum()}")

    rng = np.random.default_rng(1)
    hits, indices, inside = [], [], 0
    for _ in range(permutations):
        order = rng.permutation(len(table))
        shuffled = table.copy()
        shuffled[["time", "event"]] = table[["time", "event"]].to_numpy()[order]
        shuffled = shuffled.drop(columns=["age", "sex", "stage"])
        result = fit_survival(shuffled, settings={**QUICK, "bootstraps": 200}, seed=1)
        hits.append(int((result.cox["fdr"] < 0.05).sum()))
        row = result.concordance.iloc[0]
        indices.append(row["c_index"])
        inside += row["ci_low"] <= 0.5 <= row["ci_high"]
    print(
        f"{permutations} permuted outcomes: C {np.mean(indices):.3f} (sd {np.std(indices):.3f}), .5 "
        f"inside the interval {inside} times; {sum(h > 0 for h in hits)} with a gene below FDR .05 "
        f"(hits {hits})"
    )


def immunotherapy(folder: Path) -> None:
    """Print the cytolytic AUROC of every cohort."""
    for cohort in ("Mariathasan", "Hugo", "Riaz"):
        table, _ = summarise_measured(
            folder / f"ICB_small_{cohort}_expr.csv.gz",
            scale="log2_tpm",
            patients=read_clinical(folder / f"ICB_small_{cohort}_clin.csv"),
            signatures=read_signatures(SIGNATURES),
        )
        table = table.drop(columns=[name for name in table if name.startswith(GENE)])
        settings = {"repeats": 1, "permutations": 10}
        performance = predict_response(table, settings=settings, seed=1).performance
        row = performance.query("model == 'cytolytic' and metric == 'auroc'").iloc[0]
        print(
            f"{cohort}: cytolytic AUROC {row['value']:.3f} ({row['ci_low']:.3f} to "
            f"{row['ci_high']:.3f}), p {row['p']:.3f}, {row['positives']} of {row['n']} responded"
        )


def show(name: str, row: pd.Series) -> None:
    """Print one C-index (or difference) with its interval."""
    print(f"{name}: {row['c_index']:.3f} ({row['ci_low']:.3f} to {row['ci_high']:.3f})")


if __name__ == "__main__":
    main()
