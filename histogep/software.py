"""Versions of the software that made the results."""

from __future__ import annotations

import platform
import re
from importlib import metadata

import pandas as pd

from histogep.provenance import ROOT


def installed_versions() -> pd.DataFrame:
    """Return name and version of Python and of each package that requirements.txt names.

    A package that is not installed in the running environment (each conda environment holds
    only its own) has the version "not installed".
    """
    rows = [("python", platform.python_version())]
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        name = re.match(r"[A-Za-z0-9._-]+", line)
        if name:
            rows.append((name[0], _version(name[0])))
    return pd.DataFrame(rows, columns=["package", "version"])


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
