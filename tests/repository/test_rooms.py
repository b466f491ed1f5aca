"""The rooms of the library: each names what it holds, is documented, and works once installed."""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = sorted(path.parent for path in ROOT.glob("histogep/**/__init__.py"))


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda path: path.name)
def test_a_room_names_its_modules(folder):
    name = ".".join(folder.relative_to(ROOT).parts)
    room = importlib.import_module(name)
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    rooms = {path.parent.name for path in folder.glob("*/__init__.py")}
    assert room.__doc__
    assert room.__all__ == sorted(modules | rooms)
    # Importing a room imports none of its modules: a job pays for what it uses.
    tree = ast.parse((folder / "__init__.py").read_text())
    assert not any(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(tree))


def test_every_room_is_in_the_documents():
    architecture = (ROOT / "docs/architecture.md").read_text()
    for folder in PACKAGES:
        parts = folder.relative_to(ROOT / "histogep").parts
        if len(parts) == 1:
            assert re.search(rf"`{parts[0]}`", architecture), folder
            assert (ROOT / f"docs/api/{parts[0]}.md").is_file(), folder


def test_tests_stand_in_the_rooms_of_what_they_test():
    rooms = {folder.relative_to(ROOT / "histogep") for folder in PACKAGES}
    others = {Path(name) for name in ("claims", "cluster", "repository", "runs", "scripts")}
    for path in ROOT.glob("tests/**/test_*.py"):
        assert path.parent.relative_to(ROOT / "tests") in rooms | others, path


USE = """
import histogep, sys
from pathlib import Path
from histogep.inputs.genome import read_arms
from histogep.inputs.resources import FOLDER
from histogep.outcome.signatures import read_signatures
assert Path(histogep.__file__).is_relative_to(sys.argv[1]), histogep.__file__
assert len(read_arms())
assert read_signatures(FOLDER / "signatures.yaml")
assert (FOLDER / "model_folder.schema.json").is_file()
assert (Path(histogep.__file__).parent / "py.typed").is_file()
"""


def test_the_wheel_brings_its_references_and_works_elsewhere(tmp_path):
    """Built from a copy: building writes into the folder it is called in."""
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "histogep", "pyproject.toml"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    for name in [*files, "requirements.txt", "README.md"]:
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"),
            *("--no-build-isolation", "--no-index"),
            *("--target", tmp_path / "site", tmp_path / "source"),
        ],
        check=True,
        timeout=300,
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-c", USE, tmp_path / "site"],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(tmp_path / "site")},
        check=True,
        timeout=300,
    )
