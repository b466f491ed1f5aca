"""Slides: geometry, tissue, tiles and their features, and which slides cannot be used.

Needs:  `image` (and `mpp` where the file has none) of config/slides.tsv.
Writes: results/slides/{slide}.json, results/tiles/{slide}.parquet, results/encoders/{encoder}.json,
        results/features/{slide}.h5,
        results/failed_slides.tsv, results/slides.tsv
"""


rule prepare_slide:
    input:
        unpack(of_slide(Study.image_files)),
    output:
        slide="results/slides/{slide}.json",
        # Holds pyramid.tiff when the source cannot be read by region, else nothing.
        pyramid=directory("results/slides/{slide}"),
    log:
        "logs/prepare_slide/{slide}.log",
    benchmark:
        "benchmarks/prepare_slide/{slide}.tsv"
    conda:
        "../envs/slides.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        code=code_of("prepare_slide.py"),
        mpp=of_slide(Study.mpp),
        spots_mpp=of_slide(Study.spots_mpp),
        most_mm=of_slide(Study.most_mm),
    message:
        "Read the geometry of slide {wildcards.slide}"
    script:
        "../workflow_scripts/prepare_slide.py"


rule tile_slide:
    input:
        unpack(of_slide(Study.places)),
        slide="results/slides/{slide}.json",
        image=of_slide(Study.image),
        pyramid="results/slides/{slide}",
    output:
        tiles="results/tiles/{slide}.parquet",
        outlines="results/tiles/{slide}.geojson",
        quality="results/tiles/{slide}.quality.tsv",
        keypoints="results/keypoints/{slide}.parquet",
        thumbnail="results/tiles/{slide}.thumbnail.jpg",
        overview="results/tiles/{slide}.png",
    log:
        "logs/tile_slide/{slide}.log",
    benchmark:
        "benchmarks/tile_slide/{slide}.tsv"
    conda:
        "../envs/slides.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        code=code_of("tile_slide.py"),
        lattice=SETTINGS["lattice"],
        tissue=SETTINGS["tissue"],
    message:
        "Lay the lattice over slide {wildcards.slide}"
    script:
        "../workflow_scripts/tile_slide.py"


# On a CPU the networks run as these files, converted once, so that a job needs no torch.
rule export_encoder:
    input:
        weights=of_slide(Study.encoder_weights),
    output:
        description="results/encoders/{encoder}.json",
        network="results/encoders/{encoder}.xml",
        numbers="results/encoders/{encoder}.bin",
    log:
        "logs/export_encoder/{encoder}.log",
    conda:
        "../envs/torch.yaml"
    resources:
        # A network in torch, its converted copy, and both while they are compared.
        mem_mb=lambda wildcards, input, attempt: (
            (3000 + round(6 * input.size_mb)) * attempt
        ),
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        code=code_of("export_encoder.py"),
        encoder=of_slide(Study.encoder_settings),
    message:
        "Convert the encoder {wildcards.encoder}"
    script:
        "../workflow_scripts/export_encoder.py"


rule encode_tiles:
    input:
        unpack(of_slide(Study.given_features)),
        exported=collect(
            "results/encoders/{encoder}.json", encoder=STUDY.exported_encoders
        ),
        networks=collect(
            "results/encoders/{encoder}.{kind}",
            encoder=STUDY.exported_encoders,
            kind=["xml", "bin"],
        ),
        slide="results/slides/{slide}.json",
        image=of_slide(Study.image),
        pyramid="results/slides/{slide}",
        tiles="results/tiles/{slide}.parquet",
        weights=STUDY.weights(),
    output:
        features="results/features/{slide}.h5",
    log:
        "logs/encode_tiles/{slide}.log",
    benchmark:
        "benchmarks/encode_tiles/{slide}.tsv"
    conda:
        "../envs/torch.yaml"
    resources:
        gpu=1,
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 120 * attempt,
    params:
        code=code_of("encode_tiles.py"),
        lattice=SETTINGS["lattice"],
        encoders=SETTINGS["encoders"],
    message:
        "Encode the tiles of slide {wildcards.slide}"
    script:
        "../workflow_scripts/encode_tiles.py"


# Part of a study with `on_bad_slide: skip` only: with `stop` there is nothing to list.
checkpoint check_slides:
    input:
        features=of_slide(Study.slide_files, pattern="results/features/{slide}.h5"),
    output:
        failed="results/failed_slides.tsv",
        page=report(
            "results/failed_slides.html",
            caption="../report/failed_slides.rst",
            category="11 Failed slides",
            labels={"slide": "all", "figure": "slides that cannot be used"},
        ),
    log:
        "logs/check_slides.log",
    localrule: True
    conda:
        "../envs/slides.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=lambda wildcards, attempt: 10 * attempt,
    params:
        code=code_of("check_slides.py"),
        slides=of_slide(Study.slide_rows),
    message:
        "List the slides that cannot be used"
    script:
        "../workflow_scripts/check_slides.py"


rule compare_slides:
    input:
        keypoints=usable(Study.slide_files, pattern="results/keypoints/{slide}.parquet"),
    output:
        pairs="results/similar_slides.tsv",
    log:
        "logs/compare_slides.log",
    conda:
        "../envs/slides.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        code=code_of("compare_slides.py"),
        patients=usable(Study.slide_patients),
        seed=SETTINGS["seed"],
    message:
        "Look for one slide under two patients"
    script:
        "../workflow_scripts/compare_slides.py"


rule list_slides:
    input:
        quality=of_slide(Study.slide_files, pattern="results/tiles/{slide}.quality.tsv"),
        failed=STUDY.failures(),
        # Read for their warnings only, which say of a section whether its labels can be used.
        labels=of_sections("results/labels/{slide}.tsv"),
    output:
        table="results/slides.tsv",
        page=report(
            "results/slides.html",
            caption="../report/slides.rst",
            category="01 Data and quality",
            labels={"slide": "all", "figure": "quality and status of each slide"},
        ),
    log:
        "logs/list_slides.log",
    localrule: True
    conda:
        "../envs/slides.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=lambda wildcards, attempt: 10 * attempt,
    params:
        code=code_of("list_slides.py"),
        slides=of_slide(Study.slide_rows),
    message:
        "List all slides"
    script:
        "../workflow_scripts/list_slides.py"
