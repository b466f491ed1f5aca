"""Patients with measured bulk expression: one row per patient, as for predicted slides.

The second source of outcome statistics. Nothing is predicted here: this shows the best that a
cohort's outcomes can give, and tests the statistics on real data.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from histogep.errors import InputError
from histogep.inputs.barcodes import PRIMARY, leave_out, patient_of
from histogep.inputs.patient_joins import report_join
from histogep.outcome.patients import GENE, SIGNATURE
from histogep.outcome.signatures import Signature, score_signatures
from histogep.study.bulk import SCALES, read_expression
from histogep.study.covariates import clinical_numbers, has_outcome

log = logging.getLogger(__name__)


def summarise_measured(
    expression: str | Path,
    *,
    scale: str,
    patients: pd.DataFrame,
    signatures: dict[str, Signature],
    sample_types: Sequence[str] = PRIMARY,
    symbols: Mapping[str, str] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return one row per patient with measured expression, and who was left out with the reason.

    Parameters
    ----------
    expression, scale
        As `histogep.study.bulk.read_expression`.
    patients
        From `histogep.study.clinical.read_clinical`.
    signatures
        From `histogep.outcome.signatures.read_signatures`. Without linear values (z-scores) a geometric
        mean is the mean of the scores.
    sample_types
        TCGA sample types that count.
    symbols
        Ensembl gene id -> symbol (`histogep.inputs.gene_names.gene_symbols`).

    Returns
    -------
    table
        patient, source (`measured`), n_samples, the clinical columns of
        `histogep.outcome.patients.summarise_patients`, signature:<name>, gene:<SYMBOL>; samples of one
        patient are averaged.
    dropped
        patient, slides (the samples), reason. Rows of the clinical table without a sample are not
        listed: such tables commonly cover more cohorts than one.

    Raises
    ------
    InputError
        No patient is left.
    """
    values = read_expression(expression, scale=scale, symbols=symbols)
    samples = pd.Series(values.index, index=values.index)
    owner = samples.map(patient_of)
    reasons = leave_out(list(samples), list(owner), sample_types=sample_types)
    clinical = clinical_numbers(patients)
    report_join(owner[[s not in reasons for s in samples]], clinical.index, "with a sample")
    known = set(clinical.index[has_outcome(clinical)])
    for sample, patient in owner.items():
        if sample in reasons:
            continue
        if patient not in clinical.index:
            reasons[sample] = "no row in the clinical table"
        elif patient not in known:
            reasons[sample] = "neither time and event nor response in the clinical table"
    dropped = pd.DataFrame(
        [
            {"patient": owner[sample], "slides": sample, "reason": reason}
            for sample, reason in sorted(reasons.items())
        ],
        columns=["patient", "slides", "reason"],
    )
    kept = values.drop(index=list(reasons))
    if kept.empty:
        raise InputError(
            f"none of the {len(values)} samples of {expression} is left: "
            + "; ".join(f"{d.slides}: {d.reason}" for d in dropped.head(5).itertuples())
            + ". The ids in the expression and in the clinical table must be identical"
        )
    for reason, count in dropped["reason"].value_counts().items():
        ids = ", ".join(dropped.loc[dropped["reason"] == reason, "patient"].head(10))
        log.warning("%d samples dropped, %s: %s", count, reason, ids)
    by_patient = kept.groupby(owner[kept.index], sort=True)
    genes = by_patient.mean()
    scores, _ = score_signatures(genes, signatures, linear=SCALES[scale][1])
    table = pd.DataFrame({"patient": genes.index, "source": "measured"}, index=genes.index)
    table["n_samples"] = by_patient.size()
    table = table.join(clinical.reindex(genes.index))
    table = pd.concat([table, scores.add_prefix(SIGNATURE), genes.add_prefix(GENE)], axis=1)
    log.info("%d patients, %d measured genes", len(table), genes.shape[1])
    return table.reset_index(drop=True), dropped
