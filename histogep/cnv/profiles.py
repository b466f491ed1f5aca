"""Copy-number profiles of spots: expression averaged along the genome against reference spots.

The running windows are infercnvpy's. Clones, arms and controls are called from the log ratios of
the genes themselves (`LogRatios`) and from their means over neighbouring genes and whole arms.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import sparse

from histogep.errors import InputError
from histogep.inputs.genome import SEX_CHROMOSOMES, count_autosomes, locate_genes, order_arms

log = logging.getLogger(__name__)

#: Genes whose expression follows the immune cells of a spot, in clusters along the genome.
EXCLUDED_GENES = ("^IG[HKL][VDJCAEGM]", "^TR[ABDG][VDJC]", "^HLA-", "^RP[SL][0-9P]", "^MT-")


@dataclass(frozen=True)
class LogRatios:
    """Expression of the spots of one patient against its reference spots, along the genome.

    Attributes
    ----------
    ratio
        Log ratio of each gene: log1p CP10k minus its mean over the reference spots, clipped (spots
        by genes, float32).
    genes
        gene, chromosome, start, end, arm, level (mean expression), reference_level (its mean over
        the reference spots) of the genes used, in the order of the genome.
    reference
        Mask of the reference spots.
    bins
        Mean log ratio in neighbouring, not overlapping groups of genes, centred by spot and not
        denoised: what clones are called from.
    bin_table
        chromosome, arm, start, end, n_genes of each bin.
    arms
        Mean log ratio of each arm, centred by spot.
    arm_table
        arm, chromosome, n_genes of each column of `arms`.
    n_autosomes
        Numbered chromosomes of the genome.
    """

    ratio: np.ndarray
    genes: pd.DataFrame
    reference: np.ndarray
    bins: np.ndarray
    bin_table: pd.DataFrame
    arms: np.ndarray
    arm_table: pd.DataFrame
    n_autosomes: int

    @property
    def genes_per_chromosome(self) -> dict[str, int]:
        """Number of genes used on each chromosome, in the order of the genome."""
        counts = self.genes.groupby("chromosome", sort=False).size()
        return {str(name): int(n) for name, n in counts.items()}

    def average(self, weights: sparse.spmatrix) -> np.ndarray:
        """Return the weighted sums over genes (spots by columns of `weights`, float32)."""
        return _average(self.ratio, weights)

    def gene_means(self, spots: np.ndarray) -> np.ndarray:
        """Return the mean log ratio of each gene over the spots of a mask or index."""
        return self.ratio[spots].mean(axis=0, dtype=np.float64)


@dataclass(frozen=True)
class CnvProfiles(LogRatios):
    """Copy-number profiles of the spots of one patient.

    Attributes
    ----------
    values
        Denoised profile (spots by windows, float32) of `infercnvpy.tl.infercnv`.
    chr_pos
        First window of each chromosome, in the order of the genome.
    """

    values: np.ndarray
    chr_pos: dict[str, int]

    @property
    def score(self) -> np.ndarray:
        """Mean absolute value of each spot's denoised profile."""
        return np.abs(self.values).mean(axis=1)

    @property
    def windows(self) -> pd.DataFrame:
        """Chromosome of each window."""
        starts = [*self.chr_pos.values(), self.values.shape[1]]
        return pd.DataFrame({"chromosome": np.repeat(list(self.chr_pos), np.diff(starts))})


