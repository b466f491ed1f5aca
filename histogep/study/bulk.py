"""Read measured bulk expression: genes x patients or the reverse, returned on a log scale.

Supported are plain tables, GCT 1.2 and 1.3, the GDC's STAR counts as a table, Firehose's RSEM, and
the matrices of cBioPortal and UCSC Xena.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from histogep.errors import InputError
from histogep.inputs.barcodes import patient_key
from histogep.inputs.delimited import Delimited, lay_out, read_bytes
from histogep.inputs.gene_names import are_dates, are_ensembl, split_bar, strip_version
from histogep.inputs.sheet_ids import refuse_formulas
from histogep.inputs.units import scale_problem
from histogep.inputs.workbooks import is_workbook, open_table
from histogep.study.clinical import PATIENT_NAMES

log = logging.getLogger(__name__)

#: Suffix of the expression columns in tables of TCGA that hold mutations and copy number too.
_RNA = "_rnaseq"
#: Names of columns of symbols, the likeliest first, and of other columns that describe a gene.
_SYMBOLS = (
    *("hugo_symbol", "gene_name", "gene_symbol", "gene symbol", "genesymbol", "hgnc_symbol"),
    *("external_gene_name", "symbol", "pr_gene_symbol", "description"),
)
#: Of these, what is a few words where the name of the row is the symbol.
_WORDS = ("pr_gene_symbol", "description")
_OF_GENES = {
    *_SYMBOLS,
    *("entrez_gene_id", "entrez", "entrezid", "cytoband", "gene_type", "gene_biotype", "biotype"),
    *("gene_id", "ensembl_id", "ensembl_gene_id", "chr", "chromosome", "start", "end", "strand"),
    *("length", "gene name", "gene id", "id_ref", "accession", "locus", "geneid", "transcript_id"),
}
#: Names of a column of samples; Xena calls a column of genes `sample`.
_SAMPLE_NAMES = tuple(n for n in PATIENT_NAMES if n not in ("sample", "sampleID", "submitter_id"))
#: Columns of values in the GDC's file of one sample.
_ONE_SAMPLE = {"unstranded", "stranded_first", "stranded_second", "tpm_unstranded"}
#: What Firehose writes below the header of each column.
_KINDS = {
    *("normalized_count", "raw_count", "raw_counts", "scaled_estimate", "transcript_id", "RPKM"),
    *("median_length_normalized", "signal", "log2 lowess normalized (cy5/cy3) collapsed by gene"),
}
#: Rows of STAR and HTSeq that count reads assigned to no gene.
_NO_GENE = ("N_unmapped", "N_multimapping", "N_noFeature", "N_ambiguous", "__")
#: Genes that nearly every table has, by which its orientation is detected.
_COMMON = {"TP53", "EGFR", "GAPDH", "ACTB", "CD8A", "MYC", "STAT1", "PTEN", "KRAS", "CD4", "BRCA1"}
_MISSING = ("", "NA", "NaN", "nan", "N/A", "n/a", "#N/A", "null", "NULL", "None", "'--", "-", "na")
_MAX_BYTES = 4 << 30
#: Fewest genes by whose values a sample is judged: a handful of rounded ones may well agree.
_MANY_GENES = 20
#: Scale -> (conversion to the log scale that is analysed, from there to linear values or None).
SCALES: dict[str, tuple[Callable | None, Callable | None]] = {
    "log2_tpm": (None, lambda x: np.exp2(x) - 0.001),
    "log2": (None, lambda x: np.exp2(x) - 1),
    "log1p": (None, np.expm1),
    "linear": (lambda x: np.log2(x + 1), lambda x: np.exp2(x) - 1),
    "counts": (
        lambda x: np.log2(x.div(x.sum(axis=1), axis=0) * 1e6 + 1),
        lambda x: np.exp2(x) - 1,
    ),
    "zscore": (None, None),
}


@dataclass
class _Layout:
    """Which columns of a table are samples and which name the genes, or the reverse."""

    table: Delimited
    #: The column of sample names where samples are in rows.
    sample_column: Any = None
    genes: tuple[Any, ...] = ()
    samples: tuple[Any, ...] = ()
    rows: int | None = None

    def name(self, column: Any) -> str:
        """Return what the header calls a column."""
        return self.table.names[column]


def measured_samples(path: str | Path) -> list[str]:
    """Return the samples of an expression table, without reading its values.

    Raises
    ------
    InputError
        The file is not a table, or names no sample.
    """
    layout = _lay_out(path, n_lines=60)
    if layout.sample_column is None:
        samples = [layout.name(column) for column in layout.samples]
    else:
        layout = _lay_out(path)
        samples = layout.table.text([layout.sample_column]).iloc[:, 0].tolist()
        samples = [sample for sample in samples if sample]
    if not samples:
        raise InputError(f"{path} has a column of genes but no column of patients")
    return samples


def read_expression(
    path: str | Path, *, scale: str, symbols: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Return samples x genes on a log scale (z-scores stay as they are).

    Parameters
    ----------
    path
        Genes in rows and samples in columns, columns that describe the gene between them; or
        samples in rows with a column of patients (`histogep.study.clinical.PATIENT_NAMES`) and genes in
        columns, those that end in `_rnaseq` where there are any. TSV, CSV or xlsx, gz or zip; GCT.
    scale
        A key of `SCALES`; `counts` are scaled to counts per million of a sample first.
    symbols
        Ensembl gene id -> symbol, for tables without symbols.

    Returns
    -------
    DataFrame
        Repeated genes or samples are averaged. Genes with a missing value or without a name, and
        those whose name Excel turned into a date, are left out and counted in the log.

    Raises
    ------
    InputError
        Cells that are not numbers; values that do not fit the scale; a sample with one value for
        every gene; two patients with the same values; a GCT file with more or fewer rows than it
        declares.
    """
    layout = _lay_out(path)
    table = layout.table
    if layout.sample_column is None:
        read = table.numbers(layout.samples, labels=layout.genes, missing=_MISSING)
        if layout.rows is not None and len(read) != layout.rows:
            raise InputError(
                f"{path} declares {layout.rows} genes but has {len(read)}: is it whole?"
            )
        labels = read[list(layout.genes)]
        values = read[list(layout.samples)]
        values.columns = [layout.name(column) for column in layout.samples]
        names = _gene_names(labels, [layout.name(column) for column in layout.genes], symbols, path)
        kept = (names != "").to_numpy()
        values = values[kept].set_axis(names[kept].to_numpy(), axis=0)
        repeated = int(values.index.duplicated().sum())
        values = values.replace([np.inf, -np.inf], np.nan)
        values = values.groupby(level=0, sort=True).mean().T
        if repeated:
            log.info("%s: %d repeated genes averaged", path, repeated)
    else:
        read = table.numbers(layout.samples, labels=[layout.sample_column], missing=_MISSING)
        genes = pd.Series([layout.name(column).removesuffix(_RNA) for column in layout.samples])
        names = _gene_names(genes.to_frame(), [""], symbols, path)
        read = read[read[layout.sample_column] != ""].set_index(layout.sample_column)
        read.columns = names.to_numpy()
        values = read.loc[:, read.columns != ""].replace([np.inf, -np.inf], np.nan)
        values = values.groupby(level=0, sort=True).mean()
        if not values.columns.is_unique:
            values = values.T.groupby(level=0, sort=True).mean().T
        values = values[sorted(values)]
    missing = values.isna().any()
    if missing.any():
        log.warning("%s: %d genes with a missing value are left out", path, missing.sum())
        values = values.loc[:, ~missing]
    if values.empty:
        raise InputError(f"{path} holds no gene that was measured in every patient")
    refuse_formulas(map(str, values.columns), path)
    _refuse_failed(values, path, scale=scale)
    _refuse_copies(values, path)
    if problem := scale_problem(values, scale=scale, scales=list(SCALES)):
        raise InputError(f"{path} {problem}")
    to_log = SCALES[scale][0]
    return values if to_log is None else to_log(values)


