"""What share of the noise ceiling a perfect predictor reaches.

Counts are drawn from rates that vary over the spots by a lognormal factor, whose map is smooth. The
perfect predictor is the mean of log1p counts per 10,000 over repeated sequencing of the same spots;
beside it stands the true expression, which does not know the spots' depth. With `--overdispersion`
counts vary by a gamma factor more than Poisson's, independently from spot to spot: then the ceiling
of Poisson noise is too high, and `shared` is the one that the printed pair brackets it with.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy import ndimage, sparse

from histogep.lattice import Lattice
from histogep.stats.ceiling import KNOWN, noise_ceiling
from histogep.stats.scores import pearson


def expectation(rate: np.ndarray, sizes: np.ndarray, overdispersion: float) -> np.ndarray:
    """Return the mean of log1p counts per 10,000 over Poisson or negative binomial counts.

    Parameters
    ----------
    rate
        Expected counts, spots by genes.
    sizes
        Library sizes of the spots.
    overdispersion
        Variance of the gamma factor of the rate.
    """
    scale = (1e4 / sizes)[:, None]
    few = np.minimum(rate, 500.0)
    if overdispersion:
        size = 1 / overdispersion
        odds = few / (few + size)
        chance = (1 - odds) ** size
        last = int(few.max() * (1 + 12 * np.sqrt(overdispersion)) + 60)
    else:
        chance = np.exp(-few)
        last = int(few.max() + 12 * np.sqrt(few.max()) + 20)
    total = np.zeros_like(few)
    for count in range(1, last):
        step = odds * (count - 1 + size) if overdispersion else few
        chance = chance * step / count
        total += chance * np.log1p(scale * count)
    return np.where(rate <= 500, total, np.log1p(scale * rate))


def section(
    side: int, genes: int, depth: float, sd: float, overdispersion: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return counts, library sizes, measurement, perfect prediction and true expression.

    Parameters
    ----------
    side
        Spots along a side of the section.
    genes
        Genes of the panel, a half of all counts.
    depth
        Median counts a spot.
    sd
        Standard deviation of the log rate over the spots.
    overdispersion
        Variance of the gamma factor of the counts.
    rng
        Where everything is drawn.
    """
    base = np.exp(rng.normal(0, 1.2, genes))
    fields = ndimage.gaussian_filter(
        rng.standard_normal((genes, side, side)), (0, 2, 2), mode="wrap"
    )
    fields = fields.reshape(genes, -1).T
    fields = (fields - fields.mean(0)) / fields.std(0)
    share = base / base.sum() / 2 * np.exp(sd * fields - sd**2 / 2)
    library = depth * rng.lognormal(0, 0.3, side * side)
    rate = share * library[:, None]
    expected = rate
    if overdispersion:
        expected = rate * rng.gamma(1 / overdispersion, overdispersion, rate.shape)
    counts = rng.poisson(expected)
    sizes = counts.sum(1) + rng.poisson(library / 2)
    measured = np.log1p(counts * (1e4 / np.maximum(sizes, 1))[:, None])
    perfect = expectation(rate, np.maximum(sizes, 1), overdispersion)
    return counts, sizes, measured, perfect, np.log1p(1e4 * share)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--sections", type=int, default=4, help="sections a row")
    parser.add_argument("--side", type=int, default=20, help="spots along a side")
    parser.add_argument("--genes", type=int, default=150)
    parser.add_argument("--depths", nargs="+", type=float, default=[650, 1500, 8000])
    parser.add_argument("--sd", nargs="+", type=float, default=[0.15, 0.3, 0.5])
    parser.add_argument("--overdispersion", nargs="+", type=float, default=[0.0, 0.3])
    arguments = parser.parse_args()
    side = arguments.side
    graph = sparse.csr_matrix(Lattice().neighbours(*np.divmod(np.arange(side * side), side)))
    print(f"seed {arguments.seed}, {arguments.sections} sections of {side * side} spots a row")
    print(
        "over-                  perfect  ceiling  perfect /  ceiling,  perfect /  true expr. / genes"
    )
    print(
        "dispersion depth  sd   r                 ceiling    shared    shared     ceiling      known"
    )
    for overdispersion in arguments.overdispersion:
        for depth in arguments.depths:
            for sd in arguments.sd:
                rows = []
                for number in range(arguments.sections):
                    rng = np.random.default_rng(
                        [arguments.seed, number, int(depth), int(1000 * sd)]
                    )
                    counts, sizes, measured, perfect, truth = section(
                        side, arguments.genes, depth, sd, overdispersion, rng
                    )
                    found = noise_ceiling(counts, sizes, thinnings=10, seed=number, adjacency=graph)
                    known = np.isfinite(found.in_tissue)
                    rows.append(
                        (
                            np.nanmean(pearson(perfect, measured)[known]),
                            found.in_tissue[known].mean(),
                            found.spatial[known].mean(),
                            np.nanmean(pearson(truth, measured)[known]),
                            (found.excess > KNOWN * found.error)[known].mean(),
                        )
                    )
                r, ceiling, shared, truth_r, told = np.mean(rows, axis=0)
                print(
                    f"{overdispersion:10.1f} {depth:5.0f} {sd:.2f} {r:8.3f} {ceiling:8.3f} "
                    f"{r / ceiling:10.3f} {shared:9.3f} {r / shared:10.3f} "
                    f"{truth_r / ceiling:12.3f} {told:10.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
