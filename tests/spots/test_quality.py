import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc

from histogep.report.figures.spots import draw_quality
from histogep.spots.quality import MEASURES, measure_quality, quality_table


def _spots(genes):
    rng = np.random.default_rng(0)
    counts = rng.poisson(3, (20, len(genes))).astype(np.float32)
    obs = pd.DataFrame({"on_tissue": np.arange(20) > 0}, index=[f"s{i}" for i in range(20)])
    spots = anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=genes))
    measure_quality(spots)
    return spots


@pytest.mark.parametrize(
    "names", [["MT-CO1", "MT-ND4"], ["mt-Co1", "mt-Nd4"], ["MT.CO1", "MT.ND4"]]
)
def test_measures_are_scanpys(names):
    spots = _spots([*names, "MTOR", "MT1X", "SMT-A"])
    reference = anndata.AnnData(spots.X.copy(), var=pd.DataFrame({"mt": [True] * 2 + [False] * 3}))
    sc.pp.calculate_qc_metrics(reference, qc_vars=["mt"], percent_top=None, inplace=True)
    for column in MEASURES:
        np.testing.assert_array_equal(spots.obs[column], reference.obs[column])
    # By hand.
    share = spots.X[:, :2].sum() / spots.X.sum()
    quality = quality_table(spots).set_index("metric")["value"]
    assert quality["mitochondrial_share"] == pytest.approx(share)
    assert quality["mitochondrial_genes"] == 2
    assert quality["spots_on_tissue"] == 19
    assert quality["median_genes"] == np.median((spots.X > 0).sum(axis=1))
    assert quality["counts"] == spots.X.sum()


def test_without_a_mitochondrial_gene_the_share_is_unknown_and_not_0():
    spots = _spots(["MTOR", "MT1X", "ENSG00000198804"])
    assert spots.obs["pct_counts_mt"].isna().all()
    quality = quality_table(spots).set_index("metric")["value"]
    assert quality[["mitochondrial_share", "median_mitochondrial_share"]].isna().all()


def test_the_three_measures_are_drawn_on_the_tissue():
    spots = _spots(["MT-CO1", "MTOR", "MT1X"])
    row, col = np.divmod(np.arange(20), 5)
    spots.obsm["spatial"] = np.c_[col, row] * 100.0
    image = {"images": {"hires": np.full((40, 50, 3), 255, np.uint8)}}
    scales = {"tissue_hires_scalef": 0.1, "spot_diameter_fullres": 55.0}
    spots.uns = {"slide": "$S_1", "mpp": 1.0, "spatial": {"$S_1": image | {"scalefactors": scales}}}
    titles = [axes.get_title(loc="left") for axes in draw_quality(spots).axes]
    assert sum(title.startswith("median") for title in titles) == 3
    spots.obs["pct_counts_mt"] = np.nan
    titles = [axes.get_title(loc="left") for axes in draw_quality(spots).axes]
    assert sum(title.startswith("median") for title in titles) == 2