def _refuse_failed(values: pd.DataFrame, path: str | Path, *, scale: str) -> None:
    """Refuse samples that have one value for every gene: nothing was measured in them.

    Scaled to its depth a sample without counts has no expression, and with it no gene of the cohort
    could be compared.
    """
    flat = (values.max(axis=1) == values.min(axis=1)).to_numpy()
    # A handful of genes may well be silent, but shares of a total of zero are undefined.
    if values.shape[1] < _MANY_GENES:
        flat &= (values.max(axis=1) == 0).to_numpy() & (scale == "counts")
    if flat.any():
        failed = [f"{name} ({value:g})" for name, value in values.iloc[flat, 0].items()]
        raise InputError(
            f"{path}: every gene has the same value in {len(failed)} samples: "
            f"{', '.join(failed[:5])}; nothing was measured there: leave these samples out"
        )


def _refuse_copies(values: pd.DataFrame, path: str | Path) -> None:
    """Refuse two patients with one profile: what is learnt from one would be tested on the other."""
    if values.shape[1] < _MANY_GENES:
        return
    first: dict[str, str] = {}
    pairs = []
    for sample, row in zip(values.index.astype(str), values.to_numpy(np.float64), strict=True):
        known = first.setdefault(hashlib.sha256(row.tobytes()).hexdigest(), sample)
        if patient_key(known) != patient_key(sample):
            pairs.append(f"{known} and {sample}")
    if pairs:
        raise InputError(
            f"{path}: {len(pairs)} pairs of patients have the same values in all "
            f"{values.shape[1]} genes: {', '.join(pairs[:5])}. One sample under two patients is both "
            "learnt from and tested on: correct the patient, or leave one of the two out"
        )


