import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from histogep.cnv.profiles import (
    compare_genes,
    infer_profiles,
    make_arms,
    make_bins,
    slide_windows,
)
from histogep.errors import InputError
from histogep.inputs.genome import read_gene_positions

LENGTHS = {"chr1": 400, "chr2": 300, "chr3": 260, "chr4": 60, "chrX": 100}


@pytest.fixture(scope="module")
def genome():
    rows = [
        (f"{chromosome[3:]}G{i}", chromosome, 500_000 * i + 7, 500_000 * i + 9_000)
        for chromosome, n in LENGTHS.items()
        for i in range(n)
    ]
    return pd.DataFrame(rows, columns=["gene", "chromosome", "start", "end"])


@pytest.fixture(scope="module")
def spots(genome):
    """Return log1p CP10k of 40 reference and 30 malignant spots: 1q gained, chr3 lost."""
    rng = np.random.default_rng(3)
    mean = np.tile(rng.lognormal(0, 1, len(genome)), (70, 1))
    arms = infer_arms(genome)
    mean[40:, arms == "1q"] *= 1.6
    mean[40:, genome["chromosome"] == "chr3"] *= 0.5
    counts = rng.poisson(mean / mean.sum(axis=1, keepdims=True) * 6000)
    values = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    return sparse.csr_matrix(values.astype(np.float32)), np.arange(70) < 40


def infer_arms(genome):
    from histogep.inputs.genome import assign_arms

    return assign_arms(genome)


@pytest.fixture(scope="module")
def positions(shared_data):
    return read_gene_positions(shared_data / "genepos" / "gencode_v38_gene_pos.txt")


def _infer(spots, genome, **options):
    values, reference = spots
    options = {"genes": list(genome["gene"]), "min_genes": 100} | options
    return infer_profiles(values, genome, reference, **options)


@pytest.mark.parametrize("dynamic_threshold", [1.5, None])
def test_windows_are_those_of_infercnvpy_on_the_expression_itself(spots, genome, dynamic_threshold):
    """By its front door: all genes with their positions, the reference by its category."""
    import anndata
    import infercnvpy

    values, reference = spots
    options = {"dynamic_threshold": dynamic_threshold, "step": 7}
    ours = _infer(spots, genome, window=51, min_detected=0, **options)
    cells = anndata.AnnData(X=values, var=genome.set_index("gene"))
    cells.obs["kind"] = np.where(reference, "normal", "tumour")
    infercnvpy.tl.infercnv(
        cells,
        reference_key="kind",
        reference_cat="normal",
        window_size=51,
        exclude_chromosomes=["chrX"],
        chunksize=cells.n_obs,
        n_jobs=1,
        **options,
    )
    assert ours.values.shape == cells.obsm["X_cnv"].shape
    np.testing.assert_allclose(ours.values, cells.obsm["X_cnv"].toarray(), atol=2e-6)
    assert ours.chr_pos == cells.uns["cnv"]["chr_pos"]
    np.testing.assert_allclose(ours.score, np.abs(ours.values).mean(axis=1))
    assert (ours.windows["chromosome"] == "chr1").sum() == ours.chr_pos["chr2"]


def test_dense_and_sparse_expression_agree(spots, genome):
    values, reference = spots
    dense = _infer((values.toarray(), reference), genome)
    thin = _infer(spots, genome)
    np.testing.assert_allclose(dense.values, thin.values, atol=1e-5)
    np.testing.assert_allclose(dense.arms, thin.arms, atol=1e-5)
    np.testing.assert_allclose(dense.gene_means(~reference), thin.gene_means(~reference), atol=1e-5)


def test_order_of_the_columns_does_not_matter(spots, genome):
    values, reference = spots
    shuffled = np.random.default_rng(0).permutation(len(genome))
    again = _infer((values[:, shuffled], reference), genome, genes=list(genome["gene"][shuffled]))
    np.testing.assert_allclose(again.values, _infer(spots, genome).values, atol=1e-6)


def test_planted_arms_stand_out_and_reference_is_flat(spots, genome):
    profiles = _infer(spots, genome)
    tumour = ~profiles.reference
    arms = pd.Series(profiles.arms[tumour].mean(axis=0), index=profiles.arm_table["arm"])
    assert arms.idxmax() == "1q"
    assert arms.nsmallest(2).index.str.startswith("3").all()
    assert profiles.score[tumour].min() > np.quantile(profiles.score[~tumour], 0.9)
    assert np.abs(profiles.arms[~tumour].mean(axis=0)).max() < 0.05
    assert "chrX" not in profiles.chr_pos
    assert profiles.genes_per_chromosome["chr4"] <= LENGTHS["chr4"]


