"""Enrichment: GSEA on genes ranked by survival, response, subtype, or tumour against the rest.

Needs:  gene sets (GMT paths in the config), a ranking for the contrast, and its patients.
Writes: results/enrichment/{cohort}/{contrast}/; with enrichment.activity also results/activity/{cohort}.*
"""


rule enrich_genes:
    input:
        unpack(ranking_inputs),
        gene_sets=GENE_SETS,
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
        mem_mb=4000,
        runtime=60,
    params:
        code=code_digest("enrich_genes.py"),
        training_patients=config["summary"]["training_patients"],
        slides=ranking_slide_ids,
        slide_patients=ranking_patient_ids,
        collections=GENE_SET_NAMES,
        enrichment=enrichment_settings,
        ranking=ranking_settings,
        seed=config["seed"],
    message:
        "Enrichment of {wildcards.contrast} in cohort {wildcards.cohort}"
    script:
        "../workflow_scripts/enrich_genes.py"


rule score_activity:
    input:
        slides=activity_slides,
        gene_sets=GENE_SETS,
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
        mem_mb=8000,
        runtime=60,
    params:
        code=code_digest("score_activity.py"),
        training_patients=config["summary"]["training_patients"],
        slides=activity_slide_ids,
        slide_patients=activity_patient_ids,
        collections=GENE_SET_NAMES,
        enrichment=chosen("enrichment", "min_size", "max_size"),
        tumour_threshold=config["summary"]["tumour_threshold"],
        seed=config["seed"],
    message:
        "Activity of the gene sets in every tile of cohort {wildcards.cohort}"
    script:
        "../workflow_scripts/score_activity.py"
