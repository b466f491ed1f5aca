"""Where genes lie on the genome: readers of position tables and GTF, and the chromosome arms."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from histogep.errors import InputError
from histogep.files import given_file
from histogep.inputs.delimited import lay_out, read_bytes, read_lines

log = logging.getLogger(__name__)

#: Centromeres and lengths of GRCh38, shipped with the project.
ARMS_TABLE = Path(__file__).resolve().parents[1] / "resources" / "chromosome_arms.tsv"

COLUMNS = ("gene", "chromosome", "start", "end")
SEX_CHROMOSOMES = ("chrX", "chrY")

_ALIASES = {
    "gene": ("gene", "symbol", "gene_name", "gene_symbol", "hgnc_symbol", "gene name", "name"),
    # The names with blanks are those of Ensembl's BioMart.
    "chromosome": (
        *("chromosome", "chr", "chrom", "seqname", "chromosome_name"),
        "chromosome/scaffold name",
    ),
    "start": ("start", "start_position", "gene_start", "gene start (bp)", "chromstart"),
    "end": ("end", "end_position", "stop", "gene_end", "gene end (bp)", "chromend"),
    "gene_id": (
        *("gene_id", "ensembl", "ensembl_id", "ensembl_gene_id", "gene stable id"),
        *("gene stable id version", "id"),
    ),
}
#: What `recognise_genome` returns, and what a user may say instead.
HUMAN, OTHER = "human", "other"
#: Ensembl's ids of human genes, and of the genes of any other species (ENSMUSG...).
_HUMAN_ID, _OTHER_ID = re.compile(r"ENSG\d{5,}"), re.compile(r"ENS[A-Z]{3,4}G\d{5,}")
#: Symbols as mouse and rat have them (Actb), and as people have them (ACTB, C1orf112).
_RODENT_SYMBOL = re.compile(r"[A-Z][a-z]+[a-z0-9-]*")
#: Builds of the human genome differ by less in the length of a chromosome.
_LENGTH_TOLERANCE = 1.05
_CHROMOSOME = re.compile(r"(?:chr)?(\d{1,2}|X|Y|M|MT)", flags=re.IGNORECASE)
#: Base pairs of a chromosome; the longest known has fewer.
_MOST_BASES = 1e11
_GTF_SUFFIXES = (".gtf", ".gtf.gz", ".gff2", ".gff2.gz")


def read_gene_positions(path: str | Path) -> pd.DataFrame:
    """Return where each gene lies, from any of three kinds of file (plain or gzipped).

    A table with a header that names gene, chromosome, start and end (usual other names are
    understood, a column gene_id is kept); GENCODE's table of those four columns without a header;
    or a GTF, of which the lines of feature `gene` count.

    A missing "chr" is put before the chromosome. Genes on anything but chr1..chr99, X, Y and M
    are left out. Of a symbol given several times on one chromosome the longest stays, of one on X
    and Y (the pseudoautosomal regions) the one on X; a symbol on several other chromosomes names
    no place and is left out.

    Parameters
    ----------
    path
        The file; a name ending in .gtf or .gtf.gz is read as GTF.

    Returns
    -------
    pandas.DataFrame
        gene (unique), chromosome ("chr1"...), start, end (int64, base pairs), gene_id ("" where
        there is none), in the order of the genome.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file of gene positions")
    with given_file(path, "a table of gene positions"):
        gtf = path.name.lower().endswith(_GTF_SUFFIXES)
        return _one_row_a_symbol(_read_gtf(path) if gtf else _read_table(path), path)


def order_chromosomes(chromosomes: Iterable[str]) -> list[str]:
    """Return chromosome names in the order of the genome: by number, then X, Y, M."""

    def place(chromosome: str) -> tuple[int, int, str]:
        name = chromosome.removeprefix("chr")
        return (0, int(name), "") if name.isdigit() else (1, "XYM".find(name), name)

    return sorted(set(chromosomes), key=place)


