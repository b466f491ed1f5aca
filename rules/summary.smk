"""Summary: what the study was asked, what may be relied on, and all that its jobs warned of.

Needs:  every file that the study asks for.
Writes: results/warnings.tsv
"""


rule summarise_study:
    input:
        finished=usable(Study.finished),
    output:
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
        planned=STUDY.warnings,
    message:
        "Summarise the study"
    script:
        "../workflow_scripts/summarise_study.py"
