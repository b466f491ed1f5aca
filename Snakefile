"""From H&E slides to spatial gene expression, tumour maps and outcome: the entry point."""

import gc
import sys

from histogep import clusters
from snakemake import benchmark as sampling
from snakemake.utils import min_version

# A plan is millions of small objects that all stay: looking for garbage among them again and again
# takes a sixth of the time of planning.
gc.set_threshold(200_000, 20, 100)

# A look at a job's memory for `benchmark:` walks its whole address space and halts it meanwhile, up to
# .2 s where torch is loaded. Twice a second that took a tenth of the default study's time. The log of
# a job has its exact peak.
sampling.BENCHMARK_INTERVAL_SHORT = 2.0

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
include: "rules/maps.smk"
include: "rules/survival.smk"
include: "rules/response.smk"
include: "rules/enrichment.smk"
include: "rules/provenance.smk"


onstart:
    # Snakemake (seen in 9.27) sets a timer after every look at the queue, and each timer makes it
    # look again: after N jobs there are N timers a second, and the scheduler takes a core for
    # itself. Without a rate limit it sets none. A limit that the user chose stays.
    limiter = getattr(workflow.scheduler, "job_rate_limiter", None)
    if limiter is not None and (limiter.max_jobs, limiter.timespan) == (100, 1):
        workflow.scheduler.job_rate_limiter = None
    clusters.remember_job_age(sys.modules.get("snakemake_executor_plugin_slurm"))


onsuccess:
    record_run()


onerror:
    record_run()


rule all:
    default_target: True
    input:
        study_targets,
