"""Spatial gene expression of tumours from H&E slides: the library under the workflow."""
