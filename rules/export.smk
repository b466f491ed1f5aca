"""Export: files for other programs, made only where `export:` of the configuration asks for them.

Needs:  spots with labels, or a predicted slide; its image; copy number where it is inferred.
Writes: results/spatialdata/{slide}.zarr, results/qupath/{slide}/, results/tile_images/{slide}.tar,
        results/clam/pt_files/{slide}.pt
"""


rule export_spatialdata:
    input:
        unpack(usable(Study.export_files)),
        markers=MARKERS,
        slide="results/slides/{slide}.json",
        image=of_slide(Study.image),
        pyramid="results/slides/{slide}",
    output:
        store=directory("results/spatialdata/{slide}.zarr"),
    log:
        "logs/export_spatialdata/{slide}.log",
    benchmark:
        "benchmarks/export_spatialdata/{slide}.tsv"
    conda:
        "../envs/spatial.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 120 * attempt,
    params:
        code=code_of("export_spatialdata.py"),
        image_um=SETTINGS["export"]["image_um"],
        tumour_threshold=of_slide(Study.neighbourhood_threshold),
    message:
        "Write slide {wildcards.slide} as SpatialData"
    script:
        "../workflow_scripts/export_spatialdata.py"


rule export_qupath:
    input:
        unpack(usable(Study.export_files)),
        markers=MARKERS,
    output:
        layers=directory("results/qupath/{slide}"),
    log:
        "logs/export_qupath/{slide}.log",
    benchmark:
        "benchmarks/export_qupath/{slide}.tsv"
    conda:
        "../envs/spatial.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        code=code_of("export_qupath.py"),
        genes=SETTINGS["export"]["genes"],
        tumour_threshold=of_slide(Study.neighbourhood_threshold),
    message:
        "Write the layers of slide {wildcards.slide} for QuPath"
    script:
        "../workflow_scripts/export_qupath.py"


rule export_tiles:
    input:
        slide="results/slides/{slide}.json",
        image=of_slide(Study.image),
        pyramid="results/slides/{slide}",
        tiles="results/tiles/{slide}.parquet",
    output:
        images="results/tile_images/{slide}.tar",
        index="results/tile_images/{slide}.tsv",
    log:
        "logs/export_tiles/{slide}.log",
    benchmark:
        "benchmarks/export_tiles/{slide}.tsv"
    conda:
        "../envs/torch.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 120 * attempt,
    params:
        code=code_of("export_tiles.py"),
        lattice=SETTINGS["lattice"],
    message:
        "Write the tiles of slide {wildcards.slide} as images"
    script:
        "../workflow_scripts/export_tiles.py"


rule export_clam:
    input:
        features="results/features/{slide}.h5",
    output:
        features="results/clam/pt_files/{slide}.pt",
    log:
        "logs/export_clam/{slide}.log",
    conda:
        "../envs/torch.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        code=code_of("export_clam.py"),
    message:
        "Write the features of slide {wildcards.slide} for CLAM"
    script:
        "../workflow_scripts/export_clam.py"
