"""The leak audit as a page: what was checked, how often, and what the paper's protocol leaks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from histogep.report.pages import Table, write_page

#: What each check ensures; `<name>_fitted_on` has one for every name (see `_meaning`).
MEANINGS = {
    "one_patient_per_section": "a section belongs to one patient in all folds",
    "one_spelling_per_patient": "no two patients differ in case or spaces only",
    "one_patient_per_image": "no two patients share an image (SHA-256)",
    "one_patient_per_counts": "no two patients share counts (SHA-256 of their gene scores)",
    "one_patient_per_section_changed": "no two patients share a section that was saved again, "
    "turned, mirrored, cropped or thinned (keypoints of the image, profiles of the counts)",
    "patient_cv_sections_tested_once": "each section is held out exactly once",
    "published_sections_tested_once": "each section is held out exactly once (published)",
    "roles": "every fold trains and tests",
    "section_in_one_role": "no section has two roles in a fold",
    "patient_in_one_role": "no patient has two roles in a fold",
    "panel_sections": "the gene panel was chosen from the fold's training sections alone",
    "panel_patients": "the gene panel saw no test patient",
    "panel_chosen_again": "the panel, chosen again from these sections, is the same",
    "gene_scores_unchanged": "the gene scores are those that the panel was chosen from (SHA-256)",
    "model_of_a_fold": "a model belongs to a fold of the table",
    "model_protocol": "a model was trained under its fold's protocol",
    "model_train_slides": "a model trained on its fold's training sections",
    "model_validation_slides": "a model was validated on its fold's validation sections",
    "model_test_slides": "a model is tested on its fold's test sections",
    "model_patients": "no test patient trains or validates a model",
    "model_genes": "a model predicts its fold's panel",
    "member_sections": "the members of a committee saw, and were judged on, training sections alone",
    "member_patients": "no member of a committee saw a patient it was judged on",
    "weighed_on_left_out": "share, snapshot and rank were weighed on sections that members left out",
    "published_section_held_out": "the held-out section itself does not train (published)",
}


def write_leakage_page(verdict: Mapping[str, Any], path: str | Path, *, study: str) -> None:
    """Write the verdict of the leak audit (`histogep.evaluation.leakage.audit`) as a page.

    Parameters
    ----------
    verdict
        n_checks, n_failed, checks (check, fold, model, ok, detail), known_leaks (fold, detail) and
        notices (what, detail).
    path
        Where to write.
    study
        Name of the study, for the title.
    """
    checks = pd.DataFrame(verdict["checks"], columns=["check", "fold", "model", "ok", "detail"])
    grouped = checks.groupby("check", sort=False)
    summary = pd.DataFrame(
        {
            "what is made sure of": [_meaning(name) for name in grouped.groups],
            "checks": grouped.size().to_numpy(),
            "failed": (grouped.size() - grouped["ok"].sum()).to_numpy(),
            "name": list(grouped.groups),
        }
    )
    leaks = pd.DataFrame(verdict["known_leaks"], columns=["fold", "detail"])
    alike = pd.DataFrame(verdict.get("notices", []), columns=["what", "detail"])
    write_page(
        path,
        title=f"Leak audit of {study}: {verdict['n_checks']} checks, {verdict['n_failed']} failed",
        tables=[
            Table(summary, heading="What was checked"),
            Table(
                alike,
                heading="Look-alikes that may be legitimate",
                notes=[
                    "Sections of different patients that look like serial sections of one block, "
                    "and ids that may belong to one patient. They do not stop the run: check each. If "
                    "two ids are one patient, its score is not a held-out score."
                ],
                headers={"what": "alike by"},
            ),
            Table(
                leaks,
                heading="Known leaks of the paper's protocol",
                notes=[
                    "Folds of the card published leak by design; none of this reaches the patient_cv card."
                ],
                headers={"detail": "what the fold leaks"},
            ),
        ],
        notes=[
            "Checked from what the jobs wrote, not from what was requested. A check that fails "
            "stops the run, so a page like this one exists only for a study without leaks."
        ],
    )


def _meaning(check: str) -> str:
    fitted = check.removesuffix("_fitted_on")
    if fitted != check:
        return f"{fitted} of a model was fitted on its fold's training patients alone"
    return MEANINGS[check]
