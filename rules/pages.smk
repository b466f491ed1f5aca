"""Pages: one to look at for each slide, one that lists all, and which figures the report shows.

Needs:  whatever was computed of a slide: pages show less where less was.
Writes: results/slides_html/{slide}.html and index.html, results/report/, results/batch_effects.tsv
"""


rule compare_batches:
    input:
        slides="results/slides.tsv",
        features=usable(Study.slide_files, pattern="results/features/{slide}.h5"),
        spots=of_sections("results/spots/{slide}.h5ad"),
    output:
        table="results/batch_effects.tsv",
        page=report(
            "results/batch_effects.html",
            caption="../report/batch_effects.rst",
            category="01 Data and quality",
            labels={"slide": "all", "figure": "what features go with: table"},
        ),
        figure=report(
            "results/batch_effects.png",
            caption="../report/batch_effects.rst",
            category="01 Data and quality",
            labels={"slide": "all", "figure": "what features go with"},
        ),
    log:
        "logs/compare_batches.log",
    benchmark:
        "benchmarks/compare_batches.tsv"
    conda:
        "../envs/spatial.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        code=code_of("compare_batches.py"),
        slides=usable(Study.slide_patients),
        sections=usable(Study.section_patients),
        seed=SETTINGS["seed"],
    message:
        "Compare the variance of patients, slides and stains"
    script:
        "../workflow_scripts/compare_batches.py"


rule draw_slide_page:
    input:
        unpack(usable(Study.page_files)),
        slide="results/slides/{slide}.json",
        image=of_slide(Study.image),
        pyramid="results/slides/{slide}",
        model=STUDY.model_folder,
        markers=MARKERS,
        signatures=SIGNATURES,
    output:
        page="results/slides_html/{slide}.html",
    log:
        "logs/draw_slide_page/{slide}.log",
    benchmark:
        "benchmarks/draw_slide_page/{slide}.tsv"
    wildcard_constraints:
        # That page lists all slides; `Study.page_slides` refuses a slide of its name.
        slide=rf"(?!index\.html$){ID_PATTERN}",
    conda:
        "../envs/spatial.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        code=code_of("draw_slide_page.py"),
        genes=SETTINGS["report"]["genes"],
        coverage=of_slide(Study.page_coverage),
        tumour_threshold=SETTINGS["summary"]["tumour_threshold"],
    message:
        "Draw the page of slide {wildcards.slide}"
    script:
        "../workflow_scripts/draw_slide_page.py"


rule draw_cohort_page:
    input:
        unpack(usable(Study.listed_files)),
        slides="results/slides.tsv",
        thumbnails=of_slide(
            Study.slide_files, pattern="results/tiles/{slide}.thumbnail.jpg"
        ),
    output:
        page=report(
            "results/slides_html/index.html",
            caption="../report/cohort_page.rst",
            category="01 Data and quality",
            labels={"slide": "all", "figure": "list to sort and search"},
        ),
    log:
        "logs/draw_cohort_page.log",
    conda:
        "../envs/spatial.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        code=code_of("draw_cohort_page.py"),
        study=SETTINGS["study"],
        pages=usable(Study.page_slides),
        figures=SETTINGS["report"]["figures"],
    message:
        "Draw the page that lists all slides"
    script:
        "../workflow_scripts/draw_cohort_page.py"


# Snakemake decides by rule, not by slide, what its report holds: the figures of thousands of slides
# would make it gigabytes large. So each slide's own rule draws them, and this one chooses.
rule choose_figures:
    input:
        unpack(usable(Study.slide_figures)),
        slides="results/slides.tsv",
        predicted=usable(Study.predicted_table),
        tiles=of_slide(Study.slide_files, pattern="results/tiles/{slide}.png"),
    output:
        tiles=report(
            directory("results/report/tiles"),
            patterns=["{slide}.png"],
            caption="../report/tiles.rst",
            category="01 Data and quality",
            labels={"slide": "{slide}", "figure": "tissue and tiles"},
        ),
        expression=report(
            directory("results/report/expression"),
            patterns=["{slide}.png"],
            caption="../report/expression.rst",
            category="05 Maps",
            labels={"slide": "{slide}", "figure": "predicted maps"},
        ),
        neighbourhoods=report(
            directory("results/report/neighbourhoods"),
            patterns=["{slide}.png"],
            caption="../report/neighbourhoods.rst",
            category="06 Tumour",
            labels={"slide": "{slide}", "figure": "what lies beside what"},
        ),
        cnv=report(
            directory("results/report/cnv"),
            patterns=["{slide}.png"],
            caption="../report/cnv.rst",
            category="07 Copy number",
            labels={"of": "{slide}", "figure": "profile by chromosome"},
        ),
    log:
        "logs/choose_figures.log",
    localrule: True
    conda:
        "../envs/slides.yaml"
    resources:
        mem_mb=lambda wildcards, attempt: 1000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        code=code_of("choose_figures.py"),
        most=SETTINGS["report"]["figures"],
        # What the captions state of how the figures were made.
        sections=of_slide(Study.section_patients),
        lattice=SETTINGS["lattice"],
        tissue=SETTINGS["tissue"],
        neighbourhoods=SETTINGS["neighbourhoods"],
        cnv=SETTINGS["cnv"],
        drawn_with_seed=SETTINGS["seed"],
    message:
        "Choose the slides whose figures the report shows"
    script:
        "../workflow_scripts/choose_figures.py"
