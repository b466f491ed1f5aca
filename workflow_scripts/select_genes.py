"""Choose the gene panel of one fold from the sections that the fold may see."""

from pathlib import Path
from typing import TYPE_CHECKING

from histogep.files import file_sha256, read_tsv, write_json, write_tsv
from histogep.spots.panel import choose_panel, panel_slides
from histogep.workflow.job import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake) as log:
    fold = snakemake.wildcards.fold
    folds = read_tsv(snakemake.input.folds, dtype=str)
    slides, patients = panel_slides(folds, fold)
    held_out = set(folds.loc[(folds["fold"] == fold) & (folds["role"] == "test"), "slide"])
    # Of patient_cv folds the scores of held-out sections are not even opened.
    tables = {Path(path).stem: path for path in snakemake.input.genes}
    # Genes may be named by numbers, such as Entrez ids.
    scores = {slide: read_tsv(tables[slide], dtype={"gene": str}) for slide in slides}
    markers = read_tsv(snakemake.input.markers, dtype=str)
    panel = choose_panel(scores, markers, snakemake.params.genes)
    limits = panel.attrs["limits"]
    write_tsv(panel, snakemake.output.panel)
    write_json(
        {
            "fold": fold,
            "slides": slides,
            "patients": patients,
            # Empty but for the paper's protocol, which chooses on its held-out sections too.
            "held_out_slides_used": sorted(held_out & set(slides)),
            # What the sections cost: a gene that one lacks is lost for all.
            "genes_measured": {slide: len(table) for slide, table in scores.items()},
            "genes_shared": panel.attrs["n_shared"],
            # Which setting decided how many genes there are.
            "limits": limits.to_record() | {"sentence": limits.sentence(snakemake.params.genes)},
            "settings": dict(snakemake.params.genes),
            "sha256": {slide: file_sha256(tables[slide]) for slide in slides},
        },
        snakemake.output.record,
    )
    log.info("%d main and %d extended genes from %s", panel["main"].sum(), len(panel), slides)
