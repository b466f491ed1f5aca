"""Cost and agreement of the per-gene Cox scan beside a loop of lifelines fits.

    python benchmarks_suite/cox_scan.py [--genes 400] [--patients 1000] [--loop 400]

Prints CPU seconds of both, their ratio, the largest differences of beta and standard error, and
the scan's peak memory. With `--loop` below `--genes` the loop fits the first genes only and its
cost is scaled up to all.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from histogep.stats.cox import scan_genes


def main() -> None:
    """Time both on one simulated cohort with tied times and 30 % events."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--genes", type=int, default=400)
    parser.add_argument("--patients", type=int, default=1000)
    parser.add_argument("--loop", type=int, default=400)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    values = rng.normal(size=(arguments.patients, arguments.genes))
    months = np.round(rng.exponential(50 / np.exp(0.3 * values[:, 0])), 0)
    event = rng.random(arguments.patients) < 0.3
    names = [f"G{i}" for i in range(arguments.genes)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    scan = scan_genes(values, months, event, genes=names)
    ours = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"scan: {arguments.genes} genes x {arguments.patients} patients ({event.sum()} events), "
        f"{ours:.2f} CPU s, {(peak - before) / 1024:.0f} MB above the {before / 1024:.0f} MB before"
    )

    import lifelines

    loop = min(arguments.loop, arguments.genes)
    sd = values.std(axis=0, ddof=1)
    beta, error = np.zeros(loop), np.zeros(loop)
    start = time.process_time()
    for gene in range(loop):
        table = pd.DataFrame({"x": values[:, gene], "time": months, "event": event})
        fitted = lifelines.CoxPHFitter().fit(table, "time", "event")
        beta[gene], error[gene] = fitted.params_["x"], fitted.standard_errors_["x"]
    theirs = (time.process_time() - start) * arguments.genes / max(loop, 1)
    print(f"lifelines: {loop} fits, {theirs:.1f} CPU s for all; ratio {theirs / ours:.0f}")
    print(
        f"largest difference of beta {np.abs(scan['coef'][:loop] / sd[:loop] - beta).max():.1e}, "
        f"of its standard error {np.abs(scan['se'][:loop] / sd[:loop] - error).max():.1e}"
    )


if __name__ == "__main__":
    main()
