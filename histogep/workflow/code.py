"""Which code made a file: digests of scripts and of all the project's files that they reach."""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(__file__).resolve().parents[1].name


@cache
def code_digest(script: str) -> str:
    """Return a digest of a script and of every library module and resource it reaches.

    Snakemake compares it with the one recorded at the last run, so that editing a module reruns
    the rules that use it and no others, and touching files reruns nothing.

    Parameters
    ----------
    script
        Name of a file in `workflow_scripts/`.
    """
    digest = hashlib.sha256()
    for path in sorted(reached_files(ROOT / "workflow_scripts" / script)):
        digest.update(path.relative_to(ROOT).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def reached_files(script: Path) -> set[Path]:
    """Return a script, the library modules it imports, directly or not, and their resources."""
    found: set[Path] = set()
    pending = [script]
    while pending:
        path = pending.pop()
        if path in found:
            continue
        found.add(path)
        if path.suffix == ".py":
            pending.extend(_neighbours(path))
    return found


def imported_names(path: Path) -> set[str]:
    """Return the dotted names of all that a Python file imports, inside functions too."""
    return set(_names(path)[0])


@cache
def _neighbours(path: Path) -> tuple[Path, ...]:
    """Return the library files that a file imports, and the resources that it names."""
    imported, named = _names(path)
    stems = [ROOT.joinpath(*name.split(".")) for name in imported if name.split(".")[0] == PACKAGE]
    # Importing a module runs the `__init__` of each package around it.
    packages = {folder for stem in stems for folder in (stem, *stem.parents) if folder > ROOT}
    modules = [stem.with_suffix(".py") for stem in stems]
    modules += [folder / "__init__.py" for folder in packages]
    resources = [ROOT / PACKAGE / "resources" / name for name in named]
    return tuple(file for file in (*modules, *resources) if file.is_file())


def _names(path: Path) -> tuple[set[str], set[str]]:
    """Return the dotted names that a Python file imports, and the file names among its strings."""
    imported, named = set(), set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Constant):
            if isinstance(node.value, str) and _is_name(node.value):
                named.add(node.value)
        elif isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return imported, named


def _is_name(text: str) -> bool:
    return 3 < len(text) < 100 and "." in text and "/" not in text and "\n" not in text
