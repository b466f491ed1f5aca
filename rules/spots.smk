"""Spots: measured counts in the pixels of the slide, and their labels.

Needs:  `counts` (and `positions` for legacy ST tables) of config/slides.tsv; `labels` if there are any.
Writes: results/resources/ (references that the project ships), results/spots/{slide}.h5ad with its
        quality, results/labels/{slide}.tsv, and for annotated sections how inferred labels
        would have done, results/evaluation/{study}/labels.tsv
"""


rule copy_resource:
    output:
        reference="results/resources/{name}",
    log:
        "logs/copy_resource/{name}.log",
    wildcard_constraints:
        name=r"[A-Za-z0-9_]+\.(tsv|yaml)",
    localrule: True
    conda:
        "../envs/snakemake.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=lambda wildcards, attempt: 10 * attempt,
    params:
        code=code_of("copy_resource.py"),
        content=resource_content,
    message:
        "Copy the shipped reference {wildcards.name}"
    script:
        "../workflow_scripts/copy_resource.py"


rule align_spots:
    input:
        unpack(of_slide(Study.counts)),
        slide="results/slides/{slide}.json",
        image=of_slide(Study.image),
        pyramid="results/slides/{slide}",
    output:
        spots="results/spots/{slide}.h5ad",
        overlay=report(
            "results/spots/{slide}.png",
            caption="../report/spots.rst",
            category="02 Alignment",
            labels={"slide": "{slide}", "figure": "spots on tissue"},
        ),
        # A folder of its own: a slide may be called as another with a suffix.
        quality=report(
            "results/spots/quality/{slide}.png",
            caption="../report/spot_quality.rst",
            category="02 Alignment",
            labels={"slide": "{slide}", "figure": "counts, genes, mitochondria"},
        ),
        quality_table=report(
            "results/spots/quality/{slide}.tsv",
            caption="../report/spot_quality.rst",
            category="02 Alignment",
            labels={
                "slide": "{slide}",
                "figure": "counts, genes, mitochondria: table",
            },
        ),
    log:
        "logs/align_spots/{slide}.log",
    benchmark:
        "benchmarks/align_spots/{slide}.tsv"
    conda:
        "../envs/spatial.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        code=code_of("align_spots.py"),
        lattice=SETTINGS["lattice"],
        spots=SETTINGS["spots"],
        tissue=SETTINGS["tissue"],
    message:
        "Align the spots of section {wildcards.slide}"
    script:
        "../workflow_scripts/align_spots.py"


rule label_spots:
    input:
        unpack(of_slide(Study.annotation)),
        spots="results/spots/{slide}.h5ad",
        markers=MARKERS,
    output:
        labels="results/labels/{slide}.tsv",
        map=report(
            "results/labels/{slide}.png",
            caption="../report/labels.rst",
            category="06 Tumour",
            labels={"slide": "{slide}", "figure": "tumour labels"},
        ),
    log:
        "logs/label_spots/{slide}.log",
    benchmark:
        "benchmarks/label_spots/{slide}.tsv"
    conda:
        "../envs/cnv.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        code=code_of("label_spots.py"),
        labels=SETTINGS["labels"],
        cnv=SETTINGS["cnv"],
    message:
        "Label the spots of section {wildcards.slide}"
    script:
        "../workflow_scripts/label_spots.py"


rule check_labels:
    input:
        spots=usable(Study.annotated_files, pattern="results/spots/{slide}.h5ad"),
        labels=usable(Study.annotated_files, pattern="results/labels/{slide}.tsv"),
        markers=MARKERS,
        gene_positions=GENE_POSITIONS,
    output:
        agreement="results/evaluation/{study}/labels.tsv",
        confusion="results/evaluation/{study}/labels_confusion.tsv",
        page=report(
            "results/evaluation/{study}/labels.html",
            caption="../report/label_agreement.rst",
            category="06 Tumour",
            labels={
                "slide": "annotated",
                "figure": "inferred against annotated labels",
            },
        ),
    log:
        "logs/check_labels/{study}.log",
    conda:
        "../envs/cnv.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        code=code_of("check_labels.py"),
        cnv=SETTINGS["cnv"],
    message:
        "Compare inferred with annotated labels"
    script:
        "../workflow_scripts/check_labels.py"
