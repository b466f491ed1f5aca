"""Predicted against measured copy number, arm by arm, in patients that the model has not seen."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from histogep.cnv.arms import PIECE_GENES, score_arms, shuffle_runs
from histogep.cnv.clones import REFERENCE, UNASSIGNED
from histogep.cnv.controls import FAIL, NOT_APPLICABLE, PASS, compare_arms
from histogep.cnv.profiles import LogRatios, compare_genes, group_weights
from histogep.cnv.reference import join_labels
from histogep.cnv.slide import GENE_SETTINGS
from histogep.deployment.folder import check_features
from histogep.errors import InputError
from histogep.files import read_json
from histogep.models.folds import fold_roles
from histogep.models.ridge import RidgeModel
from histogep.models.sections import read_section
from histogep.models.weights import read_arrays
from histogep.spots.matrices import read_h5ad
from histogep.warned import of_slide

log = logging.getLogger(__name__)

COLUMNS = [
    *("slide", "patient", "fold", "contrast", "n_spots", "n_genes", "n_arms", "r"),
    *("null_arms_mean", "null_arms_q95", "p_arms", "null_genes_mean", "null_genes_q95", "p_genes"),
    *("arms_altered", "arms_shared", "arms_above", "null_above_mean", "null_above_q95"),
    *("verdict", "note"),
]
ARM_COLUMNS = [
    *("slide", "contrast", "arm", "n_genes", "measured", "predicted"),
    *("r", "null_mean", "null_q95", "p"),
]
#: Most draws of as many other genes for the correlation of one arm over spots, and how many of them
#: are one product of matrices.
_MOST_DRAWS, _DRAWS_AT_ONCE = 99, 11
#: The contrast of all malignant spots with the reference; the others are of one clone.
TUMOUR = "tumour"


@dataclass(frozen=True)
class HeldOut:
    """One section as measured and as predicted by a model that has not seen its patient.

    Attributes
    ----------
    slide, patient, fold
        Ids.
    measured, predicted
        log1p CP10k, spots by `genes`.
    genes
        The extended panel of the fold.
    clone
        Clone of each spot as called from the measured counts, "reference" or "unassigned".
    reference, malignant
        Masks of the spots, as the measured copy number has them.
    refused
        Why there is no measured copy number to compare with, or "".
    """

    slide: str
    patient: str
    fold: str
    measured: np.ndarray
    predicted: np.ndarray
    genes: list[str]
    clone: np.ndarray
    reference: np.ndarray
    malignant: np.ndarray
    refused: str


def read_held_out(
    weights: str | Path,
    settings: str | Path,
    folds: pd.DataFrame,
    *,
    features: Sequence[str | Path],
    spots: Sequence[str | Path],
    labels: Sequence[str | Path],
    cnv: Sequence[str | Path],
) -> list[HeldOut]:
    """Return the test sections of one fold, measured and predicted by the fold's extended model.

    Parameters
    ----------
    weights, settings
        The extended ridge of a patient_cv fold (results/models/{study}/{fold}/{model}/).
    folds
        The folds table.
    features, spots, labels, cnv
        Files over all sections, named {slide}.h5, .h5ad, .tsv, .h5ad; only those of the test
        sections are opened.

    Raises
    ------
    InputError
        The model is no ridge, or was trained on a test section or on another section of a test
        patient.
    """
    record = read_json(settings)
    if record["kind"] != "ridge":
        raise InputError(f"{settings} is of a {record['kind']}: the extended panel needs a ridge")
    test = fold_roles(folds, record["fold"])["test"]
    for what, names in (("slides", test.keys()), ("patients", test.values())):
        seen = {name for role in ("train", "validation") for name in record[f"{role}_{what}"]}
        if seen & set(names):
            raise InputError(
                f"{settings}: the {what} {', '.join(sorted(seen & set(names)))} trained the model "
                "that is to be compared on them: the folds changed, train it again"
            )
    model = RidgeModel.from_arrays(read_arrays(weights), record)
    paths = [{Path(path).stem: path for path in files} for files in (features, spots, labels, cnv)]
    found = []
    for slide, patient in test.items():
        section = read_section(
            *(files[slide] for files in paths[:3]),
            slide=slide,
            patient=patient,
            task="expression",
            genes=record["genes"],
        )
        check_features(section, record)
        profile = read_h5ad(paths[3][slide])
        clone = join_labels(
            pd.Index(section.barcode),
            profile.obs["clone"].astype(str).rename_axis("barcode").reset_index(),
            str(paths[3][slide]),
            column="clone",
            missing=UNASSIGNED,
        )
        obs = profile.obs.reindex(section.barcode)
        found.append(
            HeldOut(
                slide=slide,
                patient=patient,
                fold=record["fold"],
                measured=section.targets,
                predicted=np.maximum(model.predict(section.tiles)[0], 0.0),
                genes=list(record["genes"]),
                clone=clone,
                reference=obs["reference"].to_numpy(bool),
                malignant=obs["malignant"].to_numpy(bool),
                refused=str(profile.uns["refused"]),
            )
        )
    return found


def compare_section(
    section: HeldOut,
    positions: pd.DataFrame,
    settings: Mapping[str, Any],
    *,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return how the predicted copy number of a section agrees with the measured one.

    Both are made from the same spots and the same genes against the same reference; what differs is
    that one was measured. Compared are the means over arms of malignant minus reference spots, and
    of each clone minus the other malignant spots; which arms moved as a whole (`altered_arms`); and
    within each arm its values over malignant and reference spots (`correlate_spots`). They agree
    where arms correlate beyond arms shuffled and at least half of the arms that moved in the
    prediction, and one at least, moved the same way in the measurement; where none moved in either
    there is nothing to agree on. (The null of shuffled genes, `p_genes`, takes part in no verdict:
    a good prediction of all genes agrees wherever they lie.)

    Parameters
    ----------
    section
        Measured and predicted expression.
    positions
        Table of `histogep.inputs.genome.read_gene_positions`.
    settings
        Section `cnv` of the configuration.
    seed
        Seed of the shuffles.

    Returns
    -------
    tuple
        Agreement (`COLUMNS`; one row per contrast, or one that says why there is none) and the arms
        (`ARM_COLUMNS`).
    """
    no_arms = pd.DataFrame(columns=ARM_COLUMNS)
    same = {"slide": section.slide, "patient": section.patient, "fold": section.fold}
    if section.refused:
        return _nothing(same, section.refused), no_arms
    if not section.malignant.any():
        return _nothing(same, "no malignant spot"), no_arms
    chosen = {name: settings[name] for name in GENE_SETTINGS if name in settings}
    try:
        profiles = [
            compare_genes(values, positions, section.reference, genes=section.genes, **chosen)
            for values in (section.measured, section.predicted)
        ]
    except InputError as error:
        log.warning("slide %s: no agreement: %s", section.slide, error, **of_slide(section.slide))
        return _nothing(same, str(error)), no_arms
    genes = profiles[0].genes.merge(profiles[1].genes[["gene"]], on="gene")
    rows, arms = [], []
    for contrast, (first, second) in _contrasts(section).items():
        measured, predicted = (_difference(p, genes["gene"], first, second) for p in profiles)
        found, table = compare_arms(
            measured,
            predicted,
            genes["arm"].to_numpy(),
            min_arm_genes=settings.get("min_arm_genes", 15),
            permutations=settings.get("permutations", 499),
            seed=seed,
        )
        within = pd.DataFrame({"arm": table["arm"], **dict.fromkeys(ARM_COLUMNS[-4:], np.nan)})
        if contrast == TUMOUR:
            draws = min(settings.get("permutations", 499), _MOST_DRAWS)
            spots = first | second
            within, by_chance = correlate_spots(
                profiles, genes, table["arm"], spots, draws=draws, seed=seed
            )
            found["arms_above"] = int((within["p"] <= 0.05).sum())
            found["null_above_mean"] = by_chance.mean()
            found["null_above_q95"] = np.quantile(by_chance, 0.95)
        shifts = [
            altered_arms(profile, genes, values, settings, seed=seed)
            for profile, values in zip(profiles, (measured, predicted), strict=True)
        ]
        # An arm that moved in both counts only where it moved the same way.
        both = [arm for arm, sign in shifts[1].items() if shifts[0].get(arm) == sign]
        found["arms_altered"], found["arms_shared"] = len(shifts[1]), len(both)
        verdict, note = _judge(found, any_altered=any(len(side) for side in shifts))
        row = {"contrast": contrast, "n_spots": int(first.sum()), "verdict": verdict, "note": note}
        rows.append(same | row | found)
        table = table.assign(slide=section.slide, contrast=contrast)
        arms.append(table.merge(within, on="arm", validate="1:1"))
        log.info(
            "slide %s, %s: r %.3f over %d arms, p %.3g (arms), %.3g (genes)",
            *(section.slide, contrast, found["r"], found["n_arms"]),
            *(found["p_arms"], found["p_genes"]),
        )
    return pd.DataFrame(rows)[COLUMNS], pd.concat(arms, ignore_index=True)[ARM_COLUMNS]


