import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from histogep.cnv import LogRatio, infer_profiles, make_arms, make_bins, window_weights
from histogep.jobs import InputError
from histogep.positions import read_gene_positions

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
    from histogep.positions import assign_arms

    return assign_arms(genome)


@pytest.fixture(scope="module")
def positions(shared_data):
    return read_gene_positions(shared_data / "genepos" / "gencode_v38_gene_pos.txt")


def _infer(spots, genome, **options):
    values, reference = spots
    options = {"genes": list(genome["gene"]), "min_genes": 100, "engine": "weights"} | options
    return infer_profiles(values, genome, reference, **options)


@pytest.mark.parametrize("dynamic_threshold", [1.5, None])
@pytest.mark.parametrize("clip", [3.0, 0.5])
def test_weights_give_what_infercnvpy_gives(spots, genome, clip, dynamic_threshold):
    options = {"clip": clip, "dynamic_threshold": dynamic_threshold, "window": 51, "step": 7}
    ours = _infer(spots, genome, **options)
    theirs = _infer(spots, genome, engine="infercnvpy", **options)
    assert ours.chr_pos == theirs.chr_pos
    np.testing.assert_allclose(ours.values, theirs.values, atol=2e-6)
    np.testing.assert_allclose(ours.score, np.abs(theirs.values).mean(axis=1), atol=1e-6)


def test_dense_and_sparse_expression_agree(spots, genome):
    values, reference = spots
    dense = _infer((values.toarray(), reference), genome)
    thin = _infer(spots, genome)
    np.testing.assert_allclose(dense.values, thin.values, atol=1e-5)
    np.testing.assert_allclose(dense.arms, thin.arms, atol=1e-5)
    np.testing.assert_allclose(
        dense.ratio.gene_means(~reference), thin.ratio.gene_means(~reference), atol=1e-5
    )


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


def test_log_ratio_equals_its_definition():
    rng = np.random.default_rng(1)
    values = rng.gamma(1, 3, (12, 9)) * (rng.random((12, 9)) < 0.6)
    values[:, 0] = rng.uniform(4, 9, 12) * (np.arange(12) > 1)  # a mean above the clip, with zeros
    reference = np.arange(12) < 5
    expected = np.clip(values - values[reference].mean(axis=0), -2, 2)
    ratio = LogRatio.from_expression(sparse.csr_matrix(values), reference, clip=2)
    np.testing.assert_allclose(ratio.average(sparse.identity(9)), expected, atol=1e-5)
    np.testing.assert_allclose(ratio.gene_means(~reference), expected[5:].mean(axis=0), atol=1e-5)


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


def test_a_chromosome_smaller_than_a_window_is_one_window(genome):
    weights, chr_pos = window_weights(genome, window=101, step=10)
    assert chr_pos["chrX"] - chr_pos["chr4"] == 1
    assert weights.shape[1] == chr_pos["chrX"] + 1
    assert weights.shape[1] == 30 + 20 + 16 + 1 + 1


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
    weights, _ = window_weights(profiles.genes, window=window, step=1)
    means = weights.T @ profiles.ratio.gene_means(malignant)
    place = profiles.genes.index[profiles.genes["gene"] == "ERBB2"][0]
    near = np.asarray(weights[place].todense()).ravel() > 0
    return float((means > means[near].max()).mean())


def test_her2st_a1_gains_erbb2_by_the_pathologists_labels(shared_data, positions):
    folder = shared_data / "her2st"
    index, genes, values = _her2st(folder, "A1")
    labels = pd.read_csv(folder / "labels/A1.tsv", sep="\t")
    labels.index = [f"{round(x)}x{round(y)}" for x, y in zip(labels["x"], labels["y"], strict=True)]
    label = labels["label"].reindex(index).astype(str)
    reference = label.isin(["connective tissue", "adipose tissue", "immune infiltrate"])
    profiles = infer_profiles(
        values, positions, reference.to_numpy(), genes=genes, engine="weights"
    )
    malignant = label.str.contains("cancer").to_numpy()
    # Only 38 spots are annotated as anything but cancer, and they share its RNA.
    assert _rank_of_erbb2(profiles, malignant, 11) < 0.05
    gene = profiles.genes["gene"] == "ERBB2"
    assert profiles.ratio.gene_means(malignant)[gene][0] > 0.1


@pytest.mark.parametrize("section", ["B4", "C3"])
def test_her2st_epithelium_gains_17q12(shared_data, positions, section):
    _, genes, values = _her2st(shared_data / "her2st", section)
    # No annotation: the most and the least epithelial spots, by genes on other chromosomes.
    markers = [genes.index(gene) for gene in ("KRT8", "KRT18", "EPCAM")]
    epithelial = np.asarray(values[:, markers].mean(axis=1)).ravel()
    rank = np.argsort(np.argsort(epithelial, kind="stable")) / len(epithelial)
    profiles = infer_profiles(values, positions, rank < 0.4, genes=genes, engine="weights")
    assert _rank_of_erbb2(profiles, rank > 0.6, 21) < 0.01
