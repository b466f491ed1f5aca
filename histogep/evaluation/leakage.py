"""The leak audit: no information on a held-out patient may reach what is scored on that patient.

Every patient_cv fold is checked from what the jobs wrote, not from what was requested: the
roles of sections and patients, the sections that the gene panel was chosen from (by choosing it
again), and the slides on which scaling, components, targets, penalty and epoch were fitted. The
folds of the paper's protocol (`published`) leak by design; what they leak is listed as known and goes
to the published card and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from histogep.errors import InputError
from histogep.evaluation.copies import notices
from histogep.inputs.barcodes import patient_key

#: What every model reports to have been fitted on (settings.json, `<name>_fitted_on`).
FITTED = ("scaler", "pca", "target", "alpha", "epoch", "threshold")
#: Kinds of models whose members each leave some training patients out, and what is weighed on those.
COMMITTEES = ("lattice", "blend")
WEIGHED = ("share", "snapshot", "rank")
_FITTED_SUFFIX = "_fitted_on"
_ROLES = ("train", "validation", "test")
_SHOWN = 6


@dataclass
class _Findings:
    """Checks made so far."""

    checks: list[dict[str, Any]] = field(default_factory=list)

    def add(self, check: str, fold: str, problem: str, *, model: str = "") -> None:
        """Record one check; it passed if no problem is given."""
        self.checks.append(
            {
                "check": check,
                "fold": fold,
                "model": model,
                "ok": not problem,
                "detail": problem or "clean",
            }
        )


def audit(
    folds: pd.DataFrame,
    *,
    panels: Mapping[str, pd.DataFrame],
    records: Mapping[str, Mapping[str, Any]],
    models: Sequence[Mapping[str, Any]],
    gene_scores: Mapping[str, pd.DataFrame],
    score_sha256: Mapping[str, str],
    image_sha256: Mapping[str, str],
    markers: pd.DataFrame,
    gene_settings: Mapping[str, Any],
    choose_panel: Callable[..., pd.DataFrame],
    similar: pd.DataFrame | None = None,
) -> dict[str, Any]:
    """Check every fold for leaks.

    Parameters
    ----------
    folds
        The folds table: protocol, fold, slide, patient, role.
    panels, records
        Gene panel of each fold, and the record of how it was chosen (slides, patients, sha256).
    models
        settings.json of every model that was trained with sections held out.
    gene_scores, score_sha256
        Gene scores of each section and the SHA-256 of their files.
    image_sha256
        SHA-256 of the whole-slide image of each section.
    markers, gene_settings
        What else the panel is chosen by.
    choose_panel
        `histogep.spots.panel.choose_panel`: (scores by section, markers, settings) -> panel.
    similar
        Sections of different patients that are alike (`histogep.evaluation.copies.compare_sections`).

    Returns
    -------
    dict
        ok, n_checks, n_failed, checks (each: check, fold, model, ok, detail), known_leaks of the
        paper's protocol (each: fold, detail), and notices of what may be innocent (each: what,
        detail): serial sections or one patient under two ids.
    """
    folds = folds.astype(str)
    found = _Findings()
    _check_patients(folds, found)
    _check_files(folds, image_sha256, "image", found)
    # Gene scores are a function of counts and places: equal tables are of the same counts.
    _check_files(folds, score_sha256, "counts", found)
    _check_copies(similar, found)
    chosen_again: dict[tuple[str, ...], pd.DataFrame] = {}
    for fold, rows in folds.groupby("fold", sort=False):
        protocol = rows["protocol"].iloc[0]
        _check_roles(fold, rows, found)
        if protocol == "published":
            continue
        allowed = sorted(set(rows.loc[rows["role"] != "test", "slide"]))
        _check_record(fold, rows, allowed, records.get(fold), score_sha256, found)
        if fold not in panels or not set(allowed) <= set(gene_scores):
            found.add("panel_chosen_again", fold, "its panel or the gene scores are missing")
            continue
        key = tuple(allowed)
        if key not in chosen_again:
            allowed_scores = {slide: gene_scores[slide] for slide in allowed}
            chosen_again[key] = choose_panel(allowed_scores, markers, gene_settings)
        found.add("panel_chosen_again", fold, _panel_problem(panels[fold], chosen_again[key]))
    for settings in models:
        _check_model(settings, folds, panels, found)
    failed = sum(not check["ok"] for check in found.checks)
    return {
        "ok": failed == 0,
        "n_checks": len(found.checks),
        "n_failed": failed,
        "checks": found.checks,
        "known_leaks": known_leaks(folds, records),
        "notices": [] if similar is None else notices(similar),
    }


def require_clean(verdict: Mapping[str, Any]) -> None:
    """Stop the run when a check failed.

    Raises
    ------
    InputError
        "leak: ...", naming fold, model, slides and patients of each failed check.
    """
    failed = [check for check in verdict["checks"] if not check["ok"]]
    if not failed:
        return
    told = [
        f"{check['fold']}{'/' + check['model'] if check['model'] else ''} ({check['check']}): "
        f"{check['detail']}"
        for check in failed[:_SHOWN]
    ]
    more = f"\n  and {len(failed) - _SHOWN} more" if len(failed) > _SHOWN else ""
    raise InputError(
        f"leak: {len(failed)} of {verdict['n_checks']} checks failed, so no score of these folds "
        "would be honest:\n  " + "\n  ".join(told) + more + "\n"
        "Correct the folds table or delete the named folds' panels and models, and run again"
    )


def known_leaks(
    folds: pd.DataFrame, records: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, str]]:
    """Return what the paper's protocol leaks, fold by fold, so that it is reported openly."""
    leaks = []
    for fold, rows in folds[folds["protocol"] == "published"].groupby("fold", sort=False):
        held_out = rows["role"] == "test"
        shared = sorted(set(rows.loc[held_out, "patient"]) & set(rows.loc[~held_out, "patient"]))
        if shared:
            leaks.append({"fold": fold, "detail": f"patients train and test: {', '.join(shared)}"})
        seen = set(records.get(fold, {}).get("slides", ()))
        seen = sorted(seen & set(rows.loc[held_out, "slide"]))
        if seen:
            leaks.append(
                {"fold": fold, "detail": f"genes chosen with the test sections: {', '.join(seen)}"}
            )
    return leaks


