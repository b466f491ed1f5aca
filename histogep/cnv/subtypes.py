"""Subtypes of a cohort: clones of all its slides grouped by the arms that they gained and lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.cluster import hierarchy
from scipy.spatial.distance import pdist, squareform

from histogep.cnv.cohort import SlideProfile
from histogep.cnv.controls import COLUMNS as CONTROL_COLUMNS
from histogep.cnv.controls import COPY_NUMBER, EXPRESSION_SUBTYPE, FAIL, PASS
from histogep.cnv.marker_genes import COLUMNS as MARKER_MEASURES
from histogep.cnv.marker_genes import rank_markers
from histogep.cnv.reference import CONFIDENCE, RANKED
from histogep.inputs.barcodes import PRIMARY, leave_out
from histogep.inputs.genome import order_arms

#: Said of a slide whose reference the labels did not choose.
RANKED_NOTE = "low confidence: reference and tumour are the ends of the marker score, not labels"
SUBTYPE_COLUMNS = [
    *("slide", "patient", "spot", "clone", "subtype", "reference", "confidence", "name"),
]
_CONTROLS = ["slide", *CONTROL_COLUMNS, "name", "reference", "note"]
#: Predicted profiles of so many patients can be told to be all the same one: above this median
#: correlation of arms. (Of a single patient nothing can be told.)
_FEWEST_PATIENTS, _MOST_ALIKE = 2, 0.8
#: What is averaged over a patient's slides of their heterogeneity.
HETEROGENEITY = ["ithcna", "ithgex"]
#: Settings of `subtype_cohort` that the configuration may name.
DEFAULTS = {"max_subtypes": 6, "min_silhouette": 0.15, "min_stability_subtypes": 0.6}
#: Without enough clones there is nothing to divide.
_FEWEST_CLONES = 4
#: Largest p of the silhouette of more than one subtype.
_LEVEL = 0.05


@dataclass(frozen=True)
class Subtypes:
    """Subtypes of a cohort.

    Attributes
    ----------
    spots
        slide, patient, spot, clone, subtype, reference (what chose the slide's reference), confidence
        ("low" where that is "ranked") and name ("CNV" or "expression subtype": what the slide's
        result may be called) of every malignant spot with a clone.
    clones
        slide, patient, clone, subtype, n_spots, measured, then one column per arm; in the order
        of the dendrogram.
    patients
        patient, n_tumour_spots, cnv_burden (mean score of malignant spots minus that of reference
        spots), ithcna and ithgex (heterogeneity of the malignant spots, mean over the patient's slides),
        share_<subtype>, reference (of the slides, joined by ;), confidence ("low" if any is), name ("CNV" if all that the patient's slides gave bears it, "" if
        they gave nothing); one row per patient. Unless all the cohort is copy number the burden is
        called expression_burden, and ithcna ithprofile.
    controls
        slide ("cohort" for those of the whole), control, value, null_mean, null_q95, p, verdict,
        name, reference ("ranked" where confidence is low, "" for the cohort), note.
    markers
        subtype, gene, arm and what `histogep.cnv.marker_genes.rank_markers` says, by clones: the genes
        that are higher in a subtype than in the others, best first; none of a subtype of one clone.
    name
        "CNV" when every slide's result bears this name, else "expression subtype".
    """

    spots: pd.DataFrame
    clones: pd.DataFrame
    patients: pd.DataFrame
    controls: pd.DataFrame
    markers: pd.DataFrame
    name: str


def subtype_cohort(
    profiles: Sequence[SlideProfile],
    *,
    max_subtypes: int = 6,
    min_silhouette: float = 0.15,
    min_stability_subtypes: float = 0.6,
    permutations: int = 199,
    sample_types: Sequence[str] = PRIMARY,
    seed: int = 0,
) -> Subtypes:
    """Return the subtypes of a cohort's clones, their number found from the data; it may be 1.

    Where the predicted profiles of different patients are all alike they are the model's and not
    the patients': then no predicted slide is named copy number, whatever its own controls say.

    The arm profiles of all clones are grouped by Ward's method, each divided by its length: a clone
    of half the purity has half the profile, and a prediction is a shrunken one. Of the numbers whose
    silhouette is at least `min_silhouette` and above 95 % of the best ones of a cohort of one
    profile at the clones' own purities (`group_clones`), that is taken
    whose groups are found again best when arms are drawn again (mean adjusted Rand index, at least
    `min_stability_subtypes`).

    Parameters
    ----------
    profiles
        All slides of the cohort; those that were refused are listed and skipped.
    max_subtypes
        Most subtypes tried.
    min_silhouette, min_stability_subtypes
        Least silhouette, and least adjusted Rand index, of more than one subtype.
    permutations
        Number of shuffled cohorts, and of draws of the arms.
    sample_types
        TCGA sample types that describe their patient, as for
        `histogep.outcome.patients.summarise_patients`. Clones of other slides are grouped too, but
        are not in the row of the patient.
    seed
        Seed of both.
    """
    used = [profile for profile in profiles if len(profile.clones)]
    rows = [
        {"slide": p.slide, "patient": p.patient, "clone": clone, "measured": p.measured}
        for p in used
        for clone in p.clones.index
    ]
    clones = pd.DataFrame(rows, columns=["slide", "patient", "clone", "measured"])
    values = pd.concat([p.clones for p in used], ignore_index=True) if used else pd.DataFrame()
    imprint = _imprint(values.fillna(0.0), clones) if len(clones) else _controls([])
    if (imprint["verdict"] == FAIL).any():
        # What a slide's own controls cannot see: here, and not in its file, it loses the name.
        profiles = [
            profile if profile.measured else replace(profile, name=EXPRESSION_SUBTYPE)
            for profile in profiles
        ]
        used = [profile for profile in profiles if len(profile.clones)]
    names = {p.name for p in used}
    name = COPY_NUMBER if names == {COPY_NUMBER} else EXPRESSION_SUBTYPE
    controls = _slide_controls(profiles)
    if len(clones):
        arms = order_arms(values.columns)
        # An arm that a slide has too few genes for counts as unchanged there.
        values = values[arms].fillna(0.0)
        groups = group_clones(
            weigh_profiles(values.to_numpy(), _arm_genes(used, arms)),
            max_subtypes=max_subtypes,
            min_silhouette=min_silhouette,
            min_stability=min_stability_subtypes,
            permutations=permutations,
            seed=seed,
        )
        tables = (controls, _controls(groups.checks), imprint)
        controls = pd.concat([table.astype(object) for table in tables if len(table)])
        clones["subtype"] = groups.names
        counts = pd.concat([p.spots["clone"].value_counts() for p in used], keys=range(len(used)))
        place = {p.slide: i for i, p in enumerate(used)}
        clones["n_spots"] = [
            int(counts[place[s], c]) for s, c in zip(clones["slide"], clones["clone"], strict=True)
        ]
        clones = pd.concat([clones, values], axis=1).iloc[groups.order]
    else:
        clones = clones.assign(subtype=pd.Series(dtype=object), n_spots=pd.Series(dtype=int))
    controls = controls.reset_index(drop=True).infer_objects()
    markers = _markers(used, clones)
    spots = _spots(used, clones)
    patients = _patients(profiles, spots, sorted(set(clones["subtype"])), sample_types)
    if name != COPY_NUMBER:
        patients = patients.rename(
            columns={"cnv_burden": "expression_burden", "ithcna": "ithprofile"}
        )
    return Subtypes(
        spots=spots,
        clones=clones.reset_index(drop=True),
        patients=patients,
        controls=controls,
        markers=markers,
        name=name,
    )


def _markers(used: Sequence[SlideProfile], clones: pd.DataFrame) -> pd.DataFrame:
    """Return the genes that are higher in a subtype than in the others, of those all slides have.

    The unit is the clone, its mean expression. It is compared over slides by its log ratio to the
    slide's own reference; measured and predicted ratios are brought to one root mean square, as the
    latter are shrunken. Added to the reference of the mean slide they are log1p CP10k again.
    """
    columns = ["subtype", "gene", "arm", *MARKER_MEASURES[1:]]
    if clones["subtype"].nunique() < 2:
        return pd.DataFrame(columns=columns)
    place = pd.MultiIndex.from_frame(clones[["slide", "clone"]])
    values = pd.concat({p.slide: p.genes for p in used}, join="inner").loc[place]
    genes = values.columns.to_numpy(object)
    ratios = values.to_numpy(np.float64)
    scaled = scale_profiles(ratios, clones["measured"].to_numpy(bool))
    scaled *= np.sqrt(np.mean(ratios**2))
    level = np.mean([p.gene_levels.reindex(genes).to_numpy() for p in used], axis=0)
    markers = rank_markers(np.maximum(level + scaled, 0), clones["subtype"], genes)
    arms = pd.concat([p.gene_arms for p in used])
    markers["arm"] = markers["gene"].map(arms[~arms.index.duplicated()])
    return markers.rename(columns={"group": "subtype"})[columns]


def _arm_genes(used: Sequence[SlideProfile], arms: Sequence[str]) -> np.ndarray:
    """Return the genes of each arm, mean over the slides (1 where no slide names any)."""
    counts = [profile.gene_arms.value_counts().reindex(arms, fill_value=0) for profile in used]
    return np.maximum(np.mean(counts, axis=0), 1.0)


def _imprint(values: pd.DataFrame, clones: pd.DataFrame) -> pd.DataFrame:
    """Return how alike the predicted profiles of different patients are.

    A model that has learnt one tumour's copy number gives it to every patient: then profiles
    correlate, whatever the controls of each slide say.
    """
    predicted = ~clones["measured"].to_numpy(bool)
    first = values[predicted].groupby(clones.loc[predicted, "patient"]).mean()
    first = first[first.std(axis=1) > 0]
    if len(first) < _FEWEST_PATIENTS:
        return _controls([])
    correlation = np.corrcoef(first.to_numpy())
    median = float(np.median(correlation[np.triu_indices(len(first), 1)]))
    passed = median <= _MOST_ALIKE
    note = (
        f"median correlation between patients; above {_MOST_ALIKE} the profile is the model's, "
        "not theirs"
    )
    row = ("same predicted profile in all patients", median, *[np.nan] * 3, passed, note)
    return _controls([row])


def _controls(rows: list[tuple[Any, ...]]) -> pd.DataFrame:
    """Return controls of the whole cohort as a table."""
    columns = [*CONTROL_COLUMNS, "note"]
    table = pd.DataFrame(rows, columns=columns)
    table["verdict"] = np.where(table["verdict"].astype(bool), PASS, FAIL)
    table.insert(0, "slide", "cohort")
    return table.assign(name="", reference="")[_CONTROLS]


def _slide_controls(profiles: Sequence[SlideProfile]) -> pd.DataFrame:
    tables = []
    for profile in profiles:
        kind = "measured" if profile.measured else "predicted"
        table = profile.controls[list(CONTROL_COLUMNS)].copy()
        table.insert(0, "slide", profile.slide)
        table["name"], table["reference"] = profile.name, profile.reference
        low = profile.reference == RANKED
        note = f"{kind}; {RANKED_NOTE}" if low else kind
        note += "" if len(profile.clones) else "; no malignant spot, so no clone"
        table["note"] = profile.refused or note
        tables.append(table)
    if not tables:
        return pd.DataFrame(columns=_CONTROLS)
    return pd.concat([table.astype(object) for table in tables], ignore_index=True)


def _spots(used: Sequence[SlideProfile], clones: pd.DataFrame) -> pd.DataFrame:
    subtype = clones.set_index(["slide", "clone"])["subtype"] if len(clones) else {}
    tables = []
    for profile in used:
        kept = profile.spots[profile.spots["clone"].isin(profile.clones.index)]
        table = pd.DataFrame({"spot": kept.index.astype(str), "clone": kept["clone"].to_numpy()})
        table.insert(0, "patient", profile.patient)
        table.insert(0, "slide", profile.slide)
        table["subtype"] = [subtype[profile.slide, clone] for clone in table["clone"]]
        table["reference"] = profile.reference
        table["confidence"] = CONFIDENCE[profile.reference]
        table["name"] = profile.name
        tables.append(table)
    if not tables:
        return pd.DataFrame(columns=SUBTYPE_COLUMNS)
    return pd.concat(tables, ignore_index=True)[SUBTYPE_COLUMNS]


def _describing(profiles: Sequence[SlideProfile], sample_types: Sequence[str]) -> set[str]:
    """Return the slides that describe their patient.

    Not those of another type of tissue, nor frozen sections beside a diagnostic slide
    (`histogep.inputs.barcodes.leave_out`). Strength and heterogeneity of measured and of predicted
    profiles do not compare, so the two are not averaged: of a patient who has both the predicted
    slides count, as in the table of patients.
    """
    slides, patients = [p.slide for p in profiles], [p.patient for p in profiles]
    left_out = leave_out(slides, patients, sample_types=sample_types)
    kept = [p for p in profiles if p.slide not in left_out]
    predicted = {p.patient for p in kept if not p.measured}
    return {p.slide for p in kept if not (p.measured and p.patient in predicted)}


def _patients(
    profiles: Sequence[SlideProfile],
    spots: pd.DataFrame,
    subtypes: list[str],
    sample_types: Sequence[str],
) -> pd.DataFrame:
    """Return one row per patient, in the order of first appearance."""
    burden: dict[str, list[np.ndarray]] = {}
    unlike: dict[str, list[list[float]]] = {}
    describing = _describing(profiles, sample_types)
    spots = spots[spots["slide"].isin(describing)]
    for profile in profiles:
        scores = burden.setdefault(profile.patient, [])
        if profile.slide not in describing:
            continue
        if profile.heterogeneity:
            own = [profile.heterogeneity[name] for name in HETEROGENEITY]
            unlike.setdefault(profile.patient, []).append(own)
        table = profile.spots
        tumour = table.loc[table["clone"].isin(profile.clones.index), "cnv_score"]
        if len(tumour):
            normal = table.loc[table["reference"].to_numpy(bool), "cnv_score"]
            scores.append(tumour.to_numpy(np.float64) - float(normal.mean()))
    rows = []
    for patient, scores in burden.items():
        own = spots[spots["patient"] == patient]
        share = own["subtype"].value_counts(normalize=True)
        row = {
            "patient": patient,
            "n_tumour_spots": len(own),
            "cnv_burden": float(np.concatenate(scores).mean()) if scores else np.nan,
            **pd.DataFrame(unlike.get(patient, []), columns=HETEROGENEITY).mean(),
        }
        names = set(own["name"])
        for subtype in subtypes:
            row[f"share_{subtype}"] = float(share.get(subtype, 0.0)) if len(own) else np.nan
        row["reference"] = ";".join(sorted(set(own["reference"])))
        row["confidence"] = "low" if (own["confidence"] == "low").any() else ""
        row["name"] = COPY_NUMBER if names == {COPY_NUMBER} else EXPRESSION_SUBTYPE if names else ""
        rows.append(row)
    columns = ["patient", "n_tumour_spots", "cnv_burden", *HETEROGENEITY]
    last = ["reference", "confidence", "name"]
    return pd.DataFrame(rows, columns=[*columns, *(f"share_{s}" for s in subtypes), *last])


@dataclass(frozen=True)
class Groups:
    """Subtypes of clones.

    Attributes
    ----------
    names
        "S1", "S2", ... of each clone, by size.
    order
        Clones in the order of the dendrogram.
    checks
        One tuple for each check of their number: what, value, mean and 95 % quantile of its null, p,
        whether it was passed, note.
    """

    names: np.ndarray
    order: np.ndarray
    checks: list[tuple[Any, ...]]


def scale_profiles(values: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Return measured and predicted profiles, each kind over its own root mean square.

    A prediction is a shrunken profile: unscaled, the two kinds would be the groups.

    Parameters
    ----------
    values
        Profiles of clones (rows).
    measured
        Whether each was measured.
    """
    values = values.astype(np.float64).copy()
    for kind in (True, False):
        rows = measured == kind
        if rows.any():
            values[rows] /= max(float(np.sqrt(np.mean(values[rows] ** 2))), 1e-12)
    return values


def weigh_profiles(values: np.ndarray, n_genes: np.ndarray) -> np.ndarray:
    """Return profiles that are proportional to the share of tumour, arms weighted by their genes.

    A share p of cells whose expression is f times that of the others gives a ratio of 1 + p (f - 1):
    so ratio minus 1, and not the log ratio, is proportional to p.

    Parameters
    ----------
    values
        Mean log ratio of arms in each clone (clones by arms).
    n_genes
        Genes of each arm: means of few genes are less certain.
    """
    return np.expm1(values.astype(np.float64)) * np.sqrt(n_genes / np.sum(n_genes))


def shape_profiles(profiles: np.ndarray) -> np.ndarray:
    """Return profiles divided by their lengths: what is left when the share of tumour is taken away.

    Squared distances of shapes are 2 - 2 times the cosine between profiles.

    Parameters
    ----------
    profiles
        Profiles in rows.
    """
    length = np.linalg.norm(profiles, axis=1, keepdims=True)
    return profiles / np.maximum(length, 1e-12)


def group_clones(
    profiles: np.ndarray,
    *,
    max_subtypes: int,
    min_silhouette: float,
    min_stability: float,
    permutations: int,
    seed: int,
) -> Groups:
    """Return the subtypes of clones by Ward's method, their number found from the data.

    Of the numbers whose silhouette is at least `min_silhouette` and above 95 % of the best ones of a
    cohort of one profile, that is taken whose groups are found again best when arms are drawn again
    (mean adjusted Rand index, at least `min_stability`). The cohort of one profile: each clone has
    its own amount of the mean profile (least squares), and what that leaves is shuffled, arm by
    arm, among the clones. So the shapes of clones of low purity, of which noise is
    a larger part, lie as far apart in the null as they do here.

    Parameters
    ----------
    profiles
        Ratio minus 1 of arms in each clone (clone by arm), as `weigh_profiles` gives them.
    max_subtypes
        Most subtypes tried.
    min_silhouette, min_stability
        Least silhouette, and least adjusted Rand index, of more than one subtype.
    permutations
        Number of shuffled cohorts, and of draws of the arms.
    seed
        Seed of both.
    """
    n, values = len(profiles), shape_profiles(profiles)
    if n < 2:
        return Groups(np.array(["S1"] * n, dtype=object), np.arange(n), [])
    tree = hierarchy.linkage(values, method="ward")
    order = hierarchy.leaves_list(tree)
    most = min(max_subtypes, n // 2)
    if n < _FEWEST_CLONES or most < 2:
        return Groups(np.array(["S1"] * n, dtype=object), order, [])
    silhouette = _silhouettes(values, tree, most)
    rng = np.random.default_rng(seed)
    mean = shape_profiles(profiles.mean(axis=0, keepdims=True))
    # A share of tumour is not negative.
    shared = np.maximum(profiles @ mean.T, 0.0) * mean
    rest = profiles - shared
    alike = (shape_profiles(shared + rng.permuted(rest, axis=0)) for _ in range(permutations))
    null = np.array([max(_silhouettes(shapes, None, most).values()) for shapes in alike])
    stability = _stabilities(values, tree, list(silhouette), permutations, rng)
    p = {k: float((1 + (null >= s).sum()) / (1 + len(null))) for k, s in silhouette.items()}
    fit = [k for k, s in silhouette.items() if s >= min_silhouette and p[k] <= _LEVEL]
    best = max(fit or silhouette, key=lambda k: (stability[k], k))
    accepted = bool(fit) and stability[best] >= min_stability
    partition = hierarchy.fcluster(tree, best, criterion="maxclust")
    tried = ", ".join(f"{k}: {value:.2f}" for k, value in stability.items())
    note = f"stability by number of subtypes: {tried}; {best if accepted else 'one subtype'} kept"
    bounds = (null.mean(), np.quantile(null, 0.95), p[best])
    rows = [
        ("subtypes, silhouette", silhouette[best], *bounds, best in fit, note),
        ("subtypes, stability", stability[best], *[np.nan] * 3, accepted, note),
    ]
    if not accepted:
        partition = np.ones(n, int)
    sizes = np.bincount(partition)
    rank = {part: i for i, part in enumerate(np.argsort(-sizes, kind="stable"))}
    names = np.array([f"S{rank[part] + 1}" for part in partition], dtype=object)
    return Groups(names, order, rows)


def _silhouettes(values: np.ndarray, tree: np.ndarray | None, most: int) -> dict[int, float]:
    """Return the silhouette of each number of groups from 2 to `most`; -1 for what is no division."""
    from sklearn.metrics import silhouette_score

    tree = hierarchy.linkage(values, method="ward") if tree is None else tree
    distances = squareform(pdist(values))
    found = {}
    for k in range(2, most + 1):
        partition = hierarchy.fcluster(tree, k, criterion="maxclust")
        divided = 1 < len(set(partition)) < len(values)
        found[k] = (
            float(silhouette_score(distances, partition, metric="precomputed")) if divided else -1.0
        )
    return found


def _stabilities(
    values: np.ndarray, tree: np.ndarray, numbers: list[int], times: int, rng: np.random.Generator
) -> dict[int, float]:
    """Return how well the groups of each number are found again (mean adjusted Rand index).

    They are sought again on arms drawn again, with replacement.
    """
    from sklearn.metrics import adjusted_rand_score

    first = {k: hierarchy.fcluster(tree, k, criterion="maxclust") for k in numbers}
    scores: dict[int, list[float]] = {k: [] for k in numbers}
    for _ in range(min(times, 100)):
        drawn = values[:, rng.integers(values.shape[1], size=values.shape[1])]
        again = hierarchy.linkage(drawn, "ward")
        for k in numbers:
            partition = hierarchy.fcluster(again, k, criterion="maxclust")
            scores[k].append(adjusted_rand_score(first[k], partition))
    return {k: float(np.mean(values)) for k, values in scores.items()}
