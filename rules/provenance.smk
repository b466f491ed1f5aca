"""Provenance: what ran, with which versions and settings, and what was left out and why.

Writes: results/provenance/
"""


rule record_software:
    output:
        versions=report(
            "results/provenance/software.html",
            caption="../report/provenance.rst",
            category="12 Provenance",
            labels={"table": "software"},
        ),
        table="results/provenance/software.tsv",
    log:
        "logs/record_software.log",
    localrule: True
    conda:
        "../envs/snakemake.yaml"
    params:
        code=code_of("record_software.py"),
    message:
        "Record software versions"
    script:
        "../workflow_scripts/record_software.py"


rule record_configuration:
    input:
        after_check,
    output:
        configuration="results/provenance/configuration.yaml",
        stages="results/provenance/stages.tsv",
        page=report(
            "results/provenance/stages.html",
            caption="../report/provenance.rst",
            category="12 Provenance",
            labels={"table": "stages that ran, and those left out"},
        ),
    log:
        "logs/record_configuration.log",
    localrule: True
    conda:
        "../envs/snakemake.yaml"
    params:
        code=code_of("record_configuration.py"),
        configuration=SETTINGS,
        stages=usable(Study.stage_rows),
    message:
        "Record the configuration"
    script:
        "../workflow_scripts/record_configuration.py"