def _check_patients(folds: pd.DataFrame, found: _Findings) -> None:
    """Check that a section has one patient in all folds, and that each protocol tests it once."""
    owners = folds.groupby("slide")["patient"].unique()
    problems = [
        f"section {slide} belongs to the patients {', '.join(names)}"
        for slide, names in owners.items()
        if len(names) > 1
    ]
    found.add("one_patient_per_section", "*", "; ".join(problems))
    names = folds["patient"].drop_duplicates().sort_values()
    problems = [
        f"the patients {', '.join(map(repr, same))} are one, by barcode or but for case and spaces: "
        "give them one id in the slides sheet"
        for _, same in names.groupby(names.map(patient_key), sort=True)
        if len(same) > 1
    ]
    found.add("one_spelling_per_patient", "*", "; ".join(problems))
    for protocol in ("patient_cv", "published"):
        rows = folds[folds["protocol"] == protocol]
        times = rows[rows["role"] == "test"]["slide"].value_counts()
        problems = [f"section {slide} is tested {n} times" for slide, n in times.items() if n > 1]
        missed = sorted(set(rows["slide"]) - set(times.index))
        if missed:
            problems.append(f"never tested: {', '.join(missed)}")
        found.add(f"{protocol}_sections_tested_once", "*", "; ".join(problems))


def _check_files(
    folds: pd.DataFrame, sha256: Mapping[str, str], what: str, found: _Findings
) -> None:
    """Check that no two patients have the same image or counts, whatever the names of the files."""
    sections = folds.drop_duplicates(["slide", "patient"])
    unknown = sorted(set(sections["slide"]) - set(sha256))
    problems = [f"no digest of the {what} of {', '.join(unknown)}"] if unknown else []
    problems += [
        f"sections {', '.join(sorted(rows['slide']))} of the patients "
        f"{', '.join(sorted(set(rows['patient'])))} have the same {what}"
        for _, rows in sections.groupby(sections["slide"].map(sha256), sort=True)
        if rows["patient"].nunique() > 1
    ]
    found.add(f"one_patient_per_{what}", "*", "; ".join(problems))


def _check_copies(similar: pd.DataFrame | None, found: _Findings) -> None:
    """Check that the sections of different patients were compared, and that none is a copy."""
    if similar is None:
        problem = "the sections were not compared: run compare_sections"
    else:
        copies = similar[similar["verdict"] == "copy"]
        problem = "; ".join(
            f"{row.slide} of patient {row.patient} and {row.other} of patient {row.other_patient} "
            f"are one section by {row.what}: {row.detail}"
            for row in copies.itertuples()
        )
    found.add("one_patient_per_section_changed", "*", problem)


