"""Decide which features in a table of counts are genes, and name them by symbol.

Tables of counts hold more than genes (antibodies, guides, spike-ins, a second genome), and genes have
names of several kinds: symbols, Ensembl ids, symbols with the genome in front, and symbols that a
spreadsheet turned into dates. Here the features of every format become genes with symbols.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import sparse

from histogep.errors import InputError
from histogep.inputs.genome import read_gene_positions

log = logging.getLogger(__name__)

#: Gene ids of Ensembl, of any species, with or without version.
ENSEMBL_ID = re.compile(r"(ENS[A-Z]*G\d+)(?:\.\d+)?(?:_PAR_Y)?")
#: Symbol and id in one name, and a symbol with an id in brackets.
_SYMBOL_ID = re.compile(rf"(.+?)[_|;:]{ENSEMBL_ID.pattern}")
_ID_SYMBOL = re.compile(rf"{ENSEMBL_ID.pattern}[_|;:](.+)")
_BRACKETED = re.compile(rf"(\S+) \((?:\d+|{ENSEMBL_ID.pattern})\)")
#: Names of the types of feature that are counts of genes; GENCODE's biotypes among them.
_GENE_TYPES = re.compile(
    r"geneexpression|genes?(counts?)?|expression|gex|transcript(ome|s)?|spatial|proteincoding.*"
    r"|(?!(sg|cr|sh|g|guide)rna).*rna(counts?)?|ribozyme|tec|antisense|processedtranscript"
    r"|sense(intronic|overlapping)|noncoding|.*pseudogene|(ig|tr)[a-z]{1,2}gene"
)
#: Words that occur only in the names of antibodies.
_ANTIBODY = re.compile(
    r"(?i)(^|[_.:\- ])(totalseq[abc]?|adt|antibody|isotype|hto|hashtag\d*)([_.:\- ]|$)"
)
#: Spike-ins, and the lines of htseq and STAR for reads of no gene.
_NO_GENE = re.compile(
    r"ERCC-\d{5}|__(no_feature|ambiguous|too_low_aQual|not_aligned|alignment_not_unique)(\[.*)?"
    r"|N_(unmapped|multimapping|noFeature|ambiguous)"
    r"|NegControl(Probe|Codeword)_.+|UnassignedCodeword_\d+|BLANK_\d+"
)
#: Genome assemblies, as 10x and others put them before the names of genes.
_PREFIX = re.compile(
    r"((?:refdata-gex-)?(?:GRC[a-z]\d+|hg\d{2}|mm\d{1,2}|rn\d|mRatBN7|Rnor_6|T2T-CHM13|CHM13)"
    r"(?:\.p?\d+)?(?:-20\d\d-[A-Z])?|human|mouse)[_.\-]+(?=\S)"
)
#: How assemblies and Ensembl ids indicate the species.
_SPECIES = {
    "human": re.compile(
        r"(?i)(refdata-gex-)?(GRCh\d|hg\d\d|T2T|CHM13|human|homo[ _]sapiens|NCBITaxon:9606$|ENSG$)"
    ),
    "mouse": re.compile(
        r"(?i)(refdata-gex-)?(GRCm\d|mm\d|mouse|mus[ _]musculus|NCBITaxon:10090$|ENSMUSG$)"
    ),
    "rat": re.compile(
        r"(?i)(refdata-gex-)?(rn\d|mRatBN|Rnor|rat$|rattus|NCBITaxon:10116$|ENSRNOG$)"
    ),
}
_MONTHS = (
    "jan|feb|mar|mär|mrz|apr|may|mai|jun|jul|aug|sept?|oct|okt|nov|dec|dez|janv|févr|mars|avr|juin"
    "|juil|août|déc|ene|abr|ago|dic|gen|mag|giu|lug|set|ott|fev|out|mrt|mei"
)
#: What spreadsheets make of MARCH1, SEPT2, DEC1 and OCT4, in their languages: 1-Mar, 01.Mrz,
#: Mar-01, 2022-03-01, 3/1/2022. R puts X before a leading digit; make-unique adds a number.
_DATE = re.compile(
    rf"(?i)X?\d{{1,2}}[.\-/ ]{{1,2}}({_MONTHS})\.?([.\-/ ]\d{{1,4}})?"
    rf"|({_MONTHS})\.?[.\-/ ](\d\d|(19|20)\d\d)([.\-]\d)?"
    r"|X?(19|20)\d\d[.\-/](0\d|1[0-2])[.\-/][0-3]\d([ T][\d:.]+)?"
    r"|X?[0-3]?\d[.\-/][0-3]?\d[.\-/]((19|20)\d\d|\d\d)"
)
#: Ids such as 2310009E13 as spreadsheets write them: 2.31E+19.
_SCIENTIFIC = re.compile(r"\d([.,]\d+)?E\+\d+")
#: Days since 1900 of dates between 1999 and 2035: dates in a cell formatted as a number.
_SERIAL = (36_000, 49_500)
_MISSING = ("", "nan", "na", "n/a", "<na>", "none", "null", "-")


@dataclass(frozen=True)
class Features:
    """Counts with everything that a file says about their columns.

    Attributes
    ----------
    counts
        Spots x features.
    names
        Symbol, or other name that the file gives each feature.
    ids
        Ensembl id of each, "" where unknown.
    kinds
        Type of each ("Gene Expression", "Antibody Capture"), or None if the file has none.
    genomes
        Genome of each, or None if the file has none.
    """

    counts: sparse.csr_matrix
    names: np.ndarray
    ids: np.ndarray
    kinds: np.ndarray | None = None
    genomes: np.ndarray | None = None

    def keep(self, chosen: np.ndarray) -> Features:
        """Return some of the features."""
        if chosen.all():
            return self
        return Features(
            sparse.csr_matrix(self.counts[:, np.flatnonzero(chosen)]),
            self.names[chosen],
            self.ids[chosen],
            None if self.kinds is None else self.kinds[chosen],
            None if self.genomes is None else self.genomes[chosen],
        )


def keep_genes(
    features: Features, *, source: str, gene_positions: str | Path | None = None
) -> Features:
    """Return the genes of one genome by their symbols; other features that were counted are logged.

    Left out are features of another type than gene expression, of another genome than the human
    one (without a human one: than the one with the most counts), names that a spreadsheet turned
    into dates (those with an Ensembl id are kept under it), and features without a name.

    Parameters
    ----------
    features
        As the file has them.
    source
        The file, for messages.
    gene_positions
        File of gene positions, which may know the symbols of Ensembl ids; read where they are needed.

    Raises
    ------
    InputError
        Nothing is left.
    """
    features = replace(features, names=clean_names(features.names), ids=clean_names(features.ids))
    for step in (_turn_names, _drop_other_types, _keep_one_genome, _drop_antibodies_like_genes):
        features = step(features, source)
    features = _name_ids(features, source, gene_positions)
    features = _drop_dates(features, source)
    nameless = features.names == ""
    if nameless.any():
        log.warning("%s: %d features without a name left out", source, nameless.sum())
        features = features.keep(~nameless)
    if not len(features.names):
        raise InputError(f"{source}: none of its features is a gene with a name")
    return features


def clean_names(names: Iterable[object]) -> np.ndarray:
    """Return names as text without outer blanks; "" for what tools write for a missing one."""
    text = [
        ""
        if name is None or (isinstance(name, float) and name != name)
        else (name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)).strip()
        for name in names
    ]
    return np.array(["" if name.lower() in _MISSING else name for name in text], dtype=object)


def strip_version(ids: Iterable[str]) -> np.ndarray:
    """Return Ensembl ids without their version; other names as they are."""
    return np.array(
        [match[1] if (match := ENSEMBL_ID.fullmatch(name)) else name for name in ids], dtype=object
    )


def are_ensembl(names: Iterable[str]) -> np.ndarray:
    """Return which names are Ensembl ids of genes."""
    return np.array([ENSEMBL_ID.fullmatch(str(name)) is not None for name in names], dtype=bool)


def split_name(name: str) -> tuple[str, str]:
    """Return the symbol and the Ensembl id, without version, that a name is made of; "" for none.

    CELLxGENE makes symbols unique with the id; others join the two with a bar.
    """
    if match := _SYMBOL_ID.fullmatch(name):
        return match[1], match[2]
    if match := _ID_SYMBOL.fullmatch(name):
        return match[2], match[1]
    if match := ENSEMBL_ID.fullmatch(name):
        return "", match[1]
    return name, ""


def split_bar(name: str) -> str:
    """Return the symbol of a row of a bulk table, or its Ensembl id without one.

    `TP53|7157` of Firehose (`?|10357` names none: ""), `ENSG…|TP53|protein_coding` of UCSC Xena,
    `TP53 (7157)` of DepMap, and what `split_name` takes apart.
    """
    if match := _BRACKETED.fullmatch(name):
        return match[1]
    if "|" not in name:
        symbol, gene_id = split_name(name)
        return symbol or gene_id
    parts = [part.strip() for part in name.split("|")]
    named = [p for p in parts if p and p != "?" and not p.isdigit() and split_name(p)[0]]
    return named[0] if named else next((split_name(p)[1] for p in parts if split_name(p)[1]), "")


def gene_symbols(positions: str | Path | None) -> dict[str, str]:
    """Return Ensembl id -> symbol of a file of gene positions; nothing where there is none."""
    if positions is None:
        return {}
    table = read_gene_positions(positions)
    ids = table["gene_id"].astype(str)
    return {
        gene_id: str(symbol)
        for gene_id, symbol in zip(strip_version(ids), table["gene"], strict=True)
        if gene_id
    }


def are_dates(names: Sequence[str] | np.ndarray) -> np.ndarray:
    """Return which names a spreadsheet made of symbols: dates, or numbers for dates and ids.

    A five-digit number counts only among names that mostly are not numbers: Entrez ids are genes.
    """
    names = [str(name) for name in names]
    found = np.array(
        [bool(_DATE.fullmatch(name) or _SCIENTIFIC.fullmatch(name)) for name in names], dtype=bool
    )
    digits = np.array([name.isdigit() for name in names], dtype=bool)
    if digits.any() and digits.mean() < 0.05:
        for place in np.flatnonzero(digits):
            found[place] |= _SERIAL[0] <= int(names[place][:9]) <= _SERIAL[1]
    return found


def are_excluded(genes: Iterable[str], patterns: Iterable[str]) -> np.ndarray:
    """Return which genes any regular expression finds; case does not matter, as species differ in it."""
    compiled = [re.compile(pattern, re.IGNORECASE) for pattern in patterns]
    return np.array([any(p.search(gene) for p in compiled) for gene in genes], dtype=bool)


def report_empty_patterns(genes: Sequence[str], patterns: Iterable[str], *, setting: str) -> None:
    """Warn of regular expressions that find no gene, with the likely reason."""
    for pattern in patterns:
        if not are_excluded(genes, [pattern]).any():
            log.warning(
                "%s: the pattern %s finds none of %d genes (such as %s); %s",
                *(setting, pattern, len(genes), ", ".join(genes[:3]), why_absent(genes)),
            )


def why_absent(genes: Sequence[str], wanted: Iterable[str] = ()) -> str:
    """Return the likely reason why names are not found among genes."""
    n = max(1, len(genes))
    if are_ensembl(genes).sum() > n / 2:
        return (
            "the genes go by Ensembl ids: give their symbols in the counts, or "
            "references.gene_positions as a GTF or with a column gene_id"
        )
    exact, known = set(genes), {gene.upper() for gene in genes}
    folded = [name for name in wanted if name not in exact and name.upper() in known]
    if folded:
        return f"{len(folded)} would be found if case were ignored: another species"
    if sum(gene.isdigit() for gene in genes) > n / 2:
        return "the genes go by numbers (Entrez ids?): give symbols"
    if sum(bool(re.fullmatch(r"[A-Z][a-z]+[a-z0-9-]*", gene)) for gene in genes) > n / 2:
        return "the symbols are like those of mouse or rat"
    if len(genes) < 5000:
        return "the counts may be of a panel without them"
    return "the counts may have been made without them"


def _normal(kind: object) -> str:
    """Return a type of feature in lower case, letters and digits only: "geneexpression"."""
    return re.sub(r"[^a-z0-9]", "", str(kind).lower())


def are_gene_types(kinds: Iterable[object]) -> np.ndarray:
    """Return which types of feature are counts of genes, in any spelling."""
    known = {kind: bool(_GENE_TYPES.fullmatch(_normal(kind))) for kind in set(kinds)}
    return np.array([known[kind] for kind in kinds], dtype=bool)


def _turn_names(features: Features, source: str) -> Features:
    """Exchange ids and symbols where the file has them the other way round."""
    names, ids = are_ensembl(features.names), are_ensembl(features.ids)
    words = np.array([bool(name) and not name.isdigit() for name in features.ids], dtype=bool)
    if names.mean() > 0.5 and (words & ~ids).mean() > 0.5:
        log.info("%s: its ids are symbols, and its symbols are ids: exchanged", source)
        return replace(features, names=features.ids, ids=features.names)
    return features


def _drop_other_types(features: Features, source: str) -> Features:
    """Leave out antibodies, guides, spike-ins and other features that are not genes."""
    if features.kinds is not None:
        given = clean_names(features.kinds)
        genes = are_gene_types(given)
        if not (given == "").all():
            if not genes.any():
                raise InputError(
                    f"{source}: none of its {len(given)} features is of the type Gene Expression; "
                    f"their types are {_listed(sorted(set(given)))}"
                )
            _say_left_out(features, ~genes, source, "of another type than gene expression", given)
            features = features.keep(genes)
    other = np.array(
        [bool(_NO_GENE.fullmatch(n) or _ANTIBODY.search(n)) for n in features.names], dtype=bool
    )
    _say_left_out(
        features, other, source, "antibodies, spike-ins or reads of no gene by their name"
    )
    return features.keep(~other)


def _say_left_out(
    features: Features, out: np.ndarray, source: str, what: str, kinds: np.ndarray | None = None
) -> None:
    if out.any():
        share = _share_of_counts(features, out)
        said = (
            "" if kinds is None else f" ({_listed(sorted(set(kinds[out]) - {''}) or ['no type'])})"
        )
        log.warning(
            "%s: %d features that are %s%s left out (%s; %.1f %% of all counts)",
            *(source, out.sum(), what, said, _listed(features.names[out]), 100 * share),
        )


def _share_of_counts(features: Features, chosen: np.ndarray) -> float:
    totals = np.asarray(features.counts.sum(axis=0), np.float64).ravel()
    return float(totals[chosen].sum() / max(totals.sum(), 1.0))


def _keep_one_genome(features: Features, source: str) -> Features:
    """Leave out the genes of a second genome, and take its name off those of the first."""
    prefixes = [_PREFIX.match(name) for name in features.names]
    id_prefixes = [_PREFIX.match(name) for name in features.ids]
    names, ids = (
        np.array(
            [n[m.end() :] if m else n for n, m in zip(given, found, strict=True)], dtype=object
        )
        for given, found in ((features.names, prefixes), (features.ids, id_prefixes))
    )
    genomes = (
        clean_names(features.genomes)
        if features.genomes is not None
        else np.full(len(ids), "", object)
    )
    species = [
        match[1].rstrip("0123456789") if (match := ENSEMBL_ID.fullmatch(i or n)) else ""
        for i, n in zip(ids, names, strict=True)
    ]
    several = len(set(genomes) - {""}) > 1
    label = np.array(
        [
            match[1] if (match := p or q) else (g if several else "") or s
            for p, q, g, s in zip(prefixes, id_prefixes, genomes, species, strict=True)
        ],
        dtype=object,
    )
    # One genome may be named in two ways: by a prefix, and by its ids.
    species_of = {
        name: next((known for known, rule in _SPECIES.items() if rule.match(name)), name)
        for name in set(label)
    }
    label = np.array([species_of[name] for name in label], dtype=object)
    if n_prefixed := sum(map(bool, prefixes)):
        log.info("%s: the name of the genome is taken off %d genes", source, n_prefixed)
    features = replace(features, names=names, ids=ids)
    found = sorted(set(label) - {""})
    if len(found) < 2:
        return features
    share = {name: _share_of_counts(features, label == name) for name in found}
    kept = "human" if "human" in share else max(found, key=lambda name: share[name])
    others = ", ".join(
        f"{name} ({(label == name).sum()} genes, {100 * share[name]:.1f} % of all counts)"
        for name in found
        if name != kept
    )
    log.warning(
        "%s: counts of several genomes; %s is analysed (%d genes, %.1f %% of all counts), left out: %s",
        *(source, kept, (label == kept).sum(), 100 * share[kept], others),
    )
    return features.keep((label == kept) | (label == ""))


def _drop_antibodies_like_genes(features: Features, source: str) -> Features:
    """Leave out features with a gene's name but no gene's id, where all genes have Ensembl ids.

    10x gives an antibody its own name for an id; AnnData makes its name unique with "-1".
    """
    known = are_ensembl(features.ids)
    if known.sum() < len(known) / 2 or known.all():
        return features
    genes = set(features.names[known])
    suspect = np.array(
        [
            not has_id
            and identity != ""
            and (name in genes or re.sub(r"[-.]\d+$", "", name) in genes)
            for name, identity, has_id in zip(features.names, features.ids, known, strict=True)
        ],
        dtype=bool,
    )
    _say_left_out(
        features, suspect, source, "named like a gene but have no gene's id (antibodies?)"
    )
    return features.keep(~suspect)


def _name_ids(features: Features, source: str, gene_positions: str | Path | None) -> Features:
    """Name features by their symbol where the name holds, or is, an Ensembl id."""
    names, ids = features.names.copy(), strip_version(features.ids)
    for place, name in enumerate(names):
        symbol, identity = split_name(name)
        names[place], ids[place] = symbol or identity, ids[place] or identity
    no_name = (names == "") | (are_dates(names) & are_ensembl(ids))
    if (are_dates(names) & are_ensembl(ids)).any():
        log.warning(
            "%s: %d symbols were turned into dates by a spreadsheet (%s); their Ensembl ids are used",
            *(source, (no_name & (names != "")).sum(), _listed(names[no_name & (names != "")])),
        )
    names[no_name] = ids[no_name]
    unnamed = are_ensembl(names)
    if not unnamed.any():
        return replace(features, names=names, ids=ids)
    mapped = 0
    if gene_positions:
        symbol_of = gene_symbols(gene_positions)
        for place in np.flatnonzero(unnamed):
            if new := symbol_of.get(names[place]):
                names[place] = str(new)
                mapped += 1
    if unnamed.mean() > 0.5 or mapped:
        level = logging.INFO if mapped > unnamed.sum() / 2 else logging.WARNING
        log.log(
            level,
            "%s: %d of %d genes go by Ensembl ids; the gene positions know the symbols of %d%s",
            *(source, unnamed.sum(), len(names), mapped),
            ""
            if mapped
            else ": patterns and lists of symbols will not find them; give the symbols in the counts, "
            "or references.gene_positions as a GTF or with a column gene_id",
        )
    return replace(features, names=names, ids=ids)


def _drop_dates(features: Features, source: str) -> Features:
    dates = are_dates(features.names)
    if dates.any():
        log.warning(
            "%s: %d columns are named by dates or numbers that a spreadsheet made of gene symbols "
            "(%s): which genes they were is unknown, they are left out; save the table from the tool "
            "that counted, not from a spreadsheet",
            *(source, dates.sum(), _listed(features.names[dates])),
        )
    return features.keep(~dates)


def _listed(names: Iterable[str], most: int = 6) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
