"""Figures of each stage."""

__all__ = [
    "batch_effects",
    "cnv",
    "enrichment",
    "evaluation",
    "expression",
    "neighbourhoods",
    "outcome",
    "slides",
    "spots",
]
