"""The small reference files of the project, in the folder `resources/` of the library.

The workflow copies each into `results/resources/` and reads the copy: a rule then depends on
the content of a reference, whatever the place of the repository.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from histogep.files import complete

FOLDER = Path(__file__).resolve().parents[1] / "resources"


def digest_resource(name: str) -> str:
    """Return the SHA-256 of a shipped reference's content.

    Parameters
    ----------
    name
        Name of a file in `resources/`.
    """
    return hashlib.sha256((FOLDER / name).read_bytes()).hexdigest()


def copy_resource(name: str, path: str | Path) -> None:
    """Copy a shipped reference.

    Parameters
    ----------
    name
        Name of a file in `resources/`.
    path
        Where to write it.
    """
    with complete(path) as temporary:
        shutil.copyfile(FOLDER / name, temporary)
