"""Check what HDF5 files from others hold before anything is read from them.

HDF5 can keep the values of a dataset outside of the file: in another file at any path of the
machine (external storage), in another HDF5 file (external links, virtual datasets), or behind links
of an unknown kind. What such a file "holds" is then what the reader's user may read, and a
collaborator's matrix of counts would carry it into the results. It can also declare sizes that it
does not hold, so that reading takes all memory; and where it is damaged the library that reads it may
crash, or never return. So a process of its own (`histogep.inputs.hdf5_walk`) visits every link, object and
attribute and reads all values once, and the file is refused by the name of the first that is unsafe.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py

from histogep.errors import InputError
from histogep.files import given_file
from histogep.inputs.delimited import refuse_special_files

#: Seconds that the walk over a file may take: a constant part, and one for its bytes.
_LEAST_SECONDS, _BYTES_PER_SECOND = 120, 2_000_000


@contextlib.contextmanager
def open_given(
    path: str | Path, what: str = "", *, error: type[InputError] = InputError
) -> Iterator[h5py.File]:
    """Open an HDF5 file that somebody gave, for reading, once its whole content is known to be safe.

    Whatever the body raises while it reads becomes an `error` too (`histogep.files.given_file`).

    Parameters
    ----------
    path
        The file.
    what
        What it should be, for the message: "a 10x matrix".
    error
        `BadSlide` where the file concerns one slide only.

    Raises
    ------
    InputError
        The file is not HDF5, is damaged, or holds what `check_hdf5` refuses.
    """
    refuse_special_files(path, error=error)
    _refuse_unsafe(path, what, error)
    with given_file(path, what, error=error), h5py.File(path, "r") as file:
        yield file


def check_hdf5(path: str | Path, what: str = "", *, error: type[InputError] = InputError) -> None:
    """Refuse an HDF5 file that refers to other files, or declares more than it can hold.

    Refused are external, soft and user-defined links, external storage, virtual datasets, groups
    with more than one name (loops), references other than to objects of the file, filters that are
    not installed, names that are not UTF-8, and sizes beyond what the file's bytes could unpack to.

    Parameters
    ----------
    path, what, error
        As of `open_given`.

    Raises
    ------
    InputError
        With the file, the name of the object, and what is wrong with it.
    """
    refuse_special_files(path, error=error)
    _refuse_unsafe(path, what, error)


def _refuse_unsafe(path: str | Path, what: str, error: type[InputError]) -> None:
    """Walk over a file in a process of its own."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    limit = _LEAST_SECONDS + os.path.getsize(path) / _BYTES_PER_SECOND
    as_what = f" as {what}" if what else ""
    try:
        done = subprocess.run(
            # -P: nothing of the working directory is imported.
            [sys.executable, "-P", "-m", "histogep.inputs.hdf5_walk", os.path.abspath(path)],
            capture_output=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise error(
            f"{path}: not readable{as_what} (reading does not end within {limit:.0f} s: it is damaged)"
        ) from None
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise error(
            f"{path}: not readable{as_what} (the HDF5 library crashes on it, {name}: it is damaged)"
        )
    try:
        found = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        told = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise RuntimeError(
            f"histogep.inputs.hdf5_walk failed: {told[-1] if told else 'no output'}"
        ) from None
    if "unsafe" in found:
        raise error(f"{path}: {found['unsafe']}")
    if "damaged" in found:
        raise error(f"{path}: not readable{as_what} ({found['damaged']})")