def locate_genes(
    genes: Sequence[str],
    positions: pd.DataFrame,
    *,
    gene_ids: Sequence[str] | None = None,
    min_share: float = 0.3,
    genome: str = "auto",
) -> pd.DataFrame:
    """Return the positions of genes, found by symbol and else by Ensembl id.

    Of another genome than the human the centromeres are not known: each of its chromosomes is one
    arm.

    Parameters
    ----------
    genes
        Gene symbols (or Ensembl ids), in the order of an expression matrix.
    positions
        Table of `read_gene_positions`.
    gene_ids
        Ensembl ids parallel to `genes`, tried for the symbols that are not found.
    min_share
        With a smaller share of genes found the table is taken for another genome's.
    genome
        "human", "other", or "auto" to recognise it (`recognise_genome`).

    Raises
    ------
    InputError
        Too few genes are found, or the genome is said to be human and the positions are not.

    Returns
    -------
    pandas.DataFrame
        gene, chromosome, start, end, arm and column (the gene's place in `genes`), one row per
        gene found, in the order of the genome.
    """
    by_symbol = pd.Series(np.arange(len(positions)), index=positions["gene"].astype(str))
    place = by_symbol.reindex(pd.Index(genes, dtype=object)).to_numpy(np.float64)
    if "gene_id" in positions:
        known = positions["gene_id"].astype(str).str.split(".").str[0]
        by_id = pd.Series(np.arange(len(positions)), index=known)
        by_id = by_id[(by_id.index != "") & ~by_id.index.duplicated()]
        for names in (genes, gene_ids if gene_ids is not None else []):
            ids = pd.Series(list(names), dtype=object).astype(str).str.split(".").str[0]
            if len(ids) and len(by_id):
                other = by_id.reindex(ids.to_numpy()).to_numpy(np.float64)
                place = np.where(np.isnan(place), other, place)
    column = np.flatnonzero(~np.isnan(place))
    if len(column) < max(1, min_share * len(genes)):
        raise InputError(_few_found(genes, positions, len(column)))
    found = positions.iloc[place[column].astype(int)].reset_index(drop=True)
    found = found[["chromosome", "start", "end"]].assign(
        gene=[str(genes[int(c)]) for c in column], column=column
    )
    found["arm"] = assign_arms(found, _arms_of(positions, genome))
    rank = {name: i for i, name in enumerate(order_chromosomes(found["chromosome"]))}
    order = np.lexsort((found["column"], found["start"], found["chromosome"].map(rank)))
    return found.iloc[order].reset_index(drop=True)


def recognise_genome(positions: pd.DataFrame) -> tuple[str, str]:
    """Return "human" or "other", and why.

    Ensembl ids tell the species; without them the case of the symbols tells rodents, and more
    than 22 autosomes, or genes beyond the end of a human chromosome, tell others. What shows none
    of these is taken for human.

    Parameters
    ----------
    positions
        Table of `read_gene_positions`.
    """
    if "gene_id" in positions:
        ids = positions["gene_id"].astype(str)
        human, other = (ids.str.match(pattern).sum() for pattern in (_HUMAN_ID, _OTHER_ID))
        if human + other > len(positions) / 2:
            share = human / (human + other)
            example = ids[ids.str.match(_OTHER_ID if share < 0.5 else _HUMAN_ID)].iloc[0]
            return (HUMAN if share >= 0.5 else OTHER), f"its Ensembl ids are like {example}"
    rodent = positions["gene"].astype(str).str.fullmatch(_RODENT_SYMBOL)
    if rodent.mean() > 0.5:
        return OTHER, f"its symbols are like {positions['gene'][rodent].iloc[0]}"
    if (n := count_autosomes(positions)) > 22:
        return OTHER, f"it has {n} numbered chromosomes"
    length = positions["chromosome"].map(read_arms()["length_mb"]).to_numpy(np.float64) * 1e6
    beyond = positions["start"].to_numpy() > _LENGTH_TOLERANCE * length
    if beyond.any():
        row = positions[beyond].iloc[0]
        return OTHER, (
            f"{row['gene']} lies at {row['start'] / 1e6:.0f} Mb of {row['chromosome']}, beyond its "
            "end in the human genome"
        )
    return HUMAN, "nothing speaks against it"


def count_autosomes(positions: pd.DataFrame) -> int:
    """Return how many numbered chromosomes a table of positions has."""
    return int(positions["chromosome"].drop_duplicates().str.fullmatch(r"chr\d+").sum())


def _arms_of(positions: pd.DataFrame, genome: str) -> pd.DataFrame:
    """Return the centromeres of a genome: none if it is not the human one."""
    recognised, reason = recognise_genome(positions)
    if genome == HUMAN and recognised == OTHER:
        raise InputError(
            f"gene positions: cnv.genome says human, but the table is of another genome: {reason}; "
            "set references.gene_positions to a human table, or cnv.genome to other"
        )
    if (recognised if genome == "auto" else genome) == HUMAN:
        return read_arms()
    log.warning(
        "gene positions: the genome is not taken for human (%s), and centromeres are known of no "
        "other: each whole chromosome stands for an arm",
        "cnv.genome" if genome == OTHER else reason,
    )
    return read_arms().iloc[:0]


