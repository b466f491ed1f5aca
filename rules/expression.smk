"""Expression: gene-expression profile and tumour map of each slide without spots.

Needs:  results/features/{slide}.h5 and a model folder (this study's, or the one `model:` names).
Writes: results/expression/{slide}.h5ad and .geojson
"""


rule predict_slide:
    input:
        slide="results/slides/{slide}.json",
        features="results/features/{slide}.h5",
        model=MODEL_FOLDER,
    output:
        expression="results/expression/{slide}.h5ad",
        geojson="results/expression/{slide}.geojson",
        map=report(
            "results/expression/{slide}.png",
            caption="../report/expression.rst",
            category="05 Maps",
            labels={"slide": "{slide}", "figure": "predicted maps"},
        ),
    log:
        "logs/predict_slide/{slide}.log",
    benchmark:
        "benchmarks/predict_slide/{slide}.tsv"
    conda:
        "../envs/torch.yaml"
    resources:
        gpu=1,
        mem_mb=4000,
        runtime=60,
    params:
        code=code_digest("predict_slide.py"),
    message:
        "Predict the expression of slide {wildcards.slide}"
    script:
        "../workflow_scripts/predict_slide.py"
