"""Validated configuration and sheets, wildcard constraints, and input functions.

Those of the rules of slides are in common_slides.smk, those of folds and models in common_model.smk.
"""

import re
from pathlib import Path

import yaml
from histogep import (
    barcodes,
    bulk,
    clinical,
    encoder_choices,
    folds,
    model_choices,
    settings,
    sheets,
    stages,
    study_files,
)
from histogep.bad_slides import failed_slides
from histogep.jobs import InputError
from histogep.lineage import record_run
from histogep.problems import Problems
from histogep.provenance import code_digest
from histogep.resources import digest_resource
from histogep.simulate_cohort import slide_composition
from snakemake.common.configfile import load_configfile
from snakemake.exceptions import WorkflowError
from snakemake.utils import update_config

REPOSITORY = Path(workflow.basedir)


def read_study():
    """Return settings, files and sheets, all checked; the default study if nothing is given."""
    configfiles = workflow.config_settings.configfiles
    for file in configfiles:
        settings.refuse_repeated_keys(file)
    # A study of one's own never inherits from the default study, whose settings are those of a
    # simulation: defaults come from the schema alone.
    own = configfiles or config
    given = {} if own else load_configfile(REPOSITORY / "config/config.yaml")
    update_config(given, config)
    schema = yaml.safe_load(
        (REPOSITORY / "config/schemas/config.schema.yaml").read_text()
    )
    source = ", ".join(map(str, configfiles)) or "the configuration"
    complete = settings.complete_settings(given, schema, source=source)
    settings.check_names(complete)
    chosen = {name: complete[name] for name in ("deploy", "encoders", "lattice")}
    model_choices.check_models(complete["models"], **chosen)
    encoder_choices.check_encoders(complete["encoders"])
    folders = (".", *(Path(file).parent for file in configfiles), REPOSITORY)
    data_root = complete["data_root"]
    problems = Problems()

    def made(file):
        return complete["simulation"] is not None and file.startswith("data/simulated/")

    def reference(path, key):
        if path is None:
            return None
        path = path.replace("{data_root}", data_root or "{data_root}")
        if made(path):
            return path
        find = sheets.locate
        return problems.run(find, path, folders=folders, key=key, default=None)

    # Where the files are is kept apart from the settings, which are recorded as they were given.
    references = complete["references"]
    files = {
        "gene_positions": reference(
            references["gene_positions"], "references.gene_positions"
        ),
        "gene_sets": {
            name: reference(path, f"references.gene_sets.{name}")
            for name, path in references["gene_sets"].items()
        },
        "patients": reference(complete["patients"], "patients"),
        "measured": {
            cohort: {
                "measured": reference(entry["expression"], f"measured.{cohort}"),
                "patients": reference(
                    entry["patients"] or complete["patients"], f"measured.{cohort}"
                ),
            }
            for cohort, entry in complete["measured"].items()
        },
        "model": reference(complete["model"], "model"),
    }
    columns = complete["columns"]
    slides = sheets.no_slides()
    if sheet := reference(complete["slides"], "slides"):
        slides = problems.run(
            sheets.read_slides,
            sheet,
            data_root=data_root,
            made=made,
            columns=columns,
            default=slides,
        )
    endpoint = complete["summary"]["endpoint"]

    def read_patients(path):
        if path is None:
            return None
        read = clinical.read_clinical
        return problems.run(
            read, path, endpoint=endpoint, columns=columns, default=None
        )

    patients = read_patients(files["patients"]) if complete["slides"] else None
    tables, measured = [], {}
    for cohort, inputs in files["measured"].items():
        if cohort.lower() in {
            name.lower() for name in (*slides["cohort"], *slides.index)
        }:
            raise InputError(
                f"measured: {cohort!r} names slides too; rename the measured cohort"
            )
        if inputs["patients"] is None and not problems.messages:
            raise InputError(
                f"measured: {cohort} has no clinical table; give it as `patients:`"
            )
        same = inputs["patients"] == files["patients"] and patients is not None
        sheet = patients if same else read_patients(inputs["patients"])
        if sheet is None or inputs["measured"] is None:
            continue
        tables.append(sheet)
        join = study_files.measured_patients, cohort, inputs["measured"], sheet
        measured[cohort] = problems.run(*join, default=sheet)
    if workflow.is_main_process:
        problems.run(
            study_files.check_study_files,
            study_files.StudyFiles(
                slides,
                complete,
                gene_sets={n: f for n, f in files["gene_sets"].items() if f},
                gene_positions=files["gene_positions"],
                measured={
                    cohort: inputs["measured"]
                    for cohort, inputs in files["measured"].items()
                    if inputs["measured"]
                },
                made=made,
            ),
            default=None,
        )
    problems.refuse()
    sheets.check_given_features(slides, complete["encoders"])
    study_files.check_columns(columns, slides, patients, *tables)
    return complete, files, slides, patients, measured


