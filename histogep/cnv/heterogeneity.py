"""How unlike each other the malignant places of one slide are: infercnvpy's ITHCNA and ITHGEX."""

from __future__ import annotations

import logging
from typing import Any

import anndata
import numpy as np
import pandas as pd

log = logging.getLogger(__name__)

#: Fewest places of a score; and most, drawn at random, as every place is compared with every other.
FEWEST_PLACES, MOST_PLACES = 20, 1000


def measure_heterogeneity(
    expression: Any, profile: np.ndarray, malignant: np.ndarray, *, seed: int
) -> dict[str, float]:
    """Return the intratumour heterogeneity of a slide's malignant places.

    The interquartile range of the Pearson correlations of all pairs of malignant places (Wu et al.,
    Nat Commun 2021), of their copy-number profiles (ITHCNA) and of their expression (ITHGEX). A
    place whose profile is 0 throughout correlates with nothing: it is left out of the former, which
    is given only where most places have a profile. Shallow spots correlate less, and a prediction
    is smoother than counts: scores of measured and of predicted slides do not compare.

    Parameters
    ----------
    expression
        log1p CP10k (places by genes), dense or sparse.
    profile
        Denoised copy-number profile (places by windows).
    malignant
        Mask of the malignant places; of more than `MOST_PLACES` as many are drawn.
    seed
        Seed of the draw.

    Returns
    -------
    dict
        ithcna, ithgex (NaN with fewer than `FEWEST_PLACES` places) and n_places.
    """
    import infercnvpy

    places = np.flatnonzero(malignant)
    if len(places) > MOST_PLACES:
        places = np.sort(np.random.default_rng(seed).choice(places, MOST_PLACES, replace=False))
    found = {"ithcna": np.nan, "ithgex": np.nan, "n_places": len(places)}
    if len(places) < FEWEST_PLACES:
        return found
    one_slide = pd.DataFrame({"slide": "slide"}, index=places.astype(str))
    data = anndata.AnnData(X=expression[places], obs=one_slide, obsm={"X_cnv": profile[places]})
    found["ithgex"] = float(infercnvpy.tl.ithgex(data, "slide", inplace=False)["slide"])
    data = data[profile[places].std(axis=1) > 0]
    if data.n_obs >= max(FEWEST_PLACES, len(places) / 2):
        found["ithcna"] = float(infercnvpy.tl.ithcna(data, "slide", inplace=False)["slide"])
    else:
        log.info(
            "no ITHCNA: %d of %d malignant places have a profile above the noise",
            *(data.n_obs, len(places)),
        )
    return found
