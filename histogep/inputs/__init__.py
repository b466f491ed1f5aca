"""Files and words that others give: read strictly, checked, and named when they are wrong."""

__all__ = [
    "barcodes",
    "delimited",
    "gene_names",
    "gene_sets",
    "genome",
    "hdf5_guard",
    "hdf5_walk",
    "joins",
    "patient_joins",
    "resources",
    "schemas",
    "sheet_ids",
    "units",
    "workbooks",
    "zarr_guard",
]
