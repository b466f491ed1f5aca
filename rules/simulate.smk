"""The default study: a simulated cohort with a planted truth.

Needs:  config key `simulation`, and sheets written by `python -m histogep.simulate.cli`.
Writes: data/simulated/: one pyramidal TIFF per slide, one Space Ranger folder per section, and
        the references (gene positions, gene sets) with the truth that was planted.
"""


# A slide with spots is a section; the constraint below names these few only.
ruleorder: simulate_section > simulate_slide


rule simulate_references:
    output:
        gene_positions="data/simulated/gene_positions.tsv",
        gene_sets="data/simulated/gene_sets.gmt",
        truth="data/simulated/truth.json",
    log:
        "logs/simulate_references.log",
    conda:
        "../envs/cnv.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=lambda wildcards, attempt: 10 * attempt,
    params:
        code=code_of("simulate_references.py"),
        simulation=SETTINGS["simulation"],
        seed=SETTINGS["seed"],
    message:
        "Plant the truth of the simulated cohort"
    script:
        "../workflow_scripts/simulate_references.py"


rule simulate_section:
    input:
        gene_positions="data/simulated/gene_positions.tsv",
        truth="data/simulated/truth.json",
    output:
        image="data/simulated/{slide}.tiff",
        counts="data/simulated/{slide}/filtered_feature_bc_matrix.h5",
        positions="data/simulated/{slide}/spatial/tissue_positions.csv",
        scalefactors="data/simulated/{slide}/spatial/scalefactors_json.json",
        hires="data/simulated/{slide}/spatial/tissue_hires_image.png",
        annotation="data/simulated/{slide}/annotation.tsv",
        truth="data/simulated/{slide}/truth.tsv",
    log:
        "logs/simulate_section/{slide}.log",
    wildcard_constraints:
        slide=one_of(STUDY.sections),
    conda:
        "../envs/slides.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 10 * attempt,
    params:
        code=code_of("simulate_section.py"),
        simulation=SETTINGS["simulation"],
        composition=of_slide(Study.composition),
        seed=SETTINGS["seed"],
    message:
        "Simulate section {wildcards.slide}"
    script:
        "../workflow_scripts/simulate_section.py"


rule simulate_slide:
    output:
        image="data/simulated/{slide}.tiff",
        truth="data/simulated/{slide}.truth.json",
    log:
        "logs/simulate_slide/{slide}.log",
    conda:
        "../envs/slides.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 10 * attempt,
    params:
        code=code_of("simulate_slide.py"),
        simulation=SETTINGS["simulation"],
        composition=of_slide(Study.composition),
        seed=SETTINGS["seed"],
    message:
        "Simulate slide {wildcards.slide}"
    script:
        "../workflow_scripts/simulate_slide.py"
