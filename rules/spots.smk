"""Spots: measured counts in the pixels of the slide, and their labels.

Needs:  `counts` (and `positions` for legacy ST tables) of config/slides.tsv; `labels` if there are any.
Writes: results/spots/{slide}.h5ad, results/labels/{slide}.tsv
"""


rule align_spots:
    input:
        unpack(section_counts),
        slide="results/slides/{slide}.json",
        image=slide_image,
        pyramid="results/slides/{slide}",
    output:
        spots="results/spots/{slide}.h5ad",
        overlay=report(
            "results/spots/{slide}.png",
            caption="../report/spots.rst",
            category="2. Alignment",
            labels={"slide": "{slide}", "figure": "spots on tissue"},
        ),
    log:
        "logs/align_spots/{slide}.log",
    benchmark:
        "benchmarks/align_spots/{slide}.tsv"
    conda:
        "../envs/spatial.yaml"
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        code=code_digest("align_spots.py"),
        lattice=LATTICE,
        spots=lookup("spots", within=config),
        tissue=lookup("tissue", within=config),
    message:
        "Align the spots of section {wildcards.slide}"
    script:
        "../workflow_scripts/align_spots.py"


rule label_spots:
    input:
        unpack(section_labels),
        spots="results/spots/{slide}.h5ad",
        markers=MARKERS,
    output:
        labels="results/labels/{slide}.tsv",
        map=report(
            "results/labels/{slide}.png",
            caption="../report/labels.rst",
            category="2. Alignment",
            labels={"slide": "{slide}", "figure": "tumour labels"},
        ),
    log:
        "logs/label_spots/{slide}.log",
    benchmark:
        "benchmarks/label_spots/{slide}.tsv"
    conda:
        "../envs/cnv.yaml"
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        code=code_digest("label_spots.py"),
        labels=lookup("labels", within=config),
        cnv=lookup("cnv", within=config),
    message:
        "Label the spots of section {wildcards.slide}"
    script:
        "../workflow_scripts/label_spots.py"
