"""Controls of copy number: whether there is enough of the genome, and whether its order matters.

On measured counts they say how far the signal rises above chance. On predicted expression they
decide the name: a prediction has few degrees of freedom, and what looks like copy number may be
an expression programme that has no place on the genome. Below the guards the result is called
an "expression subtype".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from histogep.clones import REFERENCE, UNASSIGNED
from histogep.cnv import CnvProfiles

COPY_NUMBER = "CNV"
EXPRESSION_SUBTYPE = "expression subtype"

COLUMNS = ("control", "value", "null_mean", "null_q95", "p", "verdict")
PASS, FAIL, NOT_APPLICABLE = "pass", "fail", "not applicable"

_AUTOSOMES = 22


def run_controls(
    profiles: CnvProfiles,
    labels: Sequence[str],
    *,
    malignant: np.ndarray | None = None,
    guard_genes: int = 2000,
    guard_chromosome_genes: int = 20,
    permutations: int = 499,
    seed: int = 0,
) -> pd.DataFrame:
    """Return what the profiles were checked for, and how they did.

    - `genes`: genes used; at least `guard_genes` pass.
    - `chromosomes`: chromosomes with at least `guard_chromosome_genes` of them; 18 of the 22
      autosomes pass (the smallest carry few expressed genes).
    - `gene order, tumour`: how far the mean log ratios (malignant minus reference) of
      neighbouring genes agree, as variance between groups of neighbours, against the same genes
      in shuffled order.
    - `gene order, clones`: the same of each clone against the other clones, summed.
    - `labels shuffled`: the same variance, tumour against reference, with the spots' labels
      shuffled.

    Parameters
    ----------
    profiles
        Profiles of a slide.
    labels
        Clone of each spot (`Clones.labels`).
    malignant
        Mask of the malignant spots; those with a clone if None.
    guard_genes, guard_chromosome_genes
        See above.
    permutations
        Number of shuffles.
    seed
        Seed of the shuffles.

    Returns
    -------
    pandas.DataFrame
        control, value, null_mean, null_q95, p, verdict ("pass", "fail", "not applicable").
    """
    labels = np.asarray(labels, dtype=object)
    clones = sorted(set(labels) - {REFERENCE, UNASSIGNED})
    if malignant is None:
        malignant = np.isin(labels, clones)
    rng = np.random.default_rng(seed)
    counts = np.array(list(profiles.genes_per_chromosome.values()))
    covered = int((counts >= guard_chromosome_genes).sum())
    rows = [
        _row("genes", len(profiles.genes), passed=len(profiles.genes) >= guard_genes),
        _row("chromosomes", covered, passed=covered >= _AUTOSOMES - 4),
    ]
    if not malignant.any():
        names = ("gene order, tumour", "gene order, clones", "labels shuffled")
        rows += [_row(name, np.nan, passed=None) for name in names]
        return pd.DataFrame(rows, columns=COLUMNS)

    normal = profiles.ratio.gene_means(profiles.reference)
    tumour = profiles.ratio.gene_means(malignant) - normal
    sizes = profiles.bin_table["n_genes"].to_numpy()
    member = np.repeat(np.arange(len(sizes)), sizes)
    # Genes in the order of the bins; only which genes are neighbours matters here.
    order = np.argsort(_bin_order(profiles), kind="stable")

    def between(contrasts: np.ndarray) -> float:
        return float(sum(_variance_between(row, member, sizes) for row in contrasts))

    def against_shuffled(name: str, contrasts: np.ndarray) -> tuple:
        contrasts = contrasts[:, order]
        null = [
            between(contrasts[:, rng.permutation(contrasts.shape[1])]) for _ in range(permutations)
        ]
        return _against(name, between(contrasts), np.array(null))

    rows.append(against_shuffled("gene order, tumour", tumour[np.newaxis]))
    if len(clones) > 1:
        means = np.array([profiles.ratio.gene_means(labels == clone) for clone in clones])
        rest = [
            profiles.ratio.gene_means(np.isin(labels, clones) & (labels != clone))
            for clone in clones
        ]
        rows.append(against_shuffled("gene order, clones", means - np.array(rest)))
    else:
        rows.append(_row("gene order, clones", np.nan, passed=None))
    rows.append(_labels_shuffled(profiles, malignant, permutations, rng))
    return pd.DataFrame(rows, columns=COLUMNS)


def name_result(controls: pd.DataFrame, *, measured: bool) -> str:
    """Return "CNV", or "expression subtype" for predicted expression that failed a control.

    Measured counts are copy-number data whatever their signal. Predicted expression has to pass
    every control that applies, and the one of gene order in the tumour has to apply.
    """
    if measured:
        return COPY_NUMBER
    verdict = controls.set_index("control")["verdict"]
    passed = (verdict != FAIL).all() and verdict["gene order, tumour"] == PASS
    return COPY_NUMBER if passed else EXPRESSION_SUBTYPE


def compare_arms(
    first: pd.Series, second: pd.Series, *, permutations: int = 999, seed: int = 0
) -> dict[str, float]:
    """Return how two profiles of the same tissue agree over arms, with its null.

    Parameters
    ----------
    first, second
        Value by arm, such as predicted (by a model that has not seen the patient) and measured.
    permutations
        Shuffles of the arms.
    seed
        Seed of the shuffles.

    Returns
    -------
    dict
        value (Pearson correlation over the arms both have), null_mean, null_q95, p, n_arms.
    """
    both = pd.concat([first, second], axis=1, join="inner").dropna().to_numpy(np.float64)
    if len(both) < 5 or (both.std(axis=0) == 0).any():
        empty = dict.fromkeys(("value", "null_mean", "null_q95", "p"), float("nan"))
        return empty | {"n_arms": len(both)}
    rng = np.random.default_rng(seed)
    standard = (both - both.mean(axis=0)) / both.std(axis=0)
    value = float(np.mean(standard[:, 0] * standard[:, 1]))
    null = np.array(
        [np.mean(standard[:, 0] * rng.permutation(standard[:, 1])) for _ in range(permutations)]
    )
    return {
        "value": value,
        "null_mean": float(null.mean()),
        "null_q95": float(np.quantile(null, 0.95)),
        "p": float((1 + (null >= value).sum()) / (1 + permutations)),
        "n_arms": len(both),
    }


def _bin_order(profiles: CnvProfiles) -> np.ndarray:
    """Return the rank of each gene's arm: sorted by it, genes lie as the bins do."""
    rank = {arm: i for i, arm in enumerate(profiles.arm_table["arm"])}
    return profiles.genes["arm"].map(rank).to_numpy()


