"""The simulated study, and the truth planted in it."""

__all__ = ["cli", "cohort", "counts", "files", "genes", "image", "tissue"]
