"""Maps: a small network that reads the predicted maps of a slide as risk or response.

Needs:  results/expression/{slide}.h5ad, results/patients/{cohort}.parquet; runs where `maps.outcomes` says so.
Writes: results/maps/{cohort}/{outcome}.tsv and .published.tsv, which fit_survival and predict_response judge
"""


rule train_map_net:
    input:
        patients="results/patients/{cohort}.parquet",
        expression=usable(Study.predicted_maps),
    output:
        scores="results/maps/{cohort}/{outcome}.tsv",
        published="results/maps/{cohort}/{outcome}.published.tsv",
    log:
        "logs/train_map_net/{cohort}/{outcome}.log",
    benchmark:
        "benchmarks/train_map_net/{cohort}/{outcome}.tsv"
    conda:
        "../envs/torch.yaml"
    resources:
        gpu=1,
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=lambda wildcards, attempt: 480 * attempt,
    params:
        code=code_of("train_map_net.py"),
        slide_patients=usable(Study.predicted_patients),
        sample_types=SETTINGS["summary"]["sample_types"],
        maps=of_slide(Study.map_settings),
        outcome_settings=of_slide(Study.outcome_settings),
        seed=SETTINGS["seed"],
    message:
        "Train a network on the maps of cohort {wildcards.cohort} for {wildcards.outcome}"
    script:
        "../workflow_scripts/train_map_net.py"
