"""Genes: the panel that a fold learns, from how spatially variable genes are in its own sections."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from histogep.errors import InputError
from histogep.inputs.gene_names import are_excluded, report_empty_patterns, why_absent
from histogep.inputs.joins import HALF, NEAR_NOTHING
from histogep.warned import decides

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
        log.warning("genes are lost: %s", problem, **decides("expression"))
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


@dataclass(frozen=True)
class PanelLimits:
    """Which setting decided how many genes a panel has.

    Attributes
    ----------
    n_measured
        Genes measured in all sections, without those that `exclude` names.
    n_passing
        Those of them that all filters of `method` let pass.
    n_chosen
        Genes of the panel, before lineage markers are added.
    bound_by
        "max_genes"; else the filter without which most genes would be added (min_moran, p or
        extended_min_detected); "" if there are no other genes.
    n_without
        Genes that would pass without that filter.
    """

    n_measured: int
    n_passing: int
    n_chosen: int
    bound_by: str
    n_without: int

    def sentence(self, settings: Mapping[str, Any]) -> str:
        """Return what bound, as the log and the report say it."""
        said = (
            f"{self.n_chosen} genes, of {self.n_passing} that pass and {self.n_measured} measured"
        )
        if self.n_chosen > self.n_passing:
            said += f"; genes.min_genes ({settings['min_genes']}) filled them up"
        if self.bound_by == "max_genes":
            return f"{said}; genes.max_genes ({settings['max_genes']}) is what binds"
        if not self.bound_by:
            return f"{said}; there are no more"
        return (
            f"{said}; genes.{self.bound_by} ({settings[self.bound_by]:g}) is what binds: without it "
            f"{self.n_without} would pass"
        )

    def to_record(self) -> dict[str, Any]:
        """Return the plain dict that results/genes/{study}/{fold}.json holds."""
        return asdict(self)


def _limits(filters: pd.DataFrame, settings: Mapping[str, Any]) -> PanelLimits:
    """Return which setting decides how many genes a panel takes."""
    passing = int(filters.all(axis=1).sum())
    least = min(settings["min_genes"], int(filters["extended_min_detected"].sum()))
    chosen = max(min(passing, settings["max_genes"]), least)
    if passing > settings["max_genes"]:
        return PanelLimits(len(filters), passing, chosen, "max_genes", passing)
    without = {name: int(filters.drop(columns=name).all(axis=1).sum()) for name in filters}
    name = max(without, key=lambda key: without[key])
    bound = name if without[name] > passing else ""
    return PanelLimits(len(filters), passing, chosen, bound, without[name])


def _over_sections(
    scores: Mapping[str, pd.DataFrame], settings: Mapping[str, Any]
) -> tuple[pd.DataFrame, int]:
    """Return the scores of the shared genes over the sections (index gene), and how many are shared."""
    if not scores:
        raise InputError("no section to choose genes from")
    tables = [scores[slide].set_index("gene") for slide in sorted(scores)]
    shared = share_genes({slide: scores[slide]["gene"] for slide in sorted(scores)})
    report_empty_patterns(shared, settings["exclude"], setting="genes.exclude")
    n_shared = len(shared)
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
    return panel, n_shared


def _filters(panel: pd.DataFrame, settings: Mapping[str, Any]) -> pd.DataFrame:
    """Return which genes each setting lets pass; a column a setting."""
    filters = {"extended_min_detected": panel["detected"] >= settings["extended_min_detected"]}
    if settings["method"] != "variable":
        filters["min_moran"] = panel["moran_i"] > settings["min_moran"]
        filters["p"] = panel["p"] < settings["p"]
    return pd.DataFrame(filters)


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
        by falling rank. A main gene is always in the extended panel too. attrs["limits"] (PanelLimits)
        has the setting that decided how many there are, attrs["n_shared"] the genes that all sections
        measure.

    Raises
    ------
    InputError
        If hardly any gene is measured in all sections.
    """
    panel, n_shared = _over_sections(scores, settings)
    if settings["markers"]:
        _report_markers(panel.index, markers)
    lineage = markers.drop_duplicates("gene").set_index("gene")["lineage"]
    panel["marker"] = lineage.reindex(panel.index).fillna("").to_numpy()
    by_dispersion = settings["method"] == "variable"
    ranked = panel.sort_values(
        "dispersion" if by_dispersion else "moran_i", ascending=False, kind="stable"
    ).index
    filters = _filters(panel, settings)
    detected = filters["extended_min_detected"]
    passes = filters.all(axis=1)
    main = [gene for gene in ranked if passes[gene]][: settings["max_genes"]]
    if len(main) < settings["min_genes"]:
        log.warning(
            "only %d genes pass (median Moran's I above %g, p below %g): the best %d are taken",
            *(len(main), settings["min_moran"], settings["p"], settings["min_genes"]),
            **decides("expression"),
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
    limits = _limits(filters, settings)
    log.info("%s", limits.sentence(settings))
    panel.attrs = {"limits": limits, "n_shared": n_shared}
    return panel[["gene", "main", "extended", "moran_i", "mean", "detected", "marker"]]
