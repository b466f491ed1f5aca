"""Fit a lattice network or a blend on one fold: hands of patients, committee, shares, record (torch).

The training patients are dealt into hands, and member k of the committee never sees hand k: not for its
gene programmes, not for its weights. What it predicts of hand k judges it, so that the snapshot, the
number of programmes and the share of the network in a blend are weighed on patients that neither
the member nor the light head beside it has seen. Below `MIN_PATIENTS` patients a member that misses one
misses much, so two more see all of them, and these alone predict.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from histogep.lattice import Lattice
from histogep.models import blend
from histogep.models.lattice import (
    LatticeModel,
    input_scale,
    lattice_inputs,
    ring_matrix,
    run_networks,
)
from histogep.models.neighbours import ALPHAS, RANKS, RINGS, NeighbourModel, fit_neighbours
from histogep.models.network.committee import ring_table
from histogep.models.network.lattice_train import (
    LatticeSection,
    TrainedCommittee,
    train_committee,
)
from histogep.models.preparation import Preparation
from histogep.models.ridge import fit_level
from histogep.models.sections import Section
from histogep.models.selection import METRICS, inner_folds, mean_over_groups

LOG = logging.getLogger(__name__)
COMPONENTS = 64
#: Hands that the training patients are dealt into, at most.
HANDS = 5
#: With fewer patients, members that see all of them predict.
MIN_PATIENTS = 4
_ALL_SEEING = 2


def deal_members(groups: Sequence[str]) -> tuple[list[list[int]], list[list[int]]]:
    """Return what each member of a committee sees, and what it is judged on: indices of sections.

    Parameters
    ----------
    groups
        The patient of each section; all sections of a patient are in one hand.
    """
    everyone = list(range(len(groups)))
    hands = inner_folds(groups, most=HANDS)
    if len(hands) < 2:
        return [everyone] * _ALL_SEEING, [[]] * _ALL_SEEING
    judged = [[i for i in everyone if groups[i] in hand] for hand in hands]
    if len(set(groups)) < MIN_PATIENTS:
        judged += [[]] * _ALL_SEEING
    return [[i for i in everyone if i not in out] for out in judged], judged


def fit_lattice(
    sections: Sequence[Section],
    record: dict[str, Any],
    settings: Mapping[str, Any],
    lattice: Lattice,
    *,
    device: str = "cpu",
) -> tuple[dict[str, np.ndarray], pd.DataFrame]:
    """Fit a model of kind lattice or blend and complete its record.

    Parameters
    ----------
    sections
        Training and validation sections.
    record
        settings.json so far; it is completed in place.
    settings
        Of the model: components, and for a blend those of its light head.
    lattice
        Lattice of the sections.
    device
        "cpu" or "cuda".

    Returns
    -------
    tuple
        Arrays for weights.safetensors, and the candidates with their scores and weights.
    """
    sections = list(sections)
    mixed = record["kind"] == "blend"
    by_section = record["protocol"] == "published"
    groups = [section.slide if by_section else section.patient for section in sections]
    preparation = Preparation.fit(
        [section.tiles for section in sections],
        blocks=sections[0].blocks,
        lattice=lattice,
        components=settings.get("components", COMPONENTS),
    )
    inputs = [lattice_inputs(preparation, section.tiles) for section in sections]
    scale = input_scale(preparation, inputs)
    ready = [
        LatticeSection(
            (own * scale).astype(np.float32),
            ring_table(lattice, section.row, section.col),
            section.targets,
        )
        for own, section in zip(inputs, sections, strict=True)
    ]
    sees, judged = deal_members(groups)
    trained = train_committee(
        ready, sees, seeds=member_seeds(record["seed"], len(sees)), device=device
    )
    light = _fit_light(sections, groups, settings, lattice) if mixed else None
    left_out = []
    for k, out in enumerate(judged):
        if out:
            beside = None
            if mixed:
                beside = _fit_light(*_some(sections, groups, sees[k]), settings, lattice)
            left_out += [
                _left_out(ready[i], sections[i], groups[i], trained, k, beside) for i in out
            ]
    n_programmes = trained.programmes[0].axes.shape[1]
    shape = (len(trained.snapshots), n_programmes)
    found = blend.candidates(*shape, shares=blend.SHARES if mixed else (1.0,))
    scores = np.array([blend.score_candidates(one, found) for one in left_out])
    scores = scores.reshape(len(left_out), len(found)).T
    owners = [one.patient for one in left_out]
    weights, noise = blend.weigh(scores, owners, found)
    mixture = blend.mix(weights, found, shape)
    predicting = [k for k, out in enumerate(judged) if not out] or list(range(len(judged)))
    if light is None:
        whole = [preparation.transform(section.tiles, view="whole") for section in sections]
        level = fit_level(whole, [np.asarray(s.targets, float) for s in sections], groups, ALPHAS)
        parts, choice, deviation, rings = level.parts, dict(level.choice), None, 0
    else:
        names = ("level", "level_mean", "target_mean", "shrinkage")
        parts, choice = {name: getattr(light, name) for name in names}, dict(light.choice)
        deviation, rings = (light.deviation * mixture.light).astype(np.float32), light.rings
    snapshots = [s for s in range(shape[0]) if mixture.factors[s].any()] or [shape[0] - 1]
    stored = [(s, k) for s in snapshots for k in predicting]
    decoder = np.stack(
        [
            mixture.factors[s][:, None] * trained.programmes[k].decoder / len(predicting)
            for s, k in stored
        ]
    ).astype(np.float32)
    architecture = {
        "n_networks": len(stored),
        "n_inputs": len(scale),
        "n_outputs": n_programmes,
    }
    stacked = {
        name: np.stack([trained.snapshots[s][name][k] for s, k in stored])
        for name in trained.snapshots[0]
    }
    model = LatticeModel(
        preparation=preparation,
        scale=scale,
        networks=stacked,
        decoder=decoder,
        deviation=deviation,
        rings=rings,
        **parts,
    )
    score = blend.cross_fitted_score(left_out, scores, found)
    if mixed and score is not None:
        # The gain over the light head, on the scale of its own inner folds, which leave out fewer
        # patients at a time: so that it can be compared with the score of other models.
        score += choice["score"] - mean_over_groups(scores[0], owners)
    table = _candidates(scores, owners, found, weights, trained.steps)
    slides = [section.slide for section in sections]
    judges = [sections[i].slide for out in judged for i in out]
    for what in ("scaler", "pca", "target", "programmes", "alpha"):
        record[f"{what}_fitted_on"] = slides
    for what in ("share", "snapshot", "rank"):
        record[f"{what}_fitted_on"] = judges
    choice |= {"noise": noise, "share": 1.0 - mixture.light}
    record |= {
        "choice": choice,
        "alpha": choice.get("alpha", choice["level_alpha"]),
        "validation_score": score,
        "validation_metric": f"{METRICS['expression']}, left-out hands",
        "scores": {} if score is None else {"expression": score},
        "epoch_fitted_on": [],
        "best_epoch": None,
        "threshold_fitted_on": [],
        "threshold": None,
        "architecture": architecture,
        "committee": [
            {
                "trained_slides": [sections[i].slide for i in own],
                "trained_patients": list(dict.fromkeys(sections[i].patient for i in own)),
                "judged_slides": [sections[i].slide for i in out],
                "predicts": k in predicting,
            }
            for k, (own, out) in enumerate(zip(sees, judged, strict=True))
        ],
        "n_parameters": sum(array.size for array in stacked.values())
        + (0 if deviation is None else deviation.size),
        "torch": torch.__version__,
    }
    LOG.info(
        "%s: %d members, %d predict; share of the network %.2f; score %s",
        *(record["model"], len(sees), len(predicting), choice["share"]),
        "unknown" if score is None else f"{score:.4f}",
    )
    return model.to_arrays(), table


def member_seeds(seed: int, n_members: int) -> list[int]:
    """Return the seed of each member; it does not depend on how many there are."""
    return [
        int(np.random.SeedSequence([seed, k]).generate_state(1, np.uint64)[0] >> np.uint64(1))
        for k in range(n_members)
    ]


def _some(
    sections: Sequence[Section], groups: Sequence[str], own: Sequence[int]
) -> tuple[list[Section], list[str]]:
    return [sections[i] for i in own], [groups[i] for i in own]


def _fit_light(
    sections: Sequence[Section],
    groups: Sequence[str],
    settings: Mapping[str, Any],
    lattice: Lattice,
) -> NeighbourModel:
    return fit_neighbours(
        [section.tiles for section in sections],
        [section.targets for section in sections],
        groups,
        blocks=sections[0].blocks,
        lattice=lattice,
        components=settings.get("components", COMPONENTS),
        alphas=settings.get("alphas") or ALPHAS,
        ranks=settings.get("ranks", RANKS),
        rings=settings.get("rings", RINGS),
        encoder_sets=settings.get("encoder_sets", ()),
    )


def _left_out(
    ready: LatticeSection,
    section: Section,
    group: str,
    trained: TrainedCommittee,
    member: int,
    light: NeighbourModel | None,
) -> blend.LeftOut:
    """Return what a member, and the light head fitted on what it saw, say of a section."""
    truth = np.asarray(section.targets, float)
    truth = truth - truth.mean(0)
    ring = ring_matrix(Lattice.from_settings(section.lattice), section.row, section.col)
    programmes = [
        run_networks(
            {name: array[member : member + 1] for name, array in snapshot.items()},
            ready.features,
            ring,
        )[0]
        for snapshot in trained.snapshots
    ]
    said = np.stack(programmes).astype(float)
    beside = np.zeros_like(truth)
    if light is not None:
        values, level = light.predict(section.tiles)
        beside = (values - level).astype(float)
    return blend.LeftOut(
        patient=group,
        truth=truth,
        light=beside - beside.mean(0),
        programmes=said - said.mean(1, keepdims=True),
        decoder=trained.programmes[member].decoder.astype(float),
    )


def _candidates(
    scores: np.ndarray,
    owners: Sequence[str],
    found: Sequence[blend.Candidate],
    weights: np.ndarray,
    steps: Sequence[int],
) -> pd.DataFrame:
    """Return the table of the candidates: share, step of the snapshot, rank, score and weight."""
    return pd.DataFrame(
        {
            "share": [one.share for one in found],
            "step": [steps[one.snapshot] if one.share else 0 for one in found],
            "rank": [one.rank for one in found],
            "score": [mean_over_groups(row, owners) for row in scores],
            "weight": weights,
        }
    )
