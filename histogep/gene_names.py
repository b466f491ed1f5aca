"""What the rows of an expression table are called: symbols, Ensembl ids, and what Excel made of them."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from histogep.positions import read_gene_positions

_MONTHS = (
    "jan|feb|mar|m[aä]r|mrz|m[aä]rz|apr|avr|may|mai|jun|jul|aug|sep|sept|oct|okt|nov|dec|dez|déc|"
    "march|january|february|april|june|july|august|september|october|november|december"
)
_DATE = re.compile(
    rf"\d{{1,2}}[-. /]\s*(?:{_MONTHS})\.?(?:[-. /]\d{{2,4}})?|(?:{_MONTHS})\.?[-. /]\d{{1,4}}"
    r"|\d{4}-\d{2}-\d{2}(?:[ T]00:00:00)?|\d{1,2}[/.]\d{1,2}[/.]\d{2,4}",
    re.IGNORECASE,
)
_ENSEMBL = re.compile(r"(ENS[A-Z]{0,6}G\d+)(?:\.\d+)?(_PAR_Y)?", re.IGNORECASE)


def excel_dates(names: pd.Index) -> list[str]:
    """Return the names that Excel made dates of (SEPT2 -> `2-Sep`, MARCH1 and MARC1 -> `1-Mar`)."""
    return [name for name in names if _DATE.fullmatch(str(name).strip())]


def ensembl_id(name: str) -> str:
    """Return an Ensembl gene id without its version, "" for any other name."""
    match = _ENSEMBL.fullmatch(name.strip())
    return match[1].upper() if match else ""


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
