"""What a study was asked, which model it deployed, and its verdicts, from the tables that it wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from histogep.evaluation import verdicts
from histogep.files import read_json, read_tsv
from histogep.labels.sources import describe_sources, read_label_sources

#: Roles of a model folder, in the order in which they are named.
ROLES = {
    "expression": "gene expression",
    "tumour": "tumour map",
    "extended": "genes for copy number",
}


@dataclass(frozen=True)
class Summary:
    """The first page of a study.

    Attributes
    ----------
    study
        Its name.
    asked
        What was asked, one sentence each.
    deployed
        The models that made the predictions, one sentence each; empty where nothing is predicted.
    left_out
        What was not asked, one sentence for each stage, with the reason.
    verdicts
        What may be relied on.
    """

    study: str
    asked: tuple[str, ...]
    deployed: tuple[str, ...]
    left_out: tuple[str, ...]
    verdicts: tuple[verdicts.Verdict, ...]

    def to_plain(self) -> dict[str, Any]:
        """Return it as what JSON holds, numbers that are not there as null."""
        table = verdicts.table_of(self.verdicts)
        rows = table.astype(object).where(table.notna(), None).to_dict("records")
        return {
            "study": self.study,
            "asked": list(self.asked),
            "deployed": list(self.deployed),
            "left_out": list(self.left_out),
            "verdicts": rows,
        }


def summarise_study(
    study: str, files: Mapping[str, Any], warned: Mapping[str, Sequence[str]]
) -> Summary:
    """Return what a study was asked and what may be relied on.

    Parameters
    ----------
    study
        Its name.
    files
        What it wrote, each where its stage ran: `stages`, `slides` (slides.tsv), `predicted`,
        `scorecards`, `tumour`, `verdict` (the leak audit), `labels` (of every section), `model`
        (the model folder), and of every cohort `controls`, `concordance`, `multivariable`,
        `follow_up`, `performance`, `counts`.
    warned
        Subject (`histogep.warned.SUBJECTS`) -> the warnings that decide it.
    """
    slides = (
        read_tsv(files["slides"], dtype={"slide": str, "patient": str})
        if _has(files, "slides")
        else None
    )
    labels = read_label_sources(files.get("labels", ()))
    settings = read_json(Path(files["model"]) / "settings.json") if _has(files, "model") else None
    found: list[verdicts.Verdict | None] = []
    if settings is not None:
        found += _of_model(files, settings, labels, warned)
    if controls := files.get("controls", ()):
        by_cohort = {_cohort(path): read_tsv(path, dtype={"slide": str}) for path in controls}
        found.append(
            verdicts.judge_copy_number(
                by_cohort, file=", ".join(controls), warned=warned.get("copy number", ())
            )
        )
    for path in files.get("concordance", ()):
        beside = {
            name: read_tsv(next(p for p in files[name] if _cohort(p) == _cohort(path)))
            for name in ("multivariable", "follow_up")
        }
        found.append(
            verdicts.judge_image(
                read_tsv(path), **beside, cohort=_cohort(path), file=str(path),
                warned=warned.get("survival", ()),
            )
        )  # fmt: skip
    for path in files.get("performance", ()):
        found.append(
            verdicts.judge_response(
                read_tsv(path), cohort=_cohort(path), file=str(path),
                warned=warned.get("response", ()),
            )
        )  # fmt: skip
    if _has(files, "predicted"):
        predicted = read_tsv(files["predicted"], dtype={"slide": str, "training_section": str})
        found.append(verdicts.judge_slides(predicted, file=str(files["predicted"])))
    stages = read_tsv(files["stages"], dtype=str, keep_default_na=False)
    return Summary(
        study=study,
        asked=tuple(_asked(slides, labels, files.get("counts", ()))),
        deployed=tuple(_deployed(settings)),
        left_out=tuple(
            f"{row.stage}{f' ({row.cohort})' if row.cohort else ''}: {row.reason}"
            for row in stages[
                (stages["state"] != "ran") & (stages["stage"] != "model")
            ].itertuples()
        ),
        verdicts=tuple(verdict for verdict in found if verdict is not None),
    )


def _of_model(
    files: Mapping[str, Any],
    settings: Mapping[str, Any],
    labels: pd.DataFrame,
    warned: Mapping[str, Sequence[str]],
) -> list[verdicts.Verdict]:
    """Return the verdicts on expression and tumour map: of what is deployed, trained here or not."""
    names = {role: record["model"] for role, record in settings["models"].items()}
    folder = Path(files["model"])
    genes = read_tsv(folder / "genes.tsv", dtype={"gene": str})
    if not _has(files, "scorecards"):
        return [
            verdicts.judge_applied_expression(genes, settings, file=str(folder / "genes.tsv")),
            verdicts.judge_applied_tumour(settings, file=str(folder / "README.md")),
        ]
    cards, file = read_tsv(files["scorecards"]), str(files["scorecards"])
    return [
        verdicts.judge_expression(
            cards,
            genes,
            model=names["expression"],
            file=file,
            warned=[*warned.get("slide", ()), *warned.get("expression", ())],
            alike=len(read_json(files["verdict"]).get("notices", [])),
        ),
        verdicts.judge_tumour(
            cards,
            read_tsv(files["tumour"], dtype={"slide": str, "patient": str}),
            labels,
            model=names.get("tumour", ""),
            file=file,
            absent="; ".join(dict.fromkeys(settings.get("absent", {}).values()))
            if "tumour" not in names
            else "",
            warned=warned.get("tumour", ()),
        ),
    ]


def _asked(
    slides: pd.DataFrame | None, labels: pd.DataFrame, counts: Sequence[str | Path]
) -> list[str]:
    """Return what there is to answer from, one sentence each."""
    said = []
    if slides is not None and len(slides):
        used = slides[slides["status"] == "used"]
        sections = int((used["role"] == "section").sum())
        numbers = {
            "sections (measured, they train the model)": sections,
            "slides without spots (predicted)": len(used) - sections,
            "left out": len(slides) - len(used),
        }
        counted = [f"{what}: {n}" for what, n in numbers.items() if n]
        said.append("; ".join([f"{used['patient'].nunique()} patients", *counted]))
    if len(labels):
        said.append(f"Tumour labels: {describe_sources(labels)}")
    for path in counts:
        n = read_tsv(path).set_index(["part", "what"])["n"]

        def of(what: str, n: pd.Series = n) -> int:
            return int(n.get(("patients", what), 0))

        outcomes = []
        if of("with a survival time"):
            outcomes.append(
                f"survival of {of('with a survival time')} ({of('with an event')} events)"
            )
        if of("with a response known"):
            outcomes.append(
                f"response of {of('with a response known')} ({of('responders')} responders)"
            )
        cohort = Path(path).name.removesuffix(".counts.tsv")
        known = " and ".join(outcomes) if outcomes else "no outcome"
        said.append(f"Cohort {cohort}: {known}, of {of('in the table')} patients")
    return said


def _deployed(settings: Mapping[str, Any] | None) -> list[str]:
    if settings is None:
        return []
    said = []
    for role, what in ROLES.items():
        if role in settings["models"]:
            record = settings["models"][role]
            said.append(
                f"{what}: {record['model']} ({record['kind']}, {record['n_parameters']:,} parameters)"
            )
        elif role == "tumour":
            said.append(f"{what}: none")
    return [*said, f"model folder of the study {settings['study']}, {settings['digest'][:12]}"]


def _has(files: Mapping[str, Any], name: str) -> bool:
    return bool(files.get(name))


def _cohort(path: str | Path) -> str:
    return Path(path).parent.name