def one_of(names):
    """Return a wildcard constraint that matches these names and no other."""
    return "|".join(re.escape(name) for name in names) or "$.^"


try:
    # What the readers warn of is printed once, by the process that plans (Snakefile).
    with study_files.collected_warnings() as NOTES:
        SETTINGS, FILES, SLIDES, PATIENTS, MEASURED_PATIENTS = read_study()
    APPLIED = None
    if FILES["model"]:
        from histogep.model_folder import declared_settings, read_settings

        # Its files are compared with their digest once, not again in every job.
        read_model = read_settings if workflow.is_main_process else declared_settings
        APPLIED = read_model(FILES["model"])
        # A model that is applied brings its lattice and the precision of its features.
        SETTINGS["encoders"] = encoder_choices.applied_encoders(
            APPLIED, SETTINGS["encoders"]
        )
        SETTINGS["lattice"] = APPLIED["lattice"]
    STAGES = stages.plan_stages(
        SETTINGS, SLIDES, PATIENTS, MEASURED_PATIENTS, applied_model=APPLIED
    )
except InputError as error:
    raise WorkflowError(str(error)) from None
config.clear()
config.update(SETTINGS)

STUDY = config["study"]
SLIDE_ROWS = SLIDES.to_dict("index")
SECTIONS = list(SLIDES.index[(SLIDES["counts"] != "") & (config["model"] is None)])
ANNOTATED = [slide for slide in SECTIONS if SLIDES.loc[slide, "labels"]]
MEASURED = FILES["measured"]
COHORTS = sorted({*SLIDES["cohort"], *MEASURED})
FOLDS = folds.fold_names(
    n_patients=SLIDES.loc[SECTIONS, "patient"].nunique(),
    n_sections=len(SECTIONS),
    settings=config["folds"],
)
MODELS = list(config["models"])
SKIP_BAD_SLIDES = config["on_bad_slide"] == "skip"
# With `stop` there is nothing to list.
FAILED_SLIDES = ["results/failed_slides.tsv"] if SKIP_BAD_SLIDES else []
MODEL_FOLDER = FILES["model"] or f"results/model/{STUDY}"
# Of a model that is applied: another one may come with older times.
MODEL_DIGEST = APPLIED["digest"] if APPLIED else None
LATTICE = config["lattice"]
ENCODERS = config["encoders"]
# Inputs, since other weights are other features.
ENCODER_WEIGHTS = encoder_choices.weights_files(ENCODERS)
EXPORTED = encoder_choices.exported_encoders(ENCODERS)
GENE_POSITIONS = FILES["gene_positions"]
GENE_SET_NAMES = list(FILES["gene_sets"])
GENE_SETS = list(FILES["gene_sets"].values())
# Copies, so that no rule's input depends on where the repository lies (rule copy_resource).
MARKERS = "results/resources/markers.tsv"
SIGNATURES = "results/resources/signatures.yaml"


wildcard_constraints:
    # Not the ids themselves: Snakemake carries a constraint in every file name of every job, and
    # the names of thousands of slides there make a plan take minutes. `slide_row` checks the id.
    slide=sheets.ID_PATTERN,
    cohort=one_of(COHORTS),
    study=one_of([STUDY]),
    fold=one_of(FOLDS),
    model=one_of(MODELS),
    encoder=one_of(EXPORTED),
    outcome="survival|response",
    contrast="tumour|survival|response|subtype",


