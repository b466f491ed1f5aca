import gzip

import numpy as np
import pandas as pd
import pytest

from histogep.errors import InputError
from histogep.inputs.genome import (
    assign_arms,
    locate_genes,
    order_arms,
    order_chromosomes,
    read_arms,
    read_gene_positions,
    recognise_genome,
)

ROWS = [("AAA", "chr1", 1000, 2000), ("BBB", "chr2", 500, 900), ("CCC", "chrX", 10, 60)]


def _table(tmp_path, text, name="positions.tsv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_header_no_header_and_gtf_say_the_same(tmp_path):
    lines = ["\t".join(map(str, row)) for row in ROWS]
    plain = read_gene_positions(_table(tmp_path, "\n".join(lines) + "\n", "plain.txt"))
    header = "end\tgene\tstart\tchromosome"
    headed = "\n".join([header, *(f"{e}\t{g}\t{s}\t{c}" for g, c, s, e in ROWS)])
    headed = read_gene_positions(_table(tmp_path, headed, "headed.tsv"))
    gtf = "#comment\n" + "\n".join(
        f'{c}\tHAVANA\t{feature}\t{s}\t{e}\t.\t+\t.\tgene_id "ENSG{i}.3"; gene_name "{g}";'
        for i, (g, c, s, e) in enumerate(ROWS)
        for feature in ("gene", "transcript", "exon")
    )
    path = tmp_path / "genes.gtf.gz"
    with gzip.open(path, "wt") as handle:
        handle.write(gtf)
    gtf = read_gene_positions(path)
    expected = pd.DataFrame(ROWS, columns=["gene", "chromosome", "start", "end"])
    for table in (plain, headed, gtf):
        pd.testing.assert_frame_equal(table.drop(columns="gene_id"), expected)
    assert list(gtf["gene_id"]) == ["ENSG0.3", "ENSG1.3", "ENSG2.3"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("headed.tsv", "gene\tchromosome\tstart\tend\nAAA\tchr1\t10\t90\n"),
        ("headed.csv", "gene,chromosome,start,end\nAAA,chr1,10,90\n"),
        ("blanks.txt", "gene chromosome start end\nAAA chr1 10 90\n"),
        ("plain.txt", "AAA\tchr1\t10\t90\n"),
        ("a.gtf", '#!build\n1\tx\tgene\t10\t90\t.\t+\t.\tgene_id "E"; gene_name "AAA";\n'),
    ],
)
@pytest.mark.parametrize("gzipped", [False, True])
def test_a_byte_order_mark_is_no_part_of_the_table(tmp_path, name, text, gzipped):
    data = text.encode("utf-8-sig")
    path = tmp_path / (name + ".gz" * gzipped)
    path.write_bytes(gzip.compress(data) if gzipped else data)
    table = read_gene_positions(path)
    assert table[["gene", "chromosome", "start", "end"]].to_numpy().tolist() == [
        ["AAA", "chr1", 10, 90]
    ]


def test_gtf_without_gene_lines_spans_the_exons(tmp_path):
    lines = [f'1\tx\texon\t{s}\t{e}\t.\t+\t.\tgene_id "E1"; gene_name "AAA";' for s, e in
             ((50, 90), (10, 20), (70, 120))]  # fmt: skip
    table = read_gene_positions(_table(tmp_path, "\n".join(lines), "exons.gtf"))
    assert table.loc[0, ["chromosome", "start", "end"]].tolist() == ["chr1", 10, 120]


def test_chromosome_names_are_mended_and_scaffolds_left_out(tmp_path):
    names = ["1", "chr2", "CHR3", "x", "MT", "GL000220.1", "chrUn_KI270742v1", "09"]
    text = "gene\tchr\tstart\tend\n" + "".join(f"G{i}\t{c}\t1\t5\n" for i, c in enumerate(names))
    table = read_gene_positions(_table(tmp_path, text))
    assert table["chromosome"].tolist() == ["chr1", "chr2", "chr3", "chr9", "chrX", "chrM"]


