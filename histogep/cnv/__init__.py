"""Copy number: profiles, controls, clones, subtypes."""

__all__ = [
    "arms",
    "clone_borders",
    "clone_divisions",
    "clones",
    "cohort",
    "controls",
    "heterogeneity",
    "marker_genes",
    "names",
    "profiles",
    "reference",
    "slide",
    "subtypes",
]