def _variance_between(values: np.ndarray, member: np.ndarray, sizes: np.ndarray) -> float:
    means = np.bincount(member, weights=values, minlength=len(sizes)) / sizes
    return float(np.average((means - values.mean()) ** 2, weights=sizes))


def _labels_shuffled(
    profiles: CnvProfiles, malignant: np.ndarray, permutations: int, rng: np.random.Generator
) -> tuple:
    """Return the row that compares tumour against reference with shuffled labels."""
    used = malignant | profiles.reference
    bins, tumour = profiles.bins[used].astype(np.float64), malignant[used]
    sizes = profiles.bin_table["n_genes"].to_numpy()

    def signal(masks: np.ndarray) -> np.ndarray:
        n_tumour = masks.sum(axis=1, keepdims=True)
        total = bins.sum(axis=0)
        first = masks @ bins
        contrast = first / n_tumour - (total - first) / (bins.shape[0] - n_tumour)
        contrast -= np.average(contrast, axis=1, weights=sizes)[:, np.newaxis]
        return np.average(contrast**2, axis=1, weights=sizes)

    masks = np.array([rng.permutation(tumour) for _ in range(permutations)], dtype=np.float64)
    value = float(signal(tumour[np.newaxis].astype(np.float64))[0])
    return _against("labels shuffled", value, signal(masks))


def _against(name: str, value: float, null: np.ndarray) -> tuple:
    p = (1 + (null >= value).sum()) / (1 + len(null))
    verdict = PASS if p <= 0.05 else FAIL
    return (name, value, float(null.mean()), float(np.quantile(null, 0.95)), float(p), verdict)


def _row(name: str, value: float, *, passed: bool | None) -> tuple:
    verdict = NOT_APPLICABLE if passed is None else PASS if passed else FAIL
    return (name, float(value), np.nan, np.nan, np.nan, verdict)