def test_repeated_symbols(tmp_path):
    text = (
        "LONG\tchr1\t100\t900\nLONG\tchr1\t950\t960\n"  # the longest stays
        "PAR\tchrY\t100\t200\nPAR\tchrX\t300\t400\n"  # pseudoautosomal: X
        "Y_RNA\tchr5\t1\t2\nY_RNA\tchr6\t1\t2\nONE\tchr2\t1\t2\n"  # no one place
    )
    table = read_gene_positions(_table(tmp_path, text)).set_index("gene")
    assert list(table.index) == ["LONG", "ONE", "PAR"]
    assert table.loc["LONG", "end"] == 900
    assert table.loc["PAR", "chromosome"] == "chrX"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("gene\tchromosome\tend\nA\tchr1\t5\n", "no column start"),
        ("hello world\n", "neither a header"),
        ("gene\tchromosome\tstart\tend\nA\tchr1\tfive\t9\n", "row 1 .*start 'five'"),
        ("A\tchrUn\t1\t2\n", "none of its 1 rows"),
    ],
)
def test_bad_tables_are_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_gene_positions(_table(tmp_path, text))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere.tsv"):
        read_gene_positions(tmp_path / "nowhere.tsv")


def test_broken_gtf_names_the_line(tmp_path):
    with pytest.raises(InputError, match="line 1 has 3 columns"):
        read_gene_positions(_table(tmp_path, "chr1\t1\t2\n", "a.gtf"))


def test_genes_are_found_by_symbol_then_by_id_in_genome_order():
    positions = pd.DataFrame(ROWS, columns=["gene", "chromosome", "start", "end"])
    positions["gene_id"] = ["ENSG1.7", "ENSG2.1", "ENSG3.1"]
    found = locate_genes(["CCC", "new", "ENSG1"], positions, gene_ids=["", "ENSG2.9", ""])
    assert found["column"].tolist() == [2, 1, 0]
    assert found["gene"].tolist() == ["ENSG1", "new", "CCC"]
    assert found["arm"].tolist() == ["1p", "2p", "Xp"]


@pytest.mark.parametrize(
    ("genes", "message"),
    [
        (["foo1", "foo2", "foo3", "AAA"], "1 of 4 genes .*genome build"),
        (["Aaa", "Bbb", "Ccc"], "another species"),
        (["ENSG9", "ENSG8"], "Ensembl ids"),
    ],
)
def test_positions_of_another_genome_are_refused(genes, message):
    positions = pd.DataFrame(ROWS, columns=["gene", "chromosome", "start", "end"])
    with pytest.raises(InputError, match=message):
        locate_genes(genes, positions, min_share=0.5)


def test_order_of_the_genome():
    assert order_chromosomes(["chrX", "chr10", "chr2", "chrM"]) == ["chr2", "chr10", "chrX", "chrM"]
    assert order_arms(["10p", "2q", "Xq", "2p"]) == ["2p", "2q", "10p", "Xq"]


def test_arms_of_known_genes(shared_data):
    table = read_gene_positions(shared_data / "genepos" / "gencode_v38_gene_pos.txt")
    arm = dict(zip(table["gene"], assign_arms(table), strict=True))
    known = {"TP53": "17p", "ERBB2": "17q", "MYC": "8q", "PTEN": "10q", "CDKN2A": "9p",
             "RB1": "13q", "VHL": "3p", "EGFR": "7p", "NOTCH2": "1p", "AR": "Xq"}  # fmt: skip
    assert {gene: arm[gene] for gene in known} == known
    # The short arms of the acrocentric chromosomes carry next to no genes.
    counts = pd.Series(assign_arms(table[table["gene"].str.match(r"^[A-Z0-9]+$")])).value_counts()
    assert counts.get("13p", 0) + counts.get("15p", 0) < 0.02 * (counts["13q"] + counts["15q"])
    arms = read_arms()
    assert len(arms) == 24
    ends = table.groupby("chromosome")["end"].max() / 1e6
    assert (ends.reindex(arms.index) <= arms["length_mb"] + 0.1).all()
    assert (np.abs(ends.reindex(arms.index) - arms["length_mb"]) < 8).drop("chrY").all()


def test_the_shared_gtf_agrees_with_the_table(shared_data):
    gtf = read_gene_positions(shared_data / "genepos" / "chr21_gencode.gtf")
    table = read_gene_positions(shared_data / "genepos" / "gencode_v38_gene_pos.txt")
    both = gtf.merge(table, on="gene")
    assert len(both) > 50
    assert (both["chromosome_x"] == both["chromosome_y"]).mean() > 0.9
    assert ((both["start_x"] - both["start_y"]).abs() < 5e4).mean() > 0.8


