"""Files for other programs, made on request: SpatialData, QuPath, images of tiles."""

__all__ = ["layers", "qupath", "spatialdata_store", "tile_images"]
