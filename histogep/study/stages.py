"""Decide which stages a study runs from its inputs, and give the reason for those left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histogep.errors import InputError
from histogep.inputs.barcodes import patient_key, patient_of
from histogep.inputs.patient_joins import join_ids

if TYPE_CHECKING:
    import pandas as pd

#: Fewest patients for which a model of an outcome is fitted.
MIN_PATIENTS = 10
#: Survival needs this many events (and one for each fold), response this many of each kind.
MIN_EVENTS = 3
MIN_CLASS = 3
#: Outputs of the stages that may be left out when the sheets change.
_WRITES = {
    "expression": "results/predicted_slides.tsv",
    "cnv": "results/cnv/{cohort}/subtypes.tsv",
    "neighbourhoods": "results/neighbourhoods/{cohort}/slides.tsv",
    "patients": "results/patients/{cohort}.parquet",
    "survival": "results/survival/{cohort}",
    "response": "results/response/{cohort}",
    "enrichment": "results/enrichment/{cohort}",
    "activity": "results/activity/{cohort}.tsv",
}
_NO_MAP = "the model folder has no tumour map, and there is no outcome to rank genes by"
_ONLY_TRAINED = "the model was trained on every patient with a slide to predict"
_ONLY_SPOTS = (
    "no slides without spots (predictions for its training patients do not test the model)"
)


@dataclass(frozen=True)
class Stage:
    """One stage of a study (of one of its cohorts where `cohort` is given)."""

    name: str
    cohort: str
    reason: str
    targets: tuple[str, ...] = ()
    #: Inputs that it does not use, or uses otherwise than requested; "" for none.
    note: str = ""

    @property
    def runs(self) -> bool:
        """Whether the stage runs."""
        return bool(self.targets)


@dataclass(frozen=True)
class Stages:
    """All stages of a study, those left out included."""

    stages: tuple[Stage, ...] = field(default_factory=tuple)

    def targets(self) -> list[str]:
        """Return the files that the whole study asks for."""
        return [target for stage in self.stages for target in stage.targets]

    def of(self, name: str) -> list[str]:
        """Return the files that one stage asks for, over all cohorts."""
        return [target for stage in self.stages if stage.name == name for target in stage.targets]

    def runs(self, name: str, cohort: str = "") -> bool:
        """Return whether a stage runs (in a cohort)."""
        return any(
            stage.runs for stage in self.stages if stage.name == name and stage.cohort == cohort
        )

    def cohorts(self, name: str) -> list[str]:
        """Return the cohorts in which a stage runs."""
        return [stage.cohort for stage in self.stages if stage.name == name and stage.runs]

    def left_out(self) -> list[str]:
        """Return one line for each reason why stages do not run, with the stages and cohorts."""
        named: dict[str, list[str]] = {}
        for stage in self.stages:
            # Training or applying a model is the user's choice: neither counts as left out.
            if not stage.runs and stage.name != "model":
                name = stage.name + (f" ({stage.cohort})" if stage.cohort else "")
                named.setdefault(stage.reason, []).append(name)
        lines = [f"left out: {', '.join(names)}: {reason}" for reason, names in named.items()]
        return lines + [f"left out: {stage.note}" for stage in self.stages if stage.note]

    def leftovers(self, folder: Path) -> list[str]:
        """Return one line for each result in a folder of a stage that does not run."""
        planned = {
            _WRITES[stage.name].format(cohort=stage.cohort)
            for stage in self.stages
            if stage.runs and stage.name in _WRITES
        }
        there = {
            found.relative_to(folder).as_posix()
            for pattern in _WRITES.values()
            for found in folder.glob(pattern.format(cohort="*"))
        }
        # Also of cohorts that are no longer in the sheet, of which there is no stage.
        return [
            f"{path}: from an earlier run, not part of this one: delete it, or give what its stage lacks"
            for path in sorted(there - planned)
        ]

    def rows(self) -> list[dict[str, str]]:
        """Return one plain row per stage, for the report."""
        return [
            {
                "stage": stage.name,
                "cohort": stage.cohort,
                "state": "ran" if stage.runs else "left out",
                "reason": stage.reason,
            }
            for stage in self.stages
        ]


def plan_stages(
    config: Mapping[str, Any],
    slides: pd.DataFrame,
    patients: pd.DataFrame | None,
    measured: Mapping[str, pd.DataFrame] | None = None,
    *,
    applied_model: Mapping[str, Any] | None = None,
) -> Stages:
    """Return the stages that a study runs.

    Parameters
    ----------
    config
        The complete settings.
    slides
        The slide sheet (`histogep.study.sheets.read_slides`).
    patients
        The patient sheet, or None.
    measured
        Cohort with measured bulk expression -> the rows of its clinical table that have a sample.
    applied_model
        The settings of the model folder that `model` names, where it names one.

    Raises
    ------
    InputError
        When nothing can run: neither a slide nor a measured cohort; slides with neither sections
        to train on nor a model to apply; sections of fewer patients than held-out evaluation needs;
        a patient sheet that names no patient of the slide sheet; an outcome that asks for
        neighbourhoods which are not described.
    """
    study = config["study"]
    applied = config["model"] is not None
    described_at_all = config.get("neighbourhoods", {}).get("run", False)
    for outcome in ("survival", "response"):
        if config[outcome].get("neighbourhoods") and not described_at_all:
            raise InputError(
                f"{outcome}.neighbourhoods is true, but neighbourhoods.run is false: change one of them"
            )
    has_spots = (slides["counts"] != "") & (not applied)
    sections, to_predict = slides.index[has_spots], slides.index[~has_spots]
    planned: list[Stage] = []

    def plan(name: str, targets: list[str], reason: str, cohort: str = "", note: str = "") -> None:
        planned.append(Stage(name, cohort, reason, tuple(targets), note))

    if not len(slides) and not measured:
        raise InputError(
            "there is nothing to work on: give a slide sheet as `slides:`, cohorts with bulk "
            "expression as `measured:`, or both"
        )
    if patients is not None and len(slides) and not measured:
        _refuse_other_ids(slides, patients)
    if not len(slides):
        plan("model", [], "no slides: nothing to train on")
    elif not applied:
        n_patients = slides.loc[sections, "patient"].nunique()
        if n_patients < 2:
            raise InputError(
                f"sections of {n_patients} patient(s): at least 2 are needed to train, since every "
                "score is held out by patient. Give `counts` of more patients in the slide sheet, "
                "or a trained model folder as `model:` in the configuration"
            )
        plan(
            "model",
            [f"results/evaluation/{study}/scorecards.tsv", f"results/model/{study}"],
            f"{len(sections)} sections of {n_patients} patients",
            note=_fewer_folds(config["folds"], n_patients, len(sections)),
        )
        annotated = [slide for slide in sections if slides.loc[slide, "labels"]]
        plan(
            "label check",
            [f"results/evaluation/{study}/labels.tsv"] if annotated else [],
            f"annotated: {', '.join(annotated)}" if annotated else "no section is annotated",
        )
    else:
        plan("model", [], f"the model folder {config['model']} is applied as it is")
    listed = ["results/predicted_slides.tsv"] if len(to_predict) else []
    plan(
        "expression",
        [f"results/expression/{slide}.h5ad" for slide in to_predict] + listed,
        f"{len(to_predict)} slides without spots"
        if len(to_predict)
        else ("every slide has spots" if len(slides) else "no slides: nothing to predict"),
    )

    def plan_outcomes(cohort: str, known: pd.DataFrame | None, unfit: str) -> list[str]:
        planned_outcomes = []
        for outcome, column, target in (
            ("survival", "time", "cox"),
            ("response", "response", "performance"),
        ):
            allowed, reason = _allows(column, known, unfit, folds=config[outcome]["folds"])
            targets = [f"results/{outcome}/{cohort}/{target}.tsv"] if allowed else []
            plan(outcome, targets, reason, cohort)
            if allowed:
                planned_outcomes.append(outcome)
        return planned_outcomes

    def plan_enrichment(
        cohort: str, contrasts: list[str], nothing: str = "no outcome to rank genes by"
    ) -> None:
        if not gene_sets:
            plan("enrichment", [], "references.gene_sets is empty", cohort)
        elif not contrasts:
            plan("enrichment", [], nothing, cohort)
        else:
            targets = [f"results/enrichment/{cohort}/{name}/gsea.tsv" for name in contrasts]
            plan("enrichment", targets, f"gene sets: {', '.join(gene_sets)}", cohort)

    has_positions = config["references"]["gene_positions"] is not None
    known = config["models"] if applied_model is None else applied_model["models"]
    extended = known.get("extended" if applied else config["deploy"]["extended"], {})
    has_extended = extended.get("kind") == "ridge"
    if not applied:
        reason = "predicted is compared with measured copy number in held-out patients"
        if not has_positions:
            reason = "references.gene_positions is not given"
        elif not has_extended:
            reason = "deploy.extended names no ridge"
        compared = has_positions and has_extended
        plan("cnv agreement", [f"results/cnv/{study}/agreement.tsv"] if compared else [], reason)
    gene_sets = config["references"]["gene_sets"]
    subtype = config.get("enrichment", {}).get("subtype")
    activity = config.get("enrichment", {}).get("activity", False)
    excluded: set[str] = set()
    if config.get("summary", {}).get("training_patients", "exclude") == "exclude":
        excluded = set(map(patient_key, trained_on(slides.loc[sections, "patient"], applied_model)))
    for cohort, members in slides.groupby("cohort"):
        predicted = members.index.intersection(to_predict)
        reason = "references.gene_positions is given"
        profiled = has_positions and (has_extended or not len(predicted))
        if not has_positions:
            plan("cnv", [], "references.gene_positions is not given", cohort)
        elif not profiled:
            what = "the model folder has" if applied else "deploy.extended names"
            reason = (
                f"{what} no ridge of the extended panel, from which slides without spots need it"
            )
            plan("cnv", [], reason, cohort)
        else:
            plan("cnv", [f"results/cnv/{cohort}/subtypes.tsv"], reason, cohort)

        mapped = applied_model is None or "tumour" in applied_model.get("models", ())
        described = len(members) if mapped else len(members.index.intersection(sections))
        target, reason = [f"results/neighbourhoods/{cohort}/slides.tsv"], f"{described} slides"
        if not described_at_all:
            target, reason = [], "neighbourhoods.run is false"
        elif not described:
            target, reason = [], "the model folder has no tumour map"
        plan("neighbourhoods", target, reason, cohort)

        unfit = "" if len(predicted) else _ONLY_SPOTS
        if excluded:
            # Predictions for the model's own training patients are not out of sample.
            new = [s for s in predicted if patient_key(members.loc[s, "patient"]) not in excluded]
            unfit = unfit or ("" if new else _ONLY_TRAINED)
            predicted = members.index.intersection(new)
        measurable = bool(set(members.index) & set(sections)) or (len(predicted) and mapped)
        contrasts = ["tumour"] if measurable else []
        known = _outcomes(members.loc[predicted], patients)
        ids = sorted(set(map(patient_of, members.loc[predicted, "patient"])))
        absent = [] if known is None else [name for name in ids if name not in known.index]
        listed = [] if patients is None else list(patients.index)
        if known is not None and absent and len(absent) == len(ids):
            reason = f"the patients sheet names none of its {len(ids)} patients, such as {ids[0]}"
            if hint := join_ids(ids, listed).hint:
                reason += f"; {hint}"
            plan("patients", [], reason, cohort)
            unfit = unfit or reason
        elif known is not None and len(predicted) and not _any_outcome(known):
            plan("patients", [], "no patient has an outcome in the patients sheet", cohort)
        elif known is not None and len(predicted):
            reason = f"{len(known)} patients with slides to predict are in the patients sheet"
            note = ""
            if absent:
                met = join_ids(ids, listed)
                reason += f", {len(absent)} are not: {_some(absent)}"
                reason += f" ({100 * met.share:.0f} % matched{f'; {met.hint}' if met.hint else ''})"
                note = f"patients ({cohort}): not in the patients sheet: {_some(absent)}"
                if met.few:
                    note += f": only {met.n_matched} of {met.n} are" + (
                        f"; {met.hint}" if met.hint else ""
                    )
            plan("patients", [f"results/patients/{cohort}.parquet"], reason, cohort, note)
        contrasts += plan_outcomes(cohort, known, unfit)
        summarised = any(s.name == "patients" and s.cohort == cohort and s.runs for s in planned)
        if subtype is not None and profiled and summarised:
            contrasts.append("subtype")
        nothing = "no outcome to rank genes by" if mapped else _NO_MAP
        plan_enrichment(cohort, contrasts, nothing)
        if activity and gene_sets:
            plan("activity", [f"results/activity/{cohort}.tsv"], "enrichment.activity", cohort)
    for cohort, rows in sorted((measured or {}).items()):
        plan("cnv", [], "measured bulk expression: there is no slide to infer it from", cohort)
        plan("neighbourhoods", [], "measured bulk expression: there is no slide to map", cohort)
        plan(
            "patients",
            [f"results/patients/{cohort}.parquet"],
            f"measured bulk expression of {rows.attrs.get('n_samples', len(rows))} patients, "
            f"{len(rows)} of them in the clinical table",
            cohort,
        )
        plan_enrichment(cohort, plan_outcomes(cohort, rows, ""))
    scored = sorted(stage.cohort for stage in planned if stage.name == "response" and stage.runs)
    plan(
        "transfer",
        [f"results/transfer/{study}/performance.tsv"] if len(scored) > 1 else [],
        f"response is known in {', '.join(scored)}"
        if len(scored) > 1
        else f"response is known in {len(scored)} cohorts, a transfer needs 2",
    )
    plan(
        "provenance",
        ["results/provenance/software.tsv", "results/provenance/stages.tsv"],
        "always",
    )
    return Stages(tuple(planned))


def trained_on(patients: Iterable[str], applied_model: Mapping[str, Any] | None) -> list[str]:
    """Return the patients that a study's model was fitted or chosen on, sorted.

    Parameters
    ----------
    patients
        Those of the sections that the study trains on.
    applied_model
        The settings of the model folder that is applied instead; None where none is.
    """
    seen = set(map(patient_of, patients))
    for model in ({} if applied_model is None else applied_model["models"]).values():
        for role in ("train", "validation"):
            seen |= {patient_of(str(name)) for name in model.get(f"{role}_patients", ())}
    return sorted(seen)


def _refuse_other_ids(slides: pd.DataFrame, patients: pd.DataFrame) -> None:
    """Raise InputError if the patient sheet has other patients, or spells their ids differently."""
    ids = sorted(set(map(patient_of, slides["patient"])))
    met = join_ids(ids, patients.index)
    if met.near_nothing:
        named = "none" if not met.n_matched else f"only {met.n_matched}"
        raise InputError(
            f"patients: the sheet names {named} of the {len(ids)} patients of the slide sheet. It has "
            f"{_some(list(patients.index))}; the slides are of {_some(ids)}. The ids must be the "
            "same text" + (f"; {met.hint}" if met.hint else "")
        )


def _fewer_folds(folds: Mapping[str, Any], n_patients: int, n_sections: int) -> str:
    """Return which number of folds exceeds what there is to hold out, "" for none."""
    asked = (("patient_cv", n_patients, "patients"), ("published", n_sections, "sections"))
    fewer = [
        f"folds.{name} is {folds[name]}, but there are {n} {what} to hold out: {n} folds"
        for name, n, what in asked
        if isinstance(folds.get(name), int) and folds[name] > n
    ]
    return "; ".join(fewer)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _outcomes(members: pd.DataFrame, patients: pd.DataFrame | None) -> pd.DataFrame | None:
    """Return the rows of the patient sheet that have a slide to predict in the cohort."""
    if patients is None:
        return None
    ids = {patient_of(patient) for patient in members["patient"]}
    return patients.loc[patients.index.intersection(sorted(ids))]


def _any_outcome(known: pd.DataFrame) -> bool:
    """Return whether a survival time or a response is known for anyone."""
    columns = [column for column in ("time", "response") if column in known]
    return bool(known[columns].notna().any(axis=None))


def _allows(column: str, known: pd.DataFrame | None, unfit: str, *, folds: int) -> tuple[bool, str]:
    """Return whether an outcome can be analysed in a cohort, and the reason in words."""
    if known is None:
        return False, "no patients sheet"
    if unfit:
        return False, unfit
    if column not in known:
        return False, f"the patients sheet has no column {column}"
    n = int(known[column].notna().sum())
    if n < MIN_PATIENTS:
        return False, f"{column} is known of {n} patients, at least {MIN_PATIENTS} are needed"
    if column == "time":
        events, least = int((known["event"] == 1).sum()), max(MIN_EVENTS, folds)
        if events < least:
            return False, f"{events} patients have an event, at least {least} are needed"
    else:
        responders = int((known[column] == 1).sum())
        fewer = min(responders, n - responders)
        if fewer < MIN_CLASS:
            return False, (
                f"{responders} of {n} patients responded, at least {MIN_CLASS} of each kind "
                "are needed"
            )
    return True, f"{column} is known of {n} patients"
