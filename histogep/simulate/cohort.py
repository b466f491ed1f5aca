"""The patients of the simulated study: tissue composition, outcomes, and the two sheets.

A patient's latent state depends on the seed and the patient's number alone, and a slide's
composition on that and the slide's number, so that every slide can be made by a job of its own,
which is given its composition.
The latents are points of a scrambled Sobol sequence rather than independent draws: a cohort of 24
then covers every range evenly, and its compositions are nearly uncorrelated. The chance in the
outcomes (times, censoring, responses) is ordinary independent chance.

The sizes of the effects are design, not findings: they are chosen so that 24 patients suffice to
see a true effect and clinical covariates alone do not.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import numpy as np
import pandas as pd

from histogep.errors import InputError

#: log hazard per standard deviation of the clone B share, of age and of stage.
LOG_HAZARD = {"clone_b": 1.9, "age": 0.45, "stage": 0.45}
#: log odds of response per standard deviation of the immune level, and of the infiltrated pattern
#: (the excluded pattern has as much the other way).
LOG_ODDS_IMMUNE = 2.4
LOG_ODDS_INFILTRATED = 1.2
#: Pattern of infiltration -> share of the immune cells that lie between the tumour cells; the others
#: lie in infiltrates of their own. Both patterns have as many immune cells.
INFILTRATED_SHARE = {"excluded": 0.15, "infiltrated": 0.6}
#: Lymphocytes are at most this share of the cells of the tumour.
_MOST_INFILTRATION = 0.35
WEIBULL_SHAPE = 1.4
WEIBULL_SCALE_MONTHS = 24.0
CENSORING_MONTHS = (24.0, 156.0)
STAGES = ("I", "II", "III", "IV")
STAGE_SHARES = (0.25, 0.35, 0.25, 0.15)
AGE_YEARS = (61.0, 11.0)
#: Prefixes of the patients with spots and of those with slides only.
WITH_SPOTS, WITHOUT_SPOTS = "P", "H"
_LATENTS = ("tumour", "clone_b", "immune", "fat", "age", "stage", "sex")
#: Of a second scrambling of the sequence, which leaves the first ones what they are without it.
_PATTERN = "pattern"
_SLIDE_ID = re.compile(r"^([PH])(\d+)-(\d+)$")
_STAGE_SD = float(
    np.sqrt(np.cov(np.arange(4), aweights=np.array(STAGE_SHARES), ddof=0)),
)


@dataclass(frozen=True)
class Composition:
    """What a piece of tissue consists of.

    Attributes
    ----------
    tumour
        Share of the tissue area that is tumour.
    clone_b
        Share of the tumour that belongs to clone B; the rest is clone A.
    immune
        Level 0..1 that sets how many immune cells there are.
    fat
        Share of the tissue area that is fat.
    pattern
        Where the immune cells are, a key of `INFILTRATED_SHARE`; "" for a share that follows from
        the level alone.
    """

    tumour: float
    clone_b: float
    immune: float
    fat: float
    pattern: str = ""

    @property
    def immune_cells(self) -> float:
        """Share of the tissue that is immune cells, wherever they are."""
        return 0.05 + 0.13 * self.immune + self.tumour * (0.03 + 0.27 * self.immune)

    @property
    def immune_area(self) -> float:
        """Share of the tissue area that is immune infiltrate."""
        return self.immune_cells - self.tumour * self.infiltration

    @property
    def infiltration(self) -> float:
        """Mean share of lymphocytes among the cells of the tumour."""
        if not self.pattern:
            return 0.03 + 0.27 * self.immune
        within = INFILTRATED_SHARE[self.pattern] * self.immune_cells
        return min(within / self.tumour, _MOST_INFILTRATION)

    def to_settings(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def stream(seed: int, *names: str) -> np.random.Generator:
    """Return the random stream of one named thing; streams of other names are independent."""
    return np.random.default_rng([seed, *(zlib.crc32(name.encode()) for name in names)])


def patient_of(slide: str) -> str:
    """Return the patient of a simulated slide: `H07-1` is the first slide of `H07`."""
    return slide[: slide.rindex("-")] if _SLIDE_ID.match(slide) else _refuse(slide)


def slide_composition(seed: int, slide: str) -> Composition:
    """Return the composition of one slide: its patient's, with a little variation of its own.

    Parameters
    ----------
    seed
        Seed of the study.
    slide
        Id as `simulate_sheets` gives it.
    """
    base = patient_composition(seed, patient_of(slide))
    jitter = stream(seed, "composition", slide).normal(size=4) * (0.02, 0.03, 0.04, 0.01)
    moved = np.array([base.tumour, base.clone_b, base.immune, base.fat]) + jitter
    tumour, clone_b, immune, fat = np.clip(
        moved, (0.3, 0.03, 0.0, 0.02), (0.7, 0.97, 1.0, 0.25)
    ).tolist()
    return Composition(tumour, clone_b, immune, fat, pattern=base.pattern)


def patient_composition(seed: int, patient: str) -> Composition:
    """Return the mean composition of a patient's slides.

    Both clones of a patient with spots are well represented, so that they can be told apart by
    copy number; among the other patients clone B makes up 4 to 96 % of the tumour.
    """
    latent = _latents(seed, patient)
    low, high = (0.3, 0.7) if patient.startswith(WITH_SPOTS) else (0.04, 0.96)
    return Composition(
        tumour=0.42 + 0.16 * latent["tumour"],
        clone_b=low + (high - low) * latent["clone_b"],
        immune=latent["immune"],
        fat=0.04 + 0.13 * latent["fat"],
        pattern="infiltrated" if latent[_PATTERN] >= 0.5 else "excluded",
    )


def simulate_patients(
    *, seed: int, n_with_spots: int = 6, n_without_spots: int = 24
) -> pd.DataFrame:
    """Return the patients of a study with their latent state and their outcomes.

    The log hazard is the sum over `LOG_HAZARD` of coefficient times standardised covariate;
    times are Weibull, censored at a uniform time. The log odds of a response are
    `LOG_ODDS_IMMUNE` times the standardised immune level, plus or minus `LOG_ODDS_INFILTRATED` by
    the pattern of infiltration, on which the hazard does not depend. Standardisation uses the
    design's means and standard deviations, not the sample's.

    Parameters
    ----------
    seed
        Seed of the study.
    n_with_spots, n_without_spots
        Numbers of patients with sections and with slides only.

    Returns
    -------
    DataFrame
        patient, tumour, clone_b, immune, fat, pattern (see `Composition`), age (years), sex, stage,
        log_hazard, log_odds, and for patients without spots time (months), event (0/1) and
        response (0/1); NaN for the others.
    """
    patients = [patient_id(WITH_SPOTS, number, n_with_spots) for number in range(n_with_spots)]
    patients += [
        patient_id(WITHOUT_SPOTS, number, n_without_spots) for number in range(n_without_spots)
    ]
    return pd.DataFrame([_patient(seed, patient) for patient in patients])


def simulate_sheets(
    *, seed: int, n_with_spots: int = 6, n_sections: int = 7, n_without_spots: int = 24
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the slide sheet and the patient sheet of a simulated study.

    The first patients with spots have the sections that are left when each has one; every
    fifteenth patient without spots has two slides.

    Parameters
    ----------
    seed
        Seed of the study.
    n_with_spots, n_sections, n_without_spots
        Numbers of patients with spots, of their sections, and of patients with slides only.

    Returns
    -------
    tuple of DataFrame
        Slides and patients with the columns of `config/README.md`, as text.
    """
    if n_with_spots < 0 or n_without_spots < 0 or n_with_spots + n_without_spots == 0:
        raise InputError("a simulated study needs at least one patient")
    if n_sections < n_with_spots or (n_sections and not n_with_spots):
        raise InputError(
            f"{n_sections} sections cannot be shared out among {n_with_spots} patients with "
            "spots: each needs at least one"
        )
    patients = simulate_patients(
        seed=seed, n_with_spots=n_with_spots, n_without_spots=n_without_spots
    )
    slides = []
    for index, patient in enumerate(patients["patient"]):
        has_spots = index < n_with_spots
        if has_spots:
            count = n_sections // n_with_spots + (index < n_sections % n_with_spots)
        else:
            count = 2 if (index - n_with_spots) % 15 == 14 else 1
        for number in range(1, count + 1):
            slide = f"{patient}-{number}"
            folder = f"data/simulated/{slide}"
            slides.append(
                {
                    "slide": slide,
                    "patient": patient,
                    "cohort": "visium" if has_spots else "hospital",
                    "image": f"{folder}.tiff",
                    "mpp": "",
                    "counts": folder if has_spots else "",
                    "positions": "",
                    "labels": f"{folder}/annotation.tsv" if has_spots else "",
                }
            )
    sheet = pd.DataFrame({"patient": patients["patient"]})
    for column, text in (
        ("time", "{:.1f}"),
        ("event", "{:.0f}"),
        ("age", "{:.0f}"),
        ("sex", "{}"),
        ("stage", "{}"),
        ("response", "{:.0f}"),
    ):
        sheet[column] = [
            "" if isinstance(value, float) and np.isnan(value) else text.format(value)
            for value in patients[column]
        ]
    return pd.DataFrame(slides), sheet


