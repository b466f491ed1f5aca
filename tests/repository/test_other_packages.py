"""Other packages are used as they are documented: no private names of theirs, and none is changed."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = sorted([*ROOT.glob("histogep/**/*.py"), *ROOT.glob("workflow_scripts/*.py")])
RULES = [ROOT / "Snakefile", *sorted(ROOT.glob("rules/*.smk"))]
#: Switches of other packages that their documentation tells users to set.
SWITCHES = {
    "sys.excepthook",
    "torch.backends.cudnn.allow_tf32",
    "torch.backends.cudnn.deterministic",
    "workflow.scheduling_settings.max_jobs_per_timespan",
}
#: Bindings that are torch's own affair, though some of their names look public, and Snakemake's notes.
INTERNAL = ("torch.ops.mkldnn", "torch._C", ".snakemake/")


def _is_private(name):
    return name.startswith("_") and name.strip("_") != "" and not name.startswith("__")


def _own_names(trees):
    """Return every name that the library itself gives to something."""
    own = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
        elif isinstance(node, ast.Attribute):
            of_self = getattr(node.value, "id", "") in ("self", "cls")
            own |= {node.attr} if of_self and isinstance(node.ctx, ast.Store) else set()
    return own


def _imported(tree):
    """Return the names under which a module holds other packages and parts of them."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.partition(".")[0]] = alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return {name: path for name, path in names.items() if not path.startswith("histogep")}


def _root(node):
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _docstrings(tree):
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, kinds)]
    return {id(b[0].value) for b in bodies if b and isinstance(b[0], ast.Expr)}


def faults(source, own=frozenset()):
    """Return what a module takes from other packages, or changes of them, that is theirs alone."""
    tree = ast.parse(source)
    own = own | _own_names([tree])
    imported, docstrings, found = _imported(tree), _docstrings(tree), []
    for node in ast.walk(tree):
        said = ast.unparse(node) if isinstance(node, ast.expr | ast.stmt) else ""
        if isinstance(node, ast.Attribute):
            if _is_private(node.attr) and node.attr not in own:
                found.append(said)
            stored = isinstance(node.ctx, ast.Store | ast.Del) and _root(node) in imported
            if stored and said not in SWITCHES:
                found.append(f"{said} = ...")
            found += [said for name in INTERNAL if said.startswith(name)]
        elif isinstance(node, ast.Subscript):
            inner = node.value
            patched = isinstance(node.ctx, ast.Store | ast.Del) and (
                isinstance(inner, ast.Attribute)
                and inner.attr == "__dict__"
                or isinstance(inner, ast.Call)
                and getattr(inner.func, "id", "") == "vars"
            )
            found += [f"{said} = ..."] if patched else []
        elif isinstance(node, ast.Import | ast.ImportFrom):
            paths = [alias.name for alias in node.names]
            module = getattr(node, "module", None) or ""
            if not module.startswith("histogep"):
                parts = ".".join([module, *paths]).split(".")
                found += [said for part in parts if _is_private(part)]
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            keys = [a.value for a in node.args[1:2] if isinstance(a, ast.Constant)]
            if name in ("getattr", "setattr", "delattr", "hasattr", "attrgetter"):
                found += [said for key in keys if _is_private(str(key)) and key not in own]
            if name in ("setattr", "delattr") and node.args and _root(node.args[0]) in imported:
                found.append(said)
        elif isinstance(node, ast.Constant) and id(node) not in docstrings:
            found += [node.value for name in INTERNAL if name in str(node.value)]
    return found


def faults_of_rules(source):
    """Return the same of a Snakefile, which is no Python: by its tokens."""
    found = []
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    for before, token in zip(tokens, tokens[1:], strict=False):
        if before.string == "." and _is_private(token.string):
            found.append(token.line.strip())
    code = "".join(line.partition("#")[0] + "\n" for line in source.splitlines())
    for target in re.findall(r"(?m)^\s*([\w.]+\.\w+)\s*[-+|]?=(?!=)", code):
        found += [] if target in SWITCHES else [f"{target} = ..."]
    found += re.findall(r"(?:setattr|delattr)\(.*", code)
    return found + [name for name in INTERNAL if name in code]


@pytest.fixture(scope="module")
def own():
    return _own_names([ast.parse(path.read_text()) for path in PYTHON])


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: path.name)
def test_the_library_leaves_other_packages_as_they_are(path, own):
    assert faults(path.read_text(), own) == []


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.name)
def test_the_rules_leave_other_packages_as_they_are(path):
    assert faults_of_rules(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.cpu._is_amx_tile_supported()",
        "import torch\ngetattr(torch.cpu, '_is_amx_tile_supported', None)",
        "from snakemake.io import _IOFile",
        "import snakemake._parser",
        "def f(network):\n    return network._modules",
        "import torch\ntorch.backends.cudnn.enabled = False",
        "import gc\ngc.garbage = 1",
        "from snakemake import benchmark\nbenchmark.BENCHMARK_INTERVAL_SHORT = 2",
        "from snakemake.jobs import Job\nsetattr(Job, 'log_info', None)",
        "from snakemake.jobs import Job\ndel Job.log_info",
        "import snakemake\nvars(snakemake)['x'] = 1",
        "import torch\ntorch.ops.mkldnn.convolution",
        "FOLDER = '.snakemake/metadata'",
    ],
)
def test_what_is_looked_for_is_found(source):
    assert faults(source)


@pytest.mark.parametrize(
    "source",
    [
        "class A:\n    def __init__(self):\n        self._x = 1\n    def f(self, other):\n        return other._x",
        "import torch\ntorch.backends.cudnn.deterministic = True",
        "import numpy as np\na = np.zeros(3)\na[np.isnan(a)] = 0",
        "'''Notes lie in .snakemake/metadata.'''",
        "name = '_tissue'",
    ],
)
def test_nothing_else_is_found(source):
    assert not faults(source)


@pytest.mark.parametrize(
    "source",
    [
        "x = workflow._rules",
        "workflow.scheduler.job_rate_limiter = None",
        "setattr(workflow, 'a', 1)",
    ],
)
def test_what_is_looked_for_in_rules_is_found(source):
    assert faults_of_rules(source)