def infer_profiles(
    expression: Any,
    positions: pd.DataFrame,
    reference: np.ndarray,
    *,
    window: int = 101,
    step: int = 10,
    dynamic_threshold: float | None = 1.5,
    **options: Any,
) -> CnvProfiles:
    """Return the copy-number profiles of spots, measured or predicted, by `infercnvpy.tl.infercnv`.

    Parameters
    ----------
    expression, positions, reference, options
        As `compare_genes` takes them. All spots are of one patient: the noise threshold is taken
        over all of them.
    window, step
        Genes in a running window, and genes from one window to the next. A chromosome with no more
        genes than a window has one window, the plain mean of its genes.
    dynamic_threshold
        Values below this many standard deviations of the profile become 0; None keeps all.

    Raises
    ------
    InputError
        With too few reference spots or genes, or positions of another genome.
    """
    ratios = compare_genes(expression, positions, reference, **options)
    counts = ratios.genes_per_chromosome
    if narrow := [name for name, n in counts.items() if n <= window]:
        log.info(
            "%d of %d chromosomes have no more genes than cnv.window (%d), so each is one window: %s",
            *(len(narrow), len(counts), window, ", ".join(narrow)),
        )
    values, chr_pos = slide_windows(
        ratios.ratio, ratios.genes, window=window, step=step, dynamic_threshold=dynamic_threshold
    )
    return CnvProfiles(**vars(ratios), values=values, chr_pos=chr_pos)


def compare_genes(
    expression: Any,
    positions: pd.DataFrame,
    reference: np.ndarray,
    *,
    genes: Sequence[str] | None = None,
    gene_ids: Sequence[str] | None = None,
    clip: float = 3.0,
    bin_genes: int = 50,
    exclude_chromosomes: Sequence[str] = SEX_CHROMOSOMES,
    exclude_genes: Sequence[str] = EXCLUDED_GENES,
    min_detected: float = 0.05,
    min_reference: int = 20,
    min_genes: int = 1000,
    min_chromosome_genes: int = 10,
    min_share_found: float = 0.3,
    genome: Literal["auto", "human", "other"] = "auto",
) -> LogRatios:
    """Return the log ratio of each gene to the reference spots, in the order of the genome.

    Parameters
    ----------
    expression
        log1p CP10k: an AnnData (its `var["gene_id"]` is used where it has one), or a matrix of
        spots by genes, sparse or not, with `genes`. All spots are of one patient.
    positions
        Table of `histogep.inputs.genome.read_gene_positions`.
    reference
        Mask of the spots taken as diploid.
    genes, gene_ids
        Symbols, and Ensembl ids if they are known, of the columns of a matrix.
    clip
        Largest log ratio of a gene, in either direction.
    bin_genes
        Genes in a bin (`CnvProfiles.bins`).
    exclude_chromosomes
        Left out ("chrX", "X" or "x"); the sex chromosomes by default: whether a tumour has lost the
        silent or the active X, and with it expression, counts do not say.
    exclude_genes
        Patterns of gene symbols left out (immunoglobulins, T-cell receptors, HLA, ribosome).
    min_detected
        Genes seen in a smaller share of the reference spots are left out.
    min_reference
        Fewer reference spots are refused.
    min_genes, min_chromosome_genes
        Fewer genes in all are refused; chromosomes with fewer are left out.
    min_share_found
        Share of the genes that the positions must know.
    genome
        Whose centromeres divide the arms (`histogep.inputs.genome.locate_genes`).

    Raises
    ------
    InputError
        With too few reference spots or genes, or positions of another genome.
    """
    matrix, genes, gene_ids = _unpack(expression, genes, gene_ids)
    reference = np.asarray(reference, bool)
    if reference.shape != (matrix.shape[0],):
        raise ValueError(f"{len(reference)} reference flags for {matrix.shape[0]} spots")
    if reference.sum() < max(1, min_reference):
        raise InputError(
            f"copy number needs {min_reference} reference (non-malignant) spots of the same "
            f"patient, here are {reference.sum()} of {len(reference)}; label more spots or lower "
            "cnv.min_reference"
        )
    located = locate_genes(
        genes, positions, gene_ids=gene_ids, min_share=min_share_found, genome=genome
    )
    located = located[~located["gene"].duplicated()]
    left_out = [f"chr{name.removeprefix('chr').upper()}" for name in exclude_chromosomes]
    keep = ~located["chromosome"].isin([*left_out, "chrM"])
    if exclude_genes:
        pattern = re.compile("|".join(f"(?:{p})" for p in exclude_genes))
        keep &= ~located["gene"].map(lambda gene: pattern.search(gene) is not None)
    located = located[keep]
    located = located[_informative(matrix, located["column"].to_numpy(), reference, min_detected)]
    counts = located["chromosome"].map(located["chromosome"].value_counts())
    located = located[counts >= min_chromosome_genes].reset_index(drop=True)
    if len(located) < max(2, min_genes):
        raise InputError(
            f"copy number needs {min_genes} genes with a position that are seen in "
            f"{min_detected:.0%} of the reference spots and vary, here are {len(located)} of "
            f"{len(genes)}; the sections are too shallow, the panel too small (cnv.min_genes)"
        )
    log.info(
        "%d spots, %d of them reference; %d of %d genes on %d chromosomes",
        *(len(reference), reference.sum(), len(located), len(genes)),
        located["chromosome"].nunique(),
    )
    chosen = matrix[:, located["column"].to_numpy()]
    # By columns: means over groups of genes then add up columns, which lie in one piece.
    ratio = np.asfortranarray(
        chosen.toarray() if sparse.issparse(chosen) else chosen, dtype=np.float32
    )
    located = located.drop(columns="column")
    located["level"] = ratio.mean(axis=0, dtype=np.float64)
    mean = ratio[reference].mean(axis=0, dtype=np.float64)
    located["reference_level"] = mean
    ratio = np.subtract(ratio, mean.astype(np.float32))
    np.clip(ratio, -clip, clip, out=ratio)
    human = bool(located["arm"].str.endswith(("p", "q")).any())
    bin_table, bin_weights = make_bins(located, size=bin_genes)
    arm_table, arm_weights = make_arms(located)
    bins = _average(ratio, bin_weights)
    centre = np.median(bins, axis=1, keepdims=True)
    return LogRatios(
        ratio=ratio,
        genes=located,
        reference=reference,
        bins=bins - centre,
        bin_table=bin_table,
        arms=_average(ratio, arm_weights) - centre,
        arm_table=arm_table,
        # A human table that lacks chromosomes lowers no guard.
        n_autosomes=22 if human else count_autosomes(positions),
    )


