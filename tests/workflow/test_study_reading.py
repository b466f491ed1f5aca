"""A study is read from its configuration and sheets without Snakemake."""

import copy
from pathlib import Path

import pytest
import yaml

from histogep.errors import InputError
from histogep.workflow.study_reading import read_study

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory, and a folder with a configuration and its sheet."""
    monkeypatch.chdir(tmp_path)
    given = tmp_path / "given"
    given.mkdir()
    rows = ["slide\tpatient\tcohort\timage\tcounts"]
    for name in ("A", "B"):
        (given / f"{name}.svs").touch()
        (given / name).mkdir()
        rows.append(f"{name}1\t{name}\tc\t{name}.svs\t{name}")
    (given / "slides.tsv").write_text("\n".join([*rows, ""]))
    (given / "sets.gmt").write_text("SET\t\tGENE\n")
    (given / "study.yaml").touch()
    return given


def read(folder, *, main_process=True, **config):
    files = [folder / "study.yaml"]
    return read_study(
        {"study": "s"} | config, configfiles=files, repository=ROOT, main_process=main_process
    )


def test_sheets_are_found_beside_the_configuration_which_stays_as_it_was(folder):
    config = {"slides": "slides.tsv", "references": {"gene_sets": {"g": "sets.gmt"}}}
    before = copy.deepcopy(config)
    study = read(folder, **config)
    assert config == before
    assert study.sections == ["A1", "B1"]
    assert Path(study.references.gene_sets["g"]) == folder / "sets.gmt"
    # Settings are recorded as they were given, completed by the schema and by nothing else.
    assert study.settings["references"]["gene_sets"] == {"g": "sets.gmt"}
    assert study.settings["simulation"] is None
    assert study.settings["on_bad_slide"] == "stop"
    assert "results/model/s" in study.targets()


def test_all_that_is_wrong_stands_in_one_message(folder):
    (folder / "sets.gmt").write_text("SET\n")
    given = {"patients": "nobody.tsv", "slides": "slides.tsv"}
    with pytest.raises(InputError) as caught:
        read(folder, **given, references={"gene_sets": {"g": "sets.gmt"}})
    assert "patients: nobody.tsv does not exist" in str(caught.value)
    assert "sets.gmt" in str(caught.value)


GOOD = ("A1\tA\tc\ta.svs\t\tcounts", "B1\tB\tc\tb.svs\t\tcounts2")


@pytest.mark.parametrize(
    ("rows", "extra", "complaints"),
    [
        ((*GOOD, "Z\tp\tc\tnone.svs\t\t"), "", ["line 4: image none.svs does not exist"]),
        ((*GOOD, "a1\tp\tc\ta.svs\t\t"), "", ["appears on lines"]),
        ((*GOOD, "../x\tp\tc\ta.svs\t\t"), "", ["is not an id"]),
        ((*GOOD, "Z\t\tc\ta.svs\t\tcounts"), "", ["no patient"]),
        ((*GOOD, "Z\tp\tc\tb.jpg\t\t"), "", ["carries no pixel size"]),
        (
            ("../x\tp\tc\ta.svs\t\t", "Z\tp\tc\tnone.svs\t\t"),
            "",
            ["2 problems", "line 2", "line 3"],
        ),
        (GOOD, "tisue: {}\n", ["did you mean 'tissue'"]),
        (GOOD, "seed: 1\nseed: 2\n", ["keep one of them"]),
        (GOOD[:1], "", ["at least 2"]),
        ((*GOOD, "Z\tp3\tc\ta.svs\t\t"), "", ["is given to patients A, p3"]),
        (
            GOOD,
            "models: {ridge: {task: tumour}, extended: {task: both}}\n",
            [
                "models.ridge: kind ridge cannot learn task tumour; set kind to cmunet",
                "models.extended: kind ridge cannot learn task both",
            ],
        ),
        (GOOD, "study: sections\n", ["study is 'sections', but results/genes/sections holds"]),
    ],
    ids=[
        *("missing", "repeated", "escape", "patient", "mpp", "all at once", "key", "twice"),
        *("one patient", "leak", "models", "reserved"),
    ],
)
def test_bad_input_is_refused_before_any_job(folder, rows, extra, complaints):
    """As Snakemake does it, which prints the message and no traceback (tests/runs)."""
    header = "slide\tpatient\tcohort\timage\tmpp\tcounts\n"
    (folder / "slides.tsv").write_text(header + "".join(f"{row}\n" for row in rows))
    for name in ("a.svs", "b.svs", "b.jpg"):
        (folder / name).touch()
    for name in ("counts", "counts2"):
        (folder / name).mkdir()
    given = "" if extra.startswith("study:") else "study: s\n"
    (folder / "study.yaml").write_text(f"{given}slides: slides.tsv\n{extra}")
    config = yaml.safe_load((folder / "study.yaml").read_text())
    with pytest.raises(InputError) as caught:
        _ = read(folder, **config).stages
    for complaint in complaints:
        assert complaint in str(caught.value)


def test_a_job_trusts_what_the_process_that_planned_it_has_read(folder):
    (folder / "sets.gmt").write_text("SET\n")
    given = {"slides": "slides.tsv", "references": {"gene_sets": {"g": "sets.gmt"}}}
    with pytest.raises(InputError, match="sets.gmt"):
        read(folder, **given)
    assert read(folder, **given, main_process=False).sections == ["A1", "B1"]


def test_the_example_for_space_ranger_folders_is_planned_without_the_deep_network(
    tmp_path, monkeypatch
):
    """config/examples/visium.yaml as it stands, with the two sections that its sheet names."""
    monkeypatch.chdir(tmp_path)
    for name in ("S1", "S2"):
        (tmp_path / "data" / name / "outs").mkdir(parents=True)
        (tmp_path / "data" / name / "image.tif").touch()
    path = ROOT / "config/examples/visium.yaml"
    config = yaml.safe_load(path.read_text())
    given = {**config, "data_root": str(tmp_path / "data")}
    study = read_study(given, configfiles=[path], repository=ROOT, main_process=True)
    assert study.sections == ["S1", "S2"]
    # The first step is linear; the second takes one line out.
    assert list(study.settings["models"]) == ["tumour", "ridge", "extended", "neighbours"]
    assert all(choices["kind"] != "cmunet" for choices in study.settings["models"].values())
    assert "results/evaluation/visium/scorecards.tsv" in study.targets()
    second = {**given, "models": {k: v for k, v in config["models"].items() if k != "cmunet"}}
    study = read_study(second, configfiles=[path], repository=ROOT, main_process=True)
    assert study.settings["models"]["cmunet"]["kind"] == "cmunet"
