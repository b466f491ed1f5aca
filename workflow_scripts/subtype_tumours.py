"""Group the tumour clones of a cohort into subtypes."""

from typing import TYPE_CHECKING

from histogep.cnv.cohort import read_profile
from histogep.cnv.subtypes import DEFAULTS, subtype_cohort
from histogep.files import files_of, write_tsv
from histogep.report.figures.cnv import subtype_figure, subtype_maps
from histogep.report.pages import Table, write_page
from histogep.report.pages_copy_number import write_controls_page
from histogep.report.style import save
from histogep.warned import heard
from histogep.workflow.job import job_log
from histogep.workflow.warnings_of_jobs import deciding_warnings

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake), heard() as own:
    patients = snakemake.params.patients
    paths = files_of(patients, snakemake.input.cnv, suffix=".h5ad")
    settings = {name: snakemake.params.cnv.get(name, value) for name, value in DEFAULTS.items()}
    profiles = [
        read_profile(path, slide=slide, patient=patient)
        for path, (slide, patient) in zip(paths, patients.items(), strict=True)
    ]
    settings["sample_types"] = snakemake.params.sample_types
    subtypes = subtype_cohort(profiles, seed=snakemake.params.seed, **settings)
    write_tsv(subtypes.spots, snakemake.output.subtypes)
    write_tsv(subtypes.patients, snakemake.output.patients)
    write_tsv(subtypes.controls, snakemake.output.controls)
    write_tsv(subtypes.markers, snakemake.output.markers)
    cohort = snakemake.wildcards.cohort
    warned = deciding_warnings(snakemake.input.cnv, "copy number", own=own.warned)
    controls = snakemake.output.controls_page
    write_controls_page(subtypes.controls, controls, cohort=cohort, warnings=warned)
    write_page(
        snakemake.output.page,
        warnings=warned,
        title=f"Cohort {cohort}: marker genes of the subtypes",
        notes=[
            "Genes that are higher in the clones of a subtype than in those of the others, best "
            "first. Subtypes were found from the same expression, and clones of one patient are not "
            "independent: p and p_adjusted order the genes. They test neither that there are subtypes "
            "nor what holds in other patients.",
        ],
        tables=[Table(subtypes.markers, group_by="subtype")],
    )
    save(subtype_figure(subtypes, cohort=cohort), snakemake.output.heatmap)
    save(subtype_maps(subtypes, profiles, cohort=cohort), snakemake.output.maps)
