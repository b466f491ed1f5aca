"""Read gene sets from files (GMT)."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from histogep.errors import InputError
from histogep.inputs.delimited import read_lines
from histogep.inputs.gene_names import are_dates
from histogep.inputs.sheet_ids import refuse_formulas

log = logging.getLogger(__name__)

_MAX_BYTES = 512 << 20
#: Some collections give a weight behind the symbol: `GENE,1.0`.
_WEIGHT = re.compile(r",\s*[+-]?[\d.]+(?:[eE][+-]?\d+)?\s*$")
#: Separators of genes in a list, which occur in no gene's name.
_LIST = re.compile(r"[,;|\s]|//")
#: What R and pandas write to fill up shorter sets.
_MISSING = {"NA", "NaN", "nan", "<NA>", "None", "NULL", "#N/A"}


def read_gmt(path: str | Path, *, n_lines: int | None = None) -> dict[str, list[str]]:
    """Return the gene sets of a GMT file: one set a line; name, description, genes, by tabs.

    Repeated sets with the same genes, and sets without genes, are left out with a warning.

    Parameters
    ----------
    path
        The file, plain or packed.
    n_lines
        Read no more lines than these.

    Raises
    ------
    InputError
        The file is not GMT, names a set twice with different genes, or genes by number.
    """
    try:
        lines = read_lines(path, what="gene sets", most=_MAX_BYTES)[:n_lines]
    except InputError as error:
        if any(said in str(error) for said in ("UTF-8", "is not text", "is not a table but")):
            raise InputError(
                f"{path} is not a text file; gene sets are GMT files ({error})"
            ) from None
        raise
    sets: dict[str, list[str]] = {}
    empty: list[str] = []
    repeated: list[str] = []
    odd: list[str] = []
    first_empty = missing = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        cells = line.split("\t")
        name = cells[0].strip().strip('"')
        genes = [_WEIGHT.sub("", cell).strip().strip('"') for cell in cells[2:]]
        padding = {gene for gene in _MISSING.intersection(genes) if genes.count(gene) > 1}
        missing += sum(gene in padding for gene in genes)
        odd += sorted(_MISSING.intersection(genes) - padding)
        genes = list(dict.fromkeys(gene for gene in genes if gene and gene not in padding))
        lists = [gene for gene in genes if _LIST.search(gene)]
        if lists and len(lists) == len(genes):
            raise InputError(
                f"{path}, line {number}: {lists[0][:80]!r} of {name!r} is a list of genes, not one: "
                "a GMT file has a tab between two genes"
            )
        odd += lists
        if len(cells) < 2 or not name:
            raise InputError(_no_gmt(path, number))
        if not genes:
            empty.append(name)
            first_empty = first_empty or number
            continue
        if all(gene.isdigit() for gene in genes):
            raise InputError(
                f"{path}, line {number}: the genes of {name!r} are numbers, such as {genes[0]}; "
                "gene sets name genes by symbol (MSigDB's *.symbols.gmt)"
            )
        if name in sets:
            if set(sets[name]) != set(genes):
                raise InputError(
                    f"{path}, line {number}: gene set {name!r} appears twice, with different genes"
                )
            repeated.append(name)
            continue
        sets[name] = genes
    if not sets:
        raise InputError(_no_gmt(path, first_empty) if empty else f"{path} holds no gene set")
    for told, names in (("without genes", empty), ("that are repeated", repeated)):
        if names:
            log.warning(
                "%s: %d gene sets %s are left out: %s", path, len(names), told, ", ".join(names[:5])
            )
    if missing:
        log.warning("%s: %d cells of NA, which fill up shorter sets, are left out", path, missing)
    if odd:
        log.warning(
            "%s: names that are not of genes: %s", path, ", ".join(list(dict.fromkeys(odd))[:5])
        )
    genes = list(dict.fromkeys(gene for members in sets.values() for gene in members))
    refuse_formulas([*sets, *genes], path)
    if dates := [gene for gene, odd in zip(genes, are_dates(genes), strict=True) if odd]:
        log.warning("%s: genes whose name Excel turned into a date: %s", path, ", ".join(dates[:8]))
    return sets


def _no_gmt(path: str | Path, number: int) -> str:
    return (
        f"{path}, line {number} is not GMT: name, description and genes are separated by tabs, one set "
        "a line"
    )
