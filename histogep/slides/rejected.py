"""Unusable slides: each rule of a slide passes the reason on in its own output.

With `on_bad_slide: skip`, a rule that meets a `BadSlide` still writes its outputs, complete but
empty, with a record of the rule and the reason under `failed`. The next rule of that slide finds
the record, raises the same error and passes it on. `check_slides`, a checkpoint, collects the
records of all slides, and later rules are asked for the usable slides only. Nothing else needs to
know what an empty slide means, and a corrected file remakes its own slide only.
With `on_bad_slide: stop`, the job that meets a bad slide fails, and no record is written.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from histogep.errors import BadSlide, InputError
from histogep.files import complete, read_tsv, readable

log = logging.getLogger(__name__)

COLUMNS = ("slide", "patient", "cohort", "rule", "reason")


def record_failure(error: BadSlide, *, rule: str, skip: bool) -> dict[str, str]:
    """Return the record of a bad slide: rule (the first that met it) and reason.

    Raises
    ------
    BadSlide
        The same reason, with the setting that skips bad slides, if they are not to be skipped.
    """
    if not skip:
        remedy = "; or go on without such slides: on_bad_slide: skip"
        raise BadSlide(f"{error}{remedy}", rule=error.rule) from None
    log.error("%s", error)
    return {"rule": error.rule or rule, "reason": str(error)}


def refuse_failed(attributes: Mapping[str, Any]) -> None:
    """Raise the BadSlide that is recorded under `failed` among the attributes of a file, if any."""
    record = attributes.get("failed")
    if record is not None:
        # h5 attributes and h5ad entries hold text only.
        record = json.loads(record) if isinstance(record, str) else record
        raise BadSlide(record["reason"], rule=record["rule"])


def refuse_failed_spots(path: str | Path) -> None:
    """Raise the BadSlide that is recorded in a results/spots/{slide}.h5ad, if any."""
    import h5py  # here: planning, which reads the list of bad slides, does not need it

    with readable(path), h5py.File(path, "r") as file:
        if "uns/failed" in file:
            refuse_failed({"failed": file["uns/failed"].asstr()[()]})


def write_failed_features(path: str | Path, *, slide: str, failed: Mapping[str, str]) -> None:
    """Write results/features/{slide}.h5 of a bad slide: no rows, and the record."""
    import h5py

    with complete(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["slide"] = slide
        file.attrs["failed"] = json.dumps(dict(failed), sort_keys=True)
        for name, shape, kind in (("features", (0, 0), "f4"), ("coords", (0, 2), "i8")):
            file.create_dataset(name, shape=shape, dtype=kind, track_times=False)


def collect_failures(
    features: Sequence[str | Path],
    *,
    slides: Sequence[str],
    patients: Sequence[str],
    cohorts: Sequence[str],
) -> pd.DataFrame:
    """Return the slides of a study that cannot be used: slide, patient, cohort, rule, reason.

    Parameters
    ----------
    features
        results/features/{slide}.h5 of every slide.
    slides, patients, cohorts
        Of each, in the same order.

    Raises
    ------
    InputError
        If no slide is left.
    """
    import h5py

    rows = []
    for path, *ids in zip(features, slides, patients, cohorts, strict=True):
        with readable(path), h5py.File(path, "r") as file:
            try:
                refuse_failed(file.attrs)
            except BadSlide as error:
                rows.append((*ids, error.rule, str(error)))
    failed = pd.DataFrame(rows, columns=list(COLUMNS), dtype=str)
    if len(failed) == len(slides):
        listed = "\n".join(f"  {reason}" for reason in failed["reason"])
        raise InputError(f"none of the {len(slides)} slides can be used\n{listed}")
    return failed


def failed_slides(path: str | Path) -> set[str]:
    """Return the ids of the slides that a results/failed_slides.tsv lists."""
    return set(read_tsv(path, dtype=str, keep_default_na=False)["slide"])
