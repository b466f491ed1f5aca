"""What may be relied on: the few verdicts of a study, each with its number, null, ceiling and grade.

The rules are here and nowhere else; docs/methods ("Verdicts") states them in the same order. A
verdict begins at `RELY`. Each reason for care lowers it to `CARE`, each reason against to `DO_NOT`;
the reasons are given with it. A verdict is about what was tested, and never better than its test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from histogep.labels.sources import ANNOTATED, describe_sources

RELY, CARE, DO_NOT = "rely on it", "with care", "do not"
GRADES = (RELY, CARE, DO_NOT)
#: How controls.tsv names a profile that may be called copy number.
COPY_NUMBER = "CNV"
#: With what the note of a slide begins that has a profile.
_KINDS = ("measured", "predicted")
#: With fewer held-out patients not even agreement of all is beyond chance at 5 % (.5 ** 5 = .03).
FEW_PATIENTS = 5
#: A panel of which fewer genes can be used is not one to read as a whole.
HALF = 0.5
#: Hosmer and Lemeshow's "excellent" discrimination begins here.
GOOD_AUROC = 0.8
LEVEL = 0.05
#: Events for each coefficient of a Cox model (Peduzzi et al., J Clin Epidemiol 1995).
EVENTS_PER_COEFFICIENT = 10
#: Responders, and non-responders, below which an AUROC is settled by single patients.
FEW_OF_A_CLASS = 10
COLUMNS = (
    *("question", "cohort", "grade", "finding", "because", "model", "measure", "value"),
    *("ci_low", "ci_high", "null", "null_upper", "ceiling", "n_patients", "file"),
)


@dataclass(frozen=True)
class Verdict:
    """The answer to one question.

    Attributes
    ----------
    question
        What was asked, as a heading.
    finding
        What was found, with its number, null and ceiling in words.
    file
        Where it stands.
    cohort
        The cohort, where it is of one.
    against, care
        Reasons not to rely on it, and for care.
    model, measure
        What made the number, and what the number is.
    value, ci_low, ci_high, null, null_upper, ceiling, n_patients
        The number with its 95 % interval, what knowing nothing scores (and reaches in one of 20
        cases), and what a perfect predictor would score. NaN where there is none.
    """

    question: str
    finding: str
    file: str
    cohort: str = ""
    against: tuple[str, ...] = ()
    care: tuple[str, ...] = ()
    model: str = ""
    measure: str = ""
    value: float = np.nan
    ci_low: float = np.nan
    ci_high: float = np.nan
    null: float = np.nan
    null_upper: float = np.nan
    ceiling: float = np.nan
    n_patients: int | None = None

    @property
    def grade(self) -> str:
        """One of `GRADES`."""
        return DO_NOT if self.against else CARE if self.care else RELY

    @property
    def because(self) -> str:
        """The reasons for the grade, in words; "" where it is `RELY`."""
        return "; ".join((*self.against, *self.care))


@dataclass
class _Reasons:
    against: list[str] = field(default_factory=list)
    care: list[str] = field(default_factory=list)

    def when(self, found: bool, reason: str, *, against: bool = False) -> None:
        if found:
            (self.against if against else self.care).append(reason)

    def warned(self, sentences: Sequence[str]) -> None:
        n = len(sentences)
        self.when(n > 0, "a warning decides it" if n == 1 else f"{n} warnings decide it")

    def few(self, n_patients: int) -> None:
        said = f"{n_patients} patients were held out, fewer than {FEW_PATIENTS}"
        self.when(n_patients < FEW_PATIENTS, said)

    def given(self) -> dict[str, Any]:
        return {"against": tuple(self.against), "care": tuple(self.care)}


def table_of(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Return the verdicts as a table (`COLUMNS`)."""
    return pd.DataFrame(
        [{name: getattr(verdict, name) for name in COLUMNS} for verdict in verdicts],
        columns=list(COLUMNS),
    )


