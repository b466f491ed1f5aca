"""Compare the copy number of predicted with that of measured expression in held-out patients."""

from typing import TYPE_CHECKING

import pandas as pd

from histogep.evaluation.copy_number import ARM_COLUMNS, COLUMNS, compare_section, read_held_out
from histogep.files import read_tsv, write_tsv
from histogep.inputs.genome import read_gene_positions
from histogep.report.figures.cnv import agreement_figure
from histogep.report.style import save
from histogep.workflow.job import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake):
    files = snakemake.input
    positions = read_gene_positions(files.gene_positions)
    folds = read_tsv(files.folds, dtype=str)
    tables = []
    for weights, settings in zip(files.weights, files.settings, strict=True):
        sections = read_held_out(
            weights,
            settings,
            folds,
            features=files.features,
            spots=files.spots,
            labels=files.labels,
            cnv=files.cnv,
        )
        tables += [
            compare_section(section, positions, snakemake.params.cnv, seed=snakemake.params.seed)
            for section in sections
        ]
    agreement, arms = (
        pd.concat([table[i].astype(object) for table in tables], ignore_index=True)[columns]
        for i, columns in enumerate((COLUMNS, ARM_COLUMNS))
    )
    write_tsv(agreement.infer_objects(), snakemake.output.agreement)
    write_tsv(arms.infer_objects(), snakemake.output.arms)
    save(agreement_figure(agreement, arms), snakemake.output.figure)
