"""The deep network, in torch: layers, losses, data, training, prediction."""

__all__ = ["checkpoints", "data", "epochs", "fit", "losses", "network", "predict", "train"]
