"""What the documents say is so: files, columns, settings, messages, commands and links."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "config/README.md"]
DOCUMENTS += sorted(path for path in ROOT.glob("docs/**/*.md") if path.parent.name != "api")
#: Documents of a page a subject, each in a folder with an index.
FOLDERS = ("inputs", "methods", "outputs", "troubleshooting")


def _named(path):
    return str(path.relative_to(ROOT)).removesuffix(".md")


def _pages(folder):
    """Return the text of all pages of a folder."""
    return "\n".join(path.read_text() for path in sorted(ROOT.glob(f"docs/{folder}/*.md")))


_RULE = re.compile(r"(?ms)^(?:rule|checkpoint) (\w+):\n(.*?)(?=^(?:rule|checkpoint) |\Z)")


def _outputs():
    """Yield rule and path of every output of every rule."""
    for file in sorted(ROOT.glob("rules/*.smk")):
        for rule, body in _RULE.findall(file.read_text()):
            (block,) = re.findall(r"(?ms)^    output:\n(.*?)(?=^    \w+:)", body)
            for path in re.findall(r'"((?:results|data)/[^"]+)"', block):
                yield rule, path.removeprefix("results/")


def _listed():
    """Return file -> (rules, content) of the entries of docs/outputs."""
    rows = re.findall(r"(?m)^\*\*`([^`]+)`\*\* · (.+)\n\n(.+)$", _pages("outputs"))
    assert len(rows) == len({file for file, _, _ in rows})
    return {file: (set(re.findall(r"`(\w+)`", rules)), content) for file, rules, content in rows}


def test_every_output_of_every_rule_is_listed_and_nothing_else():
    made = {}
    for rule, path in _outputs():
        made.setdefault(path, set()).add(rule)
    listed = {file: rules for file, (rules, _) in _listed().items()}
    assert listed.pop("provenance/lineage.tsv") == set()
    assert listed == made


# -------------------------------------------------------------------------------- messages


def _template(node):
    """Return a string of the source with … for what is filled in, or None."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%(\.\d)?[sdgf]|%%", "…", node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(p.value if isinstance(p, ast.Constant) else "…" for p in node.values)
    return None


@pytest.fixture(scope="module")
def messages():
    """All strings of the library and of Snakemake, with … for what is filled in."""
    import snakemake

    found = []
    library = [*ROOT.glob("histogep/**/*.py")]
    snakemake = Path(snakemake.__file__).parent
    there = (
        "api.py",
        "exceptions.py",
        "common/__init__.py",
        "persistence/__init__.py",
        "deployment/conda.py",
    )
    for path in [*library, *(snakemake / name for name in there)]:
        found += filter(None, map(_template, ast.walk(ast.parse(path.read_text()))))
    text = "".join(path.read_text() for path in sorted(ROOT.glob("rules/common*.smk")))
    return [*found, *(re.sub(r"\{.*?\}", "…", part) for part in re.findall(r'f?"(.+?)"', text))]


def _quoted():
    return re.findall(r"(?m)^\*\*`(.+?)`\*\*\n\n.", _pages("troubleshooting"))


def test_there_are_messages_to_look_for():
    assert len(_quoted()) > 40


@pytest.mark.parametrize("quoted", _quoted())
def test_every_message_of_the_troubleshooting_is_one_of_the_code(messages, quoted):
    wanted = ".*".join(re.escape(part) for part in quoted.split("…"))
    assert any(re.search(wanted, message, re.DOTALL) for message in messages), quoted


