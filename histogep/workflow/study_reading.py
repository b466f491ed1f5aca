"""Read a study: its settings, the files that it names and its sheets, all checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from histogep.errors import InputError
from histogep.problems import Problems
from histogep.study import clinical, encoder_choices, model_choices, settings, sheets
from histogep.workflow import study_checks
from histogep.workflow.study import References, Sheets, Study

SCHEMA = "config/schemas/config.schema.yaml"
#: Where the simulated study lies, which the workflow makes itself.
SIMULATED = "data/simulated/"


def read_study(
    config: Mapping[str, Any],
    *,
    configfiles: Sequence[str | Path],
    repository: str | Path,
    main_process: bool = True,
) -> Study:
    """Return a study with all that it names read and checked.

    Parameters
    ----------
    config
        The configuration as it was given; it is left as it is.
    configfiles
        The files that it came from: sheets are looked for beside them.
    repository
        Where the workflow lies: its schema, and the sheets of the default study.
    main_process
        False in a job, which trusts what the process that planned it has checked.

    Raises
    ------
    InputError
        All that is wrong with the settings, or else with the files and sheets, in one message.
    """
    for file in configfiles:
        settings.refuse_repeated_keys(file)
    complete = _complete(config, configfiles, Path(repository))
    problems = Problems()
    folders = (".", *(Path(file).parent for file in configfiles), repository)
    references = _references(complete, folders, problems)
    # What the readers warn of is printed once, by the process that plans.
    with study_checks.collected_warnings() as warnings:
        tables = _tables(complete, references, problems, main_process=main_process)
    if references.model is None:
        return Study.of_sheets(complete, references, tables, warnings=tuple(warnings))
    from histogep.deployment.folder import declared_settings, read_settings  # of such a study only

    # Its files are compared with their digest once, not again in every job.
    applied = (read_settings if main_process else declared_settings)(references.model)
    # A model that is applied brings its lattice and the precision of its features.
    encoders = encoder_choices.applied_encoders(applied, complete["encoders"])
    complete |= {"encoders": encoders, "lattice": applied["lattice"]}
    given = {"applied": applied, "warnings": tuple(warnings)}
    return Study.of_sheets(complete, references, tables, **given)


def _complete(
    config: Mapping[str, Any], configfiles: Sequence[str | Path], repository: Path
) -> dict[str, Any]:
    """Return the settings with every default of the schema, checked."""
    schema = yaml.safe_load((repository / SCHEMA).read_text(encoding="utf-8"))
    source = ", ".join(map(str, configfiles)) or "the configuration"
    complete = settings.complete_settings(dict(config), schema, source=source)
    settings.check_names(complete)
    chosen = {name: complete[name] for name in ("deploy", "encoders", "lattice")}
    model_choices.check_models(complete["models"], **chosen)
    encoder_choices.check_encoders(complete["encoders"])
    return complete


def _is_made(complete: Mapping[str, Any], file: str) -> bool:
    """Return whether the workflow makes a file, so that it cannot be read yet."""
    return complete["simulation"] is not None and file.startswith(SIMULATED)


def _references(
    complete: Mapping[str, Any], folders: tuple[str | Path, ...], problems: Problems
) -> References:
    """Return where the files are, apart from the settings, which are recorded as they were given."""

    def find(path: str | None, key: str) -> str | None:
        if path is None:
            return None
        path = path.replace("{data_root}", complete["data_root"] or "{data_root}")
        if _is_made(complete, path):
            return path
        return problems.run(sheets.locate, path, folders=folders, key=key, default=None)

    given = complete["references"]
    return References(
        gene_positions=find(given["gene_positions"], "references.gene_positions"),
        gene_sets={
            name: find(path, f"references.gene_sets.{name}")
            for name, path in given["gene_sets"].items()
        },
        patients=find(complete["patients"], "patients"),
        measured={
            cohort: {
                "measured": find(entry["expression"], f"measured.{cohort}"),
                "patients": find(entry["patients"] or complete["patients"], f"measured.{cohort}"),
            }
            for cohort, entry in complete["measured"].items()
        },
        model=find(complete["model"], "model"),
        slides=find(complete["slides"], "slides"),
    )


def _tables(
    complete: Mapping[str, Any],
    references: References,
    problems: Problems,
    *,
    main_process: bool,
) -> Sheets:
    """Return the slide sheet and the clinical tables; refuse all that is wrong so far."""
    columns = complete["columns"]

    def made(file: str) -> bool:
        return _is_made(complete, file)

    slides = sheets.no_slides()
    if references.slides:
        slides = problems.run(
            sheets.read_slides,
            references.slides,
            data_root=complete["data_root"],
            made=made,
            columns=columns,
            default=slides,
        )

    def read_patients(path: str | None) -> pd.DataFrame | None:
        if path is None:
            return None
        endpoint = complete["summary"]["endpoint"]
        read = clinical.read_clinical
        return problems.run(read, path, endpoint=endpoint, columns=columns, default=None)

    patients = read_patients(references.patients) if complete["slides"] else None
    clinical_tables, measured = [], {}
    for cohort, files in references.measured.items():
        if cohort.lower() in {name.lower() for name in (*slides["cohort"], *slides.index)}:
            raise InputError(f"measured: {cohort!r} names slides too; rename the measured cohort")
        if files["patients"] is None and not problems.messages:
            raise InputError(f"measured: {cohort} has no clinical table; give it as `patients:`")
        same = files["patients"] == references.patients and patients is not None
        sheet = patients if same else read_patients(files["patients"])
        if sheet is None or files["measured"] is None:
            continue
        clinical_tables.append(sheet)
        join = study_checks.measured_patients, cohort, files["measured"], sheet
        measured[cohort] = problems.run(*join, default=sheet)
    if main_process:
        named = study_checks.StudyFiles(
            slides,
            complete,
            gene_sets={name: file for name, file in references.gene_sets.items() if file},
            gene_positions=references.gene_positions,
            measured={
                cohort: files["measured"]
                for cohort, files in references.measured.items()
                if files["measured"]
            },
            made=made,
        )
        problems.run(study_checks.check_study_files, named, default=None)
    problems.refuse()
    sheets.check_given_features(slides, complete["encoders"])
    study_checks.check_columns(columns, slides, patients, *clinical_tables)
    return Sheets(slides, patients, measured)
