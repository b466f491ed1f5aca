"""Spatial gene expression of tumours from H&E slides: the library under the workflow."""

import atexit
import gc
import sys

# In a job's own process, where Snakemake puts this name before anything is imported. Imports make
# hundreds of thousands of objects that all stay: looking for garbage among them, and once more at
# the end, takes half a second of a job, a quarter of a short one.
if hasattr(sys.modules["__main__"], "snakemake"):
    gc.set_threshold(50_000, 20, 100)
    atexit.register(gc.freeze)
