"""Whether the copy number of each her2st section shows the gain of ERBB2 (17q12), the known truth.

ERBB2 is one of the epithelial markers and keratins lie beside it, so no marker on chromosome 17
takes part in labelling the spots, and ERBB2 and the keratins are left out of the profile: what is
seen is the amplicon's other genes. Windows are as wide as an amplicon, 21 genes.

    .venv/bin/python benchmarks_suite/her2st_erbb2.py --data FOLDER_WITH_her2st_AND_genepos
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from histogep.cnv.profiles import EXCLUDED_GENES, compare_genes, slide_windows
from histogep.cnv.reference import choose_spots
from histogep.errors import InputError
from histogep.files import read_tsv
from histogep.inputs.genome import read_gene_positions
from histogep.labels.inferred import infer_labels
from histogep.lattice import Lattice
from histogep.spots.matrices import expression_of
from histogep.spots.normalise import add_expression

MARKERS = Path(__file__).resolve().parents[1] / "histogep/resources" / "markers.tsv"
WINDOW = 21


def read_spots(path: Path) -> anndata.AnnData:
    """Return the spots of a legacy table of counts (rows XxY) with at least 100 counts."""
    table = pd.read_csv(path, sep="\t", index_col=0)
    table = table[table.sum(axis=1) >= 100]
    col, row = np.array([name.split("x") for name in table.index], dtype=int).T
    spots = anndata.AnnData(
        X=sparse.csr_matrix(table.to_numpy(np.float32)),
        obs=pd.DataFrame({"row": row, "col": col}, index=table.index.astype(str)),
        var=pd.DataFrame({"gene_id": ""}, index=table.columns),
        uns={"slide": path.name, "lattice": Lattice("st", 200, 112).to_settings()},
    )
    return add_expression(spots)


def score_section(
    spots: anndata.AnnData, positions: pd.DataFrame, markers: pd.DataFrame
) -> list[object]:
    """Return reference rule, spots of both kinds, rank and z of the best window at ERBB2."""
    labels = infer_labels(spots, markers, positions=positions)
    reference, malignant, rule = choose_spots(
        labels["label"].to_numpy(), labels["ranked"].to_numpy(), measured=True
    )
    place = positions.set_index("gene").loc["ERBB2", "start"]
    try:
        profiles = compare_genes(
            expression_of(spots),
            positions,
            reference,
            genes=list(spots.var_names),
            exclude_genes=(*EXCLUDED_GENES, "^KRT", "^ERBB2$"),
        )
    except InputError as error:
        return [rule, reference.sum(), malignant.sum(), "", "", str(error)]
    genes = profiles.genes
    means = profiles.gene_means(malignant) - profiles.gene_means(reference)
    windows, chr_pos = slide_windows(means[np.newaxis], genes, window=WINDOW, step=1)
    windows = windows[0]
    on_17 = (genes["start"] - place).abs()[genes["chromosome"] == "chr17"].reset_index(drop=True)
    # Windows of 21 genes that hold the gene nearest to ERBB2; each begins at one of them.
    nearest = int(on_17.idxmin())
    near = slice(chr_pos["chr17"] + max(0, nearest - WINDOW + 1), chr_pos["chr17"] + nearest + 1)
    best = windows[near].max()
    z = (best - windows.mean()) / windows.std()
    above = f"{(windows > best).sum()} of {len(windows)}"
    return [rule, reference.sum(), malignant.sum(), above, f"{z:.1f}", ""]


def main() -> None:
    """Print one line per section."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    folder = parser.parse_args().data
    positions = read_gene_positions(folder / "genepos" / "gencode_v38_gene_pos.txt")
    markers = read_tsv(MARKERS, dtype=str)
    on_17 = positions.loc[positions["chromosome"] == "chr17", "gene"]
    markers = markers[~markers["gene"].isin(on_17)]
    head = ("section", "spots", "median counts", "reference by", "reference", "tumour")
    print(*head, "windows above ERBB2", "z", "refused", sep="\t")
    for path in sorted((folder / "her2st" / "counts").glob("*.tsv.gz")):
        spots = read_spots(path)
        depth = float(np.median(np.asarray(spots.X.sum(axis=1))))
        row = score_section(spots, positions, markers)
        print(path.name.split(".")[0], spots.n_obs, f"{depth:.0f}", *row, sep="\t", flush=True)


if __name__ == "__main__":
    main()
