"""What lies beside what on measured and predicted maps."""

__all__ = ["describe", "measures", "tissue_classes"]