def _check_roles(fold: str, rows: pd.DataFrame, found: _Findings) -> None:
    protocol = rows["protocol"].iloc[0]
    problem = ""
    if rows["protocol"].nunique() > 1:
        problem = f"has the protocols {', '.join(rows['protocol'].unique())}"
    unknown = sorted(set(rows["role"]) - set(_ROLES))
    if unknown:
        problem = f"has the unknown roles {', '.join(unknown)}"
    needed = {"train"} if protocol == "all" else {"train", "test"}
    if not needed <= set(rows["role"]):
        problem = f"has no section to {' or to '.join(sorted(needed - set(rows['role'])))}"
    found.add("roles", fold, problem)
    found.add("section_in_one_role", fold, _repeated(rows, "slide", "section"))
    if protocol == "patient_cv":
        found.add("patient_in_one_role", fold, _repeated(rows, "patient", "patient"))


def _repeated(rows: pd.DataFrame, column: str, word: str) -> str:
    """Name items with several roles, and the sections that show it."""
    problems = []
    for name, group in rows.groupby(column, sort=True):
        if group["role"].nunique() > 1:
            places = ", ".join(
                f"{s} {r}" for s, r in zip(group["slide"], group["role"], strict=True)
            )
            problems.append(f"{word} {name} has several roles ({places})")
        elif column == "slide" and len(group) > 1:
            problems.append(f"section {name} is listed {len(group)} times")
    return "; ".join(problems)


def _check_record(
    fold: str,
    rows: pd.DataFrame,
    allowed: Sequence[str],
    record: Mapping[str, Any] | None,
    score_sha256: Mapping[str, str],
    found: _Findings,
) -> None:
    """Check that the panel saw the training sections, and the gene scores that lie here."""
    if record is None:
        found.add("panel_sections", fold, "there is no record of how its panel was chosen")
        return
    found.add(
        "panel_sections", fold, _slides_problem(record.get("slides", ()), allowed, rows, exact=True)
    )
    held_out = set(rows.loc[rows["role"] == "test", "patient"])
    seen = sorted(set(map(str, record.get("patients", ()))) & held_out)
    found.add(
        "panel_patients", fold, f"the panel saw the test patients {', '.join(seen)}" if seen else ""
    )
    recorded = record.get("sha256", {})
    changed = [slide for slide in allowed if recorded.get(slide) != score_sha256.get(slide)]
    found.add(
        "gene_scores_unchanged",
        fold,
        f"gene scores of {', '.join(changed)} are not those that the panel was chosen from"
        if changed
        else "",
    )


def _panel_problem(panel: pd.DataFrame, again: pd.DataFrame) -> str:
    """Compare a panel with the one chosen again from the sections that the fold may see."""
    for flag in ("main", "extended"):
        ours = list(panel.loc[_as_flag(panel[flag]), "gene"].astype(str))
        theirs = list(again.loc[_as_flag(again[flag]), "gene"].astype(str))
        extra, lost = sorted(set(ours) - set(theirs)), sorted(set(theirs) - set(ours))
        if extra or lost:
            return (
                f"its {flag} panel is not the one that its training sections give: "
                f"{len(extra)} genes too many ({_some(extra)}), {len(lost)} missing ({_some(lost)});"
                " it was chosen with other sections or settings"
            )
        if ours != theirs:
            return f"its {flag} panel has the right genes in another order than chosen"
    for column in ("moran_i", "mean", "detected"):
        if column in panel and column in again:
            ours = panel.set_index("gene")[column].astype(float)
            theirs = again.set_index("gene")[column].astype(float).reindex(ours.index)
            # The table is written with six digits.
            if not np.allclose(ours, theirs, rtol=1e-4, atol=1e-6, equal_nan=True):
                return f"`{column}` of its genes is not that of its training sections"
    return ""


