"""Files and sheets from elsewhere: nothing in them is run, fetched, or written outside the results."""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import pyvips
import yaml
from snakemake.common.configfile import load_configfile

from histogep.encoders.weights import read_weights
from histogep.errors import InputError
from histogep.inputs import workbooks
from histogep.labels import annotated
from histogep.report import pages
from histogep.slides import prepare, regions
from histogep.study import settings

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = yaml.safe_load((ROOT / "config/schemas/config.schema.yaml").read_text())
CODE = [*ROOT.glob("histogep/**/*.py"), *ROOT.glob("workflow_scripts/*.py")]
HOSTILE = [
    "../x",
    "..",
    "a/b",
    "/etc/x",
    "x;touch pw",
    "x$(touch pw)",
    "x y",
    "-rf",
    "a\nb",
    "é",
    "",
]


class Payload:
    """Unpickled, it writes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


# ------------------------------------------------------------------------- names and commands


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_of_a_configuration_is_a_path_or_a_command(name):
    for config in (
        {"study": name},
        {"study": "s", "models": {name: {"kind": "ridge"}}},
        {"study": "s", "measured": {name: {"expression": "x.csv", "scale": "zscore"}}},
        {"study": "s", "references": {"gene_sets": {name: "x.gmt"}}},
    ):
        with pytest.raises(InputError, match="mistakes"):
            settings.complete_settings(config, SCHEMA)


@pytest.mark.parametrize("column", ["slide", "patient", "cohort"])
@pytest.mark.parametrize("name", [name for name in HOSTILE if "\n" not in name])
def test_no_id_of_a_sheet_is_a_path_or_a_command(tmp_path, column, name):
    from histogep.study.sheets import read_slides

    row = {"slide": "S1", "patient": "P1", "cohort": "c", "image": "a.svs"} | {column: name}
    (tmp_path / "a.svs").touch()
    sheet = tmp_path / "slides.tsv"
    sheet.write_text("\t".join(row) + "\n" + "\t".join(row.values()) + "\n")
    with pytest.raises(InputError, match="line 2"):
        read_slides(sheet)


def calls():
    """Give file, line and dotted name of every call in the library and the scripts."""
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield path.name, node, ast.unparse(node.func)


def test_no_code_is_made_of_text_and_no_shell_is_called():
    """So no value of a sheet can be read as a command: there is nothing that would read it."""
    forbidden = re.compile(
        r"^(eval|exec|compile|__import__|os\.(system|popen|exec\w*|spawn\w*)|subprocess\.\w+"
        r"|pickle\.\w+|dill\.\w+|joblib\.load|shelve\.\w+|marshal\.\w+|yaml\.(unsafe_|full_)?load)$"
    )
    found = [(file, name) for file, _, name in calls() if forbidden.match(name)]
    # The strict loader is a SafeLoader. The walk over HDF5 files has a process of its own, since a
    # damaged file may crash it: this interpreter, a module of the library, and the path; no shell.
    assert sorted(found) == [("hdf5_guard.py", "subprocess.run"), ("settings.py", "yaml.load")]
    source = ast.parse((ROOT / "histogep/inputs/hdf5_guard.py").read_text())
    (run,) = [
        n
        for n in ast.walk(source)
        if isinstance(n, ast.Call) and ast.unparse(n.func) == "subprocess.run"
    ]
    assert ast.unparse(run.args[0]) == (
        "[sys.executable, '-P', '-m', 'histogep.inputs.hdf5_walk', os.path.abspath(path)]"
    )
    assert "shell" not in {keyword.arg for keyword in run.keywords}
    rules = "\n".join(path.read_text() for path in [ROOT / "Snakefile", *ROOT.glob("rules/*.smk")])
    assert not re.search(r"^\s*(shell|run|cwl|notebook|wrapper)\s*:", rules, re.MULTILINE)


def test_arrays_and_weights_are_read_without_pickle():
    for file, node, name in calls():
        options = {word.arg: ast.unparse(word.value) for word in node.keywords}
        assert options.get("allow_pickle", "False") == "False", file
        if name == "torch.load":
            assert options.get("weights_only") == "True", file


def test_tables_of_results_are_read_where_damage_is_named():
    """The library's own readers say nothing of the file: `histogep.spots.matrices` does."""
    found = {
        file for file, _, name in calls() if name.endswith((".read_h5ad", "anndata.read_h5ad"))
    }
    assert found <= {"matrices.py", "readers.py"}


