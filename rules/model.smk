"""Model: folds, training, held-out predictions, scorecards, leak audit, and the folder to deploy.

Needs:  features, spots, labels and gene scores of every section.
Writes: results/folds/{study}.tsv, results/models/{study}/{fold}/{model}/,
        results/predictions/{study}/{fold}/{model}.h5ad, results/evaluation/{study}/,
        results/model/{study}/ (self-contained: `model:` of another study may name it)
"""


rule compare_sections:
    input:
        keypoints=of_sections("results/keypoints/{slide}.parquet"),
        spots=of_sections("results/spots/{slide}.h5ad"),
    output:
        pairs="results/folds/{study}.copies.tsv",
    log:
        "logs/compare_sections/{study}.log",
    conda:
        "../envs/slides.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        code=code_of("compare_sections.py"),
        patients=usable(Study.section_patients),
        seed=SETTINGS["seed"],
    message:
        "Look for one section under two patients"
    script:
        "../workflow_scripts/compare_sections.py"


rule split_folds:
    input:
        after_check,
        # Before hours of training: one section under two patients stops the study here.
        copies="results/folds/{study}.copies.tsv",
    output:
        folds="results/folds/{study}.tsv",
    log:
        "logs/split_folds/{study}.log",
    localrule: True
    conda:
        "../envs/spatial.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=lambda wildcards, attempt: 10 * attempt,
    params:
        code=code_of("split_folds.py"),
        patients=usable(Study.section_patients),
        folds=SETTINGS["folds"],
        seed=SETTINGS["seed"],
    message:
        "Split the patients into folds"
    script:
        "../workflow_scripts/split_folds.py"


rule train_model:
    input:
        unpack(usable(Study.training_files)),
        folds="results/folds/{study}.tsv",
        panel="results/genes/{study}/{fold}.tsv",
        features=of_sections("results/features/{slide}.h5"),
        spots=of_sections("results/spots/{slide}.h5ad"),
        labels=of_sections("results/labels/{slide}.tsv"),
    output:
        weights="results/models/{study}/{fold}/{model}/weights.safetensors",
        settings="results/models/{study}/{fold}/{model}/settings.json",
        history="results/models/{study}/{fold}/{model}/history.tsv",
    log:
        "logs/train_model/{study}/{fold}/{model}.log",
        # Seconds are those of a machine, so they stand here and not among the results.
        epochs="logs/train_model/{study}/{fold}/{model}.epochs.tsv",
    benchmark:
        "benchmarks/train_model/{study}/{fold}/{model}.tsv"
    conda:
        "../envs/torch.yaml"
    resources:
        gpu=1,
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=lambda wildcards, attempt: 480 * attempt,
    params:
        code=code_of("train_model.py"),
        models=of_slide(Study.model_settings),
        lattice=SETTINGS["lattice"],
        published_grid=SETTINGS["folds"]["published_grid"],
        seed=SETTINGS["seed"],
    message:
        "Train {wildcards.model} on fold {wildcards.fold}"
    script:
        "../workflow_scripts/train_model.py"


rule predict_fold:
    input:
        folds="results/folds/{study}.tsv",
        weights="results/models/{study}/{fold}/{model}/weights.safetensors",
        settings="results/models/{study}/{fold}/{model}/settings.json",
        features=of_sections("results/features/{slide}.h5"),
        spots=of_sections("results/spots/{slide}.h5ad"),
        labels=of_sections("results/labels/{slide}.tsv"),
    output:
        predictions="results/predictions/{study}/{fold}/{model}.h5ad",
    log:
        "logs/predict_fold/{study}/{fold}/{model}.log",
    conda:
        "../envs/torch.yaml"
    resources:
        gpu=1,
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        code=code_of("predict_fold.py"),
    message:
        "Predict the held-out sections of fold {wildcards.fold} with {wildcards.model}"
    script:
        "../workflow_scripts/predict_fold.py"


