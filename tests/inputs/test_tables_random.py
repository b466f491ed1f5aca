"""Awkward tables through every reader: each row and each value comes back, whatever the writer."""

from __future__ import annotations

import csv
import gzip
import io
import random

import pytest

from histogep.inputs.gene_sets import read_gmt
from histogep.study.bulk import measured_samples, read_expression
from histogep.study.clinical import read_clinical
from histogep.study.sheets import read_slides

TEXTS = (
    *("", "NA", "a;b", "a,b", "Müller", "日本", "x\u2028y", "x\x85y", "x\x0cy", "1e5", "0123"),
    *('5" nail', '"12 o clock', 'say "hi"', "'--", "#1", " both ", "x" * 3000),
)
IDS = ("0123", "1e5", "007", "P-1", "p.2", "TRUE", "12", "A_B", "1E3", "inf5")


def packed(draw, rows, separator, folder, *, plain_only=False):
    """Write rows as a program would, in some encoding and with some line ends; return the file."""
    end = "\n" if plain_only else draw.choice(["\n", "\r\n", "\r"])
    text = io.StringIO(newline="")
    if separator == "\t":
        # A program that knows no quotes.
        text.write("".join("\t".join(row) + end for row in rows))
    else:
        csv.writer(text, delimiter=separator, lineterminator=end).writerows(rows)
    encoding = draw.choice(["utf-8", "utf-8-sig", "utf-16", "utf-32"])
    data = text.getvalue().encode(encoding)
    path = folder / ("table.csv" if separator != "\t" else "table.tsv")
    path.write_bytes(gzip.compress(data) if draw.randint(0, 1) else data)
    return path


@pytest.mark.parametrize("seed", range(25))
def test_clinical_tables(tmp_path, seed):
    draw = random.Random(seed)
    ids = draw.sample(IDS, 8)
    times = [round(draw.uniform(0, 90), draw.randint(0, 3)) for _ in ids]
    events = [draw.randint(0, 1) for _ in ids]
    separator = draw.choice([",", ";", "\t"])
    comma = separator == ";" and draw.randint(0, 1)
    rows = [["note", "patient", "free text", "time_months", "event"]]
    for name, time, event in zip(ids, times, events, strict=True):
        shown = f"{time:.4f}".replace(".", "," if comma else ".")
        rows.append([draw.choice(TEXTS), name, draw.choice(TEXTS), shown, str(event)])
    sheet = read_clinical(packed(draw, rows, separator, tmp_path))
    assert sorted(sheet.index) == sorted(ids)
    assert sheet.loc[ids, "time"].tolist() == pytest.approx(times)
    assert sheet.loc[ids, "event"].tolist() == events


@pytest.mark.parametrize("seed", range(25))
def test_bulk_tables(tmp_path, seed):
    draw = random.Random(seed)
    samples = draw.sample(IDS, 6)
    genes = draw.sample(["NA", "TP53", "HLA-A", "nan", "1", "TRUE", "inf", "NKX2-1", "7SK"], 6)
    genes = [gene for gene in genes if gene not in ("NA", "nan")] + ["EGFR"]
    values = {gene: [round(draw.uniform(0, 15), 3) for _ in samples] for gene in genes}
    separator = draw.choice([",", ";", "\t"])
    rows = [["gene", "Description", *samples]]
    rows += [[gene, draw.choice(TEXTS), *(f"{v:.3f}" for v in values[gene])] for gene in genes]
    path = packed(draw, rows, separator, tmp_path)
    assert measured_samples(path) == samples
    table = read_expression(path, scale="log2")
    assert sorted(table) == sorted(genes)
    for gene in genes:
        assert table.loc[samples, gene].tolist() == pytest.approx(values[gene])


@pytest.mark.parametrize("seed", range(15))
def test_slide_sheets_and_gene_sets(tmp_path, seed):
    draw = random.Random(seed)
    names = ["Übersicht 1.svs", "a [1] $x.svs", "日本.svs", 'quote".svs', "b;c,d.svs"]
    for name in names:
        (tmp_path / name).write_text("")
    ids = draw.sample(IDS, 5)
    rows = [["slide", "patient", "cohort", "image"]]
    rows += [
        [name, f"p{i}", "c", image] for i, (name, image) in enumerate(zip(ids, names, strict=True))
    ]
    slides = read_slides(packed(draw, rows, "\t", tmp_path))
    assert slides.loc[ids, "image"].tolist() == [str(tmp_path / name) for name in names]
    sets = [
        [f"SET {i}", draw.choice(TEXTS), *draw.sample(["A", "B1", "HLA-A", "NA"], 3)]
        for i in range(9)
    ]
    read = read_gmt(packed(draw, sets, "\t", tmp_path))
    assert read == {row[0]: row[2:] for row in sets}
