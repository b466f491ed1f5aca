"""The one reader of delimited text, against what other writers write and what others break."""

from __future__ import annotations

import csv
import gzip
import io
import os
import random
import zipfile

import numpy as np
import pandas as pd
import pytest

from histogep.errors import BadSlide, InputError
from histogep.inputs.delimited import MAX_LINE, decimal_numbers, open_delimited, read_lines

AWKWARD = (
    *("", "NA", "nan", "None", "0123", "1e5", "1,5", "a;b", "x" * 5000, "'--", "=1+1", "#12", "#"),
    *(
        "Müller",
        "βcell",
        "日本",
        "a\u2028b",
        "a\x85b",
        "a\x0cb",
        "a\x1cb",
        "-",
        "TRUE",
        "1.0",
        "\\",
    ),
    *('5" nail', '"', '""', 'say "hi"', '"12 o clock', 'o"', '"a";"b"'),
)


def rows_of(path, **options):
    table = open_delimited(path, **options).text(strip=False)
    return list(table.columns), table.to_numpy().tolist()


@pytest.mark.parametrize("seed", range(60))
def test_awkward_tables_come_back_whole(tmp_path, seed):
    draw = random.Random(seed)
    separator = draw.choice(["\t", ",", ";"])
    end = draw.choice(["\n", "\r\n", "\r"])
    encoding = draw.choice(["utf-8", "utf-8-sig", "utf-16", "utf-32"])
    width, height = draw.randint(2, 8), draw.randint(1, 30)
    cells = [cell for cell in AWKWARD if separator != "\t" or '"' not in cell]
    names = [f"c{number}" for number in range(width)]
    rows = [["id"] + [draw.choice(cells) for _ in range(width - 1)] for _ in range(height)]
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=separator, lineterminator=end).writerows([names, *rows])
    packed = text.getvalue().encode(encoding)
    if not draw.randint(0, 2):
        packed = packed.removesuffix(end.encode(encoding.removesuffix("-sig"))[-len(end) :])
        packed = text.getvalue().removesuffix(end).encode(encoding)
    path = tmp_path / "t.txt"
    path.write_bytes(gzip.compress(packed) if draw.randint(0, 1) else packed)
    assert rows_of(path) == (names, rows)
    stripped = open_delimited(path).text()
    assert stripped.to_numpy().tolist() == [[cell.strip() for cell in row] for row in rows]
    assert stripped.index.tolist() == list(range(2, height + 2))


@pytest.mark.parametrize("seed", range(20))
def test_in_tab_separated_text_a_quote_is_a_character(tmp_path, seed):
    draw = random.Random(seed)
    loose = [cell for cell in AWKWARD if "\t" not in cell]
    # In each column a cell that no writer of quotes would write: so none of them is one.
    rows = [['"', 'b"']] + [[draw.choice(loose), draw.choice(loose)] for _ in range(20)]
    path = tmp_path / "t.tsv"
    path.write_text("a\tb\n" + "".join("\t".join(row) + "\n" for row in rows), newline="")
    assert rows_of(path) == (["a", "b"], [row for row in rows if row != ["", ""]])


