"""Which spots are malignant: annotated or inferred."""

__all__ = ["agreement", "annotated", "inferred", "sources"]
