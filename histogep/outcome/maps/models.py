"""The spatial-map model in nested patient folds, and under the paper's protocol (torch).

Honest: programmes, covariates and epoch come from the training patients of a fold. A network is
trained on every inner fold; the epoch is that of the best held-out likelihood of all inner folds
(before the first epoch all risks are equal, and that can be the best), and the held-out
patients get the mean of the networks at that epoch. With covariates, the risks that the inner
folds give the patients they hold out are one more column of the clinical model.

Every step sees all training patients, so that risk sets are whole: slides go through the network
in parts, first for the risks, then again for the gradient.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from histogep.outcome.known_outcomes import known_covariates
from histogep.outcome.maps.network import EfronLoss, FileOrderLoss, LogisticLoss, MapNet
from histogep.outcome.maps.scores import CLINICAL_MAPS, MAPS, PUBLISHED, MapScores
from histogep.outcome.maps.slide_maps import Programmes, SlideMap, canvases
from histogep.outcome.nested_cv import choose_and_fit, fill_and_scale, stratified
from histogep.outcome.response import response_folds
from histogep.stats.cox import RiskSets
from histogep.stats.discrimination import bootstrap_concordance, survival_pairs
from histogep.stats.penalised import CoxLearner, LogisticLearner

log = logging.getLogger(__name__)

#: Epochs between two evaluations of held-out patients; the paper's protocol evaluates every one.
_LOOK_EVERY = 4
#: Positions of one part of the slides that goes through the network at a time.
_PART_CELLS = 400_000
#: Steps are no longer than this, as a Cox loss is flat far out.
_MAX_GRADIENT = 1.0


@dataclass(frozen=True)
class Outcome:
    """What is predicted: a survival (time, event), or a response (time is None).

    Attributes
    ----------
    event
        Event or response, 0 or 1, (n,).
    time
        Follow-up, (n,).
    """

    event: np.ndarray
    time: np.ndarray | None = None

    def loss(self, rows: np.ndarray, device: str) -> Callable[[Tensor], Tensor]:
        """Return the loss of the risks of some patients."""
        if self.time is None:
            return LogisticLoss(self.event[rows], device=device)
        return EfronLoss(self.time[rows], self.event[rows], device=device)

    def gain(self, risk: np.ndarray, train: np.ndarray, held_out: np.ndarray) -> float:
        """Return the log likelihood that held-out patients give risks of all patients."""
        if self.time is None:
            eta, truth = risk[held_out], self.event[held_out]
            return float((truth * eta - np.logaddexp(0, eta)).sum())
        value = 0.0
        for rows, sign in ((np.concatenate([train, held_out]), 1), (train, -1)):
            if self.event[rows].any():
                sets = RiskSets(self.time[rows], self.event[rows])
                one = np.ones((1, 1))
                value += sign * sets.log_likelihood(risk[rows][None, :, None], one)[0]
        return float(value)

    def learner(self) -> CoxLearner | LogisticLearner:
        """Return the linear learner that joins maps and covariates."""
        if self.time is None:
            return LogisticLearner(self.event)
        return CoxLearner(self.time, self.event)


class Cohort:
    """The slides of n patients as tensors; `owner` says which patient's maps each slide counts for.

    Parameters
    ----------
    maps
        Slides of the patients.
    patients
        Their ids, in the order of the outcome.
    device
        "cpu" or "cuda".
    """

    def __init__(self, maps: Sequence[SlideMap], patients: Sequence[str], *, device: str = "cpu"):
        place = {patient: number for number, patient in enumerate(patients)}
        self.maps, self.n, self.device = list(maps), len(patients), device
        self.patient = np.array([place[item.patient] for item in maps])
        self.canvases = [torch.as_tensor(c, device=device) for c in canvases(self.maps)]
        cells = self.canvases[0][0].numel()
        size = max(1, _PART_CELLS // cells)
        self.parts = [
            torch.arange(start, min(start + size, len(self.maps)), device=device)
            for start in range(0, len(self.maps), size)
        ]

    def channels(self, train: np.ndarray, *, components: int, seed: int) -> Tensor:
        """Return the channels of all tiles and a row of zeros, fitted on slides of `train`."""
        chosen = np.isin(self.patient, train)
        programmes = Programmes.fit(
            [item for item, keep in zip(self.maps, chosen, strict=True) if keep],
            components=components,
            seed=seed,
        )
        tiles = np.concatenate([programmes.project(item) for item in self.maps])
        tiles = np.concatenate([tiles, np.zeros((1, tiles.shape[1]), np.float32)])
        return torch.as_tensor(tiles, device=self.device)

    def grid(self, tiles: Tensor, part: Tensor, symmetry: int) -> tuple[Tensor, Tensor]:
        """Return maps (b, c, rows, cols) and masks (b, 1, rows, cols) of some slides."""
        index = self.canvases[symmetry % len(self.canvases)][part]
        return tiles[index].movedim(-1, 1), (index >= 0).unsqueeze(1).to(tiles.dtype)


def train_network(
    cohort: Cohort,
    tiles: Tensor,
    owner: np.ndarray,
    loss: Callable[[Tensor], Tensor],
    rows: np.ndarray,
    *,
    settings: dict[str, Any],
    seed: int,
    covariates: np.ndarray | None = None,
    look_every: int = _LOOK_EVERY,
) -> np.ndarray:
    """Train one network; return the risk of every patient before it and as it goes on.

    Parameters
    ----------
    cohort, tiles
        The slides, and `Cohort.channels` of them.
    owner
        Whose maps each patient has: `arange(n)`, or a permutation of it, (n,).
    loss
        Of the risks of the patients `rows`, summed over them.
    rows
        Training patients.
    settings
        channels, blocks, kernel, epochs, lr, weight_decay.
    seed
        Of the weights and of the symmetries.
    covariates
        Covariates beside the maps, (n, k).
    look_every
        Epochs between two of the risks returned.

    Returns
    -------
    ndarray
        (looks, n): the mean over the slides that count for each patient.
    """
    torch.manual_seed(seed % 2**31)
    rng = np.random.default_rng([seed, 23])
    device = cohort.device
    # Patient p has the maps of patient owner[p]: its slides count for p.
    holder = np.argsort(owner)[cohort.patient]
    who = torch.as_tensor(holder, device=device)
    count = torch.bincount(who, minlength=cohort.n).clamp(min=1)
    training = np.zeros(cohort.n, bool)
    training[rows] = True
    kept = torch.as_tensor(training[holder], device=device)
    taught = [part[kept[part]] for part in cohort.parts]
    taught = [part for part in taught if len(part)]
    beside = None
    if covariates is not None:
        beside = torch.as_tensor(covariates, dtype=tiles.dtype, device=device)
    network = MapNet(
        tiles.shape[1],
        channels=settings["channels"],
        blocks=settings["blocks"],
        kernel=settings["kernel"],
        n_covariates=0 if covariates is None else covariates.shape[1],
    ).to(device)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=settings["lr"], weight_decay=settings["weight_decay"]
    )
    order = torch.as_tensor(rows, device=device)

    def forward(part: Tensor, symmetry: int) -> Tensor:
        maps, mask = cohort.grid(tiles, part, symmetry)
        return network(maps, mask, None if beside is None else beside[who[part]])

    def pool(values: Sequence[Tensor], parts: Sequence[Tensor]) -> Tensor:
        joined = torch.cat(list(values)) / count[who[torch.cat(list(parts))]]
        total = joined.new_zeros(cohort.n)
        return total.index_add(0, who[torch.cat(list(parts))], joined)

    def look() -> np.ndarray:
        with torch.no_grad():
            return pool([forward(p, 0) for p in cohort.parts], cohort.parts).cpu().numpy()

    looks = [look()]
    for epoch in range(1, settings["epochs"] + 1):
        symmetry = int(rng.integers(len(cohort.canvases)))
        optimiser.zero_grad()
        if len(taught) == 1:
            values = [forward(taught[0], symmetry)]
            (loss(pool(values, taught)[order]) / len(rows)).backward()
        else:
            with torch.no_grad():
                values = [forward(part, symmetry) for part in taught]
            leaves = [value.requires_grad_() for value in values]
            (loss(pool(leaves, taught)[order]) / len(rows)).backward()
            for part, leaf in zip(taught, leaves, strict=True):
                forward(part, symmetry).backward(leaf.grad)
        torch.nn.utils.clip_grad_norm_(network.parameters(), _MAX_GRADIENT)
        optimiser.step()
        if epoch % look_every == 0 or epoch == settings["epochs"]:
            looks.append(look())
    return np.stack(looks).astype(np.float64)


def nested_map_scores(
    cohort: Cohort,
    outcome: Outcome,
    *,
    clinical: pd.DataFrame,
    folds: int,
    settings: dict[str, Any],
    penalties: Sequence[float],
    seed: int,
) -> MapScores:
    """Return out-of-fold scores of the network, with and without covariates, and of shuffled maps.

    Parameters
    ----------
    cohort
        Slides of the patients.
    outcome
        Theirs.
    clinical
        Covariates, NaN for missing; no column for none.
    folds
        Outer folds: of each repeat those of `histogep.outcome.nested_cv.nested_scores` for the same seed.
    settings
        The settings `maps`.
    penalties
        On the column of the maps beside the covariates.
    seed
        Of folds, weights and shuffles.
    """
    n, everyone = cohort.n, np.arange(cohort.n)
    rng = np.random.default_rng([seed, n, 29])
    owners = [everyone, *(rng.permutation(n) for _ in range(settings["shuffles"]))]
    models = [MAPS, CLINICAL_MAPS] if clinical.shape[1] else [MAPS]
    scores = {name: np.zeros((settings["repeats"], len(owners), n)) for name in models}
    fold_of = np.zeros((settings["repeats"], n), int)
    for repeat in range(settings["repeats"]):
        outer = stratified(outcome.event, folds, seed + 10_000 * repeat)
        for number, (train, test) in enumerate(outer, start=1):
            fold_of[repeat, test] = number
            fold_seed = seed + 10_000 * repeat + 1000 * number
            inner = [
                (train[a], train[b])
                for a, b in stratified(outcome.event[train], settings["inner_folds"], fold_seed)
            ]
            for draw, owner in enumerate(owners):
                # The maps assigned to the training patients, whoever they come from.
                tiles = cohort.channels(
                    owner[train], components=settings["components"], seed=fold_seed
                )
                looks = []
                for fold, (rows, _) in enumerate(inner):
                    looks.append(
                        train_network(
                            cohort, tiles, owner, outcome.loss(rows, cohort.device), rows,
                            settings=settings, seed=fold_seed + 31 * fold + 1009 * draw,
                        )
                    )  # fmt: skip
                held_out, mean, best = _choose_look(np.stack(looks), inner, train, outcome)
                if draw == 0:
                    log.info(
                        "repeat %d, fold %d: epoch %d of %d",
                        repeat + 1,
                        number,
                        min(best * _LOOK_EVERY, settings["epochs"]),
                        settings["epochs"],
                    )
                scores[MAPS][repeat, draw, test] = mean[test]
                if CLINICAL_MAPS in scores:
                    covariates = fill_and_scale(clinical, train)
                    column = np.where(np.isin(everyone, train), held_out, mean)
                    x = np.column_stack([covariates, column])[None]
                    coef, _ = choose_and_fit(
                        outcome.learner(), x, covariates.shape[1], train, inner, list(penalties)
                    )
                    eta = x[0] @ coef[0]
                    scores[CLINICAL_MAPS][repeat, draw, test] = _standard(eta, train)[test]
    return MapScores(
        scores={name: values[:, 0] for name, values in scores.items()},
        shuffled={name: values[:, 1:] for name, values in scores.items()},
        fold=fold_of,
    )


def _choose_look(
    looks: np.ndarray,
    inner: Sequence[tuple[np.ndarray, np.ndarray]],
    train: np.ndarray,
    outcome: Outcome,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the held-out risks of the training patients, the networks' mean, and the look taken.

    `looks` is (networks, looks, n). Risks are in standard deviations of a network's own training
    patients.
    """
    gains = np.zeros(looks.shape[1])
    for number in range(looks.shape[1]):
        for risks, (rows, held_out) in zip(looks[:, number], inner, strict=True):
            gains[number] += outcome.gain(risks, rows, held_out)
    best = int(np.argmax(np.where(np.isfinite(gains), gains, -np.inf)))
    standard = np.stack(
        [_standard(risks, rows) for risks, (rows, _) in zip(looks[:, best], inner, strict=True)]
    )
    held = np.zeros(looks.shape[2])
    for risks, (_, held_out) in zip(standard, inner, strict=True):
        held[held_out] = risks[held_out]
    return held, standard.mean(axis=0), best


