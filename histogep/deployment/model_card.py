"""README.md of a model folder: what the model is, its measured performance, and its limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

_CALLED = {"expression": "gene expression", "tumour": "tumour map"}
_USE = """```python
from histogep.deployment.model import load_model
from histogep.encoders.feature_file import read_features
table = load_model("PATH/OF/THIS/FOLDER").predict(read_features("SLIDE.h5")).to_anndata()
```"""


def model_card(
    settings: Mapping[str, Any],
    genes: pd.DataFrame,
    scorecards: pd.DataFrame,
    *,
    labels: str = "",
) -> str:
    """Return the model card as Markdown.

    Parameters
    ----------
    settings
        settings.json of the folder (without digest).
    genes
        Its genes.tsv.
    scorecards
        results/evaluation/{study}/scorecards.tsv.
    labels
        Whose labels the tumour map was trained on, in words; "" where nothing is known of them.
    """
    lattice = settings["lattice"]
    encoders = ", ".join(
        f"{encoder['name']} (sha256 {str(encoder['sha256'])[:12]})"
        for encoder in settings["encoders"]
    )
    mapped = settings["models"].get("tumour")
    main, predictable = int(genes["main"].sum()), int((genes["main"] & genes["predictable"]).sum())
    lines = [
        f"# Model folder of the study {settings['study']}",
        "",
        "Predicts spatial gene expression (log1p CP10k)"
        + (" and a tumour map" if mapped else "")
        + " from H&E tiles"
        + ("." if mapped else "; it has no tumour map."),
        "Use it in another study by `model: PATH/OF/THIS/FOLDER`, or from Python:",
        "",
        _USE,
        "",
        "| | |",
        "|---|---|",
        f"| lattice | {lattice['kind']}, pitch {lattice['pitch_um']:g} um, tile "
        f"{lattice['tile_um']:g} um |",
        f"| encoders | {encoders} |",
        f"| trained on | {len(settings['training_slides'])} sections: "
        f"{', '.join(settings['training_slides'])} |",
        f"| genes | {main} in the panel, {predictable} of them predictable on held-out patients; "
        f"{int(genes['extended'].sum())} in the extended panel |",
    ]
    for role, record in settings["models"].items():
        lines.append(
            f"| {role} | {record['model']} ({record['kind']}, {record['n_parameters']:,} parameters) |"
        )
    lines += [f"| {name} | no tumour map: {why} |" for name, why in settings["absent"].items()]
    if labels:
        lines.append(f"| tumour labels | {labels} |")
    if mapped is None:
        lines.append("| tumour map | none in this folder, and never tested |")
    elif not _was_tested(scorecards, mapped["model"]):
        lines.append(
            "| tumour map | never tested: no held-out section had malignant and other spots |"
        )
    lines += ["", "## Measured on held-out patients (patient_cv card)", ""]
    names = [record["model"] for record in settings["models"].values()]
    card = scorecards[(scorecards["protocol"] == "patient_cv") & scorecards["model"].isin(names)]
    tested = set(card.loc[card["value"].notna(), "task"])
    for task in ("expression", "tumour"):
        if task not in tested:
            lines += [f"The {_CALLED[task]} was never tested on held-out patients.", ""]
    if len(card):
        columns = [
            name
            for name in ("task", "model", "metric", "value", "ci_low", "ci_high", "null", "ceiling")
            if name in card
        ]
        lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        for row in card[columns].itertuples(index=False):
            cells = [f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row]
            lines.append("| " + " | ".join("" if cell == "nan" else cell for cell in cells) + " |")
    lines += [
        "",
        "## Limits",
        "",
        "- These figures hold for slides like the training slides. `ood_score` and `out_of_distribution` of a "
        "prediction say how far its tiles lie from them; a slide with a `median_ood_score` above 1 is "
        "out of distribution.",
        "- Only genes marked `predictable` in genes.tsv beat chance on held-out patients; "
        "`half_width` is that of their 90 % interval.",
        "- Predictions are cut at 0 (log1p CP10k is never negative) and are not shifted.",
        "- For research; not for diagnosis.",
        "",
    ]
    return "\n".join(lines)


def _was_tested(scorecards: pd.DataFrame, model: str) -> bool:
    """Return whether the tumour map of a model has a score on held-out patients."""
    mine = scorecards[(scorecards["protocol"] == "patient_cv") & (scorecards["model"] == model)]
    return bool(mine.loc[mine["task"] == "tumour", "value"].notna().any())
