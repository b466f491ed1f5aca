"""The scorecards as a web page with explanations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from histogep.evaluation.scorecards import BASELINES, Evaluation
from histogep.report.pages import Table, write_page

_TEXT = {
    ("patient_cv", "expression"): (
        "patient_cv card: expression",
        "Whole patients are held out and only in-tissue spots are scored, gene by gene within each "
        "section; gene panel, scaling, penalty and epoch come from the training patients alone. "
        "A predictor that only knows where the tissue is scores 0 here (row `tissue_mask`).",
    ),
    ("published", "expression"): (
        "The paper's protocol (published): expression",
        "Sections, not patients, are held out, genes are chosen on all sections, and the correlation "
        "is taken over the whole grid with the zeros of its background, as in the HiST paper. A "
        "predictor that is constant inside the tissue gets the score under `null`, so only what is "
        "above it was learned from the image, and this card cannot be compared with the patient_cv one.",
    ),
    ("patient_cv", "tumour"): (
        "patient_cv card: tumour map",
        "Held-out patients, in-tissue spots labelled malignant or non-malignant; the null calls every "
        "spot tumour.",
    ),
    ("published", "tumour"): (
        "The paper's protocol (published): tumour map",
        "The whole grid, where the background counts as not malignant; the null calls all tissue "
        "tumour.",
    ),
}
#: What a metric of scorecards.tsv is called on the page.
METRICS = {
    "pearson": "Pearson r, mean over sections",
    "pearson_patients": "Pearson r, mean over patients",
    "pearson_within": "Pearson r within sections",
    "pearson_between": "Pearson r of patient means",
    "spearman": "Spearman r, mean over sections",
    "pearson_raw": "Pearson r, raw counts, as HEST-Benchmark",
    "rmse": "RMSE (lower is better)",
    "coverage": "coverage of the intervals",
    "half_width": "half-width (lower is better)",
    "auroc": "AUROC",
    "auprc": "average precision",
    "dice": "Dice",
}
_ORDER = tuple(METRICS)


def write_scorecards_page(
    evaluation: Evaluation,
    path: str | Path,
    *,
    study: str,
    settings: dict[str, Any],
    alike: Sequence[Mapping[str, str]] = (),
    labels: str = "",
    warnings: Sequence[str] = (),
) -> None:
    """Write results/evaluation/{study}/scorecards.html.

    Parameters
    ----------
    evaluation
        The tables of a study.
    path
        Where to write.
    study
        Its name, for the title.
    settings
        The evaluation settings, which the notes report.
    alike
        What the leak audit noticed (each: what, detail): patients that may be one.
    labels
        Whose labels the tumour map is scored against, in words.
    warnings
        Warnings of jobs that decide the scores.
    """
    cards = evaluation.scorecards
    tables = []
    for (protocol, task), (heading, note) in _TEXT.items():
        part = cards[(cards["protocol"] == protocol) & (cards["task"] == task)]
        if len(part):
            whose = f" The labels are {labels}." if task == "tumour" and labels else ""
            tables.append(_card_table(part, heading, note + whose))
    if not (cards["task"].eq("tumour") & cards["value"].notna()).any():
        heading, _ = _TEXT["patient_cv", "tumour"]
        said = "No tumour map was tested on held-out patients, so there is no score of one."
        whose = [f"The labels of the sections are {labels}."] if labels else []
        tables.append(Table(pd.DataFrame(), heading=heading, notes=[said, *whose]))
    patient_cv = evaluation.genes
    if len(patient_cv):
        patient_cv = patient_cv[patient_cv["protocol"] == "patient_cv"]
    if len(patient_cv):
        tables.append(_predictable_table(patient_cv))
    write_page(
        path,
        title=f"Scorecards of {study}",
        tables=tables,
        warnings=warnings,
        notes=[
            "`value` with its 95 % interval (bootstrap over patients: the spread between patients "
            "with the models as trained; with few patients it is too narrow). `null`: the score "
            "expected of a predictor that knows nothing of the image; `null, 95 %`: what chance "
            "reaches in one of 20 cases, for maps with the patterns of the predicted ones where the card "
            "is patient_cv. `ceiling`: what a perfect predictor would score against counts as noisy as "
            f"these if their noise is Poisson ({settings['thinnings']} binomial thinnings); `ceiling, "
            "shared`: the same if only what neighbouring spots share is signal, the lower bound where "
            "counts vary more than Poisson's; `of ceiling` = value / ceiling. "
            "`raw counts, as HEST-Benchmark`: r with log1p of raw counts, for comparison with published "
            "scores only; most of it is the depth of the spots, all that the row `depth` uses. "
            "Nothing is chosen by it.",
            *_registration_notes(evaluation.registration),
            *(
                f"Check this first, alike by {notice['what']}: {notice['detail']}. If they are "
                "one patient, the score is not held out."
                for notice in alike
            ),
        ],
    )


def _registration_notes(registration: pd.DataFrame) -> list[str]:
    """Return a sentence on the sections that fit better elsewhere, with the level of the check."""
    wrong = registration[registration["best"].astype(bool) & ~registration["ok"].astype(bool)]
    return [
        f"Section {row.slide} fits better at flip {row.flip}, row {row.d_row:+d}, column "
        f"{row.d_col:+d} than in place (p = {row.p:.3f}; among sections whose predictions are "
        "unrelated to their counts, at most 5 % are marked like this): look at its overlay."
        for row in wrong.itertuples()
    ]


def write_genes_page(
    genes: pd.DataFrame,
    path: str | Path,
    *,
    study: str,
    first: str = "",
    panels: Mapping[str, str] | None = None,
) -> None:
    """Write results/evaluation/{study}/genes.html: every gene of the patient_cv card, best first.

    Parameters
    ----------
    genes
        The table of genes of an `Evaluation`.
    path
        Where to write.
    study
        Its name, for the title.
    first
        The model that is deployed, which the page begins with; "" if that is not known.
    panels
        Fold -> which setting decided how many genes its panel has.
    """
    patient_cv = genes[genes["protocol"] == "patient_cv"] if len(genes) else genes
    tables = []
    by_model = dict(list(patient_cv.groupby("model"))) if len(patient_cv) else {}
    for model in sorted(by_model, key=lambda name: (name != first, name)):
        group = by_model[model]
        deployed = ", the model that is deployed" if model == first else ""
        columns = [
            *("gene", "pearson", "null_upper", "ceiling", "ceiling_spatial", "relative", "fdr"),
            "predictable",
        ]
        shown = group.sort_values("pearson", ascending=False)[columns]
        tables.append(
            Table(
                shown,
                heading=f"{model}{deployed}: {int(group['predictable'].sum())} of {len(group)} genes "
                "predictable",
                formats=dict.fromkeys(
                    ("pearson", "null_upper", "ceiling", "ceiling_spatial"), "{:.3f}"
                )
                | {"relative": "{:.0%}"},
                bars={"pearson": (0.0, 1.0), "ceiling": (0.0, 1.0), "relative": (0.0, 1.0)},
                bar_colours={"ceiling": "#cfcfe8", "relative": "#bfe3cf"},
                headers={
                    "pearson": "Pearson r",
                    "null_upper": "null, 95 %",
                    "ceiling_spatial": "ceiling, shared",
                    "relative": "of ceiling",
                },
            )
        )
    notes = []
    if panels:
        said = pd.DataFrame({"fold": list(panels), "panel": list(panels.values())})
        tables.append(Table(said, heading="How many genes the panel of each fold has, and why"))
        last = list(panels)[-1]
        notes = [f"The panel of fold {last}: {panels[last]}. Those of the others stand below."]
    write_page(
        path,
        title=f"Genes of {study}, patients held out",
        tables=tables,
        notes=[
            *notes,
            "Mean over patients of the correlation within a section, in-tissue spots only. `null, "
            "95 %`: what unrelated maps of the same patterns reach in one of 20 cases. `ceiling`: what "
            "a perfect predictor would score against counts as noisy as these if their noise is "
            "Poisson; `ceiling, shared`: if only what neighbouring spots share is signal. Genes whose "
            "counts vary no more than their noise have no `of ceiling`. Only predictable genes are "
            "used in later stages.",
        ],
    )


def _card_table(part: pd.DataFrame, heading: str, note: str) -> Table:
    part = part.copy()
    part["baseline"] = part["model"].isin([*BASELINES, "depth"])
    part["order"] = part["metric"].map({m: i for i, m in enumerate(_ORDER)})
    part = part.sort_values(["order", "baseline", "value"], ascending=[True, True, False])
    bounded = ~part["metric"].isin(["rmse", "half_width"])
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.where(part["ceiling"] > 0, part["value"] / part["ceiling"], np.nan)
    shown = pd.DataFrame(
        {
            "metric": part["metric"].map(METRICS),
            "model": part["model"],
            # Errors in log units have no place on the axis of the bars.
            "value": part["value"].where(bounded),
            "error": part["value"].where(~bounded),
            "interval": [
                f"{low:.3f} to {high:.3f}" if np.isfinite(low) and np.isfinite(high) else None
                for low, high in zip(part["ci_low"], part["ci_high"], strict=True)
            ],
            "null": part["null"],
            "null_upper": part["null_upper"],
            "ceiling": part["ceiling"],
            "ceiling_spatial": part["ceiling_spatial"],
            "relative": relative,
            "n_sections": part["n_sections"],
            "n_patients": part["n_patients"],
            "n_genes": part["n_genes"],
        }
    )
    empty = [
        c
        for c in ("error", "ceiling", "ceiling_spatial", "relative", "null_upper")
        if shown[c].isna().all()
    ]
    if (shown["n_genes"] == 0).all():
        empty.append("n_genes")
    shown = shown.drop(columns=empty)
    options: dict[str, Any] = {
        "formats": dict.fromkeys(
            ("value", "error", "null", "null_upper", "ceiling", "ceiling_spatial"), "{:.3f}"
        )
        | {"relative": "{:.0%}"},
        "bars": {
            "value": (0.0, 1.0),
            "null": (0.0, 1.0),
            "ceiling": (0.0, 1.0),
            "relative": (0, 1),
        },
        "bar_colours": {"null": "#d9d9d9", "ceiling": "#cfcfe8", "relative": "#bfe3cf"},
        "headers": {
            "interval": "95 % interval",
            "null_upper": "null, 95 %",
            "ceiling_spatial": "ceiling, shared",
            "relative": "of ceiling",
            "n_sections": "sections",
            "n_patients": "patients",
            "n_genes": "genes",
        },
    }
    options = {
        name: {column: what for column, what in choice.items() if column in shown}
        for name, choice in options.items()
    }
    return Table(shown, heading=heading, notes=[note], group_by="metric", **options)


def _predictable_table(genes: pd.DataFrame) -> Table:
    rows = []
    for model, group in genes.groupby("model"):
        good = group[group["predictable"]]
        best = group.sort_values("pearson", ascending=False)["gene"].head(8)
        rows.append(
            {
                "model": model,
                "genes": len(group),
                "predictable": len(good),
                "share": len(good) / len(group),
                "median r": group["pearson"].median(),
                "median r, predictable": good["pearson"].median(),
                "best genes": ", ".join(best),
            }
        )
    return Table(
        pd.DataFrame(rows).sort_values("predictable", ascending=False),
        heading="Predictable genes (only these are used downstream)",
        notes=[
            "A gene is predictable when its held-out correlation beats unrelated maps (turned, "
            "shifted, and of the same spectrum) at a false discovery rate below 0.05 and is above 0 "
            "in most patients."
        ],
        formats={"share": "{:.0%}", "median r": "{:.3f}", "median r, predictable": "{:.3f}"},
        bars={"share": (0, 1), "median r": (0, 1), "median r, predictable": (0, 1)},
    )
