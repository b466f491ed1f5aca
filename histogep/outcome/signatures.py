"""Gene signatures: formulas as data, scored per patient under a coverage guard."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from histogep.errors import InputError
from histogep.files import given_file

log = logging.getLogger(__name__)

FORMULAS = ("geometric-mean", "mean", "weighted-mean")
#: Added to linear values before their geometric mean, so that one zero does not decide it.
PSEUDOCOUNT = 0.01
_KEYS = {
    "description",
    "reference",
    "formula",
    "genes",
    "weights",
    "subtract",
    "aliases",
    "min_coverage",
}


@dataclass(frozen=True)
class Signature:
    """One signature.

    Attributes
    ----------
    name, description, reference
        What it is called, what it measures and who published it.
    formula
        One of `FORMULAS`.
    weights
        Weight of each gene (1 unless the formula is weighted).
    subtract
        Housekeeping genes whose mean log value is taken off first.
    aliases
        Older symbol of a gene under which a table may list it.
    min_coverage
        Share of the genes, and of the sum of their weights, that must be there for a score.
    """

    name: str
    description: str
    reference: str
    formula: str
    weights: dict[str, float]
    min_coverage: float
    subtract: tuple[str, ...] = ()
    aliases: dict[str, str] = field(default_factory=dict)

    def columns(self, available: pd.Index, genes: tuple[str, ...]) -> dict[str, str]:
        """Return the column of each gene that the table has, under its symbol or its alias."""
        found = {}
        for gene in genes:
            for name in (gene, self.aliases.get(gene)):
                if name is not None and name in available:
                    found[gene] = name
                    break
        return found


def read_signatures(path: str | Path) -> dict[str, Signature]:
    """Return the signatures of a YAML file by name.

    Parameters
    ----------
    path
        A file as `histogep/resources/signatures.yaml`, whose head explains the keys.

    Raises
    ------
    InputError
        All that is wrong with the file, one line each.
    """
    with given_file(path, "YAML"):
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    entries = content.get("signatures") if isinstance(content, dict) else None
    if not isinstance(entries, dict) or not entries:
        raise InputError(f"{path} has no `signatures:` with one entry per signature")
    signatures: dict[str, Signature] = {}
    problems: list[str] = []
    for name, entry in entries.items():
        try:
            signatures[str(name)] = _signature(str(name), entry)
        except ValueError as error:
            problems.append(f"  {name}: {error}")
    if problems:
        raise InputError(f"{path} has mistakes:\n" + "\n".join(problems))
    return signatures


def score_signatures(
    values: pd.DataFrame,
    signatures: dict[str, Signature],
    *,
    linear: Callable[[np.ndarray], np.ndarray] | None = np.expm1,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Score samples; a signature below its coverage is not scored and the log says so.

    Parameters
    ----------
    values
        Samples x genes, log expression (log1p CP10k unless `linear` says otherwise).
    signatures
        From `read_signatures`.
    linear
        Takes log values back to linear ones, for geometric means; None where there is no way back
        (z-scores): the mean, which is the log of a geometric mean, stands for it.

    Returns
    -------
    scores
        Samples x scored signatures.
    coverage
        One row per signature: signature, n_genes, n_found, coverage, min_coverage, scored, missing
        (symbols, separated by commas).
    """
    scores: dict[str, np.ndarray] = {}
    rows = []
    for name, signature in signatures.items():
        genes = tuple(signature.weights)
        found = signature.columns(values.columns, genes)
        coverage = len(found) / len(genes)
        # By weight too: without its large positive weights a mean would be turned round.
        weight = sum(signature.weights[gene] for gene in found) / sum(signature.weights.values())
        scored = bool(found) and min(coverage, weight) >= signature.min_coverage
        missing = [gene for gene in genes if gene not in found]
        rows.append(
            {
                "signature": name,
                "n_genes": len(genes),
                "n_found": len(found),
                "coverage": coverage,
                "min_coverage": signature.min_coverage,
                "scored": scored,
                "missing": ",".join(missing),
            }
        )
        if scored:
            scores[name] = _score(values, signature, found, linear)
        else:
            log.info(
                "signature %s is not scored: %d of its %d genes with %.0f %% of its weight are there, "
                "below a share of %g (missing: %s)",
                name,
                len(found),
                len(genes),
                100 * weight,
                signature.min_coverage,
                ", ".join(missing),
            )
    return pd.DataFrame(scores, index=values.index), pd.DataFrame(rows)


def _score(
    values: pd.DataFrame,
    signature: Signature,
    found: dict[str, str],
    linear: Callable[[np.ndarray], np.ndarray] | None,
) -> np.ndarray:
    x = values[list(found.values())].to_numpy(float)
    if signature.formula == "geometric-mean" and linear is not None:
        return np.exp(np.log(np.clip(linear(x), 0, None) + PSEUDOCOUNT).mean(axis=1))
    if signature.subtract:
        base = signature.columns(values.columns, signature.subtract)
        if 2 * len(base) >= len(signature.subtract):
            x = x - values[list(base.values())].to_numpy(float).mean(axis=1, keepdims=True)
        else:
            log.info(
                "signature %s: %d of its %d housekeeping genes are there, fewer than half; they "
                "are not subtracted",
                signature.name,
                len(base),
                len(signature.subtract),
            )
    weights = np.array([signature.weights[gene] for gene in found])
    return x @ weights / weights.sum()


def _signature(name: str, entry: object) -> Signature:
    if not isinstance(entry, dict):
        raise ValueError("not a table of keys")
    if unknown := sorted(set(entry) - _KEYS):
        raise ValueError(f"unknown keys {', '.join(unknown)} (known: {', '.join(sorted(_KEYS))})")
    formula = entry.get("formula")
    if formula not in FORMULAS:
        raise ValueError(f"formula {formula!r} is none of {', '.join(FORMULAS)}")
    if formula == "geometric-mean" and entry.get("subtract"):
        raise ValueError("subtract belongs to a mean or weighted-mean of log values")
    weighted = formula == "weighted-mean"
    if weighted != ("weights" in entry) or weighted == ("genes" in entry):
        raise ValueError("weights belong to a weighted-mean, genes to the other formulas")
    genes = entry["weights"] if weighted else entry["genes"]
    if not genes or not isinstance(genes, dict if weighted else list):
        raise ValueError("no genes")
    symbols = [str(gene) for gene in genes]
    if len(set(symbols)) < len(symbols):
        raise ValueError("a gene stands twice")
    weights = {str(gene): float(entry["weights"][gene]) if weighted else 1.0 for gene in genes}
    if sum(weights.values()) <= 0:
        raise ValueError("the weights must have a positive sum")
    coverage = float(entry.get("min_coverage", 0.5))
    if not 0 < coverage <= 1:
        raise ValueError(f"min_coverage {coverage:g} is not a share above 0 and up to 1")
    return Signature(
        name=name,
        description=str(entry.get("description", "")).strip(),
        reference=str(entry.get("reference", "")),
        formula=formula,
        weights=weights,
        min_coverage=coverage,
        subtract=tuple(map(str, entry.get("subtract", ()))),
        aliases={str(key): str(value) for key, value in entry.get("aliases", {}).items()},
    )
