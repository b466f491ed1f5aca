"""From H&E slides to spatial gene expression, tumour maps and outcome: the entry point."""

import sys

from histogep import clusters, planning
from snakemake import benchmark as sampling
from snakemake.utils import min_version

min_version("9.14")
planning.spare_planning(sys.modules)

# A look at a job's memory for `benchmark:` walks its whole address space and halts it meanwhile, up to
# .2 s where torch is loaded. Twice a second that took a tenth of the default study's time. The log of
# a job has its exact peak.
sampling.BENCHMARK_INTERVAL_SHORT = 2.0


report: "report/workflow.rst"


include: "rules/common.smk"
include: "rules/common_slides.smk"
include: "rules/common_model.smk"
include: "rules/simulate.smk"
include: "rules/slides.smk"
include: "rules/spots.smk"
include: "rules/genes.smk"
include: "rules/model.smk"
include: "rules/expression.smk"
include: "rules/cnv.smk"
include: "rules/maps.smk"
include: "rules/survival.smk"
include: "rules/response.smk"
include: "rules/enrichment.smk"
include: "rules/provenance.smk"


if workflow.is_main_process:
    for line in (*NOTES, *STAGES.left_out(), *STAGES.leftovers(Path("."))):
        print(line, file=sys.stderr)


onstart:
    slurm = sys.modules.get("snakemake_executor_plugin_slurm")
    clusters.mend_at_start(workflow.scheduler, slurm)


onsuccess:
    record_run()


onerror:
    record_run()


rule all:
    default_target: True
    input:
        study_targets,
