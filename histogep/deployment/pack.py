"""Pack the models of a study into the self-contained folder that `histogep.deployment.model` loads."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

from histogep.deployment.folder import (
    DISTANCE,
    FORMAT,
    GENES,
    KEYPOINTS,
    SETTINGS,
    folder_digest,
    weights_file,
)
from histogep.deployment.model_card import model_card
from histogep.deployment.out_of_distribution import FeatureDistance
from histogep.encoders.feature_file import read_features
from histogep.errors import InputError
from histogep.files import complete, read_json, read_tsv, write_json, write_tsv
from histogep.lattice import Lattice
from histogep.models.sections import check_alike
from histogep.models.selection import inner_scores
from histogep.slides.same_file import IMAGES
from histogep.slides.same_tissue import Keypoints, write_keypoints
from histogep.warned import decides

LOG = logging.getLogger(__name__)
ROLES = ("expression", "tumour", "extended")


def package_model(
    folder: str | Path,
    *,
    study: str,
    weights: Sequence[str | Path],
    settings: Sequence[str | Path],
    fold_settings: Sequence[str | Path],
    features: Sequence[str | Path],
    images: Mapping[str, str],
    patients: Mapping[str, str],
    keypoints: Mapping[str, Keypoints],
    calibration: str | Path,
    scorecards: str | Path,
    deploy: Mapping[str, str | None],
    lattice: Mapping[str, Any],
    labels: str = "",
) -> dict[str, Any]:
    """Write the model folder of a study; return its settings.

    Parameters
    ----------
    folder
        Folder to write; complete or absent.
    study
        Name of the study.
    weights, settings
        Files of the models trained on all sections, in the same order.
    fold_settings
        Settings of the models of all folds that hold something out.
    features
        Features of all training sections.
    images
        SHA-256 of the image of each training section.
    patients
        Patient of each training section: the distances are learnt by leaving out patients.
    keypoints
        Keypoints of each training section: its picture, by which copies are found.
    calibration, scorecards
        Tables of results/evaluation/{study}.
    deploy
        `expression`, `tumour` (a model name, or "auto": the best by the inner folds of the patient_cv
        folds), `extended` (a model name).
    lattice
        Lattice settings of the study.
    labels
        Whose labels the tumour map was trained on, in words; "" where nothing is known of them.
    """
    records = [read_json(path) for path in settings]
    trained = {r["model"]: (r, path) for r, path in zip(records, weights, strict=True)}
    patient_cv = [r for r in map(read_json, fold_settings) if r["protocol"] == "patient_cv"]
    names, scores = choose_models(records, patient_cv, deploy)
    slides = [read_features(path) for path in features]
    check_alike(slides, lattice=dict(lattice))
    distances = FeatureDistance.fit(
        [s.values for s in slides],
        patients=[patients[s.slide] for s in slides],
        blocks=slides[0].blocks,
        white=slides[0].white,
    )
    chosen = {role: trained[name][0] for role, name in names.items()}
    genes = gene_table(chosen, read_tsv(calibration, dtype={"gene": str, "model": str}))
    absent = {
        r["model"]: r.get("absent") or r["absent_tumour"]
        for r in records
        if r.get("absent") or r.get("absent_tumour")
    }
    record = {
        "format": FORMAT,
        "study": study,
        "lattice": Lattice.from_settings(lattice).to_settings(),
        "encoders": slides[0].encoders,
        "blocks": [[name, int(width)] for name, width in slides[0].blocks],
        "training_slides": [s.slide for s in slides],
        IMAGES: {s.slide: images[s.slide] for s in slides},
        "validation_scores": scores["expression"],
        "tumour_scores": scores["tumour"],
        "absent": absent,
        "models": chosen,
    }
    with complete(folder) as temporary:
        temporary.mkdir()
        for role, name in names.items():
            shutil.copyfile(trained[name][1], temporary / weights_file(record, role))
        save_file(distances.to_arrays(), temporary / DISTANCE)
        write_tsv(genes, temporary / GENES)
        write_keypoints(keypoints, temporary / KEYPOINTS)
        card = model_card(record, genes, read_tsv(scorecards), labels=labels)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        record["digest"] = folder_digest(temporary, record)
        write_json(record, temporary / SETTINGS)
    LOG.info("packed %s", ", ".join(f"{role}: {name}" for role, name in names.items()))
    return record


def choose_models(
    records: Sequence[Mapping[str, Any]],
    patient_cv: Sequence[Mapping[str, Any]],
    deploy: Mapping[str, str | None],
) -> tuple[dict[str, str], dict[str, dict[str, float]]]:
    """Return role -> model name, and the mean inner-fold score of each model by task.

    The scores come from inside the training patients of the patient_cv folds: the held-out patients do
    not affect which model is deployed. The score of a network is that of its best epoch, which is
    slightly optimistic.
    """
    by_name = {record["model"]: record for record in records}
    wanted, scores = dict(deploy), {}
    for role in ("expression", "tumour"):
        candidates = [r["model"] for r in records if _serves(r, role) and r["panel"] == "main"]
        scores[role] = inner_scores(candidates, patient_cv, role)
        if wanted.get(role, "auto") == "auto":
            wanted[role] = max(
                candidates, key=lambda name: scores[role].get(name, -np.inf), default=None
            )
    if wanted["expression"] is None:
        raise InputError("no model predicts the main panel: add one under `models`")
    names = {}
    for role in ROLES:
        name = wanted.get(role)
        if not name:
            continue
        if name not in by_name:
            if role == "expression":
                known = ", ".join(by_name)
                raise InputError(f"deploy.expression names {name!r}; the models are {known}")
            LOG.warning(
                "deploy.%s: there is no model %r, so the folder has none",
                *(role, name),
                **(decides("tumour") if role == "tumour" else decides("copy number")),
            )
            continue
        reason = by_name[name].get("absent") or by_name[name].get("absent_tumour")
        if role == "tumour" and reason:
            LOG.warning(
                "deploy.tumour: the folder has no tumour map: %s", reason, **decides("tumour")
            )
            continue
        if not _serves(by_name[name], role):
            raise InputError(f"deploy.{role}: model {name!r} is of task {by_name[name]['task']}")
        names[role] = name
    return names, scores


def _serves(record: Mapping[str, Any], role: str) -> bool:
    """Return whether a trained model can take a role of the folder."""
    task = "tumour" if role == "tumour" else "expression"
    if record.get("absent") or (task == "tumour" and record.get("absent_tumour")):
        return False
    return record["task"] in (task, "both")


def gene_table(models: Mapping[str, Mapping[str, Any]], calibration: pd.DataFrame) -> pd.DataFrame:
    """Return gene, main, extended, predictable, score, null, half_width of the deployed panels.

    Each gene's figures are those of the model that predicts it; a gene that no patient_cv fold
    evaluated is not predictable.
    """
    main = list(models["expression"]["genes"])
    extended = list(models["extended"]["genes"]) if "extended" in models else []
    genes = list(dict.fromkeys(main + extended))
    table = pd.DataFrame({"gene": genes})
    table["main"], table["extended"] = table["gene"].isin(main), table["gene"].isin(extended)
    columns = ["predictable", "score", "null", "half_width"]
    figures = pd.DataFrame(index=genes, columns=columns, dtype=object)
    for role, members in (("extended", extended), ("expression", main)):
        if role in models:
            mine = calibration[calibration["model"] == models[role]["model"]]
            mine = mine.drop_duplicates("gene").set_index("gene").reindex(columns=columns)
            shared = [gene for gene in members if gene in mine.index]
            figures.loc[shared] = mine.loc[shared].astype(object)
    flags = figures["predictable"].map(lambda value: str(value).lower() in ("true", "1", "1.0"))
    table["predictable"] = flags.to_numpy(bool)
    for column in columns[1:]:
        table[column] = pd.to_numeric(figures[column], errors="coerce").to_numpy(float)
    return table
