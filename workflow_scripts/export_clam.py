"""Write the features of one slide as CLAM's .pt file."""

from typing import TYPE_CHECKING

import torch

from histogep.encoders.feature_file import read_features
from histogep.files import complete
from histogep.workflow.job import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake) as log:
    values = torch.from_numpy(read_features(snakemake.input.features).values)
    with complete(snakemake.output.features) as temporary:
        torch.save(values, temporary)
    log.info("%d tiles, %d features", *values.shape)
