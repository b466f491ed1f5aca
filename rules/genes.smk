"""Genes: spatial variability per section, and the panel of each fold from its training sections.

Needs:  results/spots/{slide}.h5ad, results/folds/{study}.tsv
Writes: results/genes/sections/{slide}.tsv, results/genes/{study}/{fold}.tsv
"""


rule score_genes:
    input:
        spots="results/spots/{slide}.h5ad",
    output:
        genes="results/genes/sections/{slide}.tsv",
    log:
        "logs/score_genes/{slide}.log",
    benchmark:
        "benchmarks/score_genes/{slide}.tsv"
    conda:
        "../envs/spatial.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        code=code_of("score_genes.py"),
        genes=SETTINGS["genes"],
    message:
        "Moran's I of every gene of section {wildcards.slide}"
    script:
        "../workflow_scripts/score_genes.py"


rule select_genes:
    input:
        folds="results/folds/{study}.tsv",
        genes=of_sections("results/genes/sections/{slide}.tsv"),
        markers=MARKERS,
    output:
        panel="results/genes/{study}/{fold}.tsv",
        record="results/genes/{study}/{fold}.json",
    log:
        "logs/select_genes/{study}/{fold}.log",
    conda:
        "../envs/spatial.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 10 * attempt,
    params:
        code=code_of("select_genes.py"),
        genes=SETTINGS["genes"],
    message:
        "Choose the gene panel of fold {wildcards.fold}"
    script:
        "../workflow_scripts/select_genes.py"
