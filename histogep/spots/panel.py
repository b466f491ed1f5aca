"""Genes: the panel that a fold learns, from how spatially variable genes are in its own sections."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from histogep.errors import InputError
from histogep.inputs.gene_names import are_excluded, report_empty_patterns, why_absent
from histogep.inputs.joins import HALF, NEAR_NOTHING

log = logging.getLogger(__name__)

SCORE_COLUMNS = ("gene", "moran_i", "p", "fdr", "mean", "dispersion", "detected")


def panel_slides(folds: pd.DataFrame, fold: str) -> tuple[list[str], list[str]]:
    """Return the sections whose genes the panel of a fold may be chosen from, and their patients.

    patient_cv folds choose from their training and validation sections. `published` folds choose from ALL
    sections, the held-out one included: that is the paper's protocol, leak and all, and what is
    learned with it goes to the `published` card and nowhere else.

    Parameters
    ----------
    folds
        The table of `histogep.models.folds.split_folds`.
    fold
        A fold of it.
    """
    rows = folds[folds["fold"] == fold]
    if rows.empty:
        raise InputError(f"the folds table has no fold {fold!r}")
    if (rows["protocol"] != "published").all():
        rows = rows[rows["role"] != "test"]
    return sorted(rows["slide"]), sorted(set(rows["patient"]))


def share_genes(genes: Mapping[str, Iterable[str]]) -> list[str]:
    """Return the genes that all sections measure, sorted; name the sections that cost most of them.

    Parameters
    ----------
    genes
        Genes of each section.

    Raises
    ------
    InputError
        Hardly any gene is measured in all sections.
    """
    sets = {slide: set(names) for slide, names in genes.items()}
    shared = sorted(set.intersection(*sets.values()))
    log.info(
        "%d genes are measured in all of %d sections, which have %d to %d",
        *(len(shared), len(sets), min(map(len, sets.values())), max(map(len, sets.values()))),
    )
    problems = []
    count = pd.Series([name for names in sets.values() for name in names]).value_counts()
    usual = set(count.index[count > len(sets) / 2])
    for slide, names in sets.items():
        others = [other for name, other in sets.items() if name != slide]
        without = len(set.intersection(*others)) if others else len(shared)
        found = len(names & usual)
        if found < HALF * len(usual) or len(shared) < HALF * without:
            problems.append(
                f"section {slide} has {found} of the {len(usual)} genes that most sections have "
                f"({without} would be shared without it, {len(shared)} with it); it names "
                f"{', '.join(sorted(names)[:3])}; {why_absent(sorted(names), usual)}"
            )
    if len(shared) < NEAR_NOTHING * min(map(len, sets.values())) or not shared:
        what = f"only {len(shared)} genes are" if shared else "no gene is"
        examples = "; ".join(
            f"{s} names {', '.join(sorted(n)[:3])}" for s, n in [*sets.items()][:4]
        )
        raise InputError(
            f"{what} measured in all sections; do their tables use the same gene symbols? "
            f"{'; '.join(problems[:4]) or examples}"
        )
    for problem in problems:
        log.warning("genes are lost: %s", problem)
    return shared


def _report_markers(genes: Sequence[str], markers: pd.DataFrame) -> None:
    """Warn when the sections hold few of the lineage markers, with the likely reason."""
    wanted = markers["gene"].drop_duplicates()
    found = int(wanted.isin(genes).sum())
    low = found < HALF * len(wanted)
    log.log(
        logging.WARNING if low else logging.INFO,
        "%d of %d lineage markers are measured in all sections%s",
        *(found, len(wanted), f"; {why_absent(list(genes), wanted)}" if low else ""),
    )


def choose_panel(
    scores: Mapping[str, pd.DataFrame], markers: pd.DataFrame, settings: Mapping[str, Any]
) -> pd.DataFrame:
    """Return the panel of one fold from the gene scores of the sections it may see.

    A pure function of what it is given: the leak audit calls it again and compares.

    Parameters
    ----------
    scores
        Table of `histogep.spots.variable_genes.score_genes` by section.
    markers
        Columns lineage and gene; added to the main panel when detected (`settings["markers"]`).
    settings
        The `genes` section of the configuration.

    Returns
    -------
    DataFrame
        gene, main, extended, moran_i, mean, detected, marker; main genes first, then extended ones, each
        by falling rank. A main gene is always in the extended panel too.

    Raises
    ------
    InputError
        If hardly any gene is measured in all sections.
    """
    if not scores:
        raise InputError("no section to choose genes from")
    tables = [scores[slide].set_index("gene") for slide in sorted(scores)]
    shared = share_genes({slide: scores[slide]["gene"] for slide in sorted(scores)})
    report_empty_patterns(shared, settings["exclude"], setting="genes.exclude")
    if settings["markers"]:
        _report_markers(shared, markers)
    excluded = are_excluded(shared, settings["exclude"])
    shared = pd.Index(np.array(shared, dtype=object)[~excluded], name="gene")
    if shared.empty:
        raise InputError("genes.exclude leaves no gene that is measured in all sections")
    stacked = {
        column: np.column_stack([table.loc[shared, column] for table in tables])
        for column in ("moran_i", "p", "mean", "dispersion", "detected")
    }
    panel = pd.DataFrame(
        {
            "moran_i": np.median(stacked["moran_i"], axis=1),
            "p": np.median(stacked["p"], axis=1),
            "mean": stacked["mean"].mean(axis=1),
            "dispersion": stacked["dispersion"].mean(axis=1),
            "detected": stacked["detected"].mean(axis=1),
        },
        index=shared,
    )
    lineage = markers.drop_duplicates("gene").set_index("gene")["lineage"]
    panel["marker"] = lineage.reindex(shared).fillna("").to_numpy()

    detected = panel["detected"] >= settings["extended_min_detected"]
    by_dispersion = settings["method"] == "variable"
    ranked = panel.sort_values(
        "dispersion" if by_dispersion else "moran_i", ascending=False, kind="stable"
    ).index
    passes = detected.copy()
    if not by_dispersion:
        passes &= (panel["moran_i"] > settings["min_moran"]) & (panel["p"] < settings["p"])
    main = [gene for gene in ranked if passes[gene]][: settings["max_genes"]]
    if len(main) < settings["min_genes"]:
        log.warning(
            "only %d genes pass (median Moran's I above %g, p below %g): the best %d are taken",
            *(len(main), settings["min_moran"], settings["p"], settings["min_genes"]),
        )
        main += [gene for gene in ranked if gene not in set(main) and detected[gene]]
        main = main[: settings["min_genes"]]
    if settings["markers"]:
        chosen = set(main)
        main += [
            gene
            for gene in ranked
            if panel.at[gene, "marker"] and detected[gene] and gene not in chosen
        ]
    chosen = set(main)
    by_mean = panel.sort_values("mean", ascending=False, kind="stable").index
    others = [gene for gene in by_mean if detected[gene] and gene not in chosen]
    extended = main + others[: max(0, settings["extended_max_genes"] - len(main))]
    panel = panel.loc[extended].reset_index()
    panel["main"] = panel["gene"].isin(chosen)
    panel["extended"] = True
    return panel[["gene", "main", "extended", "moran_i", "mean", "detected", "marker"]]
