"""Copy number: per slide from measured counts or from predicted expression, then over a cohort.

Needs:  gene positions; spots with labels, or features with a model folder.
Writes: results/cnv/{slide}.h5ad, .arms.tsv and .markers.tsv, results/cnv/{cohort}/, and how predicted
        agree with measured profiles in held-out patients, results/cnv/{study}/agreement.tsv
"""


rule infer_cnv:
    input:
        unpack(usable(Study.cnv_files)),
        gene_positions=GENE_POSITIONS,
    output:
        cnv="results/cnv/{slide}.h5ad",
        arms="results/cnv/{slide}.arms.tsv",
        markers="results/cnv/{slide}.markers.tsv",
        heatmap="results/cnv/{slide}.png",
    log:
        "logs/infer_cnv/{slide}.log",
    benchmark:
        "benchmarks/infer_cnv/{slide}.tsv"
    conda:
        "../envs/cnv.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        code=code_of("infer_cnv.py"),
        model=STUDY.model_digest,
        cnv=SETTINGS["cnv"],
        seed=SETTINGS["seed"],
    message:
        "Infer the copy number of slide {wildcards.slide}"
    script:
        "../workflow_scripts/infer_cnv.py"


rule subtype_tumours:
    input:
        cnv=usable(Study.cohort_files, pattern="results/cnv/{slide}.h5ad"),
    output:
        subtypes="results/cnv/{cohort}/subtypes.tsv",
        patients="results/cnv/{cohort}/patients.tsv",
        controls="results/cnv/{cohort}/controls.tsv",
        markers="results/cnv/{cohort}/markers.tsv",
        controls_page=report(
            "results/cnv/{cohort}/controls.html",
            caption="../report/subtypes.rst",
            category="07 Copy number",
            labels={"of": "{cohort}", "figure": "controls: what may be called so"},
        ),
        page=report(
            "results/cnv/{cohort}/markers.html",
            caption="../report/subtypes.rst",
            category="07 Copy number",
            labels={"of": "{cohort}", "figure": "marker genes of the subtypes"},
        ),
        heatmap=report(
            "results/cnv/{cohort}/subtypes.png",
            caption="../report/subtypes.rst",
            category="07 Copy number",
            labels={"of": "{cohort}", "figure": "subtypes"},
        ),
        maps=report(
            "results/cnv/{cohort}/subtype_maps.png",
            caption="../report/subtypes.rst",
            category="07 Copy number",
            labels={"of": "{cohort}", "figure": "subtypes on the tissue"},
        ),
    log:
        "logs/subtype_tumours/{cohort}.log",
    benchmark:
        "benchmarks/subtype_tumours/{cohort}.tsv"
    conda:
        "../envs/cnv.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        code=code_of("subtype_tumours.py"),
        patients=usable(Study.cohort_patients),
        cnv=SETTINGS["cnv"],
        sample_types=SETTINGS["summary"]["sample_types"],
        seed=SETTINGS["seed"],
    message:
        "Tumour subtypes of cohort {wildcards.cohort}"
    script:
        "../workflow_scripts/subtype_tumours.py"


rule compare_cnv:
    input:
        folds="results/folds/{study}.tsv",
        weights=usable(Study.extended_files, name="weights.safetensors"),
        settings=usable(Study.extended_files, name="settings.json"),
        verdict="results/evaluation/{study}/leakage.json",
        features=of_sections("results/features/{slide}.h5"),
        spots=of_sections("results/spots/{slide}.h5ad"),
        labels=of_sections("results/labels/{slide}.tsv"),
        cnv=of_sections("results/cnv/{slide}.h5ad"),
        gene_positions=GENE_POSITIONS,
    output:
        agreement="results/cnv/{study}/agreement.tsv",
        arms="results/cnv/{study}/agreement_arms.tsv",
        figure=report(
            "results/cnv/{study}/agreement.png",
            caption="../report/agreement.rst",
            category="07 Copy number",
            labels={
                "of": "all sections",
                "figure": "predicted against measured, held-out patients",
            },
        ),
    log:
        "logs/compare_cnv/{study}.log",
    benchmark:
        "benchmarks/compare_cnv/{study}.tsv"
    conda:
        "../envs/cnv.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        code=code_of("compare_cnv.py"),
        cnv=SETTINGS["cnv"],
        seed=SETTINGS["seed"],
    message:
        "Compare predicted with measured copy number in held-out patients"
    script:
        "../workflow_scripts/compare_cnv.py"