def _lay_out(path: str | Path, *, n_lines: int | None = None) -> _Layout:
    """Return the layout of a table; its first lines are enough unless samples lie in rows."""
    path = Path(path)
    kinds: list[str] = []
    declared: list[int] = []
    what = "a table of expression"
    if is_workbook(path):
        table = open_table(path, what=what, repeated=True, row_names=True)
    else:
        data = read_bytes(path, what=what, n_lines=n_lines, most=_MAX_BYTES)
        data, declared = _without_gct_head(path, data)
        data, kinds = _without_kinds(data)
        table = lay_out(path, data, what=what, repeated=True, row_names=True)
    names = [name.casefold() for name in table.names]
    if len(names) == 1 and re.search(r"\S\s+\S", table.names[0]):
        raise InputError(
            f"{path} line {table.header_line}: the columns are separated by blanks; save it as tab- or "
            "comma-separated text"
        )
    if set(names) >= _ONE_SAMPLE:
        raise InputError(
            f"{path} is one sample's file of the GDC: put one of its columns (tpm_unstranded) of all "
            "samples into one table, genes in rows, samples in columns"
        )
    if not declared:
        sample_column = next(
            (names.index(n.casefold()) for n in _SAMPLE_NAMES if n.casefold() in names), None
        )
        if sample_column is None and _lies_across(table):
            sample_column = 0
        if sample_column is not None:
            _refuse_twice(table, range(len(names)))
            rna = [at for at, name in enumerate(table.names) if name.endswith(_RNA)]
            others = [at for at in range(len(names)) if at != sample_column and table.names[at]]
            return _Layout(table, sample_column, samples=tuple(rna or others))
    samples = [at for at in range(1, len(names)) if names[at] not in _OF_GENES and names[at]]
    while samples and not declared and _is_text(table, samples[0]):
        del samples[0]  # a description of the genes, whatever its name
    if declared:
        # GTEx puts a column `id` before the two of GCT 1.2.
        plain = 1 + (names[:3] == ["id", "name", "description"])
        described = declared[2] if len(declared) > 2 else plain
        samples = list(range(1 + described, len(names)))
        if len(samples) != declared[1]:
            raise InputError(
                f"{path} declares {declared[1]} samples but has {len(samples)} columns of samples"
            )
    if len(set(kinds[1:])) > 1:
        wanted = next((k for k in ("normalized_count", "scaled_estimate") if k in kinds), "")
        samples = [at for at in samples if kinds[at] == wanted]
        log.info("%s: of its columns those of %s are read", path, wanted)
    _refuse_twice(table, samples)
    genes = (0, *(at for at in range(1, len(names)) if at not in set(samples) and table.names[at]))
    return _Layout(
        table, genes=genes, samples=tuple(samples), rows=declared[0] if declared else None
    )


def _refuse_twice(table: Delimited, columns: Any) -> None:
    named = pd.Series([table.names[at] for at in columns])
    twice = sorted(set(named[named.duplicated() & (named != "")]))
    if twice:
        raise InputError(
            f"{table.path}, line {table.header_line}: {', '.join(twice[:5])} appears twice among the "
            "columns: keep one, or give each sample its own name"
        )


def _is_text(table: Delimited, column: int) -> bool:
    """Return whether the first rows of a column are all words, so that it is not a sample."""
    cells = table.text([table.columns[column]]).iloc[:50, 0]
    cells = cells[~cells.isin(_MISSING)]
    return bool(len(cells) and cells.str.match(r"[A-Za-z][A-Za-z _-]+$").all())


