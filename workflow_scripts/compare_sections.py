"""Compare sections by image, counts and id; one section under two patients fails the run."""

from pathlib import Path
from typing import TYPE_CHECKING

from histogep.evaluation.copies import compare_sections, require_no_copies
from histogep.files import write_tsv
from histogep.slides.same_tissue import read_keypoints
from histogep.spots.matrices import read_h5ad
from histogep.workflow.job import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake) as log:
    files, params = snakemake.input, snakemake.params
    keypoints = {}
    for path in files.keypoints:
        keypoints |= read_keypoints(path)
    pairs = compare_sections(
        keypoints,
        params.patients,
        spots={Path(path).stem: read_h5ad(path) for path in files.spots},
        seed=params.seed,
    )
    for pair in pairs.itertuples():
        log.warning("%s and %s (%s): %s, %s", *pair[1:4:2], pair.what, pair.verdict, pair.detail)
    # Snakemake removes the table of a job that failed, so the message says it all.
    require_no_copies(pairs)
    write_tsv(pairs, snakemake.output.pairs)
    log.info("%d sections compared, %d pairs are alike", len(params.patients), len(pairs))
