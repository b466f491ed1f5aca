"""Audit every fold for leaks; a leak fails the run."""

from pathlib import Path
from typing import TYPE_CHECKING

from histogep.evaluation.leakage import audit, require_clean
from histogep.files import file_sha256, read_json, read_tsv, write_json
from histogep.report.pages_leakage import write_leakage_page
from histogep.spots.panel import choose_panel
from histogep.workflow.job import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake) as log:
    genes = {"dtype": {"gene": str}, "keep_default_na": False}
    verdict = audit(
        read_tsv(snakemake.input.folds, dtype=str, keep_default_na=False),
        panels={Path(path).stem: read_tsv(path, **genes) for path in snakemake.input.panels},
        records={Path(path).stem: read_json(path) for path in snakemake.input.records},
        models=[read_json(path) for path in snakemake.input.settings],
        gene_scores={Path(p).stem: read_tsv(p, **genes) for p in snakemake.input.gene_scores},
        image_sha256={
            record["slide"]: record["sha256"] for record in map(read_json, snakemake.input.slides)
        },
        score_sha256={Path(path).stem: file_sha256(path) for path in snakemake.input.gene_scores},
        markers=read_tsv(snakemake.input.markers, dtype=str),
        gene_settings=snakemake.params.genes,
        choose_panel=choose_panel,
        similar=read_tsv(snakemake.input.copies),
    )
    for check in verdict["checks"]:
        level = log.info if check["ok"] else log.error
        level("%s %s %s: %s", check["fold"], check["model"], check["check"], check["detail"])
    for leak in verdict["known_leaks"]:
        log.info("known leak of the paper's protocol, %s: %s", leak["fold"], leak["detail"])
    for notice in verdict["notices"]:
        log.warning("alike by %s: %s", notice["what"], notice["detail"])
    # Snakemake removes the verdict of a job that failed, so the message says it all.
    require_clean(verdict)
    write_leakage_page(verdict, snakemake.output.page, study=snakemake.wildcards.study)
    write_json(verdict, snakemake.output.verdict)
    log.info("%d checks, none failed", verdict["n_checks"])