rule audit_leakage:
    input:
        folds="results/folds/{study}.tsv",
        slides=of_sections("results/slides/{slide}.json"),
        copies="results/folds/{study}.copies.tsv",
        gene_scores=of_sections("results/genes/sections/{slide}.tsv"),
        markers=MARKERS,
        panels=of_folds("results/genes/{study}/{fold}.tsv"),
        records=of_folds("results/genes/{study}/{fold}.json"),
        settings=usable(Study.audited_settings),
    output:
        verdict="results/evaluation/{study}/leakage.json",
        page=report(
            "results/evaluation/{study}/leakage.html",
            caption="../report/leakage.rst",
            category="04 Scorecards",
            labels={"figure": "leak audit"},
        ),
    log:
        "logs/audit_leakage/{study}.log",
    conda:
        "../envs/spatial.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 10 * attempt,
    params:
        code=code_of("audit_leakage.py"),
        genes=SETTINGS["genes"],
    message:
        "Audit every fold for leaks"
    script:
        "../workflow_scripts/audit_leakage.py"


rule evaluate_model:
    input:
        verdict="results/evaluation/{study}/leakage.json",
        folds="results/folds/{study}.tsv",
        predictions=usable(Study.held_out_predictions),
        settings=usable(Study.held_out_settings),
        panels=of_folds("results/genes/{study}/{fold}.json"),
        spots=of_sections("results/spots/{slide}.h5ad"),
        labels=of_sections("results/labels/{slide}.tsv"),
    output:
        scorecards="results/evaluation/{study}/scorecards.tsv",
        genes="results/evaluation/{study}/genes.tsv",
        sections="results/evaluation/{study}/sections.tsv",
        tumour="results/evaluation/{study}/tumour.tsv",
        calibration="results/evaluation/{study}/calibration.tsv",
        registration="results/evaluation/{study}/registration.tsv",
        scorecards_page=report(
            "results/evaluation/{study}/scorecards.html",
            caption="../report/scorecards.rst",
            category="04 Scorecards",
            labels={"figure": "scorecards"},
        ),
        genes_page=report(
            "results/evaluation/{study}/genes.html",
            caption="../report/genes.rst",
            category="03 Genes",
            labels={"figure": "every gene"},
        ),
        genes_plot=report(
            "results/evaluation/{study}/genes.svg",
            caption="../report/genes.rst",
            category="03 Genes",
            labels={"figure": "genes against null and ceiling"},
        ),
        maps=report(
            "results/evaluation/{study}/maps.png",
            caption="../report/maps.rst",
            category="05 Maps",
            labels={"slide": "held out", "figure": "measured beside predicted"},
        ),
        tumour_plot=report(
            "results/evaluation/{study}/tumour.png",
            caption="../report/tumour.rst",
            category="06 Tumour",
            labels={"slide": "held out", "figure": "tumour maps and ROC"},
        ),
    log:
        "logs/evaluate_model/{study}.log",
    benchmark:
        "benchmarks/evaluate_model/{study}.tsv"
    conda:
        "../envs/spatial.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        code=code_of("evaluate_model.py"),
        evaluation=SETTINGS["evaluation"],
        deploy=SETTINGS["deploy"],
        seed=SETTINGS["seed"],
    message:
        "Scorecards with their nulls and ceilings"
    script:
        "../workflow_scripts/evaluate_model.py"


rule package_model:
    input:
        verdict="results/evaluation/{study}/leakage.json",
        calibration="results/evaluation/{study}/calibration.tsv",
        scorecards="results/evaluation/{study}/scorecards.tsv",
        panel="results/genes/{study}/all.tsv",
        fold_settings=usable(Study.held_out_settings),
        weights=collect(
            "results/models/{{study}}/all/{model}/weights.safetensors",
            model=SETTINGS["models"],
        ),
        settings=collect(
            "results/models/{{study}}/all/{model}/settings.json",
            model=SETTINGS["models"],
        ),
        slides=of_sections("results/slides/{slide}.json"),
        features=of_sections("results/features/{slide}.h5"),
        keypoints=of_sections("results/keypoints/{slide}.parquet"),
        labels=of_sections("results/labels/{slide}.tsv"),
    output:
        model=directory("results/model/{study}"),
    log:
        "logs/package_model/{study}.log",
    conda:
        "../envs/torch.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 10 * attempt,
    params:
        code=code_of("package_model.py"),
        patients=usable(Study.section_patients),
        lattice=SETTINGS["lattice"],
        deploy=SETTINGS["deploy"],
        seed=SETTINGS["seed"],
    message:
        "Pack the model folder that other studies can name"
    script:
        "../workflow_scripts/package_model.py"