def test_every_fault_has_tests_and_they_exist():
    text = (ROOT / "docs/reliability.md").read_text()
    section = text.split("## Faults\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:2] == "| "][1:]
    assert len(rows) > 15
    for fault, *_, tests in rows:
        named = re.findall(r"`(\w+)\.(\w+)`", tests)
        assert named, fault
        for module, test in named:
            sources = [path.read_text() for path in ROOT.glob(f"tests/**/{module}.py")]
            assert any(f"\ndef {test}(" in source for source in sources), f"{module}.{test}"


# -------------------------------------------------------------------- settings, links, commands


def _settings():
    """Return the dotted names of all settings, with NAME for those of the models."""
    text = (ROOT / "config/README.md").read_text()
    return set(re.findall(r"(?m)^\| `([\w.]+)` \|", text))


#: `summary.html` is a file, `summary.quantile` a setting.
FILES = {".tsv", ".md", ".csv", ".py", ".html", ".json", ".rst"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=_named)
def test_named_settings_exist(document):
    settings = _settings()
    sections = {name.split(".")[0] for name in settings if "." in name}
    for name in re.findall(r"`(\w+\.[\w.]+)`", document.read_text()):
        if name.split(".")[0] in sections and Path(name).suffix not in FILES:
            assert name in settings, name


@pytest.mark.parametrize("document", DOCUMENTS, ids=_named)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=_named)
def test_named_files_targets_and_options_exist(document):
    text = document.read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?m)(?:`|^)make ([a-z][a-z-]+)", text):
        assert re.search(rf"(?m)^{target}:", makefile), target
    for path in re.findall(
        r"(?:config/examples|envs|profiles|workflow_scripts|benchmarks_suite)/[\w./-]+\w", text
    ):
        assert (ROOT / path).exists() or "NAME" in path, path


def test_the_table_of_documents_is_complete():
    readme = (ROOT / "README.md").read_text()
    for path in ROOT.glob("docs/*.md"):
        assert f"](docs/{path.name})" in readme, path.name
    for folder in FOLDERS:
        assert f"](docs/{folder}/index.md)" in readme, folder


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_page_of_a_folder_is_in_its_index_and_in_the_navigation(folder):
    pages = {path.name for path in ROOT.glob(f"docs/{folder}/*.md")}
    index = (ROOT / f"docs/{folder}/index.md").read_text()
    navigation = (ROOT / "mkdocs.yml").read_text()
    assert pages - {"index.md"} == set(re.findall(r"(?m)^- \[.+?\]\(([\w.-]+)\)", index))
    assert pages == set(re.findall(rf" {folder}/([\w.-]+)$", navigation, re.MULTILINE))


@pytest.mark.parametrize("document", DOCUMENTS, ids=_named)
def test_no_table_has_paragraphs_in_its_cells(document):
    """Sentences stand in entries; a row of a table fits on two lines of a screen."""
    rows = [line for line in document.read_text().splitlines() if line.startswith("| ")]
    assert document.parent.name not in FOLDERS or all(len(row) < 500 for row in rows)


@pytest.mark.parametrize("document", DOCUMENTS, ids=_named)
def test_named_functions_and_modules_exist(document):
    for name in re.findall(r"histogep((?:\.\w+)+)\b(?!\()", document.read_text()):
        place, rest = ROOT / "histogep", name.strip(".").split(".")
        while rest and (place / rest[0]).is_dir():
            place /= rest.pop(0)
        path = place / f"{rest.pop(0)}.py" if rest else place / "__init__.py"
        assert path.is_file(), name
        if rest and rest != ["py"]:
            defined = {getattr(node, "name", "") for node in ast.parse(path.read_text()).body}
            assert rest[0] in defined, name


@pytest.mark.parametrize("path", sorted(ROOT.glob("benchmarks_suite/*.py")), ids=lambda p: p.stem)
def test_benchmarks_find_the_library_when_called_as_the_documents_say(path):
    """A script's own folder is on its path, the repository's root is not."""
    text = path.read_text()
    first = re.search(r"(?m)^from histogep", text)
    if first is None:
        pytest.skip("it does not import the library")
    assert "sys.path.insert(0, str(Path(__file__).resolve().parents[1]))" in text[: first.start()]


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("benchmarks_suite/**/*.py")), ids=lambda p: p.stem
)
def test_benchmarks_import_what_the_library_has(path):
    """They run by hand, so that nothing else says when a module or a function moves."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("histogep"):
            place = ROOT.joinpath(*node.module.split("."))
            module = place.with_suffix(".py")
            for name in node.names:
                if not place.is_dir():
                    assert module.is_file(), node.module
                    assert re.search(rf"\b{name.name}\b", module.read_text()), name.name
                elif not (place / f"{name.name}.py").is_file():
                    assert (place / name.name).is_dir() or name.name in (
                        place / "__init__.py"
                    ).read_text(), f"{node.module}.{name.name}"