def read_arms(path: str | Path = ARMS_TABLE) -> pd.DataFrame:
    """Return the centromere of each chromosome: chromosome (index), centromere_mb, length_mb."""
    table = pd.read_csv(path, sep="\t").set_index("chromosome")
    table["centromere_mb"] = table[["centromere_start_mb", "centromere_end_mb"]].mean(axis=1)
    return table


def assign_arms(positions: pd.DataFrame, arms: pd.DataFrame | None = None) -> np.ndarray:
    """Return the arm ("1p".."Xq") on which the middle of each gene lies.

    A chromosome without a known centromere is one arm, called by its own name.

    Parameters
    ----------
    positions
        Table with chromosome, start and end.
    arms
        Table of `read_arms`; the shipped one of GRCh38 if None.
    """
    arms = read_arms() if arms is None else arms
    name = positions["chromosome"].str.removeprefix("chr").to_numpy(dtype=object)
    centromere = positions["chromosome"].map(arms["centromere_mb"]).to_numpy(np.float64) * 1e6
    middle = (positions["start"].to_numpy() + positions["end"].to_numpy()) / 2
    side = np.where(np.isnan(centromere), "", np.where(middle < centromere, "p", "q"))
    return np.array([f"{n}{s}" for n, s in zip(name, side, strict=True)], dtype=object)


def order_arms(arms: Iterable[str]) -> list[str]:
    """Return arm names in the order of the genome."""
    chromosomes = order_chromosomes(f"chr{arm.rstrip('pq')}" for arm in arms)
    rank = {name.removeprefix("chr"): i for i, name in enumerate(chromosomes)}
    return sorted(set(arms), key=lambda arm: (rank[arm.rstrip("pq")], arm))


def _read_gtf(path: Path) -> pd.DataFrame:
    """Return the genes of a GTF; without `gene` lines, the span of each gene's other lines."""
    genes: list[tuple[Any, ...]] = []
    others: dict[tuple[str, str, str], tuple[int, int]] = {}
    for number, line in enumerate(read_lines(path, what="a GTF"), start=1):
        if line.startswith("#") or not line.strip():
            continue
        cells = line.split("\t")
        if len(cells) < 9:
            raise InputError(f"{path}: line {number} has {len(cells)} columns, a GTF has 9")
        identity = re.search(r'gene_id "([^"]+)"', cells[8])
        symbol = re.search(r'gene_name "([^"]+)"', cells[8]) or identity
        if symbol is None:
            continue
        gene_id = identity[1] if identity else ""
        row = (symbol[1], cells[0], cells[3], cells[4], gene_id)
        if cells[2] == "gene":
            genes.append(row)
        elif not genes:
            key = (symbol[1], cells[0], gene_id)
            start, end = int(cells[3]), int(cells[4])
            low, high = others.get(key, (start, end))
            others[key] = (min(low, start), max(high, end))
    if not genes:
        genes = [(s, c, low, high, g) for (s, c, g), (low, high) in others.items()]
    return pd.DataFrame(genes, columns=[*COLUMNS, "gene_id"])


def _read_table(path: Path) -> pd.DataFrame:
    """Return a table of positions, with its columns under their usual names."""
    what = "a table of gene positions"
    data = read_bytes(path, what=what)
    if not re.search(rb"[\t,;]", next(filter(_is_row, data.split(b"\n")), b"")):
        # Columns divided by blanks, however many.
        data = re.sub(rb"[ \t]+", b"\t", re.sub(rb"(?m)^[ \t]+|[ \t]+$", b"", data))
    read = lay_out(
        path, data, what=what, header=_names_columns, comments="all", row_names=True, repeated=True
    )
    table = read.text()
    if not read.header_line:
        first = list(table.iloc[0]) if len(table) else []
        if len(first) < 4 or not (first[2].isdigit() and first[3].isdigit()):
            raise InputError(
                f"{path}: the first line ({' '.join(first)[:60]!r}) is neither a header with "
                f"{', '.join(COLUMNS)} nor a row of gene, chromosome, start, end; for a GTF use a "
                "name ending in .gtf or .gtf.gz"
            )
        return table.iloc[:, :4].set_axis(list(COLUMNS), axis=1)
    header = [name.lower() for name in read.names]
    named = {
        column: next((header.index(alias) for alias in aliases if alias in header), None)
        for column, aliases in _ALIASES.items()
    }
    # Scanpy and others call the Ensembl id "gene_id" and leave the symbol unnamed.
    if named["gene"] is None:
        named["gene"] = named["gene_id"]
    missing = [column for column in COLUMNS if named[column] is None]
    if missing:
        raise InputError(
            f"{path}: no column {', '.join(missing)} among {', '.join(read.names)}; "
            f"the table must name {', '.join(COLUMNS)}"
        )
    taken = {column: place for column, place in named.items() if place is not None}
    return pd.DataFrame({column: table.iloc[:, place] for column, place in taken.items()})


