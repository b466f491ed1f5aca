"""Files that are complete or absent, and the text formats of the results."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd


@contextlib.contextmanager
def complete(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, renamed to it when the block ends without error.

    The temporary name keeps the suffix, since many writers choose the format by it. A folder may
    be written too. Two writers never share a temporary name; whoever renames last wins whole.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        yield temporary
        _sync(temporary)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Push a file's (or a folder's files') bytes to the disk before its name is given away."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())


def write_json(content: Any, path: str | Path) -> None:
    """Write JSON with sorted keys; numpy scalars become numbers, NaN is refused."""
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False, default=_plain)
    with complete(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Return the content of a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write_tsv(frame: pd.DataFrame, path: str | Path) -> None:
    """Write a table as tab-separated text without its index, floats with six digits."""
    with complete(path) as temporary:
        frame.to_csv(temporary, sep="\t", index=False, float_format="%.6g")


def read_tsv(path: str | Path, **options: Any) -> pd.DataFrame:
    """Return a tab-separated table; columns named in `dtype` are read as told (ids as text).

    Only an empty cell is missing, as `write_tsv` writes it: `NA` and `None` are text.
    """
    if "keep_default_na" not in options:
        options = {"na_values": [""], **options, "keep_default_na": False}
    return pd.read_csv(path, sep="\t", **options)


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _plain(value: Any) -> Any:
    """Turn numpy scalars and arrays and paths into what JSON knows."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