# With `on_bad_slide: skip` which slides can be used is known only when all have been encoded. So
# what follows asks for its inputs through the functions below, which wait for the checkpoint
# check_slides; with `stop` they wait for nothing, and the whole plan is known from the start.
def usable(slides):
    """Return those of some slides that can be used."""
    if not SKIP_BAD_SLIDES:
        return list(slides)
    failed = failed_slides(checkpoints.check_slides.get().output.failed)
    return [slide for slide in slides if slide not in failed]


def after_check(wildcards):
    """Return no file, but only once it is known which slides can be used."""
    usable([])
    return []


def study_stages():
    """Return the stages that the usable slides allow."""
    if not SKIP_BAD_SLIDES:
        return STAGES
    try:
        return stages.plan_stages(
            config,
            SLIDES.loc[usable(SLIDES.index)],
            PATIENTS,
            MEASURED_PATIENTS,
            applied_model=APPLIED,
        )
    except InputError as error:
        raise WorkflowError(f"after bad slides were left out: {error}") from None


def lift_job_rate():
    """Take Snakemake's default limit of jobs a second away; one that the user chose stays.

    With a limit the scheduler sets a timer at every look at its queue, and each timer makes it look
    again: after N jobs it looks N times a second. No option and no profile can leave the limit out.
    """
    limit = getattr(workflow.scheduling_settings, "max_jobs_per_timespan", None)
    if limit and (limit.max_jobs, limit.timespan) == (100, 1):
        workflow.scheduling_settings.max_jobs_per_timespan = None


def study_targets(wildcards):
    """Return the files that the whole study asks for."""
    # Here, since Snakemake gives its settings after it has parsed, and before it makes the scheduler.
    lift_job_rate()
    listed = ["results/slides.tsv", "results/similar_slides.tsv"] if len(SLIDES) else []
    return study_stages().targets() + listed + FAILED_SLIDES


def stage_rows(wildcards):
    """Return one plain row per stage, for the report."""
    return study_stages().rows()


def usable_sections(wildcards):
    """Return the ids of the sections that can be used."""
    return usable(SECTIONS)


def usable_slides(wildcards):
    """Return the ids of all usable slides."""
    return usable(SLIDES.index)


def patients_of_slides(wildcards):
    """Return the patient of each of `usable_slides`."""
    return [patient_of(slide) for slide in usable(SLIDES.index)]


def keypoints_of_slides(wildcards):
    """Return the keypoints of each of `usable_slides`."""
    return [f"results/keypoints/{slide}.parquet" for slide in usable(SLIDES.index)]


def patient_of(slide):
    """Return the patient of a slide."""
    return SLIDE_ROWS[slide]["patient"]


def usable_section_patients(wildcards):
    """Return the patient of each section, in the order of `usable_sections`."""
    return [patient_of(section) for section in usable(SECTIONS)]


def of_sections(pattern, among=tuple(SECTIONS)):
    """Return an input function that gives the files of the usable sections, one for each {slide}."""

    def files(wildcards):
        return [pattern.format(slide=section) for section in usable(among)]

    return files


def annotated_sections(wildcards):
    """Return the ids of the usable sections that somebody annotated."""
    return usable(ANNOTATED)


def response_cohorts(wildcards):
    """Return the cohorts with responses."""
    return study_stages().cohorts("response")


def responding_patients(wildcards):
    """Return the patients of each of `response_cohorts`."""
    return [
        f"results/patients/{cohort}.parquet" for cohort in response_cohorts(wildcards)
    ]


def cohort_slides(wildcards, *, spots):
    """Return the slides of {cohort} with (True), without (False) or whatever (None) spots."""
    members = SLIDES.index[SLIDES["cohort"] == wildcards.cohort]
    wanted = [s for s in members if spots is None or (s in SECTIONS) == spots]
    return usable(wanted)


