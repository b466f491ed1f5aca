"""Gene sets as files (GMT)."""

from __future__ import annotations

import itertools
from pathlib import Path

from histogep.jobs import InputError


def read_gmt(path: str | Path, *, n_lines: int | None = None) -> dict[str, list[str]]:
    """Return the gene sets of a GMT file: one set a line; name, description, genes, by tabs.

    Parameters
    ----------
    path
        The file.
    n_lines
        Read no more lines than these, to see whether it is such a file at all.

    Raises
    ------
    InputError
        The file is no GMT, names a set twice, or genes by number.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = list(itertools.islice(file, n_lines))
    except UnicodeDecodeError:
        raise InputError(f"{path} is no text file; gene sets are GMT files") from None
    sets: dict[str, list[str]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        cells = line.split("\t")
        # Some collections give a weight behind the symbol: `GENE,1.0`.
        genes = [cell.split(",")[0].strip() for cell in cells[2:]]
        genes = list(dict.fromkeys(gene for gene in genes if gene))
        if len(cells) < 3 or not cells[0].strip() or not genes:
            raise InputError(
                f"{path}, line {number} is no GMT: name, description and genes are separated by "
                "tabs, one set a line"
            )
        if all(gene.isdigit() for gene in genes):
            raise InputError(
                f"{path}, line {number}: the genes of {cells[0]!r} are numbers, such as {genes[0]}; "
                "gene sets name genes by symbol (MSigDB's *.symbols.gmt)"
            )
        if cells[0] in sets:
            raise InputError(f"{path}, line {number}: gene set {cells[0]!r} stands twice")
        sets[cells[0]] = genes
    if not sets:
        raise InputError(f"{path} holds no gene set")
    return sets