def judge_expression(
    scorecards: pd.DataFrame,
    genes: pd.DataFrame,
    *,
    model: str,
    file: str,
    warned: Sequence[str] = (),
    alike: int = 0,
) -> Verdict:
    """Return whether predicted expression can be used, from patients held out.

    Parameters
    ----------
    scorecards
        results/evaluation/{study}/scorecards.tsv.
    genes
        genes.tsv of the model folder.
    model
        The expression model that is deployed.
    file
        Where the scorecards lie.
    warned
        Warnings that decide expression.
    alike
        Pairs of patients that may be one (leak audit).
    """
    reasons, question = _Reasons(), "Gene expression"
    row = _card(scorecards, "expression", model, "pearson_patients")
    own = genes[genes["main"].astype(bool)]
    if row is None or not np.isfinite(row["value"]):
        reasons.when(True, "it was never tested on patients held out", against=True)
        return Verdict(
            question, "No score of held-out patients.", file, model=model, **reasons.given()
        )
    usable, n = int(own["predictable"].astype(bool).sum()), len(own)
    finding = (
        f"{usable} of the {n} genes of the panel can be used: predicted for held-out patients, their "
        f"maps beat chance. Over all genes r = {_n(row['value'])}{_interval(row)}; a predictor that "
        f"does not look at the tissue has {_n(row['null'])}{_upper(row)}"
    )
    if np.isfinite(row["ceiling"]):
        finding += f", and a perfect one {_n(row['ceiling'])} against counts as noisy as these"
    reasons.when(usable == 0, "no gene beats chance", against=True)
    above = row["ci_low"] > row["null"] and not row["value"] <= row["null_upper"]
    reasons.when(not above, "the score is not beyond its null", against=True)
    reasons.when(0 < usable < HALF * n, "fewer than half of the genes can be used")
    reasons.few(int(row["n_patients"]))
    reasons.when(alike > 0, f"{alike} pairs of patients may be one patient each")
    reasons.warned(warned)
    return Verdict(
        question, finding + ".", file, model=model, measure="pearson_patients",
        **_numbers(row), **reasons.given(),
    )  # fmt: skip


def judge_applied_expression(
    genes: pd.DataFrame, settings: Mapping[str, Any], *, file: str
) -> Verdict:
    """Return whether the expression of a model folder that is applied can be used.

    Parameters
    ----------
    genes
        genes.tsv of the model folder.
    settings
        Its settings.json.
    file
        Where the table lies.
    """
    main = genes[genes["main"].astype(bool)]
    usable, n = int(main["predictable"].astype(bool).sum()), len(main)
    patients = set(settings["models"]["expression"].get("train_patients", ()))
    reasons = _Reasons()
    reasons.when(usable == 0, "no gene beats chance where it was trained", against=True)
    reasons.when(True, "it was tested where it was trained, and on no section of this study")
    reasons.when(usable < HALF * n and usable > 0, "fewer than half of the genes can be used")
    reasons.few(len(patients))
    score, null = (
        main.loc[main["predictable"].astype(bool), n].median() for n in ("score", "null")
    )
    finding = (
        f"{usable} of the {n} genes of the panel can be used: they beat chance in held-out patients of "
        f"the study {settings['study']} ({len(patients)} patients), where the model was trained"
    )
    if usable:
        finding += f"; their median r was {_n(score)} there, where knowing nothing has {_n(null)}"
    return Verdict(
        "Gene expression", finding + ".", file, model=_name(settings, "expression"),
        measure="median r of usable genes", value=float(score), null=float(null),
        n_patients=len(patients), **reasons.given(),
    )  # fmt: skip


def judge_tumour(
    scorecards: pd.DataFrame,
    tumour: pd.DataFrame,
    labels: pd.DataFrame,
    *,
    model: str,
    file: str,
    absent: str = "",
    warned: Sequence[str] = (),
) -> Verdict:
    """Return whether the tumour map can be used, and whose labels that was tested against.

    Parameters
    ----------
    scorecards, tumour
        results/evaluation/{study}/scorecards.tsv and tumour.tsv.
    labels
        `histogep.labels.sources.read_label_sources` of the sections.
    model
        The tumour model that is deployed; "" for none.
    file
        Where the scorecards lie.
    absent
        Why there is no tumour map.
    warned
        Warnings that decide it.
    """
    reasons, question = _Reasons(), "Tumour map"
    whose = describe_sources(labels)
    row = _card(scorecards, "tumour", model, "auroc") if model else None
    if not model or absent:
        reasons.when(True, f"there is no tumour map{f': {absent}' if absent else ''}", against=True)
    elif row is None or not np.isfinite(row["value"]):
        reasons.when(True, "it was never tested on patients held out", against=True)
    if reasons.against or row is None:
        found = (
            f"No tumour map was tested. Labels: {whose}." if whose else "No tumour map was tested."
        )
        return Verdict(question, found, file, model=model, **reasons.given())
    own = tumour[(tumour["protocol"] == "patient_cv") & (tumour["model"] == model)]
    uppers = own["auroc_upper"].dropna()
    row = {**row, "null_upper": float(uppers.mean()) if len(uppers) else np.nan}
    finding = (
        f"AUROC {_n(row['value'])}{_interval(row)} in sections of held-out patients, against labels that "
        f"are {whose}. A map that knows nothing has {_n(row['null'])}{_upper(row)}; the most is 1"
    )
    above = row["ci_low"] > row["null"] and not row["value"] <= row["null_upper"]
    reasons.when(not above, "the AUROC is not beyond its null", against=True)
    reasons.when(row["value"] < GOOD_AUROC, f"the AUROC is below {GOOD_AUROC}")
    inferred = int((labels["source"] != ANNOTATED).sum())
    reasons.when(
        inferred > 0,
        f"the labels of {inferred} of {len(labels)} sections are inferred: there the AUROC says how "
        "well the map repeats an inference, not how well it finds tumour",
    )
    reasons.few(int(row["n_patients"]))
    reasons.warned(warned)
    return Verdict(
        question, finding + ".", file, model=model, measure="auroc", ceiling=1.0,
        **{k: v for k, v in _numbers(row).items() if k != "ceiling"}, **reasons.given(),
    )  # fmt: skip


