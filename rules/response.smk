"""Response to immunotherapy, by patient, and from one cohort to another.

Needs:  results/patients/{cohort}.parquet with `response`.
Writes: results/response/{cohort}/, results/transfer/{study}/
"""


rule predict_response:
    input:
        patients="results/patients/{cohort}.parquet",
        maps=of_slide(Study.map_scores, outcome="response"),
    output:
        performance="results/response/{cohort}/performance.tsv",
        scores="results/response/{cohort}/scores.tsv",
        genes="results/response/{cohort}/genes.tsv",
        page=report(
            "results/response/{cohort}/response.html",
            caption="../report/response.rst",
            category="09 Response",
            labels={"cohort": "{cohort}", "figure": "models, signatures and patients"},
        ),
        roc=report(
            "results/response/{cohort}/roc.svg",
            caption="../report/response.rst",
            category="09 Response",
            labels={"cohort": "{cohort}", "figure": "ROC of out-of-fold scores"},
        ),
    log:
        "logs/predict_response/{cohort}.log",
    benchmark:
        "benchmarks/predict_response/{cohort}.tsv"
    conda:
        "../envs/outcome.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        code=code_of("predict_response.py"),
        response=SETTINGS["response"],
        seed=SETTINGS["seed"],
    message:
        "Response of cohort {wildcards.cohort}"
    script:
        "../workflow_scripts/predict_response.py"


rule transfer_response:
    input:
        patients=usable(Study.response_patients),
    output:
        performance="results/transfer/{study}/performance.tsv",
        scores="results/transfer/{study}/scores.tsv",
        figure=report(
            "results/transfer/{study}/auroc.svg",
            caption="../report/transfer.rst",
            category="09 Response",
            labels={
                "cohort": "all",
                "figure": "trained on one cohort, tested on another",
            },
        ),
    log:
        "logs/transfer_response/{study}.log",
    conda:
        "../envs/outcome.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        code=code_of("transfer_response.py"),
        response=STUDY.chosen(
            "response", "inner_folds", "penalties", "components", "bootstraps"
        ),
        seed=SETTINGS["seed"],
    message:
        "Response from one cohort to another in study {wildcards.study}"
    script:
        "../workflow_scripts/transfer_response.py"