def _lies_across(table: Delimited) -> bool:
    """Return whether genes are in columns although no column is named as one of patients."""
    across = len(_COMMON & {split_bar(name.removesuffix(_RNA)).upper() for name in table.names[1:]})
    if across < 2:
        return False
    down = {split_bar(cell).upper() for cell in table.text([0]).iloc[:, 0]}
    return across > len(_COMMON & down)


def _without_gct_head(path: Path, data: bytes) -> tuple[bytes, list[int]]:
    """Comment out the version and size lines of a GCT file, and blank its sample descriptions."""
    if not data.startswith((b"#1.2", b"#1.3")):
        return data, []
    lines = data.split(b"\n")
    try:
        declared = [int(cell) for cell in lines[1].split()]
        n_expected = 4 if lines[0].startswith(b"#1.3") else 2
        if len(declared) < n_expected:
            raise ValueError
    except (ValueError, IndexError):
        raise InputError(
            f"{path}, line 2: a GCT file has the numbers of its genes and samples there"
        ) from None
    lines[1] = b"#" + lines[1]
    if n_expected == 4:
        # Rows that describe the samples, below the header.
        for at in range(3, min(3 + declared[3], len(lines))):
            lines[at] = b""
    return b"\n".join(lines), declared[:n_expected]


def _without_kinds(data: bytes) -> tuple[bytes, list[str]]:
    """Blank the second header line of Firehose, and return it."""
    first, _, rest = data.partition(b"\n")
    second, _, others = rest.partition(b"\n")
    cells = [cell.strip() for cell in second.decode("utf-8").split("\t")]
    if first.startswith(b"#") or len(cells) < 2 or not set(cells[1:]) <= _KINDS:
        return data, []
    return b"\n".join((first, b"", others)), cells


def _gene_names(
    labels: pd.DataFrame, titles: list[str], symbols: Mapping[str, str] | None, path: str | Path
) -> pd.Series:
    """Return the symbol of each row, "" for those that are left out; losses are logged."""
    lowered = [title.casefold() for title in titles]
    first = int(lowered[:3] == ["id", "name", "description"])
    ids = labels.iloc[:, first].astype(str).str.strip()
    names = ids.map(split_bar)
    column = next((lowered.index(s) for s in _SYMBOLS if s in lowered[1:]), None)
    # GCT's description is the symbol where the name is an id, else a few words.
    by_id = (are_ensembl(ids) | ids.str.endswith("_at") | ids.str.isdigit()).mean() > 0.5
    if column and (lowered[column] not in _WORDS or by_id):
        told = labels.iloc[:, column].astype(str).str.strip()
        names = told.where((told != "") & ~told.isin(("NA", "-", "?", "---")), names)
    # GENCODE's second copy of a gene on both sex chromosomes.
    second = ids.str.endswith("_PAR_Y")
    no_gene = ids.str.startswith(_NO_GENE)
    for kind, of_kind, remedy in (
        ("numbers (Entrez ids?)", names.str.isdigit(), "give their symbols or Ensembl ids"),
        ("transcripts", names.str.match(r"ENS[A-Z]*T\d"), "sum those of each gene first"),
    ):
        if of_kind.mean() > 0.5:
            raise InputError(
                f"{path}: its rows go by {kind}, such as {names[of_kind].iloc[0]}, not by genes: {remedy}"
            )
    ensembl = pd.Series(np.where(are_ensembl(names), strip_version(names), ""), names.index)
    if (ensembl != "").any():
        found = ensembl.map(dict(symbols or {})).fillna("")
        names = names.mask(ensembl != "", found.where(found != "", ensembl))
        unknown = int(((ensembl != "") & (found == "") & ~second).sum())
        if unknown:
            log.warning(
                "%s: %d of %d genes are Ensembl ids without a symbol%s",
                path,
                unknown,
                len(names),
                ""
                if symbols
                else ": signatures and gene sets use symbols: give references.gene_positions",
            )
    named = names[names != ""].unique()
    dates = list(named[are_dates(named)])
    if dates:
        log.warning(
            "%s: %d genes whose name Excel turned into a date are left out: %s; take the symbols from "
            "the original table",
            path,
            int(names.isin(dates).sum()),
            ", ".join(dates[:8]),
        )
    nameless = (names == "") & ~no_gene
    if nameless.any():
        log.info("%s: %d rows without the name of a gene are left out", path, int(nameless.sum()))
    return names.mask(second | no_gene | names.isin(dates), "")
