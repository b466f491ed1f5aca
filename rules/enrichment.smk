"""Enrichment: GSEA on genes ranked by survival, response, subtype, or tumour against the rest.

Needs:  gene sets (GMT paths in the config), a ranking for the contrast, and its patients.
Writes: results/enrichment/{cohort}/{contrast}/; with enrichment.activity also results/activity/{cohort}.*
"""


rule enrich_genes:
    input:
        unpack(usable(Study.ranking_files)),
        gene_sets=list(STUDY.references.gene_sets.values()),
    output:
        ranking="results/enrichment/{cohort}/{contrast}/ranking.tsv",
        gsea="results/enrichment/{cohort}/{contrast}/gsea.tsv",
        dotplot=report(
            "results/enrichment/{cohort}/{contrast}/gsea.svg",
            caption="../report/enrichment.rst",
            category="10 Enrichment",
            labels={
                "cohort": "{cohort}",
                "contrast": "{contrast}",
                "figure": "gene sets",
            },
        ),
        running=report(
            "results/enrichment/{cohort}/{contrast}/running.svg",
            caption="../report/enrichment.rst",
            category="10 Enrichment",
            labels={
                "cohort": "{cohort}",
                "contrast": "{contrast}",
                "figure": "running sums",
            },
        ),
    log:
        "logs/enrich_genes/{cohort}/{contrast}.log",
    benchmark:
        "benchmarks/enrich_genes/{cohort}/{contrast}.tsv"
    conda:
        "../envs/outcome.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        code=code_of("enrich_genes.py"),
        training_patients=SETTINGS["summary"]["training_patients"],
        slide_patients=usable(Study.ranking_patients),
        collections=STUDY.references.gene_sets,
        enrichment=of_slide(Study.enrichment_settings),
        ranking=usable(Study.ranking_settings),
        seed=SETTINGS["seed"],
    message:
        "Enrichment of {wildcards.contrast} in cohort {wildcards.cohort}"
    script:
        "../workflow_scripts/enrich_genes.py"


rule score_activity:
    input:
        slides=usable(Study.activity_files),
        gene_sets=list(STUDY.references.gene_sets.values()),
    output:
        table="results/activity/{cohort}.tsv",
        maps="results/activity/{cohort}.h5ad",
        figure=report(
            "results/activity/{cohort}.png",
            caption="../report/activity.rst",
            category="10 Enrichment",
            labels={
                "cohort": "{cohort}",
                "contrast": "activity",
                "figure": "maps of gene-set activity",
            },
        ),
    log:
        "logs/score_activity/{cohort}.log",
    benchmark:
        "benchmarks/score_activity/{cohort}.tsv"
    conda:
        "../envs/outcome.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=lambda wildcards, input, attempt: (60 + len(input.slides)) * attempt,
    params:
        code=code_of("score_activity.py"),
        training_patients=SETTINGS["summary"]["training_patients"],
        slide_patients=usable(Study.activity_patients),
        collections=STUDY.references.gene_sets,
        enrichment=STUDY.chosen("enrichment", "min_size", "max_size"),
        tumour_threshold=SETTINGS["summary"]["tumour_threshold"],
        seed=SETTINGS["seed"],
    message:
        "Activity of the gene sets in every tile of cohort {wildcards.cohort}"
    script:
        "../workflow_scripts/score_activity.py"
