"""Scores, nulls, ceilings and regressions: arrays in, arrays out."""

__all__ = ["ceiling", "conformal", "cox", "discrimination", "nulls", "penalised", "scores"]
