"""The deep network, in torch: layers, losses, data, training, prediction."""

__all__ = [
    "checkpoints",
    "committee",
    "data",
    "epochs",
    "fit",
    "lattice_fit",
    "lattice_train",
    "losses",
    "network",
    "predict",
    "train",
]
