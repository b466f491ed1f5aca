"""Patients whose survival can be modelled, and the covariates that tell them apart."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd

from histogep.errors import InputError
from histogep.study.stages import MIN_EVENTS
from histogep.warned import decides

log = logging.getLogger(__name__)


def with_outcome(table: pd.DataFrame, folds: int) -> pd.DataFrame:
    """Return the patients with an outcome that can be used, or refuse."""
    for column in ("time", "event"):
        if column not in table:
            raise InputError(f"the patients have no column {column!r}; survival needs it")
    time = table["time"].to_numpy(float)
    event = table["event"].to_numpy(float)
    ids = table["patient"].astype(str)
    if (time < 0).any():
        raise InputError(
            f"negative times: {', '.join(ids[time < 0])}; time counts the months from diagnosis"
        )
    odd = np.isfinite(event) & ~np.isin(event, (0, 1))
    if odd.any():
        raise InputError(f"events other than 0 and 1: {', '.join(ids[odd])}")
    known = np.isfinite(time) & np.isfinite(event)
    if not known.all():
        log.warning(
            "%d patients without time or event left out: %s",
            (~known).sum(),
            ", ".join(ids[~known]),
        )
    table = table[known].reset_index(drop=True)
    n, events = len(table), int(event[known].sum())
    if n < folds:
        raise InputError(
            f"{n} patients with time and event are fewer than the {folds} folds; lower "
            "survival.folds or add patients"
        )
    if events == 0:
        raise InputError(
            "no patient has an event: survival cannot be modelled; is event 1 for the event and 0 "
            "for censored?"
        )
    if events < max(MIN_EVENTS, folds):
        raise InputError(
            f"{events} events are too few for {folds} folds (one per fold, {MIN_EVENTS} at the "
            "least); lower survival.folds or wait for events"
        )
    log.info("%d patients, %d events", n, events)
    return table


def known_covariates(table: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Return the clinical covariates that tell patients apart, the others are told in the log."""
    kept = {}
    for name in names:
        if name not in table or not np.isfinite(table[name].to_numpy(float)).any():
            log.warning(
                "covariate %s is not known for any patient; left out",
                name,
                **decides("survival", "response"),
            )
            continue
        values = table[name].to_numpy(float)
        if len(np.unique(values[np.isfinite(values)])) < 2 and np.isfinite(values).all():
            log.warning("covariate %s is the same for all patients; left out", name)
            continue
        kept[name] = values
    return pd.DataFrame(kept, index=table.index)
