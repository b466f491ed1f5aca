"""Patients, survival and response."""

__all__ = [
    "bulk_patients",
    "horizons",
    "known_outcomes",
    "maps",
    "multivariable",
    "nested_cv",
    "patients",
    "response",
    "risk_groups",
    "signatures",
    "survival",
    "transfer",
]
