"""Read safetensors files that an earlier rule wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from histogep.files import readable


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Return the arrays of a file by name.

    Raises
    ------
    InputError
        The file is absent or damaged.
    """
    with readable(path, SafetensorError):
        return load_file(path)