def judge_applied_tumour(settings: Mapping[str, Any], *, file: str) -> Verdict:
    """Return whether the tumour map of a model folder that is applied can be used."""
    reasons, name = _Reasons(), _name(settings, "tumour")
    reasons.when(not name, "the model folder has no tumour map", against=True)
    reasons.when(bool(name), "it was tested where it was trained, and on no section of this study")
    found = f"The map is that of {name}" if name else "There is no tumour map"
    return Verdict(
        "Tumour map", f"{found}; its score in held-out patients stands in README.md of the model folder.",
        file, model=name, **reasons.given(),
    )  # fmt: skip


def judge_copy_number(
    controls: Mapping[str, pd.DataFrame], *, file: str, warned: Sequence[str] = ()
) -> Verdict | None:
    """Return whether what the slides show along the genome may be called copy number.

    Parameters
    ----------
    controls
        Cohort -> results/cnv/{cohort}/controls.tsv.
    file
        Where they lie.
    warned
        Warnings that decide it.

    Returns
    -------
    Verdict
        None where no slide was looked at. `value` is the share of slides whose profile may be
        called copy number and has a reference that was labelled.
    """
    rows = pd.concat(list(controls.values()), ignore_index=True) if controls else pd.DataFrame()
    if rows.empty or rows["reference"].isna().all():
        return None
    # The controls of the cohort, under no slide, have no reference.
    slides = rows[rows["reference"].notna()].drop_duplicates("slide")
    # The note of a slide begins with how its expression came about; a refused slide has a reason there.
    kind = slides["note"].fillna("").str.split(";").str[0]
    whole = kind.isin(_KINDS) & ~slides["note"].fillna("").str.contains("no malignant spot")
    ranked = slides["reference"] == "ranked"
    good = (slides["name"] == COPY_NUMBER) & whole & ~ranked
    measured = slides["reference"] != "prediction"
    reasons, parts = _Reasons(), []
    for what, of_kind in (("measured counts", measured), ("predicted expression", ~measured)):
        if of_kind.any():
            n, k = int(of_kind.sum()), int((of_kind & good).sum())
            parts.append(f"from {what}, {k} of {n} profiles may be called copy number")
            reasons.when(k < n, f"{n - k} of {n} profiles from {what} may not be called so")
    reasons.when(not whole.all(), f"{int((~whole).sum())} slides have no profile of their tumour")
    n_ranked = int(ranked.sum())
    reasons.when(
        n_ranked > 0,
        f"the reference of {n_ranked} was ranked by marker genes and not labelled: low confidence",
    )
    if not good.any():
        reasons.when(True, 'call none of them copy number but "expression subtype"', against=True)
    reasons.warned(warned)
    finding = "; ".join(parts)
    return Verdict(
        "Copy number", finding[:1].upper() + finding[1:] + ".",
        file, measure="share of profiles", value=float(good.mean()), ceiling=1.0, **reasons.given(),
    )  # fmt: skip