def slide_windows(
    ratio: np.ndarray,
    genes: pd.DataFrame,
    *,
    window: int,
    step: int,
    dynamic_threshold: float | None = None,
) -> tuple[np.ndarray, dict[str, int]]:
    """Return infercnvpy's running means along each chromosome, and where each chromosome starts.

    Parameters
    ----------
    ratio
        Log ratios, already clipped (spots by genes).
    genes
        gene, chromosome, end of each gene, in the order of the genome.
    window, step, dynamic_threshold
        As `infer_profiles` takes them.

    Returns
    -------
    tuple
        Values centred by spot (spots by windows, float32), and the first window of each chromosome
        in the order of the genome.
    """
    import anndata
    import infercnvpy

    var = genes.set_index("gene")[["chromosome", "end"]]
    # infercnvpy orders genes by start alone and not stably: equal starts must not be left to luck.
    var["start"] = np.arange(len(var))
    adata = anndata.AnnData(X=ratio, var=var)
    chr_pos, values, _ = infercnvpy.tl.infercnv(
        adata,
        reference=np.zeros(len(var), np.float32),  # it is taken off already
        lfc_clip=np.inf,
        window_size=window,
        step=step,
        dynamic_threshold=dynamic_threshold,
        exclude_chromosomes=None,
        chunksize=adata.n_obs,  # the noise threshold is taken by chunk
        n_jobs=1,
        inplace=False,
    )
    order = sorted(chr_pos, key=lambda name: int(chr_pos[name]))
    return values.toarray().astype(np.float32), {name: int(chr_pos[name]) for name in order}


