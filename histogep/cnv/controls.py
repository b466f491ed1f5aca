"""Controls of copy number: whether there is enough of the genome, and whether whole arms moved.

On measured counts they say how far the signal rises above chance. On predicted expression they
decide the name: a prediction has few degrees of freedom, and what looks like copy number may be
an expression programme, whose genes lie in clusters on the genome but move no arm as a whole
(`histogep.cnv.arms`). Below the guards the result is called an "expression subtype".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from histogep.cnv.arms import PIECE_GENES, score_arms, shuffle_runs
from histogep.cnv.clones import REFERENCE, UNASSIGNED
from histogep.cnv.profiles import LogRatios
from histogep.inputs.genome import order_arms

COPY_NUMBER = "CNV"
EXPRESSION_SUBTYPE = "expression subtype"

COLUMNS = ("control", "value", "null_mean", "null_q95", "p", "verdict")
PASS, FAIL, NOT_APPLICABLE = "pass", "fail", "not applicable"
#: Controls of one slide, and what they may be called for: whole arms of the tumour against the
#: reference, and of each clone against the others.
TUMOUR_ARMS, CLONE_ARMS, SHUFFLED = "whole arms, tumour", "whole arms, clones", "labels shuffled"
#: The control of a predicted slide that its study's held-out patients decide.
HELD_OUT = "arms agree in held-out patients"

#: Autosomes that may have too few genes: the smallest carry few expressed ones.
_SPARE_AUTOSOMES = 4


def run_controls(
    profiles: LogRatios,
    labels: Sequence[str] | np.ndarray,
    *,
    malignant: np.ndarray | None = None,
    guard_genes: int = 2000,
    guard_chromosome_genes: int = 20,
    permutations: int = 499,
    seed: int = 0,
) -> pd.DataFrame:
    """Return what the profiles were checked for, and how they did.

    - `genes`: genes used; at least `guard_genes` pass.
    - `chromosomes`: chromosomes with at least `guard_chromosome_genes` of them; all autosomes but
      four pass, of the human genome 18 of 22 (the smallest carry few expressed genes).
    - `whole arms, tumour`: the largest |z| of an arm in malignant minus reference spots, against
      that of runs of neighbouring genes dealt over the genome (`histogep.cnv.arms.score_arms`);
      passed where one arm at least is altered, which asks for a p of .01 at most and for a shift
      that does not hang on a quarter of the arm.
    - `whole arms, clones`: the same of each clone against the other clones.
    - `labels shuffled`: variance between groups of neighbouring genes, tumour against reference,
      against the same with the spots' labels shuffled.

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
    needed = profiles.n_autosomes - _SPARE_AUTOSOMES
    rows = [
        _row("genes", len(profiles.genes), passed=len(profiles.genes) >= guard_genes),
        _row("chromosomes", covered, passed=covered >= needed),
    ]
    if not malignant.any():
        rows += [_row(name, np.nan, passed=None) for name in (TUMOUR_ARMS, CLONE_ARMS, SHUFFLED)]
        return pd.DataFrame(rows, columns=COLUMNS)

    def arms(name: str, contrasts: list[np.ndarray]) -> tuple:
        scores = score_arms(
            np.array(contrasts),
            profiles.genes["level"].to_numpy(),
            profiles.genes["arm"],
            permutations=permutations,
            seed=seed,
        )
        if scores.table.empty:
            return _row(name, 0.0, passed=False)
        null, best = scores.null, scores.table["p"].min()
        verdict = PASS if scores.table["altered"].any() else FAIL
        value, high = scores.strongest, float(np.quantile(null, 0.95))
        return (name, value, float(null.mean()), high, float(best), verdict)

    normal = profiles.gene_means(profiles.reference)
    rows.append(arms(TUMOUR_ARMS, [profiles.gene_means(malignant) - normal]))
    if len(clones) > 1:
        rows.append(arms(CLONE_ARMS, list(contrast_clones(profiles, labels).values())))
    else:
        rows.append(_row(CLONE_ARMS, np.nan, passed=None))
    rows.append(_labels_shuffled(profiles, malignant, permutations, rng))
    return pd.DataFrame(rows, columns=COLUMNS)


