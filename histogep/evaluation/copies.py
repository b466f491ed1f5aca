"""Find one section under two names: copies stop the study, look-alikes are reported.

Folds hold out patients, so a section listed under two patients is both trained on and tested on. An
exact copy is found by its SHA-256 (`histogep.evaluation.leakage`, `histogep.slides.same_file`); this module finds
altered copies, by image and by counts, before anything is trained.

A copy with spots left out, counts changed or thinned, barcodes renamed or positions turned has
another SHA-256 but the same profiles. The noise gives it away: a spot of a copy resembles one spot
of the other section far more than any other, whereas a spot of other tissue, serial sections
included, resembles many spots about equally.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from histogep.errors import InputError
from histogep.inputs.barcodes import patient_key, patient_of
from histogep.slides.same_tissue import COLUMNS, Keypoints, similar_images
from histogep.spots.matrices import expression_of

_SHOWN = 6
_SAME_ID = "the ids differ in separators, case or leading zeros only: one patient?"
LOG = logging.getLogger(__name__)
#: Genes that are detected in most spots, by which profiles are compared; fewer than the least say
#: nothing.
GENES, FEWEST_GENES = 500, 50
#: Spots of the smaller section that are looked for in the larger one.
SPOTS = 200
#: How much larger the correlation with the nearest spot must be than with the second nearest, and the
#: share of spots for which it is so in a copy. Of sections of other tissue at most .01 are.
TWIN_MARGIN, COPY_SHARE = 0.1, 0.1
#: Two sections of different patients are as alike as serial ones where their mean profiles differ by
#: less than this share of what the median pair of patients differs by, of this many pairs at least.
ALIKE_SHARE, FEWEST_PAIRS = 0.5, 3
#: Poisson variance of a log ratio up to which a gene takes part in that.
_NOISE, _CHUNK = 0.02, 4096


def compare_sections(
    keypoints: Mapping[str, Keypoints],
    patients: Mapping[str, str],
    *,
    spots: Mapping[str, anndata.AnnData] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Return which slides of different patients are alike, and by what.

    Parameters
    ----------
    keypoints
        Keypoints of each slide (`histogep.slides.same_tissue`).
    patients
        Patient of each slide.
    spots
        Counts of the sections among them.
    seed
        Of the spots that are compared.

    Returns
    -------
    DataFrame
        slide, patient, other, other_patient, what (image, counts, patient id), score, verdict
        (`copy`: one section under two patients; `alike`: look at it), detail.
    """
    parts = [similar_images(keypoints, patients)]
    if spots:
        parts.append(similar_counts(read_profiles(spots), patients, seed=seed))
    parts.append(similar_ids(patients))
    return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)


def require_no_copies(pairs: pd.DataFrame) -> None:
    """Raise an InputError that names the slides of different patients that are one section."""
    copies = pairs[pairs["verdict"] == "copy"]
    if copies.empty:
        return
    shown = [
        f"  {row.slide} of patient {row.patient} and {row.other} of patient {row.other_patient} "
        f"({row.what}): {row.detail}"
        for row in copies.head(_SHOWN).itertuples()
    ]
    more = f"\n  and {len(copies) - _SHOWN} more" if len(copies) > _SHOWN else ""
    raise InputError(
        "slides of different patients are one section, though their files differ: what is learnt "
        "from one would be tested on the other:\n"
        + "\n".join(shown)
        + more
        + "\nCorrect the patients in the slides sheet, or leave one of the two out"
    )


def notices(pairs: pd.DataFrame) -> list[dict[str, str]]:
    """Return pairs that may be innocent but must be reported: one row (what, detail) per pair."""
    return [
        {
            "what": row.what,
            "detail": f"patients {row.patient} and {row.other_patient}: {row.detail}"
            if row.what == "patient id"
            else f"{row.slide} of patient {row.patient} and {row.other} of patient "
            f"{row.other_patient}: {row.detail}; serial sections of one block?",
        }
        for row in pairs[pairs["verdict"] == "alike"].itertuples()
    ]