def _is_row(line: bytes) -> bool:
    return bool(line.strip()) and not line.startswith(b"#")


def _names_columns(cells: list[str]) -> bool:
    """Return whether the first line is a header: it names the chromosome or the start."""
    return any(
        cell.lower() in _ALIASES[column] for cell in cells for column in ("chromosome", "start")
    )


def _one_row_a_symbol(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Return a table with one row per symbol, on the primary chromosomes, in genome order."""
    table = table.copy()
    if "gene_id" not in table:
        table["gene_id"] = ""
    for column in ("start", "end"):
        number = pd.to_numeric(table[column], errors="coerce")
        wrong = np.flatnonzero(~number.between(0, _MOST_BASES) | (number % 1 != 0))
        if len(wrong):
            raise InputError(
                f"{path}: row {wrong[0] + 1} of the genes ({table['gene'].iloc[wrong[0]]}) has "
                f"{column} {table[column].iloc[wrong[0]]!r}: it must be a number of base pairs"
            )
        table[column] = number.astype(np.int64)
    flipped = table["start"] > table["end"]
    table.loc[flipped, ["start", "end"]] = table.loc[flipped, ["end", "start"]].to_numpy()
    n_rows = len(table)
    names = {name: _chromosome(name) for name in table["chromosome"].unique()}
    table["chromosome"] = table["chromosome"].map(names)
    table = table[(table["chromosome"] != "") & (table["gene"].str.strip() != "")]
    if table.empty:
        raise InputError(
            f"{path}: none of its {n_rows} rows lies on a chromosome named like chr1, 1, X or chrM"
        )
    if n_rows > len(table):
        log.info("%s: %d rows on no primary chromosome left out", path, n_rows - len(table))
    on_x = table.loc[table["chromosome"] == "chrX", "gene"]
    table = table[~((table["chromosome"] == "chrY") & table["gene"].isin(on_x))]
    places = table[["gene", "chromosome"]].drop_duplicates()["gene"]
    several = places[places.duplicated()].unique()
    if len(several):
        log.info("%s: %d symbols on several chromosomes left out", path, len(several))
    table = table[~table["gene"].isin(several)].assign(length=lambda t: t["end"] - t["start"])
    rank = {name: i for i, name in enumerate(order_chromosomes(table["chromosome"]))}
    table = table.sort_values("length", ascending=False, kind="stable").drop_duplicates("gene")
    table = table.assign(rank=table["chromosome"].map(rank))
    table = table.sort_values(["rank", "start", "end", "gene"], kind="stable")
    return table[[*COLUMNS, "gene_id"]].reset_index(drop=True)


def _chromosome(name: str) -> str:
    """Return "chr1" for "1", "Chr1" or "chr1", and "" for what is not a primary chromosome."""
    match = _CHROMOSOME.fullmatch(str(name).strip())
    if match is None:
        return ""
    number = match[1].upper().lstrip("0") or "0"
    return f"chr{'M' if number == 'MT' else number}"


def _few_found(genes: Sequence[str], positions: pd.DataFrame, found: int) -> str:
    """Return the message for a table that knows too few of the genes, with the likely cause."""
    wanted = [str(gene) for gene in genes]
    upper = set(positions["gene"].astype(str).str.upper())
    folded = sum(gene.upper() in upper for gene in wanted)
    cause = "check that both are of the same species and genome build"
    if sum(gene.startswith("ENS") for gene in wanted) > len(wanted) / 2:
        cause = "the genes are Ensembl ids: give a GTF, or a table with a column gene_id"
    elif folded > 2 * max(found, 1):
        cause = (
            f"{folded} would be found if case were ignored, so the positions are probably of "
            "another species (human symbols are upper case, mouse symbols are not)"
        )
    examples = ", ".join(wanted[:3])
    return (
        f"gene positions: only {found} of {len(wanted)} genes (such as {examples}) are in the "
        f"table; {cause}, and set references.gene_positions to a table of that genome build"
    )