def cnv_inputs(wildcards):
    """Return measured spots with labels, or features and predictions, for {slide}.

    A prediction also needs how the study's predicted copy number did in held-out patients.
    """
    slide = wildcards.slide
    if slide in SECTIONS:
        return {
            "spots": f"results/spots/{slide}.h5ad",
            "labels": f"results/labels/{slide}.tsv",
        }
    inputs = {
        "features": f"results/features/{slide}.h5",
        "expression": f"results/expression/{slide}.h5ad",
        "model": MODEL_FOLDER,
    }
    if study_stages().runs("cnv agreement"):
        inputs["agreement"] = f"results/cnv/{STUDY}/agreement.tsv"
    return inputs


def cohort_cnv(wildcards):
    """Return the copy-number profiles of {cohort}."""
    return [
        f"results/cnv/{slide}.h5ad" for slide in cohort_slides(wildcards, spots=None)
    ]


def cohort_slide_ids(wildcards):
    """Return the ids of the slides of {cohort}, in the order of `cohort_cnv`."""
    return cohort_slides(wildcards, spots=None)


def cohort_patient_ids(wildcards):
    """Return the patient of each slide of {cohort}, in the order of `cohort_cnv`."""
    return [patient_of(slide) for slide in cohort_slides(wildcards, spots=None)]


def summary_inputs(wildcards):
    """Return the expression of {cohort}, measured or predicted, its patients and subtypes."""
    if wildcards.cohort in MEASURED:
        # Where the genes are Ensembl ids their symbols stand in the gene positions.
        positions = {"gene_positions": GENE_POSITIONS} if GENE_POSITIONS else {}
        return {**MEASURED[wildcards.cohort], **positions}
    slides = cohort_slides(wildcards, spots=False)
    inputs = {"expression": [f"results/expression/{slide}.h5ad" for slide in slides]}
    if study_stages().runs("cnv", wildcards.cohort):
        inputs["subtypes"] = f"results/cnv/{wildcards.cohort}/patients.tsv"
    if FILES["patients"]:
        inputs["patients"] = FILES["patients"]
    return inputs


def training_patients(wildcards):
    """Return the patients that the model of the predicted slides of {cohort} was trained on."""
    if wildcards.cohort in MEASURED:
        return []
    return stages.trained_on(SLIDES.loc[usable(SECTIONS)], APPLIED)


def measured_scale(wildcards):
    """Return the scale of the measured expression of {cohort}; None for predicted slides."""
    return config["measured"].get(wildcards.cohort, {}).get("scale")


def predicted_slides(wildcards):
    """Return the ids of the slides without spots of all cohorts."""
    sections = set(SECTIONS)
    return usable([slide for slide in SLIDES.index if slide not in sections])


def expression_of_predicted(wildcards):
    """Return the predicted profiles of the slides without spots of all cohorts."""
    return [f"results/expression/{slide}.h5ad" for slide in predicted_slides(wildcards)]


def patients_of_predicted(wildcards):
    """Return the patient of each of `predicted_slides`."""
    return [patient_of(slide) for slide in predicted_slides(wildcards)]


def cohorts_of_predicted(wildcards):
    """Return the cohort of each of `predicted_slides`."""
    return [SLIDE_ROWS[slide]["cohort"] for slide in predicted_slides(wildcards)]


def predicted_slide_ids(wildcards):
    """Return the ids of the slides without spots of {cohort}, in the order of `summary_inputs`."""
    return cohort_slides(wildcards, spots=False)


def predicted_patient_ids(wildcards):
    """Return the patient of each slide without spots of {cohort}."""
    return [patient_of(slide) for slide in cohort_slides(wildcards, spots=False)]


def predicted_maps(wildcards):
    """Return the predicted slides of {cohort}, in the order of `predicted_slide_ids`."""
    slides = cohort_slides(wildcards, spots=False)
    return [f"results/expression/{slide}.h5ad" for slide in slides]


def chosen(section, *keys):
    """Return some settings of a section: what a rule does not read must not make it run again."""
    return {key: config[section][key] for key in keys}