def similar_ids(patients: Mapping[str, str]) -> pd.DataFrame:
    """Return the pairs of patients whose ids differ in separators, case or leading zeros only."""
    first = {patient: slide for slide, patient in reversed(list(patients.items()))}
    groups: dict[Sequence[str], list[str]] = {}
    for patient in sorted(first):
        groups.setdefault(id_parts(patient), []).append(patient)
    rows = [
        (first[one], one, first[two], two, "patient id", float("nan"), "alike", _SAME_ID)
        for group in groups.values()
        for one, two in _pairs(group)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def id_parts(patient: str) -> tuple[str, ...]:
    """Return the runs of letters and of digits of an id: P01, p-1 and P_001 are ("p", "1").

    A TCGA barcode stands for its patient.
    """
    runs = re.findall(r"[^\W\d_]+|\d+", patient_of(patient.strip()).casefold())
    return tuple(run.lstrip("0") or "0" if run.isdigit() else run for run in runs)


def _pairs(group: Sequence[str]) -> Iterable[tuple[str, str]]:
    return ((one, two) for i, one in enumerate(group) for two in group[i + 1 :])


@dataclass(frozen=True)
class Profiles:
    """Profiles of the spots of one section.

    Attributes
    ----------
    values
        (n, g) log1p CP10k, sparse; 0 where the section lacks the gene.
    known
        Genes that the section has, (g,) bool.
    total
        Sum of the counts of each gene, (g,).
    """

    values: sparse.csr_matrix
    known: np.ndarray
    total: np.ndarray


def read_profiles(
    spots: Mapping[str, anndata.AnnData], *, genes: int = GENES
) -> dict[str, Profiles]:
    """Return the profiles of sections over the genes detected most often in all of them."""
    detected: dict[str, float] = {}
    for table in spots.values():
        share = np.asarray((table.X > 0).mean(0)).ravel()
        for gene, value in zip(table.var_names, share, strict=True):
            detected[gene] = detected.get(gene, 0.0) + float(value)
    chosen = sorted(detected, key=lambda gene: (-detected[gene], gene))[:genes]
    found = {}
    for slide, table in spots.items():
        place = table.var_names.get_indexer(chosen)
        known = place >= 0
        # Genes that the section lacks are a column of zeros.
        pick = sparse.csr_matrix(
            (np.ones(known.sum()), (place[known], np.flatnonzero(known))),
            shape=(table.n_vars, len(chosen)),
            dtype=np.float32,
        )
        counts = sparse.csr_matrix(table.X)
        found[slide] = Profiles(
            sparse.csr_matrix(expression_of(table) @ pick),
            known,
            np.asarray((counts @ pick).sum(0)).ravel().astype(float),
        )
    return found


def twin_share(one: Profiles, two: Profiles, *, seed: int = 0) -> float:
    """Return the share of spots of one section that have their twin in the other.

    A twin is a spot whose profile, less the mean of its section, correlates with that of the spot
    more than that of any other spot by `TWIN_MARGIN`. Up to `SPOTS` spots of the section that has
    fewer are looked for, wherever they lie and whatever they are called.
    """
    shared = np.flatnonzero(one.known & two.known)
    small, large = sorted((one, two), key=lambda part: part.values.shape[0])
    if len(shared) < FEWEST_GENES or large.values.shape[0] < 3:
        return float("nan")
    n = small.values.shape[0]
    sample = np.sort(np.random.default_rng(seed).permutation(n)[:SPOTS])
    wanted = _deviations(small, shared)(sample)
    deviate = _deviations(large, shared)
    best = np.full((len(sample), 2), -1.0)
    for start in range(0, large.values.shape[0], _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, large.values.shape[0]))
        found = np.hstack([best, wanted @ deviate(rows).T])
        best = -np.partition(-found, 1, axis=1)[:, :2]
    return float(np.mean(best[:, 0] - best[:, 1] > TWIN_MARGIN))


def _deviations(profiles: Profiles, shared: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that gives the deviations of spots from their section's mean, of length 1."""
    values = profiles.values[:, shared]
    mean = np.asarray(values.mean(0)).ravel()

    def of(rows: np.ndarray) -> np.ndarray:
        part = values[rows].toarray() - mean
        part -= part.mean(1, keepdims=True)
        return part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-9)

    return of


def profile_variation(one: Profiles, two: Profiles) -> float:
    """Return by which share the mean profiles of two sections differ beyond Poisson noise.

    The robust standard deviation over genes of the log ratio of their summed counts, less that of
    Poisson noise: for sections of two patients the biological coefficient of variation (about .4 in
    man: McCarthy et al., Nucleic Acids Res 2012). NaN where too few genes have enough counts.
    """
    first, second = one.total + 0.5, two.total + 0.5
    noise = 1 / first + 1 / second
    used = one.known & two.known & (noise < _NOISE)
    if used.sum() < FEWEST_GENES:
        return float("nan")
    ratio = np.log(first[used] / second[used])
    spread = np.median(np.abs(ratio - np.median(ratio))) / 0.6745
    return float(np.sqrt(max(spread**2 - np.median(noise[used]), 0.0)))


def similar_counts(
    profiles: Mapping[str, Profiles], patients: Mapping[str, str], *, seed: int = 0
) -> pd.DataFrame:
    """Return the sections of different patients with the same or nearly the same counts.

    Parameters
    ----------
    profiles
        Of each section (`read_profiles`).
    patients
        Of each section; sections of one patient are not compared.
    seed
        Of the spots that are looked for.

    Returns
    -------
    DataFrame
        `histogep.slides.same_tissue.COLUMNS`: what is `counts`; score the share of spots with a twin
        (verdict `copy`) or the variation of the mean profiles (`alike`).
    """
    names = list(profiles)
    pairs = [
        (one, two)
        for i, one in enumerate(names)
        for two in names[i + 1 :]
        if patient_key(patients[one]) != patient_key(patients[two])
    ]
    variation = {pair: profile_variation(*(profiles[name] for name in pair)) for pair in pairs}
    known = [value for value in variation.values() if np.isfinite(value)]
    typical = float(np.median(known)) if len(known) >= FEWEST_PAIRS else float("nan")
    rows = []
    for one, two in pairs:
        ids = (one, patients[one], two, patients[two], "counts")
        share = twin_share(profiles[one], profiles[two], seed=seed)
        if share >= COPY_SHARE:
            detail = f"{share:.0%} of the spots of one have their twin in the other"
            rows.append((*ids, share, "copy", detail))
        elif variation[one, two] < ALIKE_SHARE * typical:
            detail = (
                f"the mean profiles differ by {variation[one, two]:.2f}, those of the median pair "
                f"of patients by {typical:.2f}"
            )
            rows.append((*ids, variation[one, two], "alike", detail))
    return pd.DataFrame(rows, columns=list(COLUMNS))
