"""Figures of each stage."""

__all__ = [
    "cnv",
    "enrichment",
    "evaluation",
    "expression",
    "neighbourhoods",
    "outcome",
    "slides",
    "spots",
]
