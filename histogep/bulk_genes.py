"""What the rows of a bulk table are called: symbols, Ensembl ids, or both with a bar between them."""

from __future__ import annotations

import re
from pathlib import Path

from histogep.positions import read_gene_positions

_ENSEMBL = re.compile(r"(ENS[A-Z]*G\d+)(?:\.\d+)?(_PAR_Y)?")


def ensembl_id(name: str) -> str:
    """Return an Ensembl gene id without its version, "" for any other name."""
    match = _ENSEMBL.fullmatch(name.strip())
    return match[1] if match else ""


def is_second_copy(name: str) -> bool:
    """Return whether an id is GENCODE's second one of a gene on both sex chromosomes."""
    match = _ENSEMBL.fullmatch(name.strip())
    return bool(match and match[2])


def split_bar(name: str) -> str:
    """Return the symbol of `SYMBOL|ENTREZ` or `ENSG…|SYMBOL`; "" where it names none (`?|10357`)."""
    if "|" not in name:
        return name
    parts = [part.strip() for part in name.split("|")]
    named = [p for p in parts if p and p != "?" and not p.isdigit() and not ensembl_id(p)]
    return named[0] if named else next((p for p in parts if ensembl_id(p)), "")


def gene_symbols(positions: str | Path | None) -> dict[str, str]:
    """Return Ensembl id -> symbol of a file of gene positions; nothing where there is none."""
    if positions is None:
        return {}
    table = read_gene_positions(positions)
    known = zip(table["gene_id"].astype(str).map(ensembl_id), table["gene"], strict=True)
    return {gene_id: symbol for gene_id, symbol in known if gene_id}