def altered_arms(
    profile: LogRatios,
    genes: pd.DataFrame,
    contrast: np.ndarray,
    settings: Mapping[str, Any],
    *,
    seed: int,
) -> dict[str, float]:
    """Return the arms that moved as a whole in a contrast (`score_arms`), and which way (1 or -1).

    Parameters
    ----------
    profile
        Measured or predicted profiles, for the mean expression of genes.
    genes
        gene and arm of the contrast's genes, in the order of the genome.
    contrast
        Difference of each gene between two groups of spots.
    settings
        Section `cnv` of the configuration.
    seed
        Seed of the null.
    """
    level = profile.genes.set_index("gene")["level"].reindex(genes["gene"]).to_numpy()
    chosen = {
        name: settings[name] for name in ("min_arm_genes", "permutations") if name in settings
    }
    table = score_arms(contrast, level, genes["arm"], seed=seed, **chosen).table
    moved = table[table["altered"].astype(bool)]
    return dict(zip(moved["arm"], np.sign(moved["score"]), strict=True))


def _judge(found: Mapping[str, float], *, any_altered: bool) -> tuple[str, str]:
    """Return the verdict on a contrast, and what of it needs saying."""
    if np.isnan(found["r"]):
        return NOT_APPLICABLE, ""
    if not any_altered:
        return NOT_APPLICABLE, "no arm is altered as a whole, measured or predicted"
    shared = found["arms_shared"] > 0 and found["arms_shared"] >= found["arms_altered"] / 2
    return (PASS if shared and found["p_arms"] <= 0.05 else FAIL), ""