def make_bins(genes: pd.DataFrame, *, size: int) -> tuple[pd.DataFrame, sparse.csr_matrix]:
    """Return neighbouring groups of about `size` genes within each arm, and their mean as weights.

    Parameters
    ----------
    genes
        Genes in the order of the genome, with chromosome, arm, start and end.
    size
        Genes in a bin; an arm with fewer is one bin.

    Returns
    -------
    tuple
        Table with chromosome, arm, start, end and n_genes of each bin, and a matrix of genes by
        bins.
    """
    arm = genes["arm"].to_numpy()
    # An arm's genes are neighbours in the table, save for genes that lie across a centromere.
    member = np.full(len(genes), -1)
    n_bins = 0
    for name in order_arms(arm):
        index = np.flatnonzero(arm == name)
        pieces = max(1, round(len(index) / size))
        member[index] = n_bins + np.arange(len(index)) * pieces // len(index)
        n_bins += pieces
    groups = genes.assign(bin=member).groupby("bin")
    table = groups.agg(
        chromosome=("chromosome", "first"),
        arm=("arm", "first"),
        start=("start", "min"),
        end=("end", "max"),
        n_genes=("gene", "size"),
    ).reset_index(drop=True)
    return table, group_weights(member, n_bins)


def make_arms(genes: pd.DataFrame) -> tuple[pd.DataFrame, sparse.csr_matrix]:
    """Return the arms that carry genes (arm, chromosome, n_genes), and their mean as weights."""
    names = order_arms(genes["arm"])
    member = pd.Series(range(len(names)), index=names)[genes["arm"]].to_numpy()
    counts = np.bincount(member, minlength=len(names))
    chromosome = [f"chr{name.rstrip('pq')}" for name in names]
    table = pd.DataFrame({"arm": names, "chromosome": chromosome, "n_genes": counts})
    return table, group_weights(member, len(names))


def group_weights(member: np.ndarray, n_groups: int) -> sparse.csr_matrix:
    """Return the mean over groups as a matrix (items by groups); members below 0 count nowhere."""
    counts = np.bincount(member[member >= 0], minlength=n_groups)
    rows = np.flatnonzero(member >= 0)
    data = 1 / counts[member[rows]]
    return sparse.csr_matrix((data, (rows, member[rows])), (len(member), n_groups))


def _unpack(expression: Any, genes: Any, gene_ids: Any) -> tuple[Any, list[str], Any]:
    """Return matrix, symbols and Ensembl ids of an AnnData or of a matrix with names."""
    if hasattr(expression, "var_names"):
        ids = expression.var["gene_id"].astype(str) if "gene_id" in expression.var else None
        return expression.X, [str(name) for name in expression.var_names], ids
    if genes is None or len(genes) != expression.shape[1]:
        raise ValueError("a matrix needs the name of each of its columns in `genes`")
    return expression, [str(name) for name in genes], gene_ids


def _informative(
    matrix: Any, columns: np.ndarray, reference: np.ndarray, min_detected: float
) -> np.ndarray:
    """Return which columns are seen in enough reference spots and are not constant."""
    if sparse.issparse(matrix):
        chosen = matrix.tocsr()[:, columns]
        seen = (chosen[reference] != 0).mean(axis=0)
        n, gene = chosen.shape[0], chosen.indices
        mean = np.bincount(gene, weights=chosen.data, minlength=len(columns)) / n
        square = np.bincount(gene, weights=chosen.data.astype(np.float64) ** 2, minlength=len(mean))
        variance = square / n - mean**2
    else:
        dense = np.asarray(matrix)[:, columns]
        seen = (dense[reference] != 0).mean(axis=0)
        variance = dense.var(axis=0)
    return (np.asarray(seen).ravel() >= min_detected) & (variance > 1e-10)


def _average(ratio: np.ndarray, weights: sparse.spmatrix) -> np.ndarray:
    """Return the weighted sums over genes (spots by columns of `weights`, float32)."""
    return (weights.T.tocsr().astype(np.float32) @ ratio.T).T
