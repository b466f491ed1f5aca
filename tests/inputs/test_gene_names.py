"""What counts as a gene, and by which name, in the ways that tools and spreadsheets write it."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from histogep.errors import InputError
from histogep.inputs.gene_names import (
    Features,
    are_dates,
    are_excluded,
    keep_genes,
    report_empty_patterns,
    why_absent,
)


def _features(names, ids=None, kinds=None, genomes=None):
    n = len(names)
    counts = sparse.csr_matrix(np.tile(10.0 ** np.arange(n), (4, 1)))
    parts = [None if part is None else np.array(part, object) for part in (kinds, genomes)]
    ids = np.array([""] * n if ids is None else ids, object)
    return Features(counts, np.array(names, object), ids, *parts)


def _kept(*parts, **options):
    genes = keep_genes(_features(*parts), source="x", **options)
    assert genes.counts.shape == (4, len(genes.names)) == (4, len(genes.ids))
    return list(genes.names)


@pytest.mark.parametrize(
    "kind",
    [
        *("Gene Expression", "Gene expression", "gene_expression", " GENE EXPRESSION ", "gene"),
        *("GeneExpression", "rna", "RNA", "protein_coding", "lncRNA", "Mt_rRNA", "IG_V_gene"),
    ],
)
def test_genes_are_known_however_their_type_is_spelt(kind):
    others = ["Antibody Capture", "antibody capture", "CRISPR Guide Capture", "protein", "spike-in"]
    names = ["TP53", *(f"X{i}" for i in range(5))]
    assert _kept(names, None, [kind, *others]) == ["TP53"]


def test_antibodies_never_add_to_a_gene_of_the_same_name(caplog):
    names = ["CD3E", "EPCAM", "CD3E", "PTPRC-1", "PTPRC", "GFP"]
    kinds = ["Gene Expression"] * 2 + ["Antibody Capture"] * 2 + ["Gene Expression"] * 2
    assert _kept(names, None, kinds) == ["CD3E", "EPCAM", "PTPRC", "GFP"]
    assert (
        "2 features that are of another type than gene expression (Antibody Capture)" in caplog.text
    )
    # Without types the ids tell: 10x gives an antibody its own name. A transgene stays.
    ids = ["ENSG1", "ENSG2", "CD3E", "CD45", "ENSG3", "GFP"]
    assert _kept(names, ids) == ["CD3E", "EPCAM", "PTPRC", "GFP"]
    # And without ids the names that only antibodies bear.
    names = [
        "CD3E",
        "ADT_CD3E",
        "CD3E_TotalSeqB",
        "CD4.TotalSeqC",
        "antibody:CD8A",
        "HTO_1",
        "Hashtag3_TotalA",
        "ADTRP",
    ]
    assert _kept(names) == ["CD3E", "ADTRP"]


def test_without_any_gene_the_types_are_named():
    with pytest.raises(InputError, match="none of its 2 features .* types are Antibody Capture"):
        _kept(["A", "B"], None, ["Antibody Capture"] * 2)
    assert _kept(["A", "B"], None, ["", np.nan]) == ["A", "B"]


def test_spike_ins_and_reads_of_no_gene_are_left_out():
    names = [
        "TP53",
        "ERCC1",
        "ERCC-00002",
        "__no_feature",
        "__ambiguous[A+B]",
        "N_unmapped",
        "BLANK_0069",
    ]
    assert _kept(names) == ["TP53", "ERCC1"]


DATES = [
    *(
        "1-Mar",
        "01-Mar",
        "Mar-01",
        "2022-03-01",
        "2022-03-01 00:00:00",
        "1.Mar",
        "01.Mrz",
        "1. Mrz",
    ),
    *("X1.Mar", "Mar.01", "1-Mar.1", "1-Mar-1", "3/1/2022", "03/01/22", "1-Mar-22", "1-mars"),
    *("5-Okt", "1-déc", "2-Sep", "2-Sept", "Sep-02", "MAR-01", "1 Mar", "1-Dec", "2.31E+19"),
]
NO_DATES = [
    *("MARCH1", "MARCHF1", "MARC1", "SEPT2", "SEPTIN2", "Sept2", "DEC1", "DELEC1", "OCT4", "OCT-4"),
    *("H1-2", "H2-K1", "HLA-A", "NKX2-1", "1700001C02Rik", "RP11-34P13.7", "AC012345.1", "MT-CO1"),
    *("mt-Co1", "7SK", "5S_rRNA", "C1orf112", "Sep15", "2310009E13Rik", "KRTAP5-10", "Mar1"),
]


def test_symbols_that_a_spreadsheet_made_dates_of_are_known():
    assert are_dates(DATES).all()
    assert not are_dates(NO_DATES).any()
    # Days since 1900 beside symbols; among numbers they are Entrez ids.
    assert are_dates(["44621", *(f"G{i}" for i in range(50))]).sum() == 1
    assert not are_dates(["44621", "7157", "1956"]).any()


def test_no_symbol_of_gencode_is_a_date(shared_data):
    table = pd.read_csv(
        shared_data / "genepos/gencode_v38_gene_pos.txt", sep="\t", header=None, dtype=str
    )
    genes = table[0].drop_duplicates().to_numpy(object)
    assert len(genes) > 20_000
    assert not are_dates(genes).any()
    assert len(keep_genes(_bare(genes), source="x").names) == len(genes)


def _bare(names):
    n = len(names)
    return Features(sparse.csr_matrix((4, n)), np.array(names, object), np.full(n, "", object))


def test_dates_are_named_and_never_summed(caplog):
    assert _kept(["1-Mar", "1-Mar", "2-Sep", "CD3D"]) == ["CD3D"]
    assert "3 columns are named by dates" in caplog.text
    assert "1-Mar, 1-Mar, 2-Sep" in caplog.text
    # The Ensembl ids say which genes they were.
    ids = ["ENSG00000145416", "ENSG00000173838", "", "ENSG00000167286"]
    assert _kept(["1-Mar", "1-Mar", "2-Sep", "CD3D"], ids) == [*ids[:2], "CD3D"]
    with pytest.raises(InputError, match="none of its features is a gene"):
        _kept(["1-Mar", "2-Sep"])


def test_ensembl_ids_get_the_symbols_of_the_gene_positions(tmp_path, caplog):
    caplog.set_level("INFO")
    table = "gene\tchromosome\tstart\tend\tgene_id\nTP53\tchr17\t1\t2\tENSG00000141510.18\n"
    (tmp_path / "g.tsv").write_text(table + "EGFR\tchr7\t1\t2\tENSG00000146648.20\n")
    names = ["ENSG00000141510.12", "ENSG00000146648", "ENSG00000000000.1"]
    genes = keep_genes(_features(names), source="x", gene_positions=tmp_path / "g.tsv")
    assert list(genes.names) == ["TP53", "EGFR", "ENSG00000000000"]
    assert list(genes.ids) == ["ENSG00000141510", "ENSG00000146648", "ENSG00000000000"]
    assert "know the symbols of 2" in caplog.text
    caplog.clear()
    assert _kept(names) == ["ENSG00000141510", "ENSG00000146648", "ENSG00000000000"]
    assert "give the symbols in the counts, or references.gene_positions" in caplog.text


@pytest.mark.parametrize(
    "name",
    [
        *("TP53_ENSG00000141510", "TP53|ENSG00000141510.18", "ENSG00000141510.18|TP53"),
        *("ENSG00000141510_TP53", " TP53 "),
    ],
)
def test_symbols_joined_to_their_ids_are_taken_apart(name):
    assert _kept([name, "EGFR"]) == ["TP53", "EGFR"]


def test_missing_names_are_no_gene_of_that_name(caplog):
    names = ["TP53", np.nan, "NA", "", None, "nan"]
    assert _kept(names, ["", "ENSG1", "", "ENSG2", "", ""]) == ["TP53", "ENSG1", "ENSG2"]
    assert "3 features without a name left out" in caplog.text


@pytest.mark.parametrize(
    ("human", "mouse"),
    [
        *(("GRCh38_TP53", "mm10_Trp53"), ("GRCh38______TP53", "mm10___Trp53")),
        *(
            ("hg19_TP53", "mm10_Trp53"),
            ("GRCh38-TP53", "GRCm39-Trp53"),
            ("hg19.TP53", "mm10.Trp53"),
        ),
    ],
)
def test_of_two_genomes_the_human_one_is_analysed_and_the_other_reported(human, mouse, caplog):
    assert _kept([human, mouse]) == ["TP53"]
    assert "human is analysed (1 genes, 9.1 % of all counts)" in caplog.text
    assert "mouse (1 genes, 90.9 % of all counts)" in caplog.text
    assert _kept([human, human.replace("TP53", "EGFR")]) == ["TP53", "EGFR"]


def test_genomes_are_known_by_their_field_and_by_their_ids_too():
    names = ["TP53", "Trp53", "GFP"]
    assert _kept(names, None, None, ["GRCh38", "mm10", ""]) == ["TP53", "GFP"]
    assert _kept(names, ["ENSG00000141510", "ENSMUSG00000059552", "GFP"]) == ["TP53", "GFP"]
    assert _kept(names, None, None, ["x", "x", ""]) == names
    # Without a human one: the genome of most counts.
    assert _kept(["rn7_Tp53", "mm10_Trp53"]) == ["Trp53"]


def test_mouse_genes_are_excluded_like_human_ones(caplog):
    patterns = ["^RP[SL]", "^MT-"]
    genes = ["Rpl3", "Rps6", "mt-Nd1", "Trp53", "RPL3", "MT-CO1", "Rptor"]
    assert list(are_excluded(genes, patterns)) == [True] * 3 + [False] + [True] * 2 + [False]
    report_empty_patterns(genes, patterns, setting="genes.exclude")
    assert not caplog.text
    report_empty_patterns(["ENSG00000141510"] * 3, patterns, setting="genes.exclude")
    assert "genes.exclude: the pattern ^RP[SL] finds none of 3 genes" in caplog.text
    assert "Ensembl ids" in caplog.text


def test_why_genes_are_absent():
    assert "another species" in why_absent(["Cd3d", "Epcam"], ["CD3D"])
    assert "Entrez" in why_absent(["7157", "1956"])
    assert "mouse or rat" in why_absent(["Cd3d", "Epcam"])
    assert "panel" in why_absent(["CD3D", "EPCAM"])


def test_symbols_among_the_ids_and_ids_among_the_symbols_are_turned():
    ids = [f"ENSG{i:011d}" for i in range(3)]
    genes = keep_genes(_features(ids, ["TP53", "EGFR", "KRAS"]), source="x")
    assert list(genes.names) == ["TP53", "EGFR", "KRAS"]
    assert list(genes.ids) == ids
    assert _kept(ids, ["7157", "1956", "3845"]) == ids