def contrast_clones(profiles: LogRatios, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Return the mean log ratio of each gene in each clone minus that in the other clones.

    Of two clones only the first: the second would repeat it with its sign turned.

    Parameters
    ----------
    profiles
        Profiles of a slide.
    labels
        Clone of each spot (`Clones.labels`).
    """
    clones = sorted(set(labels) - {REFERENCE, UNASSIGNED}, key=int)
    called = np.isin(labels, clones)
    return {
        clone: profiles.gene_means(labels == clone)
        - profiles.gene_means(called & (labels != clone))
        for clone in (clones if len(clones) > 2 else clones[:1])
    }


def check_held_out(agreement: pd.DataFrame | None) -> pd.DataFrame:
    """Return the control that a predicted slide owes to the held-out patients of its study.

    Its value is the share of patients, of those whose measured and predicted arms could be
    compared, in which every section's arms of tumour against reference agree (`compare_arms`):
    more than half pass. Where sections allowed no comparison it fails, since nothing shows that
    the model predicts arms; without sections (a model folder from elsewhere) it does not apply.

    Parameters
    ----------
    agreement
        Table of `histogep.evaluation.copy_number.compare_section` of all held-out sections, or None.
    """
    if agreement is None:
        return pd.DataFrame([_row(HELD_OUT, np.nan, passed=None)], columns=COLUMNS)
    tumour = agreement[(agreement["contrast"] == "tumour")]
    tumour = tumour[tumour["verdict"] != NOT_APPLICABLE]
    passed = (tumour["verdict"] == PASS).groupby(tumour["patient"].astype(str)).all()
    share = float(passed.mean()) if len(passed) else 0.0
    return pd.DataFrame([_row(HELD_OUT, share, passed=share > 0.5)], columns=COLUMNS)


def name_result(controls: pd.DataFrame, *, measured: bool, ranked: bool = False) -> str:
    """Return "CNV", or "expression subtype" for what may not bear that name.

    Measured counts are copy-number data whatever their signal, if labels tell tumour from reference;
    where the ends of the marker score stand in for them (`ranked`) the profile is along that score.
    Predicted expression has to pass every control that applies, and the one of whole arms in the
    tumour has to apply.
    """
    if measured and ranked:
        return EXPRESSION_SUBTYPE
    if measured:
        return COPY_NUMBER
    verdict = controls.set_index("control")["verdict"]
    passed = (verdict != FAIL).all() and verdict[TUMOUR_ARMS] == PASS
    return COPY_NUMBER if passed else EXPRESSION_SUBTYPE


def compare_arms(
    measured: np.ndarray,
    predicted: np.ndarray,
    arms: np.ndarray,
    *,
    min_arm_genes: int = 15,
    permutations: int = 499,
    seed: int = 0,
) -> tuple[dict[str, float], pd.DataFrame]:
    """Return how two contrasts of the same genes agree over chromosome arms, with two nulls.

    Arms shuffled: the means of one are dealt to other arms; what is left is chance. Genes shuffled:
    runs of ten neighbouring genes change places on the genome, each gene with both its values; what is
    left is that the same genes and clusters of genes go up and down in both, wherever they lie. A
    model that has learnt the expression of a tumour but no copy number agrees as well there as on
    the real arms.

    Parameters
    ----------
    measured, predicted
        Contrast of each gene (tumour minus reference, say).
    arms
        Arm of each gene; genes in the order of the genome.
    min_arm_genes
        Arms with fewer genes are left out.
    permutations
        Shuffles of each null.
    seed
        Seed of the shuffles.

    Returns
    -------
    tuple
        r (Pearson correlation over arms), n_arms, n_genes, and mean, q95 and p of `null_arms` and
        `null_genes`; NaN with fewer than 5 arms or where one side is constant. And the table of
        arms: arm, n_genes, measured, predicted.
    """
    names = pd.Series(arms, dtype=object)
    size = names.value_counts()
    kept = names.isin(size.index[size >= min_arm_genes]).to_numpy()
    order = order_arms(names[kept])
    member = pd.Series(range(len(order)), index=order)[names[kept]].to_numpy(int)
    values = np.stack([measured, predicted]).astype(np.float64)[:, kept]
    sizes = np.bincount(member, minlength=len(order))
    means = _means(values, member, sizes)
    table = pd.DataFrame({"arm": order, "n_genes": sizes, "measured": means[0]})
    table["predicted"] = means[1]
    found = {"r": np.nan, "n_arms": len(order), "n_genes": int(kept.sum())}
    if len(order) < 5 or (means.std(axis=1) < 1e-12).any():
        parts = ("null_{}_mean", "null_{}_q95", "p_{}")
        undefined = [part.format(null) for null in ("arms", "genes") for part in parts]
        return found | dict.fromkeys(undefined, np.nan), table
    rng = np.random.default_rng(seed)
    found["r"] = _correlation(means)
    nulls = {
        "arms": [
            _correlation(np.stack([means[0], rng.permutation(means[1])]))
            for _ in range(permutations)
        ],
        "genes": [
            _correlation(
                _means(values[:, shuffle_runs(len(member), rng, length=PIECE_GENES)], member, sizes)
            )
            for _ in range(permutations)
        ],
    }
    for name, null in nulls.items():
        null = np.array(null)
        found[f"null_{name}_mean"] = float(null.mean())
        found[f"null_{name}_q95"] = float(np.quantile(null, 0.95))
        found[f"p_{name}"] = float((1 + (null >= found["r"]).sum()) / (1 + permutations))
    return found, table


def _means(values: np.ndarray, member: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the mean of each row of values over each group of genes."""
    sums = [np.bincount(member, weights=row, minlength=len(sizes)) for row in values]
    return np.stack(sums) / sizes


def _correlation(pair: np.ndarray) -> float:
    return float(np.corrcoef(pair)[0, 1])


def _labels_shuffled(
    profiles: LogRatios, malignant: np.ndarray, permutations: int, rng: np.random.Generator
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
    return _against(SHUFFLED, value, signal(masks))


def _against(name: str, value: float, null: np.ndarray) -> tuple:
    p = (1 + (null >= value).sum()) / (1 + len(null))
    verdict = PASS if p <= 0.05 else FAIL
    return (name, value, float(null.mean()), float(np.quantile(null, 0.95)), float(p), verdict)


def _row(name: str, value: float, *, passed: bool | None) -> tuple:
    verdict = NOT_APPLICABLE if passed is None else PASS if passed else FAIL
    return (name, float(value), np.nan, np.nan, np.nan, verdict)
