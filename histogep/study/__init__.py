"""What a study is: its settings, sheets, clinical tables, and the stages that follow from them."""

__all__ = [
    "bulk",
    "clinical",
    "covariates",
    "encoder_choices",
    "model_choices",
    "settings",
    "sheets",
    "stages",
]
