"""Neighbourhoods: what lies beside what on measured and on predicted slides, and what that says of a patient.

Needs:  spots with labels, or a predicted slide with a tumour map; copy-number profiles where there are any.
Writes: results/neighbourhoods/{slide}.tsv, results/neighbourhoods/{cohort}/
"""


rule describe_neighbourhoods:
    input:
        unpack(usable(Study.neighbourhood_files)),
        markers=MARKERS,
    output:
        table="results/neighbourhoods/{slide}.tsv",
        figure="results/neighbourhoods/{slide}.png",
    log:
        "logs/describe_neighbourhoods/{slide}.log",
    benchmark:
        "benchmarks/describe_neighbourhoods/{slide}.tsv"
    conda:
        "../envs/spatial.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        code=code_of("describe_neighbourhoods.py"),
        neighbourhoods=STUDY.chosen(
            "neighbourhoods", "permutations", "most_places", "rings"
        ),
        tumour_threshold=of_slide(Study.neighbourhood_threshold),
        seed=SETTINGS["seed"],
    message:
        "What lies beside what on slide {wildcards.slide}"
    script:
        "../workflow_scripts/describe_neighbourhoods.py"


rule summarise_neighbourhoods:
    input:
        tables=usable(Study.described_files),
    output:
        slides="results/neighbourhoods/{cohort}/slides.tsv",
        patients="results/neighbourhoods/{cohort}/patients.tsv",
        page=report(
            "results/neighbourhoods/{cohort}/patients.html",
            caption="../report/neighbourhood_patients.rst",
            category="06 Tumour",
            labels={"slide": "{cohort}", "figure": "neighbourhoods of the cohort"},
        ),
    log:
        "logs/summarise_neighbourhoods/{cohort}.log",
    conda:
        "../envs/snakemake.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        code=code_of("summarise_neighbourhoods.py"),
        patients=usable(Study.described_patients),
        sample_types=SETTINGS["summary"]["sample_types"],
    message:
        "Neighbourhoods of cohort {wildcards.cohort}"
    script:
        "../workflow_scripts/summarise_neighbourhoods.py"
