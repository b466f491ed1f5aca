"""Held-out predictions: scores, leak audit, registration, copy number."""

__all__ = [
    "batch_effects",
    "cards",
    "copies",
    "copy_number",
    "held_out",
    "leakage",
    "measured",
    "predictions",
    "raw_counts",
    "registration",
    "scorecards",
    "section_scores",
    "summary",
    "tumour_scores",
    "verdicts",
]
