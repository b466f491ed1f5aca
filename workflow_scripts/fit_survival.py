"""Relate the patients of a cohort to their survival."""

from typing import TYPE_CHECKING

from histogep.files import read_parquet, write_tsv
from histogep.outcome.survival import fit_survival
from histogep.report.figures.outcome import adjusted_forest, calibration_at, forest, kaplan_meier
from histogep.report.pages_outcome import write_survival_page
from histogep.report.style import save
from histogep.warned import heard
from histogep.workflow.job import job_log
from histogep.workflow.warnings_of_jobs import deciding_warnings

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake), heard() as own:
    result = fit_survival(
        read_parquet(snakemake.input.patients),
        settings=snakemake.params.survival,
        seed=snakemake.params.seed,
        maps=snakemake.input.get("maps") or (),
    )
    adjusted = result.multivariable
    write_tsv(result.cox, snakemake.output.cox)
    write_tsv(result.concordance, snakemake.output.concordance)
    write_tsv(result.risk, snakemake.output.risk)
    write_tsv(result.log_rank, snakemake.output.log_rank)
    write_tsv(result.follow_up, snakemake.output.follow_up)
    write_tsv(adjusted.table, snakemake.output.multivariable)
    write_tsv(result.horizons, snakemake.output.horizons)
    write_tsv(result.calibration, snakemake.output.calibration)
    km = kaplan_meier(result.risk, result.concordance, result.log_rank)
    save(km, snakemake.output.km)
    save(forest(result.concordance, result.cox), snakemake.output.forest)
    save(calibration_at(result.horizons, result.calibration), snakemake.output.at_horizons)
    beside = adjusted_forest(adjusted.table, adjusted.notes, n=adjusted.n, events=adjusted.events)
    save(beside, snakemake.output.adjusted)
    write_survival_page(
        result,
        snakemake.output.page,
        cohort=snakemake.wildcards.cohort,
        warnings=deciding_warnings([snakemake.input.patients], "survival", own=own.warned),
    )