def _mouse(n=40, **columns):
    """Return positions as the mouse has them: 19 autosomes, symbols such as Actb."""
    rows = [
        (f"Abc{chr(97 + number)}{i}", f"chr{number}", i * 4_000_000 + 3_000_000)
        for number in range(1, 20)
        for i in range(n)
    ]
    table = pd.DataFrame(rows, columns=["gene", "chromosome", "start"])
    return table.assign(end=table["start"] + 1000, **columns)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (_mouse(), "symbols are like Abcb0"),
        (
            _mouse(gene=[f"G{i}" for i in range(760)], gene_id="ENSMUSG00000029580"),
            "Ensembl ids are like ENSMUSG00000029580",
        ),
        (_mouse(gene=[f"G{i}" for i in range(760)]), "of chr8, beyond its end in the human"),
        (
            pd.DataFrame(
                {"gene": [f"G{i}" for i in range(29)], "start": 5, "end": 9}
                | {"chromosome": [f"chr{i + 1}" for i in range(29)]}
            ),
            "29 numbered chromosomes",
        ),
    ],
)
def test_genes_of_another_genome_get_no_human_arm(table, reason, caplog):
    recognised, why = recognise_genome(table)
    assert recognised == "other"
    assert reason in why
    found = locate_genes(list(table["gene"]), table)
    assert set(found["arm"]) == set(table["chromosome"].str.removeprefix("chr"))
    assert "each whole chromosome stands for an arm" in caplog.text
    with pytest.raises(InputError, match="cnv.genome says human, but .* another genome"):
        locate_genes(list(table["gene"]), table, genome="human")


def test_human_tables_are_recognised_in_both_builds(shared_data):
    from histogep.simulate.genes import bundled_positions

    hg38 = read_gene_positions(shared_data / "genepos" / "gencode_v38_gene_pos.txt")
    for table in (hg38, bundled_positions()):
        assert recognise_genome(table)[0] == "human"
    found = locate_genes(["ERBB2"], hg38)
    assert list(found["arm"]) == ["17q"]
    # Whoever knows better is believed.
    assert list(locate_genes(["ERBB2"], hg38, genome="other")["arm"]) == ["17"]


def test_ids_with_a_version_are_found_with_another_or_none(tmp_path):
    path = tmp_path / "genes.tsv"
    path.write_text(
        "gene_id\tgene\tchr\tstart\tend\n"
        "ENSG00000141736.13\tERBB2\t17\t39688094\t39728658\n"
        "ENSG00000075624.16\tACTB\t7\t5526409\t5563902\n"
    )
    positions = read_gene_positions(path)
    for names in (["ENSG00000141736", "ENSG00000075624.2"], ["ERBB2", "ENSG00000075624"]):
        assert set(locate_genes(names, positions)["chromosome"]) == {"chr7", "chr17"}


@pytest.mark.parametrize("separator", ["\t", ",", ";", "  "])
def test_a_quote_takes_no_row_with_it(tmp_path, separator):
    rows = [
        ("TP53", "chr17", 1, 9),
        ('5"-A', "chr7", 1, 9),
        ("KRAS", "chr12", 1, 9),
        ('B"', "chr1", 3, 9),
    ]
    cells = [[str(cell) for cell in row] for row in rows]
    if separator in ",;":  # these have the quotes of RFC 4180
        cells = [[cell.replace('"', '""') for cell in row] for row in cells]
        cells = [[f'"{cell}"' if '"' in cell else cell for cell in row] for row in cells]
    path = tmp_path / "genes.txt"
    path.write_text("".join(separator.join(row) + "\n" for row in cells))
    assert set(read_gene_positions(path)["gene"]) == {row[0] for row in rows}


@pytest.mark.parametrize("end", ["inf", "1e300", "9.5", "-1", "nan"])
def test_positions_are_whole_base_pairs(tmp_path, end):
    path = tmp_path / "genes.tsv"
    path.write_text(f"gene\tchromosome\tstart\tend\nTP53\tchr17\t1\t{end}\n")
    with pytest.raises(InputError, match="must be a number of base pairs"):
        read_gene_positions(path)


def test_the_columns_of_biomart_are_known(tmp_path):
    text = (
        "Gene stable ID\tGene name\tChromosome/scaffold name\tGene start (bp)\tGene end (bp)\n"
        "ENSG1\tAAA\t1\t1000\t2000\nENSG2\tBBB\tX\t10\t60\n"
    )
    table = read_gene_positions(_table(tmp_path, text))
    assert table.to_numpy().tolist() == [
        ["AAA", "chr1", 1000, 2000, "ENSG1"],
        ["BBB", "chrX", 10, 60, "ENSG2"],
    ]
