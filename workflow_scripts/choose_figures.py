"""Choose the slides whose figures the report shows, and copy these figures."""

from typing import TYPE_CHECKING

from histogep.files import read_tsv
from histogep.report.chosen_figures import KINDS, choose_slides, copy_figures
from histogep.workflow.job import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake) as log:
    text = {"slide": str, "training_section": str}
    slides = read_tsv(snakemake.input.slides, dtype=text)
    predicted = next((read_tsv(path, dtype=text) for path in snakemake.input.predicted), None)
    chosen = choose_slides(slides, predicted, most=snakemake.params.most)
    for kind in KINDS:
        figures = snakemake.input.get(kind, [])
        n = copy_figures(chosen, figures, snakemake.output.get(kind))
        log.info("%s: %d of %d figures", kind, n, len(figures))
