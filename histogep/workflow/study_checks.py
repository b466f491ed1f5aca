"""Read all files of a study before its first job, each whole and by its own reader.

A check is a function of `StudyFiles` in `CHECKS` that raises an InputError; all of them run, and
one message reports everything that they found.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pandas as pd

from histogep.errors import BadSlide, InputError
from histogep.inputs.barcodes import patient_of
from histogep.inputs.gene_sets import read_gmt
from histogep.inputs.genome import read_gene_positions
from histogep.inputs.patient_joins import join_ids
from histogep.lattice import Lattice
from histogep.problems import Problems
from histogep.study.bulk import measured_samples, read_expression
from histogep.warned import heard
from histogep.workflow.annotation_checks import check_annotations

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudyFiles:
    """The files of a study.

    Attributes
    ----------
    slides
        The slide sheet (`histogep.study.sheets.read_slides`).
    settings
        The complete settings.
    gene_sets
        Collection of gene sets -> file.
    measured
        Cohort -> table of measured expression.
    gene_positions
        File of gene positions, if there is one.
    made
        Returns whether the workflow makes a file, so that it cannot be read yet.
    """

    slides: pd.DataFrame
    settings: Mapping[str, Any]
    gene_sets: Mapping[str, str] = field(default_factory=dict)
    measured: Mapping[str, str] = field(default_factory=dict)
    gene_positions: str | None = None
    made: Callable[[str], bool] = lambda file: False

    def column(self, name: str) -> dict[str, str]:
        """Return the files of a column of the slide sheet that exist, by slide."""
        given = self.slides[name]
        return {slide: file for slide, file in given.items() if file and not self.made(file)}


def check_gene_sets(files: StudyFiles) -> Iterator[Callable[[], Any]]:
    """Read every line of every collection of gene sets."""
    for path in files.gene_sets.values():
        if not files.made(path):
            yield partial(read_gmt, path)


def check_measured(files: StudyFiles) -> Iterator[Callable[[], Any]]:
    """Read every value of measured expression, and check it against its scale."""
    for cohort, path in files.measured.items():
        scale = files.settings["measured"][cohort]["scale"]
        if not files.made(path):
            yield partial(read_expression, path, scale=scale)


def check_gene_positions(files: StudyFiles) -> Iterator[Callable[[], Any]]:
    """Read the positions of the genes."""
    if files.gene_positions and not files.made(files.gene_positions):
        yield partial(read_gene_positions, files.gene_positions)


def check_positions(files: StudyFiles) -> Iterator[Callable[[], Any]]:
    """Read the positions that the slide sheet names, and hold their pitch against its um per px.

    A bad file fails only its own slide.
    """
    from histogep.spots.align import check_stated_size
    from histogep.spots.readers import read_positions  # reads counts too: its imports take a second

    def read(slide: str, path: str) -> None:
        try:
            table = read_positions(path)
        except InputError as error:
            raise BadSlide(f"slide {slide}, positions: {error}") from None
        lattice = Lattice.from_settings(files.settings["lattice"])
        mpp = float(files.slides.loc[slide, "mpp"])
        check_stated_size(table, slide=slide, mpp=mpp, lattice=lattice)

    for slide, path in files.column("positions").items():
        yield partial(read, slide, path)


def check_labels_and_regions(files: StudyFiles) -> Iterator[Callable[[], Any]]:
    """Read every annotation and region, and look up what its classes mean."""
    yield lambda: check_annotations(files.slides, files.settings.get("labels", {}), made=files.made)


#: Each yields the reads that it makes; their errors are collected. A BadSlide is left to the
#: slide's own jobs where `on_bad_slide` is skip.
CHECKS: tuple[Callable[[StudyFiles], Iterator[Callable[[], Any]]], ...] = (
    check_gene_sets,
    check_measured,
    check_gene_positions,
    check_positions,
    check_labels_and_regions,
)


def check_study_files(files: StudyFiles) -> None:
    """Read what would otherwise be read only after hours.

    Raises
    ------
    InputError
        Everything that the checks found, one message after the other.
    """
    skip = files.settings.get("on_bad_slide") == "skip"
    problems = Problems()
    for check in CHECKS:
        for read in check(files):
            with contextlib.suppress(*([BadSlide] if skip else [])):
                problems.run(_pass_bad_slides(read) if skip else read, default=None)
    problems.refuse()


def _pass_bad_slides(read: Callable[[], Any]) -> Callable[[], Any]:
    def reading() -> Any:
        try:
            return read()
        except BadSlide as error:
            log.warning("%s", error)
            return None

    return reading


def measured_patients(cohort: str, expression: str, clinical: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a clinical table whose patients have a sample.

    `attrs["n_samples"]` of the result is the number of patients with a sample.

    Raises
    ------
    InputError
        Almost no sample is in the clinical table.
    """
    ids = {patient_of(sample) for sample in measured_samples(expression)}
    met = join_ids(ids, clinical.index)
    if met.near_nothing:
        raise InputError(
            f"measured.{cohort}: {met.n_matched} of {met.n} patients of {expression} are in its "
            f"clinical table, such as {_some(sorted(ids))}; the table has "
            f"{_some(sorted(clinical.index))}. The ids must be identical"
            + (f"; {met.hint}" if met.hint else "")
        )
    if met.few:
        log.warning(
            "measured.%s: only %d of %d patients with a sample are in the clinical table%s",
            cohort,
            met.n_matched,
            met.n,
            f"; {met.hint}" if met.hint else "",
        )
    rows = clinical.loc[clinical.index.intersection(sorted(ids))]
    rows.attrs = {**clinical.attrs, "n_samples": met.n}
    return rows


def check_columns(renamed: Mapping[str, str], *sheets: pd.DataFrame | None) -> None:
    """Raise an InputError if the setting `columns` names a column that no table has."""
    read = [sheet for sheet in sheets if sheet is not None]
    found = {name for sheet in read for name in sheet.attrs.get("columns", ())}
    absent = sorted(f"{our}: {their}" for our, their in renamed.items() if their not in found)
    if absent and read:
        raise InputError(
            f"columns: no sheet or clinical table has the column of {', '.join(absent)} (they have "
            f"{_some(sorted(found), 12)})"
        )


@contextlib.contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Collect the warnings of the library's readers, in place of printing them."""
    logger = logging.getLogger("histogep")
    lines: list[str] = []
    before, logger.propagate = logger.propagate, False
    try:
        with heard() as listener:
            yield lines
            lines += dict.fromkeys(warned.text for warned in listener.warned)
    finally:
        logger.propagate = before


def _some(names: list[str], n: int = 3) -> str:
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")
