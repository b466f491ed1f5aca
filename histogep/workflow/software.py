"""Versions of the software that made the results."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import TYPE_CHECKING

from histogep.workflow.code import ROOT

# At the end of every job, with tables or without.
if TYPE_CHECKING:
    import pandas as pd

#: What a package is imported as, when not by its own name.
_IMPORTED_AS = {
    "openslide-python": "openslide",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
}


def installed_versions() -> pd.DataFrame:
    """Return name and version of Python and of each package that requirements.txt names.

    A package that is not installed in the running environment (each conda environment holds
    only its own) has the version "not installed".
    """
    import pandas as pd

    rows = [("python", platform.python_version())]
    rows += [(name, _version(name)) for name in _required()]
    return pd.DataFrame(rows, columns=["package", "version"])


def _required() -> list[str]:
    """Return the names of the packages that requirements.txt lists."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    found = (re.match(r"[A-Za-z0-9._-]+", line) for line in lines)
    return [name[0] for name in found if name]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def loaded_versions() -> dict[str, str]:
    """Return Python and the packages of requirements.txt that this process has imported.

    Cheap: a job calls it when it ends, so that its log says what it really ran with.
    """
    versions = {"python": platform.python_version()}
    for name in _required():
        module = sys.modules.get(_IMPORTED_AS.get(name, name.replace("-", "_")))
        if module is not None:
            # What the module holds is free to ask, the installation has to be read from disk. Some
            # modules warn when asked by getattr().
            version = vars(module).get("__version__")
            versions[name] = version if isinstance(version, str) else _version(name)
    return versions


def format_versions(versions: Mapping[str, str]) -> str:
    """Return versions as one line of a log."""
    return "software: " + ", ".join(f"{name} {version}" for name, version in versions.items())
