"""From H&E slides to spatial gene expression, tumour maps and outcome: the entry point."""

import atexit

from snakemake.utils import min_version

min_version("9.14")


report: "report/workflow.rst"


include: "rules/common.smk"
include: "rules/simulate.smk"
include: "rules/slides.smk"
include: "rules/spots.smk"
include: "rules/genes.smk"
include: "rules/model.smk"
include: "rules/expression.smk"
include: "rules/cnv.smk"
include: "rules/neighbourhoods.smk"
include: "rules/maps.smk"
include: "rules/survival.smk"
include: "rules/response.smk"
include: "rules/enrichment.smk"
include: "rules/export.smk"
include: "rules/pages.smk"
include: "rules/provenance.smk"
include: "rules/summary.smk"


if workflow.is_main_process:
    warnings = [
        f"warning: {line}"
        for line in (*STUDY.warnings, *STUDY.stages.leftovers(Path(".")))
    ]
    notes = [*warnings, *STUDY.stages.left_out(), *STUDY.export_costs()]
    # The list of jobs of a dry run is long: what must not be missed stands below it.
    if workflow.dryrun:
        atexit.register(print_lines, notes)
    else:
        print_lines(notes)


onstart:
    # What this process has read, for its jobs.
    write_resolved(STUDY, GIVEN)


onsuccess:
    record_run()
    say_warnings(RUN_STARTED)


onerror:
    record_run()
    say_warnings(RUN_STARTED)


rule all:
    default_target: True
    input:
        study_targets,
    message:
        "The study is complete"