def judge_image(
    concordance: pd.DataFrame,
    multivariable: pd.DataFrame,
    follow_up: pd.DataFrame,
    *,
    cohort: str,
    file: str,
    warned: Sequence[str] = (),
) -> Verdict:
    """Return whether the image says more of survival than the clinical covariates do.

    Parameters
    ----------
    concordance, multivariable, follow_up
        Tables of results/survival/{cohort}/.
    cohort
        Its name.
    file
        Where the table of concordance lies.
    warned
        Warnings that decide survival.
    """
    models = concordance[concordance["protocol"] != "published"].set_index("model")
    source = "expression" if "expression" in models.index else "image"
    what = "measured expression" if source == "expression" else "image"
    reasons, question = _Reasons(), f"Survival: the {what} beside the clinic"
    gain = f"clinical+{source} - clinical"
    first = concordance.iloc[0]
    n, events = int(first["n"]), int(first["events"])
    if source not in models.index:
        reasons.when(True, f"there is no model of the {what}", against=True)
        found = f"{n} patients, {events} events."
        return Verdict(question, found, file, cohort, n_patients=n, **reasons.given())
    beside = gain in models.index
    row = models.loc[gain if beside else source]
    if beside:
        clinical, full = (models.loc[m, "c_index"] for m in ("clinical", f"clinical+{source}"))
        finding = (
            f"The {what} adds {row['c_index']:+.2f}{_interval(row, sign=True)} to the C-index of the "
            f"clinical covariates ({_n(clinical)} to {_n(full)}); shuffled between the patients it adds "
            f"{row['null']:+.2f} (p = {row['p']:.2g}). By itself it has "
            f"{_n(models.loc[source, 'c_index'])}"
        )
        if "stage" in models.index:
            finding += f", the stage by itself {_n(models.loc['stage', 'c_index'])}"
    else:
        finding = (
            f"C-index of the {what} {_n(row['c_index'])}{_interval(row)}; shuffled between the patients "
            f"{_n(row['null'])} (p = {row['p']:.2g}), the most is 1"
        )
        reasons.when(True, "no clinical covariate is known to stand beside it")
    finding += "."
    coefficients = multivariable[multivariable["hr"].notna() & multivariable["p"].notna()]
    risk = coefficients[coefficients["variable"] == f"{source} risk"]
    if len(risk):
        hr = risk.iloc[0]
        finding += (
            f" Hazard ratio per SD of its risk, adjusted for the others: {hr['hr']:.2g} "
            f"({hr['ci_low']:.2g} to {hr['ci_high']:.2g})."
        )
        said = "the interval of the adjusted hazard ratio"
        reasons.when(not hr["ci_low"] > 1, _not_above(said, hr, 1.0, "1"))
    else:
        reasons.when(True, "there is no multivariable model")
    time = follow_up.loc[follow_up["group"] == "all", "median_follow_up"]
    followed = (
        f", median follow-up {time.iloc[0]:.3g} months" if len(time) and time.notna().all() else ""
    )
    finding += f" {n} patients, {events} events{followed}."
    none = 0.0 if beside else 0.5
    reasons.when(not row["p"] < LEVEL, f"p is not below {LEVEL}", against=True)
    reasons.when(not row["c_index"] > none, "it does not add to the clinic" if beside else
                 "it is no better than chance", against=True)  # fmt: skip
    called = "no gain" if beside else "chance"
    reasons.when(not row["ci_low"] > none, _not_above("the interval", row, none, called))
    # Patients without a covariate are not in the multivariable model; each variable counts the others.
    counted = multivariable.groupby("variable")["events"].sum()
    fitted = int(counted.max()) if len(counted) else 0
    few = len(coefficients) > 0 and fitted < EVENTS_PER_COEFFICIENT * len(coefficients)
    reasons.when(few, f"{fitted} events for {len(coefficients)} coefficients")
    # The warning of few events says the same.
    reasons.warned([w for w in warned if not (few and "events for" in w)])
    return Verdict(
        question, finding, file, cohort, model=f"clinical+{source}" if beside else source,
        measure="gain in C-index" if beside else "C-index", value=float(row["c_index"]),
        ci_low=float(row["ci_low"]), ci_high=float(row["ci_high"]), null=float(row["null"]),
        ceiling=1.0 - float(clinical) if beside else 1.0, n_patients=n, **reasons.given(),
    )  # fmt: skip