def test_log_ratio_equals_its_definition(spots, genome):
    values, reference = spots
    for matrix in (values, values.toarray()):
        found = compare_genes(
            matrix, genome, reference, genes=list(genome["gene"]), min_genes=100, clip=0.4
        )
        dense = values.toarray()[:, genome["gene"].isin(found.genes["gene"]).to_numpy()]
        expected = np.clip(dense - dense[reference].mean(axis=0), -0.4, 0.4)
        np.testing.assert_allclose(found.ratio, expected, atol=1e-5)
        np.testing.assert_allclose(
            found.gene_means(~reference), expected[~reference].mean(axis=0), atol=1e-5
        )
        np.testing.assert_allclose(
            found.genes["reference_level"], dense[reference].mean(axis=0), rtol=1e-5
        )
        weights = sparse.random(expected.shape[1], 5, density=0.3, rng=1)
        np.testing.assert_allclose(found.average(weights), expected @ weights, atol=1e-5)


def test_bins_and_arms_average_their_genes(genome):
    genes = genome.assign(arm=infer_arms(genome))
    table, weights = make_bins(genes, size=50)
    np.testing.assert_allclose(np.asarray(weights.sum(axis=0)).ravel(), 1)
    assert table["n_genes"].sum() == len(genes)
    assert (table.groupby("arm")["start"].diff().dropna() > 0).all()
    table, weights = make_arms(genes)
    place = list(table["arm"]).index("1q")
    np.testing.assert_allclose(
        (genome["start"].to_numpy(float) @ weights)[place],
        genome["start"][genes["arm"] == "1q"].mean(),
    )


def test_a_chromosome_smaller_than_a_window_is_one_window(spots, genome, caplog):
    caplog.set_level("INFO")
    profiles = _infer(spots, genome, dynamic_threshold=None)
    starts = [*profiles.chr_pos.values(), profiles.values.shape[1]]
    assert starts[-1] - starts[-2] == 1
    assert "1 of 4 chromosomes have no more genes than cnv.window (101)" in caplog.text
    chromosome = profiles.genes["chromosome"].to_numpy()
    plain = profiles.ratio[:, chromosome == "chr4"].mean(axis=1)
    rising = np.minimum(np.arange(1, 102), np.arange(101, 0, -1))
    first = profiles.ratio[:, chromosome == "chr1"][:, :101] @ rising / rising.sum()
    # Each spot is centred by its median, the same for all its windows.
    np.testing.assert_allclose(
        plain - profiles.values[:, -1], first - profiles.values[:, 0], atol=1e-5
    )


def test_sex_chromosomes_are_left_out_unless_they_are_asked_for(spots, genome):
    assert "chrX" in _infer(spots, genome, exclude_chromosomes=()).chr_pos
    assert "chrX" not in _infer(spots, genome, exclude_chromosomes=("x",)).chr_pos
    without = _infer(spots, genome, exclude_chromosomes=("X", "chr2"))
    assert set(without.chr_pos) == {"chr1", "chr3", "chr4"}


def test_of_another_genome_whole_chromosomes_are_arms(spots, genome):
    mouse = genome.assign(gene=[f"Abc{i}" for i in range(len(genome))])
    profiles = _infer(spots, mouse, genes=list(mouse["gene"]))
    assert list(profiles.arm_table["arm"]) == ["1", "2", "3", "4"]
    arms = pd.Series(profiles.arms[~profiles.reference].mean(axis=0), profiles.arm_table["arm"])
    assert arms.idxmin() == "3"
    assert profiles.n_autosomes == 4
    assert _infer(spots, genome).n_autosomes == 22


def test_refusals(spots, genome):
    values, reference = spots
    with pytest.raises(InputError, match="needs 50 reference .* here are 40 of 70"):
        _infer(spots, genome, min_reference=50)
    with pytest.raises(InputError, match="needs 2000 genes"):
        _infer(spots, genome, min_genes=2000)
    constant = sparse.csr_matrix(np.ones(values.shape, np.float32))
    with pytest.raises(InputError, match="vary, here are 0 of"):
        _infer((constant, reference), genome)
    with pytest.raises(InputError, match="genome build"):
        _infer(spots, genome, genes=[f"x{i}" for i in range(len(genome))])


