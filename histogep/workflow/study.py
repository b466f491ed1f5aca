"""What each job of a study reads: files and parameters, by the slide, cohort, fold or model it is for.

`Study` holds settings, references and sheets (`histogep.workflow.study_reading.read_study`). Its methods are
named after what a rule is given; their arguments are called as the wildcards of the rules. A study
of which some slides cannot be used is `study.without(slides)`, which answers for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histogep.errors import InputError
from histogep.inputs.barcodes import patient_key
from histogep.study import encoder_choices
from histogep.study.stages import Stages, plan_stages, trained_on

# Every job of a cluster parses the workflow twice: what reads tables is imported where a job needs it.
if TYPE_CHECKING:
    import pandas as pd

#: Where the table of slides that cannot be used is written.
FAILED_SLIDES = "results/failed_slides.tsv"
#: Where what was asked and what may be relied on is written.
SUMMARY = "results/summary.tsv"
_SIMULATED = "data/simulated/"
#: Kind of export -> its file, and what it costs (docs/export.md has the measurements).
EXPORTS = {
    "spatialdata": (
        "results/spatialdata/{slide}.zarr",
        "about 35 MB and 16 s for each cm2 at 2 um per px of the image (export.image_um)",
    ),
    "qupath": (
        "results/qupath/{slide}",
        "about 2 KB for each place with 50 genes, a second for each slide",
    ),
    "tiles": (
        "results/tile_images/{slide}.tar",
        "about 95 KB and 0.06 s for each tile",
    ),
    "clam": (
        "results/clam/pt_files/{slide}.pt",
        "as large as results/features, a second each",
    ),
}


@dataclass(frozen=True)
class References:
    """Where the files lie that a study names; None for those that it does not.

    Attributes
    ----------
    slides, patients
        The slide sheet and the clinical table.
    gene_positions
        Where the genes lie.
    gene_sets
        Collection -> file.
    measured
        Cohort with measured bulk expression -> the files `measured` and `patients`.
    model
        The model folder that is applied.
    """

    slides: str | None = None
    patients: str | None = None
    gene_positions: str | None = None
    gene_sets: Mapping[str, str | None] = field(default_factory=dict)
    measured: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    model: str | None = None


@dataclass(frozen=True)
class Sheets:
    """The tables of a study.

    Attributes
    ----------
    slides
        The slide sheet (`histogep.study.sheets.read_slides`).
    patients
        The clinical table, if there is one.
    measured_patients
        Cohort with measured expression -> the rows of its clinical table that have a sample.
    """

    slides: pd.DataFrame
    patients: pd.DataFrame | None = None
    measured_patients: Mapping[str, pd.DataFrame] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Study:
    """A study, and what each of its jobs reads; made of its tables by `Study.of_sheets`.

    Parameters
    ----------
    settings
        The complete settings.
    references
        Where the files lie that the settings name.
    slides
        Slide -> its row in the slide sheet, in the order of their ids.
    sheets
        Returns the tables, which are read again where the study comes from its file
        (`histogep.workflow.resolved`).
    applied
        The settings of the model folder that `model` names, where it names one.
    warnings
        What the readers of the files warned of.
    left_out
        Slides that are no longer in `slides`, since they cannot be used.
    planned
        The stages, where they have been planned already.
    """

    settings: Mapping[str, Any]
    references: References
    slides: Mapping[str, Mapping[str, Any]]
    sheets: Callable[[], Sheets] = field(repr=False)
    applied: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = ()
    left_out: frozenset[str] = frozenset()
    planned: Stages | None = None
    _smaller: dict[frozenset[str], Study] = field(default_factory=dict, repr=False)
    _usable: dict[tuple[str, int, int], Study] = field(default_factory=dict, repr=False)

    @classmethod
    def of_sheets(
        cls, settings: Mapping[str, Any], references: References, sheets: Sheets, **more: Any
    ) -> Study:
        """Return the study of these tables; `more` are parameters of the class."""
        return cls(settings, references, sheets.slides.to_dict("index"), lambda: sheets, **more)

    # ---------------------------------------------------------------- which slides, which stages

    def without(self, failed: Iterable[str]) -> Study:
        """Return the study of the other slides; the same one whenever the same slides are left out."""
        failed = frozenset(self.slides).intersection(failed)
        if not failed:
            return self
        if failed not in self._smaller:
            sheets = self.sheets()
            others = sheets.slides.loc[~sheets.slides.index.isin(failed)]
            self._smaller[failed] = Study.of_sheets(
                self.settings,
                self.references,
                replace(sheets, slides=others),
                applied=self.applied,
                warnings=self.warnings,
                left_out=self.left_out | failed,
            )
        return self._smaller[failed]

    def of_usable_slides(self, listed: str | Path) -> Study:
        """Return the study without the slides that a table such as `FAILED_SLIDES` lists."""
        from histogep.slides.rejected import failed_slides

        # Asked for every job of a plan: the table is read again only where it is another one.
        state = Path(listed).stat()
        key = str(listed), state.st_mtime_ns, state.st_size
        if key not in self._usable:
            self._usable[key] = self.without(failed_slides(listed))
        return self._usable[key]

    @cached_property
    def stages(self) -> Stages:
        """The stages that the inputs allow, planned once.

        Raises
        ------
        InputError
            When nothing can run (`histogep.study.stages.plan_stages`).
        """
        if self.planned is not None:
            return self.planned
        sheets = self.sheets()
        try:
            return plan_stages(
                self.settings,
                sheets.slides,
                sheets.patients,
                sheets.measured_patients,
                applied_model=self.applied,
            )
        except InputError as error:
            if not self.left_out:
                raise
            raise InputError(f"after bad slides were left out: {error}") from None

    @property
    def name(self) -> str:
        """The name of the study."""
        return self.settings["study"]

    @property
    def skips_bad_slides(self) -> bool:
        """Whether slides that cannot be used are left out, in place of stopping the study."""
        # A study of measured expression alone has none to look at.
        return self.settings["on_bad_slide"] == "skip" and len(self.slides) > 0

    @cached_property
    def sections(self) -> list[str]:
        """The slides with spots that a model is trained on; none where a model is applied."""
        if self.settings["model"] is not None:
            return []
        return [slide for slide, row in self.slides.items() if row["counts"] != ""]

    @cached_property
    def annotated(self) -> list[str]:
        """The sections that somebody annotated."""
        return [slide for slide in self.sections if self.slides[slide]["labels"]]

    @cached_property
    def predicted(self) -> list[str]:
        """The slides without spots, whose expression is predicted."""
        return [slide for slide in self.slides if slide not in self._with_spots]

    @cached_property
    def cohorts(self) -> list[str]:
        """All cohorts, of slides and of measured expression."""
        return sorted({*self._members, *self.references.measured})

    @cached_property
    def folds(self) -> list[str]:
        """The ids of the folds."""
        from histogep.models.folds import fold_names

        patients = {self.slides[section]["patient"] for section in self.sections}
        return fold_names(
            n_patients=len(patients),
            n_sections=len(self.sections),
            settings=self.settings["folds"],
        )

    @cached_property
    def exported_encoders(self) -> dict[str, dict[str, Any]]:
        """The encoders that are converted once for the CPU: name -> settings."""
        return encoder_choices.exported_encoders(self.settings["encoders"])

    @property
    def model_folder(self) -> str:
        """The model folder that is applied, or the one that the study packs."""
        return self.references.model or f"results/model/{self.name}"

    @property
    def model_digest(self) -> str | None:
        """The digest of a model that is applied: another one may come with older times."""
        return self.applied["digest"] if self.applied else None

    @cached_property
    def _members(self) -> dict[str, list[str]]:
        members: dict[str, list[str]] = {}
        for slide, row in self.slides.items():
            members.setdefault(row["cohort"], []).append(slide)
        return members

    @cached_property
    def _with_spots(self) -> frozenset[str]:
        return frozenset(self.sections)

    def targets(self) -> list[str]:
        """Return the files that the whole study asks for."""
        return [SUMMARY, *self.finished()]

    def finished(self) -> list[str]:
        """Return the files that the whole study asks for, but for the summary of them all."""
        listed = ["results/slides.tsv", "results/similar_slides.tsv"] if len(self.slides) else []
        made = self.stages.targets() + listed + self.failures()
        return made + self.page_targets() + self.export_targets()

    def summary_sources(self) -> dict[str, Any]:
        """Return what the summary of the study is written from: every result, and by name what it reads."""
        stages, evaluation = self.stages, f"results/evaluation/{self.name}"
        trained = {
            "scorecards": f"{evaluation}/scorecards.tsv",
            "tumour": f"{evaluation}/tumour.tsv",
            "verdict": f"{evaluation}/leakage.json",
            "labels": self.section_files("results/labels/{slide}.tsv"),
        }
        tables = {
            "controls": ("cnv", "results/cnv/{}/controls.tsv"),
            "concordance": ("survival", "results/survival/{}/concordance.tsv"),
            "multivariable": ("survival", "results/survival/{}/multivariable.tsv"),
            "follow_up": ("survival", "results/survival/{}/follow_up.tsv"),
            "performance": ("response", "results/response/{}/performance.tsv"),
            "counts": ("patients", "results/patients/{}.counts.tsv"),
        }
        named = {
            name: [pattern.format(cohort) for cohort in stages.cohorts(stage)]
            for name, (stage, pattern) in tables.items()
        }
        return {
            "finished": self.finished(),
            "stages": "results/provenance/stages.tsv",
            **(
                {"slides": "results/slides.tsv", "model": self.model_folder}
                if len(self.slides)
                else {}
            ),
            **(trained if stages.runs("model") else {}),
            **({"predicted": "results/predicted_slides.tsv"} if self.predicted else {}),
            **{name: paths for name, paths in named.items() if paths},
        }

    def failures(self) -> list[str]:
        """Return the table of slides that cannot be used; with `on_bad_slide: stop` there is none."""
        return [FAILED_SLIDES] if self.skips_bad_slides else []

    def stage_rows(self) -> list[dict[str, str]]:
        """Return one plain row per stage, for the report."""
        return self.stages.rows()

    # ---------------------------------------------------------------- one slide

    def row(self, slide: str) -> Mapping[str, Any]:
        """Return the row of a slide in the slide sheet."""
        try:
            return self.slides[slide]
        except KeyError:
            raise InputError(f"the slide sheet has no slide {slide}") from None

    def image(self, slide: str) -> str:
        """Return the whole-slide image."""
        return self.row(slide)["image"]

    def mpp(self, slide: str) -> float | None:
        """Return the pixel size in um that the sheet gives, or None."""
        return _number(self.row(slide)["mpp"])

    def spots_mpp(self, slide: str) -> float | None:
        """Return the pixel size in um that the distance of a section's spots implies.

        Only where the sheet gives none, so that a job can name or check it; else None.
        """
        row = self.row(slide)
        if slide not in self._with_spots or row["counts"].startswith(_SIMULATED) or self.mpp(slide):
            return None
        # What reads counts takes a second to import, and few sections need it.
        from histogep.lattice import Lattice
        from histogep.spots.align import implied_mpp

        lattice = Lattice.from_settings(self.settings["lattice"])
        return implied_mpp(row["counts"], positions=row["positions"] or None, lattice=lattice)

    def most_mm(self, slide: str) -> float | None:
        """Return the largest side in mm that the sheet allows, or None."""
        return _number(self.row(slide)["max_mm"])

    def image_files(self, slide: str) -> dict[str, str]:
        """Return the image, and the scale factors of the Space Ranger folder if there are any."""
        counts = self.row(slide)["counts"]
        # A simulated image knows its pixel size, and its folder is made beside it.
        if not counts or counts.startswith(_SIMULATED):
            return {"image": self.image(slide)}
        scales = [Path(counts) / f"{outs}spatial/scalefactors_json.json" for outs in ("", "outs/")]
        known = [{"scalefactors": path.as_posix()} for path in scales if path.is_file()]
        return {"image": self.image(slide)} | (known[0] if known else {})

    def composition(self, slide: str) -> dict[str, Any]:
        """Return what the simulated tissue consists of."""
        from histogep.simulate.cohort import slide_composition

        return slide_composition(self.settings["seed"], slide).to_settings()

    def places(self, slide: str) -> dict[str, str]:
        """Return the spots of a section, on which its tiles lie, or the annotated regions of a slide."""
        regions = self.row(slide)["regions"]
        if slide in self._with_spots:
            return {"spots": f"results/spots/{slide}.h5ad"}
        return {"regions": regions} if regions else {}

    def given_features(self, slide: str) -> dict[str, str]:
        """Return the features that the sheet gives, if any."""
        return _given(given=self.row(slide)["features"])

    def counts(self, slide: str) -> dict[str, str]:
        """Return the counts, for legacy ST tables the positions of their spots, and of genes."""
        row = self.row(slide)
        folder = row["counts"]
        if folder.startswith(_SIMULATED):
            return {
                "counts": f"{folder}/filtered_feature_bc_matrix.h5",
                "positions": f"{folder}/spatial/tissue_positions.csv",
                "scalefactors": f"{folder}/spatial/scalefactors_json.json",
                "hires": f"{folder}/spatial/tissue_hires_image.png",
            }
        return _given(
            counts=folder,
            positions=row["positions"],
            # They know the symbols of genes that go by Ensembl ids.
            gene_positions=self.references.gene_positions,
        )

    def annotation(self, slide: str) -> dict[str, str]:
        """Return the annotation if there is one, and the gene positions if they are known."""
        labels = self.row(slide)["labels"]
        return _given(labels=labels, gene_positions=self.references.gene_positions)

    def cnv_files(self, slide: str) -> dict[str, str]:
        """Return measured spots with labels, or features and predictions.

        A prediction also needs how the study's predicted copy number did in held-out patients.
        """
        if slide in self._with_spots:
            return {
                "spots": f"results/spots/{slide}.h5ad",
                "labels": f"results/labels/{slide}.tsv",
            }
        files = {
            "features": f"results/features/{slide}.h5",
            "expression": f"results/expression/{slide}.h5ad",
            "model": self.model_folder,
        }
        if self.stages.runs("cnv agreement"):
            files["agreement"] = f"results/cnv/{self.name}/agreement.tsv"
        return files

    def neighbourhood_files(self, slide: str) -> dict[str, str]:
        """Return measured spots with labels, or the prediction; and the clones where they are called."""
        files = {"expression": f"results/expression/{slide}.h5ad"}
        if slide in self._with_spots:
            files = {
                "spots": f"results/spots/{slide}.h5ad",
                "labels": f"results/labels/{slide}.tsv",
            }
        if self.stages.runs("cnv", self.row(slide)["cohort"]):
            files["cnv"] = f"results/cnv/{slide}.h5ad"
        return files

    def neighbourhood_threshold(self, slide: str) -> float | None:
        """Return the probability of a malignant place; None for a section, which has labels."""
        measured = slide in self._with_spots
        return None if measured else self.settings["summary"]["tumour_threshold"]

    # ---------------------------------------------------------------- exports

    def exported(self, kind: str) -> list[str]:
        """Return the slides that the configuration asks to export in some way."""
        chosen = self.settings["export"][kind]
        if isinstance(chosen, bool):
            return list(self.slides) if chosen else []
        unknown = set(chosen) - set(self.slides) - self.left_out
        if unknown:
            raise InputError(
                f"export.{kind}: {min(unknown)} is not in the slide sheet, which has "
                f"{', '.join(list(self.slides)[:3])}"
            )
        return [slide for slide in self.slides if slide in set(chosen)]

    def export_files(self, slide: str) -> dict[str, str]:
        """Return what is exported of a slide; what its profile may be called is known of the cohort."""
        cohort, files = self.row(slide)["cohort"], self.neighbourhood_files(slide)
        if self.stages.runs("cnv", cohort):
            files["subtypes"] = f"results/cnv/{cohort}/subtypes.tsv"
        return files

    def export_targets(self) -> list[str]:
        """Return the files that the configuration asks for beyond the results."""
        return [
            path
            for kind, (pattern, _) in EXPORTS.items()
            for path in _files(pattern, self.exported(kind))
        ]

    def export_costs(self) -> list[str]:
        """Return one line for each kind of export: what it will cost."""
        lines = []
        for kind, (pattern, cost) in EXPORTS.items():
            if n := len(self.exported(kind)):
                lines.append(
                    f"export.{kind}: {n} {'slide' if n == 1 else 'slides'} as {pattern}: {cost}"
                )
        return lines

    # ---------------------------------------------------------------- all slides, all sections

    def slide_rows(self) -> dict[str, dict[str, str]]:
        """Return patient and cohort of every slide, and whether it is a section or a slide."""
        return {
            slide: {
                "patient": row["patient"],
                "cohort": row["cohort"],
                "role": "section" if slide in self._with_spots else "slide",
            }
            for slide, row in self.slides.items()
        }

    def slide_patients(self) -> dict[str, str]:
        """Return the patient of every slide."""
        return self._patients(self.slides)

    def slide_files(self, pattern: str) -> list[str]:
        """Return a file of every slide; {slide} stands for its id in `pattern`."""
        return _files(pattern, self.slides)

    def section_patients(self) -> dict[str, str]:
        """Return the patient of every section."""
        return self._patients(self.sections)

    def section_files(self, pattern: str) -> list[str]:
        """Return a file of every section."""
        return _files(pattern, self.sections)

    def annotated_files(self, pattern: str) -> list[str]:
        """Return a file of every section that somebody annotated."""
        return _files(pattern, self.annotated)

    def predicted_files(self, pattern: str) -> list[str]:
        """Return a file of every slide without spots."""
        return _files(pattern, self.predicted)

    def predicted_rows(self) -> dict[str, dict[str, str]]:
        """Return patient and cohort of every slide without spots."""
        return {
            slide: {name: self.slides[slide][name] for name in ("patient", "cohort")}
            for slide in self.predicted
        }

    def encoder_settings(self, encoder: str) -> dict[str, Any]:
        """Return the settings of an encoder that is converted."""
        return self.exported_encoders[encoder]

    def encoder_weights(self, encoder: str) -> list[str]:
        """Return the files of weights of an encoder; none of one whose package brings them."""
        return encoder_choices.weights_files([self.exported_encoders[encoder]])

    def weights(self) -> list[str]:
        """Return the files of weights of all encoders: other weights are other features."""
        return encoder_choices.weights_files(self.settings["encoders"])

    # ---------------------------------------------------------------- folds and models

    def fold_files(self, pattern: str) -> list[str]:
        """Return a file of every fold; {fold} and {study} stand for them in `pattern`."""
        return [pattern.format(fold=fold, study=self.name) for fold in self.folds]

    def held_out(self) -> list[tuple[str, str]]:
        """Return fold and model of every prediction of held-out sections."""
        return [
            (fold, model)
            for fold in self.folds
            for model, choices in self.settings["models"].items()
            # The extended panel serves copy number only; the paper's protocol knows only its own network.
            if (fold.startswith("patient_cv-") and choices["panel"] == "main")
            or (fold.startswith("published-") and choices["kind"] == "cmunet")
        ]

    def extended_held_out(self) -> list[tuple[str, str]]:
        """Return fold and model of the extended panel's held-out training.

        It serves copy number only: its patient_cv folds are trained where predicted is compared with
        measured copy number, and audited like all others.
        """
        if not self.stages.runs("cnv agreement"):
            return []
        extended = self.settings["deploy"]["extended"]
        return [(fold, extended) for fold in self.folds if fold.startswith("patient_cv-")]

    def extended_files(self, name: str) -> list[str]:
        """Return a file of each held-out training of the extended panel."""
        return [self._trained(fold, model, name) for fold, model in self.extended_held_out()]

    def held_out_settings(self) -> list[str]:
        """Return the settings of every model that was trained with sections held out."""
        return [self._trained(fold, model, "settings.json") for fold, model in self.held_out()]

    def audited_settings(self) -> list[str]:
        """Return the settings of every model with sections held out, those of the extended panel too."""
        return self.held_out_settings() + self.extended_files("settings.json")

    def held_out_predictions(self) -> list[str]:
        """Return the predictions of every held-out section by every model."""
        return [
            f"results/predictions/{self.name}/{fold}/{model}.h5ad"
            for fold, model in self.held_out()
        ]

    def model_settings(self, model: str) -> dict[str, Any]:
        """Return the settings of a model under its name, as the configuration has them."""
        return {model: self.settings["models"][model]}

    def training_files(self, model: str, fold: str) -> dict[str, list[str]]:
        """Return an ensemble's members; for the fold `all`, the patient_cv folds' settings.

        Those fix the number of epochs.
        """
        members = self.settings["models"][model]["members"]
        if members:
            return {
                "members": [self._trained(fold, m, "weights.safetensors") for m in members],
                "member_settings": [self._trained(fold, m, "settings.json") for m in members],
            }
        if fold != "all":
            return {}
        return {
            "fold_settings": [
                self._trained(held_out, name, "settings.json")
                for held_out, name in self.held_out()
                if held_out.startswith("patient_cv-") and name == model
            ]
        }

    def _trained(self, fold: str, model: str, name: str) -> str:
        return f"results/models/{self.name}/{fold}/{model}/{name}"

    # ---------------------------------------------------------------- one cohort

    def cohort_slides(self, cohort: str, *, spots: bool | None = None) -> list[str]:
        """Return the slides of a cohort with (True), without (False) or whatever (None) spots."""
        members = self._members.get(cohort, [])
        return [s for s in members if spots is None or (s in self._with_spots) == spots]

    def cohort_patients(self, cohort: str) -> dict[str, str]:
        """Return the patient of each slide of a cohort."""
        return self._patients(self.cohort_slides(cohort))

    def cohort_files(self, cohort: str, pattern: str) -> list[str]:
        """Return a file of each slide of a cohort."""
        return _files(pattern, self.cohort_slides(cohort))

    def predicted_patients(self, cohort: str) -> dict[str, str]:
        """Return the patient of each slide without spots of a cohort."""
        return self._patients(self.cohort_slides(cohort, spots=False))

    def predicted_maps(self, cohort: str) -> list[str]:
        """Return the predicted expression of each slide without spots of a cohort."""
        return _files("results/expression/{slide}.h5ad", self.cohort_slides(cohort, spots=False))

    def described_patients(self, cohort: str) -> dict[str, str]:
        """Return the patients of the slides of a cohort whose neighbourhoods are described."""
        mapped = self.applied is None or "tumour" in self.applied["models"]
        slides = self.cohort_slides(cohort)
        return self._patients(s for s in slides if mapped or s in self._with_spots)

    def described_files(self, cohort: str) -> list[str]:
        """Return the neighbourhoods of each of these slides."""
        return _files("results/neighbourhoods/{slide}.tsv", self.described_patients(cohort))

    def summary_files(self, cohort: str) -> dict[str, Any]:
        """Return the expression of a cohort, measured or predicted, its patients and subtypes."""
        references = self.references
        if cohort in references.measured:
            # Where the genes are Ensembl ids their symbols stand in the gene positions.
            positions = _given(gene_positions=references.gene_positions)
            return {**references.measured[cohort], **positions}
        subtyped = self.stages.runs("cnv", cohort)
        described = self.stages.runs("neighbourhoods", cohort)
        neighbourhoods = f"results/neighbourhoods/{cohort}/slides.tsv" if described else None
        return {
            "expression": self.predicted_maps(cohort),
            **({"subtypes": f"results/cnv/{cohort}/patients.tsv"} if subtyped else {}),
            **_given(neighbourhoods=neighbourhoods),
            **_given(patients=references.patients),
        }

    def summary_settings(self, cohort: str) -> dict[str, Any]:
        """Return the settings that describe the patients of a cohort; measured ones have no tiles."""
        if cohort in self.references.measured:
            return self.chosen("summary", "endpoint", "sample_types")
        return self.settings["summary"]

    def training_patients(self, cohort: str) -> list[str]:
        """Return the patients that the model of the predicted slides of a cohort was trained on."""
        if cohort in self.references.measured:
            return []
        return trained_on(self.section_patients().values(), self.applied)

    def measured_scale(self, cohort: str) -> str | None:
        """Return the scale of the measured expression of a cohort; None for predicted slides."""
        return self.settings["measured"].get(cohort, {}).get("scale")

    def response_patients(self) -> list[str]:
        """Return the patients of each cohort with responses."""
        return [f"results/patients/{c}.parquet" for c in self.stages.cohorts("response")]

    # ---------------------------------------------------------------- maps, ranking, activity

    def map_settings(self, outcome: str) -> dict[str, Any]:
        """Return the settings of the spatial-map model for an outcome."""
        unread = {"outcomes"}
        if outcome == "response":
            unread |= {"published", "noise_draws"}
        elif not self.settings["maps"]["published"]:
            unread |= {"noise_draws"}
        return {key: value for key, value in self.settings["maps"].items() if key not in unread}

    def outcome_settings(self, outcome: str) -> dict[str, Any]:
        """Return the settings of an outcome that the spatial-map model reads."""
        return self.chosen(outcome, "folds", "covariates", "penalties")

    def map_scores(self, cohort: str, outcome: str) -> list[str]:
        """Return the spatial-map model's scores of a cohort, where they are wanted."""
        if outcome not in self.settings["maps"]["outcomes"] or cohort in self.references.measured:
            return []
        return [f"results/maps/{cohort}/{outcome}{end}.tsv" for end in ("", ".published")]

    def unseen_slides(self, cohort: str) -> list[str]:
        """Return the slides without spots of a cohort, but for those the model was trained on."""
        slides = self.cohort_slides(cohort, spots=False)
        if self.settings["summary"]["training_patients"] == "keep":
            return slides
        seen = set(map(patient_key, self.training_patients(cohort)))
        return [s for s in slides if patient_key(self.slides[s]["patient"]) not in seen]

    def activity_patients(self, cohort: str) -> dict[str, str]:
        """Return the patients of the slides whose gene sets are mapped.

        Those are the predicted ones, or sections where there are none.
        """
        return self._patients(self._activity_slides(cohort))

    def activity_files(self, cohort: str) -> list[str]:
        """Return the expression, predicted or measured, of the slides whose gene sets are mapped."""
        return [
            f"results/{'spots' if slide in self._with_spots else 'expression'}/{slide}.h5ad"
            for slide in self._activity_slides(cohort)
        ]

    def _activity_slides(self, cohort: str) -> list[str]:
        return self.unseen_slides(cohort) or self.cohort_slides(cohort, spots=True)

    def enrichment_settings(self, contrast: str) -> dict[str, Any]:
        """Return the settings of the enrichment of a contrast."""
        keys = ["min_size", "max_size", "permutations"]
        if contrast != "tumour":
            keys.append("patient_permutations")
        if contrast == "subtype":
            keys.append("subtype")
        return self.chosen("enrichment", *keys)

    def ranking_settings(self, cohort: str, contrast: str) -> dict[str, Any]:
        """Return what else the ranking of the genes for a contrast depends on."""
        if contrast == "survival":
            return self.chosen("survival", "gene_scale")
        if contrast == "tumour" and not self.cohort_slides(cohort, spots=True):
            return self.chosen("summary", "tumour_threshold")
        return {}

    def ranking_files(self, cohort: str, contrast: str) -> dict[str, Any]:
        """Return what ranks the genes of a cohort for a contrast."""
        patients = {"patients": f"results/patients/{cohort}.parquet"}
        if contrast == "survival":
            return {"cox": f"results/survival/{cohort}/cox.tsv", **patients}
        if contrast == "response":
            return {"response_genes": f"results/response/{cohort}/genes.tsv", **patients}
        if contrast == "subtype":
            return patients
        if sections := self.cohort_slides(cohort, spots=True):
            return {
                "spots": _files("results/spots/{slide}.h5ad", sections),
                "labels": _files("results/labels/{slide}.tsv", sections),
            }
        expression = _files("results/expression/{slide}.h5ad", self.unseen_slides(cohort))
        return {"expression": expression}

    def ranking_patients(self, cohort: str, contrast: str) -> dict[str, str]:
        """Return the patients of the slides whose predicted expression ranks the genes."""
        by_slides = "expression" in self.ranking_files(cohort, contrast)
        return self._patients(self.unseen_slides(cohort) if by_slides else [])

    # ---------------------------------------------------------------- pages and figures of slides

    def page_targets(self) -> list[str]:
        """Return the pages of slides, and the one that lists all; the figures of the report."""
        if not len(self.slides):
            return []
        pages = [*self.page_slides(), "index"]
        listed = ["results/report/tiles"] + ["results/batch_effects.tsv"] * (len(self.slides) > 1)
        return _files("results/slides_html/{slide}.html", pages) + listed

    def page_slides(self) -> list[str]:
        """Return the slides that have a page, in the order of the sheet.

        Raises
        ------
        InputError
            `report.pages` names a slide that is not in the sheet, or a slide is called as the page
            that lists all.
        """
        wanted = self.settings["report"]["pages"]
        if wanted == "all":
            slides = list(self.slides)
        elif isinstance(wanted, int):
            first = set(self.predicted[:wanted])
            slides = [s for s in self.slides if s in self._with_spots or s in first]
        else:
            unknown = sorted(set(wanted) - set(self.slides) - self.left_out)
            if unknown:
                raise InputError(
                    f"report.pages names {', '.join(unknown[:3])}, which the slide sheet does not have"
                )
            slides = [slide for slide in self.slides if slide in set(wanted)]
        if any(slide.lower() == "index" for slide in slides):
            raise InputError(
                "a slide is called index, as the page that lists all slides is: rename it in the slide sheet"
            )
        return slides

    def page_files(self, slide: str) -> dict[str, Any]:
        """Return what the page of a slide shows, beside its image."""
        cohort = self.row(slide)["cohort"]
        files: dict[str, Any] = {"expression": f"results/expression/{slide}.h5ad"}
        if slide in self._with_spots:
            files = {
                "spots": f"results/spots/{slide}.h5ad",
                "labels": f"results/labels/{slide}.tsv",
                "folds": f"results/folds/{self.name}.tsv",
                "predictions": self.held_out_predictions(),
            }
        if self.applied is None:
            files["gene_scores"] = f"results/evaluation/{self.name}/genes.tsv"
            files["scorecards"] = f"results/evaluation/{self.name}/scorecards.tsv"
        if self.stages.runs("cnv", cohort):
            files["cnv"] = f"results/cnv/{slide}.h5ad"
            files["subtypes"] = f"results/cnv/{cohort}/subtypes.tsv"
        return files

    def page_coverage(self) -> float | None:
        """Return the coverage of the intervals; None where another study trained the model."""
        return None if self.applied else self.settings["evaluation"]["coverage"]

    def predicted_table(self) -> list[str]:
        """Return the table of the predicted slides, if there are any."""
        return ["results/predicted_slides.tsv"] if self.predicted else []

    def listed_files(self) -> dict[str, Any]:
        """Return what the page that lists all slides shows of them."""
        scored = [c for c in self.stages.cohorts("survival") if c not in self.references.measured]
        return {
            "predicted": self.predicted_table(),
            "labels": self.section_files("results/labels/{slide}.tsv"),
            "risks": [f"results/survival/{cohort}/risk.tsv" for cohort in scored],
            "concordance": [f"results/survival/{cohort}/concordance.tsv" for cohort in scored],
        }

    def slide_figures(self) -> dict[str, list[str]]:
        """Return the figures of slides that the report may show, by kind."""
        figures = {"expression": self.predicted_files("results/expression/{slide}.png")}
        for kind, slides_of in (
            ("cnv", self.cohort_slides),
            ("neighbourhoods", self.described_patients),
        ):
            slides = [s for cohort in self.stages.cohorts(kind) for s in slides_of(cohort)]
            figures[kind] = _files(f"results/{kind}/{{slide}}.png", slides)
        return figures

    # ---------------------------------------------------------------- parts

    def chosen(self, section: str, *keys: str) -> dict[str, Any]:
        """Return some settings of a section: what a rule does not read must not make it run again."""
        return {key: self.settings[section][key] for key in keys}

    def _patients(self, slides: Iterable[str]) -> dict[str, str]:
        return {slide: self.slides[slide]["patient"] for slide in slides}


def _files(pattern: str, slides: Iterable[str]) -> list[str]:
    return [pattern.format(slide=slide) for slide in slides]


def _given(**files: str | None) -> dict[str, str]:
    """Return the files that are given."""
    return {name: path for name, path in files.items() if path}


def _number(value: Any) -> float | None:
    """Return a cell of the sheet that may be empty (NaN)."""
    return None if value != value else float(value)
