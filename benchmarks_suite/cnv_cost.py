"""Time and peak memory of the copy number of one measured slide, figure and files included.

A slide of Poisson counts with two clones is written as align_spots and label_spots would, and a
process of its own does what the rule infer_cnv does, imports included. The wall time is held to
the limit; beside other work the CPU time tells more.

    .venv/bin/python benchmarks_suite/cnv_cost.py --spots 4000 --genes 15000
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from histogep.inputs.genome import assign_arms, read_arms
from histogep.lattice import Lattice
from histogep.spots.normalise import add_expression

ROOT = Path(__file__).resolve().parents[1]
#: What a slide of 4,000 spots and 15,000 genes may cost.
LIMIT_S, LIMIT_MB = 30, 3000
CLONES = ({"1q": 1.5, "16q": 0.6, "8q": 1.4}, {"1q": 1.5, "3p": 0.6, "20q": 1.5})
_JOB = """
import resource, sys
from pathlib import Path
from histogep.cnv.slide import measured_slide, write_profile
from histogep.files import write_tsv
from histogep.report.style import save
from histogep.report.figures.cnv import profile_figure
from histogep.inputs.genome import read_gene_positions
folder = Path(sys.argv[1])
result, arms, markers = measured_slide(
    folder / "S.h5ad", folder / "S.tsv", slide="S", settings={}, seed=1,
    positions=read_gene_positions(folder / "positions.tsv"),
)
assert not result.uns["refused"], result.uns["refused"]
write_profile(result, folder / "out.h5ad")
write_tsv(arms, folder / "arms.tsv")
write_tsv(markers, folder / "markers.tsv")
save(profile_figure(result, arms), folder / "out.png")
print(result.obs["clone"].nunique(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def write_slide(folder: Path, *, n_spots: int, n_genes: int, depth: float) -> None:
    """Write counts, labels and gene positions: the first half of the spots is reference."""
    rng = np.random.default_rng(1)
    lengths = read_arms()["length_mb"].drop(["chrX", "chrY"])
    share = np.floor(np.cumsum(lengths / lengths.sum()) * n_genes).astype(int).to_numpy()
    chromosome = np.repeat(lengths.index.to_numpy(), np.diff([0, *share[:-1], n_genes]))
    start = (rng.random(n_genes) * lengths[chromosome].to_numpy() * 1e6).astype(int)
    genes = pd.DataFrame({"gene": [f"g{i}" for i in range(n_genes)], "chromosome": chromosome})
    genes = genes.assign(start=start, end=start + 1000)
    genes.to_csv(folder / "positions.tsv", sep="\t", index=False)
    arm = assign_arms(genes)
    base = rng.lognormal(0, 1.2, n_genes)
    profiles = [base] + [base * [clone.get(a, 1.0) for a in arm] for clone in CLONES]
    row, col = np.divmod(np.arange(n_spots), max(1, int(np.sqrt(n_spots))))
    kind = np.where(np.arange(n_spots) < n_spots // 2, 0, 1 + (col >= col.max() / 2))
    rows = [rng.poisson(profiles[k] / profiles[k].sum() * depth) for k in kind]
    counts = sparse.vstack([sparse.csr_matrix(values.astype(np.float32)) for values in rows])
    lattice = Lattice("visium")
    spots = anndata.AnnData(
        X=counts.tocsr(),
        obs=pd.DataFrame({"row": row, "col": col}, index=[f"b{i}" for i in range(n_spots)]),
        var=pd.DataFrame({"gene_id": ""}, index=genes["gene"].to_numpy()),
        obsm={"spatial": np.stack(lattice.centres_um(row, col), axis=1)},
        uns={"lattice": lattice.to_settings()},
    )
    add_expression(spots).write_h5ad(folder / "S.h5ad")
    label = np.where(kind == 0, "non-malignant", "malignant")
    table = pd.DataFrame({"barcode": spots.obs_names, "label": label, "ranked": ""})
    table.to_csv(folder / "S.tsv", sep="\t", index=False)


def main() -> None:
    """Measure and print one line; fail above the limits of the size that they are set for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--spots", type=int, default=4000)
    parser.add_argument("--genes", type=int, default=15000)
    parser.add_argument("--depth", type=float, default=8000, help="mean counts of a spot")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_slide(folder, n_spots=options.spots, n_genes=options.genes, depth=options.depth)
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", _JOB, folder], text=True, stdout=subprocess.PIPE, cwd=ROOT
        )
        seconds = time.perf_counter() - begin
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = used.ru_utime + used.ru_stime
    if done.returncode:
        raise SystemExit("the job failed")
    megabytes = int(done.stdout.split()[-1]) / 1024
    names = ("spots", "genes", "seconds", "cpu_seconds", "limit_s", "peak_mb", "limit_mb")
    cost = (f"{seconds:.1f}", f"{cpu_seconds:.1f}", LIMIT_S, f"{megabytes:.0f}", LIMIT_MB)
    print(*names, sep="\t")
    print(options.spots, options.genes, *cost, sep="\t")
    small = options.spots <= 4000 and options.genes <= 15000
    if small and (seconds > LIMIT_S or megabytes > LIMIT_MB):
        raise SystemExit("above the limit")


if __name__ == "__main__":
    main()