def correlate_spots(
    profiles: Sequence[LogRatios],
    genes: pd.DataFrame,
    arms: Sequence[str],
    spots: np.ndarray,
    *,
    draws: int,
    seed: int,
) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the correlation over spots of measured with predicted arms, each beside its null.

    A spot's value is the mean log ratio of the arm less that of all genes. The null is had from as
    many other genes, runs of neighbours dealt again over the arms: tumour and stroma differ in the
    genes of any arm, and what a prediction knows of that correlates too.

    Parameters
    ----------
    profiles
        Measured and predicted profiles.
    genes
        gene and arm of those that both have, in the order of the genome.
    arms
        Arms to compare.
    spots
        Mask of the spots.
    draws
        Times that the genes are dealt again.
    seed
        Seed of the draws.

    Returns
    -------
    table
        arm, r (Pearson), null_mean, null_q95, p (not corrected for the number of arms); NaN where
        one side is constant.
    by_chance
        Of each draw the number of arms with a p of .05 at most among all draws, (draws,): how many
        that are together, as arms of one spot are no separate trials.
    """
    arms = list(arms)
    member = pd.Index(arms).get_indexer(genes["arm"].astype(object))
    size = np.bincount(member[member >= 0], minlength=len(arms))
    sides = []
    for profile in profiles:
        place = pd.Index(profile.genes["gene"]).get_indexer(genes["gene"])
        used = np.full(len(profile.genes), -1)
        used[place] = 0
        overall = profile.average(group_weights(used, 1))[spots, np.newaxis]
        sides.append((profile.ratio[spots], place, overall))

    def correlations(members: np.ndarray) -> np.ndarray:
        """Return draws by arms, all draws as one product."""
        scores = []
        for ratio, place, overall in sides:
            weights = np.zeros((ratio.shape[1], len(members), len(arms)), np.float32)
            for draw, dealt in enumerate(members):
                own = dealt >= 0
                weights[place[own], draw, dealt[own]] = 1 / size[dealt[own]]
            values = ratio @ weights.reshape(ratio.shape[1], -1)
            values = values.reshape(len(values), len(members), len(arms)) - overall
            values -= values.mean(axis=0)
            length = np.sqrt((values**2).sum(axis=0))
            scores.append(values / np.where(length > 1e-9, length, np.nan))
        return (scores[0] * scores[1]).sum(axis=0).astype(np.float64)

    r = correlations(member[np.newaxis])[0]
    rng = np.random.default_rng(seed)
    orders = [shuffle_runs(len(member), rng, length=PIECE_GENES) for _ in range(draws)]
    dealt = np.array([member[order] for order in orders])
    chunks = range(0, draws, _DRAWS_AT_ONCE)
    null = np.concatenate([correlations(dealt[at : at + _DRAWS_AT_ONCE]) for at in chunks])
    p = (1 + (null >= r).sum(axis=0)) / (1 + draws)
    # A draw counts itself, as the arms as they are do; a constant arm is above nothing.
    p_null = np.array([(null >= one).sum(axis=0) for one in null]) / draws
    by_chance = ((p_null <= 0.05) & np.isfinite(null)).sum(axis=1)
    table = pd.DataFrame(
        {
            "arm": arms,
            "r": r,
            "null_mean": null.mean(axis=0),
            "null_q95": np.quantile(null, 0.95, axis=0),
            "p": np.where(np.isnan(r), np.nan, p),
        }
    )
    return table, by_chance


def _contrasts(section: HeldOut) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the two groups of spots of each contrast."""
    found = {TUMOUR: (section.malignant, section.reference)}
    clones = sorted(set(section.clone) - {REFERENCE, UNASSIGNED}, key=int)
    if len(clones) > 1:
        called = np.isin(section.clone, clones)
        # Of two clones the second would only repeat the first with its sign turned.
        for name in clones if len(clones) > 2 else clones[:1]:
            own = section.clone == name
            found[f"clone {name}"] = (own, called & ~own)
    return found


def _difference(
    profiles: LogRatios, genes: pd.Series, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    """Return the mean log ratio of genes in the first spots minus that in the second."""
    values = profiles.gene_means(first) - profiles.gene_means(second)
    return pd.Series(values, index=profiles.genes["gene"]).reindex(genes).to_numpy(np.float64)


def _nothing(same: Mapping[str, str], reason: str) -> pd.DataFrame:
    row = {**same, "contrast": TUMOUR, "verdict": NOT_APPLICABLE, "note": reason}
    return pd.DataFrame([row]).reindex(columns=COLUMNS)