def test_a_configuration_runs_nothing(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(f'study: !!python/object/apply:open ["{tmp_path}/pwned", "w"]\n')
    with pytest.raises(InputError, match=r"c\.yaml: not readable as YAML.*python/object"):
        settings.refuse_repeated_keys(path)
    with pytest.raises(Exception, match=r"(?i)python/object|constructor|yaml"):
        load_configfile(path)
    assert not (tmp_path / "pwned").exists()


# ------------------------------------------------------------------------------------ weights


LOAD = """
import sys
sys.path.insert(0, sys.argv[1])
from histogep.encoders.load import load_encoder
from histogep.encoders.weights import read_weights
from histogep.errors import InputError
try:
    load_encoder({"name": sys.argv[2], "weights": sys.argv[3] or None})
except InputError as error:
    print(error)
    sys.exit(7)
"""


@pytest.mark.parametrize("how", ["file", "folder"])
def test_weights_with_code_in_them_are_refused(tmp_path, how):
    """Even where an environment variable turns PyTorch's own caution off."""
    arguments = ["resnet50", str(tmp_path / "weights.pth")]
    payload = {"state_dict": {"conv1.weight": Payload(tmp_path / "pwned")}}
    if how == "folder":
        arguments = [f"local-dir:{tmp_path}", ""]
        (tmp_path / "config.json").write_text(
            json.dumps({"architecture": "resnet10t", "num_classes": 0, "num_features": 512})
        )
    name = "weights.pth" if how == "file" else "pytorch_model.bin"
    (tmp_path / name).write_bytes(pickle.dumps(payload))
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(ROOT), *arguments],
        env=os.environ | {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"},
        capture_output=True,
        text=True,
    )
    assert not (tmp_path / "pwned").exists()
    assert done.returncode == 7, done.stderr
    # The payload works: had it been loaded, the file would be there.
    pickle.loads((tmp_path / name).read_bytes())
    assert (tmp_path / "pwned").exists()


def test_a_pickle_under_the_name_of_safetensors_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(pickle.dumps(Payload(tmp_path / "pwned")))
    with pytest.raises(InputError, match="not readable as weights"):
        read_weights(path)
    assert not (tmp_path / "pwned").exists()


# --------------------------------------------------------------------- GeoJSON, XML, xlsx, HTML


