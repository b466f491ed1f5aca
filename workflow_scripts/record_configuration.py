"""Record the complete configuration and which stages ran."""

from typing import TYPE_CHECKING

import pandas as pd
import yaml

from histogep.files import complete, write_tsv
from histogep.report.pages import Table, write_page
from histogep.workflow.job import job_log

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job_log(snakemake.log[0], snakemake) as log:
    with complete(snakemake.output.configuration) as temporary:
        temporary.write_text(yaml.safe_dump(snakemake.params.configuration, sort_keys=True))
    stages = pd.DataFrame(snakemake.params.stages)
    write_tsv(stages, snakemake.output.stages)
    write_page(
        snakemake.output.page,
        title="Stages",
        tables=[Table(stages)],
        notes=[
            "A study runs the stages that its inputs allow. The others stand here with why not."
        ],
    )
    log.info("%d of %d stages ran", (stages["state"] == "ran").sum(), len(stages))