def _check_model(
    settings: Mapping[str, Any],
    folds: pd.DataFrame,
    panels: Mapping[str, pd.DataFrame],
    found: _Findings,
) -> None:
    fold, model = str(settings.get("fold", "")), str(settings.get("model", "?"))
    rows = folds[folds["fold"] == fold]
    if rows.empty:
        found.add("model_of_a_fold", fold, "a model of a fold that the table lacks", model=model)
        return
    protocol = rows["protocol"].iloc[0]
    problem = ""
    if settings.get("protocol") != protocol:
        problem = f"trained under protocol {settings.get('protocol')!r}, the fold is {protocol!r}"
    found.add("model_protocol", fold, problem, model=model)
    for role in _ROLES:
        expected = sorted(set(rows.loc[rows["role"] == role, "slide"]))
        told = sorted(map(str, settings.get(f"{role}_slides", ())))
        found.add(
            f"model_{role}_slides",
            fold,
            _slides_problem(told, expected, rows, exact=True),
            model=model,
        )
    if protocol == "published":
        # Patients cross these folds by design, but the held-out section itself must not train.
        seen = set(rows.loc[rows["role"] == "test", "slide"]) & set(
            settings.get("train_slides", ())
        )
        problem = f"the test sections {_some(sorted(seen))} train" if seen else ""
        found.add("published_section_held_out", fold, problem, model=model)
        return
    held_out = set(rows.loc[rows["role"] == "test", "patient"])
    seen = {str(p) for r in ("train", "validation") for p in settings.get(f"{r}_patients", ())}
    seen = sorted(seen & held_out)
    found.add(
        "model_patients",
        fold,
        f"the test patients {', '.join(seen)} train or validate" if seen else "",
        model=model,
    )
    allowed = sorted(set(rows.loc[rows["role"] != "test", "slide"]))
    fitted = fitted_on(settings)
    wanted = [*FITTED]
    if settings.get("kind") == "neighbours" and settings.get("task") == "tumour":
        wanted.append("calibration")
    for what in [*wanted, *sorted(set(fitted) - set(wanted))]:
        problem = (
            _slides_problem(fitted[what], allowed, rows, exact=False)
            if what in fitted
            else f"settings.json does not give what `{what}` was fitted on"
        )
        found.add(f"{what}_fitted_on", fold, problem, model=model)
    if settings.get("kind") in COMMITTEES:
        _check_committee(settings, rows, allowed, found)
    if settings.get("task") in ("expression", "both") and fold in panels:
        flag = str(settings.get("panel", "main"))
        panel = panels[fold]
        genes = sorted(panel.loc[_as_flag(panel[flag]), "gene"].astype(str))
        told = sorted(map(str, settings.get("genes", ())))
        problem = "" if told == genes else f"its {len(told)} genes are not the fold's {flag} panel"
        found.add("model_genes", fold, problem, model=model)


def _check_committee(
    settings: Mapping[str, Any], rows: pd.DataFrame, allowed: Sequence[str], found: _Findings
) -> None:
    """Check that no member saw a patient it is judged on, and that only such sections weigh."""
    told = {"fold": str(settings["fold"]), "model": str(settings.get("model", "?"))}
    patient = dict(zip(rows["slide"], rows["patient"].map(patient_key), strict=True))
    members = settings.get("committee") or []
    problem = "" if members else "settings.json does not give what its members saw"
    seen = {slide for member in members for slide in member["trained_slides"]}
    judged = [slide for member in members for slide in member["judged_slides"]]
    problem = problem or _slides_problem(seen | set(judged), allowed, rows, exact=False)
    found.add("member_sections", told["fold"], problem, model=told["model"])
    problems = []
    for number, member in enumerate(members, 1):
        shared = {patient.get(s) for s in member["trained_slides"]}
        shared &= {patient.get(s) for s in member["judged_slides"]}
        if shared:
            problems.append(
                f"member {number} saw the patients {_some(sorted(map(str, shared)))}, on whom it "
                "is judged"
            )
    found.add("member_patients", told["fold"], "; ".join(problems), model=told["model"])
    problems = []
    if twice := sorted({slide for slide in judged if judged.count(slide) > 1}):
        problems.append(f"the sections {_some(twice)} judge several members")
    for what in WEIGHED:
        own = settings.get(f"{what}{_FITTED_SUFFIX}")
        if own is None:
            problems.append(f"settings.json does not give what `{what}` was weighed on")
        elif unjudged := sorted(set(own) - set(judged)):
            problems.append(
                f"`{what}` was weighed on the sections {_some(unjudged)}, which no member left out"
            )
    found.add("weighed_on_left_out", told["fold"], "; ".join(problems), model=told["model"])


def fitted_on(settings: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return name -> slides of everything that a model reports to have been fitted on."""
    fitted = {
        key.removesuffix(_FITTED_SUFFIX): value
        for key, value in settings.items()
        if key.endswith(_FITTED_SUFFIX)
    }
    fitted |= settings.get("fitted_on", {})
    return {name: [str(slide) for slide in slides or ()] for name, slides in fitted.items()}


def _slides_problem(
    told: Iterable[str], allowed: Sequence[str], rows: pd.DataFrame, *, exact: bool
) -> str:
    """Name the slides that were used and must not be (with patient and role), or were left out."""
    told = {str(slide) for slide in told}
    role = dict(zip(rows["slide"], rows["role"], strict=True))
    patient = dict(zip(rows["slide"], rows["patient"], strict=True))
    wrong = sorted(told - set(allowed))
    if wrong:
        named = [f"{s} (patient {patient.get(s, '?')}, {role.get(s, 'in no role')})" for s in wrong]
        return f"used the sections {', '.join(named)}"
    left_out = sorted(set(allowed) - told)
    if exact and left_out:
        return f"leaves out the sections {', '.join(left_out)}"
    return ""


def _as_flag(column: pd.Series) -> np.ndarray:
    return column.map(lambda value: str(value).lower() in ("true", "1", "1.0")).to_numpy(bool)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") if names else "none"
