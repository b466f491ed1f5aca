"""Infer the copy number of one slide, from measured spots or from predicted expression."""

from typing import TYPE_CHECKING

from histogep.cnv.slide import measured_slide, predicted_slide, write_profile
from histogep.deployment.extended_panel import predict_extended
from histogep.encoders.feature_file import read_features
from histogep.files import write_tsv
from histogep.inputs.genome import read_gene_positions
from histogep.report.figures.cnv import profile_figure
from histogep.report.style import save
from histogep.workflow.job import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake):
    shared = {
        "slide": snakemake.wildcards.slide,
        "positions": read_gene_positions(snakemake.input.gene_positions),
        "settings": snakemake.params.cnv,
        "seed": snakemake.params.seed,
    }
    if snakemake.input.get("spots") is not None:
        result, arms, markers = measured_slide(
            snakemake.input.spots, snakemake.input.labels, **shared
        )
    else:
        features = read_features(snakemake.input.features)
        values, genes = predict_extended(features, snakemake.input.model)
        result, arms, markers = predicted_slide(
            values,
            features,
            snakemake.input.expression,
            genes=genes,
            agreement=snakemake.input.get("agreement"),
            **shared,
        )
    write_profile(result, snakemake.output.cnv)
    write_tsv(arms, snakemake.output.arms)
    write_tsv(markers, snakemake.output.markers)
    save(profile_figure(result, arms), snakemake.output.heatmap)
