"""From the pixels of tiles to their features."""

__all__ = [
    "batches",
    "descriptors",
    "encode",
    "exported",
    "feature_file",
    "given_features",
    "load",
    "networks",
    "precision",
    "registry",
    "tile_pixels",
    "weights",
]
