"""Whole-slide images: reading, preparation, tissue, tiles, annotations, copies."""

__all__ = [
    "annotation_fit",
    "fast_tiff",
    "fiducials",
    "geojson",
    "inventory",
    "pictures",
    "pixel_size",
    "prepare",
    "quality",
    "reader",
    "regions",
    "rejected",
    "same_file",
    "same_tissue",
    "sources",
    "thumbnail",
    "tiff",
    "tiles",
    "tissue",
]
