"""How often an expression programme is named copy number, and planted copy number is (row 1).

Slides are made as a prediction makes them, without counting noise: two mean profiles mixed over the
places of a lattice, tumour where the second prevails. Of the false ones both profiles are of normal
cells: microglia and oligodendrocytes of the data set that infercnvpy carries (means of half of the
cells, drawn by seed); non-malignant spots of her2st, by the ends of two lineages' markers; and a
normal profile with a simulated programme: single genes, clusters of 3 to 20 neighbours, all zinc
fingers, or the genes of public sets. Of the true ones the second profile is of a malignant sample
(1p and 19q lost), or carries one gained or lost arm beside a programme of single genes.

    python benchmarks_suite/claims.py --row 1 --runs 20 --seed 1000 --data ../shared/data

Pairs marked "held back" took no part in setting the limits of `histogep.cnv.arms`.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from histogep.cnv.slide import profile_slide
from histogep.files import read_tsv
from histogep.inputs.genome import assign_arms, read_gene_positions
from histogep.lattice import Lattice

ROWS, COLS = 15, 20
LATTICE = Lattice("visium")
ROOT = Path(__file__).resolve().parents[2]
SECTIONS = ("A1", "A2", "B4", "C2", "C3", "C4")
#: Two lineages of histogep/resources/markers.tsv whose ends are compared; the second group was not looked at
#: when the limits were set.
DESIGNED_ON = (("t_cell", "fibroblast"), ("plasma_cell", "endothelial"), ("macrophage", "t_cell"))
HELD_BACK = (("b_cell", "endothelial"), ("macrophage", "plasma_cell"), ("adipocyte", "t_cell"))
GAIN, LOSS = 1.5, 0.5
#: Spots of a lineage's end.
_END = 0.3


@dataclass(frozen=True)
class Pair:
    """Two profiles (counts per 10,000) that are mixed over a slide, and the genes' positions."""

    first: np.ndarray
    second: np.ndarray
    genes: list[str]
    positions: pd.DataFrame


def read_cells() -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """Return counts per 10,000 (cells by genes), types and positions of the oligodendrogliomas."""
    import infercnvpy

    cells = infercnvpy.datasets.oligodendroglioma()
    counts = cells.X.toarray()
    positions = cells.var[["chromosome", "start", "end"]].reset_index(names="gene")
    positions["chromosome"] = positions["chromosome"].astype(str)
    kinds = cells.obs["cell_type"].astype(str).str.split(" |/").str[0].to_numpy()
    return counts / counts.sum(axis=1, keepdims=True) * 1e4, kinds, positions


def read_section(folder: Path, section: str) -> tuple[np.ndarray, list[str]]:
    """Return counts per 10,000 of the spots of a her2st section, and its genes."""
    table = pd.read_csv(folder / "her2st" / "counts" / f"{section}.tsv.gz", sep="\t", index_col=0)
    counts = table.to_numpy(np.float64)
    counts = counts[counts.sum(axis=1) >= 100]
    return counts / counts.sum(axis=1, keepdims=True) * 1e4, list(table.columns)


