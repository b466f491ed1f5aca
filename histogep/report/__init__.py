"""Figures and pages."""

__all__ = [
    "chosen_figures",
    "cohort_page",
    "figures",
    "pages",
    "pages_batch_effects",
    "pages_copy_number",
    "pages_evaluation",
    "pages_leakage",
    "pages_outcome",
    "pages_summary",
    "self_contained",
    "slide_layers",
    "slide_page",
    "style",
]