def summary_settings(wildcards):
    """Return the settings that describe the patients of {cohort}; measured ones have no tiles."""
    if wildcards.cohort in MEASURED:
        return chosen("summary", "endpoint", "sample_types")
    return config["summary"]


def map_settings(wildcards):
    """Return the settings of the map network for {outcome}."""
    unread = {"outcomes"}
    if wildcards.outcome == "response":
        unread |= {"hist", "noise_draws"}
    elif not config["maps"]["hist"]:
        unread |= {"noise_draws"}
    return {key: value for key, value in config["maps"].items() if key not in unread}


def outcome_settings(wildcards):
    """Return the settings of {outcome} that the map network reads."""
    return chosen(wildcards.outcome, "folds", "covariates", "penalties")


def map_scores(outcome):
    """Return an input function that gives the map network's scores of {cohort}, where wanted."""

    def files(wildcards):
        cohort = wildcards.cohort
        if outcome not in config["maps"]["outcomes"] or cohort in MEASURED:
            return []
        return [f"results/maps/{cohort}/{outcome}{end}.tsv" for end in ("", ".hist")]

    return files


def unseen_slides(wildcards):
    """Return the slides without spots of {cohort}, but for those that the model was trained on."""
    slides = cohort_slides(wildcards, spots=False)
    if config["summary"]["training_patients"] == "keep":
        return slides
    seen = set(map(barcodes.patient_key, training_patients(wildcards)))
    return [s for s in slides if barcodes.patient_key(patient_of(s)) not in seen]


def activity_slide_ids(wildcards):
    """Return the slides of {cohort} whose gene sets are mapped: the predicted ones, or sections."""
    return unseen_slides(wildcards) or cohort_slides(wildcards, spots=True)


def activity_patient_ids(wildcards):
    """Return the patient of each of `activity_slide_ids`."""
    return [patient_of(slide) for slide in activity_slide_ids(wildcards)]


def activity_slides(wildcards):
    """Return the expression, predicted or measured, of each of `activity_slide_ids`."""
    return [
        f"results/{'spots' if slide in SECTIONS else 'expression'}/{slide}.h5ad"
        for slide in activity_slide_ids(wildcards)
    ]


def enrichment_settings(wildcards):
    """Return the settings of the enrichment of {contrast}."""
    keys = ["min_size", "max_size", "permutations"]
    if wildcards.contrast != "tumour":
        keys.append("patient_permutations")
    if wildcards.contrast == "subtype":
        keys.append("subtype")
    return chosen("enrichment", *keys)


def ranking_settings(wildcards):
    """Return what else the ranking for {contrast} in {cohort} depends on."""
    if wildcards.contrast == "survival":
        return chosen("survival", "gene_scale")
    if wildcards.contrast == "tumour" and not cohort_slides(wildcards, spots=True):
        return chosen("summary", "tumour_threshold")
    return {}


def ranking_inputs(wildcards):
    """Return what ranks the genes of {cohort} for {contrast}."""
    cohort, contrast = wildcards.cohort, wildcards.contrast
    patients = {"patients": f"results/patients/{cohort}.parquet"}
    if contrast == "survival":
        return {"cox": f"results/survival/{cohort}/cox.tsv", **patients}
    if contrast == "response":
        return {"response_genes": f"results/response/{cohort}/genes.tsv", **patients}
    if contrast == "subtype":
        return patients
    sections = cohort_slides(wildcards, spots=True)
    if sections:
        return {
            "spots": [f"results/spots/{slide}.h5ad" for slide in sections],
            "labels": [f"results/labels/{slide}.tsv" for slide in sections],
        }
    return {
        "expression": [
            f"results/expression/{slide}.h5ad" for slide in unseen_slides(wildcards)
        ]
    }


def ranking_slide_ids(wildcards):
    """Return the slides whose predicted expression ranks the genes, in order."""
    ranked_by_slides = "expression" in ranking_inputs(wildcards)
    return unseen_slides(wildcards) if ranked_by_slides else []


def ranking_patient_ids(wildcards):
    """Return their patients, in the same order."""
    return [patient_of(slide) for slide in ranking_slide_ids(wildcards)]