def half(cells: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the mean profile of a random half of the cells."""
    chosen = rng.choice(len(cells), max(1, len(cells) // 2), replace=False)
    return cells[chosen].mean(axis=0)


def lineage_ends(
    values: np.ndarray, genes: list[str], lineages: tuple[str, str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the least epithelial spots that have most of one lineage and most of the other."""
    markers = read_tsv(ROOT / "histogep/resources" / "markers.tsv", dtype=str)
    place = {gene: i for i, gene in enumerate(genes)}

    def score(lineage: str) -> np.ndarray:
        own = [place[g] for g in markers.loc[markers["lineage"] == lineage, "gene"] if g in place]
        return np.log1p(values[:, own]).mean(axis=1)

    epithelial = score("epithelial")
    spots = np.flatnonzero(epithelial <= np.quantile(epithelial, 0.4))
    difference = (score(lineages[0]) - score(lineages[1]))[spots]
    order = spots[np.argsort(difference, kind="stable")]
    n = max(5, round(_END * len(spots)))
    return values[order[-n:]], values[order[:n]]


def programme(
    kind: str,
    genes: list[str],
    rng: np.random.Generator,
    gene_sets: dict[str, list[str]] | None = None,
) -> np.ndarray:
    """Return the factor by which a simulated programme changes each gene.

    Genes lie in the order of the genome. All genes vary a little (log-sd .15).
    """
    n = len(genes)
    log_factor = rng.normal(0, 0.15, n)
    if kind == "single genes":
        log_factor += rng.normal(0, 0.8, n) * (rng.random(n) < 0.25)
    elif kind == "clusters":
        for _ in range(n // 60):
            size = int(rng.integers(3, 21))
            start = int(rng.integers(n - size))
            log_factor[start : start + size] += rng.choice([-1, 1]) * rng.uniform(0.3, 1.5)
    elif kind == "zinc fingers":
        fingers = np.array([name.startswith(("ZNF", "ZFP", "ZSCAN")) for name in genes])
        log_factor += rng.choice([-1, 1]) * 0.7 * fingers
        log_factor += rng.normal(0, 0.8, n) * (rng.random(n) < 0.1)
    else:
        names = sorted(gene_sets)
        for name in rng.choice(names, 8, replace=False):
            log_factor += rng.choice([-1, 1]) * 1.2 * np.isin(genes, gene_sets[name])
    return np.exp(log_factor)


def read_gene_sets(path: Path) -> dict[str, list[str]]:
    """Return the sets of a GMT file."""
    lines = [line.split("\t") for line in path.read_text().splitlines() if line]
    return {name: [gene for gene in rest if gene] for name, _, *rest in lines}


def mix(pair: Pair, share: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return log1p of the profiles mixed by the share of the second, with slight noise."""
    mean = np.outer(1 - share, pair.first) + np.outer(share, pair.second)
    values = np.log1p(mean) + rng.normal(0, 0.02, mean.shape)
    return np.maximum(values, 0).astype(np.float32)


def smooth_field(rng: np.random.Generator) -> np.ndarray:
    """Return a smooth map over the lattice, its values evenly spread over 0 to 1."""
    field = gaussian_filter(rng.normal(size=(ROWS, COLS)), 3).ravel()
    return np.argsort(np.argsort(field)) / (len(field) - 1)


def name_slide(
    pair: Pair, rng: np.random.Generator, *, purity: float | None = None, seed: int = 0
) -> tuple[str, pd.DataFrame]:
    """Return the name that the slide's controls allow, and its table of arms.

    Without `purity` the share of the second profile rises smoothly from 0 to 1, else the tumour
    has that share (give or take .1) and the reference none.
    """
    field = smooth_field(rng)
    tumour = field > 0.5
    share = field
    if purity is not None:
        share = np.where(tumour, np.clip(purity + 0.2 * (field - 0.75) / 0.5, 0, 1), 0.0)
    row, col = np.divmod(np.arange(ROWS * COLS), COLS)
    result, arms, _ = profile_slide(
        mix(pair, share, rng),
        pair.positions,
        slide="s",
        labels=np.where(tumour, "malignant", "non-malignant").astype(object),
        obs=pd.DataFrame({"row": row, "col": col}, index=[f"t{i}" for i in range(len(row))]),
        lattice=LATTICE,
        settings={},
        measured=False,
        genes=pair.genes,
        seed=seed,
    )
    if result.uns["refused"]:
        return "refused", arms
    return str(result.uns["name"]), arms


def false_pairs(data: Path | None) -> Iterator[tuple[str, Callable[[np.random.Generator], Pair]]]:
    """Yield names of pairs of normal profiles, and what draws one."""
    cells, kinds, positions = read_cells()
    genes = list(positions["gene"])
    normal = {kind: cells[kinds == kind] for kind in ("Microglia", "Oligodendrocytes")}
    order = positions.assign(
        number=positions["chromosome"]
        .str.removeprefix("chr")
        .map({str(i): i for i in range(1, 23)})
    ).sort_values(["number", "start"], kind="stable")
    along = order.index.to_numpy()

    def brain(rng: np.random.Generator) -> Pair:
        first, second = (half(normal[kind], rng) for kind in rng.permutation(sorted(normal)))
        return Pair(first, second, genes, positions)

    yield "microglia, oligodendrocytes", brain

    def simulated(kind: str, sets: dict[str, list[str]] | None = None) -> Callable:
        def draw(rng: np.random.Generator) -> Pair:
            first = half(normal[rng.choice(sorted(normal))], rng)[along]
            names = [genes[i] for i in along]
            factor = programme(kind, names, rng, sets)
            return Pair(first, first * factor, names, positions)

        return draw

    for kind in ("single genes", "clusters", "zinc fingers"):
        yield f"programme of {kind}", simulated(kind)
    if data is None:
        return
    for name, file in (
        ("Hallmark sets (held back)", "h.all.v7.0.symbols.gmt"),
        ("GO sets (held back)", "enrichr.GO_Biological_Process_2021.gmt"),
    ):
        yield f"programme of {name}", simulated(name, read_gene_sets(data / "genesets" / file))
    places = read_gene_positions(data / "genepos" / "gencode_v38_gene_pos.txt")
    sections = {name: read_section(data, name) for name in SECTIONS}

    def spots(lineages: tuple[str, str]) -> Callable:
        def draw(rng: np.random.Generator) -> Pair:
            values, names = sections[rng.choice(SECTIONS)]
            ends = lineage_ends(values, names, lineages)
            first, second = (half(ends[i], rng) for i in rng.permutation(2))
            return Pair(first, second, names, places)

        return draw

    for lineages in DESIGNED_ON:
        yield f"her2st {' against '.join(lineages)}", spots(lineages)
    for lineages in HELD_BACK:
        yield f"her2st {' against '.join(lineages)} (held back)", spots(lineages)


def plant(
    first: np.ndarray,
    genes: list[str],
    arms: np.ndarray,
    altered: dict[str, float],
    *,
    part: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return a tumour's profile: a programme of single genes, and the factor of each altered arm.

    Genes lie in the order of the genome; of each arm the last `part` is altered.
    """
    second = first * programme("single genes", genes, rng)
    for arm, factor in altered.items():
        own = np.flatnonzero(arms == arm)
        second[own[round(len(own) * (1 - part)) :]] *= factor
    return second


def main() -> None:
    """Print the shares of slides named copy number."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--data", type=Path, help="folder with her2st, genepos and genesets")
    parser.add_argument("--part", choices=["false", "true", "both"], default="both")
    parser.add_argument("--only", default="", help="rows whose name holds this text")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    print("profiles", "runs", "named CNV", "refused", "arms called per slide", sep="\t")
    if options.part != "true":
        for name, draw in false_pairs(options.data):
            if options.only not in name:
                continue
            _print(name, [_run(draw, options.seed + i) for i in range(options.runs)])
    if options.part != "false":
        for name, arms, draw, purity in true_pairs():
            if options.only in name:
                found = [_run(draw, options.seed + i, purity) for i in range(options.runs)]
                _print(name, found, arms)


def _run(draw: Callable, seed: int, purity: float | None = None) -> tuple[str, pd.DataFrame]:
    rng = np.random.default_rng(seed)
    return name_slide(draw(rng), rng, purity=purity, seed=seed)


def true_pairs() -> Iterator[tuple[str, tuple[str, ...], Callable, float]]:
    """Yield names of pairs with copy number, its arms, what draws one, and the tumour's share."""
    cells, kinds, positions = read_cells()
    genes = list(positions["gene"])
    normal = cells[np.isin(kinds, ["Microglia", "Oligodendrocytes"])]
    for sample in sorted(kind for kind in set(kinds) if kind.startswith("malignant")):

        def tumour(rng: np.random.Generator, sample: str = sample) -> Pair:
            return Pair(half(normal, rng), half(cells[kinds == sample], rng), genes, positions)

        for purity in (0.3, 0.5, 0.8):
            yield f"{sample}, 1p and 19q lost, purity {purity}", ("1p", "19q"), tumour, purity
    order = positions.assign(arm=assign_arms(positions))
    order["number"] = order["chromosome"].str.removeprefix("chr")
    order = order[order["number"].str.isdigit()]
    order = order.iloc[np.lexsort((order["start"], order["number"].astype(int)))]
    names, arms = order["gene"].tolist(), order["arm"].to_numpy(object)
    for arm, part in (("1q", 1.0), ("1q", 0.5), ("8q", 1.0), ("17p", 1.0), ("18p", 1.0)):
        for factor in (GAIN, LOSS):
            for purity in (0.3, 0.5, 0.8):

                def planted(
                    rng: np.random.Generator, arm: str = arm, part: float = part, factor=factor
                ) -> Pair:
                    first = half(normal, rng)[order.index]
                    second = plant(first, names, arms, {arm: factor}, part=part, rng=rng)
                    return Pair(first, second, names, positions)

                what = "gained" if factor > 1 else "lost"
                title = f"{arm} ({(arms == arm).sum() * part:.0f} genes) {what}, purity {purity}"
                yield title, (arm,), planted, purity


def _print(
    name: str, found: list[tuple[str, pd.DataFrame]], arms: tuple[str, ...] | None = None
) -> None:
    named = sum(label == "CNV" for label, _ in found)
    refused = sum(label == "refused" for label, _ in found)
    tables = [table for label, table in found if label != "refused"]
    called = [table.loc[table["call"] != "neutral", "arm"] for table in tables]
    if arms is not None:
        called = [names[names.isin(arms)].drop_duplicates() for names in called]
    mean = f"{np.mean([len(names) for names in called]):.1f}" if called else ""
    print(name, len(found), named, refused, mean, sep="\t", flush=True)


if __name__ == "__main__":
    main()
