"""Files that are complete or absent, and the text formats of the results."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histogep.errors import InputError

# Jobs without tables, and the parsing of the workflow, need the rest of this module alone.
if TYPE_CHECKING:
    import pandas as pd

#: Errors of renaming to a name that is taken, where folders are concerned.
_IN_THE_WAY = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


@contextlib.contextmanager
def complete(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, renamed to it when the block ends without error.

    The temporary name keeps the suffix, since many writers choose the format by it. A folder may
    be written too. Two writers never share a temporary name; whoever renames last wins whole. The
    file, and every file of a folder, may be read and written by whom the umask allows, even where
    the writer made it private.

    A file takes the place of an older one in one step. A folder cannot: the older one is renamed
    away first and removed at the end, so that for an instant there is neither.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name may have 255 bytes, and the temporary one is longer.
    stem = path.stem.encode()[:200].decode(errors="ignore")
    temporary = path.with_name(f".{stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        yield temporary
        _share(temporary)
        _sync(temporary)
        _put_in_place(temporary, path)
    finally:
        _remove(temporary)


def _put_in_place(temporary: Path, path: Path) -> None:
    """Rename `temporary` to `path`, whatever is there already and whoever else does the same."""
    away: list[Path] = []
    try:
        while True:
            try:
                os.replace(temporary, path)
                return
            except OSError as error:
                # A folder that holds something, or a folder and a file in each other's way.
                if error.errno not in _IN_THE_WAY:
                    raise
            old = path.with_name(f"{temporary.name}.old{len(away)}")
            with contextlib.suppress(FileNotFoundError):  # another writer was faster
                os.rename(path, old)
                away.append(old)
    except BaseException:
        if away and not os.path.lexists(path):
            os.rename(away.pop(), path)
        raise
    finally:
        for old in away:
            _remove(old)


def _remove(path: Path) -> None:
    """Remove a file, a folder, or a link itself; a missing path is not an error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _written(path: Path) -> list[Path]:
    """Return a file, or a folder with all that it holds; links are not followed."""
    found = [path, *path.rglob("*")] if path.is_dir() else [path]
    return [file for file in found if not file.is_symlink() and file.exists()]


def _share(path: Path) -> None:
    """Give what was written the rights that the umask allows; safetensors makes files private."""
    allowed = ~_umask()
    for file in _written(path):
        mode = file.stat().st_mode
        wanted = mode | ((0o777 if file.is_dir() else 0o666) & allowed)
        if wanted != mode:
            os.chmod(file, stat.S_IMODE(wanted))


def _umask() -> int:
    """Return the umask of this process."""
    with contextlib.suppress(OSError):
        # To ask by setting it would let a file of another thread slip in between.
        if found := re.search(r"^Umask:\s+(\d+)", Path("/proc/self/status").read_text(), re.M):
            return int(found[1], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    """Push a file's (or a folder's files') bytes to the disk before its name is given away."""
    for file in _written(path):
        if file.is_file():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())


