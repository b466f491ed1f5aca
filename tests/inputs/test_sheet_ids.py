from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from snakemake.io import PeriodicityDetector

from histogep.errors import InputError
from histogep.inputs import sheet_ids
from histogep.study.settings import check_names
from histogep.study.sheets import locate, read_patients, read_slides

ROOT = Path(__file__).resolve().parents[2]
UID = "1.2.840.113619.2.5."


@pytest.fixture
def sheet(tmp_path):
    (tmp_path / "a.svs").touch()

    def write(*rows, columns="slide patient cohort image"):
        path = tmp_path / "slides.tsv"
        lines = [columns.split(), *([*row, "a.svs"][:4] + [*row, ""][3:] for row in rows)]
        path.write_text("\n".join("\t".join(line).rstrip("\t") for line in lines) + "\n")
        return path

    return write


def refusal(path):
    with pytest.raises(InputError) as caught:
        read_slides(path)
    return str(caught.value)


def test_every_suffix_that_a_rule_appends_is_known():
    """A new kind of result brings a new way in which two ids could share a file."""
    rules = "\n".join(path.read_text() for path in ROOT.glob("rules/*.smk"))
    found = set(re.findall(r"\{(?:slide|cohort|outcome)\}\.(\w+)", rules))
    assert len(found) > 10
    assert found <= sheet_ids.SUFFIXES


@pytest.mark.parametrize("suffix", [".json", ".h5ad", ".arms", ".quality.x", ".JSON", ".x.tsv"])
def test_an_id_that_is_another_and_a_suffix_of_results_is_refused(sheet, suffix):
    if suffix == ".x.tsv":  # A.x is no id here, so that nothing clashes
        assert len(read_slides(sheet(("A", "P", "c"), (f"A{suffix}", "P", "c")))) == 2
        return
    for one, other in (("A", f"A{suffix}"), ("a", f"A{suffix}")):
        message = refusal(sheet((other, "P", "c"), (one, "P", "c")))
        assert f"lines 3, 2: slide '{one}' and slide '{other}' would share files" in message
    message = refusal(sheet((f"A{suffix}", "P", "A"), ("B", "P", "A")))
    assert "cohort 'A'" in message


def test_ids_that_share_no_file_are_taken(sheet):
    ids = [
        "S1",
        "S1.2",
        "S1.2.1",
        "S1_json",
        "S2.json",
        "S3.tsv",
        "S1x.json",
        f"{UID}1",
        f"{UID}12",
    ]
    assert len(read_slides(sheet(*((name, "P", "c") for name in ids)))) == len(ids)


@pytest.mark.parametrize("column", ["slide", "cohort"])
@pytest.mark.parametrize("end", ["0" * 20, "0" * 24, "ab" * 20, ".10" * 20])
def test_an_id_that_snakemake_takes_for_endless_is_refused(sheet, column, end):
    name = UID[: 64 - len(end)] + end if len(end) < 60 else "1" + end
    row = {"slide": ("S", "P", "c"), "cohort": ("S", "P", "c")}[column]
    row = tuple(
        name if c == column else v for c, v in zip(("slide", "patient", "cohort"), row, strict=True)
    )
    assert re.search(
        rf"line 2: {column} '{re.escape(name)}' ends in '.*' repeated", refusal(sheet(row))
    )


def test_ends_are_refused_as_snakemake_refuses_them():
    draw, theirs = random.Random(0), PeriodicityDetector()
    n_refused = 0
    for _ in range(3000):
        unit = "".join(draw.choices("01ab.", k=draw.randint(1, 3)))
        name = "".join(draw.choices("01ab.", k=draw.randint(0, 8))) + unit * draw.randint(1, 24)
        refused = theirs.is_periodic(name) is not None
        n_refused += refused
        assert (sheet_ids.refused_name(name) != "") >= refused, name
    assert 100 < n_refused < 2900
    assert sheet_ids.refused_name(f"{UID}1{'0' * 18}") == ""


def test_cohorts_that_differ_in_case_only_are_refused(sheet):
    message = refusal(sheet(("A", "P", "c"), ("B", "P", "C"), ("D", "P", "C")))
    assert "lines 2, 3: cohorts 'c' and 'C' differ in case only" in message


@pytest.mark.parametrize("column", ["image", "regions"])
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("a<results>b.svs", "holds '<'"),
        ("a>b.svs", "holds '>'"),
        ("a{b}.svs", "holds '{'"),
        ("a}.svs", "holds '}'"),
        ("a\0b.svs", "control character"),
        ("a\x1bb.svs", "control character"),
        ("x" * 300 + ".svs", "longer than a path can be"),
        ("é" * 150 + ".svs", "longer than a path can be"),
        ("ab/" * 1500 + "x.svs", "longer than a path can be"),
    ],
)
def test_a_path_that_cannot_be_is_refused_with_its_line(sheet, column, name, why):
    columns = (
        f"slide patient cohort image {column}"
        if column != "image"
        else "slide patient cohort image"
    )
    row = ("A", "P", "c", name) if column == "image" else ("A", "P", "c", "a.svs", name)
    path = sheet(columns=columns)
    with path.open("a") as handle:
        handle.write("\t".join(row) + "\n")
    message = refusal(path)
    said = "a NUL byte" if "\0" in name else rf"{column} .*{re.escape(why)}"
    assert re.search(rf"line 2: {said}", message)
    assert len(message) < 600
    with pytest.raises(InputError, match=rf"^patients: .*{re.escape(why)}"):
        locate(name, folders=(".",), key="patients")


def test_paths_that_people_have_are_taken(tmp_path):
    for name in ("a b.svs", "ä(1)[2]#%$*?'\"&;~.svs", "病理.svs", "x" * 250 + ".svs"):
        (tmp_path / name).touch()
        assert sheet_ids.refused_path(str(tmp_path / name)) == ""
        assert locate(name, folders=(tmp_path,))


@pytest.mark.parametrize(
    ("time", "why"),
    [
        ("inf", r"column 'time': \['inf'\] are infinite \(line 2\)"),
        ("Infinity", r"column 'time': \['Infinity'\] are infinite \(line 2\)"),
        ("-inf", r"column 'time': \['-inf'\] are infinite \(line 2\)"),
        ("nan", "line 2: time and event belong together"),
        ("1e400", r"column 'time': \['1e400'\] are not numbers: .* \(line 2\)"),
        ("-1", "line 2: time '-1' is not a time in months"),
    ],
)
def test_a_time_that_never_ends_is_refused(tmp_path, time, why):
    path = tmp_path / "patients.tsv"
    path.write_text(f"patient\ttime\tevent\nP1\t{time}\t1\n")
    with pytest.raises(InputError, match=why):
        read_patients(path)


@pytest.mark.parametrize("section", ["models", "measured", "gene_sets"])
def test_names_of_a_configuration_that_differ_in_case_only_are_refused(section):
    names = {"own": {}, "Own": {}}
    config = {"study": "s", "models": {}, "measured": {}, "references": {"gene_sets": {}}}
    (config["references"] if section == "gene_sets" else config)[section] = names
    with pytest.raises(InputError, match=f"{section}: 'own' and 'Own' differ in case only"):
        check_names(config)
    check_names({**config, "models": {}, "measured": {}, "references": {"gene_sets": {}}})
    with pytest.raises(InputError, match="repeated 24 times"):
        check_names(config | {"study": "s" * 24})
