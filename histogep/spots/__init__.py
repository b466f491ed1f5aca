"""Measured counts: reading, alignment with the slide, normalisation, the genes of a panel."""

__all__ = [
    "align",
    "matrices",
    "normalise",
    "panel",
    "places",
    "quality",
    "readers",
    "space_ranger",
    "spatialdata_store",
    "variable_genes",
]