def test_cells_that_excel_and_r_put_in_quotes_are_unwrapped(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text('"id"\t"note"\t"odd"\n"A"\t"say ""hi"", he said"\t"x"\nB\tplain\t5" nail\n')
    assert rows_of(path) == (
        ["id", "note", "odd"],
        [["A", 'say "hi", he said', '"x"'], ["B", "plain", '5" nail']],
    )


def test_lines_that_only_python_would_end_are_one(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text("a\tb\n1\tx\x0cy\u2028z\x85\x1c\x1d\x1e\x0b!\n2\tw\n", encoding="utf-8")
    table = open_delimited(path).text()
    assert table["b"].tolist() == ["x\x0cy\u2028z\x85\x1c\x1d\x1e\x0b!", "w"]


def test_windows_1252_is_read_and_said_damaged_utf8_refused(tmp_path, caplog):
    path = tmp_path / "t.csv"
    path.write_bytes("patient;ort\nP1;Köln\nP2;5 €\n".encode("cp1252"))
    assert open_delimited(path).text()["ort"].tolist() == ["Köln", "5 €"]
    assert "is not UTF-8: read as Windows-1252 (such as Köln" in caplog.text
    path.write_bytes("patient;ort\nP1;Köln\nP2;Größe\n".encode() + b"P3;K\xc3\n")
    with pytest.raises(InputError, match="line 4: damaged UTF-8"):
        open_delimited(path)
    path.write_bytes("a\tb\n1\t2\n".encode("utf-16-le"))
    with pytest.raises(InputError, match="NUL byte.*UTF-16 without a byte order mark"):
        open_delimited(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tb\n1\n2\t3\n", "line 2: 1 cells under 2 columns"),
        ("a\tb\n1\t2\n\n3\t4\t5\n", "line 4: 3 cells under 2 columns"),
        ("a,b\n1\t2\n3\t4\n", "line 2: 1 cells under 2 columns"),
        ('a,b\n1,"x\n2,"y\n', "line 2: a quote that does not end where its cell does"),
        ('a,b\n1,"x\ny"\n', "line 2: a quote that does not end"),
        ('a,b\n1,"x"y\n', "line 2: a quote that does not end"),
        ('a,b\n1,2\n3,"4,5"\n6,"7\n', "line 4: a quote"),
        ("a\ta\n1\t2\n", "line 1: column 'a' appears twice"),
        ("", "is empty"),
        ("# only\n#a\tb\n", "is empty"),
        ("<!DOCTYPE html><html>\n", "web page"),
        ("\n <HTML>\n", "web page"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "pointer of Git LFS"),
        ('{"a": 1}', "JSON"),
    ],
)
def test_what_is_no_table_is_refused_by_name(tmp_path, text, message):
    path = tmp_path / "t.tsv"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        open_delimited(path)
    assert str(path) in str(caught.value)


def test_quotes_that_swallow_lines_are_refused_or_characters(tmp_path):
    rows = [f"P{n},{'none' if n not in (9, 69) else chr(34) + '12 o clock'},{n}" for n in range(90)]
    path = tmp_path / "t.csv"
    path.write_text("id,note,time\n" + "\n".join(rows) + "\n")
    with pytest.raises(InputError, match="line 11: a quote"):
        open_delimited(path)
    path.write_text("id\tnote\ttime\n" + "\n".join(rows).replace(",", "\t") + "\n")
    table = open_delimited(path).text()
    assert len(table) == 90
    assert table["time"].tolist() == [str(n) for n in range(90)]
    assert table["note"][11] == '"12 o clock'


def test_headers_that_people_have(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b,,\n1,2,,\n3,4,,\n,,,\n")
    assert rows_of(path) == (["a", "b"], [["1", "2"], ["3", "4"]])
    path.write_text("a,b\n1,2,,\n3,4,x,\n")
    with pytest.raises(InputError, match="line 3: 4 cells under 2 columns"):
        open_delimited(path)
    path.write_text("sep=;\na;b\n1;2,5\n")
    table = open_delimited(path)
    assert table.separator == ";"
    assert table.numbers(["b"])["b"].tolist() == [2.5]
    path.write_text("x y\n1\n")
    assert open_delimited(path).columns == ("x y",)
    path.write_text("A\tB\nr1\t1\t2\nr2\t3\t4\n")  # R's write.table
    table = open_delimited(path, row_names=True)
    assert table.columns == ("", "A", "B")
    assert table.numbers(labels=[""]).to_numpy().tolist() == [["r1", 1, 2], ["r2", 3, 4]]
    with pytest.raises(InputError, match="every row has one cell more than the header"):
        open_delimited(path)
    path.write_text("# one\n# two\nPatient ID\tNotes, a, b, c\nP1\tx\n")
    table = open_delimited(path)
    assert (table.columns, table.header_line) == (("Patient ID", "Notes, a, b, c"), 3)
    assert table.comments == ("# one", "# two")
    path.write_text("a\tb\tc\n1\n2\t3\n")
    assert rows_of(path, short_rows=True)[1] == [["1", "", ""], ["2", "3", ""]]


def test_a_header_may_be_told_by_its_cells(tmp_path):
    path = tmp_path / "positions.csv"

    def headed(cells):
        return cells[0] == "barcode"

    path.write_text("AAA-1,1,0\nCCC-1,0,1\n")
    table = open_delimited(path, header=headed)
    assert (table.columns, len(table), table.lines[0]) == ((0, 1, 2), 2, 1)
    path.write_text("barcode,in_tissue,row\nAAA-1,1,0\n")
    table = open_delimited(path, header=headed)
    assert (table.columns, len(table)) == (("barcode", "in_tissue", "row"), 1)
    path.write_text("AAA-1\n#CC-1\n\n")
    assert open_delimited(path, header=False, comments="none").text()[0].tolist() == [
        "AAA-1",
        "#CC-1",
    ]


def test_numbers_are_read_as_such_or_refused_with_their_place(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text("gene\tA\tB\nNA\t1\tNA\nx\t1e-3\t\n")
    table = open_delimited(path)
    with pytest.raises(InputError, match=r"line 2, column 'B': 'NA' is not a number.*: B \(2 in 1"):
        table.numbers(labels=["gene"])
    numbers = table.numbers(labels=["gene"], missing=("", "NA"))
    assert numbers["gene"].tolist() == ["NA", "x"]
    assert numbers["A"].tolist() == [1, 0.001]
    assert numbers["B"].isna().all()
    path.write_text('gene\tA\n"x"\t"1"\n"y"\t"2"\n')
    assert open_delimited(path).numbers(labels=["gene"]).to_numpy().tolist() == [["x", 1], ["y", 2]]


def test_decimal_commas_are_read_unless_they_may_be_thousands():
    def read(*cells, **options):
        return decimal_numbers(pd.DataFrame({"a": list(cells)}, index=[2, 3]), **options)[
            "a"
        ].tolist()

    assert read("1,5", "2") == [1.5, 2]
    assert read("1,234", "0,5") == [1.234, 0.5]
    assert read("1,234", "2", comma_likely=True) == [1.234, 2]
    with pytest.raises(ValueError, match="may be a decimal or a thousands separator"):
        read("1,234", "2")
    with pytest.raises(ValueError, match="decimal commas beside decimal points"):
        read("1,5", "2.5")
    with pytest.raises(ValueError, match="line 2, column 'a': '1.234,5' is not a number"):
        read("1.234,5", "2")
    with pytest.raises(ValueError, match="'nan' is not a number"):
        read("nan", "2")


def test_a_wide_table_of_counts_agrees_with_pandas(shared_data):
    path = shared_data / "her2st/counts/B4.tsv.gz"
    theirs = pd.read_csv(path, sep="\t", index_col=0)
    table = open_delimited(path, row_names=True)
    ours = table.numbers(labels=table.columns[:1])
    assert ours.iloc[:, 0].tolist() == theirs.index.tolist()
    np.testing.assert_array_equal(ours.iloc[:, 1:].to_numpy(), theirs.to_numpy())


def test_only_the_first_lines_are_read_when_asked_for(tmp_path):
    path = tmp_path / "t.tsv.gz"
    with gzip.open(path, "wt") as handle:
        handle.write("a\tb\n" + "1\t2\n" * 3_000_000)
    path.write_bytes(path.read_bytes()[:-100])
    assert len(open_delimited(path, n_lines=5)) == 4
    with pytest.raises(InputError, match="damaged or cut short"):
        open_delimited(path)


def test_pipes_folders_and_archives_are_refused_by_name(tmp_path):
    os.mkfifo(tmp_path / "pipe.tsv")
    with pytest.raises(InputError, match=r"pipe\.tsv is a pipe, socket or device"):
        open_delimited(tmp_path / "pipe.tsv")
    with pytest.raises(InputError, match="is a pipe, socket or device"):
        open_delimited("/dev/zero")
    with pytest.raises(InputError, match="is a folder"):
        open_delimited(tmp_path)
    with pytest.raises(BadSlide, match="does not exist"):
        open_delimited(tmp_path / "none", error=BadSlide)
    with pytest.raises(InputError, match="cannot be opened"):
        open_delimited("a\0b")
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a.csv", "a\n")
        archive.writestr("b.csv", "b\n")
    with pytest.raises(InputError, match="2 files in the archive"):
        open_delimited(tmp_path / "two.zip")
    with zipfile.ZipFile(tmp_path / "one.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__MACOSX/a", "x")
        archive.writestr("a.csv", "a,b\n1,2\n")
    assert len(open_delimited(tmp_path / "one.zip")) == 1
    raw = bytearray((tmp_path / "one.zip").read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the bit of a password
        at = -1
        while (at := raw.find(mark, at + 1)) >= 0:
            raw[at + offset] |= 1
    (tmp_path / "locked.zip").write_bytes(raw)
    with pytest.raises(InputError, match="locked with a password"):
        open_delimited(tmp_path / "locked.zip")
    pd.DataFrame({"a": [1]}).to_excel(tmp_path / "book.xlsx")
    (tmp_path / "book.xlsx").rename(tmp_path / "book.csv")
    with pytest.raises(InputError, match=r"Excel workbook by its content.*\.xlsx"):
        open_delimited(tmp_path / "book.csv")


@pytest.mark.parametrize("line", [b"a" * 1_000_000, b"a\tb\n" * 250_000])
def test_what_unpacks_to_more_than_a_table_holds_is_refused(tmp_path, line):
    path = tmp_path / "bomb.tsv.gz"
    with gzip.open(path, "wb", compresslevel=1) as handle:
        for _ in range(MAX_LINE // len(line) + 3):
            handle.write(line)
    with pytest.raises(InputError, match=r"bomb\.tsv\.gz (holds|has a line of) more than"):
        open_delimited(path, most=MAX_LINE)


def test_lines_of_ragged_formats(tmp_path):
    path = tmp_path / "sets.gmt"
    path.write_bytes(b"\xef\xbb\xbfA\td\tx\x0cy\r\nB\td\r\n")
    assert read_lines(path, what="gene sets") == ["A\td\tx\x0cy", "B\td"]