def judge_response(
    performance: pd.DataFrame, *, cohort: str, file: str, warned: Sequence[str] = ()
) -> Verdict:
    """Return whether the image predicts response.

    Parameters
    ----------
    performance
        results/response/{cohort}/performance.tsv.
    cohort
        Its name.
    file
        Where it lies.
    warned
        Warnings that decide response.
    """
    auroc = performance[performance["metric"] == "auroc"].set_index("model")
    source = "expression" if "expression" in auroc.index else "image"
    what = "measured expression" if source == "expression" else "image"
    reasons, question = _Reasons(), f"Response from the {what}"
    first = performance.iloc[0]
    n, positives = int(first["n"]), int(first["positives"])
    if source not in auroc.index:
        reasons.when(True, f"there is no model of the {what}", against=True)
        found = f"{positives} of {n} patients responded."
        return Verdict(question, found, file, cohort, n_patients=n, **reasons.given())
    row = auroc.loc[source]
    finding = (
        f"AUROC of the {what} {_n(row['value'])}{_interval(row)}; shuffled between the patients "
        f"{_n(row['null'])}{_upper(row)}, p = {row['p']:.2g}; the most is 1"
    )
    if "clinical" in auroc.index:
        finding += (
            f". The clinical covariates by themselves have {_n(auroc.loc['clinical', 'value'])}"
        )
    finding += f". {positives} of {n} patients responded."
    reasons.when(not row["p"] < LEVEL, f"p is not below {LEVEL}", against=True)
    reasons.when(not row["ci_low"] > 0.5, _not_above("the interval", row, 0.5, "chance"))
    rarer = min(positives, n - positives)
    reasons.when(rarer < FEW_OF_A_CLASS, f"the rarer outcome has {rarer} patients")
    reasons.warned(warned)
    return Verdict(
        question, finding, file, cohort, model=source, measure="auroc", ceiling=1.0,
        **{k: v for k, v in _numbers(row).items() if k not in ("ceiling", "n_patients")},
        n_patients=n, **reasons.given(),
    )  # fmt: skip


def judge_slides(predicted: pd.DataFrame, *, file: str) -> Verdict | None:
    """Return whether the slides are such as the model was trained on; None where there are none.

    Parameters
    ----------
    predicted
        results/predicted_slides.tsv.
    file
        Where it lies.
    """
    if predicted.empty:
        return None
    n, out = len(predicted), predicted["out_of_distribution"].astype(bool)
    known = predicted["training_section"].fillna("").astype(str) != ""
    reasons = _Reasons()
    reasons.when(out.sum() > n / 2, "most slides are unlike the training slides", against=True)
    some = ", ".join(predicted.loc[out, "slide"].astype(str)[:5]) + (" …" if out.sum() > 5 else "")
    reasons.when(0 < out.sum() <= n / 2, f"what is predicted for {some} is extrapolated")
    reasons.when(known.any(), f"{known.sum()} are images that the model was trained on")
    finding = (
        f"{int(out.sum())} of {n} slides without spots are out of distribution: stain, scanner, tissue or "
        "pixel size unlike the training slides. Of slides that are like them there would be hardly any."
    )
    return Verdict(
        "Slides like the training slides", finding, file, measure="share out of distribution",
        value=float(out.mean()), null=0.0, **reasons.given(),
    )  # fmt: skip


def _card(scorecards: pd.DataFrame, task: str, model: str, metric: str) -> dict[str, Any] | None:
    rows = scorecards[
        (scorecards["protocol"] == "patient_cv")
        & (scorecards["task"] == task)
        & (scorecards["model"] == model)
        & (scorecards["metric"] == metric)
    ]
    return None if rows.empty else rows.iloc[0].to_dict()


def _numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("value", "ci_low", "ci_high", "null", "null_upper", "ceiling")
    found = {name: float(row.get(name, np.nan)) for name in names}
    return found | {"n_patients": int(row["n_patients"]) if "n_patients" in row else None}


def _name(settings: Mapping[str, Any], role: str) -> str:
    return str(settings["models"].get(role, {}).get("model", ""))


def _n(value: float) -> str:
    text = f"{value:.2f}"
    return "0.00" if text == "-0.00" else text


def _interval(row: Mapping[str, Any], *, sign: bool = False) -> str:
    if not (np.isfinite(row["ci_low"]) and np.isfinite(row["ci_high"])):
        return ""
    low, high = (f"{row[k]:+.2f}" if sign else _n(row[k]) for k in ("ci_low", "ci_high"))
    return f" ({low} to {high})"


def _not_above(what: str, row: Mapping[str, Any], none: float, called: str) -> str:
    """Say of an interval that is not above what knowing nothing scores where it lies."""
    return f"{what} {'lies below' if row['ci_high'] < none else 'includes'} {called}"


def _upper(row: Mapping[str, Any]) -> str:
    upper = row.get("null_upper", np.nan)
    return f" (at most {_n(upper)} in 19 of 20 cases)" if np.isfinite(upper) else ""
