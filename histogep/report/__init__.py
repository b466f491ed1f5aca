"""Figures and pages."""

__all__ = ["figures", "pages", "pages_evaluation", "pages_leakage", "style"]
