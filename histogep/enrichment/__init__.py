"""Gene sets: ranking, GSEA, permutation over patients, activity."""

__all__ = ["activity", "gsea", "patient_permutation"]
