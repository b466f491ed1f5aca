"""Digests of the files that the user gives, and whether these files have changed since."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from histogep.errors import InputError
from histogep.files import file_sha256

log = logging.getLogger(__name__)


def source_sha256(path: Path) -> str:
    """Return the SHA-256 of a slide's bytes.

    Of a slide in many files (a DICOM series, a MIRAX folder), of the digests of them all whatever
    their names, which change when such a slide is copied under another id.
    """
    files = list(source_files(path))
    if len(files) == 1:
        return file_sha256(files[0])
    return hashlib.sha256("\n".join(sorted(map(file_sha256, files))).encode()).hexdigest()


def source_files(path: Path) -> Iterator[Path]:
    """Yield the files that make up a slide, in order of name.

    Of DICOM, known by its content, all files of the named folder (which holds one series,
    `geometry.check_source`), or those of the series of the named file, since its folder may hold many
    slides.
    """
    if path.is_dir():
        yield from dicom_files(path)
        return
    if is_dicom(path):
        series = dicom_series(path)
        for file in dicom_files(path.parent):
            if file == path or dicom_series(file) == series:
                yield file
        return
    yield path
    companion = path.with_suffix("")
    if path.suffix.lower() in (".mrxs", ".vms", ".vmu") and companion.is_dir():
        yield from sorted(file for file in companion.iterdir() if file.is_file())


def is_dicom(file: Path) -> bool:
    """Return whether a file is DICOM by its content, whatever its name."""
    if not file.is_file():
        return False
    with open(file, "rb") as handle:
        return handle.read(132)[128:] == b"DICM"


def dicom_files(folder: Path) -> list[Path]:
    """Return the DICOM files of a folder in order of name."""
    return sorted(file for file in folder.iterdir() if is_dicom(file))


def dicom_series(file: Path) -> str:
    """Return the SeriesInstanceUID of a DICOM file, "" for any other file."""
    from pydicom import dcmread

    try:
        read = dcmread(file, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"])
        return str(read.get("SeriesInstanceUID", ""))
    except Exception:  # any error of pydicom on a damaged file: it belongs to no series
        log.warning("%s cannot be read as DICOM", file)
        return ""


def refuse_replaced(described: Mapping[str, Any], description: str | Path) -> None:
    """Raise an InputError if a slide's file is no longer the one that was described.

    Snakemake compares times when it starts, so a file that is replaced while it runs is not
    noticed. The bytes are compared only where a file, or a link to it, is younger than the
    description, since reading a slide of gigabytes is expensive.

    Parameters
    ----------
    described
        `slide`, `source`, `bytes` and `sha256` of results/slides/{slide}.json.
    description
        That file.
    """
    if "sha256" not in described:
        return
    source = Path(described["source"])
    if not source.exists():
        return  # reported where it is opened
    written = Path(description).stat().st_mtime_ns
    files = list(source_files(source))
    if sum(file.stat().st_size for file in files) == described.get("bytes", -1):
        # The time of change too: a file that is moved or copied over may keep its old time.
        times = [
            max(one.st_mtime_ns, one.st_ctime_ns)
            for file in {source, *files}
            for one in (file.stat(), file.lstat())
        ]
        if max(times) <= written:
            return
        log.info("%s is younger than %s: comparing its bytes", source, description)
        if source_sha256(source) == described["sha256"]:
            return
    raise InputError(
        f"slide {described['slide']}: {source} is not the file that {description} describes "
        f"(sha256 {described['sha256'][:12]}): it was replaced while the study ran. Run snakemake "
        "again once the file is final; if that does nothing, touch the file"
    )
