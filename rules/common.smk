"""The study of this run, what wildcards may be, and how rules ask the study for their inputs.

What a rule reads is said by the methods of `histogep.workflow.study.Study`. `of_slide(Study.image)` and
`usable(Study.targets)` are input functions: they call a method with the wildcards that it names.
"""

import re
import sys
from datetime import UTC, datetime
from inspect import signature
from pathlib import Path

from histogep.errors import InputError
from histogep.inputs.sheet_ids import ID_PATTERN
from histogep.workflow.lineage import record_run
from histogep.workflow.code import code_digest
from histogep.inputs.resources import digest_resource
from histogep.workflow.resolved import Given, open_study, write_resolved
from histogep.workflow.study import Study
from histogep.workflow.warnings_of_jobs import say_warnings
from snakemake.exceptions import WorkflowError

RUN_STARTED = datetime.now(UTC)
# Of this Snakefile, also where another one uses it as a module.
REPOSITORY = Path(workflow.current_basedir.get_path_or_uri(secret_free=True)).parent


# A study of one's own never inherits from the default study, whose settings are those of a
# simulation: defaults come from the schema alone.
if not (config or workflow.config_settings.configfiles):

    configfile: REPOSITORY / "config/config.yaml"


try:
    GIVEN = Given(config, workflow.config_settings.configfiles, REPOSITORY)
    STUDY = open_study(GIVEN, main_process=workflow.is_main_process)
    if workflow.is_main_process:
        # Whatever names a slide wrongly is refused now, not after the last one has been encoded.
        STUDY.finished()
except InputError as error:
    raise WorkflowError(str(error)) from None

SETTINGS = STUDY.settings
GENE_POSITIONS = STUDY.references.gene_positions or []
# Copies, so that no rule's input depends on where the repository lies (rule copy_resource).
MARKERS = "results/resources/markers.tsv"
SIGNATURES = "results/resources/signatures.yaml"


def one_of(names):
    """Return a wildcard constraint that matches these names and no other."""
    return "|".join(re.escape(name) for name in names) or "$.^"


wildcard_constraints:
    # Not the ids themselves: Snakemake carries a constraint in every file name of every job, and
    # the names of thousands of slides there make a plan take minutes. `Study.row` checks the id.
    slide=ID_PATTERN,
    cohort=one_of(STUDY.cohorts),
    study=one_of([STUDY.name]),
    fold=one_of(STUDY.folds),
    model=one_of(SETTINGS["models"]),
    encoder=one_of(STUDY.exported_encoders),
    outcome="survival|response",
    contrast="tumour|survival|response|subtype",


def usable_study():
    """Return the study of the slides that can be used.

    With `on_bad_slide: skip` which those are is known only when all have been encoded, so that this
    waits for the checkpoint check_slides; with `stop` the whole plan is known from the start.
    """
    if not STUDY.skips_bad_slides:
        return STUDY
    return STUDY.of_usable_slides(checkpoints.check_slides.get().output.failed)


def asked(study, method, given):
    """Return an input function that calls a method of a study with the wildcards that it names."""
    wanted = signature(method).parameters.keys() - {"self"} - given.keys()

    def answer(wildcards):
        named = {name: getattr(wildcards, name) for name in wanted}
        try:
            return method(study(), **named, **given)
        except InputError as error:
            raise WorkflowError(str(error)) from None

    return answer


def of_slide(method, **given):
    """Return an input function over all slides of the sheet, which waits for nothing."""
    return asked(lambda: STUDY, method, given)


def usable(method, **given):
    """Return an input function over the usable slides, once it is known which those are."""
    return asked(usable_study, method, given)


def of_sections(pattern):
    """Return an input function that gives the files of the usable sections, one for each {slide}."""
    return usable(Study.section_files, pattern=pattern)


def of_folds(pattern):
    """Return an input function that gives the files of all folds, one for each {fold}."""
    return usable(Study.fold_files, pattern=pattern)


def after_check(wildcards):
    """Return no file, but only once it is known which slides can be used."""
    usable_study()
    return []


def code_of(script):
    """Return a parameter: the digest of a script and of all that it reaches; of a job's own only."""
    return lambda wildcards: code_digest(script)


def resource_content(wildcards):
    """Return the digest of a shipped reference: its content, not its place, decides a rerun."""
    return digest_resource(wildcards.name)


def print_lines(lines):
    """Print to standard error, where Snakemake says what it does."""
    print("".join(f"{line}\n" for line in lines), end="", file=sys.stderr)


def lift_job_rate():
    """Take Snakemake's default limit of jobs a second away; one that the user chose stays.

    With a limit the scheduler sets a timer at every look at its queue, and each timer makes it look
    again: after N jobs it looks N times a second. No option and no profile can leave the limit out.
    """
    limit = getattr(workflow.scheduling_settings, "max_jobs_per_timespan", None)
    if limit and (limit.max_jobs, limit.timespan) == (100, 1):
        workflow.scheduling_settings.max_jobs_per_timespan = None


def study_targets(wildcards):
    """Return the files that the whole study asks for."""
    # Here, since Snakemake gives its settings after it has parsed, and before it makes the scheduler.
    lift_job_rate()
    return usable(Study.targets)(wildcards)
