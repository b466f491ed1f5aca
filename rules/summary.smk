"""Summary: what the study was asked, what may be relied on, and all that its jobs warned of.

Needs:  every file that the study asks for.
Writes: results/summary.*, results/warnings.tsv
"""


rule summarise_study:
    input:
        unpack(usable(Study.summary_sources)),
    output:
        table="results/summary.tsv",
        summary="results/summary.json",
        # The report begins with it (report/workflow.rst).
        text="results/summary.rst",
        page=report(
            "results/summary.html",
            caption="../report/summary.rst",
            category="00 Answer",
            labels={"page": "what may be relied on"},
        ),
        warnings="results/warnings.tsv",
        warnings_page=report(
            "results/warnings.html",
            caption="../report/warnings.rst",
            category="00 Answer",
            labels={"page": "warnings"},
        ),
    log:
        "logs/summarise_study.log",
    localrule: True
    conda:
        "../envs/snakemake.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        code=code_of("summarise_study.py"),
        study=STUDY.name,
        planned=STUDY.warnings,
    message:
        "Say what may be relied on"
    script:
        "../workflow_scripts/summarise_study.py"