def patient_id(group: str, number: int, total: int) -> str:
    """Return the id of a group's patient number `number` (from 0), padded to sort by number."""
    return f"{group}{number + 1:0{max(2, len(str(total)))}d}"


def formulas() -> dict[str, Any]:
    """Return the coefficients of the outcome models as plain numbers, for the record."""
    return {
        "log_hazard_per_sd": dict(LOG_HAZARD),
        "log_odds_of_response_per_sd_immune": LOG_ODDS_IMMUNE,
        "log_odds_of_response_infiltrated": LOG_ODDS_INFILTRATED,
        "immune_cells_between_tumour_cells": dict(INFILTRATED_SHARE),
        "weibull_shape": WEIBULL_SHAPE,
        "weibull_scale_months": WEIBULL_SCALE_MONTHS,
        "censoring_months": list(CENSORING_MONTHS),
    }


def _patient(seed: int, patient: str) -> dict[str, Any]:
    from scipy import special

    latent, composition = _latents(seed, patient), patient_composition(seed, patient)
    mean_age, sd_age = AGE_YEARS
    age = float(np.clip(np.round(mean_age + sd_age * special.ndtri(latent["age"])), 28, 92))
    stage = min(int(np.searchsorted(np.cumsum(STAGE_SHARES), latent["stage"])), 3)
    mean_stage = float(np.dot(np.arange(4), STAGE_SHARES))
    log_hazard = (
        LOG_HAZARD["clone_b"] * (composition.clone_b - 0.5) / (0.92 / np.sqrt(12))
        + LOG_HAZARD["age"] * (age - mean_age) / sd_age
        + LOG_HAZARD["stage"] * (stage - mean_stage) / _STAGE_SD
    )
    log_odds = LOG_ODDS_IMMUNE * (composition.immune - 0.5) * np.sqrt(12)
    log_odds += LOG_ODDS_INFILTRATED * (1 if composition.pattern == "infiltrated" else -1)
    row: dict[str, Any] = {
        "patient": patient,
        **asdict(composition),
        "age": age,
        "sex": "female" if latent["sex"] < 0.5 else "male",
        "stage": STAGES[stage],
        "log_hazard": log_hazard,
        "log_odds": log_odds,
        "time": np.nan,
        "event": np.nan,
        "response": np.nan,
    }
    if patient.startswith(WITHOUT_SPOTS):
        rng = stream(seed, "outcome", patient)
        scaled = rng.exponential() / np.exp(log_hazard)
        time = WEIBULL_SCALE_MONTHS * scaled ** (1 / WEIBULL_SHAPE)
        censored = rng.uniform(*CENSORING_MONTHS)
        row["time"] = max(0.1, round(min(time, censored), 1))
        row["event"] = float(time <= censored)
        row["response"] = float(rng.random() < 1 / (1 + np.exp(-log_odds)))
    return row


