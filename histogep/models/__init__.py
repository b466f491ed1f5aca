"""Models of expression and tumour: preparation, folds, fitting, prediction."""

__all__ = [
    "blend",
    "devices",
    "ensemble",
    "fit",
    "folds",
    "lattice",
    "linear",
    "neighbours",
    "network",
    "predict",
    "preparation",
    "ridge",
    "sections",
    "selection",
    "tile_source",
    "tumour_head",
    "weights",
]
