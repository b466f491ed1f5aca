"""Expression: gene-expression profile and tumour map of each slide without spots, and a list of all.

Needs:  results/features/{slide}.h5 and a model folder (this study's, or the one `model:` names).
Writes: results/expression/{slide}.h5ad and .geojson, results/predicted_slides.tsv
"""


rule predict_slide:
    input:
        slide="results/slides/{slide}.json",
        features="results/features/{slide}.h5",
        keypoints="results/keypoints/{slide}.parquet",
        thumbnail="results/tiles/{slide}.thumbnail.jpg",
        model=STUDY.model_folder,
    output:
        expression="results/expression/{slide}.h5ad",
        geojson="results/expression/{slide}.geojson",
        map="results/expression/{slide}.png",
    log:
        "logs/predict_slide/{slide}.log",
    benchmark:
        "benchmarks/predict_slide/{slide}.tsv"
    conda:
        "../envs/torch.yaml"
    resources:
        gpu=1,
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        code=code_of("predict_slide.py"),
        model=STUDY.model_digest,
    message:
        "Predict the expression of slide {wildcards.slide}"
    script:
        "../workflow_scripts/predict_slide.py"


rule list_predicted:
    input:
        expression=usable(
            Study.predicted_files, pattern="results/expression/{slide}.h5ad"
        ),
    output:
        table="results/predicted_slides.tsv",
        page=report(
            "results/predicted_slides.html",
            caption="../report/predicted_slides.rst",
            category="05 Maps",
            labels={"slide": "all", "figure": "tumour and distance of each slide"},
        ),
    log:
        "logs/list_predicted.log",
    localrule: True
    conda:
        "../envs/slides.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        code=code_of("list_predicted.py"),
        slides=usable(Study.predicted_rows),
        tumour_threshold=SETTINGS["summary"]["tumour_threshold"],
    message:
        "List all predicted slides"
    script:
        "../workflow_scripts/list_predicted.py"