def write_json(content: Any, path: str | Path) -> None:
    """Write JSON with sorted keys; numpy scalars become numbers, NaN is refused."""
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False, default=_plain)
    with complete(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Return the content of a JSON file that a rule wrote.

    Raises
    ------
    InputError
        The file is cut short or otherwise not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(_damaged(path, str(error))) from error


def write_tsv(frame: pd.DataFrame, path: str | Path) -> None:
    """Write a table as tab-separated text without its index, floats with six digits."""
    with complete(path) as temporary:
        frame.to_csv(temporary, sep="\t", index=False, float_format="%.6g")


def read_tsv(path: str | Path, **options: Any) -> pd.DataFrame:
    """Return a table that `write_tsv` wrote; `dtype` gives the types of columns (ids as text).

    Only an empty cell is missing, as `write_tsv` writes it: `NA` and `None` are text.

    Raises
    ------
    InputError
        The file is empty or its last line has no end: it was cut short.
    """
    import pandas as pd

    with open(path, "rb") as handle:
        handle.seek(0, os.SEEK_END)
        handle.seek(max(0, handle.tell() - 1))
        if handle.read(1) != b"\n":
            raise InputError(_damaged(path, "its last line has no end"))
    if "keep_default_na" not in options:
        options = {"na_values": [""], **options, "keep_default_na": False}
    return pd.read_csv(path, sep="\t", **options)


@contextlib.contextmanager
def readable(path: str | Path, *errors: type[Exception]) -> Iterator[None]:
    """Turn errors of reading a result into an InputError with the file and the remedy.

    Snakemake compares names and times. A file that was complete when its rule ended, but was cut
    short since by a copy of the results or a failing disk, is not made again: the next rule reads
    it. The libraries notice (HDF5, Parquet and safetensors hold their own lengths), but do not name
    the file.

    Parameters
    ----------
    path
        The file.
    *errors
        What the library raises beside OSError, ValueError and KeyError.

    Raises
    ------
    InputError
        In place of any of these. An InputError itself goes through unchanged.
    """
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: run snakemake again, which makes it") from error
    except (OSError, ValueError, KeyError) + errors as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(_damaged(path, said)) from error


@contextlib.contextmanager
def given_file(
    path: str | Path, what: str = "", *, error: type[InputError] = InputError
) -> Iterator[None]:
    """Turn whatever goes wrong while a file that a user gave is read into an error that names it.

    Libraries raise exceptions of every kind on damaged, foreign or hostile files, so all of them
    are caught here, at the reader's door, and not one by one where they might occur.

    Parameters
    ----------
    path
        The file.
    what
        What it should have been, for the message: "a table of positions".
    error
        `BadSlide` where the file concerns one slide only.

    Raises
    ------
    InputError
        In place of any exception. An InputError goes through unchanged, and so does a MemoryError:
        readers hold what a file declares against its size before they ask for memory.
    """
    try:
        yield
    except (InputError, MemoryError):
        raise
    except FileNotFoundError as found:
        raise error(f"{path} does not exist") from found
    except Exception as found:
        lines = str(found).strip().splitlines()
        said = lines[0] if lines else type(found).__name__
        raise error(f"{path}: not readable{f' as {what}' if what else ''} ({said})") from found


def _damaged(path: str | Path, how: str) -> str:
    """Return the message for a result that cannot be read."""
    return f"{path} is damaged ({how}): delete it and run snakemake again, which makes it again"


def read_labels(path: str | Path, barcodes: Iterable[str]) -> pd.DataFrame:
    """Return the labels of a section's spots, all columns as text.

    Parameters
    ----------
    path
        results/labels/{slide}.tsv: one row for each spot, undetermined ones too.
    barcodes
        The spots.

    Raises
    ------
    InputError
        Spots have no row: a table that lost its end reads like any other.
    """
    table = read_tsv(path, dtype=str, keep_default_na=False)
    wanted = list(barcodes)
    lost = len(set(wanted) - set(table["barcode"]))
    if lost:
        raise InputError(
            f"{path} has no label of {lost} of the {len(wanted)} spots: delete it and run snakemake "
            "again, which makes it again"
        )
    return table


def read_parquet(path: str | Path) -> pd.DataFrame:
    """Return a table that a rule wrote as Parquet.

    Raises
    ------
    InputError
        The file is absent or damaged.
    """
    import pandas as pd

    with readable(path):
        return pd.read_parquet(path)


def files_of(names: Iterable[str], paths: Iterable[str | Path], *, suffix: str) -> list[str]:
    """Return the file of each slide (or cohort), in the order of the names.

    Parameters
    ----------
    names
        Ids of the slides.
    paths
        Their files in any order, one each: folder/ID and then the suffix.
    suffix
        What follows the id, such as ".quality.tsv".

    Raises
    ------
    ValueError
        Not each has one file.
    """
    names = list(names)
    found = {Path(path).name.removesuffix(suffix): str(path) for path in paths}
    if set(found) != set(names):
        raise ValueError(f"not one file *{suffix} each: {sorted(set(found) ^ set(names))}")
    return [found[name] for name in names]


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