def _standard(risk: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return risks in standard deviations of some rows; 0 where these are all alike."""
    spread = risk[rows].std()
    return (risk - risk[rows].mean()) / spread if spread > 1e-9 else np.zeros_like(risk)


def published_scores(
    cohort: Cohort,
    outcome: Outcome,
    *,
    clinical: pd.DataFrame,
    folds: int,
    settings: dict[str, Any],
    seed: int,
) -> MapScores:
    """Return the scores of the paper's protocol: the best epoch is picked on the test fold.

    The network is trained on all other folds with `FileOrderLoss`; the C-index of the test fold is
    looked at after every epoch, and the epoch with the largest one is kept. With noise in place of
    the maps (each tile's channels drawn again) the same is done `noise_draws` times. The programmes
    are those of all patients, as the release selects genes on all sections.

    Parameters
    ----------
    cohort, outcome, clinical, folds, settings, seed
        As for `nested_map_scores`; survival only.

    Returns
    -------
    MapScores
        Scores of the best epochs, to be judged fold by fold; `shuffled` holds the noise.
    """
    if outcome.time is None:
        raise ValueError("the published protocol ranks survival times: the outcome has none")
    pairs = survival_pairs(outcome.time, outcome.event).astype(float)
    everyone = np.arange(cohort.n)
    tiles = cohort.channels(everyone, components=settings["components"], seed=seed)
    noise = np.random.default_rng([seed, cohort.n, 37])
    draws = [tiles]
    for _ in range(settings["noise_draws"]):
        drawn = noise.normal(size=tuple(tiles.shape)).astype(np.float32)
        drawn[-1] = 0
        draws.append(torch.as_tensor(drawn, device=cohort.device))
    names = [MAPS, CLINICAL_MAPS] if clinical.shape[1] else [MAPS]
    scores = {PUBLISHED + name: np.zeros((1, len(draws), cohort.n)) for name in names}
    fold_of = np.zeros((1, cohort.n), int)
    for number, (train, test) in enumerate(stratified(outcome.event, folds, seed), start=1):
        fold_of[0, test] = number
        loss = FileOrderLoss(outcome.event[train], device=cohort.device)
        for name in names:
            covariates = fill_and_scale(clinical, train) if name == CLINICAL_MAPS else None
            for draw, given in enumerate(draws):
                looks = train_network(
                    cohort, given, everyone, loss, train, settings=settings,
                    seed=seed + 1000 * number + 1009 * draw, covariates=covariates, look_every=1,
                )  # fmt: skip
                judged = pairs[np.ix_(test, test)]
                once = np.ones((1, len(test)))
                values = bootstrap_concordance(looks[1:, test], judged, once)[:, 0]
                best = 1 + int(np.argmax(np.nan_to_num(values, nan=-1.0)))
                scores[PUBLISHED + name][0, draw, test] = looks[best, test]
    return MapScores(
        scores={name: values[:, 0] for name, values in scores.items()},
        shuffled={name: values[:, 1:] for name, values in scores.items()},
        fold=fold_of,
    )


def score_cohort(
    table: pd.DataFrame,
    maps: Sequence[SlideMap],
    *,
    outcome: str,
    settings: dict[str, Any],
    outcome_settings: dict[str, Any],
    seed: int,
    device: str = "cpu",
) -> tuple[MapScores, MapScores]:
    """Return the scores of a cohort under the patient_cv and, where asked for, the paper's protocol.

    Parameters
    ----------
    table
        Patients whose outcome can be used (`histogep.outcome.known_outcomes.with_outcome`,
        `histogep.outcome.response.with_response`).
    maps
        Their slides.
    outcome
        survival or response.
    settings, outcome_settings
        The settings `maps`, and those of the outcome.
    seed
        Of folds, weights, shuffles and noise.
    device
        "cpu" or "cuda".
    """
    cohort = Cohort(maps, list(table["patient"].astype(str)), device=device)
    clinical = known_covariates(table, outcome_settings["covariates"])
    folds = outcome_settings["folds"]
    if outcome == "survival":
        known = Outcome(table["event"].to_numpy(int), table["time"].to_numpy(float))
    else:
        known = Outcome(table["response"].to_numpy(int))
        folds = response_folds(known.event, folds)
    log.info("%d slides of %d patients", len(cohort.maps), cohort.n)
    options = {"clinical": clinical, "folds": folds, "settings": settings, "seed": seed}
    patient_cv = nested_map_scores(
        cohort, known, penalties=outcome_settings["penalties"], **options
    )
    if outcome == "survival" and settings["published"]:
        return patient_cv, published_scores(cohort, known, **options)
    return patient_cv, MapScores({}, {}, patient_cv.fold)
