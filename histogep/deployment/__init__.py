"""The model folder: packed, checked, loaded, applied to any slide."""

__all__ = [
    "arrays",
    "extended_panel",
    "folder",
    "model",
    "model_card",
    "out_of_distribution",
    "pack",
    "streaming",
]
