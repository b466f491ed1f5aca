"""Label the spots of one section as malignant or not, by its annotation or their expression."""

from typing import TYPE_CHECKING

from histogep.files import read_tsv, write_tsv
from histogep.inputs.genome import read_gene_positions
from histogep.labels import annotated, inferred
from histogep.report import style
from histogep.report.figures.spots import draw_labels
from histogep.slides.rejected import refuse_failed_spots
from histogep.spots.matrices import read_h5ad
from histogep.workflow.job import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake) as log:
    refuse_failed_spots(snakemake.input.spots)
    spots = read_h5ad(snakemake.input.spots)
    annotation = snakemake.input.get("labels")
    positions = snakemake.input.get("gene_positions")
    if annotation:
        labels = annotated.label_annotated(spots, annotation, snakemake.params.labels)
    else:
        labels = inferred.infer_labels(
            spots,
            read_tsv(snakemake.input.markers, dtype=str),
            positions=read_gene_positions(positions) if positions else None,
            cnv=snakemake.params.cnv,
        )
    write_tsv(labels[list(annotated.COLUMNS)], snakemake.output.labels)
    style.save(draw_labels(spots, labels), snakemake.output.map)
    log.info("%s: %s", labels["source"].iloc[0], labels["label"].value_counts().to_dict())
