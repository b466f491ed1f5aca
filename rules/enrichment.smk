"""Enrichment: GSEA on genes ranked by survival, response, subtype, or tumour against the rest.

Needs:  gene sets (GMT paths in the config), a ranking for the contrast, and its patients.
Writes: results/enrichment/{cohort}/{contrast}/
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
            category="8. Enrichment",
            labels={
                "cohort": "{cohort}",
                "contrast": "{contrast}",
                "figure": "gene sets",
            },
        ),
        running=report(
            "results/enrichment/{cohort}/{contrast}/running.svg",
            caption="../report/enrichment.rst",
            category="8. Enrichment",
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
        collections=GENE_SET_NAMES,
        enrichment=lookup("enrichment", within=config),
        gene_scale=config["survival"]["gene_scale"],
        seed=config["seed"],
    message:
        "Enrichment of {wildcards.contrast} in cohort {wildcards.cohort}"
    script:
        "../workflow_scripts/enrich_genes.py"
