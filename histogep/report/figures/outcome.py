"""Figures of survival and response."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from lifelines import KaplanMeierFitter
from lifelines.plotting import add_at_risk_counts
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_curve

from histogep.outcome.risk_groups import median_time
from histogep.report.style import (
    CATEGORY_COLOURS,
    DIVERGING_MAP,
    NULL_COLOUR,
    as_drawn,
    figure,
)

SOURCES = ("image", "expression", "maps")
_GROUP_COLOURS = {"high": CATEGORY_COLOURS[1], "low": CATEGORY_COLOURS[0]}
_N_GENES = 15


def kaplan_meier(risk: pd.DataFrame, concordance: pd.DataFrame, log_rank: pd.DataFrame) -> Figure:
    """Draw survival by the median of the out-of-fold risk: clinical model, image alone, and both.

    Parameters
    ----------
    risk, concordance, log_rank
        The tables of a cohort. Both p of a panel are against the shuffles, one-sided: the law of
        the log-rank test takes the groups as given, which out-of-fold groups are not, and counts
        it as a finding too when patients of low risk die earlier.
    """
    source = "expression" if "risk_expression" in risk else "image"
    full = f"clinical+{source}"
    panels = [
        (title, group, model)
        for title, group, model in (
            ("Clinical covariates", "group_clinical", "clinical"),
            (source.capitalize(), f"group_{source}", source),
            (f"Clinical + {source}", "group", full),
        )
        if risk[f"risk_{model}"].notna().any()
    ]
    tested, compared = concordance.set_index("model"), log_rank.set_index("model")
    fig = figure(width_mm=90 * len(panels), height_mm=98)
    ticks = _time_ticks(float(risk["time"].max()))
    everyone = median_time(risk["time"].to_numpy(), risk["event"].to_numpy() == 0)
    for axes, (title, group, model) in zip(
        fig.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        fitted = []
        for name, colour in _GROUP_COLOURS.items():
            rows = risk[risk[group] == name]
            if rows.empty:
                continue
            fitted.append(KaplanMeierFitter(label=name).fit(rows["time"], rows["event"]))
            fitted[-1].plot_survival_function(
                ax=axes, color=colour, lw=1.5, show_censors=True, ci_alpha=0.15,
                censor_styles={"marker": "|", "ms": 5, "mew": 0.8},
            )  # fmt: skip
        axes.set_title(
            f"{title}\n"
            f"C-index {_against(*tested.loc[model, ['c_index', 'p']])}\n"
            f"log-rank χ² {_against(*compared.loc[model, ['chi2', 'p']])}"
        )
        axes.set(ylim=(0, 1.02), xlim=(0, ticks[-1]), xticks=ticks, ylabel="Survival")
        axes.set_xlabel(f"months (median follow-up {everyone[0]:.3g})")
        axes.legend(title="out-of-fold risk", loc="upper right", title_fontsize=7)
        add_at_risk_counts(*fitted, ax=axes, rows_to_show=["At risk"], fig=fig, size=7)
    return fig


def calibration_at(horizons: pd.DataFrame, calibration: pd.DataFrame) -> Figure:
    """Draw predicted against observed chance of an event in groups of risk, a panel per time.

    Parameters
    ----------
    horizons, calibration
        The tables of a cohort.
    """
    months = list(dict.fromkeys(calibration["months"]))
    if not months:
        fig = figure(width_mm=120, height_mm=40)
        axes = fig.subplots()
        axes.set_axis_off()
        message = "Too few patients with an event by,\nor followed beyond, any of the times."
        axes.text(0.5, 0.5, message, ha="center", va="center", transform=axes.transAxes)
        return fig
    fig = figure(width_mm=max(90, 80 * len(months)), height_mm=95)
    auc = horizons.set_index(["model", "months"])
    for axes, month in zip(fig.subplots(1, len(months), squeeze=False)[0], months, strict=True):
        here = calibration[calibration["months"] == month]
        for index, (model, rows) in enumerate(here.groupby("model", sort=False)):
            row, colour = auc.loc[(model, month)], CATEGORY_COLOURS[index]
            label = f"{model}: AUC {row['auc']:.2f} ({row['ci_low']:.2f}–{row['ci_high']:.2f})"
            axes.vlines(rows["predicted"], rows["ci_low"], rows["ci_high"], color=colour, lw=0.8)
            axes.plot(rows["predicted"], rows["observed"], "o-", color=colour, lw=1.2, ms=3.5,
                      label=label)  # fmt: skip
        top = float(np.nanmax(here[["predicted", "observed", "ci_high"]].to_numpy())) * 1.05
        axes.plot([0, top], [0, top], color=NULL_COLOUR, lw=0.8, ls=":")
        axes.set(xlim=(0, None), ylim=(0, top), xlabel="predicted chance of an event, out of fold")
        first = auc.loc[(here["model"].iloc[0], month)]
        axes.set_title(
            f"By {month:g} months ({first['cases']:.0f} with, {first['controls']:.0f} without)"
        )
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16))
    fig.axes[0].set_ylabel("observed (Kaplan-Meier)")
    return fig


def forest(concordance: pd.DataFrame, cox: pd.DataFrame) -> Figure:
    """Draw the C-index of every model with its interval and null, and the strongest genes.

    Parameters
    ----------
    concordance, cox
        The tables of a cohort.
    """
    genes = cox.dropna(subset=["p"]).head(_N_GENES).iloc[::-1]
    models = concordance[~concordance["model"].str.contains(" - ")].iloc[::-1]
    height = max(85, 20 + 10 * len(models))
    fig = figure(width_mm=180, height_mm=height)
    left, right = fig.subplots(1, 2, gridspec_kw={"width_ratios": [1.15, 1]})
    y = np.arange(len(models))
    is_null = models["model"].str.contains("shuffled|noise").to_numpy()
    for at, row, null in zip(y, models.itertuples(), is_null, strict=True):
        published = getattr(row, "protocol", "patient_cv") == "published"
        colour = NULL_COLOUR if null else CATEGORY_COLOURS[1 if published else 0]
        left.plot([row.ci_low, row.ci_high], [at, at], color=colour, lw=1.5)
        left.plot(row.c_index, at, "o", color=colour, ms=4)
        if not null:
            left.plot(row.null, at, "|", color=NULL_COLOUR, ms=10, mew=1.5)
    left.set_yticks(
        y,
        [
            f"{r.model}\n{r.c_index:.2f} ({r.ci_low:.2f}–{r.ci_high:.2f})"
            for r in models.itertuples()
        ],
    )
    left.tick_params(axis="y", labelsize=7)
    left.set_xlabel("C-index (grey tick: mean of the null)")
    first = concordance.iloc[0]
    left.set_title(f"Models ({first['n']} patients, {first['events']} events)")
    gain = concordance[concordance["model"].str.endswith(" - clinical")]
    for line, row in enumerate(gain.itertuples()):
        source = row.model.removeprefix("clinical+").removesuffix(" - clinical")
        left.text(
            0.0,
            -0.24 * 85 / height - 0.05 * line,
            f"{source} beyond clinical: {row.c_index:+.3f} "
            f"({row.ci_low:+.3f} to {row.ci_high:+.3f}), p = {row.p:.2g}",
            transform=left.transAxes,
            fontsize=7,
        )
    if genes.empty:
        right.text(0.5, 0.5, "no gene was tested", ha="center", transform=right.transAxes)
        right.set_axis_off()
        return fig
    y = np.arange(len(genes))
    for at, row in zip(y, genes.itertuples(), strict=True):
        colour = CATEGORY_COLOURS[1] if row.fdr < 0.05 else NULL_COLOUR
        right.plot([row.ci_low, row.ci_high], [at, at], color=colour, lw=1.5)
        right.plot(row.hr, at, "s", color=colour, ms=3.5)
    right.axvline(1, color=NULL_COLOUR, lw=0.8, ls=":")
    right.set_xscale("log")
    right.xaxis.set_minor_formatter("")
    ticks = [
        t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10) if genes.ci_low.min() <= t <= genes.ci_high.max()
    ]
    right.set_xticks(ticks or [1], [f"{t:g}" for t in ticks or [1]])
    right.set_yticks(y, [as_drawn(gene, most=30) for gene in genes["gene"]])
    right.tick_params(axis="y", labelsize=7)
    right.set_xlabel("hazard ratio per SD (orange: FDR < .05)")
    right.set_title(f"Genes with the smallest p of {cox['p'].notna().sum()}")
    return fig


def adjusted_forest(table: pd.DataFrame, notes: Sequence[str], *, n: int, events: int) -> Figure:
    """Draw the hazard ratios of the multivariable model, each beside that of its variable alone.

    Parameters
    ----------
    table, notes, n, events
        Of `histogep.outcome.multivariable.Multivariable`.
    """
    rows = table[table["level"].notna()].reset_index(drop=True)
    lines = [line for note in notes for line in textwrap.wrap(note, 130)]
    image = rows[rows["variable"].str.endswith(" risk") & rows["lr_p"].notna()]
    for row in image.itertuples():
        among = f"; among shuffled: p = {row.p_shuffles:.2g}" if np.isfinite(row.p_shuffles) else ""
        lines.insert(0, f"{row.variable} added to the others: likelihood ratio χ² {row.lr_chi2:.2f}, "
                     f"p = {row.lr_p:.2g}{among}")  # fmt: skip
    height = 42 + 9 * max(len(rows), 1) + 4 * len(lines)
    fig = figure(width_mm=180, height_mm=height)
    axes = fig.subplots()
    fig.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=6.5)
    axes.set_title(f"Cox model of all variables ({n} patients, {events} events)")
    if rows.empty:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no variable tells the patients apart", ha="center")
        return fig
    place = axes.get_yaxis_transform()
    for at, row in enumerate(rows.itertuples()):
        reference = row.level == row.reference
        for shift, colour, marker, *values in (
            (-0.12, CATEGORY_COLOURS[1], "s", row.hr, row.ci_low, row.ci_high),
            (0.2, NULL_COLOUR, "o", row.hr_univariable, row.ci_low_univariable, row.ci_high_univariable),
        ):  # fmt: skip
            if not reference and np.isfinite(values).all():
                axes.plot(values[1:], [at + shift] * 2, color=colour, lw=1.3)
            if np.isfinite(values[0]):
                axes.plot(values[0], at + shift, marker, color=colour, ms=3.5)
        if reference:
            axes.text(1.02, at, "reference", transform=place, va="center", fontsize=7)
            continue
        for shift, *values in (
            (-0.16, row.hr, row.ci_low, row.ci_high, row.p),
            (0.24, row.hr_univariable, row.ci_low_univariable, row.ci_high_univariable,
             row.p_univariable),
        ):  # fmt: skip
            words = "no model" if not np.isfinite(values[0]) else (
                "{:.2f} ({:.2f}–{:.2f}), p = {:.2g}".format(*values)
            )  # fmt: skip
            colour = "black" if shift < 0 else "0.4"
            axes.text(
                1.02, at + shift, words, transform=place, va="center", fontsize=7, color=colour
            )
    axes.set_yticks(
        range(len(rows)),
        [f"{r.variable}, {r.level}\n{r.n:.0f} patients, {r.events:.0f} events" for r in rows.itertuples()],
    )  # fmt: skip
    axes.tick_params(axis="y", labelsize=7)
    axes.axvline(1, color=NULL_COLOUR, lw=0.8, ls=":")
    axes.set(xscale="log", ylim=(len(rows) - 0.4, -0.6))
    axes.set_xlabel(
        "hazard ratio, 95 % interval (orange: all variables in one model; grey: each alone)"
    )
    bounds = rows[["ci_low", "ci_high", "ci_low_univariable", "ci_high_univariable"]].to_numpy(
        float
    )
    if np.isfinite(bounds).any():
        axes.set_xlim(max(np.nanmin(bounds) / 1.2, 0.02), min(np.nanmax(bounds) * 1.2, 50))
    ticks = [
        t
        for t in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)
        if axes.get_xlim()[0] <= t <= axes.get_xlim()[1]
    ]
    axes.xaxis.set_minor_formatter("")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    return fig


def roc(scores: pd.DataFrame, performance: pd.DataFrame) -> Figure:
    """Draw the ROC and precision-recall curves of the models, the best five signatures included.

    Below them stand their areas with intervals, and in grey what the permuted procedure gives: a
    tick at its mean, a line up to what it reaches in one of 20 cases.

    Parameters
    ----------
    scores, performance
        The tables of a cohort.
    """
    table = performance.set_index(["metric", "model"])
    models = [name for name in performance["model"].unique() if name in scores]
    learnt = [name for name in models if name.removeprefix("clinical+") in ("clinical", *SOURCES)]
    fixed = [name for name in models if name not in learnt]
    fixed = sorted(fixed, key=lambda name: (-table.loc[("auroc", name), "value"], name))[:5]
    shown = [*learnt, *fixed]
    positive = scores["response"].to_numpy(bool)
    fig = figure(width_mm=180, height_mm=80 + 8 * len(shown))
    axes = fig.subplots(2, 2, gridspec_kw={"height_ratios": [60, 8 * len(shown)]})
    left, right = axes[0]
    for index, name in enumerate(shown):
        score = scores[name].to_numpy(float)
        fall_out, sensitivity, _ = roc_curve(positive, score)
        precision, recall, _ = precision_recall_curve(positive, score)
        style = {"color": _model_colour(index), "lw": 1.6 if name in learnt else 0.9}
        style["ls"] = "-" if name in learnt else "--"
        left.plot(fall_out, sensitivity, label=name, **style)
        right.plot(recall[:-1], precision[:-1], label=name, **style)
    left.set(xlabel="1 - specificity", ylabel="sensitivity")
    left.set_title(f"ROC ({positive.sum()} of {len(positive)} patients responded)")
    right.set(xlabel="recall", ylabel="precision", ylim=(0, 1.02), title="Precision and recall")
    for ax, metric, title in ((axes[1, 0], "auroc", "AUROC"), (axes[1, 1], "auprc", "AUPRC")):
        labels = []
        for index, name in enumerate(shown):
            row = table.loc[(metric, name)]
            ax.plot([row["null"], row["null_upper"]], [index + 0.22] * 2, color=NULL_COLOUR, lw=1)
            ax.plot(row["null"], index + 0.22, "|", color=NULL_COLOUR, ms=6, mew=1.2)
            ax.plot(row[["ci_low", "ci_high"]], [index] * 2, color=_model_colour(index), lw=1.5)
            ax.plot(row["value"], index, "o", color=_model_colour(index), ms=4)
            labels.append(
                f"{name} {row['value']:.2f} (p {row['p']:.2g})\n"
                f"null {row['null']:.2f}, 95 % {row['null_upper']:.2f}"
            )
        ax.set_yticks(range(len(shown)), labels)
        ax.tick_params(axis="y", labelsize=6.5)
        ax.set(ylim=(len(shown) - 0.4, -0.6), xlim=(0, 1.02))
        ax.set_xlabel(f"{title} (grey: permuted)")
    return fig


def _model_colour(index: int) -> str:
    return CATEGORY_COLOURS[index % len(CATEGORY_COLOURS)]


def transfer_matrix(performance: pd.DataFrame) -> Figure:
    """Draw the AUROC of every training cohort (row) in every test cohort (column).

    Parameters
    ----------
    performance
        `performance.tsv` of a transfer.
    """
    cohorts = sorted(set(performance["train"]))
    place = {name: number for number, name in enumerate(cohorts)}
    values = np.full((len(cohorts), len(cohorts)), np.nan)
    for row in performance.itertuples():
        values[place[row.train], place[row.test]] = row.auroc
    fig = figure(width_mm=60 + 28 * len(cohorts), height_mm=35 + 20 * len(cohorts))
    axes = fig.subplots()
    image = axes.imshow(values, cmap=DIVERGING_MAP, vmin=0, vmax=1, aspect="auto")
    for row in performance.itertuples():
        if not np.isfinite(row.auroc):
            continue
        text = f"{row.auroc:.2f}\n({row.ci_low:.2f}–{row.ci_high:.2f})\np = {row.p:.2g}"
        colour = "white" if abs(row.auroc - 0.5) > 0.35 else "black"
        at = place[row.test], place[row.train]
        axes.text(*at, text, ha="center", va="center", fontsize=7, color=colour)
    sizes = performance.drop_duplicates("test").set_index("test")
    axes.set_xticks(
        range(len(cohorts)),
        [f"{c}\n{sizes.loc[c, 'test_positives']} of {sizes.loc[c, 'n_test']}" for c in cohorts],
    )
    axes.set_yticks(range(len(cohorts)), cohorts)
    axes.set(xlabel="tested on (responders of patients)", ylabel="trained on")
    axes.set_title("Response from one cohort to another")
    fig.colorbar(image, ax=axes, label="AUROC", shrink=0.8)
    return fig


def _against(value: float, p: float) -> str:
    if not np.isfinite(value):
        return "not defined: all risks alike"
    return f"{value:.2f}, " + (f"p = {p:.2g} by shuffles" if np.isfinite(p) else "no shuffles")


def _time_ticks(longest: float) -> np.ndarray:
    for step in (1, 2, 3, 6, 12, 24, 36, 60, 120):
        if longest / step <= 7:
            break
    return np.arange(0, longest + step, step)
