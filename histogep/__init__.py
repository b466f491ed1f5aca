"""Spatial gene expression of tumours from H&E slides: the library under the workflow."""

import atexit
import gc
import sys

# In a job's own process, where Snakemake puts this name before anything is imported. Imports make
# hundreds of thousands of objects that all stay: looking for garbage among them, and once more at
# the end, takes half a second of a job, a quarter of a short one. `histogep.jobs.job_log` ends it.
_IN_A_JOB = hasattr(sys.modules["__main__"], "snakemake")
_USUAL_THRESHOLD = gc.get_threshold()
if _IN_A_JOB:
    gc.set_threshold(50_000, 20, 100)

    @atexit.register
    def _end() -> None:
        # nanobind, which triton is built on, prints whatever of its objects is not collected.
        (gc.unfreeze if "triton" in sys.modules else gc.freeze)()


def collect_garbage_as_usual() -> None:
    """Have garbage collected as in any process again, what was imported aside; for jobs only."""
    if _IN_A_JOB:
        gc.freeze()
        gc.set_threshold(*_USUAL_THRESHOLD)
