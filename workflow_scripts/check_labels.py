"""Infer labels for annotated sections too, and report how well they agree."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from histogep.files import files_of, read_tsv, write_tsv
from histogep.inputs.genome import read_gene_positions
from histogep.labels.agreement import compare_labels
from histogep.labels.inferred import infer_labels
from histogep.report.pages import Table, write_page
from histogep.spots.matrices import read_h5ad
from histogep.workflow.job import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake) as log:
    files = snakemake.input
    markers = read_tsv(files.markers, dtype=str)
    given = files.get("gene_positions")
    positions = read_gene_positions(given) if given else None
    slides = [Path(path).stem for path in files.spots]
    labels = files_of(slides, files.labels, suffix=".tsv")
    tables = []
    for path, annotation, slide in zip(files.spots, labels, slides, strict=True):
        spots = read_h5ad(path)
        inferred = infer_labels(spots, markers, positions=positions, cnv=snakemake.params.cnv)
        annotated = read_tsv(annotation, dtype=str, keep_default_na=False)
        depth = np.asarray(spots.X.sum(axis=1)).ravel()
        tables.append(compare_labels(annotated, inferred, depth, slide=slide))
        log.info("%s: %s", slide, tables[-1][0].iloc[0].to_dict())
    agreement, confusion = (
        pd.concat([pair[i] for pair in tables], ignore_index=True) for i in range(2)
    )
    write_tsv(agreement, snakemake.output.agreement)
    write_tsv(confusion, snakemake.output.confusion)
    write_page(
        snakemake.output.page,
        title="Inferred tumour labels against annotated ones",
        notes=[
            "Sections with an annotation are labelled by it; here labels were inferred all the same, "
            "to see what those of the other sections are worth.",
            "auroc_depth is the AUROC of the counts of a spot alone; dice_null the Dice of calling "
            "every spot malignant.",
        ],
        tables=[
            Table(
                agreement,
                heading="Agreement",
                formats=dict.fromkeys(agreement.columns[4:], "{:.3f}"),
                bars=dict.fromkeys(("auroc", "dice"), (0.0, 1.0)),
                headers={"n": "spots", "n_malignant": "malignant"},
            ),
            Table(confusion, heading="Spots by annotated and inferred label", group_by="slide"),
        ],
    )
