"""What the profile of a slide may be called, read from the table of its cohort."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from histogep.files import read_tsv


def subtypes_of(path: str | Path, slide: str) -> pd.DataFrame:
    """Return the rows of a slide in results/cnv/{cohort}/subtypes.tsv; none where it has no clone.

    Their `name` is what its profile may be called after the controls of the cohort too, of which
    the slide's own file knows nothing.
    """
    table = read_tsv(path, dtype=str, keep_default_na=False)
    return table[table["slide"] == slide]