def test_oligodendroglioma_has_lost_1p_and_19q():
    import infercnvpy

    cells = infercnvpy.datasets.oligodendroglioma()
    raw = cells.X.toarray()
    cells.X = sparse.csr_matrix(np.log1p(raw / raw.sum(axis=1, keepdims=True) * 1e4))
    positions = cells.var[["chromosome", "start", "end"]].reset_index(names="gene")
    positions["chromosome"] = positions["chromosome"].astype(str)
    malignant = cells.obs["cell_type"].astype(str).str.startswith("malignant").to_numpy()
    profiles = infer_profiles(cells, positions, ~malignant)
    kept = profiles.arm_table["n_genes"].to_numpy() >= 15
    arms = pd.Series(profiles.arms[malignant].mean(axis=0), index=profiles.arm_table["arm"])
    normal = profiles.arms[~malignant]
    z = (arms - normal.mean(axis=0)) / normal.std(axis=0)
    assert set(arms[kept].nsmallest(2).index) == {"1p", "19q"}
    assert set(z[kept].nsmallest(2).index) == {"1p", "19q"}
    assert z[["1p", "19q"]].max() < -4
    # Per cell, nearly every malignant cell and no other carries both losses.
    loss = profiles.arms[:, [list(arms.index).index(arm) for arm in ("1p", "19q")]].mean(axis=1)
    assert np.mean(loss[malignant] < normal.mean() - 0.07) > 0.9
    assert np.mean(loss[~malignant] < normal.mean() - 0.07) < 0.1


def _her2st(folder, section):
    counts = pd.read_csv(folder / f"counts/{section}.tsv.gz", sep="\t", index_col=0)
    depth = counts.sum(axis=1).to_numpy()[:, np.newaxis]
    values = np.log1p(counts.to_numpy(np.float32) / depth * 1e4)
    return counts.index, list(counts.columns), sparse.csr_matrix(values)


def _rank_of_erbb2(profiles, malignant, window):
    """Return the share of windows that lie above the best window with ERBB2."""
    means = profiles.gene_means(malignant)[np.newaxis]
    windows, chr_pos = slide_windows(means, profiles.genes, window=window, step=1)
    on_17 = profiles.genes.index[profiles.genes["chromosome"] == "chr17"]
    place = profiles.genes.index[profiles.genes["gene"] == "ERBB2"][0] - on_17[0]
    near = chr_pos["chr17"] + np.arange(max(0, place - window + 1), place + 1)
    return float((windows > windows[0, near].max()).mean())


def test_her2st_a1_gains_erbb2_by_the_pathologists_labels(shared_data, positions):
    folder = shared_data / "her2st"
    index, genes, values = _her2st(folder, "A1")
    labels = pd.read_csv(folder / "labels/A1.tsv", sep="\t")
    labels.index = [f"{round(x)}x{round(y)}" for x, y in zip(labels["x"], labels["y"], strict=True)]
    label = labels["label"].reindex(index).astype(str)
    reference = label.isin(["connective tissue", "adipose tissue", "immune infiltrate"])
    profiles = compare_genes(values, positions, reference.to_numpy(), genes=genes)
    malignant = label.str.contains("cancer").to_numpy()
    # Only 38 spots are annotated as anything but cancer, and they share its RNA.
    assert _rank_of_erbb2(profiles, malignant, 11) < 0.05
    gene = profiles.genes["gene"] == "ERBB2"
    assert profiles.gene_means(malignant)[gene][0] > 0.1


@pytest.mark.parametrize("section", ["B4", "C3"])
def test_her2st_epithelium_gains_17q12(shared_data, positions, section):
    _, genes, values = _her2st(shared_data / "her2st", section)
    # No annotation: the most and the least epithelial spots, by genes on other chromosomes.
    markers = [genes.index(gene) for gene in ("KRT8", "KRT18", "EPCAM")]
    epithelial = np.asarray(values[:, markers].mean(axis=1)).ravel()
    rank = np.argsort(np.argsort(epithelial, kind="stable")) / len(epithelial)
    profiles = compare_genes(values, positions, rank < 0.4, genes=genes)
    assert _rank_of_erbb2(profiles, rank > 0.6, 21) < 0.01
