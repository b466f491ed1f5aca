"""Patients: one row per patient of a cohort, and their survival.

Needs:  results/expression/{slide}.h5ad or a table of measured bulk expression; a clinical table.
Writes: results/patients/{cohort}.*, results/survival/{cohort}/
"""


rule summarise_patients:
    input:
        unpack(usable(Study.summary_files)),
        signatures=SIGNATURES,
    output:
        patients="results/patients/{cohort}.parquet",
        dropped="results/patients/{cohort}.dropped.tsv",
        counts="results/patients/{cohort}.counts.tsv",
        page=report(
            "results/patients/{cohort}.html",
            caption="../report/patients.rst",
            category="08 Survival",
            labels={"cohort": "{cohort}", "figure": "patients, and who was left out"},
        ),
    log:
        "logs/summarise_patients/{cohort}.log",
    conda:
        "../envs/outcome.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        code=code_of("summarise_patients.py"),
        slide_patients=usable(Study.predicted_patients),
        training=usable(Study.training_patients),
        scale=of_slide(Study.measured_scale),
        columns=SETTINGS["columns"],
        summary=of_slide(Study.summary_settings),
    message:
        "One row per patient of cohort {wildcards.cohort}"
    script:
        "../workflow_scripts/summarise_patients.py"


rule fit_survival:
    input:
        patients="results/patients/{cohort}.parquet",
        maps=of_slide(Study.map_scores, outcome="survival"),
    output:
        cox="results/survival/{cohort}/cox.tsv",
        concordance="results/survival/{cohort}/concordance.tsv",
        risk="results/survival/{cohort}/risk.tsv",
        log_rank="results/survival/{cohort}/log_rank.tsv",
        follow_up="results/survival/{cohort}/follow_up.tsv",
        multivariable="results/survival/{cohort}/multivariable.tsv",
        horizons="results/survival/{cohort}/horizons.tsv",
        calibration="results/survival/{cohort}/calibration.tsv",
        page=report(
            "results/survival/{cohort}/survival.html",
            caption="../report/survival.rst",
            category="08 Survival",
            labels={
                "cohort": "{cohort}",
                "figure": "image beside stage, hazard ratios, who is at high risk",
            },
        ),
        km=report(
            "results/survival/{cohort}/km.svg",
            caption="../report/survival.rst",
            category="08 Survival",
            labels={
                "cohort": "{cohort}",
                "figure": "Kaplan-Meier by out-of-fold risk",
            },
        ),
        forest=report(
            "results/survival/{cohort}/forest.svg",
            caption="../report/survival.rst",
            category="08 Survival",
            labels={"cohort": "{cohort}", "figure": "concordance and hazard ratios"},
        ),
        adjusted=report(
            "results/survival/{cohort}/multivariable.svg",
            caption="../report/multivariable.rst",
            category="08 Survival",
            labels={
                "cohort": "{cohort}",
                "figure": "hazard ratios of clinic and image together",
            },
        ),
        at_horizons=report(
            "results/survival/{cohort}/horizons.svg",
            caption="../report/survival.rst",
            category="08 Survival",
            labels={"cohort": "{cohort}", "figure": "calibration at fixed times"},
        ),
    log:
        "logs/fit_survival/{cohort}.log",
    benchmark:
        "benchmarks/fit_survival/{cohort}.tsv"
    conda:
        "../envs/outcome.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        code=code_of("fit_survival.py"),
        survival=SETTINGS["survival"],
        seed=SETTINGS["seed"],
    message:
        "Survival of cohort {wildcards.cohort}"
    script:
        "../workflow_scripts/fit_survival.py"