LAUGHS = """<?xml version="1.0"?>
<!DOCTYPE x [<!ENTITY a "ha">
""" + "\n".join(
    f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.fixture
def quick():
    """Fail if a test takes long: an entity that is expanded fills the memory."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000 + "]" * 100_000, '{"features": "x"}', '{"features": [{"geometry": 3}]}', "{"],
    ids=["deep", "text", "number", "cut"],
)
def test_hostile_geojson_is_refused(tmp_path, text, quick):
    path = tmp_path / "a.geojson"
    path.write_text(text)
    with pytest.raises(InputError, match=r"a\.geojson"):
        regions.read_regions(path)
    with pytest.raises(InputError, match=r"a\.geojson"):
        annotated.read_polygons(None, path)


@pytest.mark.parametrize("attack", ["external", "laughs"])
def test_xml_in_a_slide_is_not_expanded(tmp_path, attack, quick):
    """OME-TIFF and several scanners keep XML in the ImageDescription."""
    (tmp_path / "secret").write_text("XYZZY-SECRET")
    entities = {
        "external": f'<?xml version="1.0"?>\n<!DOCTYPE x [<!ENTITY j SYSTEM "file://{tmp_path}/secret">',
        "laughs": LAUGHS,
    }
    text = entities[attack] + (
        ']>\n<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image Name="&j;">'
        '<Pixels SizeX="600" SizeY="500" PhysicalSizeX="&j;" PhysicalSizeXUnit="um"/></Image></OME>'
    )
    rng = np.random.default_rng(0)
    image = pyvips.Image.new_from_array(rng.integers(0, 255, (500, 600, 3), dtype=np.uint8)).copy()
    image.set_type(pyvips.GValue.gstr_type, "image-description", text)
    path = tmp_path / "a.ome.tiff"
    image.tiffsave(str(path), tile=True, pyramid=True, xres=2000, yres=2000, resunit="cm")
    assert b"DOCTYPE" in path.read_bytes()
    told = prepare.describe_slide(slide="S1", source=path, folder=tmp_path / "S1", mpp=None)
    assert told["mpp"] == pytest.approx(0.5)
    assert "XYZZY" not in json.dumps(told)


def write_xlsx(path, sheet):
    """Write a workbook whose one sheet is this XML."""
    pd.DataFrame({"patient": ["p1"]}).to_excel(path, index=False)
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    parts["xl/worksheets/sheet1.xml"] = sheet.encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in parts.items():
            new.writestr(name, content)


@pytest.mark.parametrize("attack", ["external", "laughs"])
def test_xml_in_a_workbook_is_not_expanded(tmp_path, attack, quick):
    (tmp_path / "secret").write_text("XYZZY-SECRET")
    head = {
        "external": f'<?xml version="1.0"?>\n<!DOCTYPE x [<!ENTITY j SYSTEM "file://{tmp_path}/secret">',
        "laughs": LAUGHS,
    }[attack]
    sheet = head + (
        ']>\n<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>'
        '<row r="1"><c r="A1" t="inlineStr"><is><t>patient</t></is></c></row>'
        '<row r="2"><c r="A2" t="inlineStr"><is><t>&j;</t></is></c></row></sheetData></worksheet>'
    )
    write_xlsx(tmp_path / "a.xlsx", sheet)
    with pytest.raises(InputError, match=r"a\.xlsx"):
        workbooks.open_table(tmp_path / "a.xlsx")


def test_a_formula_is_not_computed(tmp_path):
    from openpyxl import Workbook

    book = Workbook()
    book.active.append(["patient"])
    book.active.append([f'=HYPERLINK("file://{tmp_path}/x", "go")'])
    book.active.append(["=1+1"])
    book.save(tmp_path / "a.xlsx")
    with pytest.raises(InputError, match="line 2: column 1 holds a formula without its value"):
        workbooks.open_table(tmp_path / "a.xlsx")


def test_text_of_a_sheet_is_text_in_a_page():
    text = "<script>alert(1)</script>"
    page = pages.render_page(
        text, [pages.Table(pd.DataFrame({text: [text]}), heading=text)], notes=[text]
    )
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;") >= 4


# ------------------------------------------------------------------------------------ network


def test_a_slide_is_encoded_where_there_is_no_network(tmp_path):
    """The packaged encoder asks for nothing: in a namespace with no interface but a dead loopback."""
    unshare = shutil.which("unshare")
    if not unshare or subprocess.run([unshare, "--net", "true"], capture_output=True).returncode:
        pytest.skip("a namespace without network needs unshare and the right to use it")
    job = f"""
import socket, sys
sys.path.insert(0, {str(ROOT)!r})
try:
    socket.create_connection(("192.0.2.1", 80), timeout=2)
except OSError as error:
    print(error)
else:
    sys.exit("there is a network")
import numpy as np
from histogep.encoders.encode import encode_batch, open_encoders
from histogep.encoders.exported import export_encoder
settings = [{{"name": "descriptors"}}, {{"name": "lite0"}}]
description = {str(tmp_path / "lite0.json")!r}
export_encoder(settings[1], description)
encoders = open_encoders(settings, exported={{"lite0": description}}, threads=1, cuda=False)
tiles = np.random.default_rng(0).integers(0, 255, (2, 224, 224, 3), dtype=np.uint8)
print(encode_batch(tiles, encoders).shape)
"""
    done = subprocess.run(
        [unshare, "--net", sys.executable, "-c", job],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert "unreachable" in done.stdout
    assert re.search(r"\(2, \d{3,}\)", done.stdout)


# ------------------------------------------------------------------------- spreadsheets, reports


@pytest.mark.parametrize(
    "name", ['=HYPERLINK("http://x","y")', "+1", "-A", "@SUM(A1)", "=cmd|' /C calc'!A0", "=" * 9999]
)
@pytest.mark.parametrize("what", ["set", "gene", "counts", "bulk"])
def test_a_name_that_a_spreadsheet_would_compute_is_refused(tmp_path, what, name):
    from histogep.inputs.gene_sets import read_gmt
    from histogep.study.bulk import read_expression
    from tests.damage import make_st_table, read_counts

    if what in ("set", "gene"):
        path = tmp_path / "sets.gmt"
        named = (name, "G1") if what == "set" else ("SET", name.split(",")[0])
        path.write_text(f"{named[0]}\tabout\t{named[1]}\tG2\n")
        read = read_gmt
    elif what == "counts":
        path = make_st_table(tmp_path)
        path.write_text(path.read_text().replace("GENE3", name.replace('"', "")))
        read = read_counts
    else:
        path = tmp_path / "bulk.tsv"
        cell = name.replace('"', "")
        path.write_text(f"gene\tP1\tP2\n{cell}\t1\t2\nG2\t3\t4\n")

        def read(path):
            return read_expression(path, scale="log2")

    with pytest.raises(InputError, match="a spreadsheet takes what begins with") as caught:
        read(path)
    assert path.name in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_report_takes_the_place_of_the_last_one_when_it_is_whole():
    demo = (ROOT / "Makefile").read_text().split("demo:")[1].split("\n\n")[0]
    assert "--report $(DEMO_DIR)/report.html" not in demo
    assert re.search(r"--report (\S+)\n\tmv -f \1 \$\(DEMO_DIR\)/report\.html", demo)
