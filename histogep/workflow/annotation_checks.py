"""Annotations of a study's slides, read whole before any work starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from histogep.errors import InputError


def check_annotations(
    slides: pd.DataFrame,
    texts: Mapping[str, Sequence[str]],
    *,
    made: Callable[[str], bool] = lambda file: False,
) -> None:
    """Read the annotations and regions of all slides; raise an InputError with every problem.

    Parameters
    ----------
    slides
        What `sheets.read_slides` returned: the columns `labels` and `regions`.
    texts
        The setting `labels`: texts of each label.
    made
        Returns whether the workflow makes a file, which may then be absent.
    """
    problems = []
    for column in ("labels", "regions"):
        for slide, path in slides[column].items():
            if not path or made(path):
                continue
            try:
                _read(Path(path), column, texts)
            except InputError as error:
                problems.append(f"slide {slide}, {column}: {error}")
    if problems:
        raise InputError("\n".join(problems))


def _read(path: Path, column: str, texts: Mapping[str, Sequence[str]]) -> None:
    # Imported here: these modules take seconds to import, and most studies have no annotation.
    if column == "regions":
        from histogep.slides.regions import read_regions

        read_regions(path)
        return
    from histogep.labels.annotated import map_texts, read_label_texts

    map_texts(pd.Series(sorted(read_label_texts(path)), dtype=object), texts, path=path)