def _latents(seed: int, patient: str) -> dict[str, float]:
    """Return the point 0..1 of a patient in the Sobol sequence of its group."""
    from scipy.stats import qmc  # costs most of a second, which the jobs of slides do not spend

    match = _SLIDE_ID.match(f"{patient}-1")
    if match is None:
        _refuse(patient)
    group, number = match[1], int(match[2]) - 1

    def point(*name: str, dimensions: int) -> np.ndarray:
        sequence = qmc.Sobol(dimensions, rng=stream(seed, *name))
        drawn = sequence.fast_forward(number).random(1)[0] if number else sequence.random(1)[0]
        return np.clip(drawn, 1e-6, 1 - 1e-6)

    first = point("latents", group, dimensions=len(_LATENTS)).tolist()
    # One dimension more: it is even beside the others too, as each dimension is scrambled by itself.
    pattern = point("pattern", group, dimensions=len(_LATENTS) + 1)[-1]
    return {**dict(zip(_LATENTS, first, strict=True)), _PATTERN: float(pattern)}


def _refuse(name: str) -> NoReturn:
    raise InputError(
        f"{name!r} is not the id of a simulated patient or slide, such as {WITH_SPOTS}01-1 or "
        f"{WITHOUT_SPOTS}12-1; make the sheets with `python -m histogep.simulate.cli`"
    )
